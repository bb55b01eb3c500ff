"""The position half of a block on Hopper, in bfloat16: what mlp_t.cu does, by wgmma.

See ``mlp_t_wgmma.cu``. Forward, 768 Sudokus (97 positions, 512 columns) take 312 microseconds on
an H200 where that takes 494; the gradient is in docs/benchmarks.
"""

from typing import List, Tuple

import mlx.core as mx

from mlx_trm.nn.cuda.kernels import (
    architecture,
    float_bits,
    launch,
    multiprocessors,
    shared_limit,
)
from mlx_trm.nn.cuda.nvrtc import compiles

# Columns of a group of four warps, inner units of a part, rows that down is padded to.
_COLUMNS, _UNITS, _DOWN_ROWS = 64, 32, 104
# Parts in shared memory, and the most groups of a block, forward and backward.
_STAGES, _GROUPS = (6, 4), (3, 2)
# Tiles of 64 columns below which mlp_t.cu's kernels are as fast: their weights need fewer launches.
_LEAST_TILES = 256
# Its instructions are of this architecture alone.
_FILE, _TARGET = "hopper/mlp_t_wgmma.cu", "sm_90a"
_NAMES = ("mlp_t_wgmma", "mlp_t_wgmma_backward")


def mlp_t_wgmma_fits(rows: int, positions: int, size: int, inner: int) -> bool:
    """Whether both functions take (``rows``, ``positions``, ``size``) and that inner size."""
    return (
        architecture() == "sm_90"
        and 64 < positions <= _DOWN_ROWS
        and size % _COLUMNS == 0
        and inner % _UNITS == 0
        and rows * (size // _COLUMNS) >= _LEAST_TILES
        and rows * size < 2**31
        and all(_usable(positions, size, inner, backward) for backward in (False, True))
    )


def _usable(positions: int, size: int, inner: int, backward: bool) -> bool:
    bytes_needed = mlp_t_wgmma_bytes(positions, _GROUPS[backward], backward)
    defines = sorted(_defines(positions, size, inner, backward).items())
    return bytes_needed <= shared_limit() and compiles(_FILE, _TARGET, tuple(defines))


def mlp_t_wgmma_bytes(positions: int, groups: int, backward: bool) -> int:
    """Give the shared memory of a block of mlp_t_wgmma.cu."""
    rows = -(-positions // 16) * 16
    part = rows * 64 + (
        rows * _UNITS + 2 * _DOWN_ROWS * _UNITS if backward else _DOWN_ROWS * _UNITS
    )
    tiles = 2 * max(rows, 96) if backward else rows
    stages = _STAGES[backward]
    return 2 * (stages * part + groups * tiles * (_COLUMNS + 8)) + 12 * stages


def mlp_t_wgmma(
    x: mx.array, gate_up: mx.array, down: mx.array, eps: float, keep_total: bool
) -> List[mx.array]:
    """Give what ``position_mlp.position_mlp`` does without a gate norm, from what it takes."""
    arrays, shapes = [x, *_for_columns(gate_up, down)], [tuple(x.shape)] * (1 + keep_total)
    return _launch(False, arrays, shapes, [float_bits(eps)], down.shape[1], int(keep_total))


def mlp_t_wgmma_gradient(  # pylint: disable=too-many-arguments,too-many-positional-arguments
    x: mx.array,
    gate_up: mx.array,
    down: mx.array,
    total: mx.array,
    d_out: mx.array,
    eps: float,
    shapes: List[Tuple[int, ...]],
) -> List[mx.array]:
    """Give the five arrays, of ``shapes``, of ``position_mlp.position_mlp_gradient``'s kernel."""
    arrays = [x, *_for_gradient(gate_up, down), total, d_out]
    scalars = [x.shape[0] * x.shape[2], float_bits(eps)]
    return _launch(True, arrays, shapes, scalars, down.shape[1], 0)


def _launch(
    backward: bool, arrays: List[mx.array], shapes: list, scalars: List[int], inner: int, keep: int
) -> List[mx.array]:
    count, positions, size = arrays[0].shape
    tiles = count * (size // _COLUMNS)
    groups = _groups(tiles, _GROUPS[backward])
    return launch(
        _FILE,
        _NAMES[backward],
        arrays,
        shapes,
        [tiles, *scalars],
        (-(-tiles // groups), 1),
        threads=128 * groups,
        defines={**_defines(positions, size, inner, backward), "GROUPS": groups, "KEEP": keep},
        shared_memory=mlp_t_wgmma_bytes(positions, groups, backward),
        target=_TARGET,
    )


def _groups(tiles: int, most: int) -> int:
    """Give the groups of a block: more of them share the weights, and take longer."""
    # A round of blocks, one a multiprocessor, takes some 12.5, 16 and 19.5 microseconds with 1, 2
    # and 3 groups (512 inner units, forward).
    rounds = {groups: -(-tiles // (groups * multiprocessors())) for groups in range(most, 0, -1)}
    return min(rounds, key=lambda groups: rounds[groups] * (18 + 7 * groups))


# The weights as parts of 32 units, their rows in pieces of 8 numbers, zeros behind the positions.
# Plain operations, so that mx.compile does this once for all uses of a weight in a step.


def _for_columns(gate_up: mx.array, down: mx.array) -> List[mx.array]:
    """Give gate_up, (parts, pieces of positions, gates and ups, 32 units, 8), and down.

    That is (parts, pieces of units, 104 positions, 8).
    """
    second = mx.pad(down, [(0, _DOWN_ROWS - down.shape[0]), (0, 0)])
    second = second.reshape(_DOWN_ROWS, -1, _UNITS // 8, 8).transpose(1, 2, 0, 3)
    return [_first(gate_up), mx.contiguous(second)]


def _for_gradient(gate_up: mx.array, down: mx.array) -> List[mx.array]:
    """Give gate_up as above, down turned, and gate_up turned.

    These are (parts, pieces of positions, 32 units, 8) and (parts, gates and ups, pieces of units,
    104 positions, 8).
    """
    positions = down.shape[0]
    second = mx.pad(down, [(0, -positions % 16), (0, 0)])
    second = second.reshape(second.shape[0] // 8, 8, -1, _UNITS).transpose(2, 0, 3, 1)
    third = mx.pad(gate_up, [(0, 0), (0, _DOWN_ROWS - positions)])
    third = third.reshape(2, -1, _UNITS // 8, 8, _DOWN_ROWS).transpose(1, 0, 2, 4, 3)
    return [_first(gate_up), mx.contiguous(second), mx.contiguous(third)]


def _first(gate_up: mx.array) -> mx.array:
    first = mx.pad(gate_up, [(0, 0), (0, -gate_up.shape[1] % 16)])
    first = first.reshape(2, -1, _UNITS, first.shape[1] // 8, 8).transpose(1, 3, 0, 2, 4)
    return mx.contiguous(first)


def _defines(positions: int, size: int, inner: int, backward: bool) -> dict:
    sizes = {"T": positions, "D": size, "INNER": inner, "STAGES": _STAGES[backward]}
    return {**sizes, "GROUPS": _GROUPS[backward], "KEEP": 0, _NAMES[backward].upper(): 1}
