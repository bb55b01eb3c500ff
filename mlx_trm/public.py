"""Every public name, imported: what ``mlx_trm`` gives when one of them is first asked for."""

from mlx_trm.config.loading import InitConfig, TrainConfig, load_config, save_config
from mlx_trm.config.sections import (
    CheckpointConfig,
    EvalConfig,
    ExperimentConfig,
    ModelConfig,
    TaskConfig,
    TaskSpec,
)
from mlx_trm.errors import CheckpointError, ConfigError, DataError, TRMError
from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.inference.exporting import export_checkpoint, export_onnx, export_step
from mlx_trm.inference.packaged import Pretrained, load_pretrained, pretrained
from mlx_trm.inference.quantization import Quantized, quantize_model
from mlx_trm.inference.search import Result, SearchSettings
from mlx_trm.inference.solver import Solver, SolverStep
from mlx_trm.models import (
    HRM,
    TRM,
    HRMConfig,
    RecursiveModel,
    TransformersBaseline,
    TransformersBaselineConfig,
    TRMConfig,
    TRMHier6,
    TRMHier6Config,
    TRMSingleZ,
    TRMSingleZConfig,
    TRMSymbols,
    TRMSymbolsConfig,
    build_model,
    register_model,
)
from mlx_trm.models.carry import Batch, Carry, Outputs, random_batch
from mlx_trm.models.losses import (
    act_loss,
    register_loss,
    softmax_cross_entropy,
    stablemax_cross_entropy,
)
from mlx_trm.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mlx_trm.runs.reporters import Reporter, register_reporter
from mlx_trm.runs.transfer import TransferReport, read_weights, transfer_weights
from mlx_trm.system.report import device_report
from mlx_trm.tasks import (
    Maze,
    MazeConfig,
    Puzzle,
    PuzzleDataset,
    Sudoku,
    SudokuConfig,
    Task,
    build_task,
    register_task,
)
from mlx_trm.training.optim import EMA, AdamATan2, register_optimizer
from mlx_trm.training.trainer import Trainer, TrainReport
from mlx_trm.upstream.reading import load_upstream_checkpoint
from mlx_trm.version import __version__

__all__ = [
    "EMA",
    "HRM",
    "TRM",
    "AdamATan2",
    "Batch",
    "Carry",
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EvalConfig",
    "Evaluator",
    "ExperimentConfig",
    "HRMConfig",
    "InitConfig",
    "Maze",
    "MazeConfig",
    "ModelConfig",
    "Outputs",
    "Pretrained",
    "Puzzle",
    "PuzzleDataset",
    "Quantized",
    "RecursiveModel",
    "Reporter",
    "Result",
    "SearchSettings",
    "Solver",
    "SolverStep",
    "Sudoku",
    "SudokuConfig",
    "TRMConfig",
    "TRMError",
    "TRMHier6",
    "TRMHier6Config",
    "TRMSingleZ",
    "TRMSingleZConfig",
    "TRMSymbols",
    "TRMSymbolsConfig",
    "Task",
    "TaskConfig",
    "TaskSpec",
    "TrainConfig",
    "TrainReport",
    "Trainer",
    "TransferReport",
    "TransformersBaseline",
    "TransformersBaselineConfig",
    "__version__",
    "act_loss",
    "build_model",
    "build_task",
    "device_report",
    "export_checkpoint",
    "export_onnx",
    "export_step",
    "load_checkpoint",
    "load_config",
    "load_pretrained",
    "load_upstream_checkpoint",
    "pretrained",
    "quantize_model",
    "random_batch",
    "read_weights",
    "register_loss",
    "register_model",
    "register_optimizer",
    "register_reporter",
    "register_task",
    "save_checkpoint",
    "save_config",
    "softmax_cross_entropy",
    "stablemax_cross_entropy",
    "transfer_weights",
]
