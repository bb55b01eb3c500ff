"""How the tests run.

They compute on MLX's default device, or on that of MLX_TRM_TEST_DEVICE (cpu or gpu), and so do the
processes that they start. Where CI is set, Hypothesis draws the same examples every time; elsewhere
it looks for new ones. Whole folders are shared by one worker a core where pytest-xdist is
installed; ``-n 0`` runs them in one process.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Iterator, Optional

# The name of this worker, None where there is one process only.
WORKER: Optional[str] = os.environ.get("PYTEST_XDIST_WORKER")

# Before MLX is loaded: workers that run tests side by side have a core each, and float32 products
# are float32 (GPUs may round their inputs to TF32).
if WORKER is not None:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MLX_ENABLE_TF32", "0")

# Before MLX, so that it can load a fast BLAS on Linux.
import mlx_trm  # isort: skip # noqa: E402
import mlx.core as mx  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from kernels import prepare_kernel_header  # noqa: E402
from paths import HELPERS  # noqa: E402

DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}


settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def whole_folders(config: pytest.Config) -> bool:
    """Whether more is asked for than a few files."""
    return all(Path(argument).is_dir() for argument in config.args)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Ask pytest-xdist for a worker a core, before it reads the options."""
    option = config.option
    # Not in pyproject.toml: pytest would not start where the plugin is missing or switched off.
    # Workers come here too, and have no workers of their own.
    if WORKER is not None:
        option.cacheclear = False  # done before they started; the others' folders are there now
    if WORKER is not None or not hasattr(option, "numprocesses"):
        return
    asked = option.numprocesses is not None or option.dist != "no" or option.tx
    # pytest-cov has decided by now how it measures, and without workers.
    asked = asked or getattr(option, "cov_source", None)
    # One file is done before workers have started.
    if not asked and whole_folders(config):
        option.numprocesses = "auto"
        # Each begins with a share of its own, so that the tests of a file keep their fixtures, and
        # takes from the others when it is done.
        option.dist = "worksteal"


def keep_bytecode(folder: Path) -> None:
    """Where Python may write none beside its sources, let processes keep it here.

    Hundreds are started; without, each compiles the package anew, which takes longer than to load
    MLX and NumPy.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(folder))


def pytest_configure(config: pytest.Config) -> None:
    """Choose the device and the folders of kernels and bytecode before anything is computed."""
    cache = getattr(config, "cache", None)
    if WORKER is None and cache is not None:
        keep_bytecode(cache.mkdir("bytecode"))  # the workers too
    if WORKER is None and cache is not None and whole_folders(config):
        prepare_kernel_header(cache.mkdir("kernels"))  # for the workers too
    if WORKER is not None:
        # MLX compiles kernels for the CPU into $TMPDIR/mlx and loads whatever lies there, also
        # what another worker is writing at that moment. The option is that worker's own folder.
        if cache is not None:
            own = str(cache.mkdir(f"tmp-{WORKER}"))  # kept, so that the next run has them
        else:  # not below basetemp, which pytest empties
            own = tempfile.mkdtemp(prefix=f"mlx-trm-{WORKER}-")
            atexit.register(shutil.rmtree, own, ignore_errors=True)
        os.environ["TMPDIR"] = own
    name = os.environ.get("MLX_TRM_TEST_DEVICE")
    if name is None:
        return
    if name not in DEVICES:
        raise pytest.UsageError(f"MLX_TRM_TEST_DEVICE: {name!r} is neither cpu nor gpu")
    mx.set_default_device(DEVICES[name])
    # For processes that tests start without child_processes.py.
    paths = [str(HELPERS / "device"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def pytest_report_header() -> str:
    """Say it in the first lines of the output."""
    return f"mlx_trm {mlx_trm.__version__}, mlx {mx.__version__}, {mx.default_device()}"


@pytest.fixture(autouse=True, scope="session")
def same_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data sets that tests build go into a temporary folder; the terminal does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLX_TRM_CPU_STREAMS", raising=False)
        # Help is as wide as a terminal, and some have colours.
        patch.setenv("COLUMNS", "80")
        for name in ("NO_COLOR", "FORCE_COLOR", "PYTHON_COLORS"):
            patch.delenv(name, raising=False)
        yield
