"""Where a run's files are: their names, and the checkpoints of a run folder."""

import json
import os
import re
from pathlib import Path
from typing import List, Optional, Tuple, Union

from mlx_trm.errors import CheckpointError, UnreadableError

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
    if folder.name in (LATEST, BEST):
        right = _right_target(folder)
        if right is not None and right.resolve() != follow_link(folder):
            return right
    if folder.is_file():
        pointed = follow_link(folder)
        if pointed is None or not (pointed / STATE).is_file():
            raise CheckpointError(
                f"{path}: is a file; name the run folder that holds config.yaml and the checkpoints"
            )
        return pointed
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such run or checkpoint folder")
    if (folder / STATE).is_file():
        return folder
    whole = list_checkpoints(folder)
    latest = follow_link(folder / LATEST)
    if latest is not None and (latest / STATE).is_file():
        # A process killed after saving a checkpoint, before it moved the link, leaves it behind.
        return whole[-1] if latest.name in [path.name for path in whole[:-1]] else latest
    if not whole:
        raise CheckpointError(
            f"{path}: holds no checkpoint (step_N with {STATE}); "
            "has its training reached an evaluation?"
        )
    return whole[-1]


def follow_link(link: Path) -> Optional[Path]:
    """Say which folder ``latest`` or ``best`` names, be it a link or the text file in its place.

    Returns:
        The folder, which need not be there; None where nothing is named.
    """
    if link.is_symlink():
        return link.resolve()
    if link.name not in (LATEST, BEST) or not link.is_file():
        return None
    try:
        with open(link, "rb") as file:
            found = re.fullmatch(rb"(step_\d{1,18})\s*", file.read(64))
    except OSError:
        return None
    return None if found is None else link.parent / found[1].decode()


def _right_target(link: Path) -> Optional[Path]:
    """Say what a run's link should name, of which a process may have been killed before it moved.

    Returns:
        The checkpoint; None where it is no link of a run's, or nothing else is known than it says.
    """
    whole = list_checkpoints(link.parent)
    if not whole or (link.is_dir() and not link.is_symlink()):
        return None
    if link.name == LATEST:
        named = follow_link(link)
        stale = named is not None and named.name in [path.name for path in whole[:-1]]
        return whole[-1] if stale else None
    try:
        state = json.loads((whole[-1] / STATE).read_text(encoding="utf-8"))
        best = link.parent / f"step_{int(state['progress']['best'][1])}"
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None  # weights alone, no evaluation yet, or damaged: whoever reads it will say so
    return best if best in whole else None


def step_folders(run_dir: Union[str, Path]) -> List[Tuple[int, Path]]:
    """Give a run's checkpoint folders, whole or not, with their steps and in their order.

    Raises:
        UnreadableError: if the machine cannot list the folder.
    """
    run = Path(run_dir)
    try:
        names = os.listdir(run)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnreadableError(
            f"{run}: cannot be listed just now ({error.strerror or error}); mend that and try again"
        ) from error
    matches = [re.fullmatch(r"step_(\d+)", name) for name in names]
    return sorted((int(match[1]), run / match[0]) for match in matches if match)


def list_checkpoints(run_dir: Union[str, Path]) -> List[Path]:
    """Give a run's whole checkpoints, oldest step first; errors are those of step_folders."""
    return [path for _, path in step_folders(run_dir) if (path / STATE).is_file()]
