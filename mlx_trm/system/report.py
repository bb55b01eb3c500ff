"""What this machine is and whether MLX computes well on it: ``device_report``.

The report is plain data, so that a command can print it and a reader can send it in.
"""

import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import mlx.core as mx
import numpy as np

from mlx_trm.system.backend import backends
from mlx_trm.system.blas import BETTER_BLAS, blas_library, is_bundled, read_if_there
from mlx_trm.system.device import old_mlx_advice, read_device_info

# Largest difference from float64, over the largest exact value, that rounding explains at a sum of
# 256 products. Float32 products that a GPU rounds to TF32 (10 bits of mantissa) are still right.
TOLERANCES = {"float32": 2e-3, "bfloat16": 2e-2, "float16": 2e-3}
FULL_FLOAT32 = 1e-5
SLOW_GFLOPS = 20.0
MATMUL_SIZE = 256
VARIABLES = (
    "LD_PRELOAD",
    "MLX_TRM_OPENBLAS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def device_report() -> Dict[str, Any]:
    """Describe this machine, its MLX, and what a small matrix product gives on each device.

    Returns:
        Values that ``json.dumps`` takes, under these keys: ``versions``; ``platform``; ``memory``
        in bytes (``available`` is None where the system does not tell); ``devices`` with
        ``default``, ``gpu_available`` and what MLX tells about ``cpu`` and ``gpu``; ``backends``
        installed; ``compiler`` that ``mx.compile`` would start on the CPU; ``blas`` of the CPU;
        ``environment`` variables that matter; ``matmul``, one measurement per device and dtype;
        and ``warnings``, each a sentence with advice.
    """
    from mlx_trm.version import __version__

    gpu = gpu_available()
    report: Dict[str, Any] = {
        "versions": {
            "mlx_trm": __version__,
            "mlx": getattr(mx, "__version__", "unknown"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "platform": {
            "system": platform.system(),
            "description": platform.platform(),
            "machine": platform.machine(),
            "macos": platform.mac_ver()[0] or None,
            "processor": processor_name(),
            "cores": os.cpu_count(),
        },
        "memory": memory_report(),
        "devices": {
            "default": _name(mx.default_device()),
            "gpu_available": gpu,
            "cpu": device_info(mx.cpu),
            "gpu": device_info(mx.gpu) if gpu else None,
        },
        "backends": backends(),
        "compiler": shutil.which("g++"),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in VARIABLES or (name.startswith("MLX_") and name != "MLX_TRM_CACHE")
        },
        "matmul": [
            check_matmul(device, dtype, MATMUL_SIZE)
            for device in ([mx.cpu, mx.gpu] if gpu else [mx.cpu])
            for dtype in TOLERANCES
        ],
    }
    # After the products, so that whatever they load is in memory.
    report["blas"] = blas_library()
    report["warnings"] = find_warnings(report)
    return report


def gpu_available() -> bool:
    """Tell whether MLX can compute on a GPU, Metal or CUDA."""
    return bool(mx.is_available(mx.gpu))


def device_info(device: Any) -> Dict[str, Any]:
    """Give what MLX tells about a device, as plain values.

    Args:
        device: ``mx.cpu`` or ``mx.gpu``.
    """
    plain = (str, int, float, bool)
    return {
        str(name): value if isinstance(value, plain) else str(value)
        for name, value in read_device_info(device).items()
    }


def processor_name() -> str:
    """Give the processor's name, as exactly as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except (OSError, UnicodeDecodeError):
        pass
    return platform.processor() or platform.machine()


def memory_report(root: str = "/") -> Dict[str, Optional[int]]:
    """Give the memory of this machine, or of the container around this process, in bytes.

    Args:
        root: the folder that holds ``proc`` and ``sys``; for tests.

    Returns:
        ``total`` and ``available``; None where the system does not tell.
    """
    total: Optional[int] = None
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        pass
    available: Optional[int] = None
    for line in read_if_there(Path(root, "proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        if name in ("MemTotal", "MemAvailable") and value.split()[:1]:
            size = int(value.split()[0]) * 1024
            total, available = (size, available) if name == "MemTotal" else (total, size)
    limit = read_if_there(Path(root, "sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit():
        used = read_if_there(Path(root, "sys/fs/cgroup/memory.current")).strip()
        room = int(limit) - (int(used) if used.isdigit() else 0)
        total = int(limit) if total is None else min(total, int(limit))
        available = room if available is None else min(available, room)
    return {"total": total, "available": available}


def check_matmul(device: Any, dtype: str, size: int) -> Dict[str, Any]:
    """Multiply two random matrices and compare with float64.

    Args:
        device: ``mx.cpu`` or ``mx.gpu``.
        dtype: a key of ``TOLERANCES``.
        size: rows and columns.

    Returns:
        ``device``, ``dtype``, ``error`` (largest difference over the largest exact value; None
        where it is not finite or MLX refused), ``right``, ``gflops``.
    """
    rng = np.random.default_rng(0)
    result: Dict[str, Any] = {"device": _name(device), "dtype": dtype, "error": None}
    result.update(right=False, gflops=None)
    try:
        product, a, b, seconds = _product(rng, device, getattr(mx, dtype), size)
    except (RuntimeError, ValueError) as problem:
        result["problem"] = str(problem).splitlines()[0] if str(problem) else "no reason given"
        return result
    exact = a @ b
    error = float(np.abs(product - exact).max() / np.abs(exact).max())
    if np.isfinite(error):
        result.update(error=error, right=error <= TOLERANCES[dtype])
    result["gflops"] = round(2e-9 * size**3 / seconds, 2)
    return result


def _product(
    rng: np.random.Generator, device: Any, dtype: mx.Dtype, size: int
) -> Tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Give a product, its two factors as rounded to ``dtype``, all float64, and the seconds."""
    factors = [mx.array(rng.standard_normal((size, size)).astype(np.float32)) for _ in range(2)]
    with mx.stream(device):
        a, b = (factor.astype(dtype) for factor in factors)
        mx.eval(a, b)
        seconds = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            product = mx.matmul(a, b)
            mx.eval(product)
            seconds = min(seconds, time.perf_counter() - start)
        values = [np.array(x.astype(mx.float32)).astype(np.float64) for x in (product, a, b)]
    return values[0], values[1], values[2], max(seconds, 1e-9)


def find_warnings(report: Dict[str, Any]) -> List[str]:
    """Find what in a report deserves advice.

    Args:
        report: of :func:`device_report`, without ``warnings``.

    Returns:
        Sentences, the gravest first.
    """
    found = []
    for row in report["matmul"]:
        if not row["right"]:
            found.append(
                f"{row['dtype']} products on the {row['device']} are wrong "
                f"({row.get('problem') or 'error ' + str(row['error'])}); results there cannot be "
                "trusted: reinstall MLX, and if it stays so use another --device or forward_dtype"
            )
    found += _platform_warnings(report)
    for row in report["matmul"]:
        if row["dtype"] == "float32" and row["right"] and row["error"] > FULL_FLOAT32:
            found.append(
                f"float32 products on the {row['device']} are rounded to TF32 (error "
                f"{row['error']:.0e}); set MLX_ENABLE_TF32=0 for full float32, as parity needs"
            )
    if report["devices"]["default"] == "cpu":
        found += _cpu_warnings(report)
    return found


def _platform_warnings(report: Dict[str, Any]) -> List[str]:
    found = []
    system, machine = report["platform"]["system"], report["platform"]["machine"]
    gpu = report["devices"]["gpu_available"]
    if system == "Darwin" and machine != "arm64":
        found.append(
            f"this Python is {machine} on a Mac (Intel, or Rosetta); MLX is made for Apple "
            "Silicon: install an arm64 Python"
        )
    elif system == "Darwin" and not gpu:
        found.append(
            "Metal is not available, so everything runs on the CPU (in a virtual machine, say); "
            "train on the Mac itself"
        )
    elif system == "Darwin" and old_mlx_advice(report["versions"]["mlx"]):
        found.append(str(old_mlx_advice(report["versions"]["mlx"])))
    elif system == "Windows":
        found.append("mlx_trm is not tested on Windows; use WSL 2 and install as for Linux")
    names = sorted(report["backends"])
    if len(names) > 1:
        found.append(
            f"{' and '.join(names)} are both installed and overwrite each other's files; "
            f"pip uninstall -y mlx {' '.join(names)} and install one again"
        )
    for name, version in sorted(report["backends"].items()):
        if version != report["versions"]["mlx"]:
            found.append(
                f"{name} is {version} and mlx {report['versions']['mlx']}; they belong together: "
                f"pip install --upgrade mlx {name}"
            )
    if any("cuda" in name for name in names) and not gpu:
        found.append(
            "MLX's CUDA backend is installed but finds no GPU; check nvidia-smi, the driver and "
            "CUDA_VISIBLE_DEVICES"
        )
    return found


def _cpu_warnings(report: Dict[str, Any]) -> List[str]:
    found = []
    speed = {r["dtype"]: r["gflops"] for r in report["matmul"] if r["device"] == "cpu"}
    linux = report["platform"]["system"] == "Linux"
    if linux and is_bundled(report["blas"]) and (speed["float32"] or 0) < SLOW_GFLOPS:
        found.append(f"MLX uses its bundled BLAS ({speed['float32']} GFLOP/s); {BETTER_BLAS}")
    if linux and report["compiler"] is None:
        found.append(
            "there is no g++, so mx.compile cannot fuse operations on the CPU; results are the "
            "same, and train.compile=auto does not compile there anyway"
        )
    return found


def _name(device: Any) -> str:
    """Turn a device or a device type into ``cpu`` or ``gpu``."""
    kind = getattr(device, "type", device)
    return "gpu" if kind == mx.gpu else "cpu"
