"""Runs written as checkpoints that the reference reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Mapping, Union

import mlx.core as mx

from mlx_trm.config.sections import ModelConfig
from mlx_trm.errors import CheckpointError, ConfigError, describe_error, listed
from mlx_trm.models import RecursiveModel, build_model, named_arrays
from mlx_trm.models.base import DTYPES
from mlx_trm.runs.checkpoint import Checkpoint, load_checkpoint
from mlx_trm.system.files import replace_file
from mlx_trm.upstream.names import OWN_COMPUTATION, upstream_settings
from mlx_trm.upstream.reading import find_nonfinite
from mlx_trm.upstream.settings import UPSTREAM_MODELS

WRAPPERS = {"compiled": "_orig_mod.model.inner.", "plain": "model.inner.", "inner": "inner."}


def export_upstream(
    run: Union[str, Path],
    target: Path,
    weights: str = "ema",
    dtype: str = "reference",
    names: str = "compiled",
    allow_plugins: bool = False,
) -> Checkpoint:
    """Write a run's weights under the reference's names, as its ``load_state_dict`` takes them.

    Args:
        run: a run folder or a checkpoint folder.
        target: ``.safetensors``, or ``.pt``, which needs torch; replaced whole or not at all.
        weights: ``ema`` (what the reference saves) or ``raw``.
        dtype: ``reference``: float32, and the initial states as ``forward_dtype``; or one dtype for
            everything, which rounds.
        names: which wrappers stand before a name, a key of :data:`WRAPPERS`.
        allow_plugins: whether the code that the run's configuration names may run.

    Returns:
        The checkpoint that was read.

    Raises:
        CheckpointError: if the run cannot be read, or the reference has no such model.
        ConfigError: if the target cannot be written.
    """
    if target.suffix not in (".safetensors", ".pt"):
        raise ConfigError(f"--to-upstream {target}: name a file that ends in .safetensors or .pt")
    torch = _torch() if target.suffix == ".pt" else None
    checkpoint = load_checkpoint(run, weights, allow_plugins)
    _check_exportable(checkpoint)
    arrays = _upstream_arrays(checkpoint.model, dtype, WRAPPERS[names])
    wrong = find_nonfinite(arrays)
    if wrong:
        narrow = "; a wider --dtype may do" if dtype == "float16" else ""
        raise CheckpointError(
            f"{checkpoint.path}: NaN or infinity would be written: {listed(wrong)}; use an earlier "
            f"checkpoint{narrow}"
        )
    settings = upstream_settings(checkpoint.config.model, checkpoint.spec)
    try:
        with replace_file(target) as temporary:
            if torch is None:
                metadata = {"format": "pt", "step": str(checkpoint.step)}
                metadata["config"] = json.dumps(settings)
                mx.save_safetensors(str(temporary), arrays, metadata)
            else:
                torch.save(_tensors(torch, arrays), str(temporary))
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"--to-upstream {target}: cannot be written ({describe_error(error)})"
        ) from error
    return checkpoint


def _check_exportable(checkpoint: Checkpoint) -> None:
    """Refuse models that the reference has not, or not in this size."""
    config = checkpoint.config.model
    if config.name not in UPSTREAM_MODELS:
        raise CheckpointError(
            f"{checkpoint.path}: the reference has no model {config.name!r} (it has: "
            f"{', '.join(UPSTREAM_MODELS)})"
        )
    unknown = [name for name in OWN_COMPUTATION if getattr(config, name, False)]
    if unknown:
        raise CheckpointError(
            f"{checkpoint.path}: the reference cannot have such a model: it has no "
            f"{', '.join(unknown)}"
        )
    own = {name: tuple(array.shape) for name, array in named_arrays(checkpoint.model.parameters())}
    twin = replace(config, swiglu_multiple=256)  # type: ignore[call-arg]
    theirs = build_model(twin, checkpoint.spec)
    for name, array in named_arrays(theirs.parameters()):
        if own[name] != tuple(array.shape):
            raise CheckpointError(
                f"{checkpoint.path}: the reference cannot have such a model: with its "
                f"swiglu_multiple of 256, {name} would be {tuple(array.shape)}, not {own[name]}"
            )


def _upstream_arrays(model: RecursiveModel, dtype: str, prefix: str) -> Dict[str, mx.array]:
    """Give a model's arrays under the reference's names and in its dtypes."""
    arrays = {}
    for name, array in named_arrays(model.parameters()):
        if dtype != "reference":
            array = array.astype(DTYPES[dtype])
        elif name in model.initial_names:
            array = _initial_state(model.config, array)
        arrays[prefix + name] = array
    mx.eval(arrays)
    return arrays


def _initial_state(config: ModelConfig, array: mx.array) -> mx.array:
    """Give an initial state in ``forward_dtype``, as the reference keeps it.

    Where that is ``auto`` it is bfloat16, the reference's default, unless that would lose bits.
    """
    named = getattr(config, "forward_dtype")
    if named != "auto":
        return array.astype(DTYPES[named])
    rounded = array.astype(mx.bfloat16)
    same = bool(mx.all(rounded.astype(array.dtype) == array).item())
    return rounded if same else array


def _torch() -> Any:
    try:
        import torch  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError(
            "--to-upstream: a .pt file is written by torch, which is not installed; write a "
            ".safetensors file, or pip install torch"
        ) from error
    return torch


def _tensors(torch: Any, arrays: Mapping[str, mx.array]) -> Dict[str, Any]:
    """Turn arrays into torch's tensors, bit by bit."""
    import numpy as np

    tensors = {}
    for name, array in arrays.items():
        if array.dtype == mx.bfloat16:
            bits = np.array(array.view(mx.uint16)).view(np.int16)
            tensors[name] = torch.from_numpy(bits).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(np.array(array))
    return tensors
