"""The tasks, by name: ``register_task`` adds one and ``build_task`` makes one. NumPy only."""

from mlx_trm.tasks.arc import ARC, ARCConfig
from mlx_trm.tasks.base import ScoredRows, Scorer, Task, build_task, register_task
from mlx_trm.tasks.dataset import PuzzleDataset, SetSource
from mlx_trm.tasks.maze import Maze, MazeConfig
from mlx_trm.tasks.storage import Puzzle, PuzzleBlock
from mlx_trm.tasks.sudoku import Sudoku, SudokuConfig

__all__ = [
    "Maze",
    "MazeConfig",
    "ARC",
    "ARCConfig",
    "Puzzle",
    "PuzzleBlock",
    "PuzzleDataset",
    "ScoredRows",
    "Scorer",
    "SetSource",
    "Sudoku",
    "SudokuConfig",
    "Task",
    "build_task",
    "register_task",
]
