"""Sudoku of 4x4, 6x6 and 9x9: the task, its files, a solver and generators; NumPy only."""
