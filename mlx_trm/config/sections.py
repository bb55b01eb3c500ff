"""The sections ``train`` and ``init`` of a configuration: how a model is trained, and from where.

Reference: ``PretrainConfig`` in pretrain.py.
"""

from dataclasses import dataclass, field
from typing import List, Optional, Union

from mlx_trm.config.checks import Section

# How the rows of a puzzle table are found in a checkpoint's.
INIT_ROWS = ("auto", "names", "numbers", "mean", "fresh")
# What puzzles get that it has no row for.
NEW_ROWS = ("mean", "zero")


@dataclass
class TrainConfig(Section):
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
    """Freed memory that MLX keeps for reuse, in GiB; unset: MLX's own limit."""
    epochs: int = field(default=50000, metadata={"min": 1})
    """Passes over the training puzzles; with batch_size it decides the steps and the schedule."""
    max_steps: Optional[int] = field(default=None, metadata={"min": 1})
    """Stop after so many steps; the schedule stays, the last evaluation may be of a sample."""
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
    """Whether to use mx.compile; auto does on a GPU, and on the CPU from a million weights on."""
    log_interval: int = field(default=10, metadata={"min": 1})
    """Supervision steps averaged in one line of metrics.jsonl."""
    max_hours: Optional[float] = field(default=None, metadata={"above": 0})
    """Stop after so many hours, as Ctrl-C would: the step is finished and saved."""
    on_nonfinite: str = field(default="stop", metadata={"choices": ("stop", "skip")})
    """A loss or gradient that is not finite stops the run, or its step is skipped."""
    report_to: List[str] = field(
        default_factory=list, metadata={"choices": ("tensorboard", "wandb")}
    )
    """Services that get the lines of metrics.jsonl too; each is an extra of the same name."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        size = self.micro_batch_size
        if isinstance(size, str) and size != "auto":
            return [f"micro_batch_size: {size!r} is neither a number of rows nor auto"]
        return []


@dataclass
class InitConfig(Section):
    """The first weights, where they are not random."""

    run: Optional[str] = None
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
