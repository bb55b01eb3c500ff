"""Files: where things are kept between runs, and how a file is written, hashed and read."""

import hashlib
import json
import math
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Union

from mlx_trm.errors import DataError

AnyPath = Union[str, "os.PathLike[str]"]


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


def temporary_name(path: AnyPath) -> Path:
    """Give the hidden name beside a file under which this process writes it; same suffix."""
    target = Path(path)
    return target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")


@contextmanager
def replace_file(path: AnyPath) -> Iterator[Path]:
    """Give a temporary file's name; what is written there becomes ``path`` if the block succeeds.

    Otherwise ``path`` stays as it was. In both cases nothing else is left behind.

    Args:
        path: of the file; its folder has to be there.

    Raises:
        OSError: if the file cannot be flushed to the disk or put in place.
    """
    temporary = temporary_name(path)
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


def read_json(path: AnyPath, kind: type = dict, advice: str = "") -> Any:
    """Read a JSON file that holds an object, or a list.

    Args:
        path: of the file, UTF-8.
        kind: ``dict`` or ``list``.
        advice: what the user can do, put at the end of an error.

    Raises:
        DataError: if it cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}{advice}") from error
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, or nested without end
        raise DataError(f"{path}: is not JSON: {error}{advice}") from error
    if not isinstance(content, kind):
        raise DataError(f"{path}: is not a JSON {'object' if kind is dict else 'list'}{advice}")
    return content


def distinct_names(paths: Sequence[Path]) -> List[str]:
    """Name files or folders by the last parts of their paths, as many as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def hash_file(path: AnyPath) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        DataError: if it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(Path(path).expanduser(), "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def flush(path: AnyPath) -> None:
    """Ask the system to put a file's or folder's content on the disk.

    Raises:
        OSError: if that fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def point_link(link: Path, target: str) -> None:
    """Make or move a relative symbolic link in one step.

    Raises:
        OSError: if that fails.
    """
    temporary = link.with_name(f".{link.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)
