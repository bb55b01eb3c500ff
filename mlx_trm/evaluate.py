"""``python -m mlx_trm.evaluate``: score a trained model on its task's puzzles."""

import argparse
import logging
import sys
from pathlib import Path
from typing import List

from tqdm import tqdm

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import add_json, positive, save_json
from mlx_trm.cli.checkpoints import add_model, add_run, load_run
from mlx_trm.cli.running import make_main
from mlx_trm.config.loading import config_from_dict, config_to_dict
from mlx_trm.config.sections import NEW_ROWS
from mlx_trm.errors import ConfigError
from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.runs.checkpoint import Checkpoint
from mlx_trm.runs.folder import save_evaluation_files
from mlx_trm.runs.puzzle_rows import follow_data, read_row_names

LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    add_run(parser)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument(
        "--max-examples", type=positive, metavar="N", help="evaluate a seeded sample of N puzzles"
    )
    parser.add_argument(
        "--steps", type=positive, metavar="N", help="supervision steps (default: as in training)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write there what the task has to keep: ARC's submission.json",
    )
    parser.add_argument(
        "--new-rows",
        choices=NEW_ROWS,
        default=NEW_ROWS[0],
        help="what puzzles get that the run does not know: the mean row of its table, or zeros",
    )
    add_model(parser)
    add_json(parser, "also write the metrics there")


def run(args: argparse.Namespace, overrides: List[str]) -> int:
    """Evaluate and print a table; the overrides change the run's configuration."""
    checkpoint, _ = load_run(args)
    config = checkpoint.config
    if overrides:
        config = config_from_dict(config_to_dict(config), args.run, overrides)
        if config.model != checkpoint.config.model:
            raise ConfigError(
                "model.*: cannot be overridden when evaluating, the weights were trained with it"
            )
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise ConfigError(f"--output {args.output}: is a file; name a folder")
    evaluator = Evaluator(checkpoint.model, config)
    if checkpoint.model.config.puzzle_emb_ndim and checkpoint.spec.num_puzzle_identifiers > 1:
        find_rows(checkpoint, evaluator, args)
    shown = sys.stderr.isatty() and not args.quiet
    with tqdm(unit="puzzle", disable=not shown, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        metrics = evaluator.run(args.split, args.max_examples, args.steps, on_progress=progress)
    if args.json is not None:
        save_json(args.json, metrics)
    if args.output is not None:
        for path in save_evaluation_files(args.output, evaluator.files):
            print(f"written: {path}")
        if not evaluator.files:
            LOGGER.warning("--output: the task %s has nothing to keep", config.task.name)
    weights = f"{checkpoint.weights} weights"
    if args.quantize is not None:
        weights += f" of {args.quantize} bits"
    print(f"{checkpoint.path}: step {checkpoint.step}, {weights}, {args.split}")
    print(display.table(display.metric_rows(metrics), ("set", "metric", "value")))
    return 0


def find_rows(checkpoint: Checkpoint, evaluator: Evaluator, args: argparse.Namespace) -> None:
    """Give each puzzle the row of the table that it was trained with, and say what was done.

    Raises:
        TRMError: if the names of the rows or the data cannot be read.
    """
    names = read_row_names(checkpoint.path)
    data = evaluator.task.dataset(args.split)
    done = follow_data(checkpoint.model, names, data, args.new_rows)
    if done is None and evaluator.config.task != checkpoint.config.task:
        LOGGER.warning(
            "task.*: the rows of the puzzle table belong to the run's own data, and %s not say "
            "whose they are; with data that are numbered otherwise puzzles get each other's rows",
            "the checkpoint does" if names is None else "the data do",
        )
    elif done:
        LOGGER.info("puzzle table: %s", done)


main = make_main("evaluate", add_arguments, run, needs="overrides")

if __name__ == "__main__":
    sys.exit(main())
