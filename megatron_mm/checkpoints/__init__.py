"""Checkpoints on disk: where they stand, which are whole, and how weights are read without trusting them."""
