"""Where tokens are computed. `protocol` says what a backend does; each of the others is one way to do it."""
