"""Checkpoints of the reference: read into a model or a run folder, and written back.

A file of ``torch.save`` (of either layout) or safetensors is read without torch and without running
anything in it. Settings that the configuration leaves open are taken from the weights; where it
contradicts them, everything that differs is named. A checkpoint of the reference holds one set of
weights, the averaged ones where its run kept an average.

Reference: pretrain.py ``save_train_state``, ``load_checkpoint``.
"""

import json
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

import mlx.core as mx

from mlx_trm.config.loading import (
    ExperimentConfig,
    ModelConfig,
    config_from_dict,
    config_to_dict,
    load_config,
)
from mlx_trm.errors import CheckpointError, ConfigError, listed, shown
from mlx_trm.models import RecursiveModel, build_model, named_arrays
from mlx_trm.runs.checkpoint import (
    CONFIG,
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from mlx_trm.runs.folder import RunLock, prepare_run_dir
from mlx_trm.upstream.names import (
    from_upstream_names,
    load_weights,
    read_safetensors,
    strip_prefix,
    upstream_settings,
)
from mlx_trm.upstream.settings import UPSTREAM_MODELS, completed_config, declared_settings

LOG = logging.getLogger(__name__)

WRAPPERS = {"compiled": "_orig_mod.model.inner.", "plain": "model.inner.", "inner": "inner."}
_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@dataclass
class UpstreamCheckpoint:
    """A checkpoint of the reference, read and checked.

    Attributes:
        model: in evaluation mode, holding the weights.
        config: the configuration with what the weights say.
        step: supervision steps behind it, as far as the file tells; else 0.
        taken: settings taken from the weights or from what stands beside them.
    """

    model: RecursiveModel
    config: ExperimentConfig
    step: int
    taken: Dict[str, Any]


def load_upstream_checkpoint(
    path: Union[str, "os.PathLike[str]"],
    config: Union[str, "os.PathLike[str]", ExperimentConfig],
    overrides: Sequence[str] = (),
) -> RecursiveModel:
    """Load a checkpoint of the reference (or HRM's) into a model.

    Args:
        path: a file of ``torch.save``, or safetensors.
        config: of its task and model: a YAML file, the name of a packaged one, or a configuration.
        overrides: such as ``model.num_heads=4``, where ``config`` is loaded from a file.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: if the file cannot be read, or its weights are not the model's.
        ConfigError: if the configuration cannot be used.
    """
    if not isinstance(config, ExperimentConfig):
        config = load_config(config, overrides)
    elif overrides:
        config = config_from_dict(config_to_dict(config), "configuration", overrides)
    return open_upstream(Path(path), config).model


def read_upstream(path: Path) -> Tuple[Dict[str, mx.array], Dict[str, str]]:
    """Read the arrays of a reference's checkpoint, and the metadata where the file has any.

    Raises:
        CheckpointError: saying in one line why not.
    """
    from mlx_trm.upstream.torch_files import (  # zip archives: for these files only
        ZIP_MAGIC,
        read_torch,
    )

    if path.is_dir():
        raise CheckpointError(
            f"{path}: is a folder; name the checkpoint file, such as step_N in it"
        )
    try:
        if path.exists() and not path.is_file():  # a pipe, which would be waited for
            raise CheckpointError(f"{path}: is no regular file; name the checkpoint file")
        with path.open("rb") as file:
            start = file.read(9)
        safetensors = start[8:] == b"{" or path.suffix == ".safetensors"
        if safetensors and not start.startswith(ZIP_MAGIC):
            return read_safetensors(path)
        return read_torch(path), {}
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is no checkpoint that can be used: {error}") from error


def open_upstream(path: Path, config: ExperimentConfig) -> UpstreamCheckpoint:
    """Read a checkpoint of the reference and build its model.

    Args:
        path: of the file.
        config: what it leaves open is taken from the weights.

    Raises:
        CheckpointError: if the file cannot be read, or its weights are not the model's.
        ConfigError: if the configuration cannot be used.
    """
    arrays, metadata = read_upstream(path)
    _check_floats(path, arrays)
    shapes = {strip_prefix(name): tuple(array.shape) for name, array in arrays.items()}
    if len(shapes) < len(arrays):
        raise CheckpointError(f"{path}: holds weights twice, under the names of two wrappers")
    completed = completed_config(path, config, shapes, declared_settings(path, metadata))
    vars(completed.config)["_stem"] = config.stem
    model = build_model(completed.config.model, completed.spec, seed=config.seed)
    load_weights(model, from_upstream_names(arrays), str(path))
    if completed.untold:
        LOG.warning(
            "%s: weights do not show, and the configuration leaves at its defaults: %s; name them "
            "if it was trained with others",
            path,
            ", ".join(completed.untold),
        )
    model.eval()
    return UpstreamCheckpoint(model, completed.config, _step(path, metadata), completed.taken)


def convert_upstream(
    path: Path, config: ExperimentConfig, output: Path, step: Optional[int] = None
) -> Tuple[Path, UpstreamCheckpoint]:
    """Write a checkpoint of the reference as a run folder.

    Args:
        path: of the file.
        config: see :func:`open_upstream`.
        output: the run folder; made, or an empty one.
        step: of the checkpoint; None: what the file's name or metadata say, else 0.

    Returns:
        The checkpoint's folder in it, and what was read.

    Raises:
        CheckpointError: if the file cannot be read or used, or the run cannot be written.
        ConfigError: if the configuration or the folder cannot be used.
    """
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"--output {output}: is not empty; name a new folder")
    source = open_upstream(path, config)
    values = {**config_to_dict(source.config), "run_dir": str(output)}
    run_config = config_from_dict(values, str(path))
    made = not output.exists()
    lock = None
    try:
        _, lock = prepare_run_dir(run_config)
        number = source.step if step is None else step
        written = save_checkpoint(output, source.model, run_config, number)
    except BaseException:
        _remove_rests(output, lock, made)
        raise
    lock.release()
    return written, source


def export_upstream(
    run: Union[str, Path],
    target: Path,
    weights: str = "ema",
    dtype: str = "reference",
    names: str = "compiled",
) -> Checkpoint:
    """Write a run's weights under the reference's names, as its ``load_state_dict`` takes them.

    Args:
        run: a run folder or a checkpoint folder.
        target: ``.safetensors``, or ``.pt``, which needs torch; replaced whole or not at all.
        weights: ``ema`` (what the reference saves) or ``raw``.
        dtype: ``reference``: float32, and the initial states as ``forward_dtype``; or one dtype for
            everything, which rounds.
        names: which wrappers stand before a name, a key of :data:`WRAPPERS`.

    Returns:
        The checkpoint that was read.

    Raises:
        CheckpointError: if the run cannot be read, or the reference has no such model.
        ConfigError: if the target cannot be written.
    """
    if target.suffix not in (".safetensors", ".pt"):
        raise ConfigError(f"--to-upstream {target}: name a file that ends in .safetensors or .pt")
    torch = _torch() if target.suffix == ".pt" else None
    checkpoint = load_checkpoint(run, weights=weights)
    _check_exportable(checkpoint)
    arrays = _upstream_arrays(checkpoint.model, dtype, WRAPPERS[names])
    settings = upstream_settings(checkpoint.config.model, checkpoint.spec)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        if torch is None:
            metadata = {"format": "pt", "step": str(checkpoint.step)}
            metadata["config"] = json.dumps(settings)
            mx.save_safetensors(str(temporary), arrays, metadata)
        else:
            torch.save(_tensors(torch, arrays), str(temporary))
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--to-upstream {target}: cannot be written ({reason})") from error
    finally:
        if temporary.exists():
            temporary.unlink()
    return checkpoint


# Reading -----------------------------------------------------------------------------------------


def _check_floats(path: Path, arrays: Mapping[str, mx.array]) -> None:
    problems = [
        f"{shown(name)} is {str(array.dtype).rpartition('.')[2] if array.size else 'empty'}"
        for name, array in arrays.items()
        if not array.size or array.dtype not in _DTYPES.values()
    ]
    if problems or not arrays:
        raise CheckpointError(
            f"{path}: is no state dict of weights (float32, bfloat16 or float16): "
            f"{listed(problems) or 'it is empty'}"
        )


def _step(path: Path, metadata: Mapping[str, str]) -> int:
    """Read the step from the metadata or from a name such as step_1234; 0 where neither has it."""
    match = re.fullmatch(r"(?:.*[_-])?step[_-]?(\d{1,15})", path.stem)
    told = metadata.get("step", match.group(1) if match else "0")
    return int(told) if re.fullmatch(r"\d{1,15}", told) else 0


def _remove_rests(run: Path, lock: Optional[RunLock], made: bool) -> None:
    """Take away what a failed conversion left in a folder that was empty, or that it ``made``."""
    try:
        with suppress(ConfigError, CheckpointError):  # another process works in the folder
            lock = lock or RunLock(run)
            if not list_checkpoints(run):
                for name in (CONFIG, ".lock"):
                    (run / name).unlink(missing_ok=True)
                if made:
                    run.rmdir()
    except OSError as error:
        LOG.warning("%s: cannot be removed (%s)", run, error.strerror)
    finally:
        if lock is not None:
            lock.release()


# Writing -----------------------------------------------------------------------------------------


def _check_exportable(checkpoint: Checkpoint) -> None:
    """Refuse models that the reference has not, or not in this size."""
    config = checkpoint.config.model
    if config.name not in UPSTREAM_MODELS:
        raise CheckpointError(
            f"{checkpoint.path}: the reference has no model {config.name!r} (it has: "
            f"{', '.join(UPSTREAM_MODELS)})"
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
            array = array.astype(_DTYPES[dtype])
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
        return array.astype(_DTYPES[named])
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
