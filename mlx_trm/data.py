"""``python -m mlx_trm.data``: list, fetch, build, show, generate and verify puzzles."""

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import add_config, positive, read_config, whole, writable
from mlx_trm.cli.fetching import add_fetch
from mlx_trm.cli.generating import add_generate
from mlx_trm.cli.running import DONE, NO, make_main
from mlx_trm.config.registry import TASKS
from mlx_trm.datasets.catalogue import DataEntry, built_datasets, bundled_samples, fetched_sets
from mlx_trm.datasets.manifest import check_manifest
from mlx_trm.datasets.names import row_names
from mlx_trm.datasets.writing import SPLITS
from mlx_trm.drawing.raster import Panel, check_pillow, save_strip
from mlx_trm.errors import ConfigError, DataError, did_you_mean, shown
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
    action.add_argument(
        "--name", metavar="NAME", help="the puzzles of this name instead, an ARC task's say"
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
    """Draw puzzles beside their answers; those with names below the pairs that explain them."""
    if args.png is not None:
        check_pillow("--png")
    config = read_config(args)
    task = build_task(config.task, config.task_seed)
    dataset = task.dataset(args.split)
    names = row_names(dataset) if dataset.spec.num_puzzle_identifiers > 1 else None
    chosen: Sequence[int] = range(args.index, min(args.index + args.count, len(dataset)))
    if args.name is not None:
        chosen = find_named(dataset, names, args.name)
    elif args.index >= len(dataset):
        raise ConfigError(
            f"--index {args.index}: the split {args.split} has {len(dataset):,} puzzles, "
            f"0 to {len(dataset) - 1}"
        )
    color, pictures = display.use_color(), []
    demonstrations = task.dataset("train") if args.split == "test" and names else None
    for index in chosen:
        inputs, labels = dataset.example(index)
        number = dataset.example_identifier(index)
        named = f", {shown(names[number])}" if names and number else ""
        print(f"{config.task.name} {args.split} puzzle {index} of {len(dataset):,}{named}")
        shows: List[Tuple[str, Tuple[np.ndarray, np.ndarray]]] = []
        if demonstrations is not None and number:
            for place in demonstrations.examples_of(number):
                shows.append((f"demonstration {len(shows) + 1}", demonstrations.example(place)))
        for title, pair in shows:
            print(f"{title}:\n{draw_pair(task, *pair, color)}")
        known = dataset.open_answer is None or not np.array_equal(labels, dataset.open_answer)
        if shows:
            print("puzzle, and its answer:" if known else "puzzle:")
        if not known:
            print(f"{task.render(inputs, inputs, color=color)}\nno solution is known")
            pairs = [*shows, ("puzzle", (inputs, inputs))]
        else:
            print(draw_pair(task, inputs, labels, color))
            pairs = [*shows, (str(index), (inputs, labels))]
        print(f"{task.format(inputs)}\n")
        for title, (given, right) in pairs if args.png is not None else []:
            sides = (("puzzle", given), ("answer", right))
            pictures.append([Panel(f"{title}, {s}", task.board(t, given)) for s, t in sides])
    if args.png is not None:
        save_strip(args.png, pictures)


def find_named(dataset: PuzzleDataset, names: Optional[List[str]], name: str) -> Sequence[int]:
    """Give the examples of a split that belong to a name.

    Raises:
        ConfigError: if there are none.
    """
    if names is None:
        raise ConfigError("--name: the puzzles of this data set have no names; use --index")
    found = dataset.examples_of(names.index(name)) if name in names[1:] else []
    if not found:
        hint = did_you_mean(name, names[1:]) if len(names) < 100_000 else ""
        raise ConfigError(f"--name {name}: no puzzle of this split has this name{hint}")
    return found


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
