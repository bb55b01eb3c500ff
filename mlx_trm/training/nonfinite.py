"""What a step that is not finite leaves behind: its inputs, saved so that it can be replayed."""

from pathlib import Path
from typing import Dict

import mlx.core as mx

from mlx_trm.errors import CheckpointError, NonFiniteError
from mlx_trm.models import named_arrays
from mlx_trm.system.files import replace_file


def save_replay(folder: Path, error: NonFiniteError, rank: int = 0) -> Path:
    """Save what entered a step that was not finite: carry, incoming batch and exploration.

    Of several processes number 0 saves its share.

    Returns:
        The file, ``nonfinite_step_N.safetensors``.

    Raises:
        CheckpointError: if it cannot be written.
    """
    path = folder / f"nonfinite_step_{error.step}.safetensors"
    if rank:
        return path
    arrays: Dict[str, mx.array] = {}
    for number, part in enumerate(error.parts):
        tree = {
            "carry": list(part.carry.pack()[0]),
            "steps": part.carry.steps,
            "halted": part.carry.halted,
            "current": part.carry.current._asdict(),
            "batch": part.batch._asdict(),
            "min_steps": part.min_steps,
        }
        if part.keys is not None:
            tree["keys"] = part.keys
        arrays.update({f"part{number}.{name}": array for name, array in named_arrays(tree)})
    try:
        with replace_file(path) as temporary:
            mx.save_safetensors(str(temporary), arrays, {"step": str(error.step)})
    except (OSError, RuntimeError) as problem:
        raise CheckpointError(f"{path}: cannot be written ({problem})") from problem
    return path
