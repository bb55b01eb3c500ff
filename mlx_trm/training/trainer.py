"""Deep supervision as a run: batches, evaluations, checkpoints, and going on after a stop.

Every iteration is one supervision step, taken by :class:`mlx_trm.training.step.Stepper`; the carry lives
on between them. A step follows from its number, the seed, the weights and the carry, so a run that
is resumed from a checkpoint goes on to the bit as if it had never stopped.

Reference: ``launch`` in pretrain.py.
"""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import mlx.core as mx

from mlx_trm.config.loading import InitConfig, config_to_dict, validate_config
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.datasets.names import pack_names, row_names
from mlx_trm.errors import CheckpointError, ConfigError
from mlx_trm.inference.evaluator import Evaluator, check_dimensions
from mlx_trm.models import RecursiveModel, build_model
from mlx_trm.models.carry import Batch
from mlx_trm.models.memory import choose_micro_batch
from mlx_trm.runs.checkpoint import load_training_state
from mlx_trm.runs.folder import RunLock, prepare_run_dir
from mlx_trm.runs.metrics import StepReport
from mlx_trm.runs.reporters import check_reporters
from mlx_trm.runs.resume import (
    checkpoint_names,
    prepare_resumed_run,
    resumable_checkpoint,
    resumed_config,
)
from mlx_trm.runs.transfer import (
    FRESH,
    LEFT,
    TransferReport,
    Weights,
    read_weights,
    transfer_weights,
)
from mlx_trm.system.memory import set_limits
from mlx_trm.system.processes import Processes
from mlx_trm.system.streams import asked_streams
from mlx_trm.tasks import PuzzleDataset, build_task
from mlx_trm.training.loop import Fit, RunProgress, TrainReport
from mlx_trm.training.step import Stepper

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class Trainer(Stepper):
    """Trains a model from a configuration.

    Attributes:
        task, train_set, test_set: what is learnt from.
        evaluator: used at evaluations.
        planned_steps: what this run will do, ``train.max_steps`` and dropped batches considered;
            an upper bound where puzzles have several examples.
        progress: where the run is, besides its step.
        restarted: whether ``run_dir`` may hold a run without a checkpoint.
        beside: names of the run's checkpoints when it was resumed.
        resumed_from: the checkpoint that :meth:`resume` took.
        packed_names: of the puzzle table's rows, for checkpoints; None where they have none.
        transfer: what became of each weight of ``init.run``; None without it.
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
        validate_config(config)
        check_reporters(config.train.report_to)
        asked_streams()
        processes = Processes.start()
        check_share(config, processes)
        # Before the data, which may take long to be built.
        source = first_weights(config.init) if initialise else None
        self.task = build_task(config.task, config.task_seed)
        self.train_set = self.task.dataset("train")
        self.test_set = self.task.dataset("test")
        summary = f"{data_summary(self.train_set)} {data_summary(self.test_set)}"
        processes.agree("data set", summary)
        model = build_model(config.model, self.train_set.spec, seed=config.seed)
        check_dimensions(model, self.test_set)
        names = table_names(model, self.train_set)
        self.packed_names = None if names is None else pack_names(names)
        self.transfer: Optional[TransferReport] = None
        if source is not None:
            self.transfer = initial_weights(model, source, config.init, names)
        processes.agree("initial weights", str(self.transfer and self.transfer.rows()))
        train, data = config.train, self.train_set
        set_limits(train.memory_limit_gb, train.cache_limit_gb)
        model.recompute(train.checkpoint_activations)
        rows = choose_micro_batch(
            model,
            train.batch_size // processes.size,
            train.micro_batch_size,
            train.checkpoint_activations,
        )
        # In the reference's order of operations, which decides how it rounds.
        total = int(train.epochs * data.total_groups * data.mean_puzzle_examples / train.batch_size)
        super().__init__(config, model, total, processes, rows)
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
        self.evaluator = Evaluator(model, config, self.task, processes)
        self.evaluator.check_metric("eval.best_metric", config.eval.best_metric)
        self.restarted = restart
        self.progress = RunProgress(data=hashlib.sha256(summary.encode()).hexdigest())
        self.beside: List[str] = []
        self.resumed_from: Optional[Path] = None
        self._stop = False

    # A run -------------------------------------------------------------------------------------

    @classmethod
    def resume(
        cls,
        path: Union[str, Path],
        overrides: Sequence[str] = (),
        config: Optional[ExperimentConfig] = None,
        fall_back: bool = False,
    ) -> "Trainer":
        """Make a trainer that goes on with a run, to the bit as if it had never stopped.

        Args:
            path: a run folder, whose newest checkpoint is taken, or a checkpoint folder.
            overrides: settings that a resumed run may change, such as ``train.max_steps=900``.
            config: used instead of the run's own; may differ in the same settings only.
            fall_back: take the newest whole checkpoint where the newest one is damaged.

        Raises:
            CheckpointError: if there is none that can be resumed; it names one that can.
            ConfigError: if a setting is changed that a resumed run has to keep.
        """
        folder = resumable_checkpoint(path, fall_back)
        trainer = cls(resumed_config(folder, overrides, config), initialise=False)
        step, average, state = load_training_state(folder, trainer.model)
        try:
            trainer.processes.agree("checkpoint", f"{folder.name} {sorted(state.carry)}")
            trainer.restore(step, average, state.optimizer, state.carry)
            progress = RunProgress.read(state.progress)
        except (CheckpointError, ValueError) as error:
            raise CheckpointError(f"{folder}: cannot be resumed: {error}") from error
        if progress.data != trainer.progress.data:
            raise ConfigError(
                f"{folder}: the data are not those that the run was trained with; "
                "name the same files by task.data_dir or the task's other settings"
            )
        if progress.without_better < (trainer.config.eval.patience or progress.without_better + 1):
            progress.ended = ""
        trainer.progress = progress
        trainer.beside = checkpoint_names(folder.parent)
        trainer.resumed_from = folder
        return trainer

    def finished(self) -> bool:
        """Whether everything has been done: the last step, its evaluation, its checkpoint."""
        if self.progress.ended:
            return True
        iterations = self.config.train.epochs // self.epochs_per_iter
        at_end = self.step >= self.planned_steps or self.progress.iteration > iterations
        return at_end and self.progress.evaluated == self.step

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
            ConfigError: if ``run_dir`` cannot be used, or another process uses it.
            CheckpointError: if a checkpoint cannot be written.
            NonFiniteError: if the loss or a gradient is not finite any more; what entered the step
                is saved beside the checkpoints.
        """
        self._stop = False
        run, lock = Path(self.config.run_dir or "."), None
        try:
            if not self.processes.leads:  # number 0 alone writes
                run = run if self.resumed_from is None else self.resumed_from.parent
            elif self.resumed_from is None:
                run, lock = prepare_run_dir(self.config, self.restarted)
            else:
                run = self.resumed_from.parent
                lock = RunLock(run)
                if checkpoint_names(run) != self.beside:
                    raise ConfigError(
                        f"{run}: another process has gone on with it; resume it again"
                    )
                prepare_resumed_run(run, self.resumed_from, self.config, self.progress)
            return Fit(self, run, on_eval, on_step, on_tick, on_eval_progress).go()
        finally:
            if lock is not None:
                lock.release()

    def stopping(self) -> bool:
        """Whether :meth:`stop` has been called."""
        return self._stop

    def sample(self) -> Optional[int]:
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

    def batches(self) -> Iterator[Tuple[Batch, bool]]:
        """Yield this process's share of the batches that are left, and if an iteration ends then.

        The reference's order; where in it the run is stands in :attr:`progress`.
        """
        augment = (
            self.task.augment if getattr(self.config.task, "augment", "") == "online" else None
        )
        first = self.progress.batches
        share = self.processes.share(self.config.train.batch_size)
        for iteration in range(
            self.progress.iteration, self.config.train.epochs // self.epochs_per_iter + 1
        ):
            waiting: Optional[Batch] = None
            batches = self.train_set.train_batches(
                self.config.train.batch_size,
                self.config.seed,
                self.epochs_per_iter,
                iteration,
                augment,
                first,
            )
            for arrays in one_ahead(batches):
                if waiting is not None:
                    yield waiting, False
                waiting = Batch(*(mx.array(arrays[name][share]) for name in Batch._fields))
            if waiting is not None:
                yield waiting, True
            first = 0


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; a thread makes the next one while this one is used."""
    end: Any = object()
    thread = ThreadPoolExecutor(1, "batches")
    try:
        following = thread.submit(next, items, end)
        while True:
            item = following.result()
            if item is end:
                return
            following = thread.submit(next, items, end)
            yield item
    finally:
        thread.shutdown(wait=False)  # whoever stops does not wait for an item that nobody wants


def check_share(config: ExperimentConfig, processes: Processes) -> None:
    """Refuse to begin where the processes cannot share the work.

    Raises:
        ConfigError: if a batch cannot be cut into equal shares, or the settings differ.
    """
    count = config.train.batch_size
    if count % processes.size:
        raise ConfigError(
            f"train.batch_size: {count} rows cannot be shared by {processes.size} processes "
            f"equally; use {count + processes.size - count % processes.size}"
        )
    settings = config_to_dict(config)
    for section, key in (("task", "data_dir"), (None, "run_dir")):
        (settings[section] if section else settings).pop(key, None)  # may lie elsewhere
    processes.agree("configuration", json.dumps(settings, sort_keys=True))


def table_names(model: RecursiveModel, dataset: PuzzleDataset) -> Optional[List[str]]:
    """Name the rows of a model's puzzle table; None where there is none, or one row, or no names.

    Raises:
        DataError: if the dataset's names are damaged.
    """
    if not model.config.puzzle_emb_ndim or model.spec.num_puzzle_identifiers == 1:
        return None
    return row_names(dataset)


def first_weights(init: InitConfig) -> Optional[Weights]:
    """Read the weights that ``init.run`` names; None where it is not set.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
        ConfigError: if other settings of the section are set without it.
    """
    if init.run is not None:
        return read_weights(init.run)
    # Not a check of the configuration, because --init-from comes after it.
    for name, value in vars(init).items():
        if value != getattr(InitConfig(), name):
            raise ConfigError(f"init.{name}: is of no use without init.run (or --init-from)")
    return None


def initial_weights(
    model: RecursiveModel, source: Weights, init: InitConfig, names: Optional[List[str]]
) -> TransferReport:
    """Give a model the weights of another run, as the settings say.

    Args:
        model: changed in place.
        source: of :func:`first_weights`.
        init: the section of the configuration.
        names: of the rows of the model's puzzle table.

    Returns:
        What became of each weight.

    Raises:
        ConfigError: if nothing of it can be used.
    """
    report = transfer_weights(model, source, names, init.only, init.rows, init.new_rows)
    fresh = report.names(FRESH)
    if fresh and not init.only:
        LOG.warning(
            "init.run: %d of the model's %d weights are not in %s, or of another shape there, and "
            "begin as a new model's: %s",
            *(len(fresh), len(report.transfers) - len(report.names(LEFT)), report.origin),
            ", ".join(fresh),
        )
    return report


def data_summary(dataset: PuzzleDataset) -> str:
    """Describe a data set so that another one is very likely described otherwise."""
    rows = [dataset.example(index) for index in (0, len(dataset) // 2, len(dataset) - 1)]
    digest = hashlib.sha256(b"".join(array.tobytes() for pair in rows for array in pair))
    return f"{dataset.spec} {len(dataset)} {dataset.total_groups} {digest.hexdigest()}"
