"""Attention on Metal, which keeps no scores: fused where MLX has a kernel, else in parts.

While a function is being differentiated MLX makes all B h T T scores on Metal, also in what is not
differentiated: 134 of the 329 MB that a row of a maze took. It rounds them to the inputs' dtype,
too. Here the forward pass asks for MLX's fused kernel, and the gradient computes the scores again
in float32, of a few rows at a time. Not yet run on Metal.

Shape letters: B batch, h heads, T positions.
"""

from functools import lru_cache
from typing import Any, Iterator, List, Tuple

import mlx.core as mx

from mlx_trm.nn.functional import attend_in_float32

# Bytes of the scores of one part, and how many arrays of their size are there at a time.
PART_BYTES = 256 << 20
_ARRAYS = 3
# Sizes of a head whose kernel is faster than products with all the scores.
_FUSED_SIZES = range(64, 129)


def mix(query: mx.array, key: mx.array, value: mx.array, scale: float, keep: bool) -> mx.array:
    """Scaled dot-product attention, not causal.

    Args:
        query: (B, h, T, head_dim), any float dtype; key and value likewise.
        scale: multiplies the scores.
        keep: whether a gradient may be asked for.

    Returns:
        (B, h, T, head_dim) in the dtype of ``query``.
    """
    if not keep:
        return _forward(query, key, value, scale, keep)
    kept: mx.array = _differentiable(scale)(query, key, value)
    return kept


@lru_cache(maxsize=None)
def _differentiable(scale: float) -> Any:
    function: Any = mx.custom_function(
        lambda query, key, value: _forward(query, key, value, scale, True)
    )

    @function.vjp
    def backward(primals: Any, d_out: mx.array, out: mx.array) -> Tuple[mx.array, ...]:
        found: List[Tuple[mx.array, ...]] = []
        for part in parts(primals[0]):
            arrays = [array[part] for array in (*primals, out, d_out)]
            if found:  # one part after the other, so that the scores of one alone are there
                arrays = mx.depends(arrays, list(found[-1]))
            found.append(_gradient(arrays, scale))
        return tuple(_whole(list(each), primals[0]) for each in zip(*found))

    return function


def _forward(query: mx.array, key: mx.array, value: mx.array, scale: float, keep: bool) -> mx.array:
    attention: Any = mx.fast.scaled_dot_product_attention
    if query.shape[-1] in _FUSED_SIZES:
        try:
            return attention(query, key, value, scale=scale, force_fused=True)
        except ValueError:  # there is no such kernel
            pass
        except TypeError:  # this MLX, before 0.32.4, cannot be asked
            if not keep:  # outside of training it takes the kernel
                return attention(query, key, value, scale=scale)
    found: List[mx.array] = []
    for part in parts(query):
        arrays = [array[part] for array in (query, key, value)]
        if found:
            arrays = mx.depends(arrays, found[-1:])
        found.append(attend_in_float32(arrays[0], arrays[1], arrays[2], scale))
    return _whole(found, query)


def _gradient(arrays: List[mx.array], scale: float) -> Tuple[mx.array, ...]:
    """Give the gradients of query, key and value from these, the result and its gradient."""
    dtype = arrays[0].dtype
    query, key, value, out, d_out = (array.astype(mx.float32) for array in arrays)
    query = query * scale
    scores = query @ key.swapaxes(-1, -2)
    shares = mx.exp(scores - mx.max(scores, axis=-1, keepdims=True))
    shares = shares / mx.sum(shares, axis=-1, keepdims=True)
    d_value = shares.swapaxes(-1, -2) @ d_out
    pull = mx.sum(out * d_out, axis=-1, keepdims=True)
    d_scores = shares * (d_out @ value.swapaxes(-1, -2) - pull)
    d_query, d_key = (d_scores @ key) * scale, d_scores.swapaxes(-1, -2) @ query
    return d_query.astype(dtype), d_key.astype(dtype), d_value.astype(dtype)


def parts(query: mx.array) -> Iterator[Tuple[slice, slice]]:
    """Cut (B, h, T, head_dim) into rows, or heads of a row, whose scores take PART_BYTES."""
    count, heads, length, _ = query.shape
    fitting = max(1, PART_BYTES // (4 * _ARRAYS * length * length))
    rows, together = max(1, fitting // heads), min(heads, fitting)
    for row in range(0, count, rows):
        for head in range(0, heads, together):
            yield slice(row, row + rows), slice(head, head + together)


def _whole(found: List[mx.array], like: mx.array) -> mx.array:
    """Put the results of :func:`parts` together."""
    if len(found) == 1:
        return found[0]
    heads, rows, row = like.shape[1], [], []
    for array in found:
        row.append(array)
        if sum(each.shape[1] for each in row) == heads:
            rows.append(mx.concatenate(row, axis=1) if len(row) > 1 else array)
            row = []
    return mx.concatenate(rows, axis=0) if len(rows) > 1 else rows[0]
