"""A run from a configuration: begun, gone on with after a stop, and trained to its end.

Every iteration is one supervision step, taken by a :class:`~mlx_trm.training.step.TrainStep`; the
carry lives on between them. A step follows from its number, the seed, the weights and the carry, so
a run that is resumed from a checkpoint goes on to the bit as if it had never stopped.

Reference: ``launch`` in pretrain.py.
"""

from contextlib import suppress
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple, Union

from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import CheckpointError, ConfigError, TRMError
from mlx_trm.models import RecursiveModel
from mlx_trm.runs.checkpoint import load_training_state
from mlx_trm.runs.folder import RunLock, prepare_run_dir
from mlx_trm.runs.history import prune_checkpoints
from mlx_trm.runs.layout import list_checkpoints
from mlx_trm.runs.metrics import StepReport
from mlx_trm.runs.progress import RunProgress
from mlx_trm.runs.resume import prepare_resumed_run, resumable_checkpoint, resumed_config
from mlx_trm.training.loop import fit
from mlx_trm.training.prepare import prepare
from mlx_trm.training.report import (
    Callbacks,
    Evaluation,
    ProgressBar,
    TrainReport,
    both,
    wants_bar,
)
from mlx_trm.training.step import TrainStep

__all__ = ["TrainReport", "Trainer"]


class Trainer:
    """Trains a model from a configuration.

    Attributes:
        run: what it works with: data, model, evaluator, plan of steps.
        train_step: takes one supervision step when it is called; holds the optimiser, the average
            and the carry.
        progress: where the run is, besides its step.
        resumed_from: the checkpoint that :meth:`resume` took; None in a new run.
    """

    def __init__(
        self, config: ExperimentConfig, restart: bool = False, initialise: bool = True
    ) -> None:
        """Check the configuration, open the data and create the model.

        Args:
            config: the whole experiment.
            restart: ``run_dir`` may hold a run that was stopped before its first checkpoint.
            initialise: begin with the weights of ``init.run``, where it is set.

        Raises:
            ConfigError: if settings do not fit together, the data, or this machine's memory.
            DataError: if the data cannot be read.
            CheckpointError: if ``init.run`` cannot be used.
        """
        self.run = prepare(config, initialise)
        self.train_step = TrainStep(
            config,
            self.run.model,
            self.run.plan.schedule_steps,
            self.run.processes,
            self.run.micro_batch_size,
        )
        self.progress = RunProgress(data=self.run.data)
        self.resumed_from: Optional[Path] = None
        self._restart = restart
        self._found_at_resume: List[Path] = []
        self._stop = False

    @property
    def config(self) -> ExperimentConfig:
        """The whole experiment."""
        return self.run.config

    @property
    def model(self) -> RecursiveModel:
        """The model that is trained; it holds the raw weights."""
        return self.run.model

    @property
    def step(self) -> int:
        """Supervision steps done."""
        return self.train_step.step

    @classmethod
    def resume(
        cls,
        path: Union[str, Path],
        overrides: Sequence[str] = (),
        config: Optional[ExperimentConfig] = None,
        fall_back: bool = False,
        allow_plugins: bool = False,
    ) -> "Trainer":
        """Make a trainer that goes on with a run, to the bit as if it had never stopped.

        Args:
            path: a run folder, whose newest checkpoint is taken, or a checkpoint folder.
            overrides: settings that a resumed run may change, such as ``train.max_steps=900``.
            config: used instead of the run's own; may differ in the same settings only.
            fall_back: take the newest whole checkpoint where the newest one is damaged.
            allow_plugins: whether the code that the run's own configuration names may run; a folder
                does not show whose it is (docs/security.md).

        Raises:
            CheckpointError: if there is none that can be resumed; it names one that can.
            ConfigError: if a setting is changed that a resumed run has to keep.
        """
        folder = resumable_checkpoint(path, fall_back)
        trainer = cls(resumed_config(folder, overrides, config, allow_plugins), initialise=False)
        run = trainer.run
        step, average, state = load_training_state(folder, run.model)
        try:
            run.processes.agree("checkpoint", f"{folder.name} {sorted(state.carry)}")
            trainer.train_step.restore(step, average, state.optimizer, state.carry)
            progress = RunProgress.read(state.progress)
        except (CheckpointError, ValueError) as error:
            raise CheckpointError(f"{folder}: cannot be resumed: {error}") from error
        if progress.data != run.data:
            raise ConfigError(
                f"{folder}: the data are not those that the run was trained with; "
                "name the same files by task.data_dir or the task's other settings"
            )
        if progress.without_better < (run.config.eval.patience or progress.without_better + 1):
            progress.ended = ""
        trainer.progress = progress
        trainer.resumed_from = folder
        trainer._found_at_resume = list_checkpoints(folder.parent)
        return trainer

    def finished(self) -> bool:
        """Whether everything has been done: the last step, its evaluation, its checkpoint."""
        if self.progress.ended:
            return True
        plan = self.run.plan
        at_end = self.step >= plan.planned_steps or self.progress.iteration > plan.iterations
        if plan.planned_seconds is not None:
            at_end = at_end or self.progress.seconds >= plan.planned_seconds
        return at_end and self.progress.evaluated == self.step

    def stop(self) -> None:
        """Ask :meth:`fit` to finish the step it is in, save, and return."""
        self._stop = True

    def fit(
        self,
        on_eval: Optional[Callable[[Evaluation], None]] = None,
        on_step: Optional[Callable[[StepReport], None]] = None,
        on_tick: Optional[Callable[[int], None]] = None,
        on_eval_progress: Optional[Callable[[int, int], None]] = None,
        progress: Optional[bool] = None,
    ) -> TrainReport:
        """Train to the end of the recipe, to ``train.max_steps``, or until :meth:`stop`.

        Args:
            on_eval: called after each evaluation with ``{"step": N, "metrics": {set: {...}}}``.
            on_step: called every ``train.log_interval`` steps and at the last one.
            on_tick: called after every step with its number.
            on_eval_progress: called during evaluations with (puzzles done, puzzles in all).
            progress: whether to show a bar; None: in a terminal and in a notebook.

        Returns:
            The report; its checkpoint holds the final state, stopped early or not. Ctrl-C
            (``KeyboardInterrupt``) stops it early, too, as :meth:`stop` does, but leaves an
            evaluation at once; a second one is raised.

        Raises:
            ConfigError: if ``run_dir`` cannot be used, or another process uses it.
            CheckpointError: if a checkpoint cannot be written.
            NonFiniteError: if the loss or a gradient is not finite any more; what entered the step
                is saved beside the checkpoints.
        """
        self._stop = False
        folder, lock = self._open_folder()
        shown = wants_bar(progress) and self.run.processes.leads
        bar = ProgressBar(self.step, self.run.plan.planned_steps, shown)
        callbacks = Callbacks(
            on_eval,
            both(bar.step, on_step),
            both(bar.tick, on_tick),
            both(bar.evaluating, on_eval_progress),
            lambda: self._stop,
        )
        try:
            return fit(
                self.run, self.train_step, self.progress, folder, callbacks, self.resumed_from
            )
        finally:
            bar.close()
            if lock is not None:
                lock.release()

    def settle(self) -> None:
        """Put the folder of a run with nothing left to do right, if it was killed at the very end.

        Links, the log and what was left half done become what the last checkpoint says. What cannot
        be written, or is in use by another process, stays as it is.
        """
        newest = self._found_at_resume[-1:] == [self.resumed_from]
        if self.resumed_from is None or not newest or not self.run.processes.leads:
            return
        with suppress(TRMError):
            folder, lock = self._open_folder()
            try:
                prune_checkpoints(folder, self.config.checkpoint.keep, self.progress.best_step)
            finally:
                if lock is not None:
                    lock.release()

    def _open_folder(self) -> Tuple[Path, Optional[RunLock]]:
        """Give the run's folder, ready to be written to, and its lock where this process has it."""
        folder = Path(self.config.run_dir or ".")
        if self.resumed_from is not None:
            folder = self.resumed_from.parent
        if not self.run.processes.leads:  # number 0 alone writes
            return folder, None
        if self.resumed_from is None:
            return prepare_run_dir(self.config, self._restart)
        lock = RunLock(folder)
        try:
            if list_checkpoints(folder) != self._found_at_resume:
                raise ConfigError(f"{folder}: another process has gone on with it; resume it again")
            prepare_resumed_run(folder, self.resumed_from, self.config, self.progress, lock.held)
        except BaseException:  # Ctrl-C, say
            lock.release()
            raise
        return folder, lock
