"""Writes files as ``torch.save`` lays them out, instruction by instruction and without torch.

So a test can put into them whatever it likes, and anything that torch would never write.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."


def name(module: str, attribute: str) -> bytes:
    """Mention a name."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    """Put a text on the stack."""
    raw = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """Put a whole number on the stack."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def several(*items: bytes) -> bytes:
    """Put a tuple on the stack."""
    return b"(" + b"".join(items) + b"t"


def storage(key: str, kind: str, count: int, view: Optional[bytes] = None) -> bytes:
    """Describe a storage."""
    parts = [text("storage"), name("torch", kind), text(key), text("cpu"), number(count)]
    return several(*parts, *([] if view is None else [view])) + b"Q"


def tensor(
    stored: bytes, offset: int, shape: Sequence[int], strides: Sequence[int], *more: bytes
) -> bytes:
    """Describe a tensor; ``more`` are its metadata, and what no tensor has."""
    sizes = [several(*map(number, values)) for values in (shape, strides)]
    hooks = name("collections", "OrderedDict") + b")R"
    rest = several(stored, number(offset), *sizes, b"\x89", hooks, *more)
    return name("torch._utils", "_rebuild_tensor_v2") + rest + b"R"


def state_dict(entries: Dict[str, bytes]) -> bytes:
    """Pickle a dict."""
    items = b"".join(text(key) + value for key, value in entries.items())
    return b"\x80\x02}(" + items + b"u."


def simple(key: str, array: np.ndarray, kind: str = "FloatStorage") -> bytes:
    """Describe a contiguous tensor with a storage of its own."""
    strides = [stride // array.itemsize for stride in array.strides]
    return tensor(storage(key, kind, array.size), 0, array.shape, strides)


def archive(
    path: Path,
    pickled: bytes,
    data: Dict[str, bytes],
    order: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write the zip layout."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", order)
        for key, content in data.items():
            file.writestr(f"archive/data/{key}", content)
    return path


def stream(
    path: Path, pickled: bytes, data: Dict[str, Tuple[int, bytes]], little: bytes = b"\x88"
) -> Path:
    """Write the older layout."""
    keys = b"\x80\x02](" + b"".join(text(key) for key in data) + b"e."
    file = io.BytesIO()
    for part in (MAGIC, VERSION, b"\x80\x02}(" + text("little_endian") + little + b"u.", pickled):
        file.write(part)
    file.write(keys)
    for count, content in data.values():
        file.write(struct.pack("<q", count) + content)
    path.write_bytes(file.getvalue())
    return path


def stack(item: Any, data: Dict[str, bytes]) -> bytes:
    """Put anything on the stack as torch does; what tensors hold goes into ``data``.

    Arrays are tensors (uint16: bfloat16, uint8: bytes), and bytes are instructions.
    """
    if isinstance(item, bytes):
        return item
    if isinstance(item, np.ndarray):
        kinds = {"f": "FloatStorage", "H": "BFloat16Storage", "B": "ByteStorage"}
        key = str(len(data))
        data[key] = item.tobytes()
        return simple(key, item, kinds[item.dtype.char])
    if isinstance(item, dict):
        pairs = ((stack(key, data), stack(part, data)) for key, part in item.items())
        return b"}(" + b"".join(key + part for key, part in pairs) + b"u"
    if isinstance(item, list):
        return b"](" + b"".join(stack(part, data) for part in item) + b"e"
    if isinstance(item, tuple):
        return several(*(stack(part, data) for part in item))
    if item is None or isinstance(item, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[item]
    if isinstance(item, float):
        return b"G" + struct.pack(">d", item)
    return number(item) if isinstance(item, int) else text(item)


def save_tree(path: Path, tree: Any) -> Path:
    """Save dicts of dicts and tensors, as trainers do, in the zip layout."""
    data: Dict[str, bytes] = {}
    pickled = b"\x80\x02" + stack(tree, data) + b"."
    return archive(path, pickled, data)


def save(path: Path, arrays: Dict[str, np.ndarray], prefix: str = "") -> Path:
    """Save float32 arrays in the zip layout."""
    entries = {prefix + key: simple(str(n), array) for n, (key, array) in enumerate(arrays.items())}
    data = {str(n): array.tobytes() for n, array in enumerate(arrays.values())}
    return archive(path, state_dict(entries), data)
