"""A TRM whose network does not know the symbols' names: relabel a puzzle, and its answer follows.

Sudoku's digits and ARC's colours are interchangeable. Here every position holds a *field* for each
symbol, ``symbol_size`` numbers, and all fields share all weights: a field is told where its own
symbol is given, where another one is, and where nothing is. Renaming the symbols permutes the
fields and changes nothing else, so the model has that symmetry from the start, where others learn
it from relabelled copies, and has a twentieth of the weights.

A state is (B, T, D) with D = symbols * symbol_size, one field after the other. The recursion, the
carry and halting are TRM's: z_H is the paper's answer *y*, z_L its latent *z*.

Shape letters: n symbols, C = symbol_size, R registers; the others are those of carry.py.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Optional, Tuple

import mlx.core as mx

from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.models.base import register_model
from mlx_trm.models.carry import Outputs
from mlx_trm.models.network import check_latent, draw_states, make_q_head
from mlx_trm.models.trm import SymmetricTRM, SymmetricTRMConfig
from mlx_trm.nn import fused
from mlx_trm.nn.functional import CosSin, scaled
from mlx_trm.nn.gating import gated_norm
from mlx_trm.nn.init import KeySequence, trunc_normal
from mlx_trm.nn.layers import CastedEmbedding, CastedLinear
from mlx_trm.nn.reasoning import PostNormBlock, ReasoningModule


@dataclass
class TRMSymbolsConfig(SymmetricTRMConfig):
    """Size and schedule of the symbol-equivariant model."""

    name: str = "trm_symbols"
    symbols: Optional[int] = field(default=None, metadata={"min": 1})
    """Tokens at the end of the vocabulary that are interchangeable; unset: all but the first 2."""
    symbol_size: int = field(default=64, metadata={"min": 1})
    """Numbers that a symbol has in a position."""
    token_inner: int = field(default=256, metadata={"min": 1})
    """Inner size of the SwiGLU over the positions."""
    inner: int = field(default=192, metadata={"min": 1})
    """Inner size of the SwiGLU over a symbol's numbers."""
    register_tokens: int = field(default=7, metadata={"min": 1})
    """P, learned positions before the cells; Q is read at the first."""

    @property
    def hidden_size(self) -> int:
        """D; of a model's own configuration, in which ``symbols`` is a number."""
        return (self.symbols or 0) * self.symbol_size


class SymbolBlock(PostNormBlock):
    """Mix the positions, then the numbers of each field; post-norm, over all fields together."""

    def __init__(self, config: TRMSymbolsConfig, length: int, keys: KeySequence) -> None:
        """Create a block for sequences of ``length`` = T positions."""
        super().__init__()
        self.eps, self.size = config.rms_norm_eps, config.symbol_size

        def linear(inputs: int, outputs: int) -> CastedLinear:
            return CastedLinear(inputs, outputs, bias=False, keys=keys)

        # Gate and up are two matrices: Muon makes each orthogonal, and two products have
        # contiguous results, which the operations after them are fastest on.
        self.token_gate_proj = linear(length, config.token_inner)
        self.token_up_proj = linear(length, config.token_inner)
        self.token_down_proj = linear(config.token_inner, length)
        self.mix_proj = linear(self.size, self.size)
        self.gate_proj = linear(self.size, config.inner)
        self.up_proj = linear(self.size, config.inner)
        self.down_proj = linear(config.inner, self.size)

    def __call__(self, x: mx.array, cos_sin: Optional[CosSin] = None) -> mx.array:
        """Map (B, T, D) to (B, T, D); there are no angles to rotate by."""
        return fused.post_norm(*self.before_norm(x, cos_sin), self.eps, self.training)

    def before_norm(
        self, x: mx.array, cos_sin: Optional[CosSin] = None
    ) -> Tuple[mx.array, mx.array]:
        """Give what the last norm is of. See the base class."""
        del cos_sin
        inner = gated_norm(self.token_gate_proj.left(x), self.token_up_proj.left(x), self.eps)
        x = fused.post_norm(x, self.token_down_proj.left(inner), self.eps, self.training)
        fields = self._with_mean(x)
        shape = (*x.shape[:2], -1)
        gate, up = self.gate_proj(fields), self.up_proj(fields)
        inner = gated_norm(gate.reshape(shape), up.reshape(shape), self.eps).reshape(gate.shape)
        return x, self.down_proj(inner).reshape(x.shape)

    def _with_mean(self, x: mx.array) -> mx.array:
        """Add mix(mean over the fields) to each field; gives (B, T, n, C).

        It is all that a field knows of the others, and the same in whatever order they come.
        """
        fields = x.reshape(*x.shape[:2], -1, self.size)
        # pylint: disable-next=unidiomatic-typecheck
        if fused.in_use() and type(self.mix_proj) is CastedLinear:
            # The mean and mix are one matrix, (D, D): on a GPU a product with nothing to reduce or
            # to broadcast takes less time than the mean alone.
            count = fields.shape[2]
            matrix = mx.tile(self.mix_proj.weight.T * (1 / count), (count, count))
            return mx.addmm(x, x, matrix.astype(x.dtype)).reshape(fields.shape)
        mean = mx.mean(fields.astype(mx.float32), axis=2, keepdims=True)
        return fields + self.mix_proj(mean.astype(x.dtype))


@register_model("trm_symbols", TRMSymbolsConfig)
class TRMSymbols(SymmetricTRM):
    """A Tiny Recursive Model with a field for each symbol."""

    def __init__(self, config: TRMSymbolsConfig, spec: TaskSpec, seed: int = 0) -> None:
        """Create the model with weights decided by ``seed``.

        Args:
            config: sizes and schedule.
            spec: the task's vocabulary and sequence length.
            seed: of the initial weights.

        Raises:
            ConfigError: if the vocabulary has not so many symbols, or a row's latent is too large.
        """
        config = fill_symbols(config, spec)
        super().__init__(config, spec, config.register_tokens)
        keys, size = KeySequence(seed), config.symbol_size
        check_latent(self.positions + spec.seq_len, config.hidden_size)
        self.others = spec.vocab_size - config.hidden_size // size
        std = size**-0.5
        # A row for each token that is no symbol, one for "given as this symbol", and one for
        # "given as another".
        self.embed_kinds = CastedEmbedding(self.others + 2, size, std, keys)
        self.registers = trunc_normal((config.register_tokens, size), std, keys.next())
        self.L_level = ReasoningModule(
            [
                SymbolBlock(config, self.positions + spec.seq_len, keys)
                for _ in range(config.L_layers)
            ]
        )
        self.symbol_head = CastedLinear(size, 1, bias=True, keys=keys)
        self.other_head = CastedLinear(size, self.others, bias=True, keys=keys)
        self.q_head = make_q_head(size, 1, keys)
        draw_states(self, size, keys)

    def row_bytes(self, training: bool) -> int:
        """Estimate the bytes of a row. See the base class."""
        config, length = self.config, self.positions + self.spec.seq_len
        state = length * config.hidden_size
        inner = config.hidden_size * config.token_inner
        inner += length * config.inner * (config.hidden_size // config.symbol_size)
        if not training:
            return int((10 * state + 4 * inner) * self.dtype.size)
        # Kept by a block: its sums, norms and what they need in float32, gate, up and their gate.
        kept = 14 * state + 4 * inner
        element = 4.0 if self.dtype == mx.float32 else 3.0
        return int((kept * self.differentiated_blocks + 4 * inner) * element)

    def initial_state(self, name: str) -> mx.array:
        """Give the state, (D,), that a latent starts from: one vector, the same in each field."""
        return self._in_all_fields(self[name])

    def embed(self, inputs: mx.array) -> mx.array:
        """Tell each field of each cell what is there; gives x, (B, T, D) in ``forward_dtype``.

        Args:
            inputs: (B, S) int32.
        """
        count, cells = inputs.shape
        tokens = inputs[..., None]
        own = mx.arange(self.others, self.spec.vocab_size, dtype=inputs.dtype)
        given = mx.where(tokens == own, self.others, self.others + 1)
        kinds = mx.where(tokens < self.others, tokens, given)  # (B, S, n)
        told = self.embed_kinds(kinds, self.dtype).reshape(count, cells, -1)
        registers = self._in_all_fields(self.registers).astype(self.dtype)
        registers = mx.broadcast_to(registers, (count, *registers.shape))
        x = mx.concatenate([registers, told], axis=1)
        return scaled(x, self.config.symbol_size**0.5)

    def read_outputs(self, state: mx.array) -> Outputs:
        """Read logits and Q from the state that holds the answer, (B, T, D).

        A symbol's logit is read from its field, those of the other tokens and Q from the mean over
        the fields. There is no q_continue: it is 0, which a row that halts has q_halt above.
        """
        fields = state.reshape(*state.shape[:2], -1, self.config.symbol_size)
        mean = mx.mean(fields.astype(mx.float32), axis=2)
        of_symbols = self.symbol_head(fields[:, self.positions :])[..., 0]
        of_others = self.other_head(mean[:, self.positions :].astype(state.dtype))
        q = self.q_head(mean[:, 0])[:, 0]
        return Outputs(mx.concatenate([of_others, of_symbols], axis=-1), q, mx.zeros_like(q))

    def _in_all_fields(self, vector: mx.array) -> mx.array:
        """Repeat (..., C) to (..., D)."""
        return mx.concatenate([vector] * (self.config.hidden_size // vector.shape[-1]), axis=-1)


def fill_symbols(config: TRMSymbolsConfig, spec: TaskSpec) -> TRMSymbolsConfig:
    """Copy a configuration, its ``symbols`` a number where it was left open.

    Raises:
        ConfigError: if the vocabulary has not so many symbols, and another token besides.
    """
    found = spec.vocab_size - 2 if config.symbols is None else config.symbols
    if not 0 < found < spec.vocab_size:
        raise ConfigError(
            f"model.symbols: must be from 1 to {spec.vocab_size - 1}, the task's "
            f"{spec.vocab_size} tokens without padding, not {found}"
        )
    return dataclasses.replace(config, symbols=found)
