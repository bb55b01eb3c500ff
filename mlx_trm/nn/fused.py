"""The two halves of a block, each as one function with its gradient written out.

A half is a residual layer and the RMS norm after it: ``rms_norm(x + layer(x))``. The function gives
the same numbers as the layers of :mod:`mlx_trm.nn.layers`, rounded at the same places. Its gradient

* keeps two arrays of the forward pass and computes silu(gate) * up again. Automatic differentiation
  keeps the float32 intermediates too: 84 against 16 GiB for ``sudoku.yaml`` on a GPU;
* gives a weight's gradient before that of the half before it, so that what the weight's gradient
  needs is freed then, and not at the end of the backward pass;
* on a CUDA GPU and in bfloat16 goes through the kernels of :mod:`mlx_trm.nn.cuda`.

On the CPU, where memory is plenty and exp is dear, the plain layers are faster and stay in use.

Shape letters: B batch, T positions, D hidden, I inner size of a SwiGLU, h heads.
"""

from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Callable, ContextManager, List, Optional, Tuple

import mlx.core as mx

from mlx_trm.nn.cuda import kernels as cuda
from mlx_trm.nn.cuda import position_mlp as position_kernels
from mlx_trm.nn.cuda.hopper import long_attention as long_kernels
from mlx_trm.nn.cuda.hopper.swiglu_product import swiglu_product, swiglu_product_fits
from mlx_trm.nn.functional import CosSin, apply_rope, attend, rms_norm, set_within
from mlx_trm.nn.gating import gate_halves, gate_halves_gradient
from mlx_trm.nn.mixing import mix
from mlx_trm.nn.residual import add_norm, norm_gradient, residual_norm
from mlx_trm.system.device import on_gpu, on_metal

# Each thread has its own, so that one that solves or exports does not change how another traces.
# None: on a GPU. Tests say True or False, and so does what cannot hold a custom function (export).
_CHOICE: ContextVar[Optional[bool]] = ContextVar("fused functions", default=None)
_GRADIENT: ContextVar[bool] = ContextVar("gradient wanted", default=True)
_FUSED_LENGTH = 128  # see _long_attention


def in_use() -> bool:
    """Whether blocks go through this module on the default device."""
    choice = _CHOICE.get()
    return on_gpu() if choice is None else choice


def use(choice: Optional[bool]) -> ContextManager[None]:
    """Use these functions (True), the plain layers (False), or what the device says (None).

    It is used in a ``with`` block and holds for the thread that is in it.
    """
    return set_within(_CHOICE, choice)


def expect_gradient(wanted: bool) -> ContextManager[None]:
    """Say whether what is computed in a ``with`` block will be differentiated, or keep nothing.

    It holds for the thread that is in the block. An inner block cannot want what an outer does not.
    """
    return set_within(_GRADIENT, wanted and _GRADIENT.get())


def gradient_expected() -> bool:
    """Whether what is computed now may be differentiated."""
    return _GRADIENT.get()


def feature_mlp(  # pylint: disable=too-many-arguments,too-many-positional-arguments
    x: mx.array,
    gate_up: mx.array,
    down: mx.array,
    eps: float,
    keep: bool,
    norm_eps: Optional[float] = None,
) -> mx.array:
    """rms_norm(x + down(silu(gate) * up)) over the last axis.

    Args:
        x: (B, T, D).
        gate_up: (2 * I, D) float32.
        down: (D, I) float32.
        eps: added to the mean square.
        keep: whether a gradient may be asked for.
        norm_eps: of a gate norm in place of silu(gate) * up; None without one.

    Returns:
        (B, T, D) in the dtype of ``x``.
    """
    result: mx.array = _feature_mlp(eps, norm_eps)(x, gate_up, down, keep=keep)[0]
    return result


def position_mlp(  # pylint: disable=too-many-arguments,too-many-positional-arguments
    x: mx.array,
    gate_up: mx.array,
    down: mx.array,
    eps: float,
    keep: bool,
    norm_eps: Optional[float] = None,
) -> mx.array:
    """rms_norm(x + down(silu(gate) * up)) over the positions.

    Arguments and result are those of :func:`feature_mlp`, the weights (2 * I, T) and (T, I).
    """
    result: mx.array = _position_mlp(eps, norm_eps)(x, gate_up, down, keep=keep)[0]
    return result


def attention(
    x: mx.array,
    qkv: mx.array,
    out: mx.array,
    heads: int,
    cos_sin: Optional[CosSin],
    eps: float,
    keep: bool,
) -> mx.array:
    """rms_norm(x + attention(x)) over the last axis.

    Args:
        x: (B, T, D).
        qkv: (3 * D, D) float32.
        out: (D, D) float32.
        heads: h.
        cos_sin: rotates queries and keys where given.
        eps: added to the mean square.
        keep: whether a gradient may be asked for.

    Returns:
        (B, T, D) in the dtype of ``x``.
    """
    count, positions, size = x.shape
    split = _linear()(_rows(x), qkv, keep=keep)
    split = split.reshape(count, positions, 3, heads, size // heads)
    rotated = cos_sin is not None
    short = cuda.usable(x.dtype) and cuda.attention_fits(count, positions, size // heads)
    if short or long_kernels.long_attention_fits(split, rotated, keep):
        cos, sin = cos_sin or (mx.zeros((1,)), mx.zeros((1,)))
        kernel = _attention_kernel(rotated, short)
        mixed = kernel(split, cos, sin, keep=keep)[0].reshape(-1, size)
    else:
        mixed = _long_attention(split, cos_sin, keep)
    result: mx.array = _join(eps)(x, mixed, out, keep=keep)[0]
    return result


def _long_attention(qkv: mx.array, cos_sin: Optional[CosSin], keep: bool) -> mx.array:
    """Mix the values of (B, T, 3, h, D / h) by MLX's attention; gives (B * T, D).

    On CUDA its gradient is one kernel for a multiple of 128 queries only; else it makes the T x T
    scores. So where one is wanted, zeros are put behind the queries; what they find is left out.
    """
    length, size = qkv.shape[1], qkv.shape[-1]
    more = -length % _FUSED_LENGTH if keep and cuda.usable(qkv.dtype) else 0
    if cos_sin is not None:
        parts = _rotate(more)(qkv, *cos_sin, keep=keep)
    else:
        parts = _put_behind(qkv[:, :, 0], more), qkv[:, :, 1], qkv[:, :, 2]
    query, key, value = (part.swapaxes(1, 2) for part in parts)
    if on_metal():
        mixed = mix(query, key, value, size**-0.5, keep)
    else:
        mixed = attend(query, key, value, size**-0.5)
    return mixed[:, :, :length].swapaxes(1, 2).reshape(-1, qkv.shape[-2] * size)


def _put_behind(x: mx.array, more: int) -> mx.array:
    """Put so many zeros behind the positions of (B, T, h, D / h)."""
    return mx.pad(x, [(0, 0), (0, more), (0, 0), (0, 0)]) if more else x


# Parts, by kernel or by plain operations ----------------------------------------------------------


def _weight_gradient(d_out: mx.array, x: mx.array) -> mx.array:
    """Give the gradient, (out, in), of a weight that maps (rows, in) to (rows, out)."""
    return d_out.T @ x


def _left_gradient(a: mx.array, b: mx.array) -> mx.array:
    """Give the sum over B of a @ b^T; a is (B, m, D), b is (B, n, D), the result (m, n).

    The products of single sequences are summed by one more product, which adds in float32; that of
    a single one is the sum, and a launch is saved.
    """
    products = a @ b.swapaxes(1, 2)
    if a.shape[0] > 1:
        products = mx.ones((1, a.shape[0]), dtype=a.dtype) @ products.reshape(a.shape[0], -1)
    return products.reshape(a.shape[1], b.shape[1])


def _rows(x: mx.array) -> mx.array:
    """(B, T, n) as (B * T, n): a product of a 3-d array reshapes it there and back."""
    return x.reshape(-1, x.shape[-1])


def _wide(narrow: mx.array) -> mx.array:
    """A weight's gradient in float32, in which those of all its uses are added."""
    return narrow.astype(mx.float32)


def _in_order(first: List[mx.array], then: mx.array) -> mx.array:
    """Give ``then`` so that nothing uses it before ``first`` has been computed."""
    return mx.depends([then], first)[0]


class _Function:
    """A function with a gradient of its own; called with ``keep=False`` it keeps nothing for it."""

    def __init__(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        self._forward = forward
        self._function: Any = mx.custom_function(lambda *arguments: forward(*arguments, keep=True))
        self._function.vjp(backward)

    def __call__(self, *arguments: mx.array, keep: bool) -> Any:
        return self._function(*arguments) if keep else self._forward(*arguments)


# The halves ---------------------------------------------------------------------------------------


def feature_layer(
    x: mx.array, gate_up: mx.array, down: mx.array, norm_eps: Optional[float]
) -> mx.array:
    """Give what :func:`feature_mlp` adds to x, (B * T, D); no gradient may be asked for."""
    first, second = gate_up.astype(x.dtype), down.astype(x.dtype)
    size = x.shape[-1]
    if norm_eps is None and swiglu_product_fits(x.size // size, size, down.shape[1], x.dtype):
        return swiglu_product(x, first) @ second.T
    return gate_halves(_rows(x) @ first.T, -1, norm_eps) @ second.T


@lru_cache(maxsize=None)
def _feature_mlp(eps: float, norm_eps: Optional[float]) -> _Function:
    def forward(
        x: mx.array, gate_up: mx.array, down: mx.array, keep: bool = False
    ) -> Tuple[mx.array, ...]:
        if not keep:
            return tuple(add_norm(x, feature_layer(x, gate_up, down, norm_eps), eps, False))
        inner = _rows(x) @ gate_up.astype(x.dtype).T
        y = gate_halves(inner, -1, norm_eps) @ down.astype(x.dtype).T
        return (*add_norm(x, y, eps, True), inner)

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Tuple[mx.array, ...]:
        x, gate_up, down = primals
        _, total, inner = outputs
        d_total = norm_gradient(total, cotangents[0], eps)
        d_h = d_total @ down.astype(x.dtype)
        d_inner, h = gate_halves_gradient(inner, d_h, -1, norm_eps)
        d_down, d_gate_up = _weight_gradient(d_total, h), _weight_gradient(d_inner, _rows(x))
        d_x = mx.addmm(d_total, d_inner, gate_up.astype(x.dtype)).reshape(x.shape)
        return _in_order([d_down, d_gate_up], d_x), _wide(d_gate_up), _wide(d_down)

    return _Function(forward, backward)


def _position_inner(x: mx.array, gate_up: mx.array) -> mx.array:
    """Give gate_up @ x, (B, 2 * I, D), from the weight laid out the other way round.

    T is odd (97), and CUDA's fast products want rows of a multiple of 16 bytes.
    """
    return mx.contiguous(gate_up.T).T @ x


@lru_cache(maxsize=None)
def _position_mlp(eps: float, norm_eps: Optional[float]) -> _Function:
    def by_kernel(x: mx.array, down: mx.array) -> bool:
        rows, positions, size = x.shape
        sizes = (rows, positions, size, down.shape[1])
        return cuda.usable(x.dtype) and position_kernels.position_mlp_fits(*sizes)

    def forward(
        x: mx.array, gate_up: mx.array, down: mx.array, keep: bool = False
    ) -> Tuple[mx.array, ...]:
        first, second = gate_up.astype(x.dtype), down.astype(x.dtype)
        if by_kernel(x, down):
            return tuple(position_kernels.position_mlp(x, first, second, eps, keep, norm_eps))
        y = second @ gate_halves(_position_inner(x, first), -2, norm_eps)
        return tuple(add_norm(x, y, eps, keep, -2))

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Tuple[mx.array, ...]:
        x, gate_up, down = primals
        first, second = gate_up.astype(x.dtype), down.astype(x.dtype)
        if norm_eps is None and by_kernel(x, down):
            total, d_out = outputs[1], cotangents[0]
            gradients = position_kernels.position_mlp_gradient(x, first, second, total, d_out, eps)
            d_x, d_gate_up, d_down = gradients
        else:
            d_total = norm_gradient(outputs[1], cotangents[0], eps, -2)
            # gate_up @ x is computed again: it is 10 times as large as x.
            again = mx.depends([x], [d_total])[0]
            inner, d_h = _position_inner(again, first), second.T @ d_total
            d_inner, h = gate_halves_gradient(inner, d_h, -2, norm_eps)
            d_down, d_gate_up = _left_gradient(d_total, h), _left_gradient(x, d_inner)
            d_x = mx.addmm(d_total, mx.contiguous(first.T), d_inner)
        # Turned before it is widened, so that MLX fuses the cast into the sum of all uses.
        return _in_order([d_down, d_gate_up], d_x), _wide(d_gate_up.T), _wide(d_down)

    return _Function(forward, backward)


@lru_cache(maxsize=None)
def _linear() -> _Function:
    def forward(x: mx.array, weight: mx.array, keep: bool = False) -> mx.array:
        del keep
        return x @ weight.astype(x.dtype).T

    def backward(primals: Any, cotangent: mx.array, _: Any) -> Tuple[mx.array, ...]:
        x, weight = primals
        d_weight = _weight_gradient(cotangent, x)
        return _in_order([d_weight], cotangent @ weight.astype(x.dtype)), _wide(d_weight)

    return _Function(forward, backward)


@lru_cache(maxsize=None)
def _attention_kernel(rotated: bool, short: bool) -> _Function:
    run = cuda.attention if short else long_kernels.long_attention
    gradient = cuda.attention_gradient if short else long_kernels.long_attention_gradient

    def forward(
        qkv: mx.array, cos: mx.array, sin: mx.array, keep: bool = False
    ) -> Tuple[mx.array, ...]:
        return tuple(run(qkv, cos, sin, rotated, keep))

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Tuple[mx.array, ...]:
        qkv, cos, sin = primals
        d_qkv = gradient(qkv, cos, sin, rotated, outputs, cotangents[0])
        return d_qkv, mx.zeros_like(cos), mx.zeros_like(sin)

    return _Function(forward, backward)


@lru_cache(maxsize=None)
def _rotate(more: int) -> _Function:
    def by_kernel(size: int, dtype: mx.Dtype) -> bool:
        return cuda.usable(dtype) and cuda.rope_fits(size)

    def turned(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
        return apply_rope(x.swapaxes(1, 2), (cos, sin)).swapaxes(1, 2)

    def forward(
        qkv: mx.array, cos: mx.array, sin: mx.array, keep: bool = False
    ) -> Tuple[mx.array, ...]:
        del keep
        if by_kernel(qkv.shape[-1], qkv.dtype):
            return tuple(cuda.rope(qkv, cos, sin, more))
        query, key, value = (qkv[:, :, part] for part in range(3))
        return _put_behind(turned(query, cos, sin), more), turned(key, cos, sin), value

    def backward(primals: Any, cotangents: Any, _: Any) -> Tuple[mx.array, ...]:
        qkv, cos, sin = primals
        if by_kernel(qkv.shape[-1], qkv.dtype):
            d_query, d_key, d_value = cotangents
            d_qkv = cuda.rope_gradient(d_query, d_key, d_value, cos, sin)
        else:  # the transpose of a rotation turns the other way
            d_query, d_key, d_value = cotangents
            d_query = d_query[:, : qkv.shape[1]]
            parts = [turned(d_query, cos, -sin), turned(d_key, cos, -sin), d_value]
            d_qkv = mx.stack(parts, axis=2)
        return d_qkv, mx.zeros_like(cos), mx.zeros_like(sin)

    return _Function(forward, backward)


@lru_cache(maxsize=None)
def _join(eps: float) -> _Function:
    """The end of a half: rms_norm(x + weight(mixed)), and the sum."""

    def forward(
        x: mx.array, mixed: mx.array, weight: mx.array, keep: bool = False
    ) -> Tuple[mx.array, ...]:
        return tuple(add_norm(x, mixed @ weight.astype(x.dtype).T, eps, keep))

    def backward(primals: Any, cotangents: Any, outputs: Any) -> Tuple[mx.array, ...]:
        x, mixed, weight = primals
        d_total = norm_gradient(outputs[1], cotangents[0], eps)
        d_weight = _weight_gradient(d_total, mixed)
        d_mixed = d_total @ weight.astype(mixed.dtype)
        return d_total.reshape(x.shape), _in_order([d_weight], d_mixed), _wide(d_weight)

    return _Function(forward, backward)


def keeps(training: bool) -> bool:
    """Whether a block in this mode keeps what its gradient needs, if it is by these functions."""
    return training and gradient_expected()


def post_norm(x: mx.array, y: mx.array, eps: float, training: bool) -> mx.array:
    """rms_norm(x + y) over the last axis, by a kernel where blocks go through this module.

    Args:
        x: (B, T, D).
        y: what a layer gave.
        eps: added to the mean square.
        training: whether a gradient may be asked for in a step that expects one.
    """
    if in_use():
        return residual_norm(x, y, eps, keeps(training))
    return rms_norm(x + y, eps)
