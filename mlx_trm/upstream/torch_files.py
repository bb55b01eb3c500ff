"""Reads the files that ``torch.save`` wrote, without torch and without running anything in them.

Two layouts are read: the zip archive of torch 1.6 and later, and the one stream of before. Both
describe tensors in a pickle (:mod:`mlx_trm.upstream.torch_pickle`) and hold their numbers apart.
Sizes, strides and places are checked before an array is made.

Reference: pretrain.py ``save_train_state``, which calls ``torch.save`` on a state dict.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any, Callable, Dict, Optional

import mlx.core as mx
import numpy as np

from mlx_trm.errors import listed, shown
from mlx_trm.upstream.torch_pickle import MOST_PICKLED, PickleReader, RefusedError, Storage, Tensor

ZIP_MAGIC = b"PK\x03\x04"
# The first object of the older layout, and its version.
_STREAM_MAGIC, _STREAM_VERSION = 0x1950A86A20F9469CFC6C, 1001
# Tensors may share numbers, or repeat them by a stride of 0, but not so as to fill the memory.
_MOST_REPEATED = 4
# What the reference's weights are; other dtypes are named, not converted.
_FLOATS = ("float32", "float16", "bfloat16")


def read_torch(path: Path) -> Dict[str, mx.array]:
    """Read the state dict in a file that ``torch.save`` wrote.

    Args:
        path: of the file.

    Returns:
        Its arrays, of the dtypes in the file (float32, float16, bfloat16), by the file's names.

    Raises:
        ValueError: saying in one line what is wrong with the file, or what it asked for.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ValueError("it is empty")
            start = file.read(len(ZIP_MAGIC))
            file.seek(0)
            if start == ZIP_MAGIC:
                return _read_archive(file, size)
            return _read_stream(file, size)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


# The two layouts ---------------------------------------------------------------------------------


def _read_archive(file: IO[bytes], size: int) -> Dict[str, mx.array]:
    """Read the zip layout: NAME/data.pkl describes, NAME/data/KEY holds the numbers."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _checked_entries(archive, size)
            roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise ValueError("it is a zip archive, but not one that torch.save wrote")
            root = roots[0]
            order = entries.get(root + "byteorder")
            if order is not None and archive.read(order).strip() != b"little":
                raise ValueError("it was written on a big-endian machine; save it on another one")
            pickled = entries[root + "data.pkl"]
            if pickled.file_size > MOST_PICKLED:
                raise ValueError(f"its data.pkl has {pickled.file_size} bytes; no state dict has")
            with archive.open(pickled) as stream:
                state = PickleReader(stream).read()

            def numbers(storage: Storage) -> bytes:
                entry = entries.get(f"{root}data/{storage.key}")
                if entry is None:
                    raise ValueError(f"it lacks the numbers data/{shown(storage.key)}")
                return archive.read(entry)

            return _arrays(state, numbers, size)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError) as error:
        raise ValueError(f"the zip archive is damaged or cut short ({shown(error)})") from error


def _checked_entries(archive: zipfile.ZipFile, size: int) -> Dict[str, zipfile.ZipInfo]:
    """Give an archive's entries by name; refuse what torch.save does not write."""
    entries: Dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        if entry.filename in entries:
            raise ValueError(f"the zip archive holds {shown(entry.filename)} twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(
                f"the zip archive holds {shown(entry.filename)} compressed or encrypted, which "
                "torch.save never does; unpack it and pack it again without"
            )
        entries[entry.filename] = entry
    if sum(entry.file_size for entry in entries.values()) > size:
        raise ValueError("the zip archive is damaged: it claims to hold more than the file has")
    return entries


def _read_stream(file: IO[bytes], size: int) -> Dict[str, mx.array]:
    """Read the older layout: five pickles, then the numbers of each storage after their count."""
    try:
        magic = PickleReader(file).read()
    except RefusedError:
        raise
    except ValueError as error:
        raise ValueError("it is neither what torch.save writes nor safetensors") from error
    if magic != _STREAM_MAGIC:
        raise ValueError("it is neither what torch.save writes nor safetensors")
    version, about = PickleReader(file).read(), PickleReader(file).read()
    if version != _STREAM_VERSION or not isinstance(about, dict):
        raise ValueError("its version of torch's older layout is not known")
    if about.get("little_endian") is not True:
        raise ValueError("it was written on a big-endian machine; save it on another one")
    reader = PickleReader(file)
    state, keys = reader.read(), PickleReader(file).read()
    places: Dict[str, int] = {}
    for key in keys if isinstance(keys, list) else ():
        storage = reader.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise ValueError("it lists numbers that no tensor has")
        count = int.from_bytes(file.read(8), "little")
        if count != storage.size:
            raise ValueError(
                f"it is damaged: {storage.size} numbers of {shown(key)} became {count}"
            )
        places[key] = file.tell()
        end = places[key] + count * np.dtype(storage.kind.bits).itemsize
        if end > size:
            raise ValueError("it is cut short")
        file.seek(end)

    def numbers(storage: Storage) -> bytes:
        if storage.key not in places:
            raise ValueError(f"it lacks the numbers {shown(storage.key)}")
        file.seek(places[storage.key])
        return file.read(storage.size * np.dtype(storage.kind.bits).itemsize)

    return _arrays(state, numbers, size)


# From descriptions to arrays ---------------------------------------------------------------------


def _arrays(state: Any, numbers: Callable[[Storage], bytes], size: int) -> Dict[str, mx.array]:
    """Make the arrays of a state dict, after everything about them has been checked."""
    if not isinstance(state, dict) or not state:
        raise ValueError("it holds no state dict (names and tensors)")
    problems, total = [], 0
    for name, tensor in state.items():
        if not isinstance(name, str):
            problems.append("a name is no text")
        elif not isinstance(tensor, Tensor):
            inside = "a state dict of its own" if isinstance(tensor, dict) else "no tensor"
            problems.append(f"{shown(name)} is {inside}")
        elif tensor.storage.kind.name not in _FLOATS:
            problems.append(
                f"{shown(name)} is {tensor.storage.kind.name}, not {', '.join(_FLOATS)}"
            )
        else:
            total += math.prod(tensor.shape) * np.dtype(tensor.storage.kind.bits).itemsize
    if problems:
        raise ValueError(f"it holds no plain state dict: {listed(problems, 6)}")
    if total > _MOST_REPEATED * size:
        raise ValueError(f"its tensors would take {total} bytes, and the file has {size}")
    arrays: Dict[str, mx.array] = {}
    held: Optional[Storage] = None
    data = np.zeros(0)
    for name, tensor in sorted(state.items(), key=lambda item: item[1].storage.key):
        kind = tensor.storage.kind
        if tensor.storage != held:
            content, held = numbers(tensor.storage), tensor.storage
            if len(content) != held.size * np.dtype(kind.bits).itemsize:
                raise ValueError(
                    f"the numbers of {shown(name)} are cut short: {len(content)} bytes for "
                    f"{held.size} of {kind.name}"
                )
            data = np.frombuffer(content, dtype=kind.bits)
        strides = tuple(stride * data.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(
            data[tensor.offset :], tensor.shape, strides, writeable=False
        )
        array = mx.array(np.asarray(view, order="C"))
        arrays[name] = array if kind.dtype is None else array.view(kind.dtype)
    mx.eval(arrays)
    return {name: arrays[name] for name in state}
