"""What the kernels of a step take on an NVIDIA GPU, by kind, and how long the GPU waits.

PyTorch's profiler asks NVIDIA's CUPTI, which knows every kernel of a process, whoever has launched
it; so MLX's are seen too. The process that is measured needs PyTorch with CUDA for that, and
nothing else: the original's interpreter imports this module.

NVIDIA's drivers keep a GPU's power below a limit by lowering its clock. A step that takes all of it
gains little when the GPU no longer waits: while it waits it saves power, with which it computes
faster afterwards. So the power that a step takes stands beside its kernels, and they are recorded
after a second of work: kernels are faster just after a rest.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from energy import COUNTER, Meter

# A kernel is of the first kind of which it has a word in its name. PyTorch names what it compiles
# by the operations in it: of the original's rotation of queries and keys the gradient has no word
# of its own, nor have the gradients of its norms.
KINDS: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("attention", ("attention", "rope", "row_dots", "join_gradients", "flash", "fmha", "sdpa",
                   "dot_do_o", "convert_dq")),
    ("products", ("swiglu_product", "gemm", "gemv", "nvjet", "cutlass", "splitk", "triton_tem",
                  "ab_t_")),
    ("position half", ("mlp_t",)),
    ("swiglu", ("swiglu", "silu", "sigmoid")),
    ("norms", ("_norm", "norm_", "rsqrt")),
)  # fmt: skip
ELSE = "everything else"
RECORDED = ("kernel", "gpu_memcpy", "gpu_memset")
LONGEST = 12  # kernels that are named
UNITS = 4  # that are recorded, at most
SECONDS = 2.0  # over which power is taken; the counter is updated about every tenth of a second
WARM = 1.0  # seconds of work before kernels are recorded


def kind_of(name: str) -> str:
    """Give the kind of a kernel."""
    lower = name.lower()
    return next((kind for kind, words in KINDS if any(word in lower for word in words)), ELSE)


def read_trace(trace: Mapping[str, Any]) -> Tuple[Dict[str, List[float]], float]:
    """Read what the profiler has recorded.

    Args:
        trace: as it exports it; times are in microseconds.

    Returns:
        The seconds of each time that a kernel ran, by its name, copies included; and the seconds in
        which at least one did.
    """
    events = [event for event in trace["traceEvents"] if event.get("cat") in RECORDED]
    found: Dict[str, List[float]] = {}
    busy = end = 0.0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        begin, took = float(event["ts"]), float(event["dur"])
        found.setdefault(event["name"], []).append(1e-6 * took)
        busy += max(0.0, begin + took - max(begin, end))
        end = max(end, begin + took)
    return found, 1e-6 * busy


def work_for(seconds: float, run: Callable[[int], None], units: int) -> Tuple[int, float]:
    """Do so many units again and again; gives how many were done, and the seconds it took."""
    started, done = time.perf_counter(), 0
    while (took := time.perf_counter() - started) < seconds:
        run(units)
        done += units
    return done, took


def measure_power(
    run: Callable[[int], None], units: int, steps: int, gpus: Sequence[str]
) -> Dict[str, Any]:
    """Do some work for SECONDS and count the energy that it takes.

    Args:
        run, units, steps, gpus: see :func:`record`; so many units are done at once.

    Returns:
        ``seconds`` and ``joules`` of a step, and ``watts`` beside the ``power_limit``; the last
        three None where no counter tells.
    """
    found: Dict[str, Any] = dict.fromkeys(("joules", "watts", "power_limit"))
    meter = Meter(gpus)
    if meter.source != COUNTER:  # samples are too far apart
        meter = Meter([])
    run(units)  # the GPU has had nothing to do meanwhile
    with meter:
        done, took = work_for(SECONDS, run, units)
        joules = meter.joules()
    if joules is not None:
        found.update(joules=joules / (done * steps), watts=joules / took)
        found["power_limit"] = meter.limit()
    return {"seconds": took / (done * steps), **found}


def record(
    run: Callable[[int], None], units: int, steps: int, gpus: Sequence[str] = ()
) -> Dict[str, Any]:
    """Do some work, first by the clock and the counter of energy, and then record its kernels.

    Args:
        run: does the work so many times, and waits for the device.
        units: done at once; UNITS of them are recorded at most.
        steps: in each unit.
        gpus: the numbers of the GPUs that work.

    Returns:
        Of a step: ``kinds``, seconds by kind; ``launches``, of copies too; ``busy``, the seconds in
        which a kernel ran; ``longest``, name, launches and seconds of the kernels that take most;
        what :func:`measure_power` gives; and ``waits``, its seconds less ``busy``: recording itself
        slows the processor down.

    Raises:
        RuntimeError: without PyTorch, where it has no CUDA, or where it records nothing.
    """
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile, schedule
    except ImportError as error:
        raise RuntimeError(f"{sys.executable} has no PyTorch with CUDA ({error})") from error
    if not torch.cuda.is_available():
        raise RuntimeError(f"{sys.executable} has a PyTorch without CUDA")
    torch.zeros(1, device="cuda")  # PyTorch begins with CUDA now, and not while it records
    power = measure_power(run, units, steps, gpus)
    activities, warm_first = [ProfilerActivity.CUDA], schedule(wait=0, warmup=1, active=1)
    with profile(activities=activities, schedule=warm_first) as profiler:
        work_for(WARM, run, units)  # of which nothing is kept
        profiler.step()
        units = min(UNITS, units)
        run(units)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        kernels, busy = read_trace(json.loads(path.read_text(encoding="utf-8")))
    if not kernels:
        raise RuntimeError("PyTorch's profiler has recorded no kernel")
    steps *= units
    kinds = dict.fromkeys([kind for kind, _ in KINDS] + [ELSE], 0.0)
    for name, seconds in kernels.items():
        kinds[kind_of(name)] += sum(seconds) / steps
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:LONGEST]
    return {
        "kinds": kinds,
        "launches": sum(len(seconds) for seconds in kernels.values()) / steps,
        "busy": busy / steps,
        "longest": [[name[:200], len(each) / steps, sum(each) / steps] for name, each in longest],
        **power,
        "waits": max(0.0, power["seconds"] - busy / steps),
    }


def summary(note: Mapping[str, Any]) -> str:
    """Say in a line what a step's kernels take."""
    kinds = ", ".join(f"{kind} {1e3 * took:.3g}" for kind, took in note["kinds"].items() if took)
    text = (
        f"{1e3 * note['seconds']:.3g} ms in {note['launches']:.0f} launches: {kinds}; "
        f"waits {1e3 * note['waits']:.3g}"
    )
    if note.get("watts") and note.get("power_limit"):
        text += f"; {note['watts']:.0f} of {note['power_limit']:.0f} W, {note['joules']:.3g} J"
    return text
