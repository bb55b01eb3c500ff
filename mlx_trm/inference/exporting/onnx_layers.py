"""The layers of :mod:`mlx_trm.nn` as operations of an ONNX graph.

Each function adds to a :class:`~mlx_trm.inference.exporting.graph.Graph` and gives the name of its
result. ``name`` is the layer's own in the model, under which its weights go into the graph.
"""

from typing import List, Optional, Tuple

import mlx.core as mx
import numpy as np

from mlx_trm.errors import ConfigError
from mlx_trm.inference.exporting.graph import Graph
from mlx_trm.nn.layers import Attention, CastedLinear, SwiGLU


def to_numpy(array: mx.array) -> np.ndarray:
    """Copy an array to NumPy as float32."""
    return np.array(array.astype(mx.float32))


def linear(graph: Graph, x: str, layer: CastedLinear, name: str) -> str:
    """Map (..., in) to (..., out).

    Raises:
        ConfigError: if the layer is not as it was made, but quantised or adapted.
    """
    weight = _weight(layer, name)
    product = graph.add("MatMul", x, graph.weight(f"{name}.weight.T", weight.T))
    if "bias" in layer:
        return graph.add("Add", product, graph.weight(f"{name}.bias", to_numpy(layer.bias)))
    return product


def left(graph: Graph, x: str, layer: CastedLinear, name: str) -> str:
    """Map (B, in, D) to (B, out, D). Errors are those of :func:`linear`."""
    return graph.add("MatMul", graph.weight(f"{name}.weight", _weight(layer, name)), x)


def rms_norm(graph: Graph, x: str, eps: float, axis: int = -1) -> str:
    """Divide by the root mean square over ``axis``."""
    mean = graph.add("ReduceMean", graph.add("Mul", x, x), axes=[axis], keepdims=1)
    root = graph.add("Sqrt", graph.add("Add", mean, graph.constant(eps)))
    return graph.add("Div", x, root)


def post_norm(graph: Graph, x: str, y: str, eps: float, axis: int = -1) -> str:
    """Give rms_norm(x + y)."""
    return rms_norm(graph, graph.add("Add", x, y), eps, axis)


def gated_norm(graph: Graph, gate: str, up: str, eps: float, axis: int = -1) -> str:
    """Give sigmoid(gate) * rms_norm(gate * up)."""
    normed = rms_norm(graph, graph.add("Mul", gate, up), eps, axis)
    return graph.add("Mul", graph.add("Sigmoid", gate), normed)


def swiglu(graph: Graph, x: str, layer: SwiGLU, name: str, axis: int) -> str:
    """Apply a SwiGLU to the last axis of (B, T, D), or to the positions where ``axis`` is -2."""
    project = linear if axis == -1 else left
    both = project(graph, x, layer.gate_up_proj, f"{name}.gate_up_proj")
    gate, up = graph.add_many("Split", 2, both, axis=axis)
    if layer.gate_norm_eps is None:
        silu = graph.add("Mul", gate, graph.add("Sigmoid", gate))
        inner = graph.add("Mul", silu, up)
    else:
        inner = gated_norm(graph, gate, up, layer.gate_norm_eps, axis)
    return project(graph, inner, layer.down_proj, f"{name}.down_proj")


def attention(
    graph: Graph, x: str, layer: Attention, name: str, cos_sin: Optional[Tuple[str, str]]
) -> str:
    """Map (B, T, D) to (B, T, D), all positions seeing each other.

    Args:
        graph: that grows.
        x: (B, T, D).
        layer: of the model.
        name: of it.
        cos_sin: names of tables, (T, D / heads), by which queries and keys are rotated.
    """
    size = int(layer.o_proj.weight.shape[0])
    head_dim = size // layer.heads
    qkv = linear(graph, x, layer.qkv_proj, f"{name}.qkv_proj")
    qkv = graph.reshape(qkv, [0, 0, 3, layer.heads, head_dim])
    qkv = graph.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    first = graph.constant([0], np.int64)
    parts = graph.add_many("Split", 3, qkv, axis=0)
    query, key, value = (graph.add("Squeeze", part, first) for part in parts)
    if cos_sin is not None:
        query, key = _rotate(graph, query, *cos_sin), _rotate(graph, key, *cos_sin)
    query = graph.add("Mul", query, graph.constant(head_dim**-0.5))
    scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    mixed = graph.reshape(graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), [0, 0, size])
    return linear(graph, mixed, layer.o_proj, f"{name}.o_proj")


def join(graph: Graph, parts: List[str], axis: int) -> str:
    """Put values beside one another."""
    return graph.add("Concat", *parts, axis=axis)


def for_each_row(graph: Graph, array: str, like: str) -> str:
    """Repeat (P, D) to (B, P, D), B being that of ``like``."""
    count = graph.add("Shape", like, start=0, end=1)
    rest = graph.constant([1, 1], np.int64)
    return graph.add("Expand", array, join(graph, [count, rest], 0))


def limit(graph: Graph, numbers: str, count: int) -> str:
    """Take whole numbers out of range for the nearest of 0 to ``count`` - 1."""
    ends = (graph.constant(end, np.int32) for end in (0, count - 1))
    return graph.add("Clip", numbers, *ends)


def _rotate(graph: Graph, x: str, cos: str, sin: str) -> str:
    """Rotate pairs (i, i + head_dim/2) of (B, h, T, head_dim)."""
    low, high = graph.add_many("Split", 2, x, axis=-1)
    turned = join(graph, [graph.add("Neg", high), low], -1)
    return graph.add("Add", graph.add("Mul", x, cos), graph.add("Mul", turned, sin))


def _weight(layer: CastedLinear, name: str) -> np.ndarray:
    """Give a layer's (out, in) weight."""
    if type(layer) is not CastedLinear:  # pylint: disable=unidiomatic-typecheck
        raise ConfigError(
            f"--format onnx: the layer {name} is a {type(layer).__name__}, and plain layers alone "
            "can be written; leave --quantize out"
        )
    return to_numpy(layer.weight)
