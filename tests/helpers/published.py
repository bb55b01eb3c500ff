"""Weights in the layout of published checkpoints, scaled down."""

from typing import Any, Dict

import mlx.core as mx
import numpy as np

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict
from mlx_trm.models import build_model, named_arrays

COMPILED = "_orig_mod.model.inner."
SIZES = {"hidden_size": 16, "num_heads": 8}
CELLS = {"sudoku": (11, 81), "maze": (6, 900), "arc": (12, 900)}


def weights(task: str, rows: int = 1, seed: int = 3, **model: Any) -> Dict[str, np.ndarray]:
    """A model's weights by the reference's inner names, initial states as bfloat16's bits."""
    values = {"name": "trm", **SIZES, **model}
    config = config_from_dict({"task": {"name": task}, "model": values})
    made = build_model(config.model, trm.TaskSpec(*CELLS[task], rows), seed=seed)
    if made.config.puzzle_emb_ndim:
        made.puzzle_emb.weights = mx.random.normal(made.puzzle_emb.weights.shape)
    arrays = {name: np.array(array) for name, array in named_arrays(made.parameters())}
    for name in made.initial_names:
        rounded = mx.array(arrays[name]).astype(mx.bfloat16)
        arrays[name] = np.array(rounded.view(mx.uint16))
    return arrays


def named(arrays: Dict[str, np.ndarray], prefix: str = COMPILED) -> Dict[str, np.ndarray]:
    """Put a prefix before all names."""
    return {prefix + name: array for name, array in arrays.items()}


def averaged(arrays: Dict[str, np.ndarray], prefix: str = COMPILED) -> Dict[str, np.ndarray]:
    """Half of each trained weight, as an average that has no buffers would hold."""
    buffers = "puzzle_emb.weights", "H_init", "L_init"
    return {prefix + name: array / 2 for name, array in arrays.items() if name not in buffers}


def same(checkpoint: trm.Checkpoint, arrays: Dict[str, np.ndarray]) -> None:
    """Check that a model's weights are these, to the bit."""
    found = {name: np.array(array) for name, array in named_arrays(checkpoint.model.parameters())}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        wide = np.array(mx.array(array).view(mx.bfloat16).astype(mx.float32))
        assert np.array_equal(found[name], array if array.dtype == np.float32 else wide), name
