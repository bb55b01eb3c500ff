"""Closed descriptors, temporary folders that cannot be used, forks."""

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from child_processes import run, run_python

import mlx_trm as trm
from mlx_trm.errors import ConfigError
from mlx_trm.inference.packaged import find_pretrained
from mlx_trm.inference.quantization import quantize_model
from mlx_trm.models import named_arrays
from mlx_trm.system import environment
from mlx_trm.system.environment import prepare_temporary_folder

PUZZLE = "12.. 34.. .143 .321"
SAVED = find_pretrained("sudoku-4x4").folder


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-", "2>&-"])
def test_a_checkpoint_is_loaded_with_closed_streams(closed: str, tmp_path: Path) -> None:
    """By Python, without a command, as a daemon does; what is written then goes into its file."""
    (tmp_path / "t.py").write_text(
        "import mlx_trm as trm\n"
        f"found = trm.load_checkpoint({str(SAVED)!r})\n"
        "trm.save_checkpoint('run', found.model, found.config, 1)\n"
        "trm.load_checkpoint('run')\n"
        "open('done', 'w').write('yes')\n"
    )
    import sys

    done = run(["bash", "-c", f"'{sys.executable}' t.py {closed}"], cwd=tmp_path)
    assert (done.returncode, (tmp_path / "done").exists()) == (0, True), done.stderr


@pytest.mark.parametrize("named", ["nowhere", "file", "/proc"])
def test_another_folder_to_compile_in(
    named: str, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    """Said in one line; where none can be used that is one line, too."""
    (tmp_path / "file").write_text("")
    for name in environment.TEMPORARY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / named))
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    found = prepare_temporary_folder()
    assert os.environ["TMPDIR"] == str(found) == str(tmp_path / "cache" / "compiled")
    assert len(caplog.records) == 1 and "TMPDIR" in caplog.text
    assert prepare_temporary_folder() == found and len(caplog.records) == 1
    monkeypatch.setenv("TMPDIR", str(tmp_path / named))
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(environment, "_private_folder", lambda: None)
    with pytest.raises(ConfigError, match="TMPDIR: .* train.compile=never"):
        prepare_temporary_folder()


def test_a_folder_in_which_others_may_write_is_not_compiled_in(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """MLX would load what they put there."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx").chmod(0o755)  # whatever the umask
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    assert prepare_temporary_folder() == tmp_path
    (tmp_path / "mlx").chmod(0o777)
    assert prepare_temporary_folder() == tmp_path / "cache" / "compiled"


FORK = f"""
import os, sys
import mlx.core as mx
import mlx_trm as trm
early = os.fork() if "early" in sys.argv else 1
solver = trm.Solver.from_checkpoint({str(SAVED)!r})
if early:
    list(solver.steps({PUZZLE!r}))
    if os.fork() == 0:
        for call in (lambda: list(solver.steps({PUZZLE!r})),
                     lambda: trm.load_checkpoint({str(SAVED)!r}),
                     lambda: trm.build_model(solver.config.model, solver.model.spec)):
            try:
                call()
                os.write(1, b"computed\\n")
            except trm.TRMError as error:
                os.write(1, b"%d %d\\n" % (str(error).count(chr(10)), "spawn" in str(error)))
        os._exit(0)
else:
    list(solver.steps({PUZZLE!r}))
    os.write(1, b"early child computed\\n")
    os._exit(0)
os.wait()
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_after_computing_ends_in_a_line() -> None:
    """Instead of waiting for threads that are not there; a fork before it computes as ever."""
    done = run_python("-c", FORK, "early")
    assert sorted(done.stdout.splitlines()) == ["0 1"] * 3 + ["early child computed"], done


def same(first: Any, second: Any) -> bool:
    """Whether two models hold the same numbers of the same kinds."""
    ours, theirs = (dict(named_arrays(each.parameters())) for each in (first, second))
    return list(ours) == list(theirs) and all(
        a.dtype == theirs[n].dtype and a.shape == theirs[n].shape
        and np.array_equal(np.array(a.astype(mx.float32)), np.array(theirs[n].astype(mx.float32)))
        for n, a in ours.items()
    )  # fmt: skip


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "pickle"],
)
def test_models_checkpoints_and_solvers_are_copied(again: Any) -> None:
    """They hold the same, answer the same, and share nothing."""
    checkpoint = trm.load_checkpoint(SAVED)
    model = again(checkpoint.model)
    assert same(model, checkpoint.model) and model.dtype == checkpoint.model.dtype
    assert model.training is False and model.config == checkpoint.model.config
    found = again(checkpoint)
    assert same(found.model, checkpoint.model)
    assert (found.config, found.step, found.path) == (
        checkpoint.config, checkpoint.step, checkpoint.path,
    )  # fmt: skip
    solver = trm.Solver(checkpoint.model, checkpoint.config)
    other = again(solver)
    ours, theirs = (list(each.steps(PUZZLE)) for each in (solver, other))
    assert ours == theirs and other.model is not solver.model
    name, array = named_arrays(other.model.parameters())[0]
    array += 1
    assert same(solver.model, checkpoint.model), name


@pytest.mark.parametrize("kind", ["bfloat16", "quantised", "training"])
def test_models_of_every_kind_are_copied(kind: str) -> None:
    """Half precision, layers of eight bits, a model in training."""
    model = trm.load_checkpoint(SAVED).model
    if kind == "bfloat16":
        model.set_dtype(mx.bfloat16)
    elif kind == "quantised":
        quantize_model(model, 8)
    else:
        model.train()
    for found in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(found, model) and found.training == model.training
