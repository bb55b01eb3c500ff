"""``python -m mlx_trm.train``: train a model from a configuration."""

import argparse
import logging
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np

from mlx_trm.cli import tables as display
from mlx_trm.cli.progress import Estimate, Progress
from mlx_trm.cli.running import make_main
from mlx_trm.config.loading import dump_config, load_config
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import ConfigError
from mlx_trm.inference.solver import Solver
from mlx_trm.inference.step import should_compile
from mlx_trm.models import named_arrays
from mlx_trm.models.base import DTYPES
from mlx_trm.runs.folder import check_run_dir
from mlx_trm.runs.layout import CONFIG, find_checkpoint, list_checkpoints
from mlx_trm.system.device import on_gpu
from mlx_trm.system.processes import Processes
from mlx_trm.training.report import probe_step
from mlx_trm.training.trainer import Trainer, TrainReport

# A puzzle that takes more characters is only drawn.
LONGEST_LINE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run folder or from one of its checkpoints; auto: with run_dir where it "
        "holds a run, else begin one",
    )
    parser.add_argument(
        "--init-from",
        metavar="RUN",
        help="begin with the weights of another run, as far as names and shapes fit; init.* "
        "say how (init.run=RUN is the same)",
    )
    parser.add_argument(
        "--init-only",
        metavar="PATTERN",
        action="append",
        help="take only weights with such names, 'L_level.*' say; may be given several times",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and stop"
    )


def run(args: argparse.Namespace, config: Optional[ExperimentConfig]) -> int:
    """Train as the configuration says.

    Args:
        args: parsed arguments.
        config: the resolved configuration; None: that of the run that is resumed.

    Returns:
        The exit code: 0 whether the run reached its end or was stopped with a checkpoint.
    """
    add_initial(args, config)
    if args.print_config:
        if config is None:
            folder = find_checkpoint(args.resume)
            config = load_config(folder / CONFIG, args.overrides, args.allow_plugins)
        sys.stdout.write(dump_config(config))
        return 0
    trainer = make_trainer(args, config)
    quiet = args.quiet or not trainer.run.processes.leads
    if not quiet:
        if trainer.run.transfer is not None:
            print(f"First weights from {trainer.run.transfer.summary()}:")
            print(display.table(trainer.run.transfer.rows(), ("weights", "shape", "state", "note")))
            print()
        print(display.table(describe(trainer)), flush=True)
    if trainer.finished():
        trainer.settle()
        if quiet:
            return 0
        print(f"{args.resume}: has reached its end at step {trainer.step}; nothing is left to do")
        return 0
    plan, settings = trainer.run.plan, trainer.config.train
    estimate = Estimate(
        plan.planned_steps - trainer.step,
        should_compile(settings.compile, trainer.model),
        None if settings.max_hours is None else 3600 * settings.max_hours,
    )
    progress = Progress(plan.planned_steps, quiet, start=trainer.step, estimate=estimate)
    with stopping(trainer, progress):
        try:
            if not quiet:
                pace = probe_step(trainer.model, settings.batch_size)
                progress.line(estimate.foresee(pace) or "")
            report = trainer.fit(
                on_eval=progress.evaluation,
                on_step=progress.step,
                on_tick=progress.tick,
                on_eval_progress=progress.evaluating,
                progress=False,
            )
        finally:
            progress.close()
    if not quiet:
        finish(trainer, report)
    return 0


def add_initial(args: argparse.Namespace, config: Optional[ExperimentConfig]) -> None:
    """Put ``--init-from`` and ``--init-only`` into the configuration.

    Raises:
        ConfigError: if a run is resumed, which has weights already, or a setting says otherwise.
    """
    if args.init_from is None and args.init_only is None:
        return
    if config is None or args.resume not in (None, "auto"):
        raise ConfigError(
            "--init-from: a resumed run has weights already; leave --resume out to begin a new run"
        )
    for name, option, value in (
        ("run", "--init-from", args.init_from),
        ("only", "--init-only", args.init_only),
    ):
        if value is None:
            continue
        set_too = any(word.split("=")[0].strip() == f"init.{name}" for word in args.overrides)
        if set_too and getattr(config.init, name) != value:
            raise ConfigError(f"{option}: init.{name} says otherwise; leave one of the two out")
        setattr(config.init, name, value)


def make_trainer(args: argparse.Namespace, config: Optional[ExperimentConfig]) -> Trainer:
    """Begin a run, or go on with one.

    Raises:
        TRMError: if neither is possible.
    """
    if not Processes.start().leads:
        logging.getLogger("mlx_trm").setLevel(logging.WARNING)
    if args.resume is None or config is None:
        if config is None:
            return Trainer.resume(args.resume, args.overrides, allow_plugins=args.allow_plugins)
        check_run_dir(config)
        return Trainer(config)
    if args.resume != "auto":
        return Trainer.resume(args.resume, config=config, allow_plugins=args.allow_plugins)
    folder = Path(config.run_dir or f"runs/{config.stem}")
    if list_checkpoints(folder):
        return Trainer.resume(
            folder, config=config, fall_back=True, allow_plugins=args.allow_plugins
        )
    config.run_dir = str(folder)
    check_run_dir(config, unsaved=True)
    return Trainer(config, restart=True)


def describe(trainer: Trainer) -> List[Tuple[str, str]]:
    """Say what a run is about to do, as rows of a table."""
    model, config = trainer.model, trainer.config
    count = sum(array.size for _, array in named_arrays(model.trained_weights()))
    stored = sum(array.nbytes for _, array in named_arrays(model.parameters()))
    averaged = 4 * count if config.train.ema else 0
    dtype = next(name for name, value in DTYPES.items() if value == model.dtype)
    done = f", {trainer.step:,} of them done" if trainer.step else ""
    most = config.train.max_steps
    if most is not None and trainer.run.plan.planned_steps < most:
        done += f"; train.epochs={config.train.epochs} has no more, though train.max_steps={most}"
    by_time = trainer.run.plan.planned_seconds is not None
    limit = f" in at most {config.train.max_hours:g} hours" if by_time else ""
    compiled = (
        "compiled (the first steps take longer)"
        if should_compile(config.train.compile, model)
        else "not compiled"
    )
    return [
        ("model", f"{config.model.name}, {count:,} trained parameters"),
        (
            "data",
            f"{config.task.name}, {len(trainer.run.train_set):,} training examples, "
            f"{len(trainer.run.test_set):,} for testing",
        ),
        ("batch", f"{config.train.batch_size} puzzles"),
        *(
            [("processes", f"{trainer.run.processes.size}, each with its share of a batch")]
            if trainer.run.processes.size > 1
            else []
        ),
        ("steps", f"{trainer.run.plan.planned_steps:,} supervision steps{limit}{done}"),
        ("device", f"{device_name()}, {dtype}, {compiled}"),
        ("checkpoint", f"{display.size(stored + averaged)} each"),
    ]


def device_name() -> str:
    """Name the default device: cpu or gpu."""
    return "gpu" if on_gpu() else "cpu"


def finish(trainer: Trainer, report: TrainReport) -> None:
    """Print the evaluation, one test puzzle being solved, and where everything is."""
    if report.evaluations:
        step, metrics = report.evaluations[-1]
        print(f"\nEvaluation at step {step}:")
        print(display.table(display.metric_rows(metrics), ("set", "metric", "value")))
        show_solving(trainer)
    speed = report.taken / max(report.seconds, 1e-9)
    state = report.reason if report.interrupted else "done"
    print(
        f"\n{state}: {report.steps} of {report.total} steps in {display.duration(report.seconds)} "
        f"({speed:.2f} steps/s with evaluations), peak memory {display.size(report.peak_memory)}"
    )
    if report.skipped:
        print(f"skipped: {report.skipped} steps that were not finite")
    # The run's own configuration names them now, and it may be somebody else who types this.
    allowance = " --allow-plugins" if trainer.config.plugins else ""
    if report.interrupted:
        print(f"go on: python -m mlx_trm.train --resume {report.run_dir}{allowance}")
    print(f"checkpoint: {report.checkpoint}")
    print(f"run folder: {report.run_dir}  (python -m mlx_trm.evaluate {report.run_dir}{allowance})")


def show_solving(trainer: Trainer) -> None:
    """Print how the trained model, its average where there is one, solves a test puzzle."""
    _, arrays, _ = next(iter(trainer.run.test_set.eval_batches(1, 1, seed=trainer.config.seed)))
    inputs = arrays["inputs"][0].astype(np.uint8)
    average = trainer.train_step.average
    weights = None if average is None else average.weights
    solver = Solver(trainer.model, trainer.config, trainer.run.task, weights=weights)
    puzzle = solver.task.format(inputs)
    short = len(puzzle) <= LONGEST_LINE
    print("\nA test puzzle being solved" + (f": {puzzle}" if short else ""))
    last: Any = None
    identifier, labels = int(arrays["puzzle_identifiers"][0]), arrays["labels"][0]
    for last in solver.steps(inputs, identifier=identifier, labels=labels):
        state = {True: ", right", False: ", not right yet", None: ""}[last.correct]
        answer = f"{last.answer}  " if short else ""
        print(
            f"  step {last.step:2d}  {answer}halt {last.halt_probability:.3f}  "
            f"{last.changed} cells changed{state}"
        )
    drawn = [
        solver.task.render(tokens, inputs=inputs, color=display.use_color())
        for tokens in (inputs, last.tokens)
    ]
    print(drawn[1] if short else display.side_by_side(*drawn))


@contextmanager
def stopping(trainer: Trainer, progress: Progress) -> Iterator[None]:
    """Make Ctrl-C (or SIGTERM) finish the step and save; a second one stops at once.

    So does a terminal that is closed, which says so more than once; ``nohup`` keeps that away.
    """
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)

    def handle(hit: int, _frame: Any) -> None:
        if hit not in signals[:2]:
            trainer.stop()
            return
        for number in signals[:2]:
            signal.signal(number, signal.default_int_handler)
        trainer.stop()
        progress.line("stopping: finishing this step and saving; Ctrl-C again stops at once")

    before = [signal.signal(number, handle) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before):
            signal.signal(number, handler)


main = make_main("train", add_arguments, run, needs="config")

if __name__ == "__main__":
    sys.exit(main())
