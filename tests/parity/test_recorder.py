"""The recorder of the reference, and what is written for the reference.

Where MLX_TRM_REFERENCE names a checkout of the reference and MLX_TRM_REFERENCE_PYTHON a Python that
has its dependencies, it is run (slow); everything else needs neither.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_trm.convert import main as convert
from mlx_trm.parity import main as parity
from mlx_trm.upstream.recording import Recording

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import reference_cases as cases  # noqa: E402  # pylint: disable=wrong-import-position

FOLDER = HERE.parent / "reference"
CHECKOUT = os.environ.get("MLX_TRM_REFERENCE")
PYTHON = os.environ.get("MLX_TRM_REFERENCE_PYTHON", sys.executable)

with_reference = pytest.mark.skipif(
    CHECKOUT is None, reason="MLX_TRM_REFERENCE names no checkout of the reference"
)


def recorder(*words: object, python: str = sys.executable) -> "subprocess.CompletedProcess[str]":
    """Run the recorder."""
    command = [python, str(HERE / "record_reference.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_list_of_cases_is_that_of_the_recordings():
    """The files in tests/reference were recorded with the settings of the list."""
    assert sorted(cases.CASES) == sorted(path.stem for path in FOLDER.glob("cuda/*.safetensors"))
    for name, case in cases.CASES.items():
        recording = Recording(FOLDER / "cuda" / f"{name}.safetensors")
        assert (recording.model, recording.settings) == (case.model, case.settings), name
        assert recording.hyperparameters == (cases.HYPERPARAMETERS if case.trains else {}), name


def test_wrong_arguments_are_one_line(tmp_path):
    """Each ends with exit code 2, before anything is imported or written."""
    fake = tmp_path / "fake"
    (fake / "models" / "recursive_reasoning").mkdir(parents=True)
    blocker = tmp_path / "blocker"
    (blocker / "torch").mkdir(parents=True)
    (blocker / "torch" / "__init__.py").write_text("raise ImportError('no torch')")
    file = tmp_path / "file"
    file.write_text("")
    for words, part in (
        ((tmp_path, tmp_path / "out"), "is no checkout of the reference"),
        ((fake, file), "is a file; name a folder"),
        ((fake, tmp_path / "out", "--case", "nonsense"), "invalid choice: 'nonsense'"),
        ((fake, tmp_path / "out", "--device", "tpu"), "invalid choice: 'tpu'"),
    ):
        done = recorder(*words)
        assert done.returncode == 2 and part in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, str(HERE / "record_reference.py"), str(fake), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(blocker)},
    )
    assert done.returncode == 2 and done.stderr.startswith("torch is not installed")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


TORCH = """
from types import SimpleNamespace as Space
cuda = Space(is_available=lambda: False)
backends = Space(cuda=Space(matmul=Space()), cudnn=Space())
"""
# A checkout that has what recording takes, by name only.
WHOLE = {
    "models/losses.py": "class ACTLossHead: pass",
    "models/sparse_embedding.py": "class CastedSparseEmbeddingSignSGD_Distributed: pass",
    "models/ema.py": "class EMAHelper: pass",
    "models/layers.py": "",
    "models/recursive_reasoning/trm.py": (
        "import models.layers\nclass TinyRecursiveReasoningModel_ACTV1: pass"
    ),
    "models/recursive_reasoning/hrm.py": "",
    "pretrain.py": "import gone\ndef cosine_schedule_with_warmup_lr_lambda(): pass",
}


@pytest.mark.parametrize(
    "file, text, part",
    [
        *((name, None, "is not there") for name in WHOLE if "hrm" not in name),
        ("models/losses.py", "x = (", "cannot be imported (SyntaxError: "),
        ("models/losses.py", "", "has no ACTLossHead"),
        ("models/ema.py", "import gone", "cannot be imported (ModuleNotFoundError: No module"),
        ("models/ema.py", "raise ValueError('a\\nb')", "cannot be imported (ValueError: a b)"),
        ("models/layers.py", "x = (", "cannot be imported (SyntaxError: "),
        ("models/layers.py", "x = y", "cannot be imported (NameError: "),
        ("models/recursive_reasoning/trm.py", "", "has no TinyRecursiveReasoningModel_ACTV1"),
        ("pretrain.py", "def f(:", "cannot be imported (SyntaxError: "),
        ("pretrain.py", "", "has no cosine_schedule_with_warmup_lr_lambda"),
        ("pretrain.py", b"\xff", "cannot be imported (SyntaxError: "),
    ],
)
def test_half_a_checkout_is_one_line(tmp_path, file, text, part):
    """It names the file and says what to do, before anything is written."""
    checkout, out = tmp_path / "checkout", tmp_path / "out"
    for name, content in {**WHOLE, file: text, "../torch/__init__.py": TORCH}.items():
        if content is not None:
            path = checkout / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = subprocess.run(
        [sys.executable, str(HERE / "record_reference.py"), str(checkout), str(out)]
        + ["--case", "trm_mlp_f32"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"{checkout / file}: {part}"), done.stderr
    assert "a whole checkout of the reference" in done.stderr and not out.exists()


@with_reference
@pytest.mark.slow
@pytest.mark.parametrize("case", ["trm_att_rope_f32", "trm_mlp_bf16", "hrm_f32"])
def test_what_the_reference_does_here_passes_parity(tmp_path, capsys, case):
    """A fresh recording is in the format, and this package agrees with it."""
    done = recorder(CHECKOUT, tmp_path, "--case", case, "--device", "cpu", python=PYTHON)
    assert done.returncode == 0, done.stderr
    kept = Recording(FOLDER / "cuda" / f"{case}.safetensors")
    fresh = Recording(tmp_path / f"{case}.safetensors")
    assert set(fresh.arrays) == set(kept.arrays)
    for key, array in fresh.arrays.items():
        assert array.shape == kept.arrays[key].shape, key
        assert array.dtype == kept.arrays[key].dtype, key
    assert set(fresh.self_deviation) == set(kept.self_deviation)
    entry = json.loads((tmp_path / "manifest.json").read_text())[case]
    assert set(entry) == set(json.loads((FOLDER / "cuda" / "manifest.json").read_text())[case])
    assert parity([str(tmp_path), "--device", "cpu"]) == 0, capsys.readouterr().out


STRICT = """
import pathlib
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import torch
from reference_cases import Case
from record_reference import Reference
from save_checkpoints import SETTINGS
folder = pathlib.Path(sys.argv[2])
head = torch.compile(Reference(folder).head(Case("trm", SETTINGS), "cpu"))
if sys.argv[3].endswith(".pt"):
    state = torch.load(sys.argv[3])
else:
    from safetensors.torch import load_file
    state = load_file(sys.argv[3])
own = head.state_dict()
assert all(state[name].dtype == value.dtype for name, value in own.items())
head.load_state_dict(state, strict=True, assign=True)
first = torch.load(sys.argv[4])
assert all(torch.equal(first[name], value) for name, value in head.state_dict().items())
"""


@with_reference
@pytest.mark.slow
def test_the_reference_loads_what_is_written_for_it(tmp_path):
    """``load_state_dict(strict=True)`` of the compiled model takes it, bit by bit the same."""
    config = tmp_path / "open.yaml"
    config.write_text(
        "task: {name: sudoku, size: 4}\n"
        "model: {name: trm, num_heads: 2, H_cycles: 2, L_cycles: 2, puzzle_emb_len: 2}\n"
    )
    source, run = FOLDER / "checkpoint" / "step_7", tmp_path / "run"
    assert convert([str(source), "--config", str(config), "--output", str(run)]) == 0
    target = tmp_path / "back.safetensors"
    assert convert([str(run), "--to-upstream", str(target)]) == 0
    words = [PYTHON, "-c", STRICT, str(HERE), str(CHECKOUT), str(target), str(source)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
