"""``python -m mlx_trm.adapt``: learn the rows of new ARC tasks, vote, and write their answers."""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

import numpy as np

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import add_plugins, positive, whole
from mlx_trm.cli.checkpoints import add_run, locate_run
from mlx_trm.cli.progress import Estimate, Progress
from mlx_trm.cli.running import make_main
from mlx_trm.cli.solve_display import counted
from mlx_trm.config.loading import config_from_dict, config_to_dict, load_config
from mlx_trm.config.plugins import import_named
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import ConfigError, shown
from mlx_trm.inference.step import should_compile
from mlx_trm.runs.layout import BEST, CONFIG, LATEST, find_checkpoint
from mlx_trm.system.files import read_json, write_text
from mlx_trm.tasks import ARCConfig, PuzzleDataset, build_task
from mlx_trm.tasks.arc.files import ArcTask, read_own
from mlx_trm.tasks.arc.grids import draw_answer
from mlx_trm.tasks.arc.voting import NO_ANSWER
from mlx_trm.training.trainer import Trainer, TrainReport

SUBSET = "new"
SUBMISSION = "submission.json"
# Of fewer steps a row learns little, however small the batch.
FEWEST_STEPS = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    add_run(parser)
    parser.add_argument(
        "tasks",
        metavar="FILE",
        type=Path,
        help="new tasks: a JSON file of one task or of several by name, or a folder of such files; "
        "test inputs need no output",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="a new or empty folder for tasks, data, run and submission.json (default: runs/ and "
        "the names of RUN and FILE)",
    )
    parser.add_argument(
        "--visits",
        type=positive,
        default=100,
        metavar="N",
        help="how often each augmentation of a task is learnt (default: 100)",
    )
    parser.add_argument(
        "--num-aug",
        type=whole,
        metavar="N",
        help="augmentations of each task, each with a row and a vote (default: the run's)",
    )
    add_plugins(parser)


def run(args: argparse.Namespace, overrides: List[str]) -> int:
    """Learn rows for new tasks, print their answers, and write the submission.

    Returns:
        The exit code: 0, however many of the answers are right.
    """
    import_named(overrides)
    checkpoint = find_checkpoint(locate_run(args.run))
    config = load_config(checkpoint / CONFIG, (), args.allow_plugins)
    tasks = read_own(args.tasks, check_run(args.run, config))
    output = args.output or Path("runs") / f"{name_of(args.run)}-{name_of(args.tasks)}"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output {output}: is there already; name a new folder")
    existed = output.exists()
    try:
        trainer = Trainer(prepare(args, config, tasks, overrides, output, checkpoint))
    except BaseException:  # the user mends it and takes the same folder
        for folder in (output,) if not existed else (output / "tasks", output / "data"):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if not args.quiet:
        what, rows = counted(len(tasks), "task"), trainer.run.train_set.total_puzzles
        print(f"{what}, {rows:,} rows to learn, weights of {checkpoint}", flush=True)
    report = learn(trainer, args.quiet)
    if report.interrupted:
        print(f"go on: python -m mlx_trm.train --resume {report.run_dir}")
        return 0
    step, metrics = report.evaluations[-1]
    place = report.run_dir / "evaluations" / f"step_{step}" / SUBMISSION
    answers = read_json(place)
    write_text(output / SUBMISSION, place.read_text(encoding="utf-8"))
    if not args.quiet:
        show_answers(tasks, answers)
    print(display.table(display.metric_rows(metrics), ("set", "metric", "value")))
    print(f"written: {output / SUBMISSION}")
    return 0


def check_run(run_name: str, config: ExperimentConfig) -> int:
    """Give the rows and columns of a run's canvas.

    Raises:
        ConfigError: if it was not trained on ARC, or has no puzzle table.
    """
    arc = isinstance(config.task, ARCConfig)
    if isinstance(config.task, ARCConfig) and getattr(config.model, "puzzle_emb_ndim", False):
        return config.task.max_grid_size
    lacks = "has no puzzle table" if arc else f"was trained on {config.task.name}"
    raise ConfigError(
        f"{run_name}: {lacks}, and adapt learns rows of a puzzle table for ARC tasks; name a run "
        "of arc1.yaml, arc2.yaml or arc_tiny.yaml"
    )


def prepare(
    args: argparse.Namespace,
    config: ExperimentConfig,
    tasks: List[ArcTask],
    overrides: List[str],
    output: Path,
    checkpoint: Path,
) -> ExperimentConfig:
    """Build the data of new tasks, and give the configuration of the run that learns their rows.

    Args:
        args: of the command.
        config: of the run whose weights are taken.
        tasks: new ones.
        overrides: settings of the user's, which come last.
        output: the folder for everything.
        checkpoint: whose weights stay as they are.
    """
    where = f"{args.run} (adapted)"
    values = config_to_dict(config)
    values["task"].update(
        input_file_prefix=str(output / "tasks"),
        subsets=[SUBSET],
        test_set_name=SUBSET,
        data_dir=None,
        require_solutions=all(is_known(right) for task in tasks for _, right in task.pairs["test"]),
    )
    if args.num_aug is not None:
        values["task"]["num_aug"] = args.num_aug
    values["train"].update(freeze="weights", curriculum=[], max_steps=None, max_hours=None)
    values["eval"].update(interval=None, max_examples=None)
    values["init"].update(run=str(checkpoint), only=[], rows="auto", new_rows="mean")
    values["run_dir"] = str(output / "run")
    first = config_from_dict(values, where, overrides, checkpoint)  # before anything is written
    write_tasks(output / "tasks", tasks)
    build_task(first.task, first.task_seed).build(output / "data")
    values["task"]["data_dir"] = str(output / "data")
    given = {word.partition("=")[0].strip() for word in overrides}
    data = PuzzleDataset.load(output / "data", "train")
    examples = data.total_groups * data.mean_puzzle_examples
    epochs = args.visits * data.total_puzzles / data.total_groups
    epochs = max(epochs, FEWEST_STEPS * first.train.batch_size / examples)
    steps = int(math.ceil(epochs) * examples) // first.train.batch_size
    if "train.epochs" not in given:
        values["train"]["epochs"] = math.ceil(epochs)
    if "train.lr_warmup_steps" not in given:
        # The run's own warm-up may be longer than all of these steps.
        warm_up = min(values["train"]["lr_warmup_steps"], steps // 10)
        values["train"]["lr_warmup_steps"] = warm_up
    return config_from_dict(values, where, overrides, checkpoint)


def name_of(path: Union[str, Path]) -> str:
    """Give what a run, or a file of tasks, is called in the name of a folder."""
    path = Path(path)
    if path.name in (LATEST, BEST) or path.name.startswith("step_"):
        path = path.parent
    return path.stem.replace("_challenges", "") if path.suffix == ".json" else path.name


def is_known(answer: np.ndarray) -> bool:
    """Whether a test pair has its answer: one black cell stands for none."""
    return not np.array_equal(answer, NO_ANSWER)


def write_tasks(folder: Path, tasks: List[ArcTask]) -> None:
    """Write tasks in Kaggle's format into a new folder.

    Raises:
        ConfigError: if it cannot be written.
    """
    found: Dict[str, Any] = {task.name: task.raw for task in tasks}
    try:
        folder.mkdir(parents=True)
        write_text(folder / f"{SUBSET}_challenges.json", json.dumps(found) + "\n")
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be written ({error.strerror})") from error


def learn(trainer: Trainer, quiet: bool) -> TrainReport:
    """Train the rows, and evaluate at the end."""
    steps = trainer.run.plan.planned_steps
    compiled = should_compile(trainer.config.train.compile, trainer.model)
    progress = Progress(steps, quiet, estimate=Estimate(steps, compiled))
    try:
        return trainer.fit(
            on_step=progress.step,
            on_tick=progress.tick,
            on_eval_progress=progress.evaluating,
            progress=False,
        )
    finally:
        progress.close()


def show_answers(tasks: List[ArcTask], answers: Dict[str, List[Dict[str, Any]]]) -> None:
    """Draw each test input with its two answers, and say which is right where that is known."""
    color = display.use_color()
    for task in tasks:
        for number, (given, right) in enumerate(task.pairs["test"]):
            known = is_known(right)
            attempts = answers[task.name][number]
            grids = [np.array(attempts[name], np.uint8) for name in sorted(attempts)]
            drawn = draw_answer(given, None, color)
            for grid in distinct(grids):
                drawn = display.side_by_side(
                    drawn, draw_answer(grid, right if known else None, color)
                )
            hit = any(np.array_equal(grid, right) for grid in grids)
            verdict = (": right" if hit else ": wrong") if known else ", no solution is known"
            print(f"{shown(task.name)}:{number + 1}, the input and the answers{verdict}")
            print(f"{drawn}\n")


def distinct(grids: List[np.ndarray]) -> List[np.ndarray]:
    """Leave out grids that are equal to one before."""
    seen: Dict[Tuple[Tuple[int, ...], bytes], np.ndarray] = {}
    for grid in grids:
        seen.setdefault((grid.shape, grid.tobytes()), grid)
    return list(seen.values())


main = make_main("adapt", add_arguments, run, needs="overrides")

if __name__ == "__main__":
    sys.exit(main())
