"""``python -m mlx_trm.data generate``: makes Sudoku or mazes, and writes them as a CSV."""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any, Tuple

import numpy as np

from mlx_trm.cli.arguments import above_zero, positive, whole
from mlx_trm.datasets.writing import write_whole_text
from mlx_trm.errors import ConfigError
from mlx_trm.tasks import MazeConfig, SudokuConfig
from mlx_trm.tasks.maze import files as maze_files
from mlx_trm.tasks.maze import generator as maze_generator
from mlx_trm.tasks.maze.paths import WALL, mark_all_shortest_paths
from mlx_trm.tasks.sudoku import files as sudoku_files
from mlx_trm.tasks.sudoku import generator as sudoku_generator
from mlx_trm.tasks.sudoku import solver as sudoku_solver
from mlx_trm.tasks.sudoku.hard import generate_hard
from mlx_trm.tasks.sudoku.keys import puzzle_keys
from mlx_trm.tasks.sudoku.transforms import default_symmetries

LOGGER = logging.getLogger(__name__)

SIZES = {"sudoku": sudoku_solver.SIZES, "maze": range(3, 1001)}
DEFAULT_SIZES = {"sudoku": 9, "maze": 30}
# The options that only one task has.
OWN_OPTIONS = {
    "sudoku": ("--min-givens", "--max-givens", "--hard", "--effort"),
    "maze": ("--style", "--min-path", "--unique"),
}


def add_generate(commands: Any) -> None:
    """Declare the sub-command ``generate`` and its arguments."""
    action = commands.add_parser(
        "generate", help="make Sudoku puzzles, each with one solution, or mazes"
    )
    action.add_argument("--task", choices=tuple(SIZES), default="sudoku")
    action.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="rows: 4, 6, 9 (default), 12 or 16 of a Sudoku, 3 or more (default: 30) of a maze",
    )
    action.add_argument("--count", type=positive, default=10, metavar="N")
    action.add_argument("--seed", type=whole, default=0, metavar="N", help="decides every byte")
    action.add_argument("--style", choices=maze_generator.STYLES, help="of mazes (default: mixed)")
    action.add_argument(
        "--min-path",
        type=positive,
        metavar="N",
        help="of mazes: steps from S to G, at least (default: 111 at 30x30)",
    )
    action.add_argument(
        "--unique", action="store_true", help="of mazes: with exactly one shortest path"
    )
    action.add_argument("--min-givens", type=positive, metavar="N")
    action.add_argument("--max-givens", type=positive, metavar="N")
    action.add_argument("--hard", action="store_true", help="search for hard puzzles (9x9)")
    action.add_argument(
        "--effort",
        type=above_zero,
        metavar="X",
        help="with --hard: search time; 1, the default, takes about a second for each puzzle",
    )
    action.add_argument(
        "--exclude",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="leave out what symmetries turn into a puzzle of this CSV or text file "
        "(4x4 Sudoku: what relabelling does)",
    )
    action.add_argument(
        "--output", type=Path, metavar="FILE", help="a CSV (default: standard output)"
    )
    action.add_argument("--force", action="store_true", help="replace the file if it is there")
    action.set_defaults(do=run_generate)


def run_generate(args: argparse.Namespace) -> None:
    """Generate puzzles into a file or to standard output.

    Raises:
        ConfigError: if no puzzle can be as wanted.
        DataError: if so many are not found, or a file cannot be read or written.
    """
    check_options(args)
    if args.output is not None and args.output.exists() and not args.force:
        raise ConfigError(f"--output {args.output}: is there already; --force replaces it")
    started = time.perf_counter()
    text, summary = (make_mazes if args.task == "maze" else make_sudoku)(args)
    seconds = time.perf_counter() - started
    if args.output is None:
        sys.stdout.write(text)
    else:
        write_whole_text(args.output, text)
    LOGGER.info("%s, %.1f s", summary, seconds)


def check_options(args: argparse.Namespace) -> None:
    """Put the task's size in where none is given; refuse options that do not fit together.

    Raises:
        ConfigError: naming the option.
    """
    for task, options in OWN_OPTIONS.items():
        for option in options:
            value = getattr(args, option[2:].replace("-", "_"))
            if task != args.task and value not in (None, False):
                raise ConfigError(f"{option}: goes with --task {task}, not with {args.task}")
    if args.size is None:
        args.size = DEFAULT_SIZES[args.task]
    sizes = SIZES[args.task]
    if args.size not in sizes:
        named = ", ".join(map(str, sizes)) if len(sizes) < 9 else f"{sizes[0]} to {sizes[-1]}"
        raise ConfigError(f"--size: invalid choice: {args.size} (choose from {named})")
    if args.hard and (args.size != 9 or args.min_givens or args.max_givens):
        raise ConfigError("--hard: makes 9x9 puzzles with any number of givens; leave the rest out")
    if args.effort is not None and not args.hard:
        raise ConfigError("--effort: goes with --hard")
    config = (
        MazeConfig("maze", size=args.size, min_path=args.min_path)
        if args.task == "maze"
        else sudoku_config(args)
    )
    problems = config.problems()
    if problems:
        raise ConfigError("; ".join(problems))


def sudoku_config(args: argparse.Namespace) -> SudokuConfig:
    """Give the settings of the Sudoku task that the options name."""
    return SudokuConfig(
        "sudoku", size=args.size, min_givens=args.min_givens, max_givens=args.max_givens
    )


def make_sudoku(args: argparse.Namespace) -> Tuple[str, str]:
    """Make Sudoku puzzles; give them as a CSV, and a line about them."""
    symmetries = ("digits",) if args.size == 4 else default_symmetries(args.size)
    exclude = [
        puzzle_keys(rows.puzzles, args.size, symmetries)
        for path in args.exclude
        for rows in sudoku_files.read_puzzles(path, args.size)
    ]
    known = np.concatenate(exclude) if exclude else None
    rng = np.random.default_rng(args.seed)
    if args.hard:
        made = generate_hard(args.count, rng, args.effort or 1.0, known)
    else:
        givens = sudoku_config(args).givens
        (made,) = sudoku_generator.generate_sets(
            [args.count], args.size, rng, givens, symmetries, known
        )
    source = "generated_hard" if args.hard else f"generated_{args.size}x{args.size}"
    return sudoku_files.csv_text(made, source), describe_sudoku(made)


def describe_sudoku(made: sudoku_solver.PuzzleSet) -> str:
    """Describe Sudoku puzzles in a line."""
    givens, ratings = (made.puzzles > 0).sum(axis=1), made.ratings
    return (
        f"{len(ratings):,} puzzles: givens {givens.min()} to {givens.max()}, "
        f"mean {givens.mean():.1f}; rating {ratings.min()} to {ratings.max()}, "
        f"mean {ratings.mean():.1f}, median {np.median(ratings):.0f}"
    )


def make_mazes(args: argparse.Namespace) -> Tuple[str, str]:
    """Make mazes; give them as a CSV, and a line about them."""
    style = args.style or "mixed"
    exclude = [
        key
        for path in args.exclude
        for key in maze_generator.maze_keys(maze_files.read_mazes(path, args.size).inputs)
    ]
    rng = np.random.default_rng(args.seed)
    made = maze_generator.generate_sets(
        [args.count], args.size, rng, style, args.min_path, args.unique, exclude
    )[0]
    source = f"generated_maze_{args.size}x{args.size}_{style}"
    return maze_files.csv_text(made, source), describe_mazes(made)


def describe_mazes(made: maze_generator.MazeSet) -> str:
    """Describe mazes in a line."""
    lengths, walls = made.lengths, (made.inputs == WALL).mean()
    single = int((mark_all_shortest_paths(made.inputs).sum(axis=1) == lengths + 1).sum())
    return (
        f"{len(lengths):,} mazes: paths of {lengths.min()} to {lengths.max()} steps, "
        f"mean {lengths.mean():.1f}; {100 * walls:.0f} % walls; {single:,} with one shortest path"
    )
