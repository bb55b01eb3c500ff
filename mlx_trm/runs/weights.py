"""Weights by name: safetensors files read whole, and arrays put into a model once checked."""

import json
import math
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_trm.errors import CheckpointError, listed, shown
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.system.environment import note_computing, reserve_descriptors

# Bytes of a number, by safetensors' name of its dtype.
_ITEM_SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "C64": 8},
}


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
            header = json.loads(file.read(length).decode("utf-8"))
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
    except (ValueError, RuntimeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check_header(header: Mapping[str, Any], size: int) -> None:
    """Check that each array of a safetensors header has the bytes that its shape takes.

    Raises:
        ValueError: naming the array.
    """
    for name, entry in header.items():
        if name == "__metadata__":
            if not all(isinstance(text, str) for text in (entry or {}).values()):
                raise ValueError("its metadata are no text")
            continue
        begin, end = entry["data_offsets"]
        shape, dtype = entry["shape"], entry["dtype"]
        if dtype not in _ITEM_SIZES:
            raise ValueError(f"{shown(name)} has the dtype {shown(dtype)}, which MLX does not read")
        numbers = [begin, end, *shape]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise ValueError("its header is malformed")
        if end > size:
            raise ValueError("it is cut short")
        if math.prod(shape) * _ITEM_SIZES[dtype] != end - begin or max(shape, default=0) >= 2**31:
            raise ValueError(
                f"{shown(name)} of shape {shown(tuple(shape))} and {dtype} has {end - begin} bytes"
            )


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
        CheckpointError: naming what is missing, unexpected or of another shape.
    """
    own = dict(named_arrays(model.parameters()))
    problems = []
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
    # Weights that come with the package are bfloat16; the model computes with float32 ones.
    model.update(tree_unflatten([(k, array.astype(own[k].dtype)) for k, array in arrays.items()]))
