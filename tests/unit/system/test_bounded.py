"""Small files that stand for much, and JSON of anybody's: one kind of error, in one line."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mlx_trm.errors import DamagedError, DataError
from mlx_trm.system import bounded
from mlx_trm.system.bounded import (
    open_unpacked,
    parse_json,
    read_bytes,
    read_object,
    unpack_gzip,
)
from mlx_trm.system.files import read_json


@pytest.mark.parametrize(
    "text, says",
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("[" * 40 + "]" * 40, "nested too deeply"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "digits"),
        (b"\xff", "utf-8"),
        (b"", "Expecting value"),
        (b"[" + b"[]," * 5_000_000 + b"[]]", "more than such a file needs"),
        (b"[" + b"{}," * 2_000_000 + b"{}]", "more than such a file needs"),
    ],
)
def test_json_that_nothing_needs(text: Any, says: str) -> None:
    """Depth, digits and what objects would take; a RecursionError is none of ours."""
    if says == "digits" and not hasattr(__import__("sys"), "set_int_max_str_digits"):
        pytest.skip("this Python reads numbers of any length")
    with pytest.raises(ValueError, match=says) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_json_that_is_needed() -> None:
    """Like the names of ARC's puzzles, grids in tasks, and names that hold brackets."""
    names = [f"task{number}|||t3|||0123456789" for number in range(1000)]
    assert parse_json(json.dumps(names)) == names
    assert parse_json("\ufeff[1]".encode()) == [1]
    assert parse_json(json.dumps("[" * 200)) == "[" * 200
    assert parse_json("[" * 30 + "]" * 30)
    # 876,406 of them, as ARC-AGI-1 has, are far below the bound.
    cost = 2 * 33 + sum(f'"{names[0]}",'.encode().count(c) * n for c, n in bounded._COSTS.items())
    assert 3_000_000 * cost < bounded.MOST_OBJECTS


def test_a_key_twice() -> None:
    """The last one counts, unless a file is to say one thing only."""
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="stands there twice"):
        parse_json('{"a": 1, "a": 2}', distinct=True)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    """It is refused by its size; of what has none no more is read than makes sense."""
    path = tmp_path / "a"
    path.write_bytes(b"x" * 11)
    assert read_bytes(path, 11) == b"x" * 11
    for source in (path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="more than 10 bytes"):
            read_bytes(source, 10)
    path.write_bytes(b"[1]")
    with pytest.raises(ValueError, match="not a JSON object"):
        read_object(path)


def test_what_gzip_unpacks() -> None:
    """As much as may come out; a bomb, a cut, a second member are refused."""
    packed = gzip.compress(b"abc", mtime=0)
    assert unpack_gzip(packed, 3) == b"abc"
    for wrong, says in (
        (packed, "more than 2 bytes"),
        (packed[:-1], "cut short"),
        (packed + packed, "something follows"),
        (packed[:-8] + b"\0" * 8, "not what gzip writes"),
        (b"", "cut short"),
        (b"abc", "not what gzip writes"),
    ):
        with pytest.raises(ValueError, match=says):
            unpack_gzip(wrong, 2 if "more" in says else 100)


def test_damaged_is_not_unreadable(tmp_path: Path, monkeypatch: Any) -> None:
    """What has wrong content may be made anew; what cannot be read just now may be all right."""
    path = tmp_path / "a.json"
    with pytest.raises(DamagedError, match="No such file"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(DamagedError, match="is not JSON"):
        read_json(path)

    def fail(*_: object) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("mlx_trm.system.files.read_bytes", fail)
    with pytest.raises(DataError, match="Too many open files") as caught:
        read_json(path)
    assert not isinstance(caught.value, DamagedError)


def test_packed_files_are_unpacked_a_little_at_a_time(tmp_path: Path) -> None:
    """One stream of gzip or several; a plain file is what it is; damage is an OSError."""
    path, text = tmp_path / "x", b"0123456789" * 20_000
    for content in (text, gzip.compress(text), gzip.compress(text[:7]) + gzip.compress(text[7:])):
        path.write_bytes(content)
        with open_unpacked(path) as file:
            assert file.readline(5) == text[:5] and file.read() == text[5:]
    path.write_bytes(gzip.compress(text)[:-4])
    with pytest.raises(OSError, match="cut short"), open_unpacked(path) as file:
        file.read()
    path.write_bytes(gzip.compress(text)[:-8] + bytes(8))  # what it says of its content
    with pytest.raises(OSError, match="damaged"), open_unpacked(path) as file:
        file.read()
    path.write_bytes(gzip.compress(bytes(1 << 26)))  # 64 MB of zeros
    tracemalloc.start()
    try:
        with open_unpacked(path) as file:
            assert file.read(10) == bytes(10)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
