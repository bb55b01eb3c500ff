"""The loop of a run: steps, and between them log lines, evaluations and checkpoints.

Reference: ``launch`` in pretrain.py.
"""

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple, TypedDict

import mlx.core as mx

from mlx_trm.config.loading import config_to_dict
from mlx_trm.drawing.charts import Chart, chart_run
from mlx_trm.errors import NonFiniteError
from mlx_trm.inference.evaluator import Metrics
from mlx_trm.models.carry import Batch
from mlx_trm.runs.checkpoint import TrainingState, save_checkpoint
from mlx_trm.runs.folder import save_evaluation_files
from mlx_trm.runs.history import point_best, prune_checkpoints
from mlx_trm.runs.layout import METRICS
from mlx_trm.runs.metrics import MetricsLog, StepReport
from mlx_trm.runs.progress import RunProgress
from mlx_trm.runs.reporters import make_reporters
from mlx_trm.training.display import report_html
from mlx_trm.training.nonfinite import save_replay
from mlx_trm.training.prepare import Run
from mlx_trm.training.step import TrainStep

LOG = logging.getLogger(__name__)


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


def fit(
    run: Run,
    train_step: TrainStep,
    progress: RunProgress,
    folder: Path,
    callbacks: Callbacks,
    resumed_from: Optional[Path] = None,
) -> TrainReport:
    """Train from where a run is to its end, or until it is asked to stop.

    Args:
        run: what it works with.
        train_step: takes its steps.
        progress: where it is; changed in place.
        folder: of the run, ready to be written to.
        callbacks: what it calls.
        resumed_from: the checkpoint that it goes on from.

    Returns:
        The report; its checkpoint holds the final state, stopped early or not.

    Raises:
        CheckpointError: if a checkpoint cannot be written.
        NonFiniteError: if the loss or a gradient is not finite any more.
    """
    loop = _Loop(run, train_step, progress, folder, callbacks, resumed_from)
    try:
        return loop.train()
    finally:
        for reporter in loop.log.reporters:
            reporter.close()


class _Loop:
    """One call of :func:`fit`."""

    def __init__(
        self,
        run: Run,
        train_step: TrainStep,
        progress: RunProgress,
        folder: Path,
        callbacks: Callbacks,
        resumed_from: Optional[Path],
    ) -> None:
        """Prepare; nothing is computed or written yet. The arguments are those of :func:`fit`."""
        self.run = run
        self.train_step = train_step
        self.progress = progress
        self.folder = folder
        self.callbacks = callbacks
        config, leads = run.config, run.processes.leads
        self.log = MetricsLog(
            folder / METRICS if leads else None,
            config.train.batch_size,
            config.train.log_interval,
            run.plan.planned_steps,
            callbacks.on_step,
        )
        if leads and config.train.report_to:
            self.log.reporters = make_reporters(
                config.train.report_to, folder, config_to_dict(config)
            )
        if progress.log is not None:
            self.log.restore(progress.log)
        self.report = TrainReport(folder, resumed_from or folder, total=run.plan.planned_steps)
        self.started = self.saved_at = time.monotonic()
        self.saved_step = train_step.step if resumed_from is not None else -1
        self.seconds_before = progress.seconds

    def train(self) -> TrainReport:
        """Take what is left to do, evaluate and save at the end, and report."""
        train_step, report = self.train_step, self.report
        first_step = train_step.step
        if self.progress.evaluate_first:
            self._evaluate()
            self._save()
        self._note_time()
        if not self._finished() and not report.reason:
            self._take_steps()
        if not report.reason:
            self.log.report()
            if self.progress.evaluated != train_step.step:
                self._evaluate()
                self.saved_step = -1  # the evaluation belongs into the checkpoint
        if self.saved_step != train_step.step:
            self._save()
        report.interrupted = bool(report.reason) and not self.progress.ended
        report.steps = train_step.step
        report.taken = train_step.step - first_step
        report.seconds = time.monotonic() - self.started
        report.peak_memory = mx.get_peak_memory()
        return report

    def _take_steps(self) -> None:
        """Take steps, evaluate and save until the end or a reason to stop."""
        progress, on_tick = self.progress, self.callbacks.on_tick
        for batch, last_of_iteration in self.run.batches(progress.iteration, progress.batches):
            self._take_step(batch)
            progress.batches += 1
            if last_of_iteration:
                progress.iteration, progress.batches = progress.iteration + 1, 0
            if on_tick is not None:
                on_tick(self.train_step.step)
            self._note_time()
            finished = self._finished()
            save_is_due = False
            if not finished:
                self.report.reason = self._reason_to_stop()
                save_is_due = self._save_is_due()
            if last_of_iteration and not finished:
                progress.evaluate_first = True
                self.log.report()
                if not self.report.reason:
                    self._evaluate()
                    self._save()
            elif save_is_due:
                self._save()
            if finished or self.report.reason:
                return

    def _note_time(self) -> None:
        """Note how long the run has trained, in all its stretches; all processes note the same."""
        spent = self.seconds_before + time.monotonic() - self.started
        planned = self.run.plan.planned_seconds
        if planned is not None:
            spent = self.run.processes.first(spent)
            self.train_step.schedule.time_share = min(1.0, spent / planned)
        self.progress.seconds = spent

    def _finished(self) -> bool:
        """Whether the last step has been taken, by number or by time."""
        plan = self.run.plan
        if self.train_step.step >= plan.planned_steps:
            return True
        return plan.planned_seconds is not None and self.progress.seconds >= plan.planned_seconds

    def _take_step(self, batch: Batch) -> None:
        """Take a step; what is not finite is saved for replay, and stops the run or is skipped."""
        train_step = self.train_step
        try:
            metrics = train_step(batch)
        except NonFiniteError as error:
            path = save_replay(self.folder, error, self.run.processes.rank)
            if self.run.config.train.on_nonfinite == "stop":
                self._save()  # the state before the step
                raise NonFiniteError(error.step, error.parts, path.name) from None
            train_step.skip()
            self.report.skipped += 1
            self.log.write({"kind": "skipped", "step": train_step.step, "replay": path.name})
            self.log.resume_clock()
            return
        self.log.add(train_step.step, metrics, train_step.learning_rate(train_step.step))

    def _reason_to_stop(self) -> str:
        """Say why to stop now; empty: go on. All processes say the same."""
        hours = self.run.config.train.max_hours
        if self.run.plan.planned_seconds is not None:
            hours = None  # they end the run, and do not stop it: see _finished
        late = hours is not None and time.monotonic() - self.started >= 3600 * hours
        stopped, late = self.run.processes.any(self.callbacks.stop_requested(), late)
        if stopped:
            return "stopped"
        return f"train.max_hours={hours:g} reached" if late else ""

    def _save_is_due(self) -> bool:
        """Whether ``checkpoint.every`` asks for a checkpoint now."""
        settings = self.run.config.checkpoint
        steps, seconds = settings.every_steps, settings.every_seconds
        if seconds is not None:
            return self.run.processes.any(time.monotonic() - self.saved_at >= seconds)[0]
        return steps is not None and self.train_step.step % steps == 0

    def _evaluate(self) -> None:
        """Evaluate the average, log it, and see whether it is the best so far."""
        run, progress, step = self.run, self.progress, self.train_step.step
        average, on_progress = self.train_step.average, self.callbacks.on_eval_progress
        size = run.evaluation_size(step)
        weights = None if average is None else average.weights
        metrics = run.evaluator.run("test", size, weights=weights, on_progress=on_progress)
        files = run.evaluator.files
        if run.config.eval.raw and weights is not None:
            raw = run.evaluator.run("test", size, on_progress=on_progress)
            metrics.update({f"{name}/raw": values for name, values in raw.items()})
        progress.evaluate_first = False
        progress.evaluated = step
        self.report.evaluations.append((step, metrics))
        limit = size or run.config.eval.max_examples
        if limit is not None and limit < len(run.test_set):
            if files:
                LOG.info("evaluated a sample of %d puzzles: no submission is written", limit)
        elif run.processes.leads:
            save_evaluation_files(self.folder / "evaluations" / f"step_{step}", files)
        for name, values in metrics.items():
            self.log.write({"kind": "eval", "step": step, "set": name, **values})
        self.log.resume_clock()
        if self.callbacks.on_eval is not None:
            self.callbacks.on_eval({"step": step, "metrics": metrics})
        self._note_best(metrics)

    def _note_best(self, metrics: Dict[str, Metrics]) -> None:
        """Keep the best value so far; end the run where patience has run out."""
        progress, settings = self.progress, self.run.config.eval
        value = best_value(metrics, settings.best_metric)
        if not math.isnan(value) and (progress.best is None or value > progress.best[0]):
            progress.best, progress.without_better = [value, self.train_step.step], 0
            return
        progress.without_better += 1
        if settings.patience is not None and progress.without_better >= settings.patience:
            progress.ended = f"no better {settings.best_metric} in {settings.patience} evaluations"
            self.report.reason = progress.ended

    def _save(self) -> None:
        """Write a checkpoint, point the links at it, and remove those that are not kept."""
        run, train_step = self.run, self.train_step
        self._note_time()  # an evaluation before it took its time, too
        self.log.flush()
        self.progress.log = self.log.state()
        optimizer, carry = train_step.state()  # together: the carry is gathered
        self.saved_step, self.saved_at = train_step.step, time.monotonic()
        if not run.processes.leads:
            self.report.checkpoint = self.folder / f"step_{train_step.step}"
            return
        self.report.checkpoint = save_checkpoint(
            self.folder,
            run.model,
            run.config,
            train_step.step,
            None if train_step.average is None else train_step.average.weights,
            TrainingState(optimizer, carry, asdict(self.progress)),
            run.packed_names,
        )
        if self.progress.best_step == train_step.step:
            point_best(self.report.checkpoint)
        prune_checkpoints(self.folder, run.config.checkpoint.keep)
        self.saved_at = time.monotonic()
        self.log.resume_clock()


def best_value(metrics: Dict[str, Metrics], name: str) -> float:
    """Give the first set's value of ``eval.best_metric``, negative where less is better.

    It is NaN where the set has no puzzle with a label, and so no such metric.
    """
    value = next(iter(metrics.values())).get(name, math.nan)
    return -value if name.endswith("loss") else value
