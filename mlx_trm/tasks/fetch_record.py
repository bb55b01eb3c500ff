"""Keeping a place true: who may change it, what its record says, and digests of what lies in it."""

import errno
import hashlib
import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, Tuple

from mlx_trm.datasets.sources import RECORD, RECORD_FORMAT, Entry, read_record
from mlx_trm.system.files import write_json
from mlx_trm.tasks.fetch_http import unwritable

Files = Dict[str, Tuple[int, str]]

TEMPORARY = ".temporary-"

_BLOCK = 1 << 20
_SECONDS_BETWEEN_LOOKS = 0.1


@contextmanager
def place_lock(place: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Make a place, and let no other process change it inside a ``with`` block.

    The system takes the lock away from a process that ends, however it ends. A place that is empty
    in the end is removed.

    Args:
        place: the folder.
        waiting: called once if another process has the lock.

    Raises:
        DataError: if it cannot be made.
    """
    path = place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path, waiting)
        try:
            place.mkdir(exist_ok=True)
        except OSError:
            _unlock(path, lock)
            raise
    except OSError as error:
        raise unwritable(place, error) from error
    try:
        yield
    finally:
        try:
            place.rmdir()
        except OSError:  # it holds something, as it should
            pass
        _unlock(path, lock)


def _lock(path: Path, waiting: Callable[[], None]) -> IO[str]:
    """Wait until the lock file is ours."""
    told = False
    while True:
        file = open(path, "w", encoding="utf-8")  # pylint: disable=consider-using-with
        try:
            _lock_file(file)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except OSError as error:
            # ENOENT: whoever had it removed it between the two looks.
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.ENOENT):
                file.close()
                raise
        except BaseException:
            file.close()
            raise
        file.close()
        if not told:
            waiting()
            told = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _lock_file(file: IO[str]) -> None:
    """Take the lock of an open file, or raise an OSError at once."""
    try:
        import fcntl
    except ImportError:  # no such system runs MLX
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlock(path: Path, file: IO[str]) -> None:
    """Give the lock back; the file goes first, so that nobody locks one that is about to go."""
    try:
        path.unlink()
    except OSError:
        pass
    file.close()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def file_facts(path: Path) -> Tuple[int, str]:
    """Return a file's size and SHA-256."""
    return path.stat().st_size, file_sha256(path)


def folder_facts(folder: Path, name: str) -> Files:
    """Return size and SHA-256 of all files below a folder, hidden ones left out.

    Args:
        folder: where to look.
        name: what the folder is called in the result: ``name/file``.
    """
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": file_facts(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def folder_digest(files: Files) -> str:
    """Return one SHA-256 of many files.

    It does not depend on how they were packed, and these commands give the same:
    ``export LC_ALL=C; find FOLDERS -type f | sort | xargs sha256sum | sha256sum``.

    Args:
        files: (size, SHA-256) by name.
    """
    names = sorted(files, key=lambda name: name.encode())
    lines = "".join(f"{files[name][1]}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def write_record(place: Path, name: str, entry: Entry) -> None:
    """Put a set into the record of its place; other sets stay as they are.

    Raises:
        DataError: if the record there cannot be understood, or cannot be written.
    """
    entries = {**read_record(place), name: entry}
    content = {
        "format": RECORD_FORMAT,
        "sets": {name: _described(entries[name]) for name in sorted(entries)},
    }
    try:
        with temporary_folder(place) as folder:
            write_json(folder / RECORD, content)
            os.replace(folder / RECORD, place / RECORD)
    except OSError as error:
        raise unwritable(place / RECORD, error) from error


def _described(entry: Entry) -> Dict[str, Any]:
    """Turn an entry into JSON."""
    files = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in entry.files.items()}
    return {**entry.about, "revision": entry.revision, "commit": entry.commit, "files": files}


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """Give a new folder inside a place, and remove it with what is left in it."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=place) as name:
        yield Path(name)


def swap_in(new: Path, old: Path, place: Path, targets: Tuple[str, ...]) -> None:
    """Move folders into a place, all of them or none.

    Args:
        new: holds the folders.
        old: an empty folder, for those that were there before.
        place: where they go.
        targets: their names.

    Raises:
        OSError: if one cannot be moved; then those that were there are there again.
    """
    moved = []
    try:
        for target in targets:
            if os.path.lexists(place / target):
                os.rename(place / target, old / target)
            moved.append(target)
            os.rename(new / target, place / target)
    except BaseException:
        for target in moved:
            if os.path.lexists(place / target):
                os.rename(place / target, new / target)
            if os.path.lexists(old / target):
                os.rename(old / target, place / target)
        raise
