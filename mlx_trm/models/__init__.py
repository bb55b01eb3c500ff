"""The models, by name: ``register_model`` adds one and ``build_model`` makes one."""

from mlx_trm.models.base import RecursiveModel, build_model, named_arrays, register_model
from mlx_trm.models.trm import TRM, TRMConfig

__all__ = ["RecursiveModel", "TRM", "TRMConfig", "build_model", "named_arrays", "register_model"]
