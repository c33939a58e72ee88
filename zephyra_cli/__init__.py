"""The speaking part of zephyra: command line, engine and backends. Never imports torch at top level."""
