"""The gate norm's CUDA kernels in bfloat16: see :mod:`mlx_trm.nn.gating`, which has plain ones."""

from typing import List, Sequence, Tuple

import mlx.core as mx

from mlx_trm.nn.cuda.kernels import GRID, float_bits, launch


def gate_norm_fits(size: int) -> bool:
    """Whether :func:`gate_norm` takes rows of ``size`` numbers."""
    return size % 8 == 0 and size <= 4096


def gate_norm(parts: List[mx.array], eps: float) -> mx.array:
    """Give sigmoid(gate) * rms_norm(gate * up) over the last axis.

    Args:
        parts: gate and up, or one array of which they are halves.
        eps: added to the mean square.
    """
    shape = _gate_shape(parts)
    return _gate_rows("gate_norm_forward", parts, [shape], [], eps)[0]


def gate_norm_gradient(
    parts: List[mx.array], d_out: mx.array, eps: float, again: bool = False
) -> List[mx.array]:
    """Give the gradients of ``parts`` and, where it is wanted ``again``, the result.

    Args and shapes are those of :func:`gate_norm`.
    """
    shape, count = _gate_shape(parts), len(parts)
    shapes = [tuple(parts[0].shape), shape if count == 2 else (1,), shape if again else (1,)]
    found = _gate_rows("gate_norm_backward", parts, shapes, [int(again)], eps, [d_out])
    return found[:count] + (found[2:] if again else [])


def gate_norm_positions_fits(shape: Tuple[int, ...]) -> bool:
    """Whether :func:`gate_norm_positions` takes (B, 2 * I, D)."""
    return shape[1] % 16 == 0 and shape[2] % 64 == 0 and shape[0] <= GRID


def gate_norm_positions(gate_up: mx.array, eps: float) -> mx.array:
    """The same as :func:`gate_norm` over the second-last axis, gate and up its halves."""
    count, inner, size = gate_up.shape
    shapes = [(count, inner // 2, size)]
    return _gate_columns("gate_norm_positions", [gate_up], shapes, eps)[0]


def gate_norm_positions_gradient(gate_up: mx.array, d_out: mx.array, eps: float) -> List[mx.array]:
    """Give the gradient of gate_up, and the result of :func:`gate_norm_positions` again."""
    shapes = [tuple(gate_up.shape), tuple(d_out.shape)]
    return _gate_columns("gate_norm_positions_backward", [gate_up, d_out], shapes, eps)


def _gate_columns(
    name: str, arrays: List[mx.array], shapes: Sequence[Tuple[int, ...]], eps: float
) -> List[mx.array]:
    count, inner, size = arrays[0].shape
    scalars, defines = [size // 2, float_bits(eps)], {"INNER": inner // 2}
    blocks = (size // 64, count)
    return launch("gating.cu", name, arrays, shapes, scalars, blocks, 256, defines)


def _gate_shape(parts: List[mx.array]) -> Tuple[int, ...]:
    return (*parts[0].shape[:-1], parts[0].shape[-1] * len(parts) // 2)


def _gate_rows(
    name: str,
    parts: List[mx.array],
    shapes: List[Tuple[int, ...]],
    more: List[int],
    eps: float,
    others: Sequence[mx.array] = (),
) -> List[mx.array]:
    size = _gate_shape(parts)[-1]
    rows, threads = parts[0].size // parts[0].shape[-1], 32 * -(-size // (8 * 32))
    return launch(
        "gating.cu",
        name,
        [parts[0], parts[-1], *others],
        shapes,
        [float_bits(eps), *more],
        (rows, 1),
        threads=threads,
        defines={"SIZE": size, "HALVES": 2 - len(parts)},
    )
