"""Weights by name: safetensors files read whole, and arrays put into a model once checked."""

import math
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_trm.errors import CheckpointError, describe_error, listed, shown
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.system.bounded import parse_json
from mlx_trm.system.environment import note_computing, reserve_descriptors

# Bytes of a number, by safetensors' name of its dtype.
_ITEM_SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "C64": 8},
}

_ENTRY = {"dtype", "shape", "data_offsets"}
# A model of a thousand blocks has a header of a megabyte.
_MOST_HEADER = 1 << 23
_MOST_DIMENSIONS = 16
# Numbers that are looked at in one go.
_LOOKED_AT = 1 << 24


def read_safetensors(path: Path) -> Tuple[Dict[str, mx.array], Dict[str, str]]:
    """Read a safetensors file whole; what is cut short or no such file is refused.

    Args:
        path: of the file.

    Returns:
        Its arrays and its metadata.

    Raises:
        ValueError: saying what is wrong in one line.
    """
    try:
        # MLX 0.29 reads what is missing at the end of a file as whatever the memory holds.
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ValueError("it is cut short, or not such a file")
            if length > _MOST_HEADER:
                raise ValueError(f"its header has {length:,} bytes, which no model needs")
            header = parse_json(file.read(length), distinct=True)
        _check_header(header, size - 8 - length)
        note_computing()
        reserve_descriptors()
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        mx.eval(loaded[0])
        return dict(loaded[0]), dict(loaded[1])
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its header is malformed") from error
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ValueError(describe_error(error)) from error


def _check_header(header: Mapping[str, Any], size: int) -> None:
    """Check what a safetensors header says before MLX believes it.

    Each array has the bytes that its shape takes, and arrays lie one behind the other, from the
    first byte to the last: where they share bytes, a small file becomes a lot of memory.

    Raises:
        ValueError: naming the array.
    """
    places: List[Tuple[int, int, str]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            if not all(isinstance(text, str) for text in (entry or {}).values()):
                raise ValueError("its metadata are no text")
            continue
        if entry.keys() != _ENTRY:
            raise ValueError("its header is malformed")
        begin, end = entry["data_offsets"]
        shape, dtype = entry["shape"], entry["dtype"]
        if dtype not in _ITEM_SIZES:
            raise ValueError(f"{shown(name)} has the dtype {shown(dtype)}, which MLX does not read")
        if len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"{shown(name)} has {len(shape):,} dimensions")
        numbers = [begin, end, *shape]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise ValueError("its header is malformed")
        if end > size:
            raise ValueError("it is cut short")
        if math.prod(shape) * _ITEM_SIZES[dtype] != end - begin or max(shape, default=0) >= 2**31:
            raise ValueError(
                f"{shown(name)} of shape {shown(tuple(shape))} and {dtype} has "
                f"{shown(end - begin)} bytes"
            )
        places.append((begin, end, name))
    last = 0
    for begin, end, name in sorted(places):
        if begin != last:
            what = "shares bytes with another array" if begin < last else "stands behind a gap"
            raise ValueError(f"{shown(name)} {what}")
        last = end
    if last != size:
        raise ValueError(f"{size - last:,} bytes follow its last array")


def check_finite(arrays: Mapping[str, mx.array], where: str) -> None:
    """Refuse arrays that hold NaN or infinity.

    Args:
        arrays: by name; whole numbers are not looked at.
        where: file or folder to name in an error.

    Raises:
        CheckpointError: naming the first of them, and how many there are.
    """
    bad = [name for name, array in arrays.items() if count_nonfinite(array)]
    if bad:
        raise CheckpointError(
            f"{where}: {len(bad)} of {len(arrays)} arrays hold numbers that are not finite (NaN or "
            f"infinity): {listed(list(map(shown, bad)), 6)}; use another checkpoint"
        )


def count_nonfinite(array: mx.array) -> int:
    """Count the numbers of an array that are NaN or infinite; whole numbers never are."""
    if not mx.issubdtype(array.dtype, mx.inexact):
        return 0
    flat, count = array.reshape(-1), 0
    for start in range(0, flat.size, _LOOKED_AT):  # a large table is not copied whole
        piece = flat[start : start + _LOOKED_AT]
        finite: Any = mx.sum(mx.isfinite(piece)).item()
        count += piece.size - int(finite)
    return count


def load_weights(
    model: RecursiveModel, arrays: Mapping[str, mx.array], where: str, partial: bool = False
) -> None:
    """Put arrays into a model after checking every name and shape.

    Args:
        model: changed in place; untouched where anything does not fit.
        arrays: by our dotted names.
        where: file or folder to name in an error.
        partial: whether names may be missing (the EMA holds trained weights only).

    Raises:
        CheckpointError: naming what is missing, unexpected, of another shape or not finite.
    """
    own = dict(named_arrays(model.parameters()))
    problems: List[str] = []
    for name in sorted(set(own) - set(arrays)) if not partial else ():
        problems.append(f"missing {shown(name)} {tuple(own[name].shape)}")
    for name in sorted(set(arrays) - set(own)):
        problems.append(f"unexpected {shown(name)} {tuple(arrays[name].shape)}")
    for name in sorted(set(arrays) & set(own)):
        have, want = tuple(arrays[name].shape), tuple(own[name].shape)
        if have != want:
            problems.append(f"{name} is {have}, the model needs {want}")
    if problems:
        raise CheckpointError(
            f"{where}: {len(problems)} weights do not fit the model: {listed(problems)}; "
            "use the configuration the weights were trained with"
        )
    check_finite(arrays, where)
    # Weights that come with the package are bfloat16; the model computes with float32 ones.
    model.update(tree_unflatten([(k, array.astype(own[k].dtype)) for k, array in arrays.items()]))
