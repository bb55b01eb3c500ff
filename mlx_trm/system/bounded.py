"""Files that anybody may have written: read only as far as makes sense, and in one kind of error.

A small file can stand for a lot of memory: compressed zeros, lists of empty lists, numbers of many
digits. Here sizes are known before anything is allocated, and whatever a parser raises becomes a
ValueError of one line.
"""

import io
import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterable, List, Tuple, Union

# Bytes of a text of JSON: four times the names of ARC's 876,406 puzzles, the largest there is.
MOST_TEXT = 1 << 27
# What Python's objects may take that a text of JSON becomes; of those names it is 80 MB.
MOST_OBJECTS = 1 << 29
# Lists in lists: nothing here has more than six.
MOST_DEPTH = 32
# Bytes that are unpacked at a time: zstd makes up to 30,000 of each, gzip 1,000.
_PACKED = 512
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# What pzstd writes begins with a frame to be skipped, marked by one of sixteen bytes and these.
_SKIPPED = b"\x2a\x4d\x18"
# Bytes of an object of Python beyond those of its text, by the character that begins one.
_COSTS = {b"{": 240, b"[": 64, b",": 40, b":": 100, b'"': 26}


def read_bytes(path: Union[str, "os.PathLike[str]"], most: int) -> bytes:
    """Read a file that should be small.

    Args:
        path: of the file; of a pipe no more than ``most`` is read either.
        most: bytes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is larger.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > most else file.read(most + 1)
    if max(size, len(content)) > most:
        raise ValueError(f"it has more than {most:,} bytes, which no such file needs")
    return content


def read_object(path: Path, most: int = MOST_TEXT) -> Dict[str, Any]:
    """Read a file of JSON, without NaN and infinity, that holds an object.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is anything else, in one line.
    """
    content = parse_json(read_bytes(path, most), finite=True)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def parse_json(content: Union[str, bytes], distinct: bool = False, finite: bool = False) -> Any:
    """Read a text of JSON.

    Args:
        content: the text, UTF-8, perhaps with a byte order mark.
        distinct: refuse an object that has a key twice; else the last one counts, as in Python.
        finite: refuse NaN and infinity, which Python reads and JSON has not.

    Raises:
        ValueError: if it is none, would take too much memory, or is nested without end.
    """
    text = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    cost = 2 * len(text) + sum(text.count(mark) * cost for mark, cost in _COSTS.items())
    if len(text) > MOST_TEXT or cost > MOST_OBJECTS:
        raise ValueError(f"{len(text):,} bytes of JSON are more than such a file needs")
    try:
        hook = _distinct if distinct else None
        constant = _refuse_constant if finite else None
        found = json.loads(
            text.decode("utf-8-sig"), object_pairs_hook=hook, parse_constant=constant
        )
    except (RecursionError, MemoryError) as error:
        raise ValueError("it is nested too deeply") from error
    # Python may stop here, or only where the value is shown.
    if text.count(b"[") + text.count(b"{") > MOST_DEPTH:
        _check_depth(found)
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _distinct(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _check_depth(value: Any) -> None:
    """Refuse lists and objects within each other without end."""
    layer: List[Any] = [value]
    for _ in range(MOST_DEPTH + 1):
        layer = [each for each in layer if isinstance(each, (dict, list))]
        if not layer:
            return
        layer = [part for each in layer for part in _parts(each)]
    raise ValueError("it is nested too deeply")


def _parts(value: Union[Dict[str, Any], List[Any]]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def unpack_gzip(packed: bytes, most: int) -> bytes:
    """Unpack what gzip has packed, in one piece.

    Args:
        packed: the content of the file.
        most: bytes that may come out.

    Raises:
        ValueError: if more would come out, or it is damaged, cut short, or followed by anything.
    """
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(packed, most + 1)
    except zlib.error as error:
        raise ValueError(f"it is not what gzip writes ({error})") from error
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes come out of it, which no such file needs")
    if not unpacker.eof:
        raise ValueError("it is cut short")
    if unpacker.unused_data:
        raise ValueError("something follows it")
    return content


def open_unpacked(path: Union[str, "os.PathLike[str]"]) -> BinaryIO:
    """Open a file of any length to be read from its start; one of gzip or zstd is unpacked.

    No more than a few megabytes of what comes out are held at a time.

    Args:
        path: of the file; its first bytes tell what has packed it.

    Returns:
        The open file. Reading raises OSError where what is packed is damaged or cut short.

    Raises:
        OSError: if it cannot be opened, or zstandard, which unpacks zstd, is not installed.
    """
    file = open(path, "rb")  # pylint: disable=consider-using-with
    first = file.peek(len(_ZSTD))
    if first.startswith(_GZIP):
        return io.BufferedReader(_Unpacked(file, lambda: zlib.decompressobj(31), zlib.error))
    skipped = first[1:].startswith(_SKIPPED) and 0x50 <= first[0] <= 0x5F
    if not first.startswith(_ZSTD) and not skipped:
        return file
    try:
        import zstandard
    except ImportError as error:
        file.close()
        raise OSError(
            "it is packed by zstd; pip install zstandard, or unpack it with 'zstd -d'"
        ) from error
    maker = zstandard.ZstdDecompressor().decompressobj
    return io.BufferedReader(_Unpacked(file, maker, zstandard.ZstdError))


class _Unpacked(io.RawIOBase):
    """What comes out of a packed file, one or more packed streams behind each other."""

    def __init__(
        self, file: BinaryIO, maker: Callable[[], Any], damaged: "type[Exception]"
    ) -> None:
        """Keep the file, what makes an unpacker of a stream, and what that raises."""
        super().__init__()
        self._file, self._maker, self._damaged = file, maker, damaged
        self._unpacker = maker()
        self._packed = self._ready = b""

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def close(self) -> None:
        """Close the file, too."""
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or a part of it.

        Raises:
            OSError: if what is packed is damaged or cut short.
        """
        while not self._ready:
            packed = self._packed or self._file.read(_PACKED)
            if not packed:
                if not self._unpacker.eof:
                    raise OSError("what is packed in it is cut short; download it again")
                return 0
            if self._unpacker.eof:
                self._unpacker = self._maker()
            try:
                self._ready = self._unpacker.decompress(packed)
            except self._damaged as error:
                raise OSError("what is packed in it is damaged; download it again") from error
            self._packed = self._unpacker.unused_data if self._unpacker.eof else b""
        part, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)
