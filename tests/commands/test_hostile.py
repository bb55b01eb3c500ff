"""A collection of hostile files: each command says one line, and takes at most 1 GB more.

All of them are run with ``-m slow``, some in every run.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from child_processes import run_python
from hostile import CASES
from toy_arc import write_tasks

from mlx_trm.__main__ import main

MOST_MORE = 1 << 30
SAMPLE = ("weights/overlap", "config/layers")
TINY = "--config sudoku_tiny.yaml task.train_puzzles=64 task.test_puzzles=16 train.batch_size=8"
SECONDS = 300.0
# What a command takes in memory without any file that is hostile, by its first words.
BASES: Dict[str, int] = {}


@pytest.fixture(name="made", scope="module")
def make_sound_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the cases change."""
    folder: Path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        write_tasks()
        assert main(f"train {TINY} -q run_dir=run train.max_steps=1".split()) == 0
        assert main(f"data build {TINY} --output built".split()) == 0
        assert main("train --config c.yaml -q run_dir=arcrun".split()) == 0
        assert main("data build --config c.yaml --output arcset".split()) == 0
    return folder


# A process begins with the memory of the one that started it: this one is small.
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:], timeout=float(sys.argv[1]))
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run(words: List[str], folder: Path) -> Tuple[int, str, int]:
    """Exit code, messages and peak memory in bytes of a command in a folder."""
    env = {"MLX_TRM_CACHE": "cache", "no_proxy": "*", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "mlx_trm", *words]
    done = run_python("-S", "-c", LAUNCHER, SECONDS, *command, env=env, cwd=folder)
    code, peak = map(int, done.stdout.split()[-2:])
    return code, done.stderr, peak * (1 if sys.platform == "darwin" else 1024)


def base(words: List[str], made: Path, folder: Path) -> int:
    """What importing and starting the command takes; measured once."""
    key = words[0]
    if key not in BASES:
        shutil.copytree(made, folder, symlinks=True)
        line = {"evaluate": "evaluate run -q", "solve": "solve run 1.....2..3.....4",
                "plot": "plot run", "data": "data list",
                "train": f"train {TINY} -q run_dir=new train.max_steps=1"}  # fmt: skip
        BASES[key] = run(line.get(key, "evaluate run -q").split(), folder)[2]
    return BASES[key]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in CASES]
)
def test_a_hostile_file(name: str, made: Path, tmp_path: Path) -> None:
    """One line, code 2, and hardly more memory than without it."""
    line, make, sound = CASES[name]
    words, folder = line.split(), tmp_path / "work"
    shutil.copytree(made, folder, symlinks=True)
    for place in ("cache/fetched/arc-agi", "cache/x"):
        (folder / place).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make()
    code, messages, peak = run(words, folder)
    more = peak - base(words, made, tmp_path / "sound")
    print(f"{name}: code {code}, {more / 2**20:.0f} MiB more: {messages.strip()[:300]}")
    assert code in ((0, 2) if sound else (2,)), messages[-3000:]
    assert "Traceback" not in messages and "a bug" not in messages, messages[-3000:]
    # A sum that does not fit would be all that is seen of the file.
    assert not re.search(r"own_sha256|SHA-256|has \d+ bytes, not", messages), messages
    lines = [each for each in messages.splitlines() if not each.startswith("building ")]
    assert sound or len(lines) == 1, messages[-3000:]
    assert len(max(lines, key=len, default="")) < 900
    assert more <= MOST_MORE, f"{more / 2**20:.0f} MiB more"
    shutil.rmtree(folder)
