"""What the kernels of a step take on an NVIDIA GPU, by kind, and how long the GPU waits.

PyTorch's profiler asks NVIDIA's CUPTI, which knows every kernel of a process, whoever has launched
it; so MLX's are seen too. The process that is measured needs PyTorch with CUDA for that, and
nothing else: the original's interpreter imports this module.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

# A kernel is of the first kind of which it has a word in its name. PyTorch names what it compiles
# by the operations in it: the original's rotation of queries and keys, and the gradients of its
# norms, have no word of their own.
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


def record(run: Callable[[int], None], units: int, steps: int) -> Dict[str, Any]:
    """Do some work and record its kernels.

    Args:
        run: does the work so many times, and waits for the device.
        units: of which UNITS are done at most.
        steps: in each.

    Returns:
        Of a step: ``kinds``, seconds by kind; ``launches``, of copies too; ``busy``, the seconds in
        which a kernel ran; and ``longest``, name, launches and seconds of the kernels that take
        most.

    Raises:
        RuntimeError: without PyTorch, where it has no CUDA, or where it records nothing.
    """
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError as error:
        raise RuntimeError(f"{sys.executable} has no PyTorch with CUDA ({error})") from error
    if not torch.cuda.is_available():
        raise RuntimeError(f"{sys.executable} has a PyTorch without CUDA")
    units = min(UNITS, units)
    torch.zeros(1, device="cuda")  # PyTorch begins with CUDA now, and not while it records
    run(1)  # the GPU has had nothing to do meanwhile
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
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
    }


def summary(note: Mapping[str, Any]) -> str:
    """Say in a line what a step's kernels take."""
    kinds = ", ".join(f"{kind} {1e3 * took:.3g}" for kind, took in note["kinds"].items() if took)
    return f"ms in {note['launches']:.0f} launches: {kinds}; waits {1e3 * note['waits']:.3g}"
