"""How the puzzles of a task are typed on the page, and puzzles to begin with."""

from functools import lru_cache
from typing import Any, Dict, List

import numpy as np

from mlx_trm.datasets.sources import SAMPLES
from mlx_trm.drawing.page import board_data
from mlx_trm.errors import DataError
from mlx_trm.tasks import Task
from mlx_trm.tasks.arc.files import find_subset, read_subset
from mlx_trm.tasks.arc.grids import CANVAS, format_grid
from mlx_trm.tasks.arc.task import ARC
from mlx_trm.tasks.chess.task import Chess
from mlx_trm.tasks.go.generator import generate_puzzles
from mlx_trm.tasks.go.task import Go
from mlx_trm.tasks.maze import generator as mazes
from mlx_trm.tasks.maze.task import Maze
from mlx_trm.tasks.sudoku import generator as sudokus
from mlx_trm.tasks.sudoku.files import puzzle_text, read_puzzles
from mlx_trm.tasks.sudoku.task import SAMPLE_FILES, Sudoku

MOST_NAMES = 2000  # of puzzles that are listed
ARC_SAMPLE = "arc_tiny"


def describe_editor(task: Task) -> Dict[str, Any]:
    """Say what a page needs for typing puzzles of a task.

    Returns:
        ``kind``: ``digits``, with ``size``, ``boxes`` and ``symbols``; ``maze``, with ``size``;
        ``names``, where puzzles are picked; or ``text``.
    """
    if isinstance(task, Sudoku):
        size = int(task.config.size)
        boxes = task.board(np.ones(size * size, np.uint8)).boxes
        symbols = task.token_names[2:]
        return {"kind": "digits", "size": size, "boxes": list(boxes), "symbols": symbols}
    if isinstance(task, Maze):
        return {"kind": "maze", "size": int(task.config.size)}
    return {"kind": "names" if isinstance(task, ARC) else "text"}


def list_names(task: Task) -> List[str]:
    """Give the names by which puzzles of a task's data can be asked for, the first ones of many."""
    if not isinstance(task, ARC):
        return []
    known = task.known_tasks().by_name
    names = [f"{each.name}:{each.number}" for name in sorted(known) for each in known[name]]
    return names[:MOST_NAMES]


def draw_demonstrations(task: Task, text: str) -> List[Dict[str, Any]]:
    """Draw the pairs that show what a puzzle asks for, where its task has such.

    Args:
        task: of the puzzle.
        text: the puzzle.

    Returns:
        ``puzzle`` and ``answer`` of each, as the page draws grids.
    """
    pairs = task.demonstrations(text) if isinstance(task, ARC) else []
    return [
        {"puzzle": board_data(task.board(given)), "answer": board_data(task.board(answer))}
        for given, answer in pairs
    ]


def draw_example(task: Task, rng: np.random.Generator) -> str:
    """Give a puzzle to begin with, as text.

    Args:
        task: of the puzzle.
        rng: decides which.

    Raises:
        DataError: if the task has none, or its data cannot be read.
    """
    if isinstance(task, Sudoku):
        if task.config.size == 9:
            puzzles = _bundled()
            return puzzle_text(puzzles[rng.integers(len(puzzles))])
        made = sudokus.generate_sets([1], task.config.size, rng, task.config.givens)[0]
        return puzzle_text(made.puzzles[0])
    if isinstance(task, Maze):
        config = task.config
        maze = mazes.generate_sets([1], config.size, rng, config.style, config.min_path)[0]
        return task.format(maze.inputs[0])
    if isinstance(task, Chess):
        return task.format(task.draw_position(rng))
    if isinstance(task, Go):
        go = task.config
        board, _ = next(generate_puzzles("test", 1, go.kind, go.size, go.quiet_moves, rng))
        return task.format(board)
    names = list_names(task)
    if names:
        return names[rng.integers(len(names))]
    if isinstance(task, ARC):  # its data are not here; the grids of the package are
        grids = [grid for grid in _bundled_grids() if max(grid.shape) <= task.config.max_grid_size]
        return format_grid(grids[rng.integers(len(grids))])
    raise DataError(f"the task {task.config.name} has no examples here")


@lru_cache(maxsize=None)
def _bundled_grids() -> List[np.ndarray]:
    """Read the test inputs of the package's ARC tasks, (H, W) uint8 colours."""
    tasks = read_subset(find_subset(SAMPLES / ARC_SAMPLE, "evaluation"), CANVAS, False)
    return [given for each in tasks for given, _ in each.pairs["test"]]


@lru_cache(maxsize=None)
def _bundled() -> np.ndarray:
    """Read the hard 9x9 test puzzles of the package, (n, 81) digits."""
    return np.concatenate(
        [part.puzzles for part in read_puzzles(SAMPLES / SAMPLE_FILES["test"], 9)]
    )
