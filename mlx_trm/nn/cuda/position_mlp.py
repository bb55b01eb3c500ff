"""The position half of a block as one CUDA kernel in bfloat16: mlp_t.cu."""

from typing import List, Optional

import mlx.core as mx

from mlx_trm.nn.cuda.kernels import GRID, float_bits, launch, shared_limit

# Inner units a stage, and stages.
_UNITS, _STAGES = 32, 3


def position_mlp_fits(rows: int, positions: int, size: int, inner: int) -> bool:
    """Whether :func:`position_mlp` takes (``rows``, ``positions``, ``size``) and that inner size.

    Its outputs stay in a warp's registers, x and the weights in use in shared memory.
    """
    return (
        positions <= 104
        and size % 32 == 0
        and inner % _UNITS == 0
        and inner >= 2 * _UNITS
        and rows <= GRID
        and position_mlp_bytes(positions, 1) <= shared_limit()
    )


def position_mlp_bytes(positions: int, warps: int) -> int:
    """Give the shared memory of a block of mlp_t.cu."""
    padded = -(-positions // 8) * 8
    first = padded if padded // 8 % 2 else padded + 8
    stage = 2 * _UNITS * first + padded * (_UNITS + 8)
    return 2 * (padded * (32 * warps + 8) + _STAGES * stage)


def _warps(rows: int, positions: int, size: int) -> int:
    """Give the warps of a block of mlp_t.cu, 32 columns each: the most that keep the GPU busy."""
    # Each block reads both weights whole, so fewer and larger blocks read less.
    for warps in (8, 4, 2):
        busy = rows * (size // (32 * warps)) >= 128
        fits = position_mlp_bytes(positions, warps) <= shared_limit()
        if size % (32 * warps) == 0 and busy and fits:
            return warps
    return 1


def position_mlp(  # pylint: disable=too-many-arguments,too-many-positional-arguments
    x: mx.array,
    gate_up: mx.array,
    down: mx.array,
    eps: float,
    keep_total: bool,
    norm_eps: Optional[float] = None,
) -> List[mx.array]:
    """Give rms_norm(x + swiglu(x)) over the positions in one kernel, and what was normalised.

    Args:
        x: (B, T, D) bfloat16.
        gate_up: (2 * I, T) bfloat16.
        down: (T, I) bfloat16.
        eps: added to the mean square.
        keep_total: whether there is the second result, the sum before the norm.
        norm_eps: of a gate norm in the SwiGLU; None without one.
    """
    (count, positions, size), inner = x.shape, down.shape[1]
    more = -positions % 8
    gate_up = mx.pad(gate_up, [(0, 0), (0, more)])
    down = mx.pad(down, [(0, more), (0, 0)])
    warps = _warps(count, positions, size)
    return launch(
        "mlp_t.cu",
        "mlp_t_forward",
        [x, gate_up, down],
        [tuple(x.shape)] * (1 + keep_total),
        [float_bits(eps), float_bits(norm_eps or 0.0)],
        (size // (32 * warps), count),
        threads=32 * warps,
        defines={
            "T": positions,
            "D": size,
            "INNER": inner,
            "WARPS": warps,
            "GATED": int(norm_eps is not None),
            "KEEP": int(keep_total),
        },
        shared_memory=position_mlp_bytes(positions, warps),
    )
