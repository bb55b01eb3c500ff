"""All that a run keeps on disk: checkpoints, links, logs, and how a later run begins with them."""

from mlx_trm.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mlx_trm.runs.metrics import StepReport
from mlx_trm.runs.transfer import TransferReport, read_weights, transfer_weights

__all__ = [
    "Checkpoint",
    "StepReport",
    "TransferReport",
    "load_checkpoint",
    "read_weights",
    "save_checkpoint",
    "transfer_weights",
]
