"""Files: where things are kept between runs, and how a file is written, hashed and read."""

import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Union

from mlx_trm.errors import ConfigError, DamagedError, DataError, describe_error
from mlx_trm.system.bounded import MOST_TEXT, parse_json, read_bytes

AnyPath = Union[str, "os.PathLike[str]"]

# Seconds after which an unfinished file of another machine's process counts as given up.
LEFTOVER_SECONDS = 86400
# What a file system says that cannot flush a folder: some network shares.
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
_UNFINISHED = re.compile(r"\.(?P<stem>.+)\.(?P<owner>\d+(-[0-9a-f]{8})?)\.tmp(?P<suffix>\.[^.]*)?")


def cache_folder() -> Path:
    """Return the folder for what can be made again: ``MLX_TRM_CACHE``, or the platform's place."""
    chosen = os.environ.get("MLX_TRM_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "mlx_trm"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "mlx_trm"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "mlx_trm"


def owner_name() -> str:
    """Name this process for the names of what it has not finished: its number and its machine."""
    return f"{os.getpid()}-{_machine()}"


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def is_abandoned(path: Path, owner: str) -> bool:
    """Say whether the process that began something unfinished is gone.

    Of processes on other machines nothing is known: what they have not touched for a day counts as
    abandoned, and so does what an earlier version named by the process's number alone.

    Args:
        path: of the unfinished file or folder.
        owner: as of :func:`owner_name`.
    """
    number, _, machine = owner.partition("-")
    if machine == _machine() and os.name == "posix":
        try:
            os.kill(int(number), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # another user's
            return False
        return False
    try:
        return time.time() - path.lstat().st_mtime > LEFTOVER_SECONDS
    except OSError:
        return False


def temporary_name(path: AnyPath) -> Path:
    """Give the hidden name beside a file under which this process writes it; same suffix."""
    target = Path(path)
    return target.with_name(f".{target.stem}.{owner_name()}.tmp{target.suffix}")


def remove_unfinished(folder: Path, of: str = "", owned: bool = False) -> None:
    """Remove what killed processes left of :func:`replace_file` and :func:`new_folder`.

    Args:
        folder: in which they wrote; it need not be there.
        of: only what was to have this name; empty: everything.
        owned: nobody else writes in the folder, so all of them go.
    """
    with suppress(OSError):  # cannot be listed or changed: whoever has to write there will say so
        for name in os.listdir(folder):
            found = _UNFINISHED.fullmatch(name)
            if found is None or of not in ("", found["stem"] + (found["suffix"] or "")):
                continue
            if owned or is_abandoned(folder / name, found["owner"]):
                if (folder / name).is_dir() and not (folder / name).is_symlink():
                    shutil.rmtree(folder / name, ignore_errors=True)
                else:
                    (folder / name).unlink(missing_ok=True)


@contextmanager
def new_folder(path: AnyPath) -> Iterator[Path]:
    """Give a temporary folder; what is put there becomes the folder ``path`` if the block succeeds.

    Otherwise nothing is left. The caller flushes what it writes; names are flushed here.

    Args:
        path: of the folder; not there, or empty. The folders above it are made.

    Raises:
        ConfigError: if it is anything else, or cannot be made.
    """
    target = Path(os.path.realpath(path))
    advice = "name a new folder"
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"{path}: is a file or not empty; {advice}")
    if target == Path.cwd():
        raise ConfigError(f"{path}: is the working folder; {advice} in it")
    place = temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(target.parent, of=target.name)
        place.mkdir()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be made ({error.strerror or error}); name another folder"
        ) from error
    try:
        yield place
        try:
            for folder in (*(each for each in place.rglob("*") if each.is_dir()), place):
                flush(folder)
            if target.is_dir():
                target.rmdir()
            os.replace(place, target)
            flush(target.parent)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be put in place ({error.strerror or error}); {advice}"
            ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def replace_file(path: AnyPath) -> Iterator[Path]:
    """Give a temporary file's name; what is written there becomes ``path`` if the block succeeds.

    Otherwise ``path`` stays as it was. In both cases nothing else is left behind. A device or a
    pipe is written to, never replaced.

    Args:
        path: of the file; its folder has to be there.

    Raises:
        OSError: if the file cannot be flushed to the disk or put in place.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / Path(path).name
            yield temporary
            with open(temporary, "rb") as written, open(path, "wb") as device:
                shutil.copyfileobj(written, device)
        return
    temporary = temporary_name(path)
    remove_unfinished(temporary.parent, of=Path(path).name)
    try:
        yield temporary
        flush(temporary)  # or a crash of the machine could leave an empty file under the name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Write a file, which is replaced whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: AnyPath, text: str) -> None:
    """Write a UTF-8 text file, which is replaced whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: AnyPath, content: Any, indent: int = 2) -> None:
    """Write a JSON file, which is replaced whole or not at all; keys in the order given.

    Raises:
        OSError: if it cannot be written.
    """
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def json_text(content: Any, indent: Optional[int] = None) -> str:
    """Write values as JSON, which has neither NaN nor infinity: both become null.

    Args:
        content: what ``json.dumps`` takes.
        indent: spaces a level; None: all on one line.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    """Replace floats that are not finite by None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content


def read_json(path: AnyPath, kind: type = dict, advice: str = "", most: int = MOST_TEXT) -> Any:
    """Read a JSON file that holds an object, or a list.

    Args:
        path: of the file, UTF-8.
        kind: ``dict`` or ``list``.
        advice: what the user can do, put at the end of an error.
        most: bytes that such a file may have.

    Raises:
        DataError: if it cannot be read.
        DamagedError: if it is no JSON, holds something else, or is far too large.
    """
    try:
        content = parse_json(read_bytes(path, most))
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror or error}{advice}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}{advice}") from error
    except ValueError as error:  # bad UTF-8, bad JSON, too much of it
        raise DamagedError(f"{path}: is not JSON: {describe_error(error)}{advice}") from error
    if not isinstance(content, kind):
        wanted = "object" if kind is dict else "list"
        raise DamagedError(f"{path}: is not a JSON {wanted}{advice}")
    return content


def distinct_names(paths: Sequence[Path]) -> List[str]:
    """Name files or folders by the last parts of their paths, as many as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def hash_file(path: AnyPath, digest: Any = None) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Args:
        path: of the file.
        digest: of ``hashlib``, taken in place of a new SHA-256 and brought up to date.

    Raises:
        DataError: if it cannot be read.
    """
    digest = hashlib.sha256() if digest is None else digest
    try:
        with open(Path(path).expanduser(), "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return str(digest.hexdigest())


def flush(path: AnyPath) -> None:
    """Ask the system to put a file's or folder's content on the disk.

    Raises:
        OSError: if that fails. Of a folder it may: not every file system can.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


def point_link(link: Path, target: str) -> None:
    """Make or move a relative symbolic link in one step.

    Where the file system has no links (exFAT, some network shares), the link is a text file of one
    line that holds the target.

    Raises:
        OSError: if that fails.
    """
    temporary = link.with_name(f".{link.name}.tmp-{owner_name()}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            temporary.symlink_to(target)
        except OSError:  # each file system has its own number for it; a full disk fails again
            temporary.write_text(target + "\n", encoding="utf-8")
            flush(temporary)
        os.replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)
