"""What a run tells while it trains, a bar in Python among it, and at its end."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, TypedDict

import mlx.core as mx
import numpy as np

from mlx_trm.config.html import table_html
from mlx_trm.drawing.charts import Chart, chart_run
from mlx_trm.drawing.notebook import in_notebook
from mlx_trm.inference.evaluator import Metrics
from mlx_trm.inference.search.draws import plain_starts
from mlx_trm.inference.step import EvaluationStep
from mlx_trm.models import RecursiveModel
from mlx_trm.models.carry import random_batch
from mlx_trm.runs.metrics import StepReport
from mlx_trm.system.device import on_gpu
from mlx_trm.system.streams import give_back_cores

# Seconds of a step from which on a run says how long it takes before its first one.
LONG_STEP = 20.0
SHOWN = ("lm_loss", "exact_accuracy")


class Evaluation(TypedDict):
    """What ``on_eval`` is called with.

    Attributes:
        step: supervision steps done.
        metrics: of each set.
    """

    step: int
    metrics: Dict[str, Metrics]


class Callbacks(NamedTuple):
    """What a run calls while it trains; None: nothing.

    Attributes:
        on_eval: after each evaluation.
        on_step: every ``train.log_interval`` steps and at the last one.
        on_tick: after every step, with its number.
        on_eval_progress: during evaluations, with (puzzles done, puzzles in all).
        stop_requested: asked after every step; once it says yes the run saves and ends.
    """

    on_eval: Optional[Callable[[Evaluation], None]] = None
    on_step: Optional[Callable[[StepReport], None]] = None
    on_tick: Optional[Callable[[int], None]] = None
    on_eval_progress: Optional[Callable[[int, int], None]] = None
    stop_requested: Callable[[], bool] = lambda: False


@dataclass
class TrainReport:
    """What a run did.

    Attributes:
        run_dir: its folder.
        checkpoint: the newest checkpoint.
        steps: supervision steps done.
        total: supervision steps the configuration asks for.
        seconds: of wall-clock time, evaluations included.
        interrupted: whether it was stopped before its end.
        reason: why it stopped, in words; empty at its end.
        taken: supervision steps of this stretch.
        skipped: steps that were not finite and were skipped.
        evaluations: (step, metrics of each set) in order.
        peak_memory: bytes.
    """

    run_dir: Path
    checkpoint: Path
    steps: int = 0
    total: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    reason: str = ""
    taken: int = 0
    skipped: int = 0
    evaluations: List[Tuple[int, Dict[str, Metrics]]] = field(default_factory=list)
    peak_memory: int = 0

    def plot(self) -> Chart:
        """Draw the curves of the run's log; a notebook shows them, ``save`` writes them.

        Raises:
            ConfigError: if matplotlib (extra ``plot``) is missing.
            DataError: if there is nothing to draw.
        """
        return chart_run(self.run_dir)

    def _repr_html_(self) -> str:
        speed = self.taken / max(self.seconds, 1e-9)
        about = [
            ("run", str(self.run_dir)),
            ("steps", f"{self.steps:,} of {self.total:,}, {self.reason or 'done'}"),
            ("time", f"{self.seconds:,.0f} s, {speed:.2f} steps/s with evaluations"),
            ("peak memory", f"{self.peak_memory / (1 << 20):,.0f} MiB"),
            ("checkpoint", str(self.checkpoint)),
        ]
        return report_html(about, self.evaluations)


class ProgressBar:
    """A bar of a run's steps and one of each evaluation's puzzles, of tqdm.

    They are pictures in a notebook that has widgets, and text everywhere else.
    """

    def __init__(self, start: int, total: int, shown: bool) -> None:
        """Show the bar.

        Args:
            start: steps done before.
            total: steps of the run.
            shown: False: everything below does nothing.
        """
        self._bar: Any = None
        self._evaluation: Any = None
        if shown:
            self._bar = _make_bar(total=total, initial=start, unit="step")

    def tick(self, step: int) -> None:
        """Show that a step is done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def step(self, report: StepReport) -> None:
        """Show what training measures."""
        if self._bar is not None:
            values = {name: report.metrics[name] for name in SHOWN if name in report.metrics}
            shown = {name: f"{value:.4f}" for name, value in values.items()}
            self._bar.set_postfix(shown, refresh=False)

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is; its bar goes when it is through."""
        if self._bar is None:
            return
        if self._evaluation is None:
            self._evaluation = _make_bar(total=total, unit="puzzle", desc="evaluating", leave=False)
        self._evaluation.update(done - self._evaluation.n)
        if done >= total:
            self._evaluation.close()
            self._evaluation = None

    def close(self) -> None:
        """End the bars."""
        for bar in (self._evaluation, self._bar):
            if bar is not None:
                bar.close()


def _make_bar(**options: Any) -> Any:
    """Make the bar that suits the place: a widget in a notebook that has any, else text."""
    import warnings

    # A notebook without widgets shows what comes from stderr on red, as if it were an error.
    file = sys.stdout if in_notebook() else sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm says that widgets are missing
        from tqdm.auto import tqdm

        return tqdm(dynamic_ncols=True, file=file, mininterval=0.5, **options)


def probe_step(model: RecursiveModel, batch_size: int) -> Optional[float]:
    """Estimate from a few rows, before the first step, how many seconds a step is going to take.

    On a CPU a step of a large model takes many minutes, too long to learn it from the step itself.

    Args:
        model: to be trained; left as it is.
        batch_size: B, rows of a step.

    Returns:
        The seconds, within a factor of two or so; None on a GPU, whose steps are not long.
    """
    if on_gpu():
        return None
    reason = EvaluationStep(model, False)
    # A step goes through the last of the cycles backwards, too, which takes twice as long.
    cycles = int(getattr(model.config, "H_cycles", 1))
    factor = (cycles + 2) / cycles
    was_training, rows = model.training, 1
    model.eval()
    try:
        while True:
            batch = random_batch(model.spec, rows)
            starts = plain_starts(model, np.array(batch.inputs))
            carry = model.begin(model.initial_carry(batch), batch, starts)
            started = time.monotonic()
            carry, outputs = reason(model.weights(), carry, model.puzzle_rows(carry))
            mx.eval(carry.pack(), outputs.logits)
            taken = time.monotonic() - started
            estimate = factor * taken * batch_size / rows
            # Larger batches are faster a row; what is short already needs no better look.
            if estimate < LONG_STEP or taken > 3.0 or 2 * rows > batch_size:
                return estimate
            rows *= 2
    finally:
        model.train(was_training)
        give_back_cores()


def wants_bar(progress: Optional[bool]) -> bool:
    """Say whether to show a bar; None: in a terminal or a notebook, not in a file or a pipe."""
    return progress if progress is not None else sys.stderr.isatty() or in_notebook()


def both(first: Callable[..., None], second: Optional[Callable[..., None]]) -> Callable[..., None]:
    """Give what calls one, then the other, if there is another, with the same arguments."""
    if second is None:
        return first
    other = second

    def call(*words: Any) -> None:
        first(*words)
        other(*words)

    return call


def report_html(
    about: Sequence[Tuple[str, str]], evaluations: Sequence[Tuple[int, Dict[str, Metrics]]]
) -> str:
    """Write a report as tables: what the run did, then its evaluations, the newest last.

    Args:
        about: names and values.
        evaluations: (step, metrics of each set) in order.
    """
    names = [
        name
        for name in dict.fromkeys(
            name for _, sets in evaluations for values in sets.values() for name in values
        )
        if not name.endswith(("_low", "_high"))
    ]
    rows: List[List[str]] = [
        [str(step), kind, *(f"{values[name]:.4g}" if name in values else "" for name in names)]
        for step, sets in evaluations
        for kind, values in sets.items()
    ]
    table = table_html(rows, ["step", "set", *names]) if rows else ""
    return table_html(about) + table
