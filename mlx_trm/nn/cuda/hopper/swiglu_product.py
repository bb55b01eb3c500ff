"""silu(gate) * up of gate_up @ x as one kernel, on Hopper, in bfloat16; see ``swiglu_product.cu``.

Without it gate_up @ x, 6 times as large as x, is written and read again.
"""

import mlx.core as mx

from mlx_trm.nn.cuda.kernels import (
    architecture,
    launch,
    multiprocessors,
    shared_limit,
    usable,
)
from mlx_trm.nn.cuda.nvrtc import compiles

# Rows of gate_up that a block keeps, a half of them gates.
_SLICE = 192
# Rows of x below which reading the weight into every block would not pay.
_LEAST_ROWS = 4096
# Its instructions are of this architecture alone.
_FILE, _NAME, _TARGET = "hopper/swiglu_product.cu", "swiglu_product", "sm_90a"


def swiglu_product_fits(rows: int, size: int, inner: int, dtype: mx.Dtype) -> bool:
    """Whether :func:`swiglu_product` takes x, (``rows``, ``size``), and that inner size."""
    return (
        usable(dtype)
        and architecture() == "sm_90"
        and size % 64 == 0
        and size <= 512  # more does not fit a multiprocessor's registers
        and 2 * _SLICE * size <= shared_limit()
        and 2 * inner % _SLICE == 0
        and _LEAST_ROWS <= rows < 2**31
        and 2 * inner * size < 2**31
        and compiles(_FILE, _TARGET, ((_NAME.upper(), 1), ("INNER", inner), ("WIDTH", size)))
    )


def swiglu_product(x: mx.array, gate_up: mx.array) -> mx.array:
    """Give silu(gate) * up of x @ gate_up^T, (rows, I).

    Args:
        x: (rows, D) bfloat16, or of more axes with so many rows.
        gate_up: (2 * I, D) bfloat16, gate before up.
    """
    size, inner = x.shape[-1], gate_up.shape[0] // 2
    rows = x.size // size
    slices = 2 * inner // _SLICE
    return launch(
        _FILE,
        _NAME,
        [x, gate_up],
        [(rows, inner)],
        [rows],
        (slices, max(1, multiprocessors() // slices)),  # a block for each multiprocessor
        defines={"WIDTH": size, "INNER": inner},
        shared_memory=2 * _SLICE * size,
        target=_TARGET,
    )[0]
