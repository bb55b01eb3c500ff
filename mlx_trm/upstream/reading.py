"""Checkpoints of the reference, read into a model or a run folder.

A file of ``torch.save`` (of either layout) or safetensors is read without torch and without running
anything in it. Settings that the configuration leaves open are taken from the weights; where it
contradicts them, everything that differs is named. A checkpoint of the reference holds one set of
weights, the averaged ones where its run kept an average; of a file that holds several, one is
named. A source that begins with ``hf:`` is downloaded from Hugging Face.

Reference: pretrain.py ``save_train_state``, ``load_checkpoint``.
"""

import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import mlx.core as mx

from mlx_trm.config.loading import config_from_dict, config_to_dict, load_config, save_config
from mlx_trm.config.plugins import keep_copies
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.datasets.hub import PREFIX, download_checkpoint
from mlx_trm.errors import CheckpointError, ConfigError, describe_error, listed, shown
from mlx_trm.models import RecursiveModel, build_model, named_arrays
from mlx_trm.models.base import DTYPES
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.runs.layout import CONFIG
from mlx_trm.runs.weights import count_nonfinite, load_weights, read_safetensors
from mlx_trm.system.files import new_folder
from mlx_trm.upstream.names import (
    Leaf,
    choose_weights,
    from_upstream_names,
    preset_of,
    strip_prefix,
)
from mlx_trm.upstream.settings import completed_config, declared_settings, preset_config

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadOptions:
    """What is read, where the file alone does not decide it.

    Attributes:
        entry: where in the file the weights are, such as ``ema``; None: the one set there is.
        preset: of ``presets.yaml``, where no configuration is given; None: that of the source, or
            what the weights are like.
        overrides: of the preset.
        progress: show bars on standard error where something is downloaded.
    """

    entry: Optional[str] = None
    preset: Optional[str] = None
    overrides: Sequence[str] = ()
    progress: bool = False


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
    config: Union[str, "os.PathLike[str]", ExperimentConfig, None] = None,
    overrides: Sequence[str] = (),
    entry: Optional[str] = None,
) -> RecursiveModel:
    """Load a checkpoint of the reference (or HRM's) into a model.

    Args:
        path: a file of ``torch.save``, or safetensors; ``hf:OWNER/NAME[@REVISION][:FILE]`` is
            downloaded first.
        config: of its task and model: a YAML file, the name of a packaged one, or a configuration;
            None for published checkpoints, whose settings are known.
        overrides: such as ``model.num_heads=4``, where ``config`` is loaded from a file.
        entry: where in the file the weights are, if it holds several sets.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: if the file cannot be read, or its weights are not the model's.
        ConfigError: if the configuration cannot be used.
    """
    options = ReadOptions(entry, overrides=overrides if config is None else ())
    if isinstance(config, ExperimentConfig) and overrides:
        config = config_from_dict(config_to_dict(config), "configuration", overrides)
    elif config is not None and not isinstance(config, ExperimentConfig):
        config = load_config(config, overrides)
    return open_upstream(path, config, options).model


def locate(
    source: Union[str, "os.PathLike[str]"], options: ReadOptions = ReadOptions()
) -> Tuple[Path, ReadOptions, List[str]]:
    """Give the file that a source means, downloaded where it is one of Hugging Face.

    Args:
        source: a path, or ``hf:OWNER/NAME[@REVISION][:FILE]``.
        options: what is to be read of it.

    Returns:
        The file, the options with the preset of a published one, and lines that say what it is.

    Raises:
        CheckpointError: in one line, if it cannot be downloaded.
        ConfigError: if the library that downloads is not installed.
    """
    text = os.fspath(source)
    if not text.startswith(PREFIX):
        return Path(text), options, []
    found = download_checkpoint(text, progress=options.progress)
    preset = options.preset or preset_of(found.repository, found.file)
    note = f"{found.repository}, {found.file} of the commit {found.revision}"
    return Path(found.path), replace(options, preset=preset), [note]


def read_upstream(
    path: Path, entry: Optional[str] = None
) -> Tuple[Dict[str, mx.array], Dict[str, str]]:
    """Read the arrays of a reference's checkpoint, and the metadata where the file has any.

    Args:
        path: of the file.
        entry: where in it the weights are; None: the one set there is.

    Raises:
        CheckpointError: saying in one line why not.
    """
    arrays, metadata, notes = _read(path, entry)
    for note in notes:
        LOG.info("%s: %s", path, note)
    return arrays, metadata


def _read(
    path: Path, entry: Optional[str]
) -> Tuple[Dict[str, mx.array], Dict[str, str], List[str]]:
    """Do the work of :func:`read_upstream`; the notes are said when all has gone well."""
    from mlx_trm.upstream.torch_files import (  # zip archives: for these files only
        ZIP_MAGIC,
        open_torch,
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
            found, metadata = read_safetensors(path)
            chosen = choose_weights([Leaf((), *item) for item in found.items()], entry)
            arrays, notes = chosen.values, chosen.notes
        else:
            arrays, metadata, notes = open_torch(path, entry)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is no checkpoint that can be used: {error}") from error
    return arrays, metadata, notes


def open_upstream(
    path: Union[str, "os.PathLike[str]"],
    config: Optional[ExperimentConfig] = None,
    options: ReadOptions = ReadOptions(),
) -> UpstreamCheckpoint:
    """Read a checkpoint of the reference and build its model.

    Args:
        path: of the file, or ``hf:OWNER/NAME[@REVISION][:FILE]``.
        config: what it leaves open is taken from the weights; None: that of a published checkpoint.
        options: what is read.

    Raises:
        CheckpointError: if the file cannot be read, or its weights are not the model's.
        ConfigError: if the configuration cannot be used.
    """
    file, options, notes = locate(path, options)
    arrays, metadata, chosen = _read(file, options.entry)
    notes += chosen
    _check_floats(file, arrays)
    shapes = {strip_prefix(name): tuple(array.shape) for name, array in arrays.items()}
    if len(shapes) < len(arrays):
        raise CheckpointError(
            f"{file}: holds weights twice, under the names of two wrappers; choose with --entry "
            "NAME, the beginning of the names to take"
        )
    wrong = find_nonfinite(arrays)
    if wrong:
        raise CheckpointError(
            f"{file}: holds NaN or infinity: {listed(wrong)}; its training went wrong, so use an "
            "earlier checkpoint"
        )
    where, declared = declared_settings(file, metadata)
    if config is None:
        config = preset_config(file, shapes, declared, options.preset, options.overrides, notes)
    completed = completed_config(file, config, shapes, (where, declared))
    resolved = replace(completed.config, origin=config.stem)
    model = build_model(resolved.model, completed.spec, seed=config.seed)
    _put_weights(file, model, arrays)
    for note in notes:
        LOG.info("%s: %s", file, note)
    if completed.untold:
        LOG.warning(
            "%s: weights do not show, and the configuration leaves at its defaults: %s; name them "
            "if it was trained with others",
            file,
            ", ".join(completed.untold),
        )
    model.eval()
    return UpstreamCheckpoint(model, resolved, _step(file, metadata), completed.taken)


def _put_weights(path: Path, model: RecursiveModel, arrays: Dict[str, mx.array]) -> None:
    """Put arrays into a model, one by one, so that no table is held twice; empties ``arrays``."""
    named: Dict[str, mx.array] = {}
    for name in list(arrays):
        named.update(from_upstream_names({name: arrays.pop(name)}))
        mx.eval(named)
    missing = [name for name in model.initial_names if name not in named]
    if missing and getattr(model.config, "start", "fixed") == "random":
        own = dict(named_arrays(model.parameters()))
        named.update({name: own[name] for name in missing})
        LOG.warning(
            "%s: has no %s, since its model starts at random (model.start); they are drawn anew, "
            "and solve and evaluate draw a start for each puzzle with --start random",
            path,
            ", ".join(missing),
        )
    load_weights(model, named, str(path))


def find_nonfinite(arrays: Mapping[str, mx.array]) -> List[str]:
    """Name the arrays in which a number is NaN or infinite.

    Args:
        arrays: of floats, by name.

    Returns:
        Such as ``lm_head.weight (3 of 5632 numbers)``, one of each such array.
    """
    found = []
    for name, array in arrays.items():
        count = count_nonfinite(array)
        if count:
            found.append(f"{shown(name)} ({count} of {array.size} numbers)")
    return found


def convert_upstream(
    path: Union[str, "os.PathLike[str]"],
    config: Optional[ExperimentConfig],
    output: Path,
    step: Optional[int] = None,
    options: ReadOptions = ReadOptions(),
) -> Tuple[Path, UpstreamCheckpoint]:
    """Write a checkpoint of the reference as a run folder.

    Args:
        path: see :func:`open_upstream`.
        config: see :func:`open_upstream`.
        output: the run folder; made, or an empty one.
        step: of the checkpoint; None: what the file's name or metadata say, else 0.
        options: see :func:`open_upstream`.

    Returns:
        The checkpoint's folder in it, and what was read.

    Raises:
        CheckpointError: if the file cannot be read or used, or the run cannot be written.
        ConfigError: if the configuration or the folder cannot be used.
    """
    if output.is_dir() and any(output.iterdir()):  # said before anything is downloaded
        raise ConfigError(f"--output {output}: is not empty; name a new folder")
    source = open_upstream(path, config, options)
    values = {**config_to_dict(source.config), "run_dir": str(output)}
    run_config = config_from_dict(values, str(path))
    number = source.step if step is None else step
    with new_folder(output) as place:
        try:
            save_config(run_config, place / CONFIG)
            keep_copies(run_config.plugins, place)
            name = save_checkpoint(place, source.model, run_config, number).name
        except (OSError, CheckpointError) as error:
            reason = describe_error(error.__cause__ or error)
            raise CheckpointError(
                f"{output}: the run could not be written ({reason}); free some space or name "
                "another folder"
            ) from error
    return output / name, source


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
