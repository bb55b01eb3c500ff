"""``python -m mlx_trm.evaluate``: score a trained model on its task's puzzles."""

import argparse
import logging
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import yaml
from tqdm import tqdm

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import (
    add_json,
    add_search,
    asks_for_search,
    positive,
    read_search,
    save_json,
    writable,
)
from mlx_trm.cli.checkpoints import add_model, add_run, load_run, locate_run
from mlx_trm.cli.running import make_main
from mlx_trm.config.loading import config_from_dict, config_to_dict
from mlx_trm.config.sections import NEW_ROWS, TaskSpec
from mlx_trm.config.strict_yaml import parse_yaml
from mlx_trm.datasets.names import row_names
from mlx_trm.errors import ConfigError, TRMError
from mlx_trm.inference.evaluator import Evaluator, ablated_rows, check_dimensions
from mlx_trm.inference.predictions import Comparison, McNemar, check_name, write_predictions
from mlx_trm.inference.search import Problem, Result, SearchSettings
from mlx_trm.inference.search.problems import dataset_problems, file_problems, sample_problems
from mlx_trm.runs.checkpoint import Checkpoint
from mlx_trm.runs.folder import save_evaluation_files
from mlx_trm.runs.layout import CONFIG, find_checkpoint
from mlx_trm.runs.puzzle_rows import follow_data, read_row_names
from mlx_trm.runs.state import read_state
from mlx_trm.system.backend import free_memory_by_size

LOGGER = logging.getLogger(__name__)

# Parts of a search's report, and what stands over their names.
HEADINGS = {
    "by_steps": "steps",
    "by_choice": "chosen by",
    "by_rating": "rating",
    "by_source": "source",
}


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
    parser.add_argument(
        "--identifiers",
        choices=("own", "blank", "random"),
        default="own",
        help="which row of the puzzle table a puzzle gets: its own; the blank one; or another "
        "puzzle's, by --seed: what the rows are worth",
    )
    parser.add_argument(
        "--data", metavar="FILE", help="evaluate the puzzles of a CSV or text file instead"
    )
    parser.add_argument(
        "--predictions",
        type=writable,
        metavar="FILE",
        help="write each puzzle's answer there: a .csv or .jsonl",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="compare with the predictions of another evaluation (McNemar's test)",
    )
    add_search(parser)
    add_model(parser, settings=True)
    add_json(parser, "also write the metrics there")


def run(args: argparse.Namespace, overrides: List[str]) -> int:
    """Evaluate and print a table; the overrides change the run's configuration."""
    free_memory_by_size(count_positions(args.run, overrides), training=False)
    checkpoint, _ = load_run(args, settings=True)
    config = checkpoint.config
    if overrides:
        values, folder = config_to_dict(config), checkpoint.path
        config = config_from_dict(values, args.run, overrides, folder)
        if config.model != checkpoint.config.model:
            raise ConfigError(
                "model.*: cannot be overridden when evaluating, the weights were trained with it"
            )
    evaluator = Evaluator(checkpoint.model, config)
    # A seed alone may be that of the identifiers.
    seed_alone = args.identifiers == "random" and not asks_for_search(args, but="seed")
    searches = args.data or args.predictions or args.against
    searches = searches or (asks_for_search(args) and not seed_alone)
    check_output(args, bool(searches))
    table = checkpoint.model.config.puzzle_emb_ndim and checkpoint.spec.num_puzzle_identifiers > 1
    if table and args.data is None:
        find_rows(checkpoint, evaluator, args)
    elif table:
        LOGGER.warning(
            "--data: puzzles of a file have no row in the model's puzzle table; they are solved "
            "with the blank one, which no training has touched"
        )
    weights = f"{checkpoint.weights} weights"
    if args.quantize is not None:
        weights += f" of {args.quantize} bits"
    title = f"{checkpoint.path}: step {checkpoint.step}, {weights}, {args.data or args.split}"
    if args.identifiers != "own":
        title += f", identifiers {args.identifiers}"
    if searches:
        report_search(evaluator, args, title)
    else:
        report_plain(evaluator, args, title)
    return 0


def count_positions(name: str, overrides: List[str]) -> int:
    """Count the positions of all rows of a batch before anything is loaded, or code of it runs.

    Args:
        name: of a run, as it was given.
        overrides: of the run's configuration.

    Returns:
        Their number; 0 where the run cannot be read, which loading it will say.
    """
    sizes: Dict[str, Any] = {}
    try:
        folder = find_checkpoint(locate_run(name))
        length = TaskSpec.read(read_state(folder)["spec"]).seq_len
        values = parse_yaml((folder / CONFIG).read_text(encoding="utf-8"))[0]
        for key in ("train.batch_size", "eval.batch_size", "eval.max_examples"):
            section, _, field = key.partition(".")
            sizes[key] = (values.get(section) or {}).get(field)
        for word in overrides:
            key, _, value = word.partition("=")
            sizes[key.strip()] = parse_yaml(value)[0]
    except (TRMError, yaml.YAMLError, OSError, ValueError, AttributeError):
        return 0
    given = [sizes["eval.batch_size"] or sizes["train.batch_size"], sizes["eval.max_examples"]]
    return length * min((size for size in given if isinstance(size, int)), default=0)


def check_output(args: argparse.Namespace, searches: bool) -> None:
    """Refuse files that cannot be written or read before anything is computed.

    Raises:
        ConfigError: saying which.
    """
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        raise ConfigError(f"--output {args.output}: is a file; name a folder")
    if args.output is not None and searches:
        raise ConfigError(
            "--output: is written by a plain evaluation; leave out --data, --predictions, "
            "--against and the options of several runs"
        )
    for option in ("predictions", "against"):
        path = getattr(args, option)
        if path is not None:
            check_name(f"--{option}", path)


@contextmanager
def progress_bar(args: argparse.Namespace, total: Optional[int] = None) -> Iterator[Any]:
    """Show a bar in a terminal; give a function of puzzles done and in all."""
    shown = sys.stderr.isatty() and not args.quiet
    with tqdm(unit="puzzle", total=total, disable=not shown, dynamic_ncols=True) as bar:

        def progress(done: int, all_of_them: Optional[int] = None) -> None:
            bar.total = all_of_them if all_of_them is not None else bar.total
            bar.update(done - bar.n)

        yield progress


def report_plain(evaluator: Evaluator, args: argparse.Namespace, title: str) -> None:
    """Evaluate every puzzle with the same number of steps, and print the metrics."""
    with progress_bar(args) as progress:
        rows = ablated_rows(evaluator.model, args.identifiers, args.seed or 0)
        metrics = evaluator.run(
            args.split, args.max_examples, args.steps, on_progress=progress, rows_of=rows
        )
    if args.json is not None:
        save_json(args.json, metrics)
    if args.output is not None:
        for path in save_evaluation_files(args.output, evaluator.files):
            print(f"written: {path}")
        if not evaluator.files:
            LOGGER.warning("--output: the task %s has nothing to keep", evaluator.config.task.name)
    print(title)
    print(display.table(display.metric_rows(metrics), ("set", "metric", "value")))


def report_search(evaluator: Evaluator, args: argparse.Namespace, title: str) -> None:
    """Evaluate by a search, and print what it reached and what that cost."""
    config = evaluator.config
    settings = read_search(args, config.eval.batch_size or config.train.batch_size)
    settings.check_usable(evaluator.task, evaluator.model)
    comparison = None if args.against is None else Comparison(args.against)
    problems, total = find_problems(evaluator, args, settings)
    with ExitStack() as stack:
        write = None
        if args.predictions is not None:
            write = stack.enter_context(write_predictions(args.predictions, evaluator.task))
        progress = stack.enter_context(progress_bar(args, total))

        def take(result: Result) -> None:
            if write is not None:
                write(result)
            if comparison is not None:
                comparison.add(evaluator.task.format(result.problem.inputs), result.correct)

        report = evaluator.search(problems, settings, take, progress)
    if comparison is not None:
        report["against"] = comparison.result()._asdict()
    if args.json is not None:
        save_json(args.json, {"settings": vars(settings), **report})
    print(title)
    print(describe_settings(settings, int(list(report["by_steps"])[-1])))
    for name, rows in report.items():
        if name == "against":
            print(f"\n{describe_comparison(args.against, McNemar(**rows))}")
        elif name in HEADINGS:
            print(
                f"\n{display.table(display.score_rows(rows), display.score_header(HEADINGS[name]))}"
            )
    answers: Dict[str, Any] = {
        name: report[name] for name in ("answers", "accepted") if name in report
    }
    print(f"\n{display.table(display.score_rows(answers), display.score_header('all'))}")


def find_problems(
    evaluator: Evaluator, args: argparse.Namespace, settings: SearchSettings
) -> Tuple[Iterable[Problem], Optional[int]]:
    """Give the puzzles to evaluate, and their number where it is known."""
    problems: Iterable[Problem]
    if args.data is not None:
        problems, total = file_problems(evaluator.task, args.data), None
    else:
        dataset = evaluator.task.dataset(args.split)
        check_dimensions(evaluator.model, dataset)
        problems, total = dataset_problems(dataset), len(dataset)
    rows = ablated_rows(evaluator.model, args.identifiers, settings.seed)
    if rows is not None:
        # Of a puzzle that brings no row there is none to take away.
        problems = (replace(each, identifier=int(rows[each.identifier])) for each in problems)
    most = args.max_examples or evaluator.config.eval.max_examples
    if most is not None and (total is None or most < total):
        problems = sample_problems(problems, most, settings.seed)
        total = len(problems)
    return problems, total


def describe_settings(settings: SearchSettings, steps: int) -> str:
    """Say in a line how puzzles were solved."""
    parts = [f"at most {steps} steps", f"halt {settings.halt}"]
    if settings.rollouts > 1:
        parts += [f"{settings.rollouts} rollouts", f"start {settings.active_start}"]
        parts += ["symmetries"] if settings.symmetries else []
    if settings.noise:
        parts.append(f"noise {settings.noise:g}")
    if settings.rollouts > 1:
        parts.append(f"select {settings.select}")
    return ", ".join([*parts, f"seed {settings.seed}"])


def describe_comparison(path: Path, found: McNemar) -> str:
    """Say in a line how this run compares with another."""
    return (
        f"against {path}: both right {found.both}, only here {found.only_here}, only there "
        f"{found.only_there}, neither {found.neither}; McNemar's exact p = {found.p:.3g}"
    )


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
    elif done is None:
        rows, wanted = (each.spec.num_puzzle_identifiers for each in (checkpoint, data))
        if rows != wanted:
            LOGGER.warning(
                "puzzle table: it has %d rows and the data %d, and which belongs to which is not "
                "known; puzzles may get each other's rows",
                rows,
                wanted,
            )
    elif done:
        LOGGER.info("puzzle table: %s", done)
        if names is not None and not set(names[1:]) & set((row_names(data) or [])[1:]):
            LOGGER.warning(
                "puzzle table: none of its rows belongs to a puzzle of these data, so the model "
                "cannot know their rules; name the data that it was trained with"
            )


main = make_main("evaluate", add_arguments, run, needs="overrides")

if __name__ == "__main__":
    sys.exit(main())
