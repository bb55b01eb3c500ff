"""What a process may lack around it: descriptors, a temporary folder, threads after a fork."""

import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import List, Optional

from mlx_trm.errors import ConfigError, TRMError
from mlx_trm.system.files import cache_folder

LOG = logging.getLogger(__name__)

# Where MLX's CPU backend looks for the temporary folder, in its order (C++'s temp_directory_path).
TEMPORARY = ("TMPDIR", "TMP", "TEMP", "TEMPDIR")


def reserve_descriptors() -> None:
    """Open the null device as standard input, output and error where they are closed.

    A file that is opened later would get their numbers otherwise: MLX takes number 0 for a failure
    (so a daemon whose standard input is closed could load nothing), and what is printed to number 1
    or 2 would be written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            try:
                opened = os.open(os.devnull, os.O_RDWR)
            except OSError:  # nothing can be opened at all; what is needed next says so
                return
            if opened == number:
                os.set_inheritable(opened, True)  # a compiler that is started has the same need
            else:
                os.dup2(opened, number)
                os.close(opened)


def prepare_temporary_folder() -> Path:
    """See that MLX's CPU backend can compile: it writes into the temporary folder.

    It loads what lies there, so a folder in which somebody else may write is not used either. Where
    the folder cannot be used, this process gets another one.

    Returns:
        The folder.

    Raises:
        ConfigError: if there is none.
    """
    named = next((os.environ[name] for name in TEMPORARY if os.environ.get(name)), "/tmp")
    if _problem_of(Path(named)) is None:
        return Path(named)
    reasons: List[str] = [f"{named} {_problem_of(Path(named))}"]
    for place in (lambda: cache_folder() / "compiled", _private_folder):
        folder = place()
        if folder is None:
            continue
        problem = _problem_of(folder, make=True)
        if problem is None:
            LOG.warning("TMPDIR: %s; MLX compiles in %s", reasons[0], folder)
            os.environ["TMPDIR"] = str(folder)
            return folder
        reasons.append(f"{folder} {problem}")
    raise ConfigError(
        f"TMPDIR: MLX has no folder to compile in ({'; '.join(reasons)}); let TMPDIR name one that "
        "can be written, or use train.compile=never"
    )


def _private_folder() -> Optional[Path]:
    """Make a folder of this user's own where temporary files can be made; None: nowhere."""
    try:
        return Path(tempfile.mkdtemp(prefix="mlx-trm-"))
    except OSError:
        return None


def _problem_of(folder: Path, make: bool = False) -> Optional[str]:
    """Say why MLX cannot, or should not, compile in a folder; None: it can."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            return "is no folder"
        inner = folder / "mlx"
        for place in (inner, *(inner.glob("*") if inner.is_dir() else ())):
            if not place.exists():
                continue
            facts = place.stat()
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                return f"has {place.relative_to(folder)}, which cannot be written"
            if facts.st_uid not in (os.getuid(), 0) or facts.st_mode & stat.S_IWOTH:
                return f"has {place.relative_to(folder)}, in which others may write"
        # Root may do anything that the permissions say, but not write to what takes no files.
        handle, name = tempfile.mkstemp(prefix=".mlx-trm-", dir=folder)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        return f"cannot be written ({error.strerror or error})"
    return None


class _Fork:
    """Whether this process was forked from one that had computed.

    Attributes:
        used: whether something has been computed here.
        broken: whether it was computed before the fork, in the process that this one comes from.
    """

    used = False
    broken = False


def note_computing() -> None:
    """Note that MLX is about to compute; refuse it where it would wait for ever.

    MLX computes in threads, and a forked process does not have those of the process it comes from.

    Raises:
        TRMError: in a process that was forked from one that had computed already.
    """
    refuse_after_fork()
    if not _Fork.used:
        _Fork.used = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_note_fork)


def refuse_after_fork() -> None:
    """Refuse to go on in a process that was forked from one that had computed already.

    Raises:
        TRMError: there.
    """
    if _Fork.broken:
        raise TRMError(
            "this process was forked from one in which MLX had computed already, so it cannot "
            "compute; start processes by multiprocessing.get_context('spawn'), or fork before "
            "anything is computed"
        )


def _note_fork() -> None:
    _Fork.broken = True
