"""``python -m mlx_trm.data generate``: makes puzzles of a task, and writes them as a CSV."""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any, Tuple, Union

import numpy as np

from mlx_trm.cli.arguments import above_zero, positive, whole
from mlx_trm.config.sections import TaskConfig
from mlx_trm.datasets.writing import write_whole_text
from mlx_trm.errors import ConfigError
from mlx_trm.tasks import Chess, ChessConfig, Go, GoConfig, MazeConfig, SudokuConfig
from mlx_trm.tasks.base import with_progress
from mlx_trm.tasks.chess.tokens import KINDS as CHESS_KINDS
from mlx_trm.tasks.chess.tokens import STYLES as CHESS_STYLES
from mlx_trm.tasks.go.positions import KINDS as GO_KINDS
from mlx_trm.tasks.go.rules import SIZES as GO_SIZES
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

SIZES = {"sudoku": sudoku_solver.SIZES, "maze": range(3, 1001), "go": GO_SIZES, "chess": ()}
DEFAULT_SIZES = {"sudoku": 9, "maze": 30, "go": 7}
# Which tasks an option goes with; the others go with all of them.
OPTIONS = {
    "--size": ("sudoku", "maze", "go"),
    "--min-givens": ("sudoku",),
    "--max-givens": ("sudoku",),
    "--hard": ("sudoku",),
    "--effort": ("sudoku",),
    "--style": ("maze", "chess"),
    "--min-path": ("maze",),
    "--unique": ("maze", "chess"),
    "--kind": ("chess", "go"),
    "--quiet-moves": ("go",),
}
# The choices of options that mean something else to each task; the first is the default.
CHOICES = {
    ("--style", "maze"): ("mixed", *(each for each in maze_generator.STYLES if each != "mixed")),
    ("--style", "chess"): CHESS_STYLES,
    ("--kind", "chess"): CHESS_KINDS,
    ("--kind", "go"): GO_KINDS,
}


def _list_choices(option: str) -> str:
    """List an option's choices by task, for its help."""
    named = {task: choices for (name, task), choices in CHOICES.items() if name == option}
    return "; ".join(f"of {task}: {', '.join(choices)}" for task, choices in named.items())


def add_generate(commands: Any) -> None:
    """Declare the sub-command ``generate`` and its arguments."""
    action = commands.add_parser(
        "generate",
        help="make Sudoku puzzles, each with one solution, mazes, chess positions or Go problems",
    )
    action.add_argument("--task", choices=tuple(SIZES), default="sudoku")
    action.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="rows: 4, 6, 9 (default), 12 or 16 of a Sudoku, 3 or more (default: 30) of a maze, "
        "7 (default) or 9 of Go",
    )
    action.add_argument("--count", type=positive, default=10, metavar="N")
    action.add_argument("--seed", type=whole, default=0, metavar="N", help="decides every byte")
    action.add_argument(
        "--kind",
        metavar="NAME",
        help=f"what is asked; the first if not said: {_list_choices('--kind')}",
    )
    action.add_argument(
        "--style", metavar="NAME", help=f"the first if not said: {_list_choices('--style')}"
    )
    action.add_argument(
        "--min-path",
        type=positive,
        metavar="N",
        help="of mazes: steps from S to G, at least (default: 111 at 30x30)",
    )
    action.add_argument(
        "--unique",
        action=argparse.BooleanOptionalAction,
        help="of mazes: with exactly one shortest path (default: no); of mates in chess: with "
        "exactly one right first move (default: yes)",
    )
    action.add_argument(
        "--quiet-moves",
        type=int,
        choices=(0, 1, 2),
        help="of Go's captures: moves of the attacker that are no atari, at most (default: 1)",
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
    makers = {"sudoku": make_sudoku, "maze": make_mazes, "chess": make_game, "go": make_game}
    text, summary = makers[args.task](args)
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
    for option, tasks in OPTIONS.items():
        name = option[2:].replace("-", "_")
        if args.task not in tasks and getattr(args, name) not in (None, False):
            raise ConfigError(
                f"{option}: goes with --task {' or '.join(tasks)}, not with {args.task}"
            )
        choices = CHOICES.get((option, args.task))
        if choices is not None and getattr(args, name) is None:
            setattr(args, name, choices[0])
        elif choices is not None and getattr(args, name) not in choices:
            named = ", ".join(choices)
            raise ConfigError(
                f"{option}: invalid choice: {getattr(args, name)!r} (choose from {named})"
            )
    sizes = SIZES[args.task]
    if args.size is None:
        args.size = DEFAULT_SIZES.get(args.task)
    elif args.size not in sizes:
        named = ", ".join(map(str, sizes)) if len(sizes) < 9 else f"{sizes[0]} to {sizes[-1]}"
        raise ConfigError(f"--size: invalid choice: {args.size} (choose from {named})")
    if args.hard and (args.size != 9 or args.min_givens or args.max_givens):
        raise ConfigError("--hard: makes 9x9 puzzles with any number of givens; leave the rest out")
    if args.effort is not None and not args.hard:
        raise ConfigError("--effort: goes with --hard")
    problems = make_config(args).problems()
    if problems:
        raise ConfigError("; ".join(problems))


def make_config(args: argparse.Namespace) -> TaskConfig:
    """Give the task's settings that the options name."""
    if args.task == "maze":
        return MazeConfig("maze", size=args.size, min_path=args.min_path)
    if args.task == "chess":
        unique = args.unique is not False
        return ChessConfig("chess", kind=args.kind, style=args.style, unique=unique)
    if args.task == "go":
        quiet = GoConfig.quiet_moves if args.quiet_moves is None else args.quiet_moves
        return GoConfig("go", kind=args.kind, size=args.size, quiet_moves=quiet)
    return sudoku_config(args)


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
    style = args.style
    exclude = [
        key
        for path in args.exclude
        for key in maze_generator.maze_keys(maze_files.read_mazes(path, args.size).inputs)
    ]
    rng = np.random.default_rng(args.seed)
    made = maze_generator.generate_sets(
        [args.count], args.size, rng, style, args.min_path, bool(args.unique), exclude
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


def make_game(args: argparse.Namespace) -> Tuple[str, str]:
    """Make puzzles of a game; give them as a CSV, and a line about them."""
    config = make_config(args)
    task: Union[Chess, Go] = Chess(config) if args.task == "chess" else Go(config)
    rng = np.random.default_rng(args.seed)
    made = task.generate(args.count, rng, args.exclude)
    shown = with_progress(made, args.task, not args.quiet and sys.stderr.isatty())
    kind = "_".join(filter(None, (args.task, args.kind, args.style or f"{args.size}x{args.size}")))
    rows = [
        f"generated_{kind},{task.format(inputs)},{task.format(labels)}" for inputs, labels in shown
    ]
    return "\n".join(["source,question,answer", *rows, ""]), f"{len(rows):,} puzzles: {kind}"
