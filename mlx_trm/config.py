"""The configuration of an experiment: its sections, and how they are loaded, checked and saved.

Defaults come first, then the YAML file, then overrides such as ``train.lr=3e-4``. Everything is
checked before anything runs, and every problem is reported in one go.

Reference: ``PretrainConfig`` in pretrain.py, config/cfg_pretrain.yaml.
"""

from dataclasses import dataclass, field
from typing import List, Optional, Union

MAX_SEED = 2**32 - 1


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


@dataclass
class TaskConfig:
    """Settings that every task has; a task adds its own in a subclass."""

    name: str
    """Which task."""
    data_dir: Optional[str] = None
    """Folder of a built dataset to use as it is (reference: data_paths)."""
    train_file: Optional[str] = None
    """Raw training puzzles, a CSV or text file; what is built from it is cached."""
    test_file: Optional[str] = None
    """Raw test puzzles, a CSV or text file; what is built from it is cached."""
    seed: Optional[int] = field(default=None, metadata={"min": 0, "max": MAX_SEED})
    """Seed of generated or augmented data; unset for the top-level seed."""


@dataclass
class ModelConfig:
    """Settings that every model has; a model adds its own in a subclass."""

    name: str
    """Which model (reference: arch.name)."""


@dataclass
class TrainConfig:
    """The recipe: loss, optimisers, schedule."""

    batch_size: int = field(default=768, metadata={"min": 1})
    """B, puzzles in one supervision step (reference: global_batch_size)."""
    epochs: int = field(default=50000, metadata={"min": 1})
    """Passes over the training puzzles; with batch_size it decides the steps and the schedule."""
    max_steps: Optional[int] = field(default=None, metadata={"min": 1})
    """Stop after so many supervision steps; the schedule stays that of epochs."""
    lr: float = field(default=1e-4, metadata={"min": 0})
    """Learning rate of the weights, after warm-up."""
    lr_min_ratio: float = field(default=1.0, metadata={"min": 0, "max": 1})
    """Share of the rate that the cosine ends with; 1 keeps it constant."""
    lr_warmup_steps: int = field(default=2000, metadata={"min": 0})
    """Supervision steps in which the rates rise from 0."""
    weight_decay: float = field(default=1.0, metadata={"min": 0})
    """Decoupled decay of the weights, times the learning rate."""
    beta1: float = field(default=0.9, metadata={"min": 0, "below": 1})
    """AdamATan2's decay of the mean gradient."""
    beta2: float = field(default=0.95, metadata={"min": 0, "below": 1})
    """AdamATan2's decay of the mean squared gradient."""
    puzzle_emb_lr: float = field(default=1e-4, metadata={"min": 0})
    """SignSGD's learning rate of the puzzle table, after warm-up."""
    puzzle_emb_weight_decay: float = field(default=1.0, metadata={"min": 0})
    """Decoupled decay of the puzzle rows in a batch, times their learning rate."""
    loss: str = field(default="stablemax", metadata={"choices": ("stablemax", "softmax")})
    """Cross-entropy over which probabilities (reference: arch.loss.loss_type)."""
    ema: bool = True
    """Keep an average of the weights, and evaluate with it."""
    ema_rate: float = field(default=0.999, metadata={"min": 0, "below": 1})
    """Share of the average that stays at each supervision step."""
    freeze: str = field(default="none", metadata={"choices": ("none", "weights", "puzzle_emb")})
    """What stays untrained: none, all weights, the puzzle table (reference: freeze_weights)."""
    compile: str = field(default="auto", metadata={"choices": ("auto", "always", "never")})
    """Whether to use mx.compile; auto does on a GPU, where it pays for short runs too."""
    log_interval: int = field(default=10, metadata={"min": 1})
    """Supervision steps averaged in one line of metrics.jsonl."""


@dataclass
class EvalConfig:
    """When and how much to evaluate."""

    interval: Optional[int] = field(default=None, metadata={"min": 1})
    """Epochs between evaluations, a divisor of train.epochs; unset: once, at the end."""
    batch_size: Optional[int] = field(default=None, metadata={"min": 1})
    """Puzzles evaluated at once; unset for train.batch_size."""
    max_examples: Optional[int] = field(default=None, metadata={"min": 1})
    """Evaluate a seeded sample of so many puzzles; unset for all."""
    steps: Optional[int] = field(default=None, metadata={"min": 1})
    """Supervision steps each puzzle gets; unset for model.halt_max_steps."""


@dataclass
class CheckpointConfig:
    """When to save."""

    every: Optional[Union[int, str]] = None
    """Steps between checkpoints, or minutes as in 10min, besides those at evaluations."""
    keep: int = field(default=2, metadata={"min": 1})
    """Newest checkpoints that stay on disk."""


@dataclass
class ExperimentConfig:
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
    seed: int = field(default=0, metadata={"min": 0, "max": MAX_SEED})
    """Decides weights, batch order, augmentation and exploration."""
    run_dir: Optional[str] = None
    """Folder for the run's files; unset for runs/ and the configuration's name."""
    plugins: List[str] = field(default_factory=list)
    """Modules or .py files that register tasks and models; imported before the rest is read."""

    @property
    def task_seed(self) -> int:
        """Seed of the data: the task's own, or else the top-level one."""
        return self.seed if self.task.seed is None else self.task.seed

    @property
    def stem(self) -> str:
        """Name for the run's folder: that of the file it was loaded from, or else the task's."""
        return str(self.__dict__.get("_stem") or self.task.name)


def load_config(source, overrides=()): ...
def save_config(config, path): ...
def validate_config(config): ...
