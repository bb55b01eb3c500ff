"""A feature SwiGLU's products and what stands around them as one kernel each, on Hopper, bfloat16.

See ``swiglu_product.cu``. Without it gate_up @ x, 6 times as large as x, is written and read again.
"""

import ctypes
from functools import lru_cache
from typing import Dict, List, Tuple

import mlx.core as mx

from mlx_trm.nn.cuda.kernels import architecture, launch, shared_limit, usable

# Rows of the weight that a block keeps; rows of x below which the weight's reading would not pay.
_SLICE, _LEAST_ROWS = 192, 16384
# The kernels' instructions are of this architecture alone.
_TARGET = "sm_90a"


@lru_cache(maxsize=1)
def _multiprocessors() -> int:
    """Give how many multiprocessors the GPU has; MLX does not tell."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuDeviceGetAttribute(ctypes.byref(count), 16, 0) == 0:
            return count.value
    except (OSError, AttributeError):
        pass
    return 132


def swiglu_product_fits(x: mx.array, inner: int) -> bool:
    """Whether the functions here take x, (rows, D), and that inner size."""
    rows, size = x.shape
    return (
        usable(x.dtype)
        and architecture() == "sm_90"
        and size % 64 == 0
        and 2 * _SLICE * size <= shared_limit()
        and inner % _SLICE == 0
        and _LEAST_ROWS <= rows < 2**31 // (2 * inner)
    )


def swiglu_product(x: mx.array, gate_up: mx.array, keep: bool) -> List[mx.array]:
    """Give silu(gate) * up of gate_up @ x, and gate and up where they are kept.

    Args:
        x: (rows, D) bfloat16.
        gate_up: (2 * I, D) bfloat16.
        keep: whether the second result, (rows, 2 * I), is written.
    """
    rows, inner = x.shape[0], gate_up.shape[0] // 2
    shapes = [(rows, inner), (rows, 2 * inner) if keep else (1,)]
    defines = {"INNER": inner, "KEEP": int(keep)}
    return _launch("swiglu_product", [x, gate_up], shapes, 2 * inner, defines)


def swiglu_product_gradient(d_y: mx.array, down: mx.array, gate_up: mx.array) -> List[mx.array]:
    """Give the gradient of gate and up, and silu(gate) * up again.

    Args:
        d_y: (rows, D) bfloat16, the gradient of what ``down`` gave.
        down: (D, I) bfloat16.
        gate_up: (rows, 2 * I), the second result of :func:`swiglu_product`.
    """
    inner = down.shape[1]
    shapes = [(d_y.shape[0], 2 * inner), (d_y.shape[0], inner)]
    arrays, defines = [d_y, down.T, gate_up], {"INNER": inner}
    return _launch("swiglu_product_gradient", arrays, shapes, inner, defines)


def _launch(
    name: str,
    arrays: List[mx.array],
    shapes: List[Tuple[int, ...]],
    columns: int,
    defines: Dict[str, int],
) -> List[mx.array]:
    rows, size = arrays[0].shape
    slices = columns // _SLICE
    return launch(
        "swiglu_product.cu",
        name,
        arrays,
        shapes,
        [rows],
        # One block on each multiprocessor.
        (slices, max(1, _multiprocessors() // slices)),
        defines={"WIDTH": size, **defines},
        shared_memory=2 * _SLICE * size,
        target=_TARGET,
    )
