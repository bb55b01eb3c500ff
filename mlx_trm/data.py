"""``python -m mlx_trm.data``: list, fetch, build, show, generate and verify puzzles."""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import List, Optional

import numpy as np

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import add_config, positive, read_config, whole, writable
from mlx_trm.cli.fetching import add_fetch
from mlx_trm.cli.generating import add_generate
from mlx_trm.cli.running import DONE, NO, make_main
from mlx_trm.config.registry import TASKS
from mlx_trm.datasets.catalogue import DataEntry, built_datasets, bundled_samples, fetched_sets
from mlx_trm.datasets.manifest import check_manifest
from mlx_trm.datasets.writing import SPLITS
from mlx_trm.drawing.raster import Panel, check_pillow, save_strip
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.system.files import cache_folder
from mlx_trm.tasks import PuzzleDataset, Task, build_task

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
    action.add_argument("--png", type=writable, metavar="FILE", help="also draw them there")
    add_config(action)
    action.set_defaults(do=run_show)

    add_generate(commands)

    action = commands.add_parser("verify", help="compare built datasets with their checksums")
    action.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", help="default: all in the cache"
    )
    action.set_defaults(do=run_verify)


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
        check_pillow("--png")
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
            pictures.append([Panel(f"{index}, {s}", task.board(t, inputs)) for s, t in sides])
        print(f"{config.task.name} {args.split} puzzle {index} of {len(dataset):,}")
        print(draw_pair(task, inputs, labels, color))
        print(f"{task.format(inputs)}\n")
    if args.png is not None:
        save_strip(args.png, pictures)


def run_verify(args: argparse.Namespace) -> int:
    """Read built datasets through, whatever their size, and say which are damaged."""
    folders: List[Path] = args.folders or [entry.path for entry in built_datasets()]
    rows, code = [], DONE
    for folder in folders:
        try:
            known = check_manifest(folder, full=True)
            for split in (split for split in SPLITS if (folder / split).is_dir() or not known):
                PuzzleDataset.load(folder, split)
            rows.append((str(folder), "as it was built" if known else "no checksums, readable"))
        except DataError as error:
            rows.append((str(folder), str(error)))
            code = NO
    print(display.table(rows, ("folder", "state")) if rows else "no built datasets")
    return code


def draw_pair(task: Task, inputs: np.ndarray, labels: np.ndarray, color: bool) -> str:
    """Draw (S,) inputs and labels side by side."""
    left, right = (task.render(tokens, inputs=inputs, color=color) for tokens in (inputs, labels))
    return display.side_by_side(left, right)


main = make_main("data", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
