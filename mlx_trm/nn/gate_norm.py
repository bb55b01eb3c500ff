"""sigmoid(gate) * rms_norm(gate * up), what a SwiGLU computes in between with a gate norm.

Its gradient is written out. It keeps gate and up, where automatic differentiation keeps a dozen
arrays of their size, some in float32. What leaves the norm has a size that does not follow the
weights', so an optimiser's large steps, such as Muon's, do not make the output, a product of two
projections, grow with their square.
"""

from functools import lru_cache
from typing import Any, Tuple

import mlx.core as mx

from mlx_trm.nn.functional import computes_plainly, rms_norm, sigmoid
from mlx_trm.system.device import on_gpu


def gated_norm(gate: mx.array, up: mx.array, eps: float, axis: int = -1) -> mx.array:
    """sigmoid(gate) * rms_norm(gate * up), rounded after each operation.

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


@lru_cache(maxsize=None)
def _gated_norm(eps: float, axis: int, keep_share: bool) -> Any:
    def forward(gate: mx.array, up: mx.array) -> Tuple[mx.array, ...]:
        share = sigmoid(gate)
        out = share * rms_norm(gate * up, eps, axis)
        return (out, share) if keep_share else (out,)

    function: Any = mx.custom_function(forward)

    @function.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Tuple[mx.array, mx.array]:
        gate, up = primals
        if not keep_share:
            # Without the dependency mx.compile would find the same operations in the forward pass,
            # and keep their results until here instead of computing them again.
            gate, up = mx.depends([gate, up], [cotangents[0]])
        share = (outputs[1] if keep_share else sigmoid(gate)).astype(mx.float32)
        d_out = cotangents[0].astype(mx.float32)
        wide_gate, wide_up = gate.astype(mx.float32), up.astype(mx.float32)
        product = wide_gate * wide_up
        scale = mx.rsqrt(mx.mean(mx.square(product), axis=axis, keepdims=True) + eps)
        d_normed = d_out * share
        pull = mx.mean(product * d_normed, axis=axis, keepdims=True) * mx.square(scale)
        d_product = scale * (d_normed - product * pull)
        d_share = d_out * product * scale
        d_gate = d_product * wide_up + d_share * share * (1.0 - share)
        return d_gate.astype(gate.dtype), (d_product * wide_gate).astype(up.dtype)

    return function
