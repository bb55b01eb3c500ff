"""Deep supervision as a run: batches, evaluations, checkpoints.

Every iteration is one supervision step, taken by :class:`mlx_trm.stepping.Stepper`; the carry lives
on between them.

Reference: ``launch`` in pretrain.py.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import mlx.core as mx

from mlx_trm.carry import Batch
from mlx_trm.checkpoint import prune_checkpoints, save_checkpoint
from mlx_trm.config import ExperimentConfig, validate_config
from mlx_trm.errors import ConfigError
from mlx_trm.evaluation import Evaluator, Metrics, check_dimensions
from mlx_trm.memory import check_fits
from mlx_trm.models import build_model
from mlx_trm.runs import (
    MetricsLog,
    StepReport,
    prepare_run_dir,
    save_evaluation_files,
    save_interval,
)
from mlx_trm.stepping import Stepper
from mlx_trm.tasks import build_task


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
        evaluations: (step, metrics of each set) in order.
        peak_memory: bytes.
    """

    run_dir: Path
    checkpoint: Path
    steps: int = 0
    total: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    evaluations: List[Tuple[int, Dict[str, Metrics]]] = field(default_factory=list)
    peak_memory: int = 0


class Trainer(Stepper):
    """Trains a model from a configuration.

    Attributes:
        task, train_set, test_set: what is learnt from.
        evaluator: used at evaluations.
        planned_steps: what this run will do, ``train.max_steps`` and dropped batches considered;
            an upper bound where puzzles have several examples.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        """Check the configuration, open the data and create the model.

        Raises:
            ConfigError: if settings do not fit together, the data, or this machine's memory.
            DataError: if the data cannot be read.
        """
        validate_config(config)
        self.task = build_task(config.task, config.task_seed)
        self.train_set = self.task.dataset("train")
        self.test_set = self.task.dataset("test")
        model = build_model(config.model, self.train_set.spec, seed=config.seed)
        check_dimensions(model, self.test_set)
        train, data = config.train, self.train_set
        check_fits(model, train.batch_size, train.micro_batch_size)
        # In the reference's order of operations, which decides how it rounds.
        total = int(train.epochs * data.total_groups * data.mean_puzzle_examples / train.batch_size)
        super().__init__(config, model, total)
        self.epochs_per_iter = config.eval.interval or train.epochs
        examples = data.total_groups * data.mean_puzzle_examples
        per_iteration = int(self.epochs_per_iter * examples) // train.batch_size
        self.planned_steps = per_iteration * (train.epochs // self.epochs_per_iter)
        self._cut_short = train.max_steps is not None and train.max_steps < self.planned_steps
        if train.max_steps is not None:
            self.planned_steps = min(self.planned_steps, train.max_steps)
        if per_iteration == 0:
            raise ConfigError(
                f"train.batch_size: {train.batch_size} is more than the {int(examples)} examples x "
                f"{self.epochs_per_iter} epochs between evaluations, so no batch is ever full; "
                "lower it, or raise eval.interval and train.epochs"
            )
        self.evaluator = Evaluator(model, config, self.task)
        self._stop = False

    # A run -------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask :meth:`fit` to finish the step it is in, save, and return."""
        self._stop = True

    def fit(
        self,
        on_eval: Optional[Callable[[Dict[str, Any]], None]] = None,
        on_step: Optional[Callable[[StepReport], None]] = None,
        on_tick: Optional[Callable[[int], None]] = None,
        on_eval_progress: Optional[Callable[[int, int], None]] = None,
    ) -> TrainReport:
        """Train to the end of the recipe, to ``train.max_steps``, or until :meth:`stop`.

        Args:
            on_eval: called after each evaluation with ``{"step": N, "metrics": {set: {...}}}``.
            on_step: called every ``train.log_interval`` steps and at the last one.
            on_tick: called after every step with its number.
            on_eval_progress: called during evaluations with (puzzles done, puzzles in all).

        Returns:
            The report; its checkpoint holds the final state, stopped early or not.

        Raises:
            ConfigError: if ``run_dir`` cannot be used.
            CheckpointError: if a checkpoint cannot be written.
            TRMError: if the loss is no longer finite.
        """
        self._stop = False
        run = prepare_run_dir(self.config)
        report = TrainReport(run_dir=run, checkpoint=run, total=self.planned_steps)
        started = saved_at = time.monotonic()
        saved_step = evaluated_step = -1
        log = MetricsLog(
            run / "metrics.jsonl",
            self.config.train.batch_size,
            self.config.train.log_interval,
            self.planned_steps,
            on_step,
        )

        def evaluate() -> None:
            nonlocal evaluated_step
            weights = None if self.average is None else self.average.weights
            metrics = self.evaluator.run(
                "test", self._sample(), weights=weights, on_progress=on_eval_progress
            )
            evaluated_step = self.step
            report.evaluations.append((self.step, metrics))
            save_evaluation_files(run / "evaluations" / f"step_{self.step}", self.evaluator.files)
            for name, values in metrics.items():
                log.write({"kind": "eval", "step": self.step, "set": name, **values})
            log.resume_clock()
            if on_eval is not None:
                on_eval({"step": self.step, "metrics": metrics})

        def save() -> None:
            nonlocal saved_at, saved_step
            average = None if self.average is None else self.average.weights
            report.checkpoint = save_checkpoint(run, self.model, self.config, self.step, average)
            prune_checkpoints(run, self.config.checkpoint.keep)
            saved_at, saved_step = time.monotonic(), self.step
            log.resume_clock()

        every_steps, every_seconds = save_interval(self.config.checkpoint.every)
        for batch, last_of_iteration in self._batches():
            if batch is not None:
                metrics = self.train_step(batch)
                log.add(self.step, metrics, self.learning_rate(self.step))
                if on_tick is not None:
                    on_tick(self.step)
                due = every_steps is not None and self.step % every_steps == 0
                if every_seconds is not None:
                    due = time.monotonic() - saved_at >= every_seconds
                if due and not last_of_iteration:
                    save()
            finished = self.step >= self.planned_steps
            if last_of_iteration and not self._stop and not finished:
                log.report()
                evaluate()
                save()
            if self._stop or finished:
                break
        log.report()
        report.interrupted = self._stop and self.step < self.planned_steps
        if not report.interrupted and evaluated_step != self.step:
            evaluate()
        if saved_step != self.step:
            save()
        report.steps = self.step
        report.seconds = time.monotonic() - started
        report.peak_memory = mx.get_peak_memory()
        return report

    def _sample(self) -> Optional[int]:
        """Say how many test puzzles to evaluate; None for what the configuration says.

        A run that ``train.max_steps`` cuts short does not spend more supervision steps on its last
        evaluation than on its training: three steps on a laptop should not be followed by hours.
        """
        settings = self.config.eval
        last_of_short = self._cut_short and self.step >= self.planned_steps
        if settings.max_examples is not None or not last_of_short:
            return None
        each = settings.steps or self.model.config.halt_max_steps
        return max(1, self.step * self.config.train.batch_size // each)

    def _batches(self) -> Iterator[Tuple[Optional[Batch], bool]]:
        """Yield batches in the reference's order, with whether an iteration ends after each."""
        augment = (
            self.task.augment if getattr(self.config.task, "augment", "") == "online" else None
        )
        for iteration in range(1, self.config.train.epochs // self.epochs_per_iter + 1):
            waiting: Optional[Batch] = None
            for arrays in self.train_set.train_batches(
                self.config.train.batch_size,
                self.config.seed,
                self.epochs_per_iter,
                iteration,
                augment,
            ):
                if waiting is not None:
                    yield waiting, False
                waiting = Batch(*(mx.array(arrays[name]) for name in Batch._fields))
            yield waiting, True
