"""Which checkpoints a run keeps: the links to the newest and the best, and what is removed."""

import os
import shutil
from pathlib import Path
from typing import Union

from mlx_trm.errors import CheckpointError, describe_error
from mlx_trm.runs.layout import BEST, list_checkpoints
from mlx_trm.system.files import point_link


def prune_checkpoints(run_dir: Union[str, Path], keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints of a run and the best one."""
    best = Path(run_dir) / BEST
    kept = best.resolve().name if best.exists() else ""
    for path in list_checkpoints(run_dir)[: -max(1, keep)]:
        if path.name != kept:
            shutil.rmtree(path, ignore_errors=True)


def point_best(checkpoint: Path) -> None:
    """Point the run's link ``best`` at one of its checkpoints.

    Raises:
        CheckpointError: if the link cannot be made.
    """
    try:
        point_link(checkpoint.parent / BEST, checkpoint.name)
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint.parent / BEST}: cannot be written ({describe_error(error)})"
        ) from error


def remove_leftovers(run_dir: Union[str, Path]) -> None:
    """Remove what processes left that were killed while they saved; none may be saving now.

    A checkpoint that was being replaced is put back.
    """
    for path in Path(run_dir).glob(".step_*.old-*"):
        target = path.with_name(path.name[1:].split(".")[0])
        if not target.exists():
            os.replace(path, target)
    for pattern in (".step_*.tmp-*", ".step_*.old-*", ".latest.tmp-*", ".best.tmp-*"):
        for path in Path(run_dir).glob(pattern):
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)
