"""The supervision step of TRM, TRMSymbols and TRMGrid as an ONNX graph.

The graph takes ``tokens`` (B, S) int32; ``identifiers`` (B,) int32 where the model has a puzzle
table; ``begin`` (B,) bool, the rows that begin a puzzle, whose latents are not read; ``z_H`` and
``z_L`` (B, T, D) float32 of the step before. It gives ``new_z_H`` and ``new_z_L``, ``logits``
(B, S, V), and ``q`` (B, 2): q_halt and q_continue. The recursion is written out, its cycles one
after the other, and each weight is in the graph once.
"""

from typing import Any, Callable, Dict, Tuple, Type

import numpy as np

from mlx_trm.errors import ConfigError
from mlx_trm.inference.exporting.graph import Graph
from mlx_trm.inference.exporting.onnx_layers import (
    attention,
    for_each_row,
    gated_norm,
    join,
    left,
    limit,
    linear,
    post_norm,
    swiglu,
    to_numpy,
)
from mlx_trm.models import RecursiveModel
from mlx_trm.models.network import Block
from mlx_trm.models.trm import TRM
from mlx_trm.models.trm_grid import GridBlock, NeighbourLinear, TRMGrid
from mlx_trm.models.trm_symbols import SymbolBlock, TRMSymbols
from mlx_trm.nn.functional import rope_tables

LATENTS = ("z_H", "z_L")
# Adds a state's next value to the graph: from the state, and from what is added to it.
Update = Callable[[str, str], str]
# The embedded puzzle, the update, and what reads logits and Q from z_H.
Parts = Tuple[str, Update, Callable[[str], Tuple[str, str]]]


def build_graph(model: RecursiveModel) -> Graph:
    """Give a model's supervision step in evaluation as a graph.

    Args:
        model: of any ``forward_dtype``; the graph computes in float32.

    Raises:
        ConfigError: if there is no graph for such a model, or ``onnx`` is not installed.
    """
    writer = _WRITERS.get(type(model))
    if writer is None:
        names = ", ".join(each.__name__ for each in _WRITERS)
        raise ConfigError(
            f"--format onnx: model {model.config.name} has no ONNX graph ({names} have one); "
            "leave --format out to write MLX functions"
        )
    spec, graph = model.spec, Graph()
    shape = (model.positions + spec.seq_len, model.config.hidden_size)
    tokens = limit(graph, graph.add_input("tokens", [spec.seq_len], np.int32), spec.vocab_size)
    if model.config.puzzle_emb_ndim > 0:
        graph.add_input("identifiers", [], np.int32)
    begin = graph.add_input("begin", [], np.bool_)
    begin = graph.reshape(begin, [-1, 1, 1])
    starts = [
        graph.weight(name, to_numpy(model.initial_state(name))) for name in model.initial_names
    ]
    z_H = graph.add("Where", begin, starts[0], graph.add_input("z_H", shape))
    z_L = graph.add("Where", begin, starts[1], graph.add_input("z_L", shape))
    x, update, read = writer(graph, model, tokens)
    for _ in range(model.cycles[0]):
        for _ in range(model.cycles[1]):
            z_L = update(z_L, graph.add("Add", z_H, x))
        z_H = update(z_H, z_L)
    logits, q = read(z_H)
    for name, value in zip(LATENTS, (z_H, z_L)):
        graph.add_output(f"new_{name}", value, shape)
    graph.add_output("logits", logits, [spec.seq_len, spec.vocab_size])
    graph.add_output("q", q, [2])
    return graph


def _trm(graph: Graph, model: Any, tokens: str) -> Parts:
    """Write :class:`TRM`."""
    config, spec = model.config, model.spec
    size, length = config.hidden_size, model.positions + spec.seq_len
    table = graph.weight("embed_tokens", to_numpy(model.embed_tokens.embedding_weight))
    x = graph.add("Gather", table, tokens)
    if "registers" in model:
        registers = graph.weight("registers", to_numpy(model.registers))
        x = join(graph, [for_each_row(graph, registers, tokens), x], 1)
    elif config.puzzle_emb_ndim > 0:
        vectors = graph.weight("puzzle_emb", to_numpy(model.puzzle_emb.weights))
        rows = graph.add(
            "Gather", vectors, limit(graph, "identifiers", spec.num_puzzle_identifiers)
        )
        padding = model.positions * size - config.puzzle_emb_ndim
        if padding:
            rows = graph.add("Pad", rows, graph.constant([0, 0, 0, padding], np.int64))
        x = join(graph, [graph.reshape(rows, [-1, model.positions, size]), x], 1)
    factor = size**0.5
    if config.pos_encodings == "learned":
        positions = graph.weight("embed_pos", to_numpy(model.embed_pos.embedding_weight))
        x = graph.add("Mul", graph.add("Add", x, positions), graph.constant(0.707106781))
    x = graph.add("Mul", x, graph.constant(factor))
    cos_sin = None
    if config.pos_encodings == "rope" and config.attends:
        cos, sin = rope_tables(config.head_dim, length, config.rope_theta)
        cos_sin = graph.weight("cos", to_numpy(cos)), graph.weight("sin", to_numpy(sin))

    def block(x: str, layer: Block, name: str) -> str:
        if config.attends:
            mixed = attention(graph, x, layer.self_attn, f"{name}.self_attn", cos_sin)
            x = post_norm(graph, x, mixed, layer.eps)
        else:
            mixed = swiglu(graph, x, layer.mlp_t, f"{name}.mlp_t", -2)
            x = post_norm(graph, x, mixed, layer.eps, axis=-2)
        return post_norm(graph, x, swiglu(graph, x, layer.mlp, f"{name}.mlp", -1), layer.eps)

    apply = _level(graph, model, block)

    def update(state: str, injection: str) -> str:
        new = apply(state, injection)
        if not config.damping:
            return new
        old = graph.add("Mul", state, graph.constant(config.damping))
        new = graph.add("Mul", new, graph.constant(1.0 - config.damping))
        return graph.add("Add", old, new)

    def read(state: str) -> Tuple[str, str]:
        logits = linear(graph, _cells(graph, state, model), model.lm_head, "lm_head")
        first = graph.add("Gather", state, graph.constant(0, np.int64), axis=1)
        return logits, linear(graph, first, model.q_head, "q_head")

    return x, update, read


def _trm_symbols(graph: Graph, model: Any, tokens: str) -> Parts:
    """Write :class:`TRMSymbols`."""
    size, others, vocabulary = model.config.symbol_size, model.others, model.spec.vocab_size
    count = vocabulary - others
    # What each symbol's field is told of a cell: see TRMSymbols.embed.
    own = graph.constant(list(range(others, vocabulary)), np.int32)
    each = graph.reshape(tokens, [0, 0, 1])
    given, other = (graph.constant(kind, np.int32) for kind in (others, others + 1))
    symbol = graph.add("Where", graph.add("Equal", each, own), given, other)
    kinds = graph.add("Where", graph.add("Less", each, given), each, symbol)  # (B, S, n)
    table = graph.weight("embed_kinds", to_numpy(model.embed_kinds.embedding_weight))
    told = graph.reshape(graph.add("Gather", table, kinds), [0, 0, count * size])
    registers = np.tile(to_numpy(model.registers), (1, count))
    rows = for_each_row(graph, graph.weight("registers", registers), tokens)
    x = graph.add("Mul", join(graph, [rows, told], 1), graph.constant(size**0.5))

    def block(x: str, layer: SymbolBlock, name: str) -> str:
        def project(kind: str, value: str) -> str:
            return left(graph, value, layer[f"token_{kind}"], f"{name}.token_{kind}")

        inner = gated_norm(graph, project("gate_proj", x), project("up_proj", x), layer.eps)
        x = post_norm(graph, x, project("down_proj", inner), layer.eps)
        fields = graph.reshape(x, [0, 0, count, size])
        mean = graph.add("ReduceMean", fields, axes=[2], keepdims=1)
        fields = graph.add("Add", fields, linear(graph, mean, layer.mix_proj, f"{name}.mix_proj"))
        wide = int(layer.gate_proj.weight.shape[0])
        gate, up = (
            graph.reshape(
                linear(graph, fields, layer[kind], f"{name}.{kind}"), [0, 0, count * wide]
            )
            for kind in ("gate_proj", "up_proj")
        )
        inner = graph.reshape(gated_norm(graph, gate, up, layer.eps), [0, 0, count, wide])
        y = linear(graph, inner, layer.down_proj, f"{name}.down_proj")
        return post_norm(graph, x, graph.reshape(y, [0, 0, count * size]), layer.eps)

    def read(state: str) -> Tuple[str, str]:
        fields = graph.reshape(state, [0, 0, count, size])
        mean = graph.add("ReduceMean", fields, axes=[2], keepdims=0)
        of_symbols = linear(graph, _cells(graph, fields, model), model.symbol_head, "symbol_head")
        of_symbols = graph.reshape(of_symbols, [0, 0, count])
        of_others = linear(graph, _cells(graph, mean, model), model.other_head, "other_head")
        first = graph.add("Gather", mean, graph.constant(0, np.int64), axis=1)
        q = linear(graph, first, model.q_head, "q_head")
        return join(graph, [of_others, of_symbols], -1), _with_zero(graph, q)

    return x, _level(graph, model, block), read


def _trm_grid(graph: Graph, model: Any, tokens: str) -> Parts:
    """Write :class:`TRMGrid`."""
    size, length = model.config.hidden_size, model.spec.seq_len
    table = graph.weight("embed_tokens", to_numpy(model.embed_tokens.embedding_weight))
    x = graph.add("Mul", graph.add("Gather", table, tokens), graph.constant(size**0.5))

    def convolve(x: str, layer: NeighbourLinear, name: str) -> str:
        """Map (B, D, rows, columns) to (B, T, out)."""
        weight = to_numpy(layer.weight)
        out = weight.shape[0]
        kernel = weight.reshape((out, 3, 3, -1)).transpose(0, 3, 1, 2)
        y = graph.add("Conv", x, graph.weight(f"{name}.weight", kernel), pads=[1, 1, 1, 1])
        return graph.reshape(graph.add("Transpose", y, perm=[0, 2, 3, 1]), [0, length, out])

    def block(x: str, layer: GridBlock, name: str) -> str:
        grid = graph.reshape(x, [0, length // layer.columns, layer.columns, size])
        grid = graph.add("Transpose", grid, perm=[0, 3, 1, 2])
        gate, up = (
            convolve(grid, layer[kind], f"{name}.{kind}") for kind in ("gate_proj", "up_proj")
        )
        inner = gated_norm(graph, gate, up, layer.eps)
        y = linear(graph, inner, layer.down_proj, f"{name}.down_proj")
        return post_norm(graph, x, y, layer.eps)

    def read(state: str) -> Tuple[str, str]:
        seen = [
            graph.add(kind, state, axes=[1], keepdims=0) for kind in ("ReduceMean", "ReduceMax")
        ]
        q = linear(graph, join(graph, seen, -1), model.q_head, "q_head")
        return linear(graph, state, model.lm_head, "lm_head"), _with_zero(graph, q)

    return x, _level(graph, model, block), read


def _level(graph: Graph, model: Any, block: Callable[[str, Any, str], str]) -> Update:
    """Give what adds the injection to the state and runs the blocks."""

    def apply(state: str, injection: str) -> str:
        x = graph.add("Add", state, injection)
        for number, layer in enumerate(model.L_level.layers):
            x = block(x, layer, f"L_level.layers.{number}")
        return x

    return apply


def _cells(graph: Graph, state: str, model: Any) -> str:
    """Leave out the positions before the cells."""
    ends = [model.positions, model.positions + model.spec.seq_len]
    start, end, axis = (graph.constant([number], np.int64) for number in (*ends, 1))
    return graph.add("Slice", state, start, end, axis)


def _with_zero(graph: Graph, q: str) -> str:
    """Put q_continue, 0, behind q_halt: (B, 1) to (B, 2)."""
    return graph.add("Pad", q, graph.constant([0, 0, 0, 1], np.int64))


_WRITERS: Dict[Type[RecursiveModel], Callable[[Graph, Any, str], Parts]] = {
    TRM: _trm,
    TRMSymbols: _trm_symbols,
    TRMGrid: _trm_grid,
}
