"""Pickles, and parts of them, that are made to do harm where they are unpickled.

In all of them a storage of six numbers is called ``0``, and the numbers are in two rows.
"""

import random
import struct
from pathlib import Path

import torch_writer as tw

STORED = tw.storage("0", "FloatStorage", 6)
SIZES = tw.several(tw.number(2), tw.number(3)), tw.several(tw.number(3), tw.number(1))
FUNCTIONS = {
    "dict": tw.name("collections", "OrderedDict"),
    "size": tw.name("torch", "Size"),
    "view": tw.name("torch._utils", "_rebuild_tensor_v2"),
    "old view": tw.name("torch._utils", "_rebuild_tensor"),
    "parameter": tw.name("torch._utils", "_rebuild_parameter"),
    "typed": tw.name("torch._tensor", "_rebuild_from_type_v2"),
    "storage": tw.name("torch", "FloatStorage"),
    "class": tw.name("torch.nn.parameter", "Parameter"),
}
NAMES = [
    *(("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr")),
    *(("builtins", "set"), ("builtins", "dict"), ("builtins", "object"), ("builtins", "type")),
    *(("__builtin__", "eval"), ("operator", "attrgetter"), ("functools", "partial")),
    *(("copyreg", "add_extension"), ("copyreg", "_reconstructor"), ("types", "FunctionType")),
    *(("collections", "OrderedDict.fromkeys"), ("collections", "OrderedDict.__init__")),
    *(("collections", "OrderedDict.__class__"), ("collections", "_sys.modules")),
    *(("collections.OrderedDict", "fromkeys"), ("collections", "OrderedDict."), ("", "")),
    *(("torch._utils", "_rebuild_tensor_v2.__globals__"), ("torch", "FloatStorage.__class__")),
    *(("torch", "load"), ("torch.serialization", "os.system"), ("torch", "Storage")),
    *(("torch.FloatStorage", ""), (" torch", "Tensor"), ("torch", "Tensor "), ("torch", "TENSOR")),
    *(
        ("mlx_trm.upstream.torch_pickle", "_MEANINGS"),
        ("mlx_trm.upstream.torch_pickle", "_Name.__call__"),
    ),
    *(("torch", "Size\x00"), ("torch", "\u0405ize"), ("torch", "x" * 5000), ("torch", "\x1b[2J")),
]


def value(content: bytes) -> bytes:
    """Pickle a state dict with one value."""
    return b"\x80\x04}" + tw.text("x") + content + b"s."


def shell(folder: Path) -> str:
    """Give a command that leaves a trace."""
    return f"echo done > {folder / 'harm'}"


def attacks(folder: Path) -> dict:
    """Give instructions that would change, call or open what stands before them."""
    harm = tw.text(shell(folder))
    items = {
        "call": tw.text("__call__") + tw.text("x"),
        "class": tw.text("__class__") + FUNCTIONS["class"],
        "dict": tw.text("__dict__") + b"}",
        "module": tw.text("module") + tw.text("os"),
        "state": tw.text("__setstate__") + FUNCTIONS["parameter"],
        "number": b"K\x00" + tw.text("x"),
    }
    arguments = [b")", b"]", b"}", b"N", b"K\x01", harm, tw.several(harm), STORED]
    arguments += FUNCTIONS.values()
    return {
        **{f"BUILD {key}": b"}(" + item + b"ub" for key, item in items.items()},
        **{f"BUILD slots {key}": b"N}(" + item + b"u\x86b" for key, item in items.items()},
        **{f"SETITEMS {key}": b"(" + item + b"u" for key, item in items.items()},
        **{f"REDUCE {n}": content + b"R" for n, content in enumerate(arguments)},
        **{f"NEWOBJ {n}": content + b"\x81" for n, content in enumerate(arguments)},
        "SETITEM": items["call"] + b"s",
        "APPEND": harm + b"a",
        "APPENDS": b"(" + harm + harm + b"e",
        "ADDITEMS": b"(" + harm + b"\x90",
        "NEWOBJ_EX": b")}\x92",
        "NEWOBJ_EX with words": b")}" + items["module"] + b"s\x92",
        "INST": b"(" + harm + b"ios\nsystem\n",
        "INST of a name": b"(icollections\nOrderedDict\n",
        "PERSID": b"Ptorch.Tensor\n",
        "BINPERSID": tw.several(tw.text("storage"), FUNCTIONS["class"], *[tw.text("0")] * 3) + b"Q",
        "BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**62),
        "NEXT_BUFFER": b"\x97",
        "READONLY_BUFFER": b"\x98",
        "EMPTY_SET": b"\x8f",
        "FROZENSET": b"(" + harm + b"\x91",
        "BINBYTES8": b"\x8e" + b"\xff" * 8,
        "BINSTRING": b"T\xff\xff\xff\xff",
        "LONG1": b"\x8a\xff" + b"\x7f" * 255,
        "LONG4": b"\x8b\xff\xff\xff\x7f",
        "PUT": b"p-1\n",
        "GET": b"gx\n",
        "POP, too many": b"0" * 9,
        "a mark": b"(",
        "no mark": b"t",
        "two of nothing": b"\x86" * 3,
        "no instruction": b"\xff",
    }


def chance(draws: random.Random, depth: int = 3) -> bytes:
    """Push an object of any kind that a pickle can make."""
    plain = [b"N", b"\x88", b"\x89", b")", b"]", b"}", STORED, *SIZES, *FUNCTIONS.values()]
    plain += [tw.number(n) for n in (0, 1, 2, 3, 6, -1, 2**31 - 1, 2**31, -(2**63), 2**63)]
    plain += [b"\x8a\xff" + b"\x7f" * 255, b"G" + struct.pack(">d", 1), b"G\x7f\xf8" + bytes(6)]
    plain += [tw.text(text) for text in ("", "x", "storage", "0", "neg")]
    if depth == 0 or draws.random() < 0.5:
        return draws.choice(plain)
    parts = [chance(draws, depth - 1) for _ in range(draws.randrange(8))]
    made = tw.several(*parts)
    many = b"](" + b"".join(parts) + b"e", b"}" + b"".join(tw.text("k") + p + b"s" for p in parts)
    return draws.choice(
        [*many, made, made + b"Q", draws.choice([*FUNCTIONS.values()]) + made + b"R"]
    )


def floods() -> dict:
    """Give pickles that would take hours, the memory or the C stack."""
    pairs = b"K\x01K\x02\x86" + b"".join(b"q%c" % n + b"h%c" % n + b"\x86" for n in range(60))
    number = b"\x8a\x09" + (2**61 - 1).to_bytes(9, "little")
    deep = 50_000
    return {
        "a key that hashes for hours": b"}" + pairs + b"Ns.",
        "keys that hash for hours": b"}(" + pairs + b"Nu.",
        "the same, in an OrderedDict": FUNCTIONS["dict"] + b")R" + pairs + b"Ns.",
        "numbers that collide": b"}(" + number + b"N" + tw.number(0) + b"Nu.",
        "a key too deep to hash": b"})" + b"\x85" * 4 * deep + b"Ns.",
        "a value that compares for hours": value(
            FUNCTIONS["view"] + tw.several(STORED, b"K\x00", *SIZES, b"NN", pairs) + b"R"
        ),
        "a deep tuple": b")" + b"\x85" * deep + b".",
        "a deep tuple as a value": value(b")" + b"\x85" * deep),
        "a deep list": b"]" * deep + b"a" * (deep - 1) + b".",
        "deep dicts": b"}X\1\0\0\0xq\x00" + b"}h\x00" * deep + b"N" + b"s" * (deep + 1) + b".",
        "deep calls": value((FUNCTIONS["parameter"] + b"(") * 5000 + b"N" + b"tR" * 5000),
        "deep types": value((FUNCTIONS["typed"] + b"(NN(") * 5000 + b"ttR" * 5000),
        "marks": b"(" * deep + b".",
        "a loop": b"}q\x00" + tw.text("x") + b"h\x00s.",
        "a loop of lists": b"]q\x00h\x00ah\x00h\x00\x86.",
        "a table of 256 MB": b"}r\x00\x00\x00\x01.",
        "a table of 64 GB": b"}r\xff\xff\xff\xff.",
        "64 GB, as text": b"}p4294967295\n.",
        "a text of 4 GB": b"X\xff\xff\xff\xff.",
        "a frame of all there is": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
        "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
        "a name of a million letters": b"c" + b"x" * 1_000_000 + b"\nx\n.",
        "a key of a million letters": value(tw.storage("k" * 1_000_000, "FloatStorage", 6)),
        "a state of pairs": b"}" + pairs + b"b.",
        "a state in which pairs are keys": b"}}" + pairs + b"Nsb.",
    }
