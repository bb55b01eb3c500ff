"""The arithmetic of the layers, rounded as the reference rounds it: norm, silu, RoPE, attention."""

import functools
import math
import sys
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, ContextManager, Iterator, Tuple, TypeVar

import mlx.core as mx
import numpy as np

from mlx_trm.system.device import on_cuda, on_gpu, on_metal

CosSin = Tuple[mx.array, mx.array]
T = TypeVar("T")

# MLX has a fast exp on the CPU where Apple's Accelerate is, on Linux it calls the C library's.
_EXP_IS_SLOW = sys.platform.startswith("linux")

# Whether a thread computes with plain operations only; each thread has its own.
_PLAIN_ONLY: ContextVar[bool] = ContextVar("plain operations only", default=False)


def rms_norm(x: mx.array, eps: float, axis: int = -1) -> mx.array:
    """Divide by the root mean square over ``axis``; no weight, float32 inside.

    Args:
        x: any shape and float dtype.
        eps: added to the mean square.
        axis: -1, or -2 for the norm over positions that ``mlp_t`` uses.

    Returns:
        Same shape and dtype as ``x``.
    """
    exact = axis == -1 and x.dtype == mx.float32 and on_cuda() and _has_torch_order(x.shape[-1])
    if axis == -1 and on_gpu() and not exact:
        return mx.fast.rms_norm(x, None, eps)
    wide = x.astype(mx.float32)
    squares = mx.square(wide)
    if exact:
        return wide * mx.rsqrt(mean_in_torch_order(squares) + eps)
    if axis == -1:
        # On the CPU MLX adds numbers one after the other. Eight partial sums are nearer to the sum
        # that PyTorch gets by adding in a tree; the recursion amplifies what is lost here.
        parts = 8 if x.shape[-1] % 8 == 0 else 1
        squares = mx.mean(squares.reshape(*x.shape[:-1], parts, -1), axis=-1)
    mean_square = mx.mean(squares, axis=axis, keepdims=True)
    if on_metal():
        # Cast again after the mean, or mx.compile would keep the float32 numbers from before it.
        wide = mx.depends([x], [mean_square])[0].astype(mx.float32)
    scale = mx.rsqrt(mean_square + eps)
    if not on_gpu():
        # Or mx.compile would take the root again for each number that it scales: 3 times as long.
        scale = mx.depends([scale], [mean_square])[0]
    return (wide * scale).astype(x.dtype)


def mean_in_torch_order(x: mx.array) -> mx.array:
    """Mean over the last axis, added up in the order of PyTorch's CUDA kernel: equal to the bit.

    A warp adds halves to halves. From 128 numbers on, each of its 32 lanes has added vectors of 4
    before. Sums in another order differ in every sixth RMS norm; MLX's float32 products, exp and
    rsqrt on CUDA do not differ from PyTorch's (measured on an H200, docs/benchmarks).

    Args:
        x: (..., n) float32; n is a power of two up to 64, or a multiple of 128.

    Returns:
        (..., 1) float32.
    """
    size = x.shape[-1]
    if size >= 128:
        x = x.reshape(*x.shape[:-1], size // 128, 32, 4)
        x = functools.reduce(mx.add, [x[..., i, :, :] for i in range(size // 128)])
        x = functools.reduce(mx.add, [x[..., i] for i in range(4)])
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x * (1.0 / size)


def _has_torch_order(size: int) -> bool:
    return size % 128 == 0 or (size <= 64 and size & (size - 1) == 0)


def silu(x: mx.array) -> mx.array:
    """x / (1 + exp(-x)), computed in float32 as PyTorch does, and rounded once."""
    function = silu_and_share if _PLAIN_ONLY.get() else _differentiable_silu
    result: mx.array = function(x.astype(mx.float32))[0].astype(x.dtype)
    return result


def silu_and_share(x: mx.array) -> Tuple[mx.array, mx.array]:
    """Give silu of a float32 array, and sigmoid(x), from which :func:`silu_slope` follows."""
    if _EXP_IS_SLOW and not on_gpu():
        return _rational_silu(x)
    divisor = 1.0 + mx.exp(-x)
    return x / divisor, 1.0 / divisor  # 0 where exp(-x) is infinite


def silu_slope(x: mx.array, share: mx.array) -> mx.array:
    """Give the derivative of silu at x; see :func:`silu_and_share`."""
    return share * (1.0 + x * (1.0 - share))


_differentiable_silu: Any = mx.custom_function(silu_and_share)


@_differentiable_silu.vjp
def _silu_gradient(x: mx.array, cotangents: Any, outputs: Any) -> mx.array:
    return cotangents[0] * silu_slope(x, outputs[1])


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x)), computed in float32 and rounded once."""
    function = _sigmoid if _PLAIN_ONLY.get() else _differentiable_sigmoid
    result: mx.array = function(x.astype(mx.float32)).astype(x.dtype)
    return result


def _sigmoid(x: mx.array) -> mx.array:
    if _EXP_IS_SLOW and not on_gpu():
        return _rational_silu(x)[1]
    return 1.0 / (1.0 + mx.exp(-x))


_differentiable_sigmoid: Any = mx.custom_function(_sigmoid)


@_differentiable_sigmoid.vjp
def _sigmoid_gradient(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    del x
    return cotangent * output * (1.0 - output)


@contextmanager
def set_within(variable: "ContextVar[T]", value: T) -> Iterator[None]:
    """Give a variable a value inside a ``with`` block, for the thread that is in it."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def without_custom_functions() -> ContextManager[None]:
    """Compute without functions that have a gradient of their own: no file can hold them.

    It is used in a ``with`` block and holds for the thread that is in it.
    """
    return set_within(_PLAIN_ONLY, True)


def without_kept_results() -> ContextManager[None]:
    """On Metal compute so that mx.compile fuses it: gradients are written out further up.

    A function with a gradient of its own is a border that mx.compile does not fuse over, and keeps
    its results, here two float32 arrays. Elsewhere kernels do the same, or exp is dear.
    """
    return without_custom_functions() if on_metal() else nullcontext()


def computes_plainly() -> bool:
    """Whether plain operations alone are wanted: see :func:`without_custom_functions`."""
    return _PLAIN_ONLY.get()


def _rational_silu(x: mx.array) -> Tuple[mx.array, mx.array]:
    """Compute silu and sigmoid of a float32 array on Linux's CPU; sigmoid is off by up to 2.5e-7.

    There MLX's exp calls the C library, 20 ns a number. These operations, in this order, are not
    too deep for mx.compile to make one loop of them and of a product with the result, and g++
    vectorises it: 1.2 ns. Of a bound that is a constant g++ would make branches: 3.2 ns.
    """
    bound = mx.depends([mx.array(17.5)], [x])[0]  # sigmoid of it is 1, of its negative 0
    low = mx.maximum(x, -bound)
    x = mx.minimum(low, bound)
    # sigmoid(x) - 1/2 as x * P(x**2) / Q(x**2): of these degrees the fit whose largest error up to
    # the bound is smallest, 7e-9 before rounding.
    y = x * x
    y2 = y * y
    above = (x * y2) * ((5.48467605617e-5 + y * 8.14873633769e-8) + y2 * 1.34050457779e-11)
    above = above + x * (0.249999982936 + y * 8.37068331452e-3)
    below = ((1.62073992513e-3 + y * 5.17187423279e-6) + y2 * 3.09522630973e-9) * y2
    share = 0.5 + above / (below + (1.0 + y * 0.116815998879))
    return low * share, share


def scaled(x: mx.array, factor: float) -> mx.array:
    """Multiply by a float32 constant and round once.

    A Python float times a bfloat16 array would round the constant itself to bfloat16 first.
    """
    return (x.astype(mx.float32) * factor).astype(x.dtype)


def rope_tables(head_dim: int, positions: int, theta: float) -> CosSin:
    """Give cos and sin of the rotary angles, each (T, head_dim) float32."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The power in float64, rounded once: NumPy's in float32 is off by a unit in the last place for
    # some, which at position 900 is 3e-5 in the angle.
    powers = np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / powers
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies)
    angles = np.concatenate([angles, angles], axis=-1)
    return mx.array(np.cos(angles)), mx.array(np.sin(angles))


def apply_rope(x: mx.array, cos_sin: CosSin) -> mx.array:
    """Rotate pairs (i, i + head_dim/2) by the position's angle, in float32.

    Args:
        x: (B, h, T, head_dim), any float dtype.
        cos_sin: from :func:`rope_tables`.

    Returns:
        Same shape and dtype.
    """
    cos, sin = cos_sin
    if on_metal():
        return _apply_rope_by_views(x, cos, sin)
    wide = x.astype(mx.float32)
    first, second = mx.split(wide, 2, axis=-1)
    rotated = mx.concatenate([-second, first], axis=-1)
    return (wide * cos + rotated * sin).astype(x.dtype)


def _apply_rope_by_views(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Compute :func:`apply_rope`, to the bit, as one operation of numbers that are there already.

    The other half of a pair is read through a view from the end, and its sign is the sine's.
    """
    halves, table = (*x.shape[:-1], 2, x.shape[-1] // 2), (cos.shape[0], 2, x.shape[-1] // 2)
    pairs = x.reshape(halves)
    signed = sin.reshape(table) * mx.array([[-1.0], [1.0]])
    turned = pairs.astype(mx.float32) * cos.reshape(table)
    turned = turned + pairs[..., ::-1, :].astype(mx.float32) * signed
    return turned.astype(x.dtype).reshape(x.shape)


def attend(query: mx.array, key: mx.array, value: mx.array, scale: float) -> mx.array:
    """Scaled dot-product attention, not causal.

    On a GPU this is MLX's fused kernel. On the CPU, where MLX has none, it is written out in the
    arithmetic of the reference's flash attention: scores, exponentials and their sum in float32,
    the exponentials rounded to the inputs' dtype before they meet the values, the division last.
    In bfloat16 the mean error of a recorded step is 6 or more times smaller than with a softmax
    that rounds anywhere else (tests/reference/cuda/trm_att_rope_bf16). In float32 on CUDA, where
    MLX has none either and a softmax with a coarse exponential, it is written out as the kernel
    does that PyTorch has for it: powers of 2, and a reciprocal of their sum.

    Args:
        query: (B, h, T, head_dim), any float dtype; key and value likewise.
        scale: multiplies the scores.

    Returns:
        (B, h, T, head_dim) in the dtype of ``query``.
    """
    if on_gpu() and not (query.dtype == mx.float32 and on_cuda()):
        return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale)
    if on_gpu():
        query, key, value = (part.astype(mx.float32) for part in (query, key, value))
        scores = (query @ key.swapaxes(-1, -2)) * (scale / math.log(2.0))
        shares = mx.power(2.0, scores - mx.stop_gradient(mx.max(scores, axis=-1, keepdims=True)))
        return (shares @ value) * mx.reciprocal(mx.sum(shares, axis=-1, keepdims=True))
    return attend_in_float32(query, key, value, scale)


def attend_in_float32(query: mx.array, key: mx.array, value: mx.array, scale: float) -> mx.array:
    """Compute :func:`attend` by plain operations, in the arithmetic of flash attention."""
    dtype = query.dtype
    query, key, value = (part.astype(mx.float32) for part in (query, key, value))
    scores = (query * scale) @ key.swapaxes(-1, -2)
    shares = mx.exp(scores - mx.stop_gradient(mx.max(scores, axis=-1, keepdims=True)))
    mixed = shares.astype(dtype).astype(mx.float32) @ value
    return (mixed / mx.sum(shares, axis=-1, keepdims=True)).astype(dtype)
