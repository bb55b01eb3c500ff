"""Spares most of the time that g++ needs for MLX's kernels on the CPU.

A kernel is a few lines below a header of 70,000, and MLX starts g++ for each: 0.5 s, all but 0.1 s
of it for the header. Here the header is read once, as what GCC calls a precompiled one, and a
``g++`` in front of the real one on ``PATH`` tells it where that is. The kernels are the same to the
byte; where the header does not fit (another compiler, other options), GCC passes it over.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx

INCLUDE = Path(mx.__file__).resolve().parent / "include"
HEADER = Path("mlx", "backend", "cpu", "compiled_preamble.h")
# Those of MLX: with others the header does not fit.
OPTIONS = ["-std=c++17", "-O3", "-fPIC"]


def prepare_kernel_header(folder: Path) -> None:
    """Read the header and put the other ``g++`` in front; nothing where that cannot be done.

    Args:
        folder: for both, about 50 MB; what an earlier call made there is taken as it is.
    """
    compiler = shutil.which("g++")
    if platform.system() != "Linux" or compiler is None or not (INCLUDE / HEADER).is_file():
        return
    changed = (INCLUDE / HEADER).stat().st_mtime_ns
    headers = folder / f"{mx.__version__}-{changed}"
    ready, wrapper = headers / f"{HEADER}.gch", headers / "bin" / "g++"
    if Path(compiler) == wrapper:
        return
    if not ready.is_file():
        ready.parent.mkdir(parents=True, exist_ok=True)
        part = ready.with_suffix(f".{os.getpid()}")
        words = [*OPTIONS, "-w", f"-I{INCLUDE}", "-x", "c++-header", INCLUDE / HEADER, "-o", part]
        if subprocess.run([compiler, *words], capture_output=True, check=False).returncode != 0:
            part.unlink(missing_ok=True)
            return
        part.replace(ready)
    text = f'#!/bin/sh\nexec "{compiler}" "-I{headers}" "$@"\n'
    wrapper.parent.mkdir(exist_ok=True)
    if not wrapper.is_file() or wrapper.read_text(encoding="utf-8") != text:
        new = wrapper.with_suffix(f".{os.getpid()}")
        new.write_text(text, encoding="utf-8")
        new.chmod(0o755)
        new.replace(wrapper)  # whole, as somebody else may be starting it
    os.environ["PATH"] = os.pathsep.join([str(wrapper.parent), os.environ["PATH"]])
