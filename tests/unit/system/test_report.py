"""The report on this machine, its warnings, and the guard for an MLX without a backend."""

import copy
import ctypes.util
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Dict, List, Optional

import mlx.core as mx
import numpy as np
import pytest
from child_processes import run_python
from paths import ROOT

import mlx_trm
from mlx_trm.diagnose import main as diagnose
from mlx_trm.system import backend, blas, report
from mlx_trm.system.backend import (
    OPERATIONS,
    free_memory_by_size,
    frees_memory_often,
    load_advice,
    operations_before_freeing,
    prefer_direct_launches,
    separate_kernel_caches,
    starts_command,
)
from mlx_trm.system.blas import blas_library, slow_blas_advice
from mlx_trm.system.report import check_matmul, find_warnings, memory_report

NO_LIBRARY = ImportError("libmlx.so: cannot open shared object file: No such file or directory")


@pytest.fixture(scope="module", name="report")
def fixture_report() -> Dict[str, Any]:
    """The report of the machine the tests run on."""
    return report.device_report()


def healthy() -> Dict[str, Any]:
    """A report that deserves no warning."""
    row = {"device": "cpu", "right": True}
    return {
        "versions": {"mlx": "0.32.4"},
        "platform": {"system": "Linux", "machine": "x86_64"},
        "devices": {"default": "cpu", "gpu_available": False},
        "backends": {"mlx-cpu": "0.32.4"},
        "compiler": "/usr/bin/g++",
        "blas": "/usr/lib/openblas-pthread/libopenblasp-r0.3.21.so",
        "matmul": [
            {**row, "dtype": "float32", "error": 6e-7, "gflops": 200.0},
            {**row, "dtype": "bfloat16", "error": 2e-3, "gflops": 6.0},
        ],
    }


def test_report_survives_json(report: Dict[str, Any]) -> None:
    """What is written to a file is what was measured."""
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize("version, old", [("0.29.3", True), ("0.31.2", True), ("0.32.0", False)])
def test_an_mlx_that_a_gpu_s_error_ends_is_told_of(version: str, old: bool) -> None:
    """On a Mac with Python 3.9 there is no other; elsewhere it does no such thing."""
    mac = {
        **healthy(),
        "versions": {"mlx": version},
        "platform": {"system": "Darwin", "machine": "arm64"},
        "devices": {"default": "gpu", "gpu_available": True},
        "backends": {"mlx-metal": version},
    }
    said = [line for line in find_warnings(mac) if "ends the whole process" in line]
    assert len(said) == old and all("Python 3.10" in line for line in said)
    linux = {**mac, "platform": {"system": "Linux", "machine": "x86_64"}}
    assert not [line for line in find_warnings(linux) if "ends the whole process" in line]


def test_on_a_mac_pip_takes_an_mlx_whose_errors_are_errors() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "\"mlx>=0.32; sys_platform == 'darwin' and python_version >= '3.10'\"" in text
    assert "\"mlx>=0.29.3; sys_platform == 'darwin' and python_version < '3.10'\"" in text
    assert "\"mlx>=0.29.3; sys_platform == 'darwin'\"" not in text


def test_report_names_the_versions(report: Dict[str, Any]) -> None:
    """Of the package, MLX, NumPy and Python."""
    assert report["versions"] == {
        "mlx_trm": mlx_trm.__version__,
        "mlx": mx.__version__,
        "numpy": np.__version__,
        "python": "{}.{}.{}".format(*sys.version_info[:3]),
    }


def test_report_knows_the_devices(report: Dict[str, Any]) -> None:
    """The default device is MLX's; what MLX tells about a GPU is there when a GPU is."""
    default = "gpu" if mx.default_device().type == mx.DeviceType.gpu else "cpu"
    assert report["devices"]["default"] == default
    assert report["devices"]["gpu_available"] == mx.is_available(mx.gpu)
    assert (report["devices"]["gpu"] is not None) == mx.is_available(mx.gpu)


def test_report_leaves_the_default_device(report: Dict[str, Any]) -> None:
    """Measuring on the CPU does not move the caller to it."""
    before = mx.default_device()
    check_matmul(mx.cpu, "float32", size=8)
    assert mx.default_device() == before and report["devices"]["default"] in str(before)


def test_report_has_the_backend_in_use(report: Dict[str, Any]) -> None:
    """MLX loaded, so a package of it is there, in MLX's version."""
    assert mx.__version__ in report["backends"].values()


@pytest.mark.skipif(platform.system() != "Linux", reason="/proc is Linux's")
def test_report_of_linux_is_complete(report: Dict[str, Any]) -> None:
    """Memory, processor and BLAS are known there."""
    assert 0 < report["memory"]["available"] <= report["memory"]["total"]
    assert report["memory"]["total"] <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert report["platform"]["processor"]
    assert "blas" in Path(report["blas"]).name.lower() or "mkl" in report["blas"]
    assert "scipy_openblas" not in report["blas"]
    assert report["compiler"] == shutil.which("g++")


def test_matmul_is_right_in_every_dtype(report: Dict[str, Any]) -> None:
    """Each row has an error of its dtype's size: not zero, and not more than rounding explains."""
    rows = {row["dtype"]: row for row in report["matmul"] if row["device"] == "cpu"}
    assert set(rows) == {"float32", "bfloat16", "float16"}
    for row in rows.values():
        assert row["right"] and row["gflops"] > 0
    assert 0 < rows["float32"]["error"] < 1e-5
    assert 1e-5 < rows["float16"]["error"] < rows["bfloat16"]["error"] < 2e-2


def test_a_wrong_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that is off by 1 % is not right, and one that is not finite has no error."""
    own = report._product  # pylint: disable=protected-access

    def scaled_by(factor: float) -> Any:
        def product(*args: Any) -> Any:
            value, a, b, seconds = own(*args)
            return value * factor, a, b, seconds

        return product

    monkeypatch.setattr(report, "_product", scaled_by(1.01))
    row = check_matmul(mx.cpu, "float32", size=16)
    assert not row["right"] and row["error"] == pytest.approx(0.01, rel=1e-3)
    monkeypatch.setattr(report, "_product", scaled_by(float("nan")))
    row = check_matmul(mx.cpu, "float32", size=16)
    assert not row["right"] and row["error"] is None


def test_a_product_that_mlx_refuses_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report goes on, with MLX's reason in one line."""

    def product(*_: Any) -> Any:
        raise RuntimeError("out of kernels\nsecond line")

    monkeypatch.setattr(report, "_product", product)
    row = check_matmul(mx.cpu, "float16", size=16)
    assert row == {
        "device": "cpu",
        "dtype": "float16",
        "error": None,
        "right": False,
        "gflops": None,
        "problem": "out of kernels",
    }
    found = find_warnings({**healthy(), "matmul": [*healthy()["matmul"], row]})
    assert len(found) == 1 and "float16" in found[0] and "out of kernels" in found[0]


def test_a_healthy_machine_has_no_warning() -> None:
    """Advice appears only where there is something to mend."""
    assert not find_warnings(healthy())


WARNINGS = {
    "bundled BLAS": (
        {"blas": "/venv/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0", "matmul.0.gflops": 5.0},
        "libopenblas0-pthread",
    ),
    "no compiler": ({"compiler": None}, "g++"),
    "Rosetta": ({"platform.system": "Darwin", "platform.machine": "x86_64"}, "arm64"),
    "no Metal": ({"platform.system": "Darwin", "platform.machine": "arm64"}, "Metal"),
    "Windows": ({"platform.system": "Windows"}, "WSL 2"),
    "two backends": (
        {"backends": {"mlx-cpu": "0.32.4", "mlx-cuda-13": "0.32.4"}, "devices.gpu_available": True},
        "pip uninstall -y mlx mlx-cpu mlx-cuda-13",
    ),
    "another version": ({"backends": {"mlx-cpu": "0.31.0"}}, "pip install --upgrade mlx mlx-cpu"),
    "CUDA without GPU": ({"backends": {"mlx-cuda-13": "0.32.4"}}, "nvidia-smi"),
    "TF32": ({"matmul.0.error": 3e-4}, "MLX_ENABLE_TF32=0"),
    "wrong": ({"matmul.1.right": False, "matmul.1.error": 0.5}, "bfloat16"),
}


@pytest.mark.parametrize("case", sorted(WARNINGS))
def test_each_trouble_has_its_advice(case: str) -> None:
    """One sentence, with what to do."""
    changes, advice = WARNINGS[case]
    report = copy.deepcopy(healthy())
    for path, value in changes.items():
        *folders, last = path.split(".")
        place: Any = report
        for name in folders:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
    found = find_warnings(report)
    assert len(found) == 1, found
    assert advice in found[0] and "\n" not in found[0]


def test_slow_blas_is_no_matter_where_the_gpu_computes() -> None:
    """The CPU's BLAS is not used then."""
    report = healthy()
    report["blas"], report["matmul"][0]["gflops"] = "/x/libblas-1.so", 5.0
    report["devices"] = {"default": "gpu", "gpu_available": True}
    assert not find_warnings(report)


MAPS = """\
7f00-7f01 r-xp 00000000 fe:00 1 /venv/numpy.libs/libscipy_openblas64_-4b78795a.so
7f01-7f02 r-xp 00000000 fe:00 2 /venv/my tools/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0
7f02-7f03 rw-p 00000000 00:00 0
7f03-7f04 rw-p 00000000 00:00 0 [heap]
"""
OPENBLAS = "7f04-7f05 r-xp 00000000 fe:00 3 /usr/lib/openblas-pthread/libopenblasp-r0.3.21.so\n"


@pytest.mark.skipif(platform.system() == "Darwin", reason="a Mac has Accelerate")
@pytest.mark.parametrize(
    "text, expected",
    [
        (MAPS, "/venv/my tools/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0"),
        (MAPS + OPENBLAS, "/usr/lib/openblas-pthread/libopenblasp-r0.3.21.so"),
        ("7f02-7f03 rw-p 00000000 00:00 0 [stack]\n", None),
    ],
)
def test_blas_is_found_among_the_mapped_files(
    tmp_path: Path, text: str, expected: Optional[str]
) -> None:
    """An OpenBLAS loaded first comes before MLX's own; NumPy's private one never counts."""
    maps = tmp_path / "maps"
    maps.write_text(text)
    assert blas_library(str(maps)) == expected


@pytest.mark.parametrize(
    "library, system, weights, told",
    [
        ("/venv/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0", "linux", 200_000, True),
        ("/venv/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0", "linux", 13_000, False),
        ("/usr/lib/openblas-pthread/libopenblasp-r0.3.21.so", "linux", 200_000, False),
        ("Accelerate", "darwin", 200_000, False),
        (None, "linux", 200_000, False),
    ],
)
def test_a_slow_blas_is_told_of_where_it_costs(
    monkeypatch: pytest.MonkeyPatch, library: Optional[str], system: str, weights: int, told: bool
) -> None:
    """With MLX's own BLAS and a model whose products take most of a step; in one line."""
    monkeypatch.setattr(blas, "blas_library", lambda: library)
    monkeypatch.setattr(blas.sys, "platform", system)
    advice = slow_blas_advice(weights)
    assert (advice is not None) == told
    if advice is not None:
        assert "libopenblas0-pthread" in advice and "\n" not in advice


def test_memory_of_a_container(tmp_path: Path) -> None:
    """A container's limit counts where it is lower than the machine's memory."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable: 48 kB\n")
    assert memory_report(str(tmp_path)) == {"total": 64 * 1024, "available": 48 * 1024}
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory_report(str(tmp_path)) == {"total": 64 * 1024, "available": 48 * 1024}
    (group / "memory.max").write_text(f"{32 * 1024}\n")
    (group / "memory.current").write_text(f"{12 * 1024}\n")
    assert memory_report(str(tmp_path)) == {"total": 32 * 1024, "available": 20 * 1024}


ADVICE = [
    ("Linux", "x86_64", NO_LIBRARY, {}, "pip install 'mlx-trm[cpu]'"),
    ("Linux", "x86_64", ModuleNotFoundError("No module named 'mlx'"), {}, "MLX is not installed"),
    ("Linux", "x86_64", NO_LIBRARY, {"mlx-cpu": "1"}, "--force-reinstall --no-deps mlx mlx-cpu"),
    ("Linux", "x86_64", NO_LIBRARY, {"mlx-cpu": "1", "mlx-cuda-13": "1"}, "overwrite each other"),
    (
        "Linux",
        "x86_64",
        ImportError("libcudnn.so.9: cannot open shared object file"),
        {"mlx-cuda-13": "1"},
        "mlx-cuda-13 needs",
    ),
    ("Darwin", "x86_64", ModuleNotFoundError("No module named 'mlx'"), {}, "Rosetta"),
    ("Darwin", "arm64", ImportError("symbol not found\nmore"), {"mlx-metal": "1"}, "macOS 14"),
    ("Windows", "AMD64", ImportError("DLL load failed"), {}, "WSL 2"),
]


@pytest.mark.parametrize("system, machine, error, installed, advice", ADVICE)
def test_advice_where_mlx_does_not_load(
    system: str, machine: str, error: ImportError, installed: Dict[str, str], advice: str
) -> None:
    """One line that says what to do on this system."""
    line = load_advice(error, system, machine, installed)
    assert advice in line and "\n" not in line


@pytest.mark.parametrize(
    "argv, original, expected",
    [
        (["-m", "RUN"], ["python", "-m", "mlx_trm.solve", "RUN"], True),
        (["-m"], ["python", "-X", "dev", "-mmlx_trm.train"], True),
        (["-m"], ["python", "-m", "mlx_trm"], True),
        (["-m", "-m", "mlx_trm"], ["python", "-m", "my_project.run", "-m", "mlx_trm"], False),
        (["-m"], ["python", "-m", "mlx_trm_tools"], False),
        (["-m"], None, False),
        (["/venv/bin/mlx-trm", "solve"], None, True),
        (["-c"], ["python", "-c", "import mlx_trm"], False),
        (["script.py"], ["python", "script.py"], False),
        ([""], ["python"], False),
    ],
)
def test_commands_are_told_from_imports(
    argv: List[str], original: Optional[List[str]], expected: bool
) -> None:
    """Only a command of this package ends the process; an import raises."""
    assert starts_command(argv, original) is expected


@pytest.mark.parametrize(
    "rank, host, own, expected",
    [
        ("1", "127.0.0.1", None, "cache/kernels-1"),
        ("0", "127.0.0.1", None, None),
        ("1", None, None, None),
        ("1", "127.0.0.1", "mine", "mine"),
    ],
)
def test_processes_of_an_nccl_group_share_no_kernel_cache(
    monkeypatch: pytest.MonkeyPatch,
    rank: str,
    host: Optional[str],
    own: Optional[str],
    expected: Optional[str],
) -> None:
    """Only the first one writes to MLX's own folder; what the user has set stays."""
    asked = {"MLX_RANK": rank, "NCCL_HOST_IP": host, "MLX_PTX_CACHE_DIR": own}
    for name, value in {**asked, "MLX_TRM_CACHE": "cache"}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    # Through setenv first, so that the variable is taken away again after the test.
    if own is None:
        monkeypatch.setenv("MLX_PTX_CACHE_DIR", "")
        monkeypatch.delenv("MLX_PTX_CACHE_DIR")
    separate_kernel_caches()
    assert os.environ.get("MLX_PTX_CACHE_DIR") == expected


@pytest.mark.parametrize(
    "said, training, positions, expected",
    [
        (None, False, 4096, "1"),
        (None, False, 4095, "4"),
        (None, True, 512, "6"),
        (None, True, 513, "4"),
        ("4", False, 1 << 20, "4"),
        ("4", True, 1, "4"),
        ("100", False, 1 << 20, "100"),
    ],
)
def test_commands_free_memory_by_what_they_compute(
    monkeypatch: pytest.MonkeyPatch,
    said: Optional[str],
    training: bool,
    positions: int,
    expected: str,
) -> None:
    """Often where much of it is used, seldom where the processor is behind; the user's stays."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(backend, "_SAID", {})
    monkeypatch.setenv("MLX_USE_CUDA_GRAPHS", "0")
    monkeypatch.setenv(OPERATIONS, said or "")
    if said is None:
        monkeypatch.delenv(OPERATIONS)
    prefer_direct_launches()
    assert os.environ[OPERATIONS] == (said or "4")
    free_memory_by_size(positions, training)
    assert os.environ[OPERATIONS] == expected
    assert operations_before_freeing() == int(expected)
    assert frees_memory_often() == (expected == "1")
    for again in (False, True):  # MLX has read the first one
        free_memory_by_size(1 << 20, again)
        free_memory_by_size(1, again)
    assert os.environ[OPERATIONS] == expected


def test_a_script_s_memory_is_freed_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no command has been started nothing is set, and what is set by hand stays."""
    monkeypatch.setattr(backend, "_SAID", {})
    monkeypatch.setenv(OPERATIONS, "4")
    free_memory_by_size(1 << 20, training=False)
    assert os.environ[OPERATIONS] == "4"
    monkeypatch.delenv(OPERATIONS)
    for training in (False, True):
        free_memory_by_size(1, training)
        free_memory_by_size(1 << 20, training)
    assert OPERATIONS not in os.environ


def without_backend(tmp_path: Path, *arguments: str) -> "CompletedProcess[str]":
    """Run Python where ``import mlx.core`` fails as it does without a backend package."""
    broken = tmp_path / "site" / "mlx"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("")
    (broken / "core.py").write_text(f"raise ImportError({str(NO_LIBRARY)!r})\n")
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    return run_python(*arguments, env={"PYTHONPATH": path}, cwd=tmp_path)


def test_import_without_a_backend(tmp_path: Path) -> None:
    """``import mlx_trm`` raises an ImportError that says what to do."""
    done = without_backend(tmp_path, "-c", "import mlx_trm")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: MLX") and "libmlx.so" in last and "pip install" in last


@pytest.mark.parametrize("command", ["solve", "diagnose"])
def test_command_without_a_backend(tmp_path: Path, command: str) -> None:
    """A command ends with code 2 and that one line."""
    done = without_backend(tmp_path, "-m", f"mlx_trm.{command}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("MLX does not load") or done.stderr.startswith("MLX has no")
    assert "pip install" in done.stderr


@pytest.fixture(name="small_products")
def fixture_small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products that take no time; what they show is not timed."""
    monkeypatch.setattr(report, "MATMUL_SIZE", 32)


@pytest.mark.usefixtures("small_products")
def test_diagnose_prints_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything a reader needs to help is on the screen; the file has the whole report."""
    file = tmp_path / "report.json"
    assert diagnose(["--json", str(file)]) == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    lines = capsys.readouterr().out.splitlines()
    assert f"mlx_trm         {mlx_trm.__version__}" in lines
    assert f"mlx             {mx.__version__}" in lines
    assert any(
        line.split() == ["default", "device", report["devices"]["default"]] for line in lines
    )
    table = [line.split()[:3] for line in lines if line.startswith("cpu")]
    assert table == [["cpu", name, "right"] for name in ("float32", "bfloat16", "float16")]
    assert [line[9:] for line in lines if line.startswith("warning: ")] == report["warnings"]


@pytest.mark.usefixtures("small_products")
def test_diagnose_says_no_where_products_are_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, and the trouble is named even with -q."""
    monkeypatch.setitem(report.TOLERANCES, "bfloat16", 1e-9)
    assert diagnose(["-q"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("warning: bfloat16 products on the cpu are wrong (error 0.00")
    assert "WRONG" not in out


@pytest.mark.usefixtures("small_products")
def test_diagnose_cannot_write_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit code 2."""
    assert diagnose(["--json", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "cannot be written" in captured.err


@pytest.mark.parametrize("setting, loaded", [(None, True), ("1", True), ("0", False)])
def test_openblas_is_used_where_it_is_installed(setting: Optional[str], loaded: bool) -> None:
    """It comes before MLX's own BLAS, unless the environment says no."""
    if ctypes.util.find_library("openblas") is None or sys.platform != "linux":
        pytest.skip("no OpenBLAS here")
    code = (
        "import mlx_trm.system.report as d, mlx_trm.system.blas as b; "
        "print(b.blas_library(), b.find_openblas() is not None)"
    )
    done = run_python("-c", code, env={"LD_PRELOAD": None, "MLX_TRM_OPENBLAS": setting})
    assert done.returncode == 0, done.stderr
    assert ("libopenblas" in done.stdout) == loaded
    assert done.stdout.endswith(f" {loaded}\n")  # its threads can be counted
