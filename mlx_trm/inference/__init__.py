"""A trained model at work: evaluation, solving, quantisation and export."""

from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.inference.exporting import export_checkpoint, export_onnx, export_step
from mlx_trm.inference.packaged import Pretrained, load_pretrained, pretrained
from mlx_trm.inference.quantization import Quantized, quantize_model
from mlx_trm.inference.search import Result, SearchSettings
from mlx_trm.inference.solver import Solver, SolverStep

__all__ = [
    "Evaluator",
    "Pretrained",
    "Quantized",
    "Result",
    "SearchSettings",
    "Solver",
    "SolverStep",
    "export_checkpoint",
    "export_onnx",
    "export_step",
    "load_pretrained",
    "pretrained",
    "quantize_model",
]
