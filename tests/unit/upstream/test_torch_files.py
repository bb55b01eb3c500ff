"""Files of ``torch.save``: what torch itself wrote, and what is made to do harm."""

import builtins
import os
import pickle
import struct
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch_writer as tw  # noqa: E402  # pylint: disable=wrong-import-position
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REFERENCE

from mlx_trm.convert import main
from mlx_trm.upstream.torch_files import read_torch

FOLDER = REFERENCE / "checkpoint"
NUMBERS = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize("file", ["views.pt", "views_legacy.pt"])
def test_views_that_torch_saved_have_their_numbers(file):
    """Transposed, strided, repeated, empty and shared tensors, in both of torch's layouts."""
    found = read_torch(FOLDER / file)
    expected = {
        "whole": NUMBERS,
        "transposed": NUMBERS.T,
        "strided": NUMBERS[1:3, ::2],
        "expanded": np.broadcast_to(NUMBERS[0], (3, 6)),
        "scalar": np.float32(1.5),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": NUMBERS,
        "tied": NUMBERS[1:],
        "bfloat16": NUMBERS,
        "float16": NUMBERS.T,
    }
    assert list(found) == list(expected)
    for name, want in expected.items():
        dtype = {"bfloat16": mx.bfloat16, "float16": mx.float16}.get(name, mx.float32)
        assert found[name].dtype == dtype, name
        assert tuple(found[name].shape) == np.shape(want), name
        assert np.array_equal(np.array(found[name].astype(mx.float32)), want), name


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_view_inside_its_storage_is_numpy_s(tmp_path_factory, data):
    shape = data.draw(st.lists(st.integers(1, 4), max_size=3))
    strides = data.draw(st.lists(st.integers(0, 5), min_size=len(shape), max_size=len(shape)))
    offset = data.draw(st.integers(0, 6))
    size = offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) + 1
    numbers = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    view = tw.tensor(tw.storage("0", "FloatStorage", size), offset, shape, strides)
    path = tmp_path_factory.mktemp("view") / "view.pt"
    tw.archive(path, tw.state_dict({"x": view}), {"0": numbers.tobytes()})
    places = sum(
        (np.arange(n).reshape([-1] + [1] * (len(shape) - axis - 1)) * stride)
        for axis, (n, stride) in enumerate(zip(shape, strides))
    )
    assert np.array_equal(np.array(read_torch(path)["x"]), numbers[offset + places])
    tw.archive(path, tw.state_dict({"x": view}), {"0": numbers[:-1].tobytes()})
    with pytest.raises(ValueError, match="cut short"):
        read_torch(path)


class Reduced:
    """An object whose pickle calls a function of the tester's choice."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Stateful:
    """An object whose unpickling sets a state."""

    def __setstate__(self, state):
        Path(state["x"]).write_text("done")


def stateful(harm: Path) -> Stateful:
    """An object that would write a file when its state is set."""
    made = Stateful()
    made.__dict__["x"] = str(harm)
    return made


def one_tensor(**changes) -> bytes:
    """Pickle one tensor that is described in a wrong way."""
    given_ = {"key": "0", "kind": "FloatStorage", "count": 24, "offset": 0, "shape": (4, 6)}
    given_.update(strides=(6, 1), **{k: v for k, v in changes.items() if k != "strides"})
    given_.update(changes)
    stored = tw.storage(given_["key"], given_["kind"], given_["count"])
    places = given_["offset"], given_["shape"], given_["strides"]
    return tw.state_dict({"x": tw.tensor(stored, *places, *given_.get("more", ()))})


def nested(depth: int) -> bytes:
    """Pickle a tensor that is said to be of a class of its own, many times over."""
    stored = tw.storage("0", "FloatStorage", 24)
    sizes = [tw.several(*map(tw.number, values)) for values in ((4, 6), (6, 1))]
    function = tw.name("torch._utils", "_rebuild_tensor_v2")
    arguments = tw.several(stored, tw.number(0), *sizes)
    for _ in range(depth):
        arguments = tw.several(function, tw.name("torch", "Tensor"), arguments, b"}")
        function = tw.name("torch._tensor", "_rebuild_from_type_v2")
    return tw.state_dict({"x": function + arguments + b"R"})


def flag(key: str) -> bytes:
    """Pickle a tensor's metadata."""
    return b"}(" + tw.text(key) + b"\x88u"


def evil(call: bytes) -> bytes:
    """Pickle a state dict, one value of which comes from a call."""
    return b"\x80\x02}(" + tw.text("x") + call + b"u."


def harmful(tmp_path: Path) -> dict:
    """Pickles that would write ``tmp_path/harm`` if anything in them ran; and what they ask for."""
    harm = str(tmp_path / "harm")
    shell = f"echo done > {harm}"
    source = f"open({harm!r}, 'w').write('done')"
    write = tw.several(tw.text(source)) + b"R"
    rebuilt = tw.name("torch._utils", "_rebuild_tensor_v2")
    return {
        "os.system": (pickle.dumps({"x": Reduced(os.system, shell)}, 2), "system"),
        "protocol 0": (pickle.dumps(Reduced(os.system, shell), 0), "system"),
        "protocol 5": (pickle.dumps({"x": Reduced(os.system, shell)}, 5), "system"),
        "eval": (pickle.dumps({"x": Reduced(eval, source)}, 2), "eval"),
        "exec": (pickle.dumps({"x": Reduced(exec, source)}, 4), "exec"),
        "open": (pickle.dumps({"x": Reduced(builtins.open, harm, "w")}, 2), "open"),
        "import": (evil(tw.name("builtins", "__import__") + write), "builtins.__import__"),
        "attribute": (evil(tw.name("torch.serialization", "os.system") + write), "os.system"),
        "getattr": (evil(tw.name("builtins", "getattr") + write), "builtins.getattr"),
        "copyreg": (evil(tw.name("copyreg", "_reconstructor") + write), "copyreg._reconstructor"),
        "torch.load": (evil(tw.name("torch", "load") + write), "torch.load"),
        "hub": (evil(tw.name("torch.hub", "load") + write), "torch.hub.load"),
        "allowed call of it": (evil(rebuilt + tw.several(tw.name("os", "system")) + b"R"), "os"),
        "call of a storage": (evil(tw.name("torch", "FloatStorage") + write), "no function"),
        "instance": (
            b"\x80\x02}(" + tw.text("x") + b"(" + tw.text(source) + b"ios\nsystem\nu.",
            "",
        ),
        "object": (evil(b"(" + tw.name("os", "system") + tw.text(shell) + b"o"), "os.system"),
        "new object": (evil(tw.name("collections", "OrderedDict") + b")\x81"), "of its own"),
        "extension": (evil(b"\x82\x01"), "EXT1"),
        "state": (pickle.dumps({"x": stateful(tmp_path / "harm")}, 2), "Stateful"),
        "persistent name": (b"Pos.system\n.", "PERSID"),
        "build": (evil(tw.name("torch", "FloatStorage") + b"}b"), "other than"),
        "memo": (b"\x80\x02}r\xff\xff\xff\x7fj\x01\x00\x00\x00.", "damaged"),
    }


CASES = [*harmful(Path("/nowhere"))]


@pytest.mark.parametrize("layout", ["plain", "zip", "older"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_that_a_file_asks_for_is_done(tmp_path, capsys, case, layout):
    """Each is refused in one line, and none has run: a control shows that it would have."""
    pickled, asked = harmful(tmp_path)[case]
    path = tmp_path / "step_1"
    if layout == "zip":
        tw.archive(path, pickled, {})
    elif layout == "older":
        tw.stream(path, pickled, {})
    else:
        path.write_bytes(pickled)
    output = tmp_path / "run"
    assert main([str(path), "--config", "sudoku.yaml", "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and str(path) in message, message
    assert layout == "plain" or asked in message, message
    assert not (tmp_path / "harm").exists() and not output.exists()


@pytest.mark.parametrize("case", ["os.system", "protocol 0", "protocol 5", "eval", "exec", "state"])
def test_python_s_own_unpickler_would_have_run_them(tmp_path, case):
    """The control of the test above: these files do harm where they are unpickled."""
    pickled, _ = harmful(tmp_path)[case]
    pickle.loads(pickled)
    assert (tmp_path / "harm").read_text().strip() == "done"


def broken(path: Path, case: str) -> None:
    """Write a file that is damaged, or lies about itself."""
    numbers = NUMBERS.tobytes()
    good = one_tensor()
    tw.archive(path, good, {"0": numbers})
    content = path.read_bytes()

    def safe(end: int, size: int, length: int = 0) -> bytes:
        header = b'{"x":{"dtype":"F32","shape":[4,6],"data_offsets":[0,%d]}}' % end
        return struct.pack("<Q", length or len(header)) + header + bytes(size)

    lies = {
        "shape beyond the storage": one_tensor(shape=(5, 6)),
        "offset beyond the storage": one_tensor(offset=1),
        "stride beyond the storage": one_tensor(strides=(7, 1)),
        "negative stride": one_tensor(strides=(-6, 1)),
        "negative offset": one_tensor(offset=-1),
        "negative shape": one_tensor(shape=(-4, -6)),
        "more strides than shape": one_tensor(strides=(6, 1, 1)),
        "a terabyte by a stride of 0": one_tensor(shape=(2**20, 2**20), strides=(0, 0)),
        "a shape beyond all numbers": one_tensor(shape=(2**62, 2**62), strides=(0, 0)),
        "storage larger than its data": one_tensor(count=2**40, shape=(4, 6)),
        "storage of no size": one_tensor(count=-1),
        "float64": one_tensor(kind="DoubleStorage", count=12, shape=(2, 6)),
        "whole numbers": one_tensor(kind="IntStorage"),
        "unknown storage": one_tensor(kind="CudaStorage"),
        "no tensors": tw.state_dict({"x": tw.number(1)}),
        "not a dict": b"\x80\x02" + tw.text("hello") + b".",
        "an empty dict": tw.state_dict({}),
        "a negated view": one_tensor(more=[flag("neg")]),
        "a conjugate view": one_tensor(more=[flag("conj")]),
        "metadata that are no dict": one_tensor(more=[tw.number(0)]),
        "an argument too many": one_tensor(more=[b"N", b"N"]),
        "a class in a class": nested(2),
        "a thousand classes": nested(5000),
        "a text beyond all memory": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f",
        "a long text without quotes": b"S" + b"y" * 5000 + b"\n.",
        "names that are numbers": b"\x80\x02}(" + tw.number(1) + tw.number(2) + b"u.",
    }
    if case in lies:
        tw.archive(path, lies[case], {"0": numbers})
        return
    simple = {
        "empty": b"",
        "text": b"weights: none\n",
        "half a zip": content[: len(content) // 2],
        "zip without its end": content[:-30],
        "a changed number": content.replace(numbers[8:40], bytes(32)),
        "only the magic": b"PK\x03\x04",
        "safetensors, too short": safe(96, 40),
        "safetensors, wrong size": safe(92, 96),
        "safetensors, long header": safe(96, 96, 2**50),
        "safetensors, no JSON": struct.pack("<Q", 60) + b"{" * 60 + bytes(96),
    }
    if case in simple:
        path.write_bytes(simple[case])
    elif case == "plain, a text beyond all memory":
        path.write_bytes(lies[case[len("plain, ") :]])
    elif case == "compressed":
        zeros = np.zeros((4, 6), np.float32).tobytes() * 1000
        tw.archive(path, good, {"0": zeros}, compression=zipfile.ZIP_DEFLATED)
    elif case == "big-endian":
        tw.archive(path, good, {"0": numbers}, order=b"big")
    elif case == "no numbers":
        tw.archive(path, good, {})
    elif case == "numbers cut short":
        tw.archive(path, good, {"0": numbers[:-4]})
    elif case == "too many numbers":
        tw.archive(path, good, {"0": numbers + bytes(4)})
    elif case == "another zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("letter.txt", "hello")
    elif case == "an entry twice":
        with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as file:
            file.writestr("archive/data/0", numbers)
    elif case == "older, big-endian":
        tw.stream(path, good, {"0": (24, numbers)}, little=b"\x89")
    elif case == "older, cut short":
        tw.stream(path, good, {"0": (24, numbers[:-4])})
    elif case == "older, another count":
        tw.stream(path, good, {"0": (2**40, numbers)})
    elif case == "older, no numbers":
        tw.stream(path, good, {})
    elif case == "older, a key too many":
        tw.stream(path, good, {"0": (24, numbers), "1": (24, numbers)})
    else:
        path.unlink()
        path.mkdir()
        assert case == "a folder"


BROKEN = {
    "shape beyond the storage": "lies outside",
    "offset beyond the storage": "lies outside",
    "stride beyond the storage": "lies outside",
    "negative stride": "make no sense",
    "negative offset": "without numbers",
    "negative shape": "make no sense",
    "more strides than shape": "make no sense",
    "a terabyte by a stride of 0": "would take",
    "a shape beyond all numbers": "make no sense",
    "storage larger than its data": "cut short",
    "storage of no size": "size makes no sense",
    "float64": "x is float64",
    "whole numbers": "x is int32",
    "unknown storage": "asks for torch.CudaStorage",
    "no tensors": "x is no tensor",
    "not a dict": "no state dict",
    "an empty dict": "no state dict",
    "a negated view": "negated or conjugate",
    "a conjugate view": "negated or conjugate",
    "metadata that are no dict": "negated or conjugate",
    "an argument too many": "malformed",
    "a class in a class": "no function of a state dict",
    "a thousand classes": "no function of a state dict",
    "a text beyond all memory": "uses BINUNICODE8",
    "plain, a text beyond all memory": "neither what torch.save writes",
    "a long text without quotes": "uses STRING",
    "names that are numbers": "a name is no text",
    "empty": "it is empty",
    "text": "neither what torch.save writes nor safetensors",
    "half a zip": "damaged",
    "zip without its end": "damaged",
    "a changed number": "damaged",
    "only the magic": "damaged",
    "safetensors, too short": "cut short",
    "safetensors, wrong size": "has 92 bytes",
    "safetensors, long header": "cut short",
    "safetensors, no JSON": "line 1",
    "compressed": "compressed",
    "big-endian": "big-endian",
    "no numbers": "lacks the numbers",
    "numbers cut short": "cut short",
    "too many numbers": "100 bytes for 24",
    "another zip": "not one that torch.save wrote",
    "an entry twice": "twice",
    "older, big-endian": "big-endian",
    "older, cut short": "cut short",
    "older, another count": "damaged",
    "older, no numbers": "lacks the numbers",
    "older, a key too many": "no tensor has",
    "a folder": "is a folder",
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_files_are_refused_in_one_line(tmp_path, capsys, case):
    path = tmp_path / "step_1"
    broken(path, case)
    output = tmp_path / "run"
    assert main([str(path), "--config", "sudoku.yaml", "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and str(path) in message, message
    assert BROKEN[case] in message and len(message) < 1000, message
    assert not output.exists()


def test_the_file_that_the_broken_ones_are_made_from_is_read(tmp_path):
    """The control of the test above, in both layouts."""
    tw.archive(tmp_path / "zip", one_tensor(), {"0": NUMBERS.tobytes()})
    tw.stream(tmp_path / "older", one_tensor(), {"0": (24, NUMBERS.tobytes())})
    for number, more in enumerate(([b"N"], [b"}"])):  # metadata that say nothing
        tw.archive(tmp_path / str(number), one_tensor(more=more), {"0": NUMBERS.tobytes()})
    tw.archive(tmp_path / "class", nested(1), {"0": NUMBERS.tobytes()})
    for path in tmp_path.iterdir():
        assert np.array_equal(np.array(read_torch(path)["x"]), NUMBERS)


@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, 3260), value=st.integers(0, 255), cut=st.booleans())
def test_a_changed_byte_ends_in_one_line_or_in_the_same_numbers(
    tmp_path_factory, place, value, cut
):
    """No byte of a real file, changed or cut off, makes the reader fail in another way."""
    content = bytearray((FOLDER / "views.pt").read_bytes())
    content[min(place, len(content) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    path.write_bytes(bytes(content[:place] if cut else content))
    try:
        found = read_torch(path)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert all(array.dtype in (mx.float32, mx.float16, mx.bfloat16) for array in found.values())
