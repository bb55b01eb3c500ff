"""Run folders: chosen, made, locked, and what an evaluation keeps in them."""

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, List, Mapping, Optional, Tuple, Union

from mlx_trm.config.loading import save_config
from mlx_trm.config.plugins import keep_copies
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import CheckpointError, ConfigError
from mlx_trm.runs.history import remove_leftovers
from mlx_trm.runs.layout import CONFIG, METRICS, list_checkpoints
from mlx_trm.system.files import write_text

LOG = logging.getLogger(__name__)


class RunLock:
    """Keeps a second process out of a run folder; the system frees it when the process ends.

    Attributes:
        held: whether it does: not every file system can lock.
    """

    def __init__(self, run: Path) -> None:
        """Take the lock.

        Raises:
            ConfigError: if another process has it.
            CheckpointError: if the file cannot be written.
        """
        self._file: Optional[IO[str]] = None
        self.held = False
        path = run / ".lock"
        try:
            import fcntl
        except ImportError:  # not a Unix
            return
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            # What else it may say (ENOTSUP, ENOLCK, ENOSYS) is that files cannot be locked here.
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                LOG.warning(
                    "%s: cannot be locked on this file system (%s); going on without: see to it "
                    "that no second process trains there",
                    *(run, error.strerror or error),
                )
                return
            raise ConfigError(
                f"run_dir: {run} is in use by {holder}; wait for it, or name another run_dir"
            ) from error
        self.held = True
        self._file = file
        with suppress(OSError):  # a full disk: the name of the holder is a courtesy
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()}\n")
            file.flush()

    def release(self) -> None:
        """Let others use the run folder."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written before still cannot
                self._file.close()
            self._file, self.held = None, False


def free_run_dir(stem: str, root: Union[str, Path] = "runs") -> Path:
    """Give ``root/stem``, or ``root/stem-2``, ``-3``, ... where that is taken.

    Args:
        stem: usually the configuration file's name without suffix.
        root: the folder of runs.
    """
    path, number = Path(root) / stem, 2
    while path.exists() or path.is_symlink():
        path = Path(root) / f"{stem}-{number}"
        number += 1
    return path


def check_run_dir(config: ExperimentConfig, unsaved: bool = False) -> Path:
    """Choose the run folder and see, before the work begins, that it can be used.

    Args:
        config: where its ``run_dir`` is open the folder is chosen by its name.
        unsaved: take the folder of a run that was stopped before its first checkpoint.

    Returns:
        The folder, which need not be there yet.

    Raises:
        ConfigError: if it is a file, holds a run already, or could not be made.
    """
    run = free_run_dir(config.stem) if config.run_dir is None else Path(config.run_dir)
    try:
        if run.exists() and not run.is_dir():
            raise ConfigError(f"run_dir: {run} is a file; name a folder")
        if list_checkpoints(run):
            raise ConfigError(
                f"run_dir: {run} holds a run already; name another run_dir, or go on with it by "
                f"--resume {run}"
            )
        if unsaved and list(run.glob("step_*")):
            raise ConfigError(
                f"run_dir: {run} holds checkpoints, and none of them is whole; name another run_dir"
            )
        if (run / CONFIG).exists() and not unsaved:
            raise ConfigError(
                f"run_dir: {run} holds a run that has saved nothing yet; name another run_dir, or "
                "begin it anew by --resume auto"
            )
        above = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    except OSError as error:  # a name that is too long, say
        raise ConfigError(
            f"run_dir: {run} cannot be made ({error.strerror}); name another folder"
        ) from error
    if not above.is_dir():
        raise ConfigError(f"run_dir: {run} cannot be made, {above} is a file; name another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run_dir: {run} cannot be made, {above} is not writable; name another folder"
        )
    return run


def prepare_run_dir(config: ExperimentConfig, unsaved: bool = False) -> Tuple[Path, RunLock]:
    """Make the run folder, lock it, and write the resolved configuration into it.

    Args:
        config: written as it is; where ``run_dir`` is open the folder is chosen by its name.
        unsaved: take the folder of a run that was stopped before its first checkpoint.

    Returns:
        The folder, and its lock.

    Raises:
        ConfigError: if it is a file, holds a run already, is in use, or cannot be made.
    """
    while True:
        run = check_run_dir(config, unsaved)
        lock: Optional[RunLock] = None
        try:
            try:
                run.mkdir(parents=True, exist_ok=config.run_dir is not None)
            except FileExistsError:  # another process has just chosen this name
                if config.run_dir is None:
                    continue
                raise
            lock = RunLock(run)
            if unsaved:  # otherwise the folder may be anybody's
                remove_leftovers(run, lock.held)
            if unsaved and (run / METRICS).exists():
                os.replace(run / METRICS, run / f"aside_{METRICS}")
                LOG.warning(
                    "%s: begun anew, no checkpoint was saved; its log is aside_%s", run, METRICS
                )
            save_config(config, run / CONFIG)
            keep_copies(config.plugins, run)
            return run, lock
        except OSError as error:
            if lock is not None:
                lock.release()
            raise ConfigError(
                f"run_dir: {run} cannot be made ({error.strerror}); name another folder"
            ) from error
        except BaseException:  # Ctrl-C, say
            if lock is not None:
                lock.release()
            raise


def save_evaluation_files(folder: Path, files: Mapping[str, Mapping[str, str]]) -> List[Path]:
    """Write what an evaluation has to keep, each file whole or not at all.

    Args:
        folder: made where there is anything to write.
        files: texts by set and file name; with several sets each gets a folder of its own.

    Returns:
        The files.

    Raises:
        CheckpointError: if one cannot be written.
    """
    written = []
    for name, texts in files.items():
        place = folder / name.replace("/", "_") if len(files) > 1 else folder
        for file, text in texts.items():
            try:
                place.mkdir(parents=True, exist_ok=True)
                write_text(place / file, text)
            except OSError as error:
                raise CheckpointError(
                    f"{place / file}: cannot be written ({error.strerror or error})"
                ) from error
            written.append(place / file)
    return written
