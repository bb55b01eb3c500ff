"""Checkpoints of the reference, read into a model or a run folder.

A file of ``torch.save`` (of either layout) or safetensors is read without torch and without running
anything in it. Settings that the configuration leaves open are taken from the weights; where it
contradicts them, everything that differs is named. A checkpoint of the reference holds one set of
weights, the averaged ones where its run kept an average.

Reference: pretrain.py ``save_train_state``, ``load_checkpoint``.
"""

import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

import mlx.core as mx

from mlx_trm.config.loading import config_from_dict, config_to_dict, load_config
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import CheckpointError, ConfigError, listed, shown
from mlx_trm.models import RecursiveModel, build_model
from mlx_trm.models.base import DTYPES
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.runs.folder import RunLock, prepare_run_dir
from mlx_trm.runs.layout import CONFIG, list_checkpoints
from mlx_trm.runs.weights import load_weights, read_safetensors
from mlx_trm.upstream.names import from_upstream_names, strip_prefix
from mlx_trm.upstream.settings import completed_config, declared_settings

LOG = logging.getLogger(__name__)


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
    resolved = replace(completed.config, origin=config.stem)
    model = build_model(resolved.model, completed.spec, seed=config.seed)
    load_weights(model, from_upstream_names(arrays), str(path))
    if completed.untold:
        LOG.warning(
            "%s: weights do not show, and the configuration leaves at its defaults: %s; name them "
            "if it was trained with others",
            path,
            ", ".join(completed.untold),
        )
    model.eval()
    return UpstreamCheckpoint(model, resolved, _step(path, metadata), completed.taken)


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


def _check_floats(path: Path, arrays: Mapping[str, mx.array]) -> None:
    problems = [
        f"{shown(name)} is {str(array.dtype).rpartition('.')[2] if array.size else 'empty'}"
        for name, array in arrays.items()
        if not array.size or array.dtype not in DTYPES.values()
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
