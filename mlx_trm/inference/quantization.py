"""Models whose weights take 8 or 4 bits instead of 32, to compute answers with.

The linear layers' weights are cut into groups of a row's neighbours. A group shares a scale and an
offset, and each weight becomes a whole number of so many bits (MLX's affine quantisation).
Embeddings, biases, initial states and the puzzle table stay as they are, and so does every layer
whose number of inputs no group size divides: with ``mlp_t`` those that read the T positions.
"""

import re
from typing import List, NamedTuple, Optional, Tuple

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.nn.layers import CastedLinear
from mlx_trm.system.device import on_gpu

BITS = (4, 8)
GROUP_SIZES = (64, 32)


def multiplies_packed() -> bool:
    """Whether the default device multiplies with packed weights, of any shape, and fast: Metal.

    On the CPU making the dense weight first is 50 times as fast, and on CUDA some shapes, or in
    older versions all, have no product with packed weights.
    """
    return on_gpu() and bool(mx.metal.is_available())


class QuantizedCastedLinear(nn.Module):
    """Takes the place of a :class:`mlx_trm.nn.layers.CastedLinear`, for inference only.

    ``weight`` is (out, in * bits / 32) uint32, ``scales`` and ``biases`` are (out, in / group);
    ``bias`` (out,) float32 is the layer's own, where it has one.
    """

    def __init__(self, linear: CastedLinear, bits: int, group_size: int, dtype: mx.Dtype) -> None:
        """Quantise a layer.

        Args:
            linear: stays as it is.
            bits: of a weight, 4 or 8.
            group_size: a divisor of the layer's inputs.
            dtype: of the activations; the weight is cast to it first, as the layer itself does.
        """
        super().__init__()
        self.bits, self.group_size = bits, group_size
        weight = linear.weight.astype(dtype)
        self.weight, self.scales, self.biases = mx.quantize(weight, group_size, bits)
        if "bias" in linear:
            self.bias = linear.bias
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., in) to (..., out)."""
        y = self.multiply(x, packed=multiplies_packed())
        return y + self.bias.astype(x.dtype) if "bias" in self else y

    def left(self, x: mx.array) -> mx.array:
        """Map (..., in, D) to (..., out, D): the same product over the second-last axis."""
        if multiplies_packed():
            return self.multiply(x.swapaxes(-1, -2), packed=True).swapaxes(-1, -2)
        return self.dense(x.dtype) @ x

    def multiply(self, x: mx.array, packed: bool) -> mx.array:
        """Map (..., in) to (..., out), without the bias.

        Args:
            x: any float dtype.
            packed: read the packed weight in the product itself; else make the dense weight first.
        """
        if not packed:
            return x @ self.dense(x.dtype).T
        scales, biases = self.scales.astype(x.dtype), self.biases.astype(x.dtype)
        return mx.quantized_matmul(x, self.weight, scales, biases, True, self.group_size, self.bits)

    def dense(self, dtype: mx.Dtype) -> mx.array:
        """Give the weight that the numbers stand for, (out, in) in ``dtype``."""
        packed = (self.weight, self.scales, self.biases)
        return mx.dequantize(*packed, self.group_size, self.bits).astype(dtype)


class Quantized(NamedTuple):
    """What :func:`quantize_model` has done.

    Attributes:
        bits: of a quantised weight.
        layers: dotted name and group size of each quantised layer.
        left: dotted name and shape of the weight of each linear layer left as it was.
        bytes_before: all weights but the puzzle table, before.
        bytes_after: the same, after.
    """

    bits: int
    layers: List[Tuple[str, int]]
    left: List[Tuple[str, Tuple[int, ...]]]
    bytes_before: int
    bytes_after: int

    def describe(self) -> str:
        """Say it in a line."""
        count = len(self.layers)
        text = (
            f"{count} of {count + len(self.left)} linear layers have {self.bits}-bit weights: "
            f"{self.bytes_before:,} bytes became {self.bytes_after:,}"
        )
        if self.left:
            shown = ", ".join(f"{name} {shape[0]}x{shape[1]}" for name, shape in self.left)
            text += f"; left as they are: {shown}"
        return text


def quantize_model(
    model: RecursiveModel, bits: int = 8, group_size: Optional[int] = None
) -> Quantized:
    """Quantise a model's linear layers in place; it can then no longer be trained or saved.

    Args:
        model: with its final weights; anything of this package or of a plugin that is made of
            :class:`mlx_trm.nn.layers.CastedLinear`.
        bits: of a weight, 4 or 8.
        group_size: weights that share a scale, 32 or 64; default the larger that divides a layer's
            inputs.

    Returns:
        What was quantised, what was left, and the bytes before and after.

    Raises:
        ValueError: if MLX has no such quantisation, or no layer could be quantised.
    """
    if bits not in BITS:
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    if group_size is not None and group_size not in GROUP_SIZES:
        raise ValueError(f"group_size must be 32 or 64, got {group_size}")
    sizes = GROUP_SIZES if group_size is None else (group_size,)
    before = weight_bytes(model)
    replaced, done, left = [], [], []
    for name, module in sorted(model.named_modules(), key=_in_order):
        if not isinstance(module, CastedLinear):
            continue
        inputs = module.weight.shape[1]
        fitting = [size for size in sizes if inputs % size == 0]
        if fitting:
            layer = QuantizedCastedLinear(module, bits, fitting[0], model.dtype)
            replaced.append((name, layer))
            done.append((name, fitting[0]))
        else:
            left.append((name, tuple(module.weight.shape)))
    if not replaced:
        names = " or ".join(map(str, sorted(sizes)))
        raise ValueError(f"no linear layer has a multiple of {names} inputs; use it as it is")
    model.update_modules(tree_unflatten(replaced))
    mx.eval(model.parameters())
    return Quantized(bits, done, left, before, weight_bytes(model))


def weight_bytes(model: RecursiveModel) -> int:
    """Add up the bytes of all arrays of a model but the puzzle table."""
    return sum(int(array.nbytes) for _, array in named_arrays(model.weights()))


def _in_order(named: Tuple[str, nn.Module]) -> List[Tuple[bool, int, str]]:
    """Sort names as people do: layers.2 before layers.10."""
    parts = re.split(r"[.]", named[0])
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
