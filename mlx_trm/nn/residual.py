"""rms_norm(x + y), the end of every half of a block, with its gradient or with what comes next."""

from functools import lru_cache
from typing import Any, List, Optional, Tuple

import mlx.core as mx

from mlx_trm.nn import metal_kernels
from mlx_trm.nn.cuda import kernels as cuda
from mlx_trm.nn.functional import rms_norm
from mlx_trm.system.device import on_metal


def residual_norm(x: mx.array, y: mx.array, eps: float, keep: bool) -> mx.array:
    """rms_norm(x + y) over the last axis, of arrays of one shape.

    Args:
        x: (B, T, D).
        y: what a layer gave.
        eps: added to the mean square.
        keep: whether a gradient may be asked for.

    Returns:
        (B, T, D) in the dtype of ``x``.
    """
    if keep:
        kept: mx.array = _residual_norm(eps)(x, y)[0]
        return kept
    return add_norm(x, y, eps, False, whole_warps=False)[0]


@lru_cache(maxsize=None)
def _residual_norm(eps: float) -> Any:
    function: Any = mx.custom_function(
        lambda x, y: tuple(add_norm(x, y, eps, True, whole_warps=False))
    )

    @function.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Tuple[mx.array, mx.array]:
        del primals
        d_total = norm_gradient(outputs[1], cotangents[0], eps, whole_warps=False)
        return d_total, d_total

    return function


def add_norm(
    x: mx.array, y: mx.array, eps: float, keep: bool, axis: int = -1, whole_warps: bool = True
) -> List[mx.array]:
    """Give rms_norm(x + y), shaped as ``x``, and, where it is kept, x + y, shaped as ``y``.

    Args:
        x: any shape and float dtype.
        y: of that shape; with a norm over the last axis its rows may be counted otherwise, as those
            of a matrix product are. A kernel takes that as it is, and a reshape costs time.
        eps: added to the mean square.
        keep: whether the second result will be used.
        axis: of the norm, -1 or -2.
        whole_warps: use the kernel only where its 32 lanes have equal shares, as the halves of
            :mod:`mlx_trm.nn.fused` do.
    """
    if axis == -1 and cuda.usable(x.dtype) and cuda.norm_fits(x.shape[-1], whole_warps):
        return cuda.add_norm(x, y, eps, keep)
    if axis == -2 and x.ndim == 3 and metal_kernels.usable(x):
        return metal_kernels.position_norm(x, y, eps, keep)
    total = x.reshape(y.shape) + y
    return [rms_norm(total, eps, axis).reshape(x.shape), total]


def add_norm_sum(
    x: mx.array, y: mx.array, following: mx.array, eps: float, keep_norm: bool, whole_warps: bool
) -> Tuple[mx.array, Optional[mx.array]]:
    """Give rms_norm(x + y) plus ``following``, and the norm; no gradient may be asked of them.

    A kernel adds as it goes, so that the sum costs no reading of the norm, nor a launch.

    Args:
        x: as for :func:`add_norm`, and so are ``y``, ``eps`` and ``whole_warps``.
        following: shaped as ``x``.
        keep_norm: whether the second result is used; if not, it may be None.
    """
    # The kernel reads as many numbers of each, in bfloat16.
    alike = following.dtype == x.dtype and following.shape == x.shape
    if alike and cuda.usable(x.dtype) and cuda.norm_fits(x.shape[-1], whole_warps):
        found = cuda.add_norm_sum(x, y, following, eps, keep_norm)
        return found[0], found[1] if keep_norm else None
    norm = add_norm(x, y, eps, False, whole_warps=whole_warps)[0]
    return norm + following, norm


def norm_gradient(
    total: mx.array, d_out: mx.array, eps: float, axis: int = -1, whole_warps: bool = True
) -> mx.array:
    """Give the gradient of ``total``, whose RMS norm has the gradient ``d_out``, as many rows.

    The other arguments are those of :func:`add_norm`.
    """
    if axis == -1:
        if cuda.usable(total.dtype) and cuda.norm_fits(total.shape[-1], whole_warps):
            return cuda.norm_gradient(total, d_out, eps)
        d_out = d_out.reshape(total.shape)
        return mx.vjp(lambda s: mx.fast.rms_norm(s, None, eps), [total], [d_out])[1][0]
    if cuda.usable(total.dtype) and cuda.position_norm_fits(
        total.shape[0], total.shape[1], total.shape[2]
    ):
        return cuda.position_norm_gradient(total, d_out, eps)
    if total.ndim == 3 and metal_kernels.usable(total):
        return metal_kernels.position_norm_gradient(total, d_out, eps)
    total = mx.depends([total], [d_out])[0]
    wide, d_wide = total.astype(mx.float32), d_out.astype(mx.float32)
    scale = mx.rsqrt(mx.mean(mx.square(wide), axis=axis, keepdims=True) + eps)
    if on_metal():  # one after the other, casting again: nothing in float32 stays for the next
        total, d_out = mx.depends([total, d_out], [scale])
        wide, d_wide = total.astype(mx.float32), d_out.astype(mx.float32)
    pull = mx.mean(wide * d_wide, axis=axis, keepdims=True) * mx.square(scale)
    if on_metal():
        total, d_out = mx.depends([total, d_out], [pull])
        wide, d_wide = total.astype(mx.float32), d_out.astype(mx.float32)
    return (scale * (d_wide - wide * pull)).astype(total.dtype)
