"""Which device the tests compute on: MLX's default, or that of MLX_TRM_TEST_DEVICE (cpu or gpu)."""

import os

import mlx_trm  # isort: skip  # before MLX, so that it can load a fast BLAS on Linux
import mlx.core as mx
import pytest

DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}


def pytest_configure(config: pytest.Config) -> None:
    """Choose the device before anything is computed."""
    del config
    name = os.environ.get("MLX_TRM_TEST_DEVICE")
    if name is None:
        return
    if name not in DEVICES:
        raise pytest.UsageError(f"MLX_TRM_TEST_DEVICE: {name!r} is neither cpu nor gpu")
    mx.set_default_device(DEVICES[name])


def pytest_report_header() -> str:
    """Say it in the first lines of the output."""
    return f"mlx_trm {mlx_trm.__version__}, mlx {mx.__version__}, {mx.default_device()}"
