"""What a SwiGLU computes between its projections, and the gradient: silu(gate) * up, or gate norm.

The gate norm is sigmoid(gate) * rms_norm(gate * up). What leaves it has a size that does not follow
the weights', so an optimiser's large steps, such as Muon's, do not make the output, a product of
two projections, grow with their square.

The gradients are written out: they keep gate and up, where automatic differentiation keeps a dozen
arrays of their size, some in float32. Functions of *halves* take gate and up as the two halves of
one array's last or second-last axis.
"""

from contextlib import nullcontext
from functools import lru_cache
from typing import Any, List, Optional, Tuple

import mlx.core as mx

from mlx_trm.nn import metal_kernels
from mlx_trm.nn.cuda import gate_norm
from mlx_trm.nn.cuda import kernels as cuda
from mlx_trm.nn.functional import (
    computes_plainly,
    rms_norm,
    sigmoid,
    silu,
    silu_and_share,
    silu_slope,
    without_custom_functions,
    without_kept_results,
)
from mlx_trm.system.device import on_gpu, on_metal


def swiglu(gate: mx.array, up: mx.array, keep: bool) -> mx.array:
    """silu(gate) * up, of arrays of one shape and float dtype.

    Args:
        gate: any shape and float dtype.
        up: likewise.
        keep: whether a gradient may be asked for.

    Returns:
        Same shape and dtype.
    """
    if on_gpu():
        with nullcontext() if keep else without_kept_results():
            return silu(gate) * up
    result: mx.array = (_swiglu if keep and not computes_plainly() else _plain_swiglu)(gate, up)
    return result


def _plain_swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """Compute silu(gate) * up without a border inside, which mx.compile would not fuse over."""
    with without_custom_functions():
        return silu(gate) * up


_swiglu: Any = mx.custom_function(_plain_swiglu)


@_swiglu.vjp
def _swiglu_gradient(primals: Any, d_out: mx.array, _: mx.array) -> Tuple[mx.array, mx.array]:
    d_gate, gated = _silu_gradient(primals[0], d_out * primals[1])
    return d_gate, d_out * gated


def gated_norm(gate: mx.array, up: mx.array, eps: float, axis: int = -1) -> mx.array:
    """sigmoid(gate) * rms_norm(gate * up).

    Args:
        gate: any shape and float dtype; ``up`` likewise.
        eps: added to the mean square.
        axis: of the norm, -1 or -2.

    Returns:
        Same shape and dtype.
    """
    if computes_plainly():
        return sigmoid(gate) * rms_norm(gate * up, eps, axis)
    # On the CPU exp is dear, so that it is kept; on a GPU reading it would be.
    result: mx.array = _gated_norm(eps, axis, not on_gpu())(gate, up)[0]
    return result


def gate_halves(gate_up: mx.array, axis: int, norm_eps: Optional[float]) -> mx.array:
    """Give silu(gate) * up or, where ``norm_eps`` is given, the gate norm.

    Args:
        gate_up: gate and up, halves of ``axis``.
        axis: -1 or -2, that of the norm, too.
        norm_eps: added to the norm's mean square.
    """
    if norm_eps is None and _swiglu_kernel(gate_up, axis):
        return cuda.swiglu(gate_up, axis)
    if norm_eps is None and metal_kernels.usable(gate_up):
        return metal_kernels.swiglu(gate_up, axis)
    if norm_eps is not None and _norm_kernel(gate_up, axis, 2):
        return gate_norm.gate_norm([gate_up], norm_eps)
    if norm_eps is not None and _positions_kernel(gate_up, axis):
        return gate_norm.gate_norm_positions(gate_up, norm_eps)
    gate, up = mx.split(gate_up, 2, axis=axis)
    with without_kept_results():
        if norm_eps is None:
            return silu(gate) * up
        return sigmoid(gate) * rms_norm(gate * up, norm_eps, axis)


def gate_halves_gradient(
    gate_up: mx.array, d_out: mx.array, axis: int, norm_eps: Optional[float]
) -> List[mx.array]:
    """Give the gradient of gate_up, and what :func:`gate_halves` gave, computed again."""
    if norm_eps is None and _swiglu_kernel(gate_up, axis):
        return cuda.swiglu_gradient(gate_up, d_out, axis)
    if norm_eps is None and metal_kernels.usable(gate_up):
        return metal_kernels.swiglu_gradient(gate_up, d_out, axis)
    if norm_eps is not None and _norm_kernel(gate_up, axis, 2):
        return gate_norm.gate_norm_gradient([gate_up], d_out, norm_eps, again=True)
    if norm_eps is not None and _positions_kernel(gate_up, axis):
        return gate_norm.gate_norm_positions_gradient(gate_up, d_out, norm_eps)
    # Without the dependency mx.compile would find the same operations in the forward pass, and keep
    # their results until here instead of computing them again.
    gate_up = mx.depends([gate_up], [d_out])[0]
    if on_metal():
        return _gradient_in_parts(gate_up, d_out, axis, norm_eps)
    gate, up = mx.split(gate_up, 2, axis=axis)
    if norm_eps is not None:
        share = sigmoid(gate)
        parts = _norm_gradient(gate, up, share, d_out, norm_eps, axis)
        again = share * rms_norm(gate * up, norm_eps, axis)
        return [mx.concatenate(list(parts), axis=axis), again]
    d_gate, gated = _silu_gradient(gate, d_out * up)
    return [mx.concatenate([d_gate, d_out * gated], axis=axis), gated * up]


def _silu_gradient(gate: mx.array, d_gated: mx.array) -> Tuple[mx.array, mx.array]:
    """Give the gradient of gate from that of silu(gate), and silu(gate), computed again."""
    wide = gate.astype(mx.float32)
    gated, share = silu_and_share(wide)
    d_gate = (d_gated.astype(mx.float32) * silu_slope(wide, share)).astype(gate.dtype)
    return d_gate, gated.astype(gate.dtype)


def _gradient_in_parts(
    gate_up: mx.array, d_out: mx.array, axis: int, norm_eps: Optional[float]
) -> List[mx.array]:
    """Compute :func:`gate_halves_gradient`, to the bit, as mx.compile can fuse it whole.

    It makes one kernel of what leads to one result. A number in between that two results share is a
    result itself, in float32. So each starts anew from gate and up, after the one before it.
    """
    gate, up = mx.split(gate_up, 2, axis=axis)
    if norm_eps is not None:
        d_gate, d_up = _norm_gradient_in_parts(gate, up, d_out, norm_eps, axis)
        gate, up = mx.depends([gate, up], [d_up])
        with without_kept_results():
            again = sigmoid(gate) * rms_norm(gate * up, norm_eps, axis)
        return [mx.concatenate([d_gate, d_up], axis=axis), again]
    wide = gate.astype(mx.float32)
    share = silu_and_share(wide)[1]
    d_gate = ((d_out * up).astype(mx.float32) * silu_slope(wide, share)).astype(gate.dtype)
    first, second = mx.depends([gate], [d_gate])[0], mx.depends([up], [d_gate])[0]
    with without_kept_results():
        d_up = d_out * silu(first)
        gate, up = mx.depends([first, second], [d_up])
        again = silu(gate) * up
    return [mx.concatenate([d_gate, d_up], axis=axis), again]


def _swiglu_kernel(gate_up: mx.array, axis: int) -> bool:
    return cuda.usable(gate_up.dtype) and cuda.swiglu_fits(gate_up.shape, axis)


def _norm_kernel(x: mx.array, axis: int, parts: int) -> bool:
    return axis == -1 and cuda.usable(x.dtype) and gate_norm.gate_norm_fits(x.shape[-1] // parts)


def _positions_kernel(gate_up: mx.array, axis: int) -> bool:
    fits = axis == -2 and gate_norm.gate_norm_positions_fits(gate_up.shape)
    return fits and cuda.usable(gate_up.dtype)


@lru_cache(maxsize=None)
def _gated_norm(eps: float, axis: int, keep_share: bool) -> Any:
    def forward(gate: mx.array, up: mx.array) -> Tuple[mx.array, ...]:
        if _norm_kernel(gate, axis, 1):
            return (gate_norm.gate_norm([gate, up], eps),)
        with without_kept_results():
            share = sigmoid(gate)
            out = share * rms_norm(gate * up, eps, axis)
        return (out, share) if keep_share else (out,)

    function: Any = mx.custom_function(forward)

    @function.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Tuple[mx.array, ...]:
        gate, up = primals
        d_out = cotangents[0]
        if _norm_kernel(gate, axis, 1):
            return tuple(gate_norm.gate_norm_gradient([gate, up], d_out, eps))
        if keep_share:
            return _norm_gradient(gate, up, outputs[1], d_out, eps, axis)
        gate, up = mx.depends([gate, up], [d_out])
        if on_metal():
            return _norm_gradient_in_parts(gate, up, d_out, eps, axis)
        return _norm_gradient(gate, up, sigmoid(gate), d_out, eps, axis)

    return function


def _norm_gradient_in_parts(
    gate: mx.array, up: mx.array, d_out: mx.array, eps: float, axis: int
) -> Tuple[mx.array, mx.array]:
    """Compute :func:`_norm_gradient`, to the bit, as mx.compile can fuse it whole."""

    def after(then: mx.array) -> Tuple[mx.array, mx.array, mx.array, mx.array]:
        """Start anew: give gate, up, sigmoid(gate) and the gradient of the result."""
        narrow = mx.depends([gate, up, d_out], [then])
        wide_gate, wide_up, wide_out = (part.astype(mx.float32) for part in narrow)
        with without_kept_results():
            share = sigmoid(narrow[0]).astype(mx.float32)
        return wide_gate, wide_up, share, wide_out

    wide_gate, wide_up = gate.astype(mx.float32), up.astype(mx.float32)
    squares = mx.square(wide_gate * wide_up)
    scale = mx.rsqrt(mx.mean(squares, axis=axis, keepdims=True) + eps)
    wide_gate, wide_up, share, wide_out = after(scale)
    pull = mx.mean((wide_gate * wide_up) * (wide_out * share), axis=axis, keepdims=True)
    pull = pull * mx.square(scale)
    wide_gate, wide_up, share, wide_out = after(pull)
    product = wide_gate * wide_up
    d_product = scale * (wide_out * share - product * pull)
    d_share = wide_out * product * scale
    d_gate = (d_product * wide_up + d_share * share * (1.0 - share)).astype(gate.dtype)
    wide_gate, wide_up, share, wide_out = after(d_gate)
    d_product = scale * (wide_out * share - wide_gate * wide_up * pull)
    return d_gate, (d_product * wide_gate).astype(up.dtype)


def _norm_gradient(
    gate: mx.array, up: mx.array, share: mx.array, d_out: mx.array, eps: float, axis: int
) -> Tuple[mx.array, mx.array]:
    """Give the gradients of gate and up; ``share`` is sigmoid(gate)."""
    wide_gate, wide_up = gate.astype(mx.float32), up.astype(mx.float32)
    share, d_out = share.astype(mx.float32), d_out.astype(mx.float32)
    product = wide_gate * wide_up
    scale = mx.rsqrt(mx.mean(mx.square(product), axis=axis, keepdims=True) + eps)
    d_normed = d_out * share
    pull = mx.mean(product * d_normed, axis=axis, keepdims=True) * mx.square(scale)
    d_product = scale * (d_normed - product * pull)
    d_share = d_out * product * scale
    d_gate = d_product * wide_up + d_share * share * (1.0 - share)
    return d_gate.astype(gate.dtype), (d_product * wide_gate).astype(up.dtype)
