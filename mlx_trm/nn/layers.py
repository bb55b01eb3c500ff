"""The building blocks of the recursion, with the reference's names, initialisation and rounding.

Weights are float32 and every use casts them to the dtype of the activations (``forward_dtype``).
In bfloat16 PyTorch rounds once per operation, computing silu, RMS norm and RoPE in float32; so do
these layers, since any further rounding is amplified by the recursion and misses parity.

Shape letters: B batch, S sequence, P puzzle-embedding positions, T = P + S, D hidden, h heads.

Reference: models/layers.py, models/common.py, models/sparse_embedding.py.
"""

import math
from typing import Any, Callable, List, Optional, Tuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_trm.nn.functional import CosSin, apply_rope, attend
from mlx_trm.nn.gating import gated_norm, swiglu
from mlx_trm.nn.init import KeySequence, trunc_normal
from mlx_trm.nn.quantized import QuantizedCastedLinear
from mlx_trm.system.device import on_gpu


class CastedLinear(nn.Module):
    """A linear layer whose float32 weight is cast to the input's dtype.

    ``weight`` is (out, in), LeCun normal; ``bias`` (out,) is zero where there is one.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, keys: KeySequence) -> None:
        """Create the layer with weights drawn from ``keys``."""
        super().__init__()
        std = 1.0 / math.sqrt(in_features)
        self.weight = trunc_normal((out_features, in_features), std, keys.next())
        if bias:
            self.bias = mx.zeros((out_features,), dtype=mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., in) to (..., out)."""
        weight = self.weight.astype(x.dtype)
        if "bias" in self:
            return mx.addmm(self.bias.astype(x.dtype), x, weight.T)
        return x @ weight.T

    def left(self, x: mx.array) -> mx.array:
        """Map (..., in, D) to (..., out, D): the same product over the second-last axis."""
        return self.weight.astype(x.dtype) @ x

    def to_quantized(self, group_size: int, bits: int, dtype: mx.Dtype) -> QuantizedCastedLinear:
        """Give the layer that ``mlx.nn.quantize`` puts in the place of this one.

        Args:
            group_size: weights that share a scale, 32 or 64; a divisor of the layer's inputs.
            bits: of a weight, 4 or 8.
            dtype: of the activations; the weight is cast to it first, as the layer itself does.
        """
        return QuantizedCastedLinear(self.weight.astype(dtype), self.get("bias"), group_size, bits)


class CastedEmbedding(nn.Module):
    """A float32 table of (count, D) whose rows are looked up and cast."""

    def __init__(self, count: int, dim: int, std: float, keys: KeySequence) -> None:
        """Create the table with rows of standard deviation ``std``."""
        super().__init__()
        self.embedding_weight = trunc_normal((count, dim), std, keys.next())

    def __call__(self, ids: mx.array, dtype: mx.Dtype) -> mx.array:
        """Look up (...,) int32 ids and give (..., D) in ``dtype``.

        The values are looked up; the gradient is that of a product with one-hot rows, which sums in
        a fixed order. The gradient of a look-up is a scatter-add, which GPUs sum in no fixed order,
        so that two equal runs would differ.
        """
        weight = self.embedding_weight.astype(dtype)
        one_hot = ids[..., None] == mx.arange(weight.shape[0], dtype=ids.dtype)
        product = one_hot.astype(dtype) @ weight
        return mx.stop_gradient(weight[ids]) + (product - mx.stop_gradient(product))


class PuzzleEmbedding(nn.Module):
    """The puzzle table: one learned vector per puzzle identifier, (N, puzzle_emb_ndim) float32.

    It is a buffer: SignSGD moves only the rows of a batch (see ``optim.sign_sgd_rows``), and Adam
    and the EMA never see it.

    Reference: models/sparse_embedding.py ``CastedSparseEmbedding``.
    """

    def __init__(self, count: int, dim: int) -> None:
        """Create a table of zeros."""
        super().__init__()
        self.weights = mx.zeros((count, dim), dtype=mx.float32)
        self.freeze(keys=["weights"])

    def __call__(self, ids: mx.array) -> mx.array:
        """Look up (B,) int32 identifiers and give (B, puzzle_emb_ndim) float32."""
        return self.weights[ids]


class SwiGLU(nn.Module):
    """down(silu(gate) * up) with one projection for gate and up, gate first.

    With a gate norm it is down(sigmoid(gate) * rms_norm(gate * up)).
    """

    def __init__(
        self, size: int, inner: int, keys: KeySequence, gate_norm_eps: Optional[float] = None
    ) -> None:
        """Create the layer: ``size`` -> 2 * ``inner`` -> ``size``.

        Args:
            size: of the axis it acts on.
            inner: I, numbers in between.
            keys: decide the weights.
            gate_norm_eps: added to the mean square of the gate norm; None for no such norm.
        """
        super().__init__()
        self.gate_norm_eps = gate_norm_eps
        self.gate_up_proj = CastedLinear(size, 2 * inner, bias=False, keys=keys)
        self.down_proj = CastedLinear(inner, size, bias=False, keys=keys)

    @staticmethod
    def inner_size(size: int, expansion: float, multiple: int) -> int:
        """round(expansion * size * 2/3), rounded up to a multiple (256 in the reference)."""
        return -(-round(expansion * size * 2 / 3) // multiple) * multiple

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, T, D) to (B, T, D), acting on the last axis."""
        gate, up = self._gate_and_up(x, -1)
        return self.down_proj(self._gated(gate, up, -1))

    def left(self, x: mx.array) -> mx.array:
        """Map (B, T, D) to (B, T, D), acting on the *position* axis (``mlp_t``).

        The reference transposes to (B, D, T), applies the layer and transposes back; multiplying
        from the left is the same product without the transposes.
        """
        gate, up = self._gate_and_up(x, -2)
        return self.down_proj.left(self._gated(gate, up, -2))

    def _gated(self, gate: mx.array, up: mx.array, axis: int) -> mx.array:
        if self.gate_norm_eps is None:
            return swiglu(gate, up, self.training)
        return gated_norm(gate, up, self.gate_norm_eps, axis)

    def _gate_and_up(self, x: mx.array, axis: int) -> List[mx.array]:
        layer = self.gate_up_proj
        if on_gpu() or type(layer) is not CastedLinear:  # pylint: disable=unidiomatic-typecheck
            return list(mx.split(layer(x) if axis == -1 else layer.left(x), 2, axis=axis))
        # Two products on the CPU: halves of one are no contiguous arrays, and slow to go through.
        halves: List[mx.array] = list(mx.split(layer.weight.astype(x.dtype), 2, axis=0))
        return [x @ half.T if axis == -1 else half @ x for half in halves]


class Attention(nn.Module):
    """Multi-head self-attention over all T positions, not causal, one fused qkv projection."""

    def __init__(self, size: int, heads: int, keys: KeySequence) -> None:
        """Create the layer; ``heads`` divides ``size``."""
        super().__init__()
        self.heads = heads
        self.qkv_proj = CastedLinear(size, 3 * size, bias=False, keys=keys)
        self.o_proj = CastedLinear(size, size, bias=False, keys=keys)

    def __call__(self, x: mx.array, cos_sin: Optional[CosSin]) -> mx.array:
        """Map (B, T, D) to (B, T, D); ``cos_sin`` rotates q and k where given."""
        rows, positions, size = x.shape
        head_dim = size // self.heads
        qkv = self.qkv_proj(x).reshape(rows, positions, 3, self.heads, head_dim)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)
        if cos_sin is not None:
            query, key = apply_rope(query, cos_sin), apply_rope(key, cos_sin)
        mixed = attend(query, key, value, 1.0 / math.sqrt(head_dim))
        return self.o_proj(mixed.transpose(0, 2, 1, 3).reshape(rows, positions, size))


def compute_again(layer: nn.Module, run: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    """Apply a layer, keeping only what enters it; for the gradient the rest is computed again.

    MLX's own ``checkpoint`` leaves it open when that is done. Gradients of weights are what a step
    needs last, so MLX computes them last, and all that they are computed from waits in memory: of
    12 blocks with an MLP over positions it saves nothing. Here a block is computed again when its
    gradient is there, and its weights' gradients before the block below is.

    Args:
        layer: whose weights ``run`` uses.
        run: maps x to an array of its shape and dtype.
        x: (B, T, D).
    """
    flat: Any = tree_flatten(layer.trainable_parameters())
    names, weights = [name for name, _ in flat], [weight for _, weight in flat]

    def forward(x: mx.array, *weights: mx.array) -> mx.array:
        own = layer.parameters()
        try:
            layer.update(tree_unflatten(list(zip(names, weights))))
            return run(x)
        finally:
            layer.update(own)  # so that no traced array is left behind

    function: Any = mx.custom_function(forward)

    @function.vjp
    def gradient(inputs: Any, d_out: mx.array, _: mx.array) -> Tuple[mx.array, ...]:
        # Where no weight is trained MLX gives the only input by itself.
        given = [inputs] if isinstance(inputs, mx.array) else list(inputs)
        d_x, *d_weights = mx.vjp(forward, mx.depends(given, [d_out]), [d_out])[1]
        return (mx.depends([d_x], d_weights)[0], *d_weights) if d_weights else (d_x,)

    result: mx.array = function(x, *weights)
    return result
