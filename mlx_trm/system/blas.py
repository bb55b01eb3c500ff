"""OpenBLAS on Linux: found before MLX loads its own BLAS, and how many threads it may use."""

import ctypes
import os
import sys
from functools import lru_cache
from typing import Optional

OPENBLAS = "libopenblas.so.0"


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
