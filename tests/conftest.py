"""How the tests run.

They compute on MLX's default device, or on that of MLX_TRM_TEST_DEVICE (cpu or gpu). Where CI is
set, Hypothesis draws the same examples every time; elsewhere it looks for new ones.
"""

import os
from typing import Iterator

# Before MLX is loaded: workers that run tests side by side have a core each, and float32 products
# are float32 (GPUs may round their inputs to TF32).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx_trm  # isort: skip  # before MLX, so that it can load a fast BLAS on Linux
import mlx.core as mx
import pytest
from hypothesis import settings

DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}


settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


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


@pytest.fixture(autouse=True, scope="session")
def nothing_into_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets that tests build go into a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLX_TRM_CPU_STREAMS", raising=False)
        yield
