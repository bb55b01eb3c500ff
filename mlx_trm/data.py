"""``python -m mlx_trm.data``: list, fetch, build, show and generate puzzles."""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import List, Optional

import numpy as np

from mlx_trm.cli import generating as generate
from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import above_zero, add_config, positive, read_config, whole
from mlx_trm.cli.fetching import add_fetch
from mlx_trm.cli.pictures import Panel, add_png, check_png, save_png
from mlx_trm.cli.running import make_main
from mlx_trm.config.registry import TASKS
from mlx_trm.datasets.catalogue import DataEntry, built_datasets, bundled_samples, fetched_sets
from mlx_trm.datasets.writing import SPLITS
from mlx_trm.errors import ConfigError
from mlx_trm.system.files import cache_folder
from mlx_trm.tasks import PuzzleDataset, SudokuConfig, Task, build_task
from mlx_trm.tasks.sudoku.files import csv_text, read_puzzles, write_csv
from mlx_trm.tasks.sudoku.generator import generate_sets
from mlx_trm.tasks.sudoku.hard import generate_hard
from mlx_trm.tasks.sudoku.keys import puzzle_keys
from mlx_trm.tasks.sudoku.solver import PuzzleSet
from mlx_trm.tasks.sudoku.transforms import default_symmetries

LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands and their arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = commands.add_parser("list", help="show tasks and the data that is there")
    action.set_defaults(do=run_list)

    add_fetch(commands)

    action = commands.add_parser("build", help="build the dataset of a configuration")
    action.add_argument(
        "--output", type=Path, metavar="DIR", help="a new or empty folder (default: the cache)"
    )
    add_config(action)
    action.set_defaults(do=run_build)

    action = commands.add_parser("show", help="draw puzzles of a configuration's dataset")
    action.add_argument("--split", choices=SPLITS, default="test")
    action.add_argument(
        "--index", type=whole, default=0, metavar="N", help="which puzzle, from 0 (default: 0)"
    )
    action.add_argument(
        "--count", type=positive, default=1, metavar="N", help="how many (default: 1)"
    )
    add_png(action, "also draw them there (mazes, ARC)")
    add_config(action)
    action.set_defaults(do=run_show)

    action = commands.add_parser(
        "generate", help="make Sudoku puzzles, each with one solution, or mazes"
    )
    generate.add_task_arguments(action)
    action.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="rows: 4, 6 or 9 (default) of a Sudoku, 3 or more (default: 30) of a maze",
    )
    action.add_argument("--count", type=positive, default=10, metavar="N")
    action.add_argument("--seed", type=whole, default=0, metavar="N", help="decides every byte")
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


def run(args: argparse.Namespace) -> Optional[int]:
    """Do what the sub-command says and return the exit code."""
    code: Optional[int] = args.do(args)
    return code


def run_list(args: argparse.Namespace) -> None:
    """Print what there is."""
    del args
    print("Tasks: " + ", ".join(TASKS.names()))
    print("\nWith the package (used where a configuration names no file):")
    print(_entries(bundled_samples()))
    fetched = fetched_sets()
    if fetched:
        print(f"\nFetched:\n{_entries(fetched)}")
    built = built_datasets()
    print(f"\nBuilt, in {cache_folder()}:")
    print(_entries(built) if built else "none yet")
    print("\nMake one: python -m mlx_trm.data build --config sudoku.yaml")
    print("Fetch one: python -m mlx_trm.data fetch")


def _entries(entries: List[DataEntry]) -> str:
    return display.table(
        [
            (
                entry.name,
                entry.content,
                "?" if entry.examples is None else f"{entry.examples:,}",
                display.size(entry.size),
                str(entry.path),
            )
            for entry in entries
        ],
        ("name", "content", "puzzles", "size", "path"),
    )


def run_build(args: argparse.Namespace) -> None:
    """Build a dataset and say what it is."""
    config = read_config(args)
    if config.task.data_dir:
        raise ConfigError(f"task.data_dir: {config.task.data_dir} is built already; leave it out")
    task = build_task(config.task, config.task_seed)
    progress = sys.stderr.isatty() and not args.quiet
    started = time.perf_counter()
    if args.output is not None:
        task.build(args.output, SPLITS, progress)
        datasets = [PuzzleDataset.load(args.output, split) for split in SPLITS]
    else:
        datasets = [task.dataset(split, progress) for split in SPLITS]
    seconds = time.perf_counter() - started
    rows = [
        (d.path.name, f"{len(d):,}", f"{d.total_puzzles:,}", f"{d.total_groups:,}", str(d.path))
        for d in datasets
    ]
    print(display.table(rows, ("split", "examples", "puzzles", "groups", "folder")))
    LOGGER.info("done in %.1f s", seconds)
    if args.output is not None:
        LOGGER.info("use it: task.data_dir=%s", args.output)


def run_show(args: argparse.Namespace) -> None:
    """Draw puzzles beside their answers."""
    if args.png is not None:
        check_png()
    config = read_config(args)
    task = build_task(config.task, config.task_seed)
    dataset = task.dataset(args.split)
    if args.index >= len(dataset):
        raise ConfigError(
            f"--index {args.index}: the split {args.split} has {len(dataset):,} puzzles, "
            f"0 to {len(dataset) - 1}"
        )
    color, pictures = display.use_color(), []
    for index in range(args.index, min(args.index + args.count, len(dataset))):
        inputs, labels = dataset.example(index)
        if args.png is not None:
            sides = (("puzzle", inputs), ("answer", labels))
            pictures.append([Panel(f"{index}, {s}", task.image(t, inputs)) for s, t in sides])
        print(f"{config.task.name} {args.split} puzzle {index} of {len(dataset):,}")
        print(draw_pair(task, inputs, labels, color))
        print(f"{task.format(inputs)}\n")
    if args.png is not None:
        save_png(args.png, pictures)


def draw_pair(task: Task, inputs: np.ndarray, labels: np.ndarray, color: bool) -> str:
    """Draw (S,) inputs and labels side by side."""
    left, right = (task.render(tokens, inputs=inputs, color=color) for tokens in (inputs, labels))
    return display.side_by_side(left, right)


def run_generate(args: argparse.Namespace) -> None:
    """Generate puzzles into a file or to standard output."""
    generate.check_options(args)
    if args.hard and (args.size != 9 or args.min_givens or args.max_givens):
        raise ConfigError("--hard: makes 9x9 puzzles with any number of givens; leave the rest out")
    if args.effort is not None and not args.hard:
        raise ConfigError("--effort: goes with --hard")
    if args.output is not None and args.output.exists() and not args.force:
        raise ConfigError(f"--output {args.output}: is there already; --force replaces it")
    if args.task == "maze":
        generate.run_maze(args)
        return
    config = SudokuConfig(
        name="sudoku", size=args.size, min_givens=args.min_givens, max_givens=args.max_givens
    )
    problems = config.problems()
    if problems:
        raise ConfigError("; ".join(problems))
    symmetries = ("digits",) if args.size == 4 else default_symmetries(args.size)
    exclude = [
        puzzle_keys(rows.puzzles, args.size, symmetries)
        for path in args.exclude
        for rows in read_puzzles(path, args.size)
    ]
    known = np.concatenate(exclude) if exclude else None
    rng = np.random.default_rng(args.seed)
    started = time.perf_counter()
    if args.hard:
        made = generate_hard(args.count, rng, args.effort or 1.0, known)
    else:
        (made,) = generate_sets([args.count], args.size, rng, config.givens, symmetries, known)
    source = "generated_hard" if args.hard else f"generated_{args.size}x{args.size}"
    if args.output is None:
        sys.stdout.write(csv_text(made, source))
    else:
        write_csv(args.output, made, source)
    LOGGER.info("%s, %.1f s", summary(made), time.perf_counter() - started)


def summary(made: PuzzleSet) -> str:
    """Describe puzzles in a line."""
    givens, ratings = (made.puzzles > 0).sum(axis=1), made.ratings
    return (
        f"{len(ratings):,} puzzles: givens {givens.min()} to {givens.max()}, "
        f"mean {givens.mean():.1f}; rating {ratings.min()} to {ratings.max()}, "
        f"mean {ratings.mean():.1f}, median {np.median(ratings):.0f}"
    )


main = make_main("data", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
