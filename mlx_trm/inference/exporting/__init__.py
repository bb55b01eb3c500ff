"""A model's supervision step as a file that needs no mlx_trm: MLX functions, or an ONNX graph."""

from mlx_trm.inference.exporting.functions import (
    ANSWERS,
    export_checkpoint,
    export_step,
    step_function,
)
from mlx_trm.inference.exporting.onnx_file import export_onnx

__all__ = [
    "ANSWERS",
    "export_checkpoint",
    "export_onnx",
    "export_step",
    "step_function",
]
