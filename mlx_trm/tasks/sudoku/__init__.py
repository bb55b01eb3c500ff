"""Sudoku of 4x4 to 16x16: the task, its files, a solver and generators; NumPy only."""
