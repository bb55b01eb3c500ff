"""A toy task and a model of a few thousand parameters, for tests of training."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import mlx_trm as trm
from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import CheckpointConfig, EvalConfig, ExperimentConfig, TaskConfig
from mlx_trm.models.carry import Batch
from mlx_trm.training.trainer import Trainer


@dataclass
class MarksConfig(TaskConfig):
    """A toy task: add a puzzle's own secret number to every token."""

    name: str = "marks"


@trm.register_task("marks", MarksConfig)
class Marks(trm.Task):
    """Eight puzzles of four examples; the answer depends on the puzzle's identifier."""

    @property
    def spec(self):
        return trm.TaskSpec(vocab_size=6, seq_len=5, num_puzzle_identifiers=9)

    def groups(self, split, rng):
        for number in range(8):
            inputs = rng.integers(1, 6, (4, 5)).astype(np.uint8)
            labels = (1 + (inputs + number) % 5).astype(np.uint8)
            yield [trm.Puzzle(f"puzzle {number}", inputs, labels)]


def experiment(**changes) -> ExperimentConfig:
    """A model of a few thousand parameters on the toy task."""
    model = trm.TRMConfig(
        hidden_size=16,
        num_heads=2,
        swiglu_multiple=16,
        L_layers=1,
        H_cycles=2,
        L_cycles=1,
        mlp_t=True,
        pos_encodings="none",
        puzzle_emb_len=1,
        halt_max_steps=3,
        halt_exploration_prob=0.5,
        forward_dtype="float32",
    )
    train = TrainConfig(
        batch_size=6,
        epochs=30,
        lr=3e-3,
        lr_warmup_steps=3,
        weight_decay=0.1,
        puzzle_emb_lr=1e-2,
        ema_rate=0.9,
        log_interval=4,
    )
    config = ExperimentConfig(MarksConfig(), model, train, EvalConfig(), CheckpointConfig())
    for name, value in changes.items():
        section, _, key = name.partition("__")
        setattr(getattr(config, section) if key else config, key or section, value)
    return config


def batches(trainer: Trainer, count: int) -> list:
    arrays = trainer.run.train_set.train_batches(6, seed=0, epochs_per_iter=30)
    return [Batch(*(mx.array(next(arrays)[name]) for name in Batch._fields)) for _ in range(count)]


def flat(trainer: Trainer) -> dict:
    found = dict(tree_flatten(trainer.model.parameters()))
    if trainer.train_step.average is not None:
        found.update({f"ema.{k}": v for k, v in tree_flatten(trainer.train_step.average.weights)})
    return {name: np.array(array) for name, array in found.items()}
