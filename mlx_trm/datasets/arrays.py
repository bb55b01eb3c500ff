"""Arrays in files of NumPy's, whose headers are checked before anything is read or allocated.

NumPy takes a header for Python, with whatever Python raises, and believes the shape that it names.
Here a header names whole numbers in one or two dimensions, and the file has exactly their bytes.
"""

import ast
import math
import re
from pathlib import Path
from typing import IO, Literal, NamedTuple, Tuple

import numpy as np

from mlx_trm.errors import DamagedError, DataError, describe_error, shown

ADVICE = "; build the dataset again"
_MAGIC = b"\x93NUMPY"
# NumPy pads headers to 64 or 128 bytes; by itself it reads up to 10,000.
_MOST_HEADER = 4096
# A one-dimensional array is read whole: of each example, puzzle or group one number, of the 3
# million puzzles that ARC may have with all augmentations 24 MB.
_MOST_READ = 1 << 28


class _Header(NamedTuple):
    """What a header says."""

    dtype: np.dtype
    shape: Tuple[int, ...]
    order: Literal["C", "F"]
    offset: int


def open_array(path: Path, dimensions: int) -> np.ndarray:
    """Open an array of whole numbers.

    Args:
        path: of the file.
        dimensions: 2: rows, which are mapped and not read; 1: read.

    Raises:
        DamagedError: if there is no such file, or it is not such an array.
        DataError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            about = _read_header(file, dimensions, size)
            if dimensions == 1:
                if size > _MOST_READ:
                    raise ValueError(f"it has {size:,} bytes, which no such file needs")
                return np.fromfile(file, about.dtype)
        return np.memmap(path, about.dtype, "r", about.offset, about.shape, order=about.order)
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: no such file{ADVICE}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{path}: cannot be read: there is not enough memory") from error
    except ValueError as error:
        raise DamagedError(f"{path}: is damaged: {describe_error(error)}{ADVICE}") from error


def _read_header(file: IO[bytes], dimensions: int, size: int) -> _Header:
    """Read the header of an array in a file of so many bytes; the file then stands behind it.

    Raises:
        ValueError: saying what is wrong.
    """
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8 or start[6] not in (1, 2):
        raise ValueError("it is not an array of NumPy's")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    offset = 8 + width + length
    if length > _MOST_HEADER or offset > size:
        raise ValueError("its header is cut short, or far too long")
    try:
        about = ast.literal_eval(file.read(length).decode("latin-1").strip())
        name, fortran, shape = (about[key] for key in ("descr", "fortran_order", "shape"))
    # Python's parser raises what it likes.
    except Exception as error:  # pylint: disable=broad-exception-caught
        raise ValueError("its header cannot be read") from error
    whole = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
    if not whole or len(shape) != dimensions or not isinstance(fortran, bool):
        raise ValueError(f"it is not an array with {dimensions} dimensions")
    if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?[iu][1248]", name):
        raise ValueError(f"it is not an array of whole numbers but of {shown(repr(name))}")
    dtype = np.dtype(name)
    if math.prod(shape) * dtype.itemsize != size - offset:
        raise ValueError("it is cut short, or longer than its header says")
    return _Header(dtype, shape, "F" if fortran else "C", offset)
