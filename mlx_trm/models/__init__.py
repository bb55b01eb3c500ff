"""The models, by name: ``register_model`` adds one and ``build_model`` makes one."""

from mlx_trm.models.base import RecursiveModel, build_model, named_arrays, register_model
from mlx_trm.models.hrm import HRM, HRMConfig
from mlx_trm.models.transformers_baseline import TransformersBaseline, TransformersBaselineConfig
from mlx_trm.models.trm import TRM, TRMConfig
from mlx_trm.models.trm_grid import TRMGrid, TRMGridConfig
from mlx_trm.models.trm_hier6 import TRMHier6, TRMHier6Config
from mlx_trm.models.trm_singlez import TRMSingleZ, TRMSingleZConfig
from mlx_trm.models.trm_symbols import TRMSymbols, TRMSymbolsConfig

__all__ = [
    "HRM",
    "HRMConfig",
    "RecursiveModel",
    "TRM",
    "TRMConfig",
    "TRMGrid",
    "TRMGridConfig",
    "TRMHier6",
    "TRMHier6Config",
    "TRMSingleZ",
    "TRMSingleZConfig",
    "TRMSymbols",
    "TRMSymbolsConfig",
    "TransformersBaseline",
    "TransformersBaselineConfig",
    "build_model",
    "named_arrays",
    "register_model",
]
