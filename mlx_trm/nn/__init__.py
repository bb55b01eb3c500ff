"""Layers with the reference's rounding, and their fast paths on a GPU."""
