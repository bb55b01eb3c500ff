"""The loop of a run: steps, and between them log lines, evaluations and checkpoints.

Reference: ``launch`` in pretrain.py.
"""

import logging
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Dict, Optional, Tuple

import mlx.core as mx

from mlx_trm.config.loading import config_to_dict, dump_config
from mlx_trm.errors import DataError, NonFiniteError
from mlx_trm.inference.evaluator import Metrics
from mlx_trm.models.carry import Batch
from mlx_trm.runs.checkpoint import TrainingState, save_checkpoint
from mlx_trm.runs.folder import save_evaluation_files
from mlx_trm.runs.history import prune_checkpoints, set_links
from mlx_trm.runs.layout import CONFIG, METRICS
from mlx_trm.runs.metrics import MetricsLog
from mlx_trm.runs.progress import RunProgress
from mlx_trm.runs.reporters import make_reporters
from mlx_trm.runs.state import record_progress
from mlx_trm.training.interrupts import Abandoned, Interrupts
from mlx_trm.training.nonfinite import GIVE_UP, save_replay
from mlx_trm.training.prepare import Run
from mlx_trm.training.report import Callbacks, TrainReport
from mlx_trm.training.step import TrainStep

LOG = logging.getLogger(__name__)


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
        The report; its checkpoint holds the final state, stopped early or not. Ctrl-C
        (``KeyboardInterrupt``) stops it early, too; a second one is raised.

    Raises:
        CheckpointError: if a checkpoint cannot be written.
        NonFiniteError: if the loss or a gradient is not finite any more.
    """
    loop = _Loop(run, train_step, progress, folder, callbacks, resumed_from)
    try:
        with loop.interrupts:
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
        self.interrupts = Interrupts()
        # Settings that a resumed run has changed belong into its checkpoint, too.
        self.outdated = (
            resumed_from is not None
            and run.processes.any(
                leads and (resumed_from / CONFIG).read_text(encoding="utf-8") != dump_config(config)
            )[0]
        )

    def train(self) -> TrainReport:
        """Take what is left to do, evaluate and save at the end, and report."""
        train_step, report = self.train_step, self.report
        first_step = train_step.step
        try:
            self._train()
        except KeyboardInterrupt as error:
            again = self._stop_requested() and not isinstance(error, Abandoned)
            # Other processes wait for this one; of half an update nothing can be saved.
            if again or self.run.processes.size > 1 or not train_step.whole:
                raise
            report.reason = "stopped"
        except DataError:  # of a batch: the steps before it are good
            if self.run.processes.size == 1 and train_step.whole:
                self._save_once()
            raise
        self._save_once()
        report.interrupted = bool(report.reason) and not self.progress.ended
        report.steps = train_step.step
        report.taken = train_step.step - first_step
        report.seconds = time.monotonic() - self.started
        report.peak_memory = mx.get_peak_memory()
        return report

    def _train(self) -> None:
        """Take what is left to do, and evaluate; what has been done since the last save is left."""
        if self.progress.evaluate_first:
            self._evaluate()
        self._note_time()
        if not self._finished() and not self.report.reason:
            self._take_steps()
        if not self.report.reason:
            self.log.report()
            if self.progress.evaluated != self.train_step.step:
                self._evaluate()

    def _take_steps(self) -> None:
        """Take steps, evaluate and save until the end or a reason to stop."""
        progress, on_tick = self.progress, self.callbacks.on_tick
        for batch, last_of_iteration in self.run.batches(progress.iteration, progress.batches):
            self._take_step(batch, last_of_iteration)
            if on_tick is not None:
                on_tick(self.train_step.step)
            self._note_time()
            finished = self._finished()
            save_is_due = False
            if not finished:
                self.report.reason = self._reason_to_stop()
                save_is_due = self._save_is_due()
            if last_of_iteration and not finished:
                self.log.report()
                if not self.report.reason:
                    self._evaluate()
                    self.report.reason = self.report.reason or self._reason_to_stop()
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

    def _take_step(self, batch: Batch, last_of_iteration: bool) -> None:
        """Take a step; what is not finite is saved for replay, and stops the run or is skipped."""
        train_step, progress = self.train_step, self.progress
        try:
            metrics = train_step(batch)
        except NonFiniteError as error:
            path = save_replay(self.folder, error, self.run.processes.rank)
            stop = self.run.config.train.on_nonfinite == "stop"
            in_a_row = 0 if stop else progress.skipped_in_row + 1
            if stop or in_a_row >= GIVE_UP:
                progress.skipped_in_row = 0  # whoever resumes it wants to try again
                self._save_once()  # the state before the step
                raise NonFiniteError(error.step, error.parts, path.name, in_a_row) from None
            train_step.skip()
            self._count_batch(last_of_iteration, in_a_row)
            self.report.skipped += 1
            self.log.write({"kind": "skipped", "step": train_step.step, "replay": path.name})
            self.log.resume_clock()
            return
        self._count_batch(last_of_iteration)
        self.log.add(train_step.step, metrics, train_step.learning_rate(train_step.step))

    def _count_batch(self, last_of_iteration: bool, skipped_in_row: int = 0) -> None:
        """Note that a batch has been taken; at once, so that step and data never disagree."""
        progress = self.progress
        progress.skipped_in_row = skipped_in_row
        progress.batches += 1
        if last_of_iteration:
            progress.iteration, progress.batches = progress.iteration + 1, 0
            progress.evaluate_first = True

    def _stop_requested(self) -> bool:
        return self.callbacks.stop_requested() or self.interrupts.came

    def _reason_to_stop(self) -> str:
        """Say why to stop now; empty: go on. All processes say the same."""
        hours = self.run.config.train.max_hours
        if self.run.plan.planned_seconds is not None:
            hours = None  # they end the run, and do not stop it: see _finished
        late = hours is not None and time.monotonic() - self.started >= 3600 * hours
        stopped, late = self.run.processes.any(self._stop_requested(), late)
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
        """Save, evaluate the average, log it, see whether it is the best so far, and record it.

        In this order, so that nothing that goes wrong in an evaluation loses a step.
        """
        run, progress, step = self.run, self.progress, self.train_step.step
        progress.evaluate_first = True
        self.log.report()
        if self.saved_step != step or self.outdated:
            self._save()
        size = run.evaluation_size(step)
        with self.interrupts.may_abandon(run.processes.size == 1):
            metrics, files = self._measure(size)
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
        self._note_best(metrics)
        self._record()
        if self.callbacks.on_eval is not None:
            self.callbacks.on_eval({"step": step, "metrics": metrics})
        self.log.resume_clock()

    def _measure(self, size: Optional[int]) -> Tuple[Dict[str, Metrics], Dict[str, Dict[str, str]]]:
        """Evaluate the average, and where it is asked for the raw weights.

        Returns:
            The metrics of each set, and what its scorer wants to keep.
        """
        run, on_progress = self.run, self.callbacks.on_eval_progress
        average = self.train_step.average
        weights = None if average is None else average.weights
        metrics = run.evaluator.run("test", size, weights=weights, on_progress=on_progress)
        files = run.evaluator.files
        if run.config.eval.raw and weights is not None:
            raw = run.evaluator.run("test", size, on_progress=on_progress)
            metrics.update({f"{name}/raw": values for name, values in raw.items()})
        return metrics, files

    def _note_best(self, metrics: Dict[str, Metrics]) -> None:
        """Keep the best value so far; end the run where patience has run out.

        An evaluation that measured nothing says nothing: it is neither better nor no better.
        """
        progress, settings = self.progress, self.run.config.eval
        value = best_value(metrics, settings.best_metric)
        if not math.isfinite(value):
            return
        if progress.best is None or value > progress.best[0]:
            progress.best, progress.without_better = [value, self.train_step.step], 0
            return
        progress.without_better += 1
        if settings.patience is not None and progress.without_better >= settings.patience:
            progress.ended = f"no better {settings.best_metric} in {settings.patience} evaluations"
            self.report.reason = progress.ended

    def _save_once(self) -> None:
        """Save, where the state has not been saved yet."""
        if self.saved_step != self.train_step.step:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint, point the links at it, and remove those that are not kept."""
        run, train_step = self.run, self.train_step
        self._note_progress()
        optimizer, carry = train_step.state()  # together: the carry is gathered
        if run.processes.leads:
            self.report.checkpoint = save_checkpoint(
                self.folder,
                run.model,
                run.config,
                train_step.step,
                None if train_step.average is None else train_step.average.weights,
                TrainingState(optimizer, carry, asdict(self.progress)),
                run.packed_names,
            )
        else:
            self.report.checkpoint = self.folder / f"step_{train_step.step}"
        self.saved_step, self.outdated = train_step.step, False
        self._tidy()

    def _record(self) -> None:
        """Write into the checkpoint of this step what its evaluation has changed."""
        self._note_progress()
        if self.run.processes.leads:
            record_progress(self.folder / f"step_{self.train_step.step}", asdict(self.progress))
        self._tidy()

    def _note_progress(self) -> None:
        """Bring the log to the disk, and the progress up to date."""
        self._note_time()  # an evaluation took its time, too
        self.log.flush()
        self.progress.log = self.log.state()

    def _tidy(self) -> None:
        """Set the links, and remove the checkpoints that are not kept."""
        if self.run.processes.leads:
            best = self.progress.best_step
            set_links(self.folder, f"step_{self.train_step.step}", best)
            prune_checkpoints(self.folder, self.run.config.checkpoint.keep, best)
        self.saved_at = time.monotonic()
        self.log.resume_clock()


def best_value(metrics: Dict[str, Metrics], name: str) -> float:
    """Give the first set's value of ``eval.best_metric``, negative where less is better.

    It is NaN where the set has no puzzle with a label, and so no such metric.
    """
    value = next(iter(metrics.values())).get(name, math.nan)
    return -value if name.endswith("loss") else value
