"""Unpacking an archive that may mean harm: member by member, only what is wanted, within limits.

The whole archive is refused, by the member's name, where anything in it is a link, a device, or a
path that could lead out of the folder, even if it is not wanted.
"""

import gzip
import re
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, Dict, Sequence, Set

from mlx_trm.datasets.sources import RemoteFolder
from mlx_trm.errors import DataError
from mlx_trm.tasks.fetch_http import unwritable

MOST_MEMBERS = 20_000

_BLOCK = 1 << 16
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError)


class _TooMuch(Exception):
    """The archive holds more than it may."""


class _Limited:
    """Reads a stream, up to a limit that no archive of ours reaches."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes."""
        block = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        if len(block) > self._left:
            raise _TooMuch
        self._left -= len(block)
        return block


def unpack(archive: Path, folders: Sequence[RemoteFolder], into: Path, limit: int) -> None:
    """Take the ``.json`` files of some folders out of a ``.tar.gz``.

    The archive's first folder, which GitHub names after the commit, does not count.

    Args:
        archive: the file.
        folders: those wanted; only what lies directly in them is taken.
        into: a new, empty folder; the wanted ones are made in it.
        limit: bytes that the archive may hold, unpacked, wanted or not.

    Raises:
        DataError: naming the member that is refused, or saying that the archive is damaged or too
            large. What was unpacked before stays in ``into``.
    """
    wanted = {folder.path: into / folder.target for folder in folders}
    try:
        for folder in wanted.values():
            folder.mkdir()
        with gzip.open(archive, "rb") as stream:
            limited = _Limited(stream, limit)  # type: ignore[arg-type]
            _take(limited, wanted)
            while limited.read(_BLOCK):  # to the end, where the checksum is
                pass
    except _TooMuch as error:
        raise DataError(
            f"{archive.name}: unpacks to more than the {limit:,} bytes or {MOST_MEMBERS:,} members "
            "allowed; it is refused"
        ) from error
    except _DAMAGED as error:
        raise DataError(
            f"{archive.name}: is damaged: {' '.join(str(error).split()) or 'cut short'}"
        ) from error
    except OSError as error:
        raise unwritable(into, error) from error


def _take(stream: _Limited, wanted: Dict[str, Path]) -> None:
    """Read the members one after the other, never back and forth."""
    seen: Set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
        for number, member in enumerate(archive):
            if number >= MOST_MEMBERS:
                raise _TooMuch
            problem = member_problem(member)
            if problem:
                raise DataError(f"the archive's member {member.name!r} {problem}; it is refused")
            folder, _, name = member.name.partition("/")[2].rpartition("/")
            if not member.isfile() or folder not in wanted or not name.endswith(".json"):
                continue
            key = f"{folder}/{name}".casefold()
            if key in seen:
                raise DataError(
                    f"the archive's member {member.name!r} is there twice; it is refused"
                )
            seen.add(key)
            content = archive.extractfile(member)
            if content is None:
                raise tarfile.ReadError(f"{member.name} cannot be read")
            with open(wanted[folder] / name, "xb") as file:
                for block in iter(lambda: content.read(_BLOCK), b""):  # pylint: disable=W0640
                    file.write(block)


def member_problem(member: tarfile.TarInfo) -> str:
    """Say why a member could lead out of the folder; empty if it cannot."""
    name = member.name
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if not (member.isfile() or member.isdir()) or member.issparse():
        return "is neither a plain file nor a folder"
    if not name or name.startswith(("/", "\\")):
        return "has an absolute path"
    if re.match(r"[A-Za-z]:", name):
        return "names a drive"
    if "\\" in name or not name.isprintable():
        return "has a character that paths here do not have"
    if ".." in name.split("/"):
        return "leads out of its folder"
    return ""
