"""Where a run's files are: their names, and the checkpoints of a run folder."""

import errno
import json
import os
import re
import stat
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
        UnreadableError: if the machine cannot tell; another one is not taken for that.
    """
    folder = Path(path)
    if folder.name in (LATEST, BEST):
        right = _right_target(folder)
        if right is not None and right.resolve() != follow_link(folder):
            return right
    if folder.is_file():
        pointed = follow_link(folder)
        if pointed is None or not is_there(pointed / STATE):
            raise CheckpointError(
                f"{path}: is a file; name the run folder that holds config.yaml and the checkpoints"
            )
        return pointed
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such run or checkpoint folder")
    if is_there(folder / STATE):
        return folder
    whole = list_checkpoints(folder)
    latest = follow_link(folder / LATEST)
    if latest is not None and is_there(latest / STATE):
        # A process killed after saving a checkpoint, before it moved the link, leaves it behind.
        return whole[-1] if latest.name in [path.name for path in whole[:-1]] else latest
    if not whole:
        raise CheckpointError(
            f"{path}: holds no checkpoint (step_N with {STATE}); "
            "has its training reached an evaluation?"
        )
    return whole[-1]


def is_there(file: Path) -> bool:
    """Say whether a file of a checkpoint is there.

    ``Path.is_file`` says no to an error of the drive as well, from Python 3.14 on to any error.

    Raises:
        UnreadableError: if the machine cannot tell.
    """
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # links in a circle lead nowhere
            return False
        raise unreadable(file, error) from error


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Word what the system says about a checkpoint's file or a run's folder.

    Returns:
        The error: an UnreadableError unless the file is not there at all.
    """
    reason = error.strerror or str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return CheckpointError(
            f"{path}: damaged or not a checkpoint's ({reason}); use another checkpoint"
        )
    return UnreadableError(
        f"{path}: cannot be read just now ({reason}); it may be whole: mend that and try again"
    )


def follow_link(link: Path) -> Optional[Path]:
    """Say which folder ``latest`` or ``best`` names, be it a link or the text file in its place.

    Returns:
        The folder, which need not be there; None where nothing is named.

    Raises:
        UnreadableError: if the machine cannot read it.
    """
    try:
        if link.is_symlink():
            return link.resolve()
        if link.name not in (LATEST, BEST) or not is_there(link):
            return None
        with open(link, "rb") as file:
            found = re.fullmatch(rb"(step_\d{1,18})\s*", file.read(64))
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError as error:
        raise unreadable(link, error) from error
    return None if found is None else link.parent / found[1].decode()


def _right_target(link: Path) -> Optional[Path]:
    """Say what a run's link should name, of which a process may have been killed before it moved.

    Returns:
        The checkpoint; None where it is no link of a run's, or nothing else is known than it says.

    Raises:
        UnreadableError: if the machine cannot read what the newest checkpoint says.
    """
    whole = list_checkpoints(link.parent)
    if not whole or (link.is_dir() and not link.is_symlink()):
        return None
    if link.name == LATEST:
        named = follow_link(link)
        stale = named is not None and named.name in [path.name for path in whole[:-1]]
        return whole[-1] if stale else None
    file = whole[-1] / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        best = link.parent / f"step_{int(state['progress']['best'][1])}"
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
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
    return [path for _, path in step_folders(run_dir) if is_there(path / STATE)]
