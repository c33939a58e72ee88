"""The parts of the family, each under its field's name: norm, position, cache, attention, feed_forward, block."""
