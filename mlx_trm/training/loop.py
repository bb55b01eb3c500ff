"""One stretch of training: steps, evaluations and checkpoints until the end or a reason to stop."""

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import mlx.core as mx

from mlx_trm.config.loading import config_to_dict
from mlx_trm.errors import NonFiniteError
from mlx_trm.inference.evaluator import Metrics
from mlx_trm.models.carry import Batch
from mlx_trm.runs.checkpoint import TrainingState, save_checkpoint
from mlx_trm.runs.folder import save_evaluation_files, save_interval
from mlx_trm.runs.history import point_best, prune_checkpoints
from mlx_trm.runs.metrics import METRICS, MetricsLog, StepReport
from mlx_trm.runs.reporters import make_reporters
from mlx_trm.training.nonfinite import save_replay

LOG = logging.getLogger(__name__)


@dataclass
class RunProgress:
    """Where a run is; saved with each checkpoint as JSON.

    Attributes:
        iteration: of the data, from 1; an iteration is ``eval.interval`` epochs.
        batches: taken from it.
        evaluate_first: an iteration ended and its evaluation is still to come.
        log: metric sums that are not in a line of the log yet.
        best: the best value of ``eval.best_metric``, and its step.
        without_better: evaluations since.
        evaluated: step of the last evaluation.
        ended: why the run has ended before its last step; empty: it has not.
        data: describes the data sets, so that no others are taken.
    """

    iteration: int = 1
    batches: int = 0
    evaluate_first: bool = False
    log: Optional[Dict[str, Any]] = None
    best: Optional[List[float]] = None
    without_better: int = 0
    evaluated: int = -1
    ended: str = ""
    data: str = ""

    @classmethod
    def read(cls, values: Any) -> "RunProgress":
        """Rebuild it from JSON.

        Raises:
            ValueError: if something is missing or makes no sense.
        """
        try:
            progress = cls(**values)
            log, best = progress.log, progress.best
            counts = [progress.iteration - 1, progress.batches, progress.without_better]
            counts += [] if log is None else [log["steps"], log["lines"], log["step"]]
            good = all(isinstance(count, int) and count >= 0 for count in counts)
            good = good and isinstance(progress.evaluated, int)
            if log is not None:
                good = good and all(isinstance(v, float) for v in log["sums"].values())
            if best is not None:
                good = good and isinstance(best, list) and len(best) == 2
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"progress is damaged ({error})") from error
        if not good:
            raise ValueError("progress is damaged")
        return progress


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


class Fit:
    """One call of :meth:`mlx_trm.training.trainer.Trainer.fit`."""

    def __init__(
        self,
        trainer: Any,
        folder: Path,
        on_eval: Optional[Callable[[Dict[str, Any]], None]],
        on_step: Optional[Callable[[StepReport], None]],
        on_tick: Optional[Callable[[int], None]],
        on_eval_progress: Optional[Callable[[int, int], None]],
    ) -> None:
        """Prepare; nothing is computed or written yet.

        Args:
            trainer: a :class:`~mlx_trm.training.trainer.Trainer`.
            folder: of the run.
            on_eval, on_step, on_tick, on_eval_progress: as of ``fit``.
        """
        self.trainer = trainer
        self.folder = folder
        self.on_eval, self.on_tick, self.on_eval_progress = on_eval, on_tick, on_eval_progress
        self.progress = trainer.progress
        config = trainer.config
        self.log = MetricsLog(
            folder / METRICS if trainer.processes.leads else None,
            config.train.batch_size,
            config.train.log_interval,
            trainer.planned_steps,
            on_step,
        )
        if trainer.processes.leads and config.train.report_to:
            self.log.reporters = make_reporters(
                config.train.report_to, folder, config_to_dict(config)
            )
        if self.progress.log is not None:
            self.log.restore(self.progress.log)
        self.report = TrainReport(folder, trainer.resumed_from or folder)
        self.report.total = trainer.planned_steps
        self.started = self.saved_at = time.monotonic()
        self.saved_step = trainer.step if trainer.resumed_from is not None else -1
        self.first_step = trainer.step
        self.every_steps, self.every_seconds = save_interval(config.checkpoint.every)

    def go(self) -> TrainReport:
        """Train, and close the reporters whatever happens."""
        try:
            return self._go()
        finally:
            for reporter in self.log.reporters:
                reporter.close()

    def _go(self) -> TrainReport:
        trainer, report = self.trainer, self.report
        if self.progress.evaluate_first:
            self.evaluate()
            self.save()
        if trainer.step < trainer.planned_steps and not report.reason:
            self.take_steps()
        if not report.reason:
            self.log.report()
            if self.progress.evaluated != trainer.step:
                self.evaluate()
                self.saved_step = -1  # the evaluation belongs into the checkpoint
        if self.saved_step != trainer.step:
            self.save()
        report.interrupted = bool(report.reason) and not self.progress.ended
        report.steps = trainer.step
        report.taken = trainer.step - self.first_step
        report.seconds = time.monotonic() - self.started
        report.peak_memory = mx.get_peak_memory()
        return report

    def take_steps(self) -> None:
        """Take steps, evaluate and save until the end or a reason to stop."""
        trainer, progress = self.trainer, self.progress
        for batch, last_of_iteration in trainer.batches():
            self.step(batch)
            progress.batches += 1
            if last_of_iteration:
                progress.iteration, progress.batches = progress.iteration + 1, 0
            if self.on_tick is not None:
                self.on_tick(trainer.step)
            finished = trainer.step >= trainer.planned_steps
            save_is_due = False
            if not finished:
                self.report.reason = self.reason_to_stop()
                save_is_due = self.save_is_due()
            if last_of_iteration and not finished:
                progress.evaluate_first = True
                self.log.report()
                if not self.report.reason:
                    self.evaluate()
                    self.save()
            elif save_is_due:
                self.save()
            if finished or self.report.reason:
                return

    def step(self, batch: Batch) -> None:
        """Take a step; what is not finite is saved for replay, and stops the run or is skipped."""
        trainer = self.trainer
        try:
            metrics = trainer.train_step(batch)
        except NonFiniteError as error:
            path = save_replay(self.folder, error, trainer.processes.rank)
            if trainer.config.train.on_nonfinite == "stop":
                self.save()  # the state before the step
                raise NonFiniteError(error.step, error.parts, path.name) from None
            trainer.skip_step()
            self.report.skipped += 1
            self.log.write({"kind": "skipped", "step": trainer.step, "replay": path.name})
            self.log.resume_clock()
            return
        self.log.add(trainer.step, metrics, trainer.learning_rate(trainer.step))

    def reason_to_stop(self) -> str:
        """Say why to stop now; empty: go on. All processes say the same."""
        hours = self.trainer.config.train.max_hours
        late = hours is not None and time.monotonic() - self.started >= 3600 * hours
        stopped, late = self.trainer.processes.any(self.trainer.stopping(), late)
        if stopped:
            return "stopped"
        return f"train.max_hours={hours:g} reached" if late else ""

    def save_is_due(self) -> bool:
        """Whether ``checkpoint.every`` asks for a checkpoint now."""
        if self.every_seconds is not None:
            due = time.monotonic() - self.saved_at >= self.every_seconds
            return self.trainer.processes.any(due)[0]
        return self.every_steps is not None and self.trainer.step % self.every_steps == 0

    def evaluate(self) -> None:
        """Evaluate the average, log it, and see whether it is the best so far."""
        trainer, config = self.trainer, self.trainer.config
        weights = None if trainer.average is None else trainer.average.weights
        metrics = trainer.evaluator.run(
            "test", trainer.sample(), weights=weights, on_progress=self.on_eval_progress
        )
        files = trainer.evaluator.files
        if config.eval.raw and weights is not None:
            raw = trainer.evaluator.run("test", trainer.sample(), on_progress=self.on_eval_progress)
            metrics.update({f"{name}/raw": values for name, values in raw.items()})
        self.progress.evaluate_first = False
        self.progress.evaluated = trainer.step
        self.report.evaluations.append((trainer.step, metrics))
        limit = trainer.sample() or config.eval.max_examples
        if limit is not None and limit < len(trainer.test_set):
            if files:
                LOG.info("evaluated a sample of %d puzzles: no submission is written", limit)
        elif trainer.processes.leads:
            save_evaluation_files(self.folder / "evaluations" / f"step_{trainer.step}", files)
        for name, values in metrics.items():
            self.log.write({"kind": "eval", "step": trainer.step, "set": name, **values})
        self.log.resume_clock()
        if self.on_eval is not None:
            self.on_eval({"step": trainer.step, "metrics": metrics})
        value = best_value(metrics, config.eval.best_metric)
        best, patience = self.progress.best, config.eval.patience
        if not math.isnan(value) and (best is None or value > best[0]):
            self.progress.best, self.progress.without_better = [value, trainer.step], 0
            return
        self.progress.without_better += 1
        if patience is not None and self.progress.without_better >= patience:
            text = f"no better {config.eval.best_metric} in {patience} evaluations"
            self.report.reason = self.progress.ended = text

    def save(self) -> None:
        """Write a checkpoint, point the links at it, and remove those that are not kept."""
        trainer = self.trainer
        self.log.flush()
        self.progress.log = self.log.state()
        optimizer, carry = trainer.training_state()  # together: the carry is gathered
        self.saved_step, self.saved_at = trainer.step, time.monotonic()
        if not trainer.processes.leads:
            self.report.checkpoint = self.folder / f"step_{trainer.step}"
            return
        self.report.checkpoint = save_checkpoint(
            self.folder,
            trainer.model,
            trainer.config,
            trainer.step,
            None if trainer.average is None else trainer.average.weights,
            TrainingState(optimizer, carry, asdict(self.progress)),
            trainer.packed_names,
        )
        if self.progress.best is not None and self.progress.best[1] == trainer.step:
            point_best(self.report.checkpoint)
        prune_checkpoints(self.folder, trainer.config.checkpoint.keep)
        self.saved_at = time.monotonic()
        self.log.resume_clock()


def best_value(metrics: Dict[str, Metrics], name: str) -> float:
    """Give the first set's value of ``eval.best_metric``, negative where less is better."""
    value = next(iter(metrics.values()))[name]
    return -value if name.endswith("loss") else value
