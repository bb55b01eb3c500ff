"""Every parser gets damaged inputs: no error but those it names, each in a line.

Some in every run; with ``-m slow`` for as many seconds as MLX_TRM_FUZZ_SECONDS says (60).
"""

import os
import random
import time
from pathlib import Path

import pytest
from fuzzing import fuzz, make_parsers

SOME = 15
NAMES = ("json", "safetensors", "torch", "rows", "array", "names", "packed", "metadata", "spec",
         "progress", "state", "record", "yaml", "scalar", "config", "sudoku", "sudoku text", "maze",
         "maze text", "go", "go text", "tasks", "tests", "grid", "grids", "name", "number",
         "puzzle", "maze given", "log", "predictions", "predictions csv")  # fmt: skip


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in the memory where there is such a place."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_parser_with_some_inputs(folder: Path) -> None:
    """Fifteen for most; sound ones are read."""
    parsers = make_parsers(folder)
    assert set(parsers) == set(NAMES)
    for name, parser in parsers.items():
        for content in parser.sound:
            Path(parser.name).write_bytes(content)
            parser.read(Path(parser.name))
        some = 3 if name in ("yaml", "scalar", "config") else SOME  # they take long
        count, refused = fuzz(parser, random.Random(name), lambda done: done < some)
        assert count == some and (refused or name in ("scalar", "number", "name"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_parser_for_long(name: str, folder: Path) -> None:
    """Other inputs each time."""
    seed = time.time_ns()
    until = time.monotonic() + float(os.environ.get("MLX_TRM_FUZZ_SECONDS", "60")) / len(NAMES)
    parser = make_parsers(folder)[name]
    found = fuzz(parser, random.Random(seed), lambda done: time.monotonic() < until)
    print(f"{name}: {found[0]:,} inputs, {found[1]:,} refused, seed {seed}")
