"""Deep supervision: the optimiser, one step, the loop of a run, and the trainer around it."""

from mlx_trm.training.optim import EMA, AdamATan2
from mlx_trm.training.trainer import Trainer, TrainReport

__all__ = ["EMA", "AdamATan2", "TrainReport", "Trainer"]
