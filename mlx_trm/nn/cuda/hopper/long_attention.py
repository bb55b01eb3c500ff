"""Attention of many positions and its gradient, on Hopper, in bfloat16.

The kernels are in ``long_attention.cu`` and ``long_attention_gradient.cu``. MLX's attention is
cuDNN's, which pads the positions to a multiple of 128, and wants queries and keys turned by their
positions before. Measured: docs/benchmarks.
"""

from functools import partial
from typing import Dict, List, Sequence

import mlx.core as mx

from mlx_trm.nn.cuda import kernels
from mlx_trm.nn.cuda.kernels import GRID, architecture, launch, shared_limit, usable
from mlx_trm.nn.cuda.nvrtc import compiles

# Of a head; the kernels' numbers in a row of shared memory.
_SIZE = 64
# Rows of a block and its threads, keys at a time, and stages of keys and values: long_attention.cu.
_ROWS, _THREADS, _KEYS, _STAGES = 128, 256, 64, 4
_SHARED_BYTES = _STAGES * 2 * _KEYS * _SIZE * 2
# Keys of a block and queries a turn of the gradient, the least number of turns, and the bytes that
# a block has in shared memory: of 64 rows twelve tiles of queries and d_out, four of keys, two of
# values, eight of dS and two of results; and six times 128 floats (long_attention_gradient.cu).
_BLOCK, _TURN, _TURNS = 128, 64, 7
_GRADIENT_BYTES = 28 * 64 * _SIZE * 2 + 6 * 128 * 4
_FILE, _NAME, _TARGET = "hopper/long_attention.cu", "long_attention", "sm_90a"
_GRADIENT_FILE = "hopper/long_attention_gradient.cu"
_DOTS, _BACKWARD, _JOIN = "row_dots", "long_attention_backward", "join_gradients"


def long_attention_fits(qkv: mx.array, rotated: bool, keep: bool) -> bool:
    """Whether :func:`long_attention` takes ``qkv``.

    Args:
        qkv: (B, T, 3, h, D / h).
        rotated: with angles or without.
        keep: whether its gradient is wanted, which has limits of its own.
    """
    count, positions, _, heads, size = qkv.shape
    if not (
        usable(qkv.dtype)
        and architecture() == "sm_90"
        and size == _SIZE
        and _KEYS <= positions < 1 << 20
        and count <= GRID
        and _SHARED_BYTES <= shared_limit()
        and (not keep or _gradient_fits(count * heads, positions))
    ):
        return False
    defines = _defines(qkv, rotated)
    needed = [(_FILE, {_NAME.upper(): 1, **defines, "KEEP": int(keep)})]
    if keep:
        needed += [
            (_GRADIENT_FILE, {name.upper(): 1, **defines}) for name in (_DOTS, _BACKWARD, _JOIN)
        ]
    return all(compiles(file, _TARGET, tuple(each.items())) for file, each in needed)


def _gradient_fits(sequences: int, positions: int) -> bool:
    turns = -(-positions // _TURN)
    return (
        turns >= _TURNS
        and sequences * turns * _TURN * 8 < 2**31  # threads of row_dots
        and _GRADIENT_BYTES <= shared_limit()
    )


def _defines(qkv: mx.array, rotated: bool) -> Dict[str, int]:
    return {"T": qkv.shape[1], "HEADS": qkv.shape[3], "ROPE": int(rotated)}


def long_attention(
    qkv: mx.array, cos: mx.array, sin: mx.array, rotated: bool, keep: bool
) -> List[mx.array]:
    """Give softmax(q k^T / 8) v, and what its gradient needs.

    Args:
        qkv: (B, T, 3, h, 64) bfloat16.
        cos: (T, 64) float32, read only where ``rotated``; sin likewise.
        rotated: whether queries and keys are turned by their positions.
        keep: whether there are more results than the first.

    Returns:
        (B, T, h, 64) bfloat16; (B, h, T) float32, the rows' log-sum-exps to base 2; and queries and
        keys as they were multiplied, (B, T, h, 64) bfloat16 each.
    """
    count, positions, _, heads, size = qkv.shape
    kept: List[mx.array] = []  # queries and keys
    if keep:
        kept = kernels.rope(qkv, cos, sin, 0)[:2] if rotated else [qkv[:, :, 0], qkv[:, :, 1]]
    keys = qkv  # where they are not turned
    if rotated:
        keys = kept[1] if keep else kernels.rope_keys(qkv, cos, sin)
    shapes = [(count, heads, positions), (count, positions, heads, size)]
    *sums, out = launch(
        _FILE,
        _NAME,
        [qkv, keys, cos, sin],
        shapes if keep else shapes[1:],
        [],
        (-(-positions // _ROWS) * heads, count),
        threads=_THREADS,
        defines={**_defines(qkv, rotated), "KEEP": int(keep)},
        shared_memory=_SHARED_BYTES,
        target=_TARGET,
        dtypes=[mx.float32, mx.bfloat16] if keep else [mx.bfloat16],
    )
    return [out, *sums, *kept]


def long_attention_gradient(
    qkv: mx.array,
    cos: mx.array,
    sin: mx.array,
    rotated: bool,
    results: Sequence[mx.array],
    d_out: mx.array,
) -> mx.array:
    """Give the gradient of qkv from the results of :func:`long_attention` and the first's gradient.

    Blocks add to the same sums in the order in which they come, so its last bits may differ from
    one call to the next.
    """
    out, sums, queries, keys = results
    count, positions, _, heads, size = qkv.shape
    sequences, turns = count * heads, -(-positions // _TURN)
    run = partial(
        launch,
        _GRADIENT_FILE,
        threads=_THREADS,
        defines=_defines(qkv, rotated),
        target=_TARGET,
    )
    lanes = sequences * turns * _TURN * 8
    (rows,) = run(
        _DOTS,
        [out, d_out, sums],
        [(count, heads, turns, 2, _TURN)],
        [lanes],
        (-(-lanes // _THREADS), 1),
        dtypes=[mx.float32],
    )
    items = sequences * -(-positions // _BLOCK)
    d_query, d_kv = run(
        _BACKWARD,
        [queries, keys, qkv, d_out, rows, cos, sin],
        [(count, heads, turns, _TURN * size), (count, positions, 2, heads, size)],
        [items],
        (min(kernels.multiprocessors(), items), 1),
        shared_memory=_GRADIENT_BYTES,
        dtypes=[mx.float32, mx.bfloat16],
        # The sums of d_query begin there. d_kv need not, and costs some 4 % of a call's time so.
        init_value=0.0,
    )
    inputs, shape = [d_query, d_kv, cos, sin], tuple(qkv.shape)
    return run(_JOIN, inputs, [shape], [], (sequences * turns, 1))[0]
