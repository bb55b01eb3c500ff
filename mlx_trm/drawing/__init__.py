"""Pictures of puzzles being solved and of runs: strips, animations, a page, notebooks, curves."""
