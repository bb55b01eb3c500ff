"""ARC-AGI: the task, its files, augmentations, and one answer by their votes; NumPy only."""
