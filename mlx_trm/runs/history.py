"""Which checkpoints a run keeps: the links to the newest and the best, and what is removed.

What is right stands in the checkpoints' progress alone: links are set from it, and pruning asks it.
Everything removed is first renamed to a hidden name, so that no checkpoint is ever half there.
"""

import logging
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Optional, Union

from mlx_trm.errors import CheckpointError, describe_error
from mlx_trm.runs.layout import BEST, LATEST, follow_link, list_checkpoints
from mlx_trm.system.files import is_abandoned, owner_name, point_link, remove_unfinished

LOG = logging.getLogger(__name__)

# A checkpoint that is written, one that is replaced, one that is removed, and a link that is made.
_LEFT = re.compile(
    r"\.(?P<of>step_\d+|latest|best)\.(?P<what>tmp|old|gone)-(?P<owner>\d+(-[0-9a-f]{8})?)"
)


def prune_checkpoints(
    run_dir: Union[str, Path], keep: int, best_step: Optional[int] = None
) -> None:
    """Remove all but the ``keep`` newest checkpoints of a run and the best one.

    Args:
        run_dir: of the run.
        keep: how many, at least 1.
        best_step: the step of the best one; None: none is the best.
    """
    for path in list_checkpoints(run_dir)[: -max(1, keep)]:
        if path.name != f"step_{best_step}":
            gone = path.with_name(f".{path.name}.gone-{owner_name()}")
            with suppress(OSError):  # it stays, and is tried again at the next save
                shutil.rmtree(gone, ignore_errors=True)
                os.replace(path, gone)
                shutil.rmtree(gone, ignore_errors=True)


def set_links(run: Path, newest: str, best_step: Optional[int]) -> None:
    """Make ``latest`` and ``best`` say what a run's progress says.

    Args:
        run: the run folder.
        newest: name of its newest checkpoint.
        best_step: the step of its best one; None: there is none yet.

    Raises:
        CheckpointError: if a link cannot be made.
    """
    best = None if best_step is None else f"step_{best_step}"
    if best is not None and not (run / best).is_dir():
        if follow_link(run / BEST) is not None:
            LOG.warning("%s: the best checkpoint, %s, is gone; %s is removed", run, best, BEST)
        best = None
    link = run / LATEST
    try:
        for link, name in ((run / LATEST, newest), (run / BEST, best)):
            if name is None:
                if link.is_symlink() or follow_link(link) is not None:
                    link.unlink()
                continue
            if link.is_dir() and not link.is_symlink():  # a copy that has followed the links
                os.replace(link, free_name(link))
            pointed = follow_link(link)
            if pointed is None or pointed.resolve() != (run / name).resolve():
                point_link(link, name)
    except OSError as error:
        raise CheckpointError(f"{link}: cannot be written ({describe_error(error)})") from error


def free_name(path: Path) -> Path:
    """Give a free name beside something that is to be put aside."""
    aside, number = path.with_name(f"aside_{path.name}"), 2
    while aside.exists() or aside.is_symlink():
        aside, number = path.with_name(f"aside_{path.name}-{number}"), number + 1
    return aside


def restore_replaced(run: Path, owned: bool = False) -> None:
    """Put back checkpoints that a killed process was replacing, and that are missing now.

    Args:
        run: the run folder.
        owned: its lock is held, so nobody can be replacing one now.

    Raises:
        OSError: if that fails.
    """
    for path in run.glob(".step_*.old-*"):
        found = _LEFT.fullmatch(path.name)
        if found is None or (run / found["of"]).exists():
            continue
        if owned or is_abandoned(path, found["owner"]):
            os.replace(path, run / found["of"])


def remove_leftovers(run: Path, owned: bool = True) -> None:
    """Remove what processes left that were killed while they wrote into a run folder.

    A checkpoint that was being replaced is put back.

    Args:
        run: the run folder.
        owned: its lock is held; without, only what belongs to processes that are gone is removed.

    Raises:
        OSError: if the folder cannot be read, or a checkpoint not be put back.
    """
    restore_replaced(run, owned)
    for path in list(run.iterdir()):
        found = _LEFT.fullmatch(path.name)
        if found is None or not (owned or is_abandoned(path, found["owner"])):
            continue
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
    for folder in (run, *run.glob("step_*"), *run.glob("evaluations/**/")):
        remove_unfinished(folder, owned=owned)
