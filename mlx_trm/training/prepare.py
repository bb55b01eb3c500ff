"""What a configuration becomes before its first step: data, model, evaluator, and a plan.

Everything that can be wrong with a run is found here, before hours have been spent on it.

Reference: ``create_dataloader`` and ``init_train_state`` in pretrain.py.
"""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Iterator, List, Optional, Tuple, TypeVar

import mlx.core as mx

from mlx_trm.config.loading import config_to_dict, validate_config
from mlx_trm.config.plugins import locate_in_plugin
from mlx_trm.config.sections import ExperimentConfig, InitConfig, TrainConfig
from mlx_trm.datasets.names import pack_names, row_names
from mlx_trm.errors import ConfigError, describe_error
from mlx_trm.inference.evaluator import Evaluator, check_dimensions
from mlx_trm.models import RecursiveModel, build_model
from mlx_trm.models.carry import Batch, SentBatch
from mlx_trm.models.losses import answer_losses
from mlx_trm.models.memory import choose_micro_batch
from mlx_trm.runs.reporters import check_reporters
from mlx_trm.runs.transfer import (
    FRESH,
    LEFT,
    TransferReport,
    Weights,
    read_weights,
    transfer_weights,
)
from mlx_trm.system.backend import free_memory_by_size
from mlx_trm.system.device import old_mlx_advice, on_metal
from mlx_trm.system.memory import set_limits
from mlx_trm.system.processes import Processes
from mlx_trm.system.streams import read_stream_setting
from mlx_trm.tasks import PuzzleDataset, Task, build_task
from mlx_trm.training.optim import rate_factors

LOG = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass
class Plan:
    """How many steps a run takes, and when it evaluates.

    Attributes:
        schedule_steps: over which the learning rate's schedule runs: those of the whole recipe, or
            with ``train.lr_schedule: run`` the planned ones.
        planned_steps: what this run will do, ``train.max_steps`` and dropped batches considered;
            an upper bound where puzzles have several examples.
        planned_seconds: with ``train.lr_schedule: run`` and ``train.max_hours``, after which the
            run ends if it has not before.
        cut_short: whether ``train.max_steps`` ends the run before its recipe does.
        epochs_per_iter: epochs between two evaluations, one iteration of the data.
        iterations: of the data in all.
    """

    schedule_steps: int
    planned_steps: int
    planned_seconds: Optional[float]
    cut_short: bool
    epochs_per_iter: int
    iterations: int


@dataclass
class Run:
    """All that a run works with; :func:`prepare` makes it and nothing in it is replaced later.

    Attributes:
        config: the whole experiment, validated.
        processes: that train together.
        task: what is learnt.
        train_set, test_set: its puzzles.
        model: in training; holds the first weights.
        evaluator: used at evaluations.
        plan: of its steps.
        micro_batch_size: rows computed at once.
        packed_names: of the puzzle table's rows, for checkpoints; None where they have none.
        transfer: what became of each weight of ``init.run``; None without it.
        data: SHA-256 of what describes the data sets.
    """

    config: ExperimentConfig
    processes: Processes
    task: Task
    train_set: PuzzleDataset
    test_set: PuzzleDataset
    model: RecursiveModel
    evaluator: Evaluator
    plan: Plan
    micro_batch_size: int
    packed_names: Optional[bytes]
    transfer: Optional[TransferReport]
    data: str

    def batches(self, iteration: int, skipped: int) -> Iterator[Tuple[Batch, bool]]:
        """Yield this process's share of the batches that are left, and if an iteration ends then.

        The reference's order.

        Args:
            iteration: of the data, from 1, to begin with.
            skipped: batches of that iteration that have been taken already.
        """
        train, plan = self.config.train, self.plan
        online = getattr(self.config.task, "augment", "") == "online"
        share = self.processes.share(train.batch_size)
        for number in range(iteration, plan.iterations + 1):
            waiting: Optional[Batch] = None
            batches = self.train_set.train_batches(
                train.batch_size,
                self.config.seed,
                plan.epochs_per_iter,
                number,
                self.task.augment if online else None,
                skipped,
            )
            # To a GPU's memory, too, they go while the step before is computed: 1.6 ms for 768.
            ready = (SentBatch.send(*(a[name][share] for name in Batch._fields)) for a in batches)
            for sent in make_one_ahead(ready):
                if waiting is not None:
                    yield waiting, False
                waiting = sent.batch()
            if waiting is not None:
                yield waiting, True
            skipped = 0

    def evaluation_size(self, step: int) -> Optional[int]:
        """Say how many test puzzles to evaluate; None for what the configuration says.

        A run that ``train.max_steps`` cuts short does not spend more supervision steps on its last
        evaluation than on its training: three steps on a laptop should not be followed by hours.

        Args:
            step: supervision steps done.
        """
        settings = self.config.eval
        last_of_short = self.plan.cut_short and step >= self.plan.planned_steps
        if settings.max_examples is not None or not last_of_short:
            return None
        each = settings.steps or self.model.config.halt_max_steps
        return max(1, step * self.config.train.batch_size // each)


def warn_of_shared(train_set: PuzzleDataset, test_set: PuzzleDataset) -> None:
    """Say how many test puzzles a model is trained on, where any are."""
    shared = train_set.count_shared(test_set)
    if shared:
        LOG.warning(
            "%d of %d test puzzles are training examples too (%s); their accuracy says nothing "
            "about new ones, so take them out of one of the two",
            *(shared, len(test_set), test_set.name),
        )


def prepare(config: ExperimentConfig, initialise: bool = True) -> Run:
    """Check the configuration, open the data, create the model, and plan the steps.

    Args:
        config: the whole experiment.
        initialise: begin with the weights of ``init.run``, where it is set.

    Raises:
        ConfigError: if settings do not fit together, the data, or this machine's memory.
        DataError: if the data cannot be read.
        CheckpointError: if ``init.run`` cannot be used.
    """
    validate_config(config)
    check_reporters(config.train.report_to)
    read_stream_setting()
    processes = Processes.start()
    check_processes(config, processes)
    # Before the data, which may take long to be built.
    source = read_first_weights(config.init) if initialise else None
    task = build_task(config.task, config.task_seed)
    train_set, test_set = task.dataset("train"), task.dataset("test")
    warn_of_shared(train_set, test_set)
    # With first weights, or other processes to agree with, MLX has computed something: too late.
    if source is None and processes.size == 1:
        most = max(config.train.batch_size * config.train.chains, config.eval.batch_size or 0)
        free_memory_by_size(most * train_set.spec.seq_len, training=True)
    summary = f"{describe_data(train_set)} {describe_data(test_set)}"
    processes.agree("data set", summary)
    model = build_model(config.model, train_set.spec, seed=config.seed)
    check_dimensions(model, test_set)
    names = name_table_rows(model, train_set)
    transfer: Optional[TransferReport] = None
    if source is not None:
        transfer = transfer_first_weights(model, source, config.init, names)
    processes.agree("initial weights", str(transfer and transfer.rows()))
    train = config.train
    check_recipe(train, model)
    advice = old_mlx_advice(getattr(mx, "__version__", "")) if on_metal() else None
    if advice is not None:
        LOG.warning("%s", advice)
    set_limits(train.memory_limit_gb, train.cache_limit_gb, train.wired_limit_gb)
    model.recompute(train.checkpoint_activations)
    share = train.batch_size // processes.size
    rows = choose_micro_batch(model, share, train.micro_batch_size, train)
    plan = plan_steps(config, train_set)
    if train.lr_schedule == "run" and train.lr_warmup_steps >= plan.planned_steps:
        LOG.warning(
            "train.lr_warmup_steps: %d are not fewer than this run's %d steps, so that its rates "
            "rise to the end; lower it",
            *(train.lr_warmup_steps, plan.planned_steps),
        )
    evaluator = Evaluator(model, config, task, processes)
    evaluator.check_metric("eval.best_metric", config.eval.best_metric)
    return Run(
        config=config,
        processes=processes,
        task=task,
        train_set=train_set,
        test_set=test_set,
        model=model,
        evaluator=evaluator,
        plan=plan,
        micro_batch_size=rows,
        packed_names=None if names is None else pack_names(names),
        transfer=transfer,
        data=hashlib.sha256(summary.encode()).hexdigest(),
    )


def check_recipe(train: TrainConfig, model: RecursiveModel) -> None:
    """Check what of the recipe takes the model to see.

    Raises:
        ConfigError: if ``train.lr_scale`` names no weight, the model cannot run a stage, or the
            loss that a plugin registered fails.
    """
    rate_factors(train, model)
    spec = model.spec
    logits = mx.zeros((1, spec.seq_len, spec.vocab_size), model.dtype)
    labels = mx.zeros((1, spec.seq_len), mx.int32)
    try:  # what it gives is not computed, but its shape is known
        answer_losses(logits, labels, train.loss, train.label_smoothing)
    except Exception as error:  # pylint: disable=broad-exception-caught
        # Whatever a plugin's function raises is its author's to mend.
        raise ConfigError(
            f"train.loss: {train.loss}: {type(error).__name__}: {describe_error(error)}"
            f"{locate_in_plugin(error)}"
        ) from error
    for stage in train.stages():
        try:
            with model.with_cycles(stage.H_cycles, stage.L_cycles):
                pass
        except ConfigError as error:
            raise ConfigError(f"train.curriculum: {error}") from error


def plan_steps(config: ExperimentConfig, dataset: PuzzleDataset) -> Plan:
    """Count the steps of a run.

    Raises:
        ConfigError: if no batch would ever be full.
    """
    train = config.train
    # In the reference's order of operations, which decides how it rounds.
    total = int(
        train.epochs * dataset.total_groups * dataset.mean_puzzle_examples / train.batch_size
    )
    epochs_per_iter = config.eval.interval or train.epochs
    examples = dataset.total_groups * dataset.mean_puzzle_examples
    per_iteration = int(epochs_per_iter * examples) // train.batch_size
    if per_iteration == 0:
        raise ConfigError(
            f"train.batch_size: {train.batch_size} is more than the {int(examples)} examples x "
            f"{epochs_per_iter} epochs between evaluations, so no batch is ever full; "
            "lower it, or raise eval.interval and train.epochs"
        )
    iterations = train.epochs // epochs_per_iter
    whole = per_iteration * iterations
    most = train.max_steps
    planned = whole if most is None else min(whole, most)
    to_the_end = train.lr_schedule == "run"
    hours = train.max_hours if to_the_end else None
    return Plan(
        schedule_steps=planned if to_the_end else total,
        planned_steps=planned,
        planned_seconds=None if hours is None else 3600 * hours,
        cut_short=most is not None and most < whole,
        epochs_per_iter=epochs_per_iter,
        iterations=iterations,
    )


def make_one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items; a thread makes the next one while this one is used."""
    thread = ThreadPoolExecutor(1, "batches")
    try:
        following = thread.submit(_next_of, items)
        while True:
            found = following.result()
            if not found:
                return
            following = thread.submit(_next_of, items)
            yield found[0]
    finally:
        thread.shutdown(wait=False)  # whoever stops does not wait for an item that nobody wants


def _next_of(items: Iterator[Item]) -> List[Item]:
    """Give the next item in a list, which is empty at the end."""
    for item in items:
        return [item]
    return []


def check_processes(config: ExperimentConfig, processes: Processes) -> None:
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


def name_table_rows(model: RecursiveModel, dataset: PuzzleDataset) -> Optional[List[str]]:
    """Name the rows of a model's puzzle table; None where there is none, or one row, or no names.

    Raises:
        DataError: if the dataset's names are damaged.
    """
    if not model.config.puzzle_emb_ndim or model.spec.num_puzzle_identifiers == 1:
        return None
    return row_names(dataset)


def read_first_weights(init: InitConfig) -> Optional[Weights]:
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


def transfer_first_weights(
    model: RecursiveModel, source: Weights, init: InitConfig, names: Optional[List[str]]
) -> TransferReport:
    """Give a model the weights of another run, as the settings say.

    Args:
        model: changed in place.
        source: of :func:`read_first_weights`.
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


def describe_data(dataset: PuzzleDataset) -> str:
    """Describe a data set so that another one is very likely described otherwise."""
    rows = [dataset.example(index) for index in (0, len(dataset) // 2, len(dataset) - 1)]
    digest = hashlib.sha256(b"".join(array.tobytes() for pair in rows for array in pair))
    return f"{dataset.spec} {len(dataset)} {dataset.total_groups} {digest.hexdigest()}"
