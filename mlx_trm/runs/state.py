"""A checkpoint's ``state.json``: read, checked by its own hash, written, brought up to date.

It holds the step, the task's dimensions, where in the data and the log the run is, the SHA-256 of
each other file, and as ``own_sha256`` that of its own fields. A checkpoint of an earlier version
has no ``own_sha256`` and is read without.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Mapping

from mlx_trm.config.sections import MOST_SIZE, TaskSpec
from mlx_trm.errors import CheckpointError, describe_error, shown
from mlx_trm.runs.layout import (
    AVERAGE,
    CARRY,
    CONFIG,
    FORMAT_VERSION,
    MODEL,
    OPTIMIZER,
    ROW_NAMES,
    STATE,
    is_there,
    unreadable,
)
from mlx_trm.system.bounded import read_object
from mlx_trm.system.files import flush, write_json

OWN_HASH = "own_sha256"
# Of the file; most of it are names of metrics.
_MOST_BYTES = 1 << 22
# Without its own hash a state has nothing else: or one whose name was damaged would be passed over.
_FIELDS = {"format", "step", "spec", "progress", "sha256"}


def own_hash(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a state's fields as JSON has them, the hash itself left out."""
    fields = {name: value for name, value in state.items() if name != OWN_HASH}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write ``state.json`` with its own hash; it is replaced whole or not at all.

    Raises:
        ValueError: if it holds NaN or infinity, which no reader would take.
        OSError: if it cannot be written.
    """
    # Tuples become lists, as a reader will see them.
    plain = json.loads(json.dumps(state, allow_nan=False))
    write_json(folder / STATE, {**plain, OWN_HASH: own_hash(plain)})


def read_state(folder: Path) -> Dict[str, Any]:
    """Read ``state.json`` and check everything that can be told without the other files' bytes.

    Raises:
        CheckpointError: if it is damaged, of another format, or leaves out a file that is there.
        UnreadableError: if the machine cannot read it.
    """
    file = folder / STATE
    try:
        state = read_object(file, _MOST_BYTES)
        version = state["format"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{file}: format {shown(version)}, this version of mlx_trm reads {FORMAT_VERSION}; "
                "use the version that wrote it"
            )
        step, files = state["step"], state["sha256"]
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise TypeError("step must be a whole number from 0 up")
        if step > MOST_SIZE:
            raise TypeError("step is too large")
        # What is there but not named would be passed over, or read unchecked.
        optional = (AVERAGE, OPTIMIZER, CARRY, ROW_NAMES)
        needed = [MODEL, CONFIG, *(name for name in optional if is_there(folder / name))]
        if not isinstance(files, dict) or not files.keys() >= set(needed):
            raise TypeError(f"sha256 must name {', '.join(needed)}")
        TaskSpec.read(dict(state["spec"]))
        if OWN_HASH not in state and not state.keys() <= _FIELDS:
            raise TypeError(f"it has unknown fields and no {OWN_HASH}")
        if OWN_HASH in state and state[OWN_HASH] != own_hash(state):
            raise ValueError(f"its fields are not those that {OWN_HASH} was made of")
        return dict(state)
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: damaged or not a checkpoint's ({describe_error(error)}); "
            "use another checkpoint"
        ) from error


def record_progress(folder: Path, progress: Mapping[str, Any]) -> None:
    """Bring a checkpoint's progress up to date; its other files stay as they are.

    Args:
        folder: of a whole checkpoint.
        progress: where the run is in its data and its log, as JSON has it.

    Raises:
        CheckpointError: if it cannot be read or written; it is then as it was.
    """
    state = read_state(folder)
    try:
        write_state(folder, {**state, "progress": progress})
        flush(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / STATE}: cannot be written ({describe_error(error)}); "
            "the checkpoint is as it was"
        ) from error
