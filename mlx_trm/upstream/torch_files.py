"""Reads the files that ``torch.save`` wrote, without torch and without running anything in them.

Two layouts are read: the zip archive of torch 1.6 and later, and the one stream of before. Both
describe tensors in a pickle (:mod:`mlx_trm.upstream.torch_pickle`) and hold their numbers apart.
Sizes, strides and places are checked before an array is made. Trainers put their weights into a
dict beside the optimiser and more: one set of weights is chosen by its names
(:func:`mlx_trm.upstream.names.choose_weights`), and the numbers of nothing else are read.

Reference: pretrain.py ``save_train_state``, which calls ``torch.save`` on a state dict.
"""

import io
import json
import math
import os
import zipfile
from collections import deque
from pathlib import Path
from typing import IO, Any, Callable, Deque, Dict, List, NamedTuple, Optional, Tuple

import mlx.core as mx
import numpy as np

from mlx_trm.errors import listed, shown
from mlx_trm.upstream.names import Leaf, choose_weights
from mlx_trm.upstream.torch_pickle import MOST_PICKLED, PickleReader, RefusedError, Storage, Tensor

ZIP_MAGIC = b"PK\x03\x04"
# The first object of the older layout, and its version.
_STREAM_MAGIC, _STREAM_VERSION = 0x1950A86A20F9469CFC6C, 1001
# Tensors may share numbers, or repeat them by a stride of 0, but not so as to fill the memory.
_MOST_REPEATED = 4
# What the reference's weights are; other dtypes are named, not converted.
_FLOATS = ("float32", "float16", "bfloat16")
_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Where trainers keep the settings and the step, beside the weights.
_SETTINGS, _STEPS = ("config", "hyper_parameters", "hparams", "cfg", "args"), (
    "step",
    "global_step",
)
# Dicts in dicts are looked through so far; optimisers have many small ones.
_DEEPEST, _MOST_VALUES = 8, 1_000_000
_PIECE = 1 << 22

# Gives a storage's bytes as a stream, and how many they are.
Numbers = Callable[[Storage], Tuple[IO[bytes], int]]


class TorchFile(NamedTuple):
    """What a file of ``torch.save`` holds of a model.

    Attributes:
        arrays: by the file's names, of the dtypes in the file (float32, float16, bfloat16).
        metadata: ``step`` and ``config`` (the settings, as JSON), where a trainer put them beside
            the weights; the same as in a safetensors file that mlx_trm wrote.
        notes: what was chosen of several, a line each.
    """

    arrays: Dict[str, mx.array]
    metadata: Dict[str, str]
    notes: List[str]


def read_torch(path: Path, entry: Optional[str] = None) -> Dict[str, mx.array]:
    """Read the weights in a file that ``torch.save`` wrote; see :func:`open_torch`."""
    return open_torch(path, entry).arrays


def open_torch(path: Path, entry: Optional[str] = None) -> TorchFile:
    """Read the weights in a file that ``torch.save`` wrote, and what is said about them.

    Args:
        path: of the file.
        entry: where in the file the weights are, such as ``model`` or ``ema.shadow``; None: the
            file's one set of weights.

    Returns:
        The weights of that entry alone.

    Raises:
        ValueError: saying in one line what is wrong with the file, what it asked for, or which
            entries it has to choose from.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise ValueError("it is empty")
            start = file.read(len(ZIP_MAGIC))
            file.seek(0)
            if start == ZIP_MAGIC:
                return _read_archive(file, size, entry)
            return _read_stream(file, size, entry)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


# The two layouts ---------------------------------------------------------------------------------


def _read_archive(file: IO[bytes], size: int, entry: Optional[str]) -> TorchFile:
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

            def numbers(storage: Storage) -> Tuple[IO[bytes], int]:
                part = entries.get(f"{root}data/{storage.key}")
                if part is None:
                    raise ValueError(f"it lacks the numbers data/{shown(storage.key)}")
                return archive.open(part), part.file_size

            return _contents(state, numbers, size, entry)
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


def _read_stream(file: IO[bytes], size: int, entry: Optional[str]) -> TorchFile:
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

    def numbers(storage: Storage) -> Tuple[IO[bytes], int]:
        if storage.key not in places:
            raise ValueError(f"it lacks the numbers {shown(storage.key)}")
        file.seek(places[storage.key])
        return file, storage.size * np.dtype(storage.kind.bits).itemsize

    return _contents(state, numbers, size, entry)


# From descriptions to arrays ---------------------------------------------------------------------


def _contents(state: Any, numbers: Numbers, size: int, entry: Optional[str]) -> TorchFile:
    """Choose one set of weights among all that a file describes, and read its numbers."""
    if not isinstance(state, (dict, list, tuple)) or not state:
        raise ValueError("it holds no state dict (names and tensors)")
    leaves, dicts = _find_tensors(state)
    chosen = choose_weights(leaves, entry)
    holder = dicts.get(chosen.container, state) if leaves else state
    # Of a part of a dict, named by the beginning of its names, the rest may be anything.
    part = entry is not None and len(entry) > len(".".join(chosen.container))
    _check_plain({} if part else holder, chosen.values)
    arrays = _arrays(chosen.values, numbers, size)
    return TorchFile(arrays, _find_metadata(state) if chosen.container else {}, chosen.notes)


def _find_tensors(state: Any) -> Tuple[List[Leaf[Tensor]], Dict[Tuple[str, ...], Any]]:
    """List the tensors in dicts and lists, and the dicts and lists that hold any, by their place.

    Whatever stands in two places is found in the first; a loop is followed once.
    """
    leaves: List[Leaf[Tensor]] = []
    holders: Dict[Tuple[str, ...], Any] = {}
    seen, left = set(), _MOST_VALUES
    waiting: Deque[Tuple[Tuple[str, ...], Any]] = deque([((), state)])
    while waiting:
        place, holder = waiting.popleft()
        # A tensor's description is a tuple too, and is no place to look into.
        if id(holder) in seen or len(place) > _DEEPEST:
            continue
        seen.add(id(holder))
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        left -= len(holder)
        if left < 0:
            raise ValueError("it holds more values than any checkpoint; save the weights alone")
        for key, value in items:
            if isinstance(value, Tensor):
                leaves.append(Leaf(place, str(key), value))
                holders[place] = holder
            elif type(value) in (list, tuple) or isinstance(value, dict):
                waiting.append(((*place, str(key)), value))
    return leaves, holders


def _check_plain(holder: Any, chosen: Dict[str, Tensor]) -> None:
    """Refuse a state dict in which something is no tensor, or no weight."""
    problems = []
    for name, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
        if not isinstance(name, str):
            problems.append("a name is no text")
        elif not isinstance(value, Tensor):
            inside = "a state dict of its own" if isinstance(value, dict) else "no tensor"
            problems.append(f"{shown(name)} is {inside}")
    for name, tensor in chosen.items():
        if tensor.storage.kind.name not in _FLOATS:
            problems.append(
                f"{shown(name)} is {tensor.storage.kind.name}, not {', '.join(_FLOATS)}"
            )
    if problems:
        raise ValueError(f"it holds no plain state dict: {listed(problems, 6)}")


def _find_metadata(state: Any) -> Dict[str, str]:
    """Read step and settings that a trainer put beside the weights; what is no plain value is not.

    Settings of the model are in ``arch``, as in the reference's configuration, or at the top.
    """
    metadata: Dict[str, str] = {}
    if not isinstance(state, dict):
        return metadata
    for name in _STEPS:
        step = state.get(name)
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 10**15:
            metadata.setdefault("step", str(step))
    for name in _SETTINGS:
        settings = state.get(name)
        if isinstance(settings, dict):
            settings = settings.get("arch", settings)
        if isinstance(settings, dict) and "config" not in metadata:
            plain = {
                key: value
                for key, value in settings.items()
                if isinstance(key, str) and isinstance(value, (str, int, float, bool))
            }
            metadata.update({"config": json.dumps(plain)} if plain else {})
    return metadata


def _arrays(state: Dict[str, Tensor], numbers: Numbers, size: int) -> Dict[str, mx.array]:
    """Make arrays of descriptions, after everything about them has been checked."""
    total = sum(
        math.prod(tensor.shape) * np.dtype(tensor.storage.kind.bits).itemsize
        for tensor in state.values()
    )
    if total > _MOST_REPEATED * size:
        raise ValueError(f"its tensors would take {total} bytes, and the file has {size}")
    arrays: Dict[str, mx.array] = {}
    held: Optional[Storage] = None
    data = np.zeros(0)
    for name, tensor in sorted(state.items(), key=lambda item: item[1].storage.key):
        storage = tensor.storage
        if storage != held:
            stream, length = numbers(storage)
            if length != storage.size * np.dtype(storage.kind.bits).itemsize:
                raise ValueError(
                    f"the numbers of {shown(name)} are cut short: {length} bytes for "
                    f"{storage.size} of {storage.kind.name}"
                )
            if _is_whole(tensor):
                arrays[name] = _read_whole(stream, length, tensor)
                continue
            content, held = bytearray(length), storage
            _fill(stream, memoryview(content), name)
            data = np.frombuffer(content, dtype=storage.kind.bits)
        strides = tuple(stride * data.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(
            data[tensor.offset :], tensor.shape, strides, writeable=False
        )
        array = mx.array(np.asarray(view, order="C"))
        arrays[name] = array if storage.kind.dtype is None else array.view(storage.kind.dtype)
    mx.eval(arrays)
    return {name: arrays[name] for name in state}


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its storage, in order."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides)):
        if size != 1 and stride != step:
            return False
        step *= size
    return tensor.offset == 0 and 0 < step == tensor.storage.size


class _Safetensors(io.RawIOBase):
    """One array's bytes, as the safetensors file that MLX reads without a copy on the way.

    A puzzle table of a million rows takes 2 GB: held as bytes too, it would take 4.
    """

    def __init__(self, stream: IO[bytes], length: int, tensor: Tensor) -> None:
        """Put a header before ``length`` bytes of a stream."""
        super().__init__()
        about = {"dtype": _SAFETENSORS[tensor.storage.kind.name], "shape": tensor.shape}
        header = json.dumps({"x": {**about, "data_offsets": [0, length]}}).encode()
        self._head = len(header).to_bytes(8, "little") + header
        self._stream, self._length, self._place = stream, length, 0
        self.failure: Optional[BaseException] = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes, but behind the header it is read in order."""
        return True

    def tell(self) -> int:
        """Give the place."""
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        start = (0, self._place, len(self._head) + self._length)[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer. An error is kept for later: MLX cannot pass it on."""
        view = memoryview(buffer).cast("B")
        head = self._head[self._place : self._place + len(view)]
        view[: len(head)] = head
        self._place += len(view)
        try:
            _fill(self._stream, view[len(head) :], "an array")
        except BaseException as error:  # pylint: disable=broad-exception-caught
            self.failure = error
        return len(view)


def _read_whole(stream: IO[bytes], length: int, tensor: Tensor) -> mx.array:
    """Read a tensor that is all of its storage straight into an array."""
    source: Any = _Safetensors(stream, length, tensor)
    loaded: Any = mx.load(source, format="safetensors")
    array: mx.array = loaded["x"]
    mx.eval(array)
    if source.failure is not None:
        raise source.failure
    return array


def _fill(stream: IO[bytes], view: memoryview, name: str) -> None:
    """Fill memory from a stream piece by piece; a zip's checksum is checked at its end."""
    place = 0
    while place < len(view):
        piece = stream.read(min(_PIECE, len(view) - place))
        if not piece:
            raise ValueError(f"the numbers of {shown(name)} are cut short")
        view[place : place + len(piece)] = piece
        place += len(piece)
