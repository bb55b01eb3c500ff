"""Checkpoints on disk: whole or absent, and checked when they are read.

A run folder holds ``config.yaml``, ``metrics.jsonl``, checkpoints ``step_N`` and a link ``latest``
to the newest; ``best`` is a link to the one with the best evaluation. A checkpoint holds
``model.safetensors`` (the raw weights, the puzzle table and the initial states),
``ema.safetensors`` where an average is kept, ``optimizer.safetensors`` and ``carry.safetensors``
to go on from, ``identifiers.json.gz`` where the puzzle table's rows have names
(:mod:`mlx_trm.datasets.names`), ``config.yaml``, and ``state.json`` (:mod:`mlx_trm.runs.state`). It
is written to a temporary folder, flushed to the disk and renamed, so a killed run leaves no half a
checkpoint. Where there are no links, ``latest`` and ``best`` are text files that name the folder.
There is no random state: every draw follows from the seed and the step.

Differs from reference: there a checkpoint is one torch pickle of the weights, and with EMA on of
the EMA weights only.
"""

import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

import mlx.core as mx

from mlx_trm.config.loading import load_config, save_config
from mlx_trm.config.sections import ExperimentConfig, TaskSpec
from mlx_trm.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    UnreadableError,
    describe_device_problem,
    describe_error,
)
from mlx_trm.models import RecursiveModel, build_model, named_arrays
from mlx_trm.models.base import Tree
from mlx_trm.runs.layout import (
    AVERAGE,
    CARRY,
    CONFIG,
    FORMAT_VERSION,
    LATEST,
    MODEL,
    OPTIMIZER,
    ROW_NAMES,
    STATE,
    find_checkpoint,
    is_there,
    list_checkpoints,
    unreadable,
)
from mlx_trm.runs.state import read_state, write_state
from mlx_trm.runs.weights import check_finite, load_weights, read_safetensors
from mlx_trm.system.environment import reserve_descriptors
from mlx_trm.system.files import flush, hash_file, owner_name, point_link

# What MLX says where a file cannot be opened or written.
_OF_THE_DISK = re.compile("(?i)open|write|writing|written|space|disk")


class TrainingState(NamedTuple):
    """What training needs besides the weights to go on as if it had never stopped.

    Attributes:
        optimizer: its arrays by dotted name.
        carry: the carry's arrays, (B, ...), by name.
        progress: where the run is in its data and its log; plain values, as JSON has them.
    """

    optimizer: Dict[str, mx.array]
    carry: Dict[str, mx.array]
    progress: Dict[str, Any]


@dataclass
class Checkpoint:
    """A model read from disk, with what is known about it.

    Attributes:
        model: in evaluation mode, holding the weights asked for.
        config: the resolved configuration of its run.
        spec: the dimensions it was trained with.
        step: supervision steps of training behind it.
        path: the checkpoint folder.
        weights: ``ema`` or ``raw``, which of the two the model holds.
    """

    model: RecursiveModel
    config: ExperimentConfig
    spec: TaskSpec
    step: int
    path: Path
    weights: str


def save_checkpoint(
    run_dir: Union[str, Path],
    model: RecursiveModel,
    config: ExperimentConfig,
    step: int,
    average: Optional[Tree] = None,
    training: Optional[TrainingState] = None,
    row_names: Optional[bytes] = None,
) -> Path:
    """Write ``run_dir/step_N`` and point ``latest`` at it.

    Args:
        run_dir: the run folder; made where it is not there.
        model: its raw weights, puzzle table and initial states are written.
        config: the resolved configuration.
        step: N. A whole checkpoint of this step that is there already is replaced.
        average: the EMA of the trained weights, where one is kept.
        training: what a resumed run needs; without it the checkpoint cannot be resumed.
        row_names: of the puzzle table, packed.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: if the disk does not take it; earlier checkpoints stay as they were.
    """
    run = Path(run_dir)
    target = run / f"step_{step}"
    temporary = run / f".step_{step}.tmp-{owner_name()}"
    aside = run / f".step_{step}.old-{owner_name()}"
    reserve_descriptors()
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        mx.save_safetensors(str(temporary / MODEL), dict(named_arrays(model.parameters())))
        if average is not None:
            mx.save_safetensors(str(temporary / AVERAGE), dict(named_arrays(average)))
        if training is not None:
            mx.save_safetensors(str(temporary / OPTIMIZER), training.optimizer)
            mx.save_safetensors(str(temporary / CARRY), training.carry)
        if row_names is not None:
            (temporary / ROW_NAMES).write_bytes(row_names)
        save_config(config, temporary / CONFIG)
        state = {
            "format": FORMAT_VERSION,
            "step": step,
            "spec": asdict(model.spec),
            "progress": None if training is None else training.progress,
            "sha256": {path.name: hash_file(path) for path in sorted(temporary.iterdir())},
        }
        write_state(temporary, state)
        for path in temporary.iterdir():
            flush(path)
        flush(temporary)
        if target.exists():
            os.replace(target, aside)
        os.replace(temporary, target)
        point_link(run / LATEST, target.name)
        flush(run)
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_written(target, error) from error
    finally:
        if aside.exists() and not target.exists():
            os.replace(aside, target)
        for rest in (temporary, aside):
            shutil.rmtree(rest, ignore_errors=True)
    return target


def _not_written(target: Path, error: Exception) -> CheckpointError:
    """Word what went wrong while a checkpoint was saved: the disk, the device, or something else.

    MLX computes what is saved, and has RuntimeErrors for all of these.
    """
    advice, reason = "", describe_device_problem(error)
    if isinstance(error, OSError) or _OF_THE_DISK.search(str(error)):
        advice, reason = "; free some space or choose another run_dir", describe_error(error)
    reason = reason or f"{type(error).__name__}: {describe_error(error)}"
    return CheckpointError(
        f"{target}: the checkpoint could not be written ({reason}); "
        f"earlier checkpoints are untouched{advice}"
    )


def load_checkpoint(
    path: Union[str, Path], weights: str = "ema", allow_plugins: bool = False
) -> Checkpoint:
    """Read a model from a run folder or a checkpoint folder.

    Args:
        path: a run folder (its ``latest`` is taken) or a checkpoint folder.
        weights: ``ema`` for the averaged weights where there are any, ``raw`` for the others.
        allow_plugins: whether the code that its configuration names may run (docs/security.md).

    Returns:
        The checkpoint, its model in evaluation mode.

    Raises:
        CheckpointError: if there is none, a file is damaged, weights do not fit the model, or it
            names plugins that are neither allowed nor loaded.
        ValueError: if ``weights`` is neither ``ema`` nor ``raw``.
    """
    folder, state, averaged = open_checkpoint(path, weights)
    try:
        config = load_config(folder / CONFIG, allow_plugins=allow_plugins, folder=folder)
        spec = TaskSpec.read(state["spec"])
        model = build_model(config.model, spec, seed=config.seed)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: its configuration cannot be used: {error}") from error
    load_weights(model, read_arrays(folder / MODEL), str(folder / MODEL))
    if averaged:
        load_weights(model, read_arrays(folder / AVERAGE), str(folder / AVERAGE), partial=True)
    model.eval()
    return Checkpoint(model, config, spec, state["step"], folder, "ema" if averaged else "raw")


def open_checkpoint(path: Union[str, Path], weights: str) -> Tuple[Path, Dict[str, Any], bool]:
    """Find a checkpoint and check its files. Arguments and errors are those of load_checkpoint.

    Returns:
        Its folder, what ``state.json`` says, and whether averaged weights are to be taken.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be 'ema' or 'raw', got {weights!r}")
    folder = find_checkpoint(path)
    state = verify_checkpoint(folder)
    return folder, state, weights == "ema" and AVERAGE in state["sha256"]


def verify_checkpoint(folder: Path) -> Dict[str, Any]:
    """Check every file of a checkpoint against its SHA-256.

    Returns:
        What ``state.json`` says.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
        UnreadableError: naming the file that the machine cannot read.
    """
    state = read_state(folder)
    for name, digest in state["sha256"].items():
        file = folder / name
        if not is_there(file):
            raise CheckpointError(f"{file}: missing; the checkpoint is not whole, use another one")
        try:
            found = hash_file(file)
        except DataError as error:
            if isinstance(error.__cause__, OSError):
                raise unreadable(file, error.__cause__) from error
            raise
        if found != digest:
            raise CheckpointError(
                f"{file}: its SHA-256 differs from {STATE}'s; the file is damaged or was changed, "
                "use another checkpoint"
            )
    return state


def newest_whole(run_dir: Union[str, Path]) -> Optional[Path]:
    """Give a run's newest checkpoint whose files are all as they were written.

    Raises:
        UnreadableError: if a newer one cannot be read just now: that is no damage.
    """
    for folder in reversed(list_checkpoints(run_dir)):
        try:
            verify_checkpoint(folder)
        except UnreadableError:
            raise
        except CheckpointError:
            continue
        return folder
    return None


def load_training_state(
    folder: Path, model: RecursiveModel
) -> Tuple[int, Optional[Dict[str, mx.array]], TrainingState]:
    """Read everything that training goes on from; the model gets its raw weights.

    Args:
        folder: of a checkpoint that :func:`verify_checkpoint` has just read through.
        model: of the run's configuration; its weights, initial states and table are replaced.

    Returns:
        The step, the average's arrays by name (None without one), and the rest.

    Raises:
        CheckpointError: if a file cannot be read, or the checkpoint was not made by training.
    """
    state = read_state(folder)
    if state.get("progress") is None or not {OPTIMIZER, CARRY} <= set(state["sha256"]):
        raise CheckpointError(
            f"{folder}: holds weights only and cannot be resumed; it can be evaluated"
        )
    load_weights(model, read_arrays(folder / MODEL), str(folder / MODEL))
    average = read_arrays(folder / AVERAGE) if AVERAGE in state["sha256"] else None
    check_finite(average or {}, str(folder / AVERAGE))
    arrays = [read_arrays(folder / name) for name in (OPTIMIZER, CARRY)]
    check_finite(arrays[0], str(folder / OPTIMIZER))
    return state["step"], average, TrainingState(arrays[0], arrays[1], state["progress"])


def read_arrays(file: Path) -> Dict[str, mx.array]:
    """Read one of a checkpoint's files of arrays.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        return read_safetensors(file)[0]
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise unreadable(file, error.__cause__) from error
        raise CheckpointError(
            f"{file}: cannot be read as safetensors ({describe_error(error)}); "
            "use another checkpoint"
        ) from error
