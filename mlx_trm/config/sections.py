"""The sections of a configuration: every setting, its default, its range and what it means.

Reference: ``PretrainConfig`` in pretrain.py.
"""

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple, Union

from mlx_trm.config.checks import NO_SETTING, PATH, Section, show
from mlx_trm.config.html import settings_html
from mlx_trm.config.registry import LOSSES, OPTIMIZERS
from mlx_trm.errors import shown

MAX_SEED = 2**32 - 1
MOST_SIZE = 2**31 - 1  # tokens, cells and identifiers are int32
MINUTES = re.compile(r"\d+(\.\d+)?min")
# An item of train.curriculum: the share of the run at which so many H x L cycles begin.
STAGE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*:\s*(\d+)\s*x\s*(\d+)")

# How the rows of a puzzle table are found in a checkpoint's.
INIT_ROWS = ("auto", "names", "numbers", "mean", "fresh")
# What puzzles get that it has no row for.
NEW_ROWS = ("mean", "zero")


class Stage(NamedTuple):
    """A part of a curriculum.

    Attributes:
        start: the share of the run at which it begins.
        H_cycles, L_cycles: that training runs from there on.
    """

    start: float
    H_cycles: int
    L_cycles: int


@dataclass
class TrainConfig(Section):  # pylint: disable=too-many-instance-attributes
    """The recipe: loss, optimisers, schedule."""

    batch_size: int = field(default=768, metadata={"min": 1})
    """B, puzzles in one supervision step (reference: global_batch_size)."""
    micro_batch_size: Optional[Union[int, str]] = field(default=None, metadata={"min": 1})
    """Rows computed at once, their gradients summed: less memory; auto: what fits; unset: all."""
    checkpoint_activations: bool = False
    """Compute activations again for the gradient instead of keeping them: less memory, slower."""
    memory_limit_gb: Optional[float] = field(default=None, metadata={"above": 0})
    """MLX waits for memory to be freed beyond so many GiB, then fails; unset: MLX's own limit."""
    cache_limit_gb: Optional[float] = field(default=None, metadata={"min": 0})
    """Freed memory that MLX keeps for reuse, in GiB; unset: on a Mac 2 or less, else MLX's own."""
    wired_limit_gb: Optional[float] = field(default=None, metadata={"min": 0})
    """Memory that a Mac keeps in place for the GPU, in GiB (macOS 15); unset: as MLX has it."""
    epochs: int = field(default=50000, metadata={"min": 1})
    """Passes over the training puzzles; with batch_size it decides the steps and the schedule."""
    max_steps: Optional[int] = field(default=None, metadata={"min": 1})
    """Stop after so many steps; the schedule stays, the last evaluation may be of a sample."""
    optimizer: str = field(default="adam_atan2", metadata={"choices": OPTIMIZERS})
    """What moves the weights; muon takes the blocks' matrices, and adamw the rest."""
    lr: float = field(default=1e-4, metadata={"min": 0})
    """Learning rate after warm-up; with muon that of weights which are no block's matrix."""
    lr_scale: List[str] = field(default_factory=list)
    """Factors of the rate by patterns of weights' names, as embed*=0.1; the last match counts."""
    lr_schedule: str = field(default="recipe", metadata={"choices": ("recipe", "run")})
    """Where the cosine ends: after all epochs, or with this run (max_steps, or max_hours)."""
    lr_min_ratio: float = field(default=1.0, metadata={"min": 0, "max": 1})
    """Share of the rate that the cosine ends with; 1 keeps it constant."""
    lr_warmup_steps: int = field(default=2000, metadata={"min": 0})
    """Supervision steps in which the rates rise from 0."""
    weight_decay: float = field(default=1.0, metadata={"min": 0})
    """Decoupled decay of the weights, times the learning rate."""
    beta1: float = field(default=0.9, metadata={"min": 0, "below": 1})
    """Decay of the mean gradient (adam_atan2, adamw)."""
    beta2: float = field(default=0.95, metadata={"min": 0, "below": 1})
    """Decay of the mean squared gradient (adam_atan2, adamw)."""
    muon_lr: float = field(default=0.02, metadata={"min": 0})
    """Learning rate of the blocks' matrices with muon, after warm-up."""
    muon_weight_decay: float = field(default=0.05, metadata={"min": 0})
    """Decoupled decay of the blocks' matrices with muon, times muon_lr."""
    muon_momentum: float = field(default=0.6, metadata={"min": 0, "below": 1})
    """Decay of muon's mean gradient."""
    muon_steps: int = field(default=3, metadata={"min": 1})
    """Newton-Schulz steps that make muon's update nearly orthogonal."""
    grad_clip: Optional[float] = field(default=None, metadata={"above": 0})
    """Scale the weights' gradients down to this norm where it is larger; unset: never."""
    puzzle_emb_lr: float = field(default=1e-4, metadata={"min": 0})
    """SignSGD's learning rate of the puzzle table, after warm-up."""
    puzzle_emb_weight_decay: float = field(default=1.0, metadata={"min": 0})
    """Decoupled decay of the puzzle rows in a batch, times their learning rate."""
    loss: str = field(default="stablemax", metadata={"choices": LOSSES})
    """Cross-entropy over which probabilities (reference: arch.loss.loss_type)."""
    label_smoothing: float = field(default=0.0, metadata={"min": 0, "below": 1})
    """Share of each target that is spread over all tokens, with softmax; evaluation has none."""
    halt_loss_weight: float = field(default=0.5, metadata={"min": 0})
    """Weight of the loss of the Q values beside that of the answer."""
    curriculum: List[str] = field(default_factory=list)
    """From which share of the run to train with how many H x L cycles, as [0:1x2, 0.3:3x6]."""
    chains: int = field(default=1, metadata={"min": 1})
    """Chains of latents a row, from random starts, of which in each step the best alone learns."""
    late_rows: float = field(default=0.0, metadata={"min": 0, "max": 1})
    """Share of a batch's rows that go on after the answer, for up to late_steps (Sotaku)."""
    late_steps: int = field(default=64, metadata={"min": 2})
    """Steps of the longest late row; the others' are spread between halt_max_steps and these."""
    ema: bool = True
    """Keep an average of the weights, and evaluate with it."""
    ema_rate: float = field(default=0.999, metadata={"min": 0, "below": 1})
    """Share of the average that stays at each supervision step."""
    ema_start: float = field(default=0.0, metadata={"min": 0, "below": 1})
    """Share of the run at which averaging begins; before, the average is the weights."""
    freeze: str = field(default="none", metadata={"choices": ("none", "weights", "puzzle_emb")})
    """What stays untrained: none, all weights, the puzzle table (reference: freeze_weights)."""
    compile: str = field(default="auto", metadata={"choices": ("auto", "always", "never")})
    """Whether to use mx.compile; auto does on a GPU, and on the CPU from a million weights on."""
    log_interval: int = field(default=10, metadata={"min": 1})
    """Supervision steps averaged in one line of metrics.jsonl."""
    max_hours: Optional[float] = field(default=None, metadata={"above": 0})
    """Stop after so many hours as Ctrl-C would; with lr_schedule run the run ends with them."""
    on_nonfinite: str = field(default="stop", metadata={"choices": ("stop", "skip")})
    """What is not finite stops the run, or its step is skipped, up to 20 in a row."""
    report_to: List[str] = field(default_factory=list)
    """Services that get the lines of metrics.jsonl too: tensorboard, wandb (extras of these names),
    or one that a plugin registers."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = []
        size = self.micro_batch_size
        if isinstance(size, str) and size != "auto":
            found.append(f"micro_batch_size: {size!r} is neither a number of rows nor auto")
        if self.label_smoothing and not LOSSES.takes(self.loss, "label_smoothing"):
            able = " or ".join(name for name in LOSSES if LOSSES.takes(name, "label_smoothing"))
            found.append(f"label_smoothing: train.loss {self.loss} has none; use {able}, or 0")
        for read in (self.rate_factors, self.stages):
            try:
                read()
            except ValueError as error:
                found.append(str(error))
        return found

    def rate_factors(self) -> List[Tuple[str, float]]:
        """Give ``lr_scale`` as patterns and factors.

        Raises:
            ValueError: naming the item that makes no sense.
        """
        found = []
        for item in self.lr_scale:
            pattern, _, text = (part.strip() for part in item.rpartition("="))
            try:
                factor = float(text)
            except ValueError:
                factor = math.nan
            if not pattern or not 0 <= factor < math.inf:
                raise ValueError(
                    f"lr_scale: {item!r} is not a pattern of names, '=' and a factor of at least 0"
                )
            found.append((pattern, factor))
        return found

    def stages(self) -> List[Stage]:
        """Give the ``curriculum`` as stages in order; empty: the model's own cycles all the time.

        Raises:
            ValueError: naming the item that makes no sense.
        """
        found: List[Stage] = []
        for item in self.curriculum:
            match = STAGE.fullmatch(item.strip())
            if match is None or not int(match[2]) or not int(match[3]):
                raise ValueError(
                    f"curriculum: {item!r} is not a share of the run, ':' and cycles such as 2x4"
                )
            found.append(Stage(float(match[1]), int(match[2]), int(match[3])))
        starts = [stage.start for stage in found]
        if found and (starts[0] != 0 or starts[-1] >= 1 or sorted(set(starts)) != starts):
            raise ValueError(
                "curriculum: the first share must be 0, each larger than the one before, "
                f"the last below 1, not {', '.join(f'{start:g}' for start in starts)}"
            )
        return found


@dataclass
class InitConfig(Section):
    """The first weights, where they are not random."""

    run: Optional[str] = field(default=None, metadata=PATH)
    """Run or checkpoint folder that they come from, its average (reference: load_checkpoint)."""
    only: List[str] = field(default_factory=list)
    """Take only weights whose names match one of these, as L_level.*; empty: all that fit."""
    rows: str = field(default="auto", metadata={"choices": INIT_ROWS})
    """Puzzle rows by names, by numbers, all their mean, or fresh; auto: names if it knows them."""
    new_rows: str = field(default=NEW_ROWS[0], metadata={"choices": NEW_ROWS})
    """What puzzles get that the checkpoint has no row for: the mean of its rows, or zero."""

    def problems(self) -> List[str]:
        """Check that a run is named, where one is."""
        empty = self.run is not None and not self.run.strip()
        return ["run: is empty; name a run folder or leave it out"] if empty else []


@dataclass(frozen=True)
class TaskSpec:
    """Dimensions and special tokens of a task's data; a configuration never repeats them."""

    vocab_size: int
    """V, number of tokens."""
    seq_len: int
    """S, cells of a puzzle."""
    num_puzzle_identifiers: int = 1
    """N, rows of the puzzle table."""
    pad_id: int = 0
    """Token of cells that are not part of the puzzle."""
    blank_identifier_id: int = 0
    """Identifier of padding rows and of puzzles without a name."""
    ignore_label_id: Optional[int] = 0
    """Label on disk that means "not scored"; null where every label counts."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "TaskSpec":
        """Make one of what a JSON file says; what else it says is not looked at.

        Raises:
            ValueError: naming what is missing, no whole number, or out of range.
        """
        found: Dict[str, Any] = {part.name: values.get(part.name) for part in fields(cls)}
        for name, value in found.items():
            least = 0 if name.endswith("_id") else 1
            if name == "ignore_label_id" and name in values and value is None:
                continue
            if name not in values:
                raise ValueError(f"{name} is missing")
            what = shown(repr(value))
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} up, not {what}")
            if value > MOST_SIZE:
                raise ValueError(f"{name} must be at most {MOST_SIZE}, not {what}")
        for name, limit in (
            ("pad_id", "vocab_size"),
            ("blank_identifier_id", "num_puzzle_identifiers"),
        ):
            if found[name] >= found[limit]:
                raise ValueError(f"{name} is {found[name]}, {limit} is only {found[limit]}")
        return cls(**found)


@dataclass
class TaskConfig(Section):
    """Settings that every task has; a task adds its own in a subclass."""

    name: str
    """Which task."""
    data_dir: Optional[Union[str, List[str]]] = field(default=None, metadata=PATH)
    """Folder of a built dataset to use as it is, or a list of several (reference: data_paths)."""
    train_file: Optional[str] = field(default=None, metadata=PATH)
    """Raw training puzzles, a CSV or text file; what is built from it is cached."""
    test_file: Optional[str] = field(default=None, metadata=PATH)
    """Raw test puzzles, a CSV or text file; what is built from it is cached."""
    seed: Optional[int] = field(default=None, metadata={"min": 0, "max": MAX_SEED})
    """Seed of generated or augmented data; unset for the top-level seed."""

    def problems(self) -> List[str]:
        """Check that no file is given that a built folder would hide."""
        if isinstance(self.data_dir, list) and len(set(self.data_dir)) < max(1, len(self.data_dir)):
            return [
                "data_dir: " + ("names a folder twice" if self.data_dir else "is an empty list")
            ]
        files = [name for name in ("train_file", "test_file") if getattr(self, name)]
        if self.data_dir is None or not files:
            return []
        hidden = " and ".join(files)
        return [f"data_dir: is used as it is, so {hidden} would be ignored; give only one"]


@dataclass
class ModelConfig(Section):
    """Settings that every model has; a model adds its own in a subclass."""

    name: str
    """Which model (reference: arch.name)."""


@dataclass
class EvalConfig(Section):
    """When and how much to evaluate."""

    interval: Optional[int] = field(default=None, metadata={"min": 1})
    """Epochs between evaluations, a divisor of train.epochs; unset: once, at the end."""
    batch_size: Optional[int] = field(default=None, metadata={"min": 1})
    """Puzzles evaluated at once; unset for train.batch_size."""
    memory_limit_gb: Optional[float] = field(default=None, metadata={"above": 0})
    """GiB that a batch takes, about, beside the weights: more is done in parts; null: whole."""
    max_examples: Optional[int] = field(default=None, metadata={"min": 1})
    """Evaluate a seeded sample of so many puzzles; unset for all."""
    steps: Optional[int] = field(default=None, metadata={"min": 1})
    """Supervision steps each puzzle gets; unset for model.halt_max_steps."""
    raw: bool = False
    """Also evaluate the raw weights beside their average; doubles the time."""
    best_metric: str = "exact_accuracy"
    """The metric of the first set that the link best goes by; of a loss the lowest is best."""
    patience: Optional[int] = field(default=None, metadata={"min": 1})
    """Stop after so many evaluations without a better best_metric; unset: never."""


@dataclass
class CheckpointConfig(Section):
    """When to save."""

    every: Optional[Union[int, str]] = "10min"
    """Steps between checkpoints, or minutes as in 10min, besides those at evaluations; or null."""
    keep: int = field(default=2, metadata={"min": 1})
    """Newest checkpoints that stay on disk."""

    def problems(self) -> List[str]:
        """Check that ``every`` is a number of steps or minutes."""
        every = self.every
        if isinstance(every, str):
            if MINUTES.fullmatch(every) and float(every[: -len("min")]) > 0:
                return []
        elif every is None or every > 0:
            return []
        return [f"every: {show(every)} is neither a number of steps nor minutes such as 10min"]

    @property
    def every_steps(self) -> Optional[int]:
        """Steps between checkpoints, where ``every`` is a number of them."""
        return self.every if isinstance(self.every, int) else None

    @property
    def every_seconds(self) -> Optional[float]:
        """Seconds between checkpoints, where ``every`` is in minutes."""
        return 60.0 * float(self.every[: -len("min")]) if isinstance(self.every, str) else None


@dataclass
class ExperimentConfig(Section):
    """Everything that decides a run."""

    task: TaskConfig
    """What is learnt."""
    model: ModelConfig
    """By which network."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """With which recipe."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """When it is measured."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When it is saved."""
    init: InitConfig = field(default_factory=InitConfig)
    """With which weights it begins."""
    seed: int = field(default=0, metadata={"min": 0, "max": MAX_SEED})
    """Decides weights, batch order, augmentation and exploration."""
    run_dir: Optional[str] = field(default=None, metadata=PATH)
    """Folder for the run's files; unset for runs/ and the configuration's name."""
    plugins: List[str] = field(default_factory=list)
    """Modules or .py files that register tasks, models or reporters; imported before the rest."""
    origin: str = field(default="", compare=False, repr=False, metadata=NO_SETTING)
    """Name of the file it was loaded from, without its ending; of a saved run the folder's."""
    given: Optional[FrozenSet[str]] = field(
        default=None, compare=False, repr=False, metadata=NO_SETTING
    )
    """Settings that the file or an override names, as section.name; None: built in Python."""

    def _repr_html_(self) -> str:
        return settings_html(self)

    def problems(self) -> List[str]:
        """Check what takes more than one section to see."""
        found = []
        interval, epochs = self.eval.interval, self.train.epochs
        if interval is not None and epochs % interval:
            found.append(f"eval.interval: {interval} does not divide train.epochs {epochs}")
        if self.train.curriculum and not hasattr(self.model, "H_cycles"):
            found.append(f"train.curriculum: model {self.model.name} has no cycles to change")
        if self.train.chains > 1 and getattr(self.model, "start", "fixed") != "random":
            found.append("train.chains: several need model.start random, or all of them are one")
        most = getattr(self.model, "halt_max_steps", 1)
        if self.train.late_rows and not 1 < most < self.train.late_steps:
            found.append(f"train.late_rows: needs 1 < model.halt_max_steps ({most}) < late_steps")
        if self.train.freeze == "weights" and getattr(self.model, "puzzle_emb_ndim", None) == 0:
            found.append("train.freeze: nothing is left to train, model.puzzle_emb_ndim is 0")
        if self.eval.raw and getattr(self.task, "aggregated_voting", False):
            found.append("eval.raw: its votes would be mixed with those of task.aggregated_voting")
        if self.run_dir is not None and not self.run_dir.strip():
            found.append("run_dir: is empty; name a folder or leave it out")
        return found

    @property
    def task_seed(self) -> int:
        """Seed of the data: the task's own, or else the top-level one."""
        return self.seed if self.task.seed is None else self.task.seed

    @property
    def stem(self) -> str:
        """Name for the run's folder: that of the file it was loaded from, or else the task's."""
        return self.origin or self.task.name
