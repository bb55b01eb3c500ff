"""The suite saves time on MLX's kernels: g++ makes the same files from a header it has read."""

import os
import shutil
from pathlib import Path

import pytest
from child_processes import run
from kernels import HEADER, INCLUDE, prepare_kernel_header

# Like one of MLX's.
SOURCE = f"""#include "{HEADER}"
extern "C" void kernel(const float* a, float* b, size_t size) {{
  for (size_t i = 0; i < size; ++i) b[i] = mlx::core::detail::Sigmoid()(a[i]);
}}
"""


def compile_kernel(folder: Path, name: str) -> str:
    """Compile it with MLX's options; give the list of headers that were read."""
    words = ["-std=c++17", "-O3", "-Wall", "-fPIC", "-shared", f"-I{INCLUDE}", "-H"]
    done = run(["g++", *words, "kernel.cpp", "-o", name], cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_kernels_are_the_same_from_a_prepared_header(
    pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte; and the header is not read again."""
    cache = getattr(pytestconfig, "cache", None)  # None with -p no:cacheprovider
    folder = tmp_path / "kernels" if cache is None else cache.mkdir("kernels")
    paths = os.environ["PATH"].split(os.pathsep)
    without = os.pathsep.join(path for path in paths if folder not in Path(path).parents)
    monkeypatch.setenv("PATH", without)
    if shutil.which("g++") is None or not (INCLUDE / HEADER).is_file():
        pytest.skip("no g++, or MLX is installed without headers")
    (tmp_path / "kernel.cpp").write_text(SOURCE, encoding="utf-8")
    assert f". {INCLUDE / HEADER}" in compile_kernel(tmp_path, "plain.so")
    prepare_kernel_header(folder)
    if os.environ["PATH"] == without:
        pytest.skip("this g++ is not GCC on Linux")
    assert compile_kernel(tmp_path, "prepared.so").startswith("! ")  # GCC's sign for a prepared one
    assert (tmp_path / "plain.so").read_bytes() == (tmp_path / "prepared.so").read_bytes()
