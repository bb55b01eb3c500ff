"""The first thing the package imports: it checks that MLX loads, and says what to do if not.

On a Mac `mlx` brings its Metal backend. On Linux the package `mlx` installs without any backend,
and then `import mlx.core` ends in "libmlx.so: cannot open shared object file".
"""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Dict, List, NoReturn, Optional

from mlx_trm.system.blas import find_openblas, prefer_fast_blas
from mlx_trm.system.environment import reserve_descriptors
from mlx_trm.system.files import cache_folder

BACKEND_PACKAGES = ("mlx-metal", "mlx-cpu", "mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")


SCHEDULE_WIDTH = "MLX_BFS_MAX_WIDTH"
# After how many operations, and one more, MLX's CUDA backend frees what they have used; what the
# commands say where the user has said nothing: in general, and by what they compute.
OPERATIONS = "MLX_MAX_OPS_PER_BUFFER"
FREED_USUALLY, FREED_OFTEN, FREED_SELDOM = "4", "1", "6"
# Positions of all rows of a batch: an evaluation of so many frees memory often, training on so few
# seldom.
LARGE_EVALUATION, SMALL_TRAINING = 4096, 512
# The number that a command has said in this process, while it may still say another.
_SAID: Dict[str, str] = {}

# Of malloc.h: a block of so many bytes is the system's, and so many free at the end go back to it.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
KEPT = 1 << 30


def prefer_direct_launches() -> None:
    """On Linux, have MLX's CUDA backend launch kernels one by one, and free memory often.

    By default it collects them in CUDA graphs, which it builds anew in every step: a train step of
    64 Sudoku took 15.0 ms with graphs and 13.5 without on an H200. Without graphs it frees what an
    operation has used after every so many operations only, 100 by default; the memory that this
    costs is why there are fewer here. What the environment already says is left alone. It has to be
    said before MLX computes anything; commands say it, importing the package does not.
    """
    if not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("MLX_USE_CUDA_GRAPHS", "0")
    if OPERATIONS not in os.environ:
        os.environ[OPERATIONS] = _SAID[OPERATIONS] = FREED_USUALLY


def free_memory_by_size(positions: int, training: bool) -> None:
    """Have MLX free memory after more or fewer operations, by what a command computes.

    Evaluations of many positions free it after every second operation: one of 768 Sudoku takes 1.1
    GiB instead of 1.8 and is 1 % slower, one of 64 took 0.20 GiB instead of 0.32 and was 11 %
    slower. Steps of few positions are bound by the processor, which does more work wherever memory
    is freed, and have little of it: training on one Sudoku at a time took 9.1 ms where it was freed
    after every fifth, and 8.6 after every 20th, but up to 0.28 GiB, depending on how far the
    processor was ahead. After every tenth it took 0.17 to 0.20, and after every seventh, as it is
    now, 0.17 and no longer. All others stay as they are.

    Nothing is changed where :func:`prefer_direct_launches` has not been called or the user has set
    a number. It has to be said before MLX computes anything; MLX reads the number once, so the
    first call counts.

    Args:
        positions: of all rows of a batch, of the largest one.
        training: whether steps are trained, perhaps with evaluations, or only evaluated.
    """
    if OPERATIONS not in os.environ or os.environ[OPERATIONS] != _SAID.pop(OPERATIONS, None):
        return
    if training and positions <= SMALL_TRAINING:
        os.environ[OPERATIONS] = FREED_SELDOM
    elif not training and positions >= LARGE_EVALUATION:
        os.environ[OPERATIONS] = FREED_OFTEN


def operations_before_freeing() -> int:
    """Give the number that MLX's CUDA backend frees memory after one more operation than."""
    said = os.environ.get(OPERATIONS, "")
    return int(said) if said.isdecimal() else 100


def frees_memory_often() -> bool:
    """Whether MLX's CUDA backend frees memory after every second operation, or each."""
    return operations_before_freeing() <= 1


def separate_kernel_caches() -> None:
    """Give each process of an NCCL group but the first its own folder for MLX's compiled kernels.

    MLX writes a kernel's code to the folder and another process may read it half written: with one
    folder for all, a first start can fail. Said before MLX is imported, as above.
    """
    rank = os.environ.get("MLX_RANK", "0")
    if "NCCL_HOST_IP" in os.environ and rank != "0":
        os.environ.setdefault("MLX_PTX_CACHE_DIR", str(cache_folder() / f"kernels-{rank}"))


def prefer_wide_schedule() -> None:
    """On Linux without a GPU, have MLX order a step's operations by their distance to its results.

    Beyond a width of 20 arrays it goes down one branch of the graph after the other, so that of two
    streams (see streams.py) one waits for the other's end: a train step of 8 Sudoku took 4.9 s so,
    2.9 s in this order, and 3.3 s with one stream. It has to be said before MLX evaluates anything.
    """
    if _computes_on_linux_cpu():
        os.environ.setdefault(SCHEDULE_WIDTH, "200")


def keep_freed_memory() -> None:
    """On Linux without a GPU, have the C library keep memory that MLX frees for its next arrays.

    MLX keeps none of its own there. The C library gives large arrays back to the system, which has
    to clear every page that it gives again: 15 % of an evaluation step of 64 Sudoku, 3 of a train
    step of 8. What the environment says of malloc is left alone.
    """
    said = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if not _computes_on_linux_cpu() or any(name in os.environ for name in said):
        return
    process = ctypes.CDLL(None)
    if not hasattr(process, "mallopt"):  # the C library is not GNU's
        return
    # Old ones refuse more than 32 MiB. Only where it is set may the other be, or arrays of more
    # than 128 KiB would be given back at once.
    if any(process.mallopt(M_MMAP_THRESHOLD, size) for size in (KEPT, 32 << 20)):
        process.mallopt(M_TRIM_THRESHOLD, KEPT)


def _computes_on_linux_cpu() -> bool:
    import mlx.core as mx

    cuda = getattr(mx, "cuda", None)
    return sys.platform.startswith("linux") and not (cuda and cuda.is_available())


def can_overlap_streams() -> bool:
    """Whether streams of the CPU compute side by side here.

    MLX has to order operations by :func:`prefer_wide_schedule`, and OpenBLAS, where it is used, to
    have threads that are not OpenMP's.
    """
    width, library = os.environ.get(SCHEDULE_WIDTH, ""), find_openblas()
    # 2: made with OpenMP, which counts threads anew in each of MLX's.
    by_openmp = library is not None and library.openblas_get_parallel() == 2
    return width.isdecimal() and int(width) >= 100 and not by_openmp


def check_platform() -> None:
    """Import MLX, with a fast BLAS where there is one.

    Raises:
        ImportError: if MLX does not load; one line that says what to install.
        SystemExit: with code 2 and that line on standard error, where one of this package's
            commands is being started. The package is imported before the command's own code
            runs, so an exception would be a traceback.
    """
    imported_before = "mlx.core" in sys.modules  # and may have evaluated something
    prefer_fast_blas()
    if starts_command(sys.argv, _command_line()):
        reserve_descriptors()  # before MLX can open a file
        prefer_direct_launches()
        separate_kernel_caches()
    try:
        import mlx.core  # noqa: F401  pylint: disable=unused-import
    except ImportError as error:
        _refuse(load_advice(error, platform.system(), platform.machine(), backends()), error)
    if not imported_before:
        prefer_wide_schedule()
        keep_freed_memory()


def load_advice(error: ImportError, system: str, machine: str, installed: Dict[str, str]) -> str:
    """Say in one line why MLX does not load and what to do.

    Args:
        error: what ``import mlx.core`` raised.
        system: of :func:`platform.system`.
        machine: of :func:`platform.machine`.
        installed: backend packages and their versions, from :func:`backends`.
    """
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if system == "Darwin" and machine != "arm64":
        return (
            f"MLX needs an Apple Silicon Mac and a native Python, and this Python is {machine} "
            "(an Intel Mac, or Rosetta); install an arm64 Python, or use Linux"
        )
    if system == "Windows":
        return f"mlx_trm does not run on Windows ({reason}); install it in WSL 2, as for Linux"
    if system == "Darwin":
        return (
            f"MLX does not load ({reason}); it needs macOS 14 or newer: "
            "pip install --upgrade --force-reinstall mlx"
        )
    names = [name for name in installed if name != "mlx-metal"]
    if len(names) > 1:
        return (
            f"MLX does not load ({reason}): {' and '.join(names)} overwrite each other's files; "
            f"pip uninstall -y mlx {' '.join(names)}, then pip install 'mlx-trm[cpu]'"
        )
    if names and "libmlx" in reason:
        return (
            f"MLX does not load ({reason}): files of {names[0]} are missing; "
            f"pip install --force-reinstall --no-deps mlx {names[0]}"
        )
    if names:
        return (
            f"MLX does not load ({reason}); {names[0]} needs what is named there; "
            f"to use the CPU: pip uninstall -y mlx {names[0]}, then pip install 'mlx-trm[cpu]'"
        )
    what = (
        "MLX is not installed" if isinstance(error, ModuleNotFoundError) else "MLX has no backend"
    )
    return (
        f"{what} ({reason}); choose an extra: pip install 'mlx-trm[cpu]', or for an "
        "NVIDIA GPU 'mlx-trm[cuda13]' or 'mlx-trm[cuda12]' (in a clone: pip install -e '.[cpu]')"
    )


def backends() -> Dict[str, str]:
    """Give the installed backend packages of MLX with their versions."""
    from importlib import metadata

    found = {}
    for name in BACKEND_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def starts_command(argv: List[str], original: Optional[List[str]]) -> bool:
    """Tell whether a command of this package is being started, rather than the package imported.

    Args:
        argv: ``sys.argv``; while ``python -m`` looks for its module, its first entry is ``-m``.
        original: the interpreter's whole command line, or None where it is not known.
    """
    program = os.path.basename(argv[0]) if argv else ""
    if program in ("mlx-trm", "mlx-trm.exe"):
        return True
    if program != "-m" or original is None:
        return False
    for word, following in zip(original[1:], original[2:] + [""]):
        if word.startswith("-m"):
            return (word[2:] or following).split(".")[0] == "mlx_trm"
    return False


def _command_line() -> Optional[List[str]]:
    line: Optional[List[str]] = getattr(sys, "orig_argv", None)
    if line is None:  # Python 3.9
        try:
            line = Path("/proc/self/cmdline").read_text(encoding="utf-8").rstrip("\0").split("\0")
        except (OSError, UnicodeDecodeError):
            return None
    return line


def _refuse(message: str, error: ImportError) -> NoReturn:
    if starts_command(sys.argv, _command_line()):
        sys.stderr.write(message + "\n")
        raise SystemExit(2) from None
    raise ImportError(message, name=error.name, path=error.path) from error
