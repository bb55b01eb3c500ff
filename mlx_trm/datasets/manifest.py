"""What the files of a built dataset were when it was built: SHA-256 of their blocks, in build.json.

Small files are checked in full whenever a dataset is opened, of large ones a sample of blocks;
``data verify`` checks everything. A folder of the reference's own has no ``build.json``, and one
that an earlier version built has no manifest: they are read without.
"""

import hashlib
import logging
import os
import random
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple

from mlx_trm.datasets.writing import MARKER
from mlx_trm.errors import DamagedError, DataError
from mlx_trm.system.files import read_json, write_json

LOG = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 22
# Larger files are not read through when they are opened: it would take seconds.
FULL_BYTES = 1 << 28
SAMPLED_BLOCKS = 32
_ADVICE = (
    "; build the dataset again, or bring the file back (where you have changed it yourself, remove "
    f"{MARKER})"
)

# Files that this process has checked, as they were then: an evaluation opens its data anew.
_CHECKED: Set[Tuple[Any, ...]] = set()


class FileState(NamedTuple):
    """What tells whether a file has been changed: where it lies, its size, when it was written."""

    device: int
    number: int
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Ask the system.

        Raises:
            OSError: if there is no such file.
        """
        found = os.stat(path)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def write_marker(folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``build.json``, the last file of a new dataset: what it is, and a manifest of the rest.

    Raises:
        OSError: if it cannot be written, or a file not be read.
    """
    files: Dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MARKER:
            blocks = [_hash_block(path, number) for number in range(_count(path.stat().st_size))]
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": blocks}
    manifest = {"block_bytes": BLOCK_BYTES, "files": files}
    write_json(folder / MARKER, {**about, "manifest": manifest}, indent=1)


def check_manifest(folder: Path, split: Optional[str] = None, full: bool = False) -> bool:
    """Compare files of a built dataset with its manifest.

    Args:
        folder: of the dataset.
        split: only the files of this split, and those that all splits share; None: all of them.
        full: check large files in full, too, and what has been checked already.

    Returns:
        Whether there is a manifest.

    Raises:
        DamagedError: naming the file that is missing or not what it was.
        DataError: if one cannot be read.
    """
    if not (folder / MARKER).exists():
        return False
    manifest = read_json(folder / MARKER, dict, "; build the dataset again").get("manifest")
    if manifest is None:
        return False
    for name, (size, blocks) in _read_manifest(folder, manifest).items():
        if split is None or "/" not in name or name.startswith(f"{split}/"):
            _check_file(folder / name, size, blocks, full)
    return True


def _read_manifest(folder: Path, manifest: Any) -> Dict[str, Tuple[int, List[str]]]:
    """Read a manifest: size and SHA-256 of each block, by name."""
    try:
        if manifest["block_bytes"] != BLOCK_BYTES:
            raise ValueError("its blocks have another size")
        found = {}
        for name, entry in manifest["files"].items():
            size, blocks = entry["size"], list(entry["sha256"])
            if name.startswith("/") or ".." in name.split("/") or len(blocks) != _count(size):
                raise ValueError("an entry makes no sense")
            found[name] = (size, blocks)
        return found
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(
            f"{folder / MARKER}: its manifest is damaged; build the dataset again"
        ) from error


def _check_file(path: Path, size: int, blocks: List[str], full: bool) -> None:
    """Compare one file, or a sample of its blocks, with what it was."""
    try:
        state = FileState.of(path)
        if (path, *state) in _CHECKED and not full:
            return
        if state.size != size:
            raise DamagedError(
                f"{path}: is damaged: it has {state.size} bytes, not {size}{_ADVICE}"
            )
        numbers: Iterable[int] = range(len(blocks))
        if size > FULL_BYTES and not full:
            last = len(blocks) - 1
            # Others each time, so that damage does not stay unseen for ever.
            drawn = random.SystemRandom().sample(range(last), min(last, SAMPLED_BLOCKS))
            numbers = sorted({0, last, *drawn})
        for number in numbers:
            if _hash_block(path, number) != blocks[number]:
                raise DamagedError(
                    f"{path}: is damaged: its SHA-256 is not the one in {MARKER}{_ADVICE}"
                )
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: no such file; build the dataset again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    _CHECKED.add((path, *state))


def _count(size: int) -> int:
    """Count the blocks of a file."""
    return -(-size // BLOCK_BYTES)


def _hash_block(path: Path, number: int) -> str:
    # Read, not mapped: what is mapped counts as this process's memory.
    with open(path, "rb") as file:
        file.seek(number * BLOCK_BYTES)
        return hashlib.sha256(file.read(BLOCK_BYTES)).hexdigest()


class MappedFiles:
    """Files that are mapped and in use, watched: what is cut off reads as zeros, without a word."""

    def __init__(self, *others: "MappedFiles") -> None:
        """Begin with those of others, or with none."""
        self._states: Dict[Path, FileState] = {}
        self._places: Dict[Path, Tuple[Path, str]] = {}
        for other in others:
            self._states.update(other._states)
            self._places.update(other._places)

    def watch(self, folder: Path, split: str, paths: Iterable[Path]) -> None:
        """Begin to watch more files.

        Args:
            folder: of the dataset they belong to.
            split: that they belong to.
            paths: the files.
        """
        for path in paths:
            self._states[path] = FileState.of(path)
            self._places[path] = (folder, split)

    def check(self) -> None:
        """See that the files are as they were, before and after something is read from them.

        A file that was replaced by another one is none of these: the old one stays mapped.

        Raises:
            DataError: if one has another size, or other content.
        """
        for path, before in self._states.items():
            try:
                now = FileState.of(path)
            except OSError:  # removed: the mapped one is still there
                continue
            if now == before or now[:2] != before[:2]:
                continue
            if now.size != before.size:
                raise DataError(
                    f"{path}: was changed while it was in use: it has {now.size} bytes, and had "
                    f"{before.size}; build the dataset again or bring the file back, then go on "
                    "(train: --resume)"
                )
            if not check_manifest(*self._places[path], full=True):
                LOG.warning("%s: was written to while it was in use", path)
            self._states[path] = now
