"""How right is an answer? One file a kind of answer; pure functions, tested."""
