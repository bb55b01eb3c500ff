"""Models whose weights take 8 or 4 bits instead of 32, to compute answers with.

Linear layers give way to :class:`mlx_trm.nn.quantized.QuantizedCastedLinear`. Embeddings, biases,
initial states and the puzzle table stay as they are, and so does every layer whose number of inputs
no group size divides: with ``mlp_t`` those that read the T positions.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import mlx.core as mx
from mlx import nn

from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.nn.layers import CastedLinear

BITS = (4, 8)
GROUP_SIZES = (64, 32)


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
        """Say in one line how many layers were quantised and how many bytes that saved."""
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
    done: List[Tuple[str, int]] = []
    left: List[Tuple[str, Tuple[int, ...]]] = []

    def choose(name: str, module: nn.Module) -> Union[bool, Dict[str, Any]]:
        """Give a layer's arguments of ``to_quantized``, or False to leave it as it is."""
        if not isinstance(module, CastedLinear):
            return False
        fitting = [size for size in sizes if module.weight.shape[1] % size == 0]
        if not fitting:
            left.append((name, tuple(module.weight.shape)))
            return False
        done.append((name, fitting[0]))
        return {"group_size": fitting[0], "bits": bits, "dtype": model.dtype}

    nn.quantize(model, class_predicate=choose)
    if not done:
        names = " or ".join(map(str, sorted(sizes)))
        raise ValueError(f"no linear layer has a multiple of {names} inputs; use it as it is")
    mx.eval(model.parameters())
    return Quantized(bits, done, left, before, weight_bytes(model))


def weight_bytes(model: RecursiveModel) -> int:
    """Add up the bytes of all arrays of a model but the puzzle table."""
    return sum(int(array.nbytes) for _, array in named_arrays(model.weights()))
