"""The translating part of zephyra: checkpoints, adapters and packs between formats."""
