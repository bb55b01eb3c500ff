"""The position half of a block in CUDA kernels in bfloat16, one each way.

They are those of ``mlp_t.cu``, or on Hopper, where there is enough to do, of
``hopper/mlp_t_wgmma.cu``.
"""

from typing import List, Optional, Tuple

import mlx.core as mx

from mlx_trm.nn.cuda.hopper.mlp_t_wgmma import mlp_t_wgmma, mlp_t_wgmma_fits, mlp_t_wgmma_gradient
from mlx_trm.nn.cuda.kernels import GRID, float_bits, launch, multiprocessors, shared_limit

# Of mlp_t.cu: inner units a stage; stages in shared memory, forward and backward.
_UNITS, _STAGES, _GRADIENT_STAGES = 32, 3, 2
# Blocks that keep a GPU busy: about one for each multiprocessor of an H100 or H200.
_BUSY = 128


def position_mlp_fits(rows: int, positions: int, size: int, inner: int) -> bool:
    """Whether both functions take (``rows``, ``positions``, ``size``) and that inner size.

    Outputs stay in a warp's registers, x and the weights in use in shared memory.
    """
    needed = max(position_mlp_bytes(positions, 64), position_mlp_bytes(positions, 64, True))
    return (
        positions <= 104
        and size % 32 == 0
        and inner % _UNITS == 0
        and inner >= 2 * _UNITS
        and rows <= GRID
        and needed <= shared_limit()
    )


def position_mlp_bytes(positions: int, columns: int, gradient: bool = False) -> int:
    """Give the shared memory of a block of mlp_t.cu that does so many columns."""
    padded = -(-positions // 8) * 8
    first = padded if padded // 8 % 2 else padded + 8
    stage = 2 * _UNITS * first + padded * (_UNITS + 8)
    if gradient:
        return 2 * (2 * max(padded, 48) * (columns + 8) + _GRADIENT_STAGES * stage)
    return 2 * (padded * (columns + 8) + _STAGES * stage)


def _warps_and_tiles(rows: int, positions: int, size: int) -> Tuple[int, int]:
    """Give the warps of a block, and the tiles of 16 columns of a warp, for the forward kernel."""
    # A warp with one tile is done sooner, one with two reads half as much: a batch of one, 512
    # columns, takes 20 microseconds with one tile and 27 with two (39 with one warp a block), one
    # of 64 takes 55 and 42.
    if size % 64 == 0 and rows * (size // 64) <= 2 * multiprocessors():
        return 4, 1
    # Each block reads both weights whole, so fewer and larger blocks read less.
    for warps in (8, 4, 2):
        busy = rows * (size // (32 * warps)) >= _BUSY
        fits = position_mlp_bytes(positions, 32 * warps) <= shared_limit()
        if size % (32 * warps) == 0 and busy and fits:
            return warps, 2
    return 1, 2


def _gradient_warps(rows: int, size: int) -> int:
    """Give the warps of a block, of 16 columns each, for the gradient's kernel."""
    if size % 64:
        return 2
    # A multiprocessor does three blocks of 4 warps at once, in some 60 microseconds, or one of 8 in
    # some 50: a batch of 64, 512 columns, takes 121 and 100, one of 768 takes 1,070 and 1,140.
    small = -(-rows * (size // 64) // (3 * multiprocessors()))
    large = -(-rows * (size // 128) // multiprocessors())
    return 8 if size % 128 == 0 and small > 1 and 5 * large < 6 * small else 4


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
    if norm_eps is None and mlp_t_wgmma_fits(count, positions, size, inner):
        return mlp_t_wgmma(x, gate_up, down, eps, keep_total)
    warps, tiles = _warps_and_tiles(count, positions, size)
    more = {"GATED": int(norm_eps is not None), "KEEP": int(keep_total), "STAGES": _STAGES}
    return launch(
        "mlp_t.cu",
        "mlp_t_forward",
        [x, *_padded(gate_up, down)],
        [tuple(x.shape)] * (1 + keep_total),
        [float_bits(eps), float_bits(norm_eps or 0.0)],
        (size // (16 * tiles * warps), count),
        threads=32 * warps,
        defines={**_sizes(x, down), "WARPS": warps, "TILES": tiles, **more},
        shared_memory=position_mlp_bytes(positions, 16 * tiles * warps),
    )


def position_mlp_gradient(  # pylint: disable=too-many-arguments,too-many-positional-arguments
    x: mx.array, gate_up: mx.array, down: mx.array, total: mx.array, d_out: mx.array, eps: float
) -> List[mx.array]:
    """Give the gradients of x, gate_up and down, of a SwiGLU without a gate norm.

    The kernel gives that of x and four arrays, (T or units, B * D), of which the weights' gradients
    are products: each is one, whose sum runs over B and D in float32.

    Args:
        x, gate_up, down, eps: as in :func:`position_mlp`.
        total: its second result.
        d_out: the gradient of its first, (B, T, D) bfloat16.

    Returns:
        bfloat16 arrays, shaped as x; (T, 2 * I), the gradient of gate_up turned; and as down.
    """
    (count, positions, size), inner = x.shape, down.shape[1]
    shapes = [(n, count * size) for n in (positions, positions, inner, 2 * inner)]
    by_wgmma = mlp_t_wgmma_fits(count, positions, size, inner)
    gradient = mlp_t_wgmma_gradient if by_wgmma else _gradient_by_mma
    found = gradient(x, gate_up, down, total, d_out, eps, [tuple(x.shape), *shapes])
    d_x, d_total, again, h, d_inner = found
    return [d_x, again @ d_inner.T, d_total @ h.T]


def _gradient_by_mma(  # pylint: disable=too-many-arguments,too-many-positional-arguments
    x: mx.array,
    gate_up: mx.array,
    down: mx.array,
    total: mx.array,
    d_out: mx.array,
    eps: float,
    shapes: List[Tuple[int, ...]],
) -> List[mx.array]:
    """Give d_x, d_total, x again, h and the gradient of gate and up by ``mlp_t_backward``."""
    count, positions, size = x.shape
    warps = _gradient_warps(count, size)
    return launch(
        "mlp_t.cu",
        "mlp_t_backward",
        [x, *_padded(gate_up, down), total, d_out],
        shapes,
        [float_bits(eps)],
        (size // (16 * warps), count),
        threads=32 * warps,
        defines={**_sizes(x, down), "WARPS": warps, "TILES": 1, "STAGES": _GRADIENT_STAGES},
        shared_memory=position_mlp_bytes(positions, 16 * warps, True),
    )


def _padded(gate_up: mx.array, down: mx.array) -> List[mx.array]:
    """Put zeros behind the positions of both weights, up to a multiple of 8."""
    more = -down.shape[0] % 8
    return [mx.pad(gate_up, [(0, 0), (0, more)]), mx.pad(down, [(0, more), (0, 0)])]


def _sizes(x: mx.array, down: mx.array) -> dict:
    return {"T": x.shape[1], "D": x.shape[2], "INNER": down.shape[1]}
