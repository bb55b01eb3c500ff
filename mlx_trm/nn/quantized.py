"""A linear layer whose weights take 8 or 4 bits instead of 32, to compute answers with.

A row's neighbours make groups. A group shares a scale and an offset, and each weight becomes a
whole number of so many bits (MLX's affine quantisation).
"""

from typing import Optional

import mlx.core as mx
from mlx import nn

from mlx_trm.system.device import on_gpu


def can_multiply_packed() -> bool:
    """Whether products with packed weights are used: where MLX computes with Metal."""
    # On the CPU making the dense weight first is 50 times as fast, and on CUDA some shapes, or in
    # older versions all, have no product with packed weights.
    return on_gpu() and bool(mx.metal.is_available())


class QuantizedCastedLinear(nn.Module):
    """Takes the place of a :class:`mlx_trm.nn.layers.CastedLinear`, for inference only.

    ``weight`` is (out, in * bits / 32) uint32, ``scales`` and ``biases`` are (out, in / group);
    ``bias`` (out,) float32 is the layer's own, where it has one.
    """

    def __init__(
        self, weight: mx.array, bias: Optional[mx.array], group_size: int, bits: int
    ) -> None:
        """Quantise a weight.

        Args:
            weight: (out, in) in the dtype of the activations, which that of the scales will be.
            bias: (out,) float32, which stays as it is; None where there is none.
            group_size: 32 or 64, a divisor of the inputs.
            bits: of a weight, 4 or 8.
        """
        super().__init__()
        self.group_size, self.bits = group_size, bits
        self.weight, self.scales, self.biases = mx.quantize(weight, group_size, bits)
        if bias is not None:
            self.bias = bias
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., in) to (..., out)."""
        y = self.multiply(x, packed=can_multiply_packed())
        return y + self.bias.astype(x.dtype) if "bias" in self else y

    def left(self, x: mx.array) -> mx.array:
        """Map (..., in, D) to (..., out, D): the same product over the second-last axis."""
        if can_multiply_packed():
            return self.multiply(x.swapaxes(-1, -2), packed=True).swapaxes(-1, -2)
        return self.dequantize(x.dtype) @ x

    def multiply(self, x: mx.array, packed: bool) -> mx.array:
        """Map (..., in) to (..., out), without the bias.

        Args:
            x: any float dtype.
            packed: read the packed weight in the product itself; else make the dense weight first.
        """
        if not packed:
            return x @ self.dequantize(x.dtype).T
        scales, biases = self.scales.astype(x.dtype), self.biases.astype(x.dtype)
        return mx.quantized_matmul(x, self.weight, scales, biases, True, self.group_size, self.bits)

    def dequantize(self, dtype: mx.Dtype) -> mx.array:
        """Compute the weight from its packed numbers, scales and biases: (out, in) in ``dtype``."""
        packed = (self.weight, self.scales, self.biases)
        return mx.dequantize(*packed, self.group_size, self.bits).astype(dtype)
