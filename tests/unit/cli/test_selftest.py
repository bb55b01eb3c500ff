"""``diagnose --try``: every check can fail, and none takes the others with it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List

import mlx.core as mx
import pytest
from child_processes import run_python
from mlx.utils import tree_map

from mlx_trm.cli import selftest
from mlx_trm.config.sections import TaskSpec
from mlx_trm.diagnose import main
from mlx_trm.models.trm import TRMConfig
from mlx_trm.nn import fused
from mlx_trm.upstream import recording

ARGS = argparse.Namespace(seconds=60.0, recordings=Path("nowhere"))


def test_a_check_as_a_process_and_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table says how it went, and the file has the whole report."""
    file = tmp_path / "found.json"
    words = ["--only", "machine", "--only", "parity", "--output", str(file)]
    assert main(["--try", *words, "--recordings", str(tmp_path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "2 checks: 0 went wrong, 1 not done" in out and "products right" in out
    found = json.loads(file.read_text())
    assert found["checks"]["machine"]["report"]["versions"]["mlx"] == mx.__version__
    assert found["checks"]["parity"]["says"].startswith("skipped: no recordings in")


@pytest.mark.parametrize(
    "code, good, says",
    [
        ("import os; os.abort()", False, "ended with code -6"),
        ("raise ValueError('no such thing')", False, "ended with code 1: ValueError: no such"),
        ("import time; time.sleep(60)", None, "not done after 1 s"),
    ],
)
def test_a_check_that_ends_badly_is_a_line(code: str, good: Any, says: str) -> None:
    """A crash, an error, a hang."""
    found = selftest._failure([sys.executable, "-c", code], 1.0 if good is None else 60.0)
    assert found is not None and found["good"] is good and says in found["says"]


def test_wrong_gradients_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a thousand weights' gradients off by a hundredth of all is seen in float32."""
    right, calls = selftest._gradient, []

    def wrong(model: Any) -> Any:
        calls.append(model)
        found = right(model)
        return found if len(calls) % 2 else tree_map(lambda array: 1.01 * array, found)

    small = {"hidden_size": 16, "num_heads": 1, "H_cycles": 1, "L_cycles": 1, "L_layers": 1}
    models = {"mlp": lambda dtype: TRMConfig(forward_dtype=dtype, puzzle_emb_len=1, **small)}
    monkeypatch.setattr(selftest, "MODELS", models)
    monkeypatch.setattr(selftest, "GRADIENTS", {"float32": 1e-3})
    assert selftest.check_gradients(ARGS)["good"] is True
    monkeypatch.setattr(selftest, "_gradient", wrong)
    found = selftest.check_gradients(ARGS)
    assert found["good"] is False and "mlp in float32 is off by 0.01" in found["says"]


def test_gradients_in_half_precision_are_right_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each kind of model, of 4x4 puzzles, by the halves that a GPU takes."""
    monkeypatch.setattr(selftest, "TaskSpec", lambda words, _: TaskSpec(words, 16))
    with fused.use(True):
        found = selftest.check_gradients(ARGS)
    assert found["good"] is True, found["says"]
    errors = {(each["model"], each["dtype"]): each["error"] for each in found["gradients"]}
    assert len(errors) == 3 * len(selftest.MODELS)
    for (_, dtype), error in errors.items():  # far from what a missing gradient would be
        assert error <= selftest.GRADIENTS[dtype] < 0.3


def test_large_recordings_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take minutes to replay, and are skipped by their names."""
    for name in ("full_model", "small_model"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"no recording")
    (tmp_path / "manifest.json").write_text("{}")
    read: List[str] = []

    class Recording:  # pylint: disable=too-few-public-methods
        """Notes what is read."""

        def __init__(self, path: Path) -> None:
            read.append(path.stem)

    monkeypatch.setattr(recording, "Recording", Recording)
    monkeypatch.setattr(selftest, "compare", lambda _: [])
    args = argparse.Namespace(recordings=tmp_path)
    assert selftest.check_parity(args)["good"] is True and read == ["small_model"]
    (tmp_path / "small_model.safetensors").unlink()
    assert selftest.check_parity(args)["good"] is None and len(read) == 1


def test_the_metal_kernels_are_compared_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac alone; a wrong one goes wrong here, though none is used by itself."""
    assert selftest.check_kernels(ARGS)["good"] is None
    monkeypatch.setattr(selftest, "on_metal", lambda: True)
    monkeypatch.setattr(selftest, "_measure", lambda _: {"ms": 50.0, "peak": 1})
    monkeypatch.setattr(selftest.metal_kernels, "find_wrong", lambda: "h is wrong in bfloat16")
    found = selftest.check_kernels(ARGS)
    assert found["good"] is False and found["says"] == "h is wrong in bfloat16"
    monkeypatch.setattr(selftest.metal_kernels, "find_wrong", lambda: None)
    found = selftest.check_kernels(ARGS)
    assert found["good"] is True and "50 ms, without them 50 ms" in found["says"]
    assert [each["kernels"] for each in found["steps"]] == [False, True, False, True]


def test_the_ladder_ends_before_the_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte a row above a fixed one: of 100 GB, 60 may be used."""
    taken: List[int] = []

    def measure(batch: int) -> Dict[str, float]:
        taken.append(batch)
        return {"ms": 0.001, "first": 0.001, "peak": (1 + batch) * 10**9}

    monkeypatch.setattr(selftest, "_measure", measure)
    monkeypatch.setattr(selftest, "device_memory", lambda: 100 * 10**9)
    assert selftest.check_ladder(ARGS)["good"] and taken == [1, 8, 32]


def test_the_ladder_ends_before_the_time_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a second a row: batch 8 would take a minute."""
    taken: List[int] = []
    monkeypatch.setattr(
        selftest, "_measure", lambda b: taken.append(b) or {"ms": 1e3 * b, "peak": b}
    )
    monkeypatch.setattr(selftest, "device_memory", lambda: 10**12)
    selftest.check_ladder(ARGS)
    assert taken == [1]


@pytest.mark.parametrize(
    "words, says",
    [
        (["--minutes", "0"], "--minutes 0: must be more than 0"),
        (["--output", "no/folder/x.json"], "--output no/folder/x.json: cannot be written"),
        (["--only", "everything"], "everything"),
    ],
)
def test_bad_arguments_are_one_line(words: List[str], says: str, tmp_path: Path) -> None:
    """Exit code 2, before anything has been tried."""
    done = run_python("-m", "mlx_trm.diagnose", "--try", *words, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
