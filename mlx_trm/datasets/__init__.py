"""Puzzles on disk and in batches: writing, reading, fetching; NumPy only."""
