"""Small files that would eat the machine, or fell a parser; each is made by code in a folder.

The folder has a run ``run`` and a dataset ``built`` of 4x4 Sudoku, a run ``arcrun`` of three ARC
tasks with their files and ``c.yaml``, all sound.
"""

import io
import json
import re
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Tuple

import numpy as np

from mlx_trm.runs.state import write_state
from mlx_trm.system.files import hash_file

STEP, ARC_STEP = Path("run/step_1"), Path("arcrun/step_2")
TRAIN = "train --config h.yaml -q run_dir=other train.max_steps=1"
EVALUATE, EVALUATE_ARC = "evaluate run -q", "evaluate arcrun -q"
SHOW = "data show --config sudoku_tiny.yaml -q task.data_dir=built"
BUILD = "data build --config sudoku_tiny.yaml -q --output out task.train_file=h.csv"
MAZE = "data build --config maze_tiny.yaml -q --output out task.train_file=h.csv"
ARC = "data build --config c.yaml -q --output out"
CONVERT = "convert h.bin --config sudoku_tiny.yaml --output out"
YAML = "task: {name: sudoku, size: 4}\nmodel: {name: trm}\n"
TASK = '{"train":[{"input":[[1]],"output":[[2]]}],"test":[{"input":[[1]],"output":[[2]]}]}'


class Hostile(NamedTuple):
    """A file, and the command that reads it.

    Attributes:
        line: the words after ``python -m mlx_trm``.
        make: makes the file in the working folder.
        sound: the command may succeed: what is hostile is passed over.
    """

    line: str
    make: Callable[[], None]
    sound: bool = False


def seal(folder: Path) -> None:
    """Give the checksums in ``state.json`` what the files have now, and its own."""
    state = json.loads((folder / "state.json").read_text())
    state["sha256"] = {name: hash_file(folder / name) for name in state["sha256"]}
    write_state(folder, state)


def text(name: str, content: Any) -> Callable[[], None]:
    """Write a file."""

    def make() -> None:
        found = content() if callable(content) else content
        Path(name).write_bytes(found.encode() if isinstance(found, str) else found)

    return make


def bare(folder: str, name: str, content: Any) -> Callable[[], None]:
    """Write a file of a dataset of earlier versions, which no manifest protects."""

    def make() -> None:
        Path(folder, "build.json").unlink()
        text(f"{folder}/{name}", content)()

    return make


def sealed(folder: Path, name: str, content: Any) -> Callable[[], None]:
    """Write a file of a checkpoint, and its checksum."""

    def make() -> None:
        text(str(folder / name), content)()
        seal(folder)

    return make


def config(folder: Path, key: str, value: str) -> Callable[[], None]:
    """Change a setting of a checkpoint's configuration."""

    def make() -> None:
        path = folder / "config.yaml"
        held = path.read_text()
        assert f"{key}: " in held
        path.write_text(re.sub(rf"\b{key}: .*", f"{key}: {value}", held, count=1))
        seal(folder)

    return make


def state(key: str, value: Any) -> Callable[[], None]:
    """Change ``state.json``; a dotted key is one of ``spec``."""

    def make() -> None:
        path = STEP / "state.json"
        held = json.loads(path.read_text())
        if key.startswith("spec."):
            held["spec"][key[len("spec.") :]] = value
        else:
            held[key] = value
        write_state(STEP, held)

    return make


def safetensors(header: Any, size: int = 0) -> bytes:
    """A file with any header, and so many bytes of zeros."""
    found = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(found).to_bytes(8, "little") + found + b"\0" * size


def entry(begin: int, end: int, *shape: int) -> Dict[str, Any]:
    """What a header says of an array."""
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def npy(shape: str, data: bytes = b"", descr: str = "'|u1'") -> bytes:
    """A file of NumPy's with any header."""
    held = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(held).to_bytes(2, "little") + held + data


def bomb(block: bytes, times: int, start: bytes = b"", end: bytes = b"") -> bytes:
    """A gzip of a block many times over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(start)]
    parts += [packer.compress(block) for _ in range(times)]
    return b"".join([*parts, packer.compress(end), packer.flush()])


def archive(members: int) -> bytes:
    """A zip of many empty members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as held:
        for number in range(members):
            held.writestr(f"a/{number}", b"")
    return file.getvalue()


def packed_pickle() -> bytes:
    """A zip whose pickle is a gigabyte of zeros, compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as held:
        held.writestr("a/data.pkl", b"\0" * (1 << 28))
    return file.getvalue()


def tar_of(size: str) -> bytes:
    """A tar whose pax header names a size."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as held:
        about = tarfile.TarInfo("storages")
        about.pax_headers = {"size": size}
        held.addfile(about)
    return file.getvalue()


def good_maze() -> str:
    """A row of a maze of 7 x 7 and its path."""
    rows = ["S".ljust(7), *[" " * 7] * 5, "G".rjust(7)]
    solved = ["S" + "o" * 6, *[" " * 6 + "o"] * 5, "G".rjust(7)]
    return "a," + "".join(rows) + "," + "".join(solved) + ",12"


def tasks(count: int) -> Callable[[], None]:
    """So many ARC tasks, with a thousand augmentations each."""

    def make() -> None:
        held = ",".join(f'"t{number}":{TASK}' for number in range(count))
        Path("p_a_challenges.json").write_text("{" + held + "}")
        Path("c.yaml").write_text(Path("c.yaml").read_text().replace("num_aug: 2", "num_aug: 1000"))

    return make


def pairs(count: int) -> str:
    """An ARC task with so many pairs."""
    pair = '{"input":[[1]],"output":[[2]]}'
    return '{"t":{"train":[' + ",".join([pair] * count) + '],"test":[' + pair + "]}}"


def big_labels() -> None:
    """Identifiers that int32 cannot hold."""
    path = Path("built/train/all__puzzle_identifiers.npy")
    np.save(path, np.load(path).astype(np.uint64) + 2**32)


def unsigned_falling() -> None:
    """Boundaries without a sign that fall: their differences are huge, not negative."""
    path = Path("built/train/all__puzzle_indices.npy")
    held = np.load(path).astype(np.uint64)
    held[1] = held[-1] - 1
    np.save(path, held)


def not_finite(name: str) -> Callable[[], None]:
    """The last number of a file of weights is NaN."""

    def make() -> None:
        held = (STEP / name).read_bytes()
        (STEP / name).write_bytes(held[:-4] + b"\xff\xff\xff\x7f")
        seal(STEP)

    return make


def lists() -> bytes:
    """Empty lists, three bytes each, of which each takes 64."""
    return b"[" + b"[]," * (20 << 20) + b"[]]"


DEEP = "[" * 200_000
DEEP_OBJECT = '{"a":' * 100_000
DIGITS = "9" * 5000
WEIGHTS = "model.safetensors"
MANY_OVERLAPPING = ({f"w{n}": entry(0, 1 << 24, 1 << 22) for n in range(200)}, 1 << 24)
HEADERS: Dict[str, Tuple[Any, int]] = {  # the second number: bytes behind it
    "overlap": MANY_OVERLAPPING,
    "dimensions": ({"a": entry(0, 4, *[1] * 100_000)}, 4),
    "header": (b'{"a":[' + b"{}," * (20 << 20) + b"{}]}", 0),
    "deep": ((DEEP_OBJECT + "1" + "}" * 100_000).encode(), 0),
    "metadata": (('{"__metadata__":' + DEEP_OBJECT + "1" + "}" * 100_001).encode(), 0),
    "digits": (f'{{"a":{{"dtype":"F32","shape":[{DIGITS}],"data_offsets":[0,4]}}}}'.encode(), 4),
    "gap": ({"a": entry(0, 4, 1), "b": entry(1 << 20, (1 << 20) + 4, 1)}, (1 << 20) + 4),
    "negative": ({"a": entry(0, 4, -1, -1)}, 4),
    "many": ({f"w{n}": entry(0, 0, 0) for n in range(100_000)}, 0),
}

CASES: Dict[str, Hostile] = {
    "yaml/scalar": Hostile(TRAIN, text("h.yaml", lambda: YAML + "run_dir: " + "x" * 50_000_000)),
    "yaml/aliases": Hostile(TRAIN, text("h.yaml", "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")))),
    "yaml/deep": Hostile(TRAIN, text("h.yaml", DEEP)),
    "yaml/deep-map": Hostile(TRAIN, text("h.yaml", "{a: " * 100_000)),
    "yaml/items": Hostile(TRAIN, text("h.yaml", lambda: YAML + "plugins: [" + "a," * 25_000_000)),
    "yaml/digits": Hostile(TRAIN, text("h.yaml", YAML + "seed: " + DIGITS)),
    "yaml/float": Hostile(TRAIN, text("h.yaml", YAML + "train: {lr: 1e" + DIGITS + "}")),
    "yaml/object": Hostile(TRAIN, text("h.yaml", "!!python/object/apply:os.system [ls]")),
    "yaml/layers": Hostile(TRAIN, text("h.yaml", YAML[:-2] + ", L_layers: 100000000}")),
    "yaml/cycles": Hostile(TRAIN, text("h.yaml", YAML[:-2] + ", L_cycles: 100000000}")),
    "yaml/latent": Hostile(TRAIN, text(
        "h.yaml", YAML[:-2] + ", hidden_size: 2147483646, num_heads: 1}")),
    "yaml/registers": Hostile(TRAIN, text(
        "h.yaml", YAML[:-2] + ", puzzle_emb_ndim: 0, puzzle_emb_len: 0, register_tokens: 999999999}"
    )),
    "yaml/endless": Hostile(TRAIN, lambda: Path("h.yaml").symlink_to("/dev/zero")),
    "config/layers": Hostile(EVALUATE, config(STEP, "L_layers", "100000000")),
    "config/cycles": Hostile(EVALUATE, config(STEP, "L_cycles", "100000000")),
    "config/size": Hostile(EVALUATE, config(STEP, "hidden_size", "134217728")),
    "config/scalar": Hostile(
        EVALUATE, sealed(STEP, "config.yaml", lambda: YAML + "run_dir: " + "x" * 50_000_000)
    ),
    "state/deep": Hostile(EVALUATE, text("run/step_1/state.json", DEEP)),
    "state/lists": Hostile(EVALUATE, text("run/step_1/state.json", lists)),
    "state/digits": Hostile(EVALUATE, text(
        "run/step_1/state.json", '{"format": 1, "step": ' + DIGITS + "}")),
    "state/step": Hostile(EVALUATE, state("step", 10**4000)),
    "state/cells": Hostile(EVALUATE, state("spec.seq_len", 2**31 - 1)),
    "state/rows": Hostile(EVALUATE, state("spec.num_puzzle_identifiers", 2**31 - 1)),
    "state/tokens": Hostile(EVALUATE, state("spec.vocab_size", 2**31 - 1)),
    "state/identifiers": Hostile(EVALUATE, state("spec.num_puzzle_identifiers", 10**400)),
    "state/names": Hostile(EVALUATE, state("sha256", {"x" * 4000: "a"})),
    **{f"weights/{name}": Hostile(EVALUATE, sealed(STEP, WEIGHTS, safetensors(*held)))
       for name, held in HEADERS.items()},
    "weights/nan": Hostile(EVALUATE, not_finite(WEIGHTS)),
    "weights/nan-average": Hostile(EVALUATE, not_finite("ema.safetensors")),
    "weights/nan-resume": Hostile("train --resume run -q train.max_steps=2", not_finite(WEIGHTS)),
    "weights/nan-moments": Hostile(
        "train --resume run -q train.max_steps=2", not_finite("optimizer.safetensors")),
    "weights/nan-init": Hostile(
        "train --config sudoku_tiny.yaml -q run_dir=other train.max_steps=1 init.run=run",
        not_finite("ema.safetensors")),
    "names/zeros": Hostile(EVALUATE_ARC, sealed(
        ARC_STEP, "identifiers.json.gz", lambda: bomb(b"\0" * (1 << 24), 80))),
    "names/lists": Hostile(EVALUATE_ARC, sealed(
        ARC_STEP, "identifiers.json.gz", lambda: bomb(b"[]," * (1 << 20), 40, b"[", b"[]]"))),
    "names/names": Hostile(EVALUATE_ARC, sealed(
        ARC_STEP, "identifiers.json.gz", lambda: bomb(b'"ab",' * (1 << 20), 24, b"[", b'""]'))),
    "names/deep": Hostile(EVALUATE_ARC, sealed(
        ARC_STEP, "identifiers.json.gz", lambda: bomb(DEEP.encode(), 1))),
    "names/cut": Hostile(EVALUATE_ARC, sealed(
        ARC_STEP, "identifiers.json.gz", lambda: bomb(b"a", 1)[:-4])),
    "data/shape": Hostile(SHOW, text("built/test/all__inputs.npy", npy("(2**62, 4)"))),
    "data/rows": Hostile(SHOW, text("built/test/all__inputs.npy", npy(f"({2**63 - 1}, 16)"))),
    "data/objects": Hostile(SHOW, text("built/test/all__inputs.npy", npy("(1, 16)", b"x", "'|O'"))),
    "data/token": Hostile(SHOW, text("built/test/all__labels.npy", npy("(((", descr="'"))),
    "data/deep-header": Hostile(SHOW, text("built/test/all__labels.npy", npy("(" * 60_000))),
    "data/length": Hostile(SHOW, text(
        "built/test/all__group_indices.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff")),
    "data/read": Hostile(SHOW, text(
        "built/test/all__group_indices.npy", lambda: npy("(300000000,)", b"\0" * 300_000_000))),
    "data/identifiers": Hostile(
        "train --config sudoku_tiny.yaml -q run_dir=other train.max_steps=1 task.data_dir=built",
        big_labels),
    "data/unsigned": Hostile(
        "train --config sudoku_tiny.yaml -q run_dir=other train.max_steps=1 task.data_dir=built",
        unsigned_falling),
    "data/deep": Hostile(SHOW, text("built/test/dataset.json", DEEP)),
    "data/lists": Hostile(SHOW, text("built/test/dataset.json", lists)),
    "data/sets": Hostile(SHOW, text(
        "built/test/dataset.json", json.dumps({
            **{"vocab_size": 6, "seq_len": 16, "num_puzzle_identifiers": 1, "pad_id": 0},
            **{"blank_identifier_id": 0, "ignore_label_id": 0, "total_groups": 1},
            "sets": ["x" * 9000, 1]}))),
    "csv/short": Hostile(MAZE, text("h.csv", lambda: "source,question,answer,rating\n"
                                    + good_maze() + "\n" + ",,,\n" * 2_000_000)),
    "csv/line": Hostile(BUILD, text("h.csv", lambda: "question,answer\n" + "1" * 100_000_000)),
    "csv/header": Hostile(BUILD, text("h.csv", lambda: "question,answer" + "," * 50_000_000)),
    "csv/quotes": Hostile(BUILD, text("h.csv", lambda: 'question,answer\n"' + "\n" * 8_000_000)),
    "csv/zeros": Hostile(BUILD, text("h.csv", lambda: b"\0" * 100_000_000)),
    "csv/newlines": Hostile(BUILD, text("h.csv", lambda: "question,answer\n" + "\n" * 50_000_000)),
    "arc/tasks": Hostile(ARC, tasks(50_000)),
    "arc/pairs": Hostile(ARC + " task.num_aug=1000", text(
        "p_a_challenges.json", lambda: pairs(100_000))),
    "arc/deep": Hostile(ARC, text("p_a_challenges.json", DEEP)),
    "arc/lists": Hostile(ARC, text("p_a_challenges.json", lambda: b'{"t":' + lists() + b"}")),
    "arc/grid": Hostile(ARC, text("p_a_challenges.json", pairs(1).replace(
        "[[1]]", "[[" + ",".join(["1"] * 5_000_000) + "]]"))),
    "arc/cell": Hostile(ARC, text(
        "p_a_challenges.json", pairs(1).replace("[[1]]", f"[[{DIGITS}]]"))),
    "arc/names": Hostile("evaluate arcrun -q task.data_dir=arcset", bare(
        "arcset", "identifiers.json", lists)),
    "arc/tests": Hostile("evaluate arcrun -q task.data_dir=arcset", bare(
        "arcset", "test_puzzles.json", DEEP_OBJECT)),
    "solve/lines": Hostile("solve run h.txt", text("h.txt", lambda: b"\n" * 100_000_000)),
    "solve/line": Hostile("solve run h.txt", text("h.txt", lambda: b"1" * 134_000_000)),
    "solve/wide": Hostile("solve run h.txt", text(
        "h.txt", lambda: "\U0001f600".encode() + b"1" * 33_000_000)),
    "solve/endless": Hostile("solve run h.txt", lambda: Path("h.txt").symlink_to("/dev/zero")),
    "solve/deep": Hostile("solve arcrun h.json", text("h.json", DEEP_OBJECT)),
    "solve/number": Hostile(f"solve arcrun e1:{DIGITS}", lambda: None),
    "plot/deep": Hostile("plot run", text("run/metrics.jsonl", DEEP + "\n")),
    "plot/digits": Hostile("plot run", text("run/metrics.jsonl", '{"a":' + DIGITS + "}\n")),
    "plot/lists": Hostile("plot run", text("run/metrics.jsonl", lambda: lists() + b"\n")),
    "record/deep": Hostile("data fetch arc1", text("cache/fetched/arc-agi/fetched.json", DEEP)),
    "record/lists": Hostile("data fetch arc1", text("cache/fetched/arc-agi/fetched.json", lists)),
    "record/list": Hostile("data list", text("cache/fetched/arc-agi/fetched.json", lists), True),
    "cache/marker": Hostile("data list", text("cache/x/build.json", lists), True),
    "convert/members": Hostile(CONVERT, text("h.bin", lambda: archive(50_000))),
    "convert/packed": Hostile(CONVERT, text("h.bin", packed_pickle)),
    "convert/tar": Hostile(CONVERT, text("h.bin", tar_of("9" * 40))),
    "convert/tar-negative": Hostile(CONVERT, text("h.bin", tar_of("-1"))),
    "convert/overlap": Hostile(CONVERT, text("h.bin", safetensors(*MANY_OVERLAPPING))),
    "convert/dimensions": Hostile(CONVERT, text("h.bin", safetensors(*HEADERS["dimensions"]))),
    "convert/endless": Hostile(CONVERT, lambda: Path("h.bin").symlink_to("/dev/zero")),
}  # fmt: skip
