"""The BLAS on Linux: OpenBLAS is found before MLX loads its own; its threads; what is in use."""

import ctypes
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path
from typing import Optional, Union

OPENBLAS = "libopenblas.so.0"
BETTER_BLAS = (
    "OpenBLAS is many times faster and is used where it is installed: sudo apt-get install "
    "libopenblas0-pthread"
)
# Weights from which on matrix products take most of a step. With fewer both take as long.
_MANY_WEIGHTS = 100_000


def prefer_fast_blas() -> Optional[str]:
    """On Linux, load OpenBLAS where it is installed, before MLX looks for its BLAS.

    MLX's CPU wheel for Linux brings the single-threaded reference BLAS; symbols of a library that
    is there first win, which makes a train step about ten times faster (docs/faq.md). Nothing is
    loaded where MLX is loaded already or the environment has MLX_TRM_OPENBLAS=0.

    Returns:
        The library's name if it was loaded, else None.
    """
    wanted = os.environ.get("MLX_TRM_OPENBLAS", "1") != "0"
    if not wanted or not sys.platform.startswith("linux") or "mlx.core" in sys.modules:
        return None
    try:
        ctypes.CDLL(OPENBLAS, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None
    find_openblas.cache_clear()
    return OPENBLAS


@lru_cache(maxsize=1)
def find_openblas() -> Optional[ctypes.CDLL]:
    """Give a handle on the OpenBLAS of this process, loaded here or by the user; None: without."""
    if not sys.platform.startswith("linux"):
        return None
    process = ctypes.CDLL(None)  # knows the symbols of all that were loaded for everybody
    return process if hasattr(process, "openblas_set_num_threads") else None


@lru_cache(maxsize=1)
def blas_threads() -> Optional[int]:
    """Give the threads that OpenBLAS began with, as its variables allow; None without it."""
    library = find_openblas()
    return None if library is None else int(library.openblas_get_num_threads())


def set_blas_threads(count: int) -> None:
    """Say how many threads a matrix product may use; of no effect without OpenBLAS."""
    blas_threads()
    library = find_openblas()
    if library is not None:
        library.openblas_set_num_threads(count)


def blas_library(maps: str = "/proc/self/maps") -> Optional[str]:
    """Name the BLAS that MLX's CPU device uses.

    Args:
        maps: the list of files mapped into this process (Linux).

    Returns:
        ``Accelerate`` on a Mac; on Linux the path of an OpenBLAS, MKL or BLIS loaded before MLX's
        own, else of the one that is loaded; None where none is found. NumPy's private OpenBLAS
        does not count.
    """
    if platform.system() == "Darwin":
        return "Accelerate"
    paths = {line.split(None, 5)[5] for line in read_if_there(maps).splitlines() if "/" in line}
    found = sorted(path.strip() for path in paths if "scipy_openblas" not in path)
    for kind in ("openblas", "libmkl_rt", "libblis", "libblas", "libcblas"):
        for path in found:
            if kind in os.path.basename(path):
                return path
    return None


def is_bundled(library: Optional[str]) -> bool:
    """Say whether a path of :func:`blas_library` is the reference BLAS of MLX's wheel."""
    return os.path.basename(library or "").startswith(("libblas", "libcblas"))


def slow_blas_advice(weights: int) -> Optional[str]:
    """Say in one line how the CPU would compute many times faster; None where it would not.

    Args:
        weights: numbers that the model has.
    """
    linux = sys.platform.startswith("linux")
    if not linux or weights < _MANY_WEIGHTS or not is_bundled(blas_library()):
        return None
    return f"MLX computes with its bundled BLAS; {BETTER_BLAS}"


def read_if_there(path: Union[str, Path]) -> str:
    """Read what the system says in a file of its own; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
