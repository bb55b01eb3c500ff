"""Shortest paths in mazes: the task, its files and a generator; NumPy only."""
