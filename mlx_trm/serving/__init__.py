"""The pages and the API of the command ``serve``: solving puzzles, and following runs."""
