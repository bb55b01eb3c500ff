"""Pickles that are made to do harm, instruction by instruction; and those of every protocol."""

import collections
import copyreg
import faulthandler
import importlib.util
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc
import types
import warnings
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch_attacks as ta
import torch_writer as tw
from paths import REFERENCE

from mlx_trm.errors import CheckpointError
from mlx_trm.upstream import torch_files, torch_pickle
from mlx_trm.upstream.reading import read_upstream

FOLDER = REFERENCE / "checkpoint"
NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)


class Trap(types.ModuleType):
    """A module that nothing may be looked up in."""

    def __getattr__(self, name):
        raise AssertionError(f"{self.__name__}.{name} was looked up")


@pytest.fixture(autouse=True)
def watch(monkeypatch, tmp_path):
    """After each test: no name was looked up, nothing has run, a good file is read as before."""
    faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)  # a hang in C
    for name in ("torch", "torch._utils", "torch._tensor", "torch.nn.parameter"):
        monkeypatch.setitem(sys.modules, name, Trap(name))
    good = tw.save(tmp_path / "good", {"x": NUMBERS})
    yield
    assert np.array_equal(np.array(torch_files.read_torch(good)["x"]), NUMBERS)
    assert not (tmp_path / "harm").exists()
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(name="walls", params=["C", "C alone", "Python alone"])
def choose_walls(request, monkeypatch):
    """Read with each of Python's two unpicklers; ``alone``: every instruction reaches it."""
    module = torch_pickle
    if request.param.startswith("Python"):
        monkeypatch.setattr(pickle, "Unpickler", pickle._Unpickler)
        spec = importlib.util.spec_from_file_location("slow_pickle", torch_pickle.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in ("PickleReader", "RefusedError", "Storage", "Tensor"):
            monkeypatch.setattr(torch_files, name, getattr(module, name))
    if request.param.endswith("alone"):
        monkeypatch.setattr(module, "_PERMITTED", {code.name for code in pickletools.opcodes})
        monkeypatch.setattr(module, "_REPLACED", {})
    return request.param


def refusal(folder: Path, pickled: bytes, numbers: bytes = NUMBERS.tobytes()) -> str:
    """Read a checkpoint with this pickle, which must end in one line; give the line."""
    path = tw.archive(folder / "step_1", pickled, {"0": numbers})
    with pytest.raises(CheckpointError) as caught:
        read_upstream(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 700
    return message


# Names -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("walls")
def test_names_are_those_of_the_table_and_nothing_in_them(tmp_path):
    """By either instruction; dots reach nothing, and no name is printed as it is."""
    call = tw.several(tw.text(ta.shell(tmp_path))) + b"R"
    for module, attribute in ta.NAMES:
        stacked = tw.text(module) + tw.text(attribute) + b"\x93"
        assert "asks for " in refusal(tmp_path, ta.value(stacked + call)), (module, attribute)
        refusal(tmp_path, ta.value(tw.name(module, attribute) + call))
    for strange in (b"N", b"K\x01", b")", b"]", b"}", ta.FUNCTIONS["size"], ta.STORED):
        refusal(tmp_path, ta.value(strange + tw.text("system") + b"\x93" + call))
        refusal(tmp_path, ta.value(tw.text("os") + strange + b"\x93" + call))


def test_a_name_is_told_before_a_bad_instruction_is(tmp_path):
    """As it tells more, with the protocol in which it comes on the stack too."""
    for name in (tw.name("os", "system"), tw.text("os") + tw.text("system") + b"\x93"):
        assert "asks for os.system" in refusal(tmp_path, ta.value(name + b"B\0\0\0\0\x85R"))
        assert "uses BINBYTES" in refusal(tmp_path, ta.value(b"B\0\0\0\0\x85" + name + b"R"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of an escape that is none, which pickletools decodes
        refusal(tmp_path, ta.value(tw.name("torch\\q", "Tensor")))


def test_what_stands_for_a_name_cannot_be_changed():
    """It has none of what an unpickler sets, calls or adds to, and is no class."""
    unpickler = torch_pickle._Unpickler(io.BytesIO())
    for name in torch_pickle._MEANINGS:
        found = unpickler.find_class(*name)
        assert callable(found) and not isinstance(found, type)
        for attribute in ("__dict__", "__setstate__", "__setitem__", "append", "extend", "add"):
            assert not hasattr(found, attribute), (name, attribute)
        for attribute in ("__call__", "__class__", "module", "name", "more"):
            with pytest.raises((AttributeError, TypeError)):
                setattr(found, attribute, found)


# Instructions ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("walls")
def test_no_instruction_changes_calls_or_opens_anything(tmp_path):
    """Whatever stands on the stack, with and without the limit on instructions."""
    made = {"made": ta.FUNCTIONS["dict"] + b")R", "dict": b"}", "list": b"]", "tuple": b")"}
    plain = {"view": ta.STORED, "text": tw.text("x"), "number": b"K\x01", "nothing": b"N"}
    for before in [*ta.FUNCTIONS.values(), *made.values(), *plain.values()]:
        for name, after in ta.attacks(tmp_path).items():
            refusal(tmp_path, ta.value(before + after))
            if name.startswith("BUILD"):  # and called, in case that was let through
                call = b"q\x00" + after + b"0h\x00" + tw.several(tw.text("x")) + b"R"
                refusal(tmp_path, ta.value(before + call))
        refusal(tmp_path, ta.value(b"(" + before + tw.text(ta.shell(tmp_path)) + b"o"))


def test_what_a_process_has_registered_is_not_handed_out(tmp_path):
    """Of EXT1, EXT2 and EXT4 the unpickler has a cache, for which it asks nobody."""
    codes = {1: b"\x82\x01", 500: b"\x83\xf4\x01", 70000: b"\x84\x70\x11\x01\x00"}
    system = os.system.__module__, "system"
    for code, content in codes.items():
        copyreg.add_extension(*system, code)
        try:
            call = tw.several(tw.text(ta.shell(tmp_path))) + b"R"
            assert "EXT" in refusal(tmp_path, ta.value(content + call))  # before it is in the cache
            assert pickle.loads(content + b".") is os.system
            assert "EXT" in refusal(tmp_path, ta.value(content + call))
        finally:
            copyreg.remove_extension(*system, code)
            copyreg.clear_extension_cache()


def test_functions_take_any_argument(tmp_path, walls):
    """In place of each of a tensor's: only its own kind is taken, the rest is one line."""
    draws = random.Random(0)
    good = [ta.STORED, b"K\x00", *ta.SIZES, b"\x89", ta.FUNCTIONS["dict"] + b")R", b"}"]
    read = 0
    for _ in range(600):
        arguments = good[: draws.randrange(9)]
        arguments = [ta.chance(draws) if draws.random() < 0.25 else each for each in arguments]
        view = ta.FUNCTIONS[draws.choice(["view", "old view"])], tw.several(*arguments)
        if draws.random() < 0.3:
            view = ta.FUNCTIONS["typed"], tw.several(
                view[0], ta.chance(draws), view[1], ta.chance(draws)
            )
        pickled = ta.value(b"".join(view) + b"R")
        path = tw.archive(tmp_path / "any", pickled, {"0": NUMBERS.tobytes()})
        try:
            (array,) = read_upstream(path)[0].values()
        except CheckpointError as error:
            assert str(error).isprintable() and len(str(error)) < 700
        else:
            assert array.dtype == mx.float32 and set(np.array(array).flat) <= set(range(6))
            read += 1
    assert read > 20, walls


# Small files that would eat the machine ----------------------------------------------------------


@pytest.mark.usefixtures("walls")
@pytest.mark.parametrize("walls", ["C", "Python"], indirect=True)
def test_small_files_take_little(tmp_path):
    """One line each, in both layouts; what would hang or end the process needs no assertion."""
    for name, pickled in ta.floods().items():
        refusal(tmp_path, pickled)
        tw.stream(tmp_path / "older", pickled, {})
        with pytest.raises(CheckpointError):
            read_upstream(tmp_path / "older")
        if "MB" in name or "GB" in name:
            tracemalloc.start()
            refusal(tmp_path, pickled)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 99 << 20, name


def test_instructions_and_keys_are_bounded(tmp_path):
    """Though each is permitted: sorting tensors by long keys that are nearly equal takes hours."""
    assert "longer than any" in refusal(tmp_path, b"N" * 1_000_001 + b".")
    view = tw.tensor(tw.storage("k" * 65_537, "FloatStorage", 6), 0, (6,), (1,))
    assert "described in a way" in refusal(tmp_path, ta.value(view))


# What is read ------------------------------------------------------------------------------------


class Call:
    """An object that is pickled as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def pickled_by_python(monkeypatch, protocol: int, pickler: type) -> bytes:
    """Pickle a module's state dict as torch does, of functions that have torch's names."""
    made = {}
    for module, name in (
        *(("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2")),
        *(("torch._utils", "_rebuild_parameter"), ("torch", "Tensor")),
        ("torch._tensor", "_rebuild_from_type_v2"),
    ):
        made[name] = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, sys.modules[module])
        setattr(sys.modules[module], name, made[name])

    class Pickler(pickler):
        """Pickles a slice as torch does a storage."""

        def persistent_id(self, obj):
            """Give torch's description."""
            described = "storage", made["FloatStorage"], "0", "cpu", 6
            return described if isinstance(obj, slice) else None

    hooks = collections.OrderedDict
    view = Call(made["_rebuild_tensor_v2"], (slice(0), 1, (2,), (3,), False, hooks()))
    whole = Call(made["_rebuild_tensor_v2"], (slice(0), 0, (2, 3), (3, 1), True, hooks()))
    parameter = Call(made["_rebuild_parameter"], (whole, True, hooks()))
    typed = made["_rebuild_tensor_v2"], made["Tensor"], whole.call[1], {"note": [1, 2.5, None]}
    state = collections.OrderedDict(view=view, whole=whole, again=whole, parameter=parameter)
    state["typed"] = Call(made["_rebuild_from_type_v2"], typed)
    state["a name of two hundred and more letters" * 8] = whole
    state._metadata = collections.OrderedDict({"": {"version": 1}, "x": {"sizes": (2**40, -1)}})
    file = io.BytesIO()
    Pickler(file, protocol).dump(state)
    return file.getvalue()


@pytest.mark.parametrize("walls", ["C", "Python", "C alone", "Python alone"], indirect=True)
@pytest.mark.parametrize("pickler", [pickle.Pickler, pickle._Pickler])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path, monkeypatch, walls, protocol, pickler):
    """Parameters, views, attributes and versions beside them, in both layouts."""
    pickled = pickled_by_python(monkeypatch, protocol, pickler)
    tw.archive(tmp_path / "zip", pickled + b"more", {"0": NUMBERS.tobytes()})
    tw.stream(tmp_path / "older", pickled, {"0": (6, NUMBERS.tobytes())})
    for layout in ("zip", "older"):
        found, _ = read_upstream(tmp_path / layout)
        assert len(found) == 6 and list(found)[:2] == ["view", "whole"], walls
        for name, array in found.items():
            wanted = NUMBERS[:, 1] if name == "view" else NUMBERS
            assert np.array_equal(np.array(array), wanted), name


@pytest.mark.parametrize("walls", ["C", "Python"], indirect=True)
def test_sizes_of_frames_do_not_matter(tmp_path, walls):
    """They say how far to read ahead, and what is read is not what is in the file."""
    pickled = ta.value(tw.tensor(ta.STORED, 0, (6,), (1,), b"}"))
    for size in range(0, len(pickled) + 50, 3):
        framed = pickled[:2] + b"\x95" + struct.pack("<Q", size) + pickled[2:]
        path = tw.archive(tmp_path / "step_1", framed, {"0": NUMBERS.tobytes()})
        assert list(read_upstream(path)[0]) == ["x"], (walls, size)


def test_texts_of_python_2_are_read(tmp_path, walls):
    """In which a text was bytes, of latin-1 where they were not ASCII."""
    good = tw.tensor(ta.STORED, 0, (6,), (1,))
    pickled = b"\x80\x02}(U\x02w\xe9" + good + b"T\x01\x00\x00\x00v" + good + b"u."
    path = tw.archive(tmp_path / "step_1", pickled, {"0": NUMBERS.tobytes()})
    assert list(read_upstream(path)[0]) == ["w\xe9", "v"], walls


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_changed_pickles_are_refused_or_read(tmp_path, walls):
    """Bytes changed, cut out and put in, by instructions more often than by chance."""
    draws = random.Random(1)
    with zipfile.ZipFile(FOLDER / "views.pt") as file:
        names = {name.split("/")[-1]: name for name in file.namelist() if "/data" in name}
        content = {key: file.read(name) for key, name in names.items()}
    pickled = content.pop("data.pkl")
    codes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    read = 0
    for _ in range(700):
        changed = bytearray(pickled)
        for _ in range(draws.choice([1, 1, 2, 5])):
            place = draws.randrange(len(changed))
            byte = draws.choice(codes) if draws.random() < 0.7 else bytes([draws.randrange(256)])
            changed[place : place + draws.choice([0, 1, 1, 1, 2])] = byte
        path = tw.archive(tmp_path / "step_1", bytes(changed), content)
        try:
            found, _ = read_upstream(path)
        except CheckpointError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
        else:
            read += 1
            allowed = mx.float32, mx.float16, mx.bfloat16
            assert all(array.dtype in allowed for array in found.values())
    assert read > 10, walls


def test_cut_pickles_are_refused(tmp_path, walls):
    """At every byte."""
    pickled = tw.state_dict({"x": tw.simple("0", NUMBERS)})
    for end in range(len(pickled)):
        assert "pickle" in refusal(tmp_path, pickled[:end]), walls
