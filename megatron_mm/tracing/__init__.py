"""A job walked through without its machines: the recipe's real model code, one rank at a time, on fake tensors.

Shapes are real and numbers are not: whatever would fail of sizes fails here, and every storage is followed from its
birth to its end.
"""
