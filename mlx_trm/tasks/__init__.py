"""What a task is, the three of the paper, chess, Go, and data of one's own; NumPy only."""

from mlx_trm.datasets.dataset import PuzzleDataset, SetSource
from mlx_trm.datasets.writing import Puzzle, PuzzleBlock
from mlx_trm.tasks.arc.task import ARC, ARCConfig
from mlx_trm.tasks.base import ScoredRows, Scorer, Task, build_task, register_task
from mlx_trm.tasks.chess.data import ChessConfig
from mlx_trm.tasks.chess.task import Chess
from mlx_trm.tasks.folder import Folder, FolderConfig
from mlx_trm.tasks.go.task import Go, GoConfig
from mlx_trm.tasks.maze.task import Maze, MazeConfig
from mlx_trm.tasks.sudoku.task import Sudoku, SudokuConfig

__all__ = [
    "Chess",
    "ChessConfig",
    "Folder",
    "FolderConfig",
    "Go",
    "GoConfig",
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
