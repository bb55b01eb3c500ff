"""The worker of mlx_trm: does what benchmarks/run.py tells it, see protocol.py."""

import sys
import time
from typing import Any, Callable, Dict

import mlx_trm as trm  # isort: skip  # before MLX, so that it can load a fast BLAS on Linux
import cases
import data_cases
import mlx.core as mx
import numpy as np
from protocol import EVALUATES, TRAINS, Job, Side, Work, serve

from mlx_trm.system.backend import free_memory_by_size, prefer_direct_launches
from mlx_trm.system.device import on_gpu

MATRIX = {"gpu": 8192, "cpu": 1024}
COPIED = {"gpu": 1 << 30, "cpu": 1 << 26}

CASES: Dict[str, Callable[[Job], Work]] = {
    "train": cases.train,
    "eval": cases.evaluate,
    "overhead": cases.overhead,
    "pipeline": data_cases.pipeline,
    "solve": cases.solve,
    "adaptive": cases.adaptive,
    "adaptive.all": cases.all_steps,
    "load.model": data_cases.load_model,
    "load.checkpoint": data_cases.load_checkpoint,
    "data.sudoku": data_cases.data_sudoku,
    "data.build": data_cases.data_build,
    "data.maze": data_cases.data_maze,
}


def stand_for_command(job: Job) -> None:
    """Have memory freed as in the command that evaluates or trains, if the worker was told which.

    The first job counts: the others are of its size and batch.
    """
    if EVALUATES in sys.argv or TRAINS in sys.argv:
        free_memory_by_size(job["batch"] * job["seq_len"], training=TRAINS in sys.argv)


def prepare(job: Job) -> Work:
    """Make the work of a job."""
    stand_for_command(job)
    return CASES[job["case"]](job)


def best(function: Callable[[], Any], runs: int = 6) -> float:
    """Give the seconds of the fastest run."""
    found = float("inf")
    for _ in range(runs):
        started = time.perf_counter()
        function()
        mx.synchronize()
        found = min(found, time.perf_counter() - started)
    return found


def rates(job: Job) -> Dict[str, float]:
    """Measure what the device does at best: a large matrix product, and a copy.

    The copy is MLX's on a GPU. On the CPU it is NumPy's, by one thread into memory that is there:
    MLX's takes fresh memory each time and measures the system's page faults.

    Returns:
        ``flops``, operations a second in the job's dtype, and ``bandwidth``, bytes a second read
        and written; the best of several.
    """
    device = "gpu" if on_gpu() else "cpu"
    size, dtype = MATRIX[device], getattr(mx, job["dtype"])
    if job["dtype"] != "float32" and device == "cpu":
        size //= 2  # slow there
    a, b = (mx.random.normal((size, size)).astype(dtype) for _ in range(2))
    mx.eval(a, b)
    product = best(lambda: mx.eval(a @ b))
    if device == "gpu":
        source = mx.zeros((COPIED[device] // 4,))
        mx.eval(source)
        copy = best(lambda: mx.eval(source + 1.0))
    else:
        values = np.ones(COPIED[device] // 4, np.float32)
        target = np.zeros_like(values)
        copy = best(lambda: np.copyto(target, values))
    mx.clear_cache()
    return {"flops": 2.0 * size**3 / product, "bandwidth": 2.0 * COPIED[device] / copy}


def report(job: Job) -> Dict[str, Any]:
    """Describe this machine."""
    del job
    return trm.device_report()


def first_step(job: Job) -> Dict[str, Any]:
    """Take the first step of a process."""
    started = time.perf_counter()
    stand_for_command(job)
    cases.train(job).run(1)
    return {"seconds": time.perf_counter() - started}


ASK: Dict[str, Callable[[Job], Any]] = {
    "rates": rates,
    "report": report,
    "first_step": first_step,
}


if __name__ == "__main__":
    prefer_direct_launches()  # as the package's commands do
    mx.set_default_device(mx.gpu if "--gpu" in sys.argv else mx.cpu)
    serve(Side(prepare, ASK, mx.reset_peak_memory, mx.get_peak_memory, mx.clear_cache))
