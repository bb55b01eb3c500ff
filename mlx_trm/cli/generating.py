"""``data generate --task maze``, and which options of ``data generate`` belong to which task."""

import argparse
import logging
import sys
import time

import numpy as np

from mlx_trm.errors import ConfigError
from mlx_trm.tasks import MazeConfig
from mlx_trm.tasks.maze.files import csv_text, read_mazes, write_csv
from mlx_trm.tasks.maze.generator import STYLES, MazeSet, generate_sets, maze_keys
from mlx_trm.tasks.maze.paths import WALL, mark_all_shortest_paths

LOGGER = logging.getLogger(__name__)

SIZES = {"sudoku": (4, 6, 9), "maze": range(3, 1001)}
DEFAULT_SIZES = {"sudoku": 9, "maze": 30}
# The options that only one task has.
OWN_OPTIONS = {
    "sudoku": ("--min-givens", "--max-givens", "--hard", "--effort"),
    "maze": ("--style", "--min-path", "--unique"),
}


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the choice of the task, and the options of mazes."""
    parser.add_argument("--task", choices=tuple(SIZES), default="sudoku")
    parser.add_argument("--style", choices=STYLES, help="of mazes (default: mixed)")
    parser.add_argument(
        "--min-path",
        type=int,
        metavar="N",
        help="of mazes: steps from S to G, at least (default: 111 at 30x30)",
    )
    parser.add_argument(
        "--unique", action="store_true", help="of mazes: with exactly one shortest path"
    )


def check_options(args: argparse.Namespace) -> None:
    """Put the task's size in where none is given; refuse options of another task.

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


def run_maze(args: argparse.Namespace) -> None:
    """Generate mazes into a file or to standard output; the options have been checked.

    Raises:
        ConfigError: if no maze can be as wanted.
        DataError: if so many mazes are not found, or a file cannot be read or written.
    """
    style = args.style or "mixed"
    config = MazeConfig(name="maze", size=args.size, style=style, min_path=args.min_path)
    problems = config.problems()
    if args.min_path is not None and args.min_path < 1:
        problems.append(f"min_path: must be at least 1, not {args.min_path}")
    if problems:
        raise ConfigError("; ".join(problems))
    exclude = [
        key for path in args.exclude for key in maze_keys(read_mazes(path, args.size).inputs)
    ]
    rng = np.random.default_rng(args.seed)
    started = time.perf_counter()
    made = generate_sets([args.count], args.size, rng, style, args.min_path, args.unique, exclude)[
        0
    ]
    seconds = time.perf_counter() - started
    source = f"generated_maze_{args.size}x{args.size}_{style}"
    if args.output is None:
        sys.stdout.write(csv_text(made, source))
    else:
        write_csv(args.output, made, source)
    LOGGER.info("%s, %.1f s", summary(made), seconds)


def summary(made: MazeSet) -> str:
    """Describe mazes in a line."""
    lengths, walls = made.lengths, (made.inputs == WALL).mean()
    single = int((mark_all_shortest_paths(made.inputs).sum(axis=1) == lengths + 1).sum())
    return (
        f"{len(lengths):,} mazes: paths of {lengths.min()} to {lengths.max()} steps, "
        f"mean {lengths.mean():.1f}; {100 * walls:.0f} % walls; {single:,} with one shortest path"
    )
