"""A run's newest checkpoint in small pieces, to go on with it on another machine.

A *pack* is a folder: ``manifest.json``, and the files of the checkpoint and the log in pieces of at
most 16 MB, each with its SHA-256. The optimiser's moments are rounded to bfloat16, which halves
them; weights, average, puzzle table and carry stay as they are. So a run that goes on from a pack
is no run to the bit: its moments differ by up to 0.4 % from those it stopped with.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, NamedTuple, Tuple, Union

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_trm.config.loading import config_from_dict, config_to_dict, load_config, save_config
from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import CheckpointError, ConfigError, describe_error, shown
from mlx_trm.models import build_model
from mlx_trm.runs.checkpoint import (
    TrainingState,
    read_arrays,
    save_checkpoint,
    verify_checkpoint,
)
from mlx_trm.runs.layout import (
    AVERAGE,
    CARRY,
    CONFIG,
    METRICS,
    MODEL,
    OPTIMIZER,
    ROW_NAMES,
    find_checkpoint,
)
from mlx_trm.runs.progress import RunProgress
from mlx_trm.runs.weights import load_weights
from mlx_trm.system.files import flush, new_folder, write_json

MANIFEST = "manifest.json"
PACK_FORMAT = 1
PIECE = 16_000_000
_READ = 1 << 20
_NEEDED = (MODEL, OPTIMIZER, CARRY, CONFIG)
_FILES = (*_NEEDED, AVERAGE, ROW_NAMES, METRICS)
# A manifest takes about 120 bytes a piece: so many are 160 GB.
_MOST_PIECES, _LARGEST_MANIFEST = 10_000, 1 << 22


class Pack(NamedTuple):
    """A pack that was written or read.

    Attributes:
        folder: where it is, or the run that was made of it.
        step: of the checkpoint.
        pieces: how many.
        size: of all pieces, in bytes.
    """

    folder: Path
    step: int
    pieces: int
    size: int


def pack_checkpoint(run: Union[str, Path], folder: Union[str, Path]) -> Pack:
    """Pack a run's newest checkpoint.

    Args:
        run: a run folder, whose newest checkpoint is taken, or a checkpoint folder.
        folder: to write; made, or an empty one. What fails leaves nothing there.

    Returns:
        What was written.

    Raises:
        CheckpointError: if there is no whole checkpoint that can be resumed, or it cannot be read.
        ConfigError: if the folder cannot be used.
    """
    source, target = find_checkpoint(run).resolve(), Path(folder)
    state = verify_checkpoint(source)
    if state.get("progress") is None or not set(_NEEDED) <= {*state["sha256"], CONFIG}:
        raise CheckpointError(
            f"{source}: holds weights only and cannot be resumed; copy the folder instead"
        )
    progress = RunProgress.read(dict(state["progress"]))
    lines = progress.log["lines"] if progress.log else 0
    with new_folder(target) as place:
        about: Dict[str, Any] = {}
        try:
            for name in _FILES:
                if name == METRICS:
                    _write_log(source.parent / METRICS, lines, place / f".{METRICS}")
                    about[name] = _split(place / f".{METRICS}", place, name)
                    (place / f".{METRICS}").unlink()
                elif name == OPTIMIZER:
                    rounded = _rounded(read_arrays(source / OPTIMIZER))
                    mx.save_safetensors(str(place / f".{OPTIMIZER}"), rounded)
                    about[name] = _split(place / f".{OPTIMIZER}", place, name)
                    (place / f".{OPTIMIZER}").unlink()
                elif (source / name).is_file():
                    about[name] = _split(source / name, place, name)
            manifest = {
                "pack": PACK_FORMAT,
                "step": state["step"],
                "spec": state["spec"],
                "progress": state["progress"],
                "moments": "bfloat16",
                "files": about,
            }
            write_json(place / MANIFEST, manifest)
            flush(place)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{target}: the pack could not be written ({describe_error(error)}); free some "
                "space or name another folder"
            ) from error
    return _summary(target, state["step"], about)


def unpack_checkpoint(
    folder: Union[str, Path], run: Union[str, Path], allow_plugins: bool = False
) -> Pack:
    """Make a run folder of a pack, which ``train --resume`` goes on with.

    Args:
        folder: of the pack.
        run: the run folder to make; made, or an empty one. What fails leaves nothing there.
        allow_plugins: import the modules that its configuration names, which runs their code.

    Returns:
        What was read.

    Raises:
        CheckpointError: if a piece is missing, damaged or too much, or makes no checkpoint.
        ConfigError: if the run folder cannot be used.
    """
    source, target = Path(folder), Path(run)
    manifest = _read_manifest(source)
    files: Dict[str, Any] = manifest["files"]
    with new_folder(target) as place:
        parts = place / ".parts"
        try:
            parts.mkdir()
            for name, pieces in files.items():
                _join(source, pieces, parts / name)
            config = load_config(parts / CONFIG, allow_plugins=allow_plugins, folder=source)
            values = {**config_to_dict(config), "run_dir": str(target)}
            config = config_from_dict(values, str(source), folder=source)
            spec = TaskSpec.read(dict(manifest["spec"]))
            model = build_model(config.model, spec, seed=config.seed)
            load_weights(model, read_arrays(parts / MODEL), str(source / MODEL))
            average = read_arrays(parts / AVERAGE) if AVERAGE in files else None
            moments = {
                name: array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
                for name, array in read_arrays(parts / OPTIMIZER).items()
            }
            training = TrainingState(moments, read_arrays(parts / CARRY), manifest["progress"])
            names = (parts / ROW_NAMES).read_bytes() if ROW_NAMES in files else None
            tree = None if average is None else tree_unflatten(list(average.items()))
            os.replace(parts / METRICS, place / METRICS)
            save_config(config, place / CONFIG)
            save_checkpoint(place, model, config, manifest["step"], tree, training, names)
            shutil.rmtree(parts)
        except ConfigError as error:
            said = str(error).replace(f"{parts}{os.sep}", "")  # a place that nobody knows
            raise CheckpointError(f"{source}: its configuration cannot be used: {said}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{source}: makes no run ({describe_error(error)}); pack the run again"
            ) from error
    return _summary(target, manifest["step"], files)


# Pieces ------------------------------------------------------------------------------------------


def _summary(folder: Path, step: int, files: Dict[str, Any]) -> Pack:
    sizes = [piece["size"] for pieces in files.values() for piece in pieces]
    return Pack(folder, step, len(sizes), sum(sizes))


def _rounded(arrays: Dict[str, mx.array]) -> Dict[str, mx.array]:
    """Round moments to bfloat16; rates and counts, which are single numbers, stay."""
    return {
        name: array.astype(mx.bfloat16) if array.dtype == mx.float32 and array.size > 1 else array
        for name, array in arrays.items()
    }


def _write_log(log: Path, lines: int, target: Path) -> None:
    """Write the lines of a log that a checkpoint has behind it."""
    found = 0
    with target.open("wb") as file:
        if lines:
            with log.open("rb") as content:
                for found, line in enumerate(content, 1):
                    file.write(line)
                    if found == lines:
                        break
    if found < lines:
        raise CheckpointError(
            f"{log}: has {found} lines, and the checkpoint says {lines}; pack an older checkpoint"
        )


def _split(path: Path, folder: Path, name: str) -> List[Dict[str, Any]]:
    """Write a file as pieces; an empty one has none."""
    pieces: List[Dict[str, Any]] = []
    with path.open("rb") as file:
        while True:
            piece = folder / f"{name}.{len(pieces):05d}"
            size, digest = _copy(file, piece)
            if size == 0:
                piece.unlink()
                return pieces
            pieces.append({"name": piece.name, "size": size, "sha256": digest})


def _copy(file: BinaryIO, target: Path) -> Tuple[int, str]:
    """Write the next piece of a file; give its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as out:
        while size < PIECE:
            content = file.read(min(_READ, PIECE - size))
            if not content:
                break
            out.write(content)
            digest.update(content)
            size += len(content)
    flush(target)
    return size, digest.hexdigest()


def _join(folder: Path, pieces: List[Dict[str, Any]], target: Path) -> None:
    """Put a file together of its pieces, each of which is checked."""
    with target.open("wb") as out:
        for piece in pieces:
            path, digest, left = folder / piece["name"], hashlib.sha256(), piece["size"]
            if not path.is_file():
                raise CheckpointError(f"{path}: missing; copy the whole pack again")
            if path.stat().st_size != left:
                raise CheckpointError(
                    f"{path}: has {path.stat().st_size} bytes, the manifest says {left}; copy it "
                    "again"
                )
            with path.open("rb") as file:
                while left:
                    content = file.read(min(_READ, left))
                    if not content:
                        break
                    out.write(content)
                    digest.update(content)
                    left -= len(content)
            if digest.hexdigest() != piece["sha256"]:
                raise CheckpointError(
                    f"{path}: its SHA-256 differs from the manifest's; copy it again"
                )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_manifest(folder: Path) -> Dict[str, Any]:
    """Read a manifest, strictly: names that are no piece's would be read from anywhere."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise ValueError("it is too large")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["pack"] != PACK_FORMAT:
            raise ValueError(f"format {shown(manifest['pack'])}, read is {PACK_FORMAT}")
        if not _is_whole(manifest["step"]):
            raise ValueError("step is no whole number from 0 up")
        files = manifest["files"]
        unknown = sorted(set(files) - set(_FILES))
        missing = [name for name in (*_NEEDED, METRICS) if name not in files]
        if unknown or missing:
            raise ValueError(f"files: {shown(unknown + missing)}")
        if sum(map(len, files.values())) > _MOST_PIECES:
            raise ValueError("too many pieces")
        for name, pieces in files.items():
            for number, piece in enumerate(pieces):
                good = piece["name"] == f"{name}.{number:05d}"
                good = good and _is_whole(piece["size"]) and 0 < piece["size"] <= PIECE
                if not good or not re.fullmatch("[0-9a-f]{64}", piece["sha256"]):
                    raise ValueError(f"piece {number} of {name} makes no sense")
        RunProgress.read(dict(manifest["progress"]))
        TaskSpec.read(dict(manifest["spec"]))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); name the folder of a pack"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is no manifest of a pack ({describe_error(error)}); copy it again"
        ) from error
    return dict(manifest)
