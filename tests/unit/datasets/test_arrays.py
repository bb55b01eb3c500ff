"""Files of arrays: what NumPy reads here, and headers on which NumPy falls."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_trm.datasets.arrays import open_array
from mlx_trm.errors import DamagedError, DataError


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """A file with any text for a header."""
    text = header.encode("latin-1")
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(width, "little") + text + data


def about(descr: str = "'|u1'", shape: str = "(2, 3)", fortran: str = "False") -> str:
    """A header."""
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


HEADERS = {
    "cut": "{'descr': '|u1', 'shape'",
    "token": "{'descr': '|u1\n",
    "unclosed": "((((",
    "deep": "(" * 3000 + ")" * 3000,
    "minus": "-" * 4000 + "1",
    "keys": "{'descr': '|u1', 'shape': (2, 3)}",
    "unhashable": "{[]: 1}",
    "set": "{'descr', 'shape'}",
    "objects": about("'|O'"),
    "records": about("[('a', '|u1')]"),
    "text": about("'<U7'"),
    "float": about("'<f4'"),
    "wide": about("'<i16'"),
    "word": about(shape="3"),
    "negative": about(shape="(-2, -3)"),
    "float shape": about(shape="(2.0, 3)"),
    "no shape": about(shape="()"),
    "flat": about(shape="(6,)"),
    "huge": about(shape="(9223372036854775807, 9223372036854775807)"),
    "huge rows": about(shape="(2147483648000, 3)"),
    "many": about(shape="(" + "1, " * 1000 + ")"),
    "digits": about(shape="(" + "9" * 3000 + ", 1)"),
    "order": about(fortran="'no'"),
    "call": about(shape="__import__('os').getcwd()"),
    "nul": "\0" * 64,
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("version", [1, 2])
def test_a_wrong_header(tmp_path: Path, name: str, version: int) -> None:
    """Whatever NumPy or Python would raise: one line that names the file."""
    path = tmp_path / "a.npy"
    path.write_bytes(npy(HEADERS[name], b"\0" * 6, version))
    with pytest.raises(DamagedError, match="a.npy: is damaged: .*; build the dataset again") as got:
        open_array(path, 2)
    assert "\n" not in str(got.value) and len(str(got.value)) < 300


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUM",
        b"\x93NUMPY\x03\x00" + b"\0" * 9,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        npy(about(), b"\0" * 5),
        npy(about(), b"\0" * 7),
        b"PK\x03\x04" + b"\0" * 40,
        b"\x80\x04cos\nsystem\n.",
    ],
)
def test_no_such_file(tmp_path: Path, content: bytes) -> None:
    """Cut short, longer than it says, an archive, a pickle."""
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    for dimensions in (1, 2):
        with pytest.raises(DamagedError, match="is damaged"):
            open_array(path, dimensions)


@pytest.mark.parametrize("dtype", ["|u1", "<i4", ">i4", "<u8", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes(tmp_path: Path, dtype: str, order: Any) -> None:
    """Any whole numbers, in either order."""
    values = np.arange(6).reshape(2, 3).astype(dtype, order=order)
    for array in (values, values[0]):
        file = io.BytesIO()
        np.save(file, array)
        path = tmp_path / f"{array.ndim}.npy"
        path.write_bytes(file.getvalue())
        read = open_array(path, array.ndim)
        assert read.tolist() == array.tolist() and read.dtype == array.dtype


def test_what_cannot_be_read_is_not_damaged(tmp_path: Path, monkeypatch: Any) -> None:
    """Too many open files, or a disk's error: the file may be all right."""
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3), np.uint8))
    for error in (OSError(24, "Too many open files"), PermissionError(13, "no"), MemoryError()):

        def fail(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(np, "memmap", fail)
        with pytest.raises(DataError, match="cannot be read") as caught:
            open_array(path, 2)
        assert not isinstance(caught.value, DamagedError)
