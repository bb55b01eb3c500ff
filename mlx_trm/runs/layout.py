"""Where a run's files are: their names, and the checkpoints of a run folder."""

import re
from pathlib import Path
from typing import List, Tuple, Union

from mlx_trm.errors import CheckpointError

METRICS = "metrics.jsonl"


FORMAT_VERSION = 1

STATE, MODEL, AVERAGE, CONFIG = "state.json", "model.safetensors", "ema.safetensors", "config.yaml"

OPTIMIZER, CARRY = "optimizer.safetensors", "carry.safetensors"

ROW_NAMES = "identifiers.json.gz"

LATEST, BEST = "latest", "best"


def find_checkpoint(path: Union[str, Path]) -> Path:
    """Turn a run folder or a checkpoint folder into the checkpoint folder meant.

    Raises:
        CheckpointError: if there is no checkpoint.
    """
    folder = Path(path)
    if folder.is_file():
        raise CheckpointError(
            f"{path}: is a file; name the run folder that holds config.yaml and the checkpoints"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such run or checkpoint folder")
    if (folder / STATE).is_file():
        return folder
    whole = list_checkpoints(folder)
    if (folder / LATEST / STATE).is_file():
        latest = (folder / LATEST).resolve()
        # A process killed after saving a checkpoint, before it moved the link, leaves it behind.
        return whole[-1] if latest.name in [path.name for path in whole[:-1]] else latest
    if not whole:
        raise CheckpointError(
            f"{path}: holds no checkpoint (step_N with {STATE}); "
            "has its training reached an evaluation?"
        )
    return whole[-1]


def step_folders(run_dir: Union[str, Path]) -> List[Tuple[int, Path]]:
    """Give a run's checkpoint folders, whole or not, with their steps and in their order."""
    found = []
    for path in Path(run_dir).glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", path.name)
        if match:
            found.append((int(match.group(1)), path))
    return sorted(found)


def list_checkpoints(run_dir: Union[str, Path]) -> List[Path]:
    """Give a run's whole checkpoints, oldest step first."""
    return [path for _, path in step_folders(run_dir) if (path / STATE).is_file()]
