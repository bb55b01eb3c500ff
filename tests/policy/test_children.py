"""Processes that tests start compute where the tests do."""

import os

import pytest
from child_processes import environment, run_python
from paths import ROOT

FAKE = """
cpu, gpu = "cpu", "gpu"
chosen = []
set_default_device = chosen.append
"""


@pytest.fixture(name="fake_mlx")
def fixture_fake_mlx(tmp_path):
    """A folder with an MLX that has a GPU and notes what it is told."""
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("")
    (tmp_path / "mlx" / "core.py").write_text(FAKE)
    return tmp_path


@pytest.mark.parametrize("device", ["cpu", "gpu", None])
def test_a_child_computes_on_the_tests_device(device, fake_mlx, monkeypatch):
    monkeypatch.delenv("MLX_TRM_TEST_DEVICE", raising=False)
    if device is not None:
        monkeypatch.setenv("MLX_TRM_TEST_DEVICE", device)
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(fake_mlx)])
    program = "import mlx.core; import mlx.core as mx; print(mx.chosen)"
    done = run_python("-c", program, env={"PYTHONPATH": paths})
    assert (done.stdout.strip(), done.stderr) == (str([device] if device else []), "")


def test_a_child_s_own_mlx_is_told_too(monkeypatch):
    """The real one, also where the package loads it; and nothing is loaded for it."""
    monkeypatch.setenv("MLX_TRM_TEST_DEVICE", "cpu")
    program = (
        "import sys; assert not [n for n in sys.modules if n.startswith('mlx')];"
        "import mlx_trm, mlx.core as mx; print(mx.default_device(), mlx_trm.__file__)"
    )
    done = run_python("-c", program)
    assert "cpu" in done.stdout and str(ROOT) in done.stdout, done.stderr


def test_a_machine_s_own_sitecustomize_is_not_lost(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("print('its own')\n")
    monkeypatch.setenv("MLX_TRM_TEST_DEVICE", "cpu")
    paths = os.pathsep.join([environment()["PYTHONPATH"], str(tmp_path)])
    assert run_python("-c", "pass", env={"PYTHONPATH": paths}).stdout == "its own\n"
