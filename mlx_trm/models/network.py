"""The network that every model of the reference has around its recursion.

Tokens and the puzzle vector are embedded, levels of post-norm blocks refine a state, and two linear
heads read the answer and the Q values from it. A model adds its levels, its initial states and the
order in which they meet: ``reason``.

Reference: models/recursive_reasoning/trm.py, and the same parts repeated in hrm.py, trm_singlez.py,
trm_hier6.py and transformers_baseline.py.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Callable, List, Optional, Sequence, Set, Tuple, TypeVar

import mlx.core as mx

from mlx_trm.config.sections import ModelConfig, TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.models.base import RecursiveModel, embed_inputs, named_arrays
from mlx_trm.models.carry import Outputs
from mlx_trm.nn import fused
from mlx_trm.nn.functional import CosSin, rms_norm, rope_tables
from mlx_trm.nn.init import KeySequence, trunc_normal
from mlx_trm.nn.layers import Attention, CastedEmbedding, CastedLinear, SwiGLU
from mlx_trm.nn.reasoning import PostNormBlock, ReasoningModule

C = TypeVar("C", bound="NetworkConfig")

# How large a model may be is asked before it is made: a stranger's file says anything. Weights cost
# nothing before they are computed; what costs at once are blocks, each an object of Python, and the
# tables of the rotary positions.
# Of the paper's model 42; as objects and as a step's graph of operations so many take 300 MB.
MOST_BLOCKS = 4_000
# Numbers in a row's latent, (T, D): 128 MB; the largest of the paper has half a million.
MOST_LATENT = 1 << 25


@dataclass
class NetworkConfig(ModelConfig):
    """Settings that all models of the reference share; the defaults are the paper's."""

    hidden_size: int = field(default=512, metadata={"min": 1})
    """D, numbers per position."""
    num_heads: int = field(default=8, metadata={"min": 1})
    """Attention heads; must divide hidden_size (unused with mlp_t)."""
    expansion: float = field(default=4.0, metadata={"above": 0})
    """SwiGLU expansion; the inner size is about 2/3 of expansion times the width."""
    swiglu_multiple: int = field(default=256, metadata={"min": 1})
    """SwiGLU inner sizes are rounded up to a multiple of this (fixed at 256 in the reference)."""
    pos_encodings: str = field(default="rope", metadata={"choices": ("rope", "learned", "none")})
    """How positions are told apart: rotary, a learned table, or not at all."""
    puzzle_emb_ndim: Optional[int] = field(default=None, metadata={"min": 0})
    """Numbers in a puzzle's learned vector; 0 for none, unset for hidden_size."""
    halt_max_steps: int = field(default=16, metadata={"min": 1})
    """Supervision steps a puzzle gets at most (all of them in evaluation)."""
    halt_exploration_prob: float = field(default=0.1, metadata={"min": 0, "max": 1})
    """Probability that training makes a row go on for a random number of steps."""
    forward_dtype: str = field(
        default="auto", metadata={"choices": ("auto", "float32", "bfloat16", "float16")}
    )
    """Dtype of activations; auto is bfloat16 on a GPU and float32 on the CPU."""
    rms_norm_eps: float = field(default=1e-5, metadata={"above": 0})
    """Added to the mean square in every RMS norm."""
    rope_theta: float = field(default=10000.0, metadata={"above": 0})
    """Base of the rotary frequencies."""
    start: str = field(default="fixed", metadata={"choices": ("fixed", "random")})
    """What training starts latents from: fixed, or random each time, but for the answer's."""
    gate_norm: bool = False
    """SwiGLU as sigmoid(gate) * rms_norm(gate * up): stable at large rates, as Muon's."""
    register_tokens: int = field(default=0, metadata={"min": 0})
    """Learned positions before the cells, in place of a puzzle vector (puzzle_emb_ndim 0)."""
    head_bias: bool = False
    """Give the head that reads the answer a bias."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = find_too_many_blocks(self)
        if self.register_tokens and self.puzzle_ndim:
            found.append(
                "register_tokens: are in the place of the puzzle vector; set puzzle_emb_ndim to 0, "
                f"not {self.puzzle_ndim}"
            )
        if not self.attends:
            return found
        if self.hidden_size % self.num_heads:
            found.append(
                f"num_heads: {self.num_heads} does not divide hidden_size {self.hidden_size}"
            )
        elif self.pos_encodings == "rope" and self.head_dim % 2:
            found.append(
                f"pos_encodings: rope needs an even head size, and hidden_size {self.hidden_size} "
                f"/ num_heads {self.num_heads} is {self.head_dim}"
            )
        return found

    @property
    def attends(self) -> bool:
        """Whether attention mixes the positions."""
        return True

    @property
    def puzzle_ndim(self) -> int:
        """Numbers in a puzzle's vector, where unset those of hidden_size."""
        return self.hidden_size if self.puzzle_emb_ndim is None else self.puzzle_emb_ndim

    @property
    def positions(self) -> int:
        """P, positions before the sequence: registers, or as many as the puzzle vector fills."""
        return self.register_tokens or -(-self.puzzle_ndim // self.hidden_size)

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        return self.hidden_size // self.num_heads


class Block(PostNormBlock):
    """Post-norm block: mix positions, add, normalise; mix features, add, normalise."""

    whole_warps = True

    def __init__(self, config: NetworkConfig, length: int, keys: KeySequence) -> None:
        """Create a block for sequences of ``length`` = T positions."""
        super().__init__()
        self.eps = config.rms_norm_eps

        def swiglu(size: int) -> SwiGLU:
            inner = SwiGLU.inner_size(size, config.expansion, config.swiglu_multiple)
            return SwiGLU(size, inner, keys, self.eps if config.gate_norm else None)

        if config.attends:
            self.self_attn = Attention(config.hidden_size, config.num_heads, keys)
        else:
            self.mlp_t = swiglu(length)
        self.mlp = swiglu(config.hidden_size)

    def __call__(self, x: mx.array, cos_sin: Optional[CosSin]) -> mx.array:
        """Map (B, T, D) to (B, T, D)."""
        if fused.in_use() and self.is_plain():
            return self._fused(x, cos_sin)
        if "mlp_t" in self:
            x = rms_norm(x + self.mlp_t.left(x), self.eps, axis=-2)
        else:
            x = rms_norm(x + self.self_attn(x, cos_sin), self.eps)
        return rms_norm(x + self.mlp(x), self.eps)

    def is_plain(self) -> bool:
        """Whether all layers are as they were made: not quantised, with no adapter or bias."""
        mixer = self.mlp_t if "mlp_t" in self else self.self_attn
        layers = [layer for part in (mixer, self.mlp) for layer in part.children().values()]
        # pylint: disable-next=unidiomatic-typecheck
        return all(type(layer) is CastedLinear and "bias" not in layer for layer in layers)

    def keeps_nothing(self) -> bool:
        """Whether the layers are plain, too. See the base class."""
        return super().keeps_nothing() and self.is_plain()

    def before_norm(
        self, x: mx.array, cos_sin: Optional[CosSin] = None
    ) -> Tuple[mx.array, mx.array]:
        """Give what the last norm is of, where no gradient will be asked for."""
        x = self._mix_positions(x, cos_sin, False)
        first, second = self.mlp.gate_up_proj.weight, self.mlp.down_proj.weight
        return x, fused.feature_layer(x, first, second, self.mlp.gate_norm_eps)

    def _fused(self, x: mx.array, cos_sin: Optional[CosSin]) -> mx.array:
        """Compute the block by the functions of :mod:`mlx_trm.nn.fused`, which a GPU is faster at.

        In evaluation mode nothing is kept for a gradient.
        """
        keep = fused.keeps(self.training)
        x = self._mix_positions(x, cos_sin, keep)
        first, second = self.mlp.gate_up_proj.weight, self.mlp.down_proj.weight
        return fused.feature_mlp(x, first, second, self.eps, keep, self.mlp.gate_norm_eps)

    def _mix_positions(self, x: mx.array, cos_sin: Optional[CosSin], keep: bool) -> mx.array:
        if "mlp_t" in self:
            first, second = self.mlp_t.gate_up_proj.weight, self.mlp_t.down_proj.weight
            norm_eps = self.mlp_t.gate_norm_eps
            return fused.position_mlp(x, first, second, self.eps, keep, norm_eps)
        layer = self.self_attn
        first, second = layer.qkv_proj.weight, layer.o_proj.weight
        return fused.attention(x, first, second, layer.heads, cos_sin, self.eps, keep)


# From a latent's value, the sum of it and what is added to it, what is added to its new value (None
# where there is no next sum) and whether that value is used besides: the next sum, the new value.
Update = Callable[[Any, mx.array, Optional[mx.array], bool], Tuple[Any, Any]]


def alternate(
    latents: Sequence[mx.array], x: mx.array, cycles: Tuple[int, int], update: Update
) -> Tuple[mx.array, mx.array]:
    """Improve the latent and the answer in turn, the recursion of TRM.

    Args:
        latents: z_H, the answer, and z_L, each (B, T, D).
        x: the embedded puzzle, (B, T, D).
        cycles: how often z_H is updated, and z_L before each time.
        update: gives the sum that enters the network next, which costs less where the latent's new
            value is made, and that value; its arguments are those of ``Update``.

    Returns:
        The new z_H and z_L; only the last update of z_H and those of z_L before it have a gradient.
    """
    z_H, z_L = latents
    for cycle in range(cycles[0]):
        last = cycle == cycles[0] - 1
        if last:
            z_H, z_L = mx.stop_gradient(z_H), mx.stop_gradient(z_L)
        with fused.expect_gradient(last):
            question = z_H + x
            entering = z_L + (question if cycles[1] else z_H)
            for remaining in reversed(range(cycles[1])):
                following = question if remaining else z_H
                entering, z_L = update(z_L, entering, following, remaining == 0)
            _, z_H = update(z_H, entering, None, True)
    return z_H, z_L


def make_q_head(inputs: int, outputs: int, keys: KeySequence) -> CastedLinear:
    """Make a Q head, which starts by saying "not finished" everywhere: weight 0, bias -5."""
    head = CastedLinear(inputs, outputs, bias=True, keys=keys)
    head.weight = mx.zeros_like(head.weight)
    head.bias = mx.full((outputs,), -5.0, dtype=mx.float32)
    return head


def draw_states(model: RecursiveModel, size: int, keys: KeySequence) -> None:
    """Make the arrays of a model's ``initial_names``, (size,) each, which nothing trains."""
    for name in model.initial_names:
        setattr(model, name, trunc_normal((size,), 1.0, keys.next()))
    model.freeze(recurse=False, keys=list(model.initial_names))


class Network(RecursiveModel):  # pylint: disable=abstract-method
    """Embeddings, blocks and heads of a model. Parameter names are the reference's.

    A subclass's ``__init__`` makes its levels with :meth:`level`, then calls
    :meth:`draw_initial_states`; all draw from one stream of keys, in that order.
    """

    def __init__(self, config: NetworkConfig, spec: TaskSpec, keys: KeySequence) -> None:
        """Create embeddings and heads.

        Args:
            config: sizes and schedule.
            spec: the task's vocabulary, sequence length and number of puzzle identifiers.
            keys: decides the initial weights.

        Raises:
            ValueError: if the configuration's settings do not fit together.
        """
        super().__init__(fill_puzzle_ndim(config), spec, config.positions)
        size, length = config.hidden_size, self.positions + spec.seq_len
        check_latent(length, size)
        std = 1.0 / math.sqrt(size)
        self.embed_tokens = CastedEmbedding(spec.vocab_size, size, std, keys)
        self.lm_head = CastedLinear(size, spec.vocab_size, bias=config.head_bias, keys=keys)
        self.q_head = make_q_head(size, 2, keys)
        self._cos_sin: Optional[CosSin] = None
        if config.pos_encodings == "rope" and config.attends:
            self._cos_sin = rope_tables(config.head_dim, length, config.rope_theta)
        elif config.pos_encodings == "learned":
            self.embed_pos = CastedEmbedding(length, size, std, keys)
        if config.register_tokens:
            self.registers = trunc_normal((config.register_tokens, size), std, keys.next())

    def level(self, layers: int, keys: KeySequence) -> ReasoningModule:
        """Make a module of so many blocks."""
        length = self.positions + self.spec.seq_len
        return ReasoningModule([Block(self.config, length, keys) for _ in range(layers)])

    def draw_initial_states(self, keys: KeySequence) -> None:
        """Make the arrays of ``initial_names``."""
        draw_states(self, self.config.hidden_size, keys)

    def block_matrices(self) -> Set[str]:
        """Name the matrices of all blocks. See the base class."""
        return {
            f"{level}.{name}"
            for level, module in self.children().items()
            if isinstance(module, ReasoningModule)
            for name, array in named_arrays(module.trainable_parameters())
            if array.ndim == 2
        }

    def embed(self, inputs: mx.array, rows: Optional[mx.array]) -> mx.array:
        """Embed (B, S) tokens after their puzzle vectors, or after registers.

        Args:
            inputs: (B, S) int32.
            rows: (B, puzzle_emb_ndim) float32, or None.

        Returns:
            x, (B, T, D) in ``forward_dtype``.
        """
        table = None
        if self.config.pos_encodings == "learned":
            table = self.embed_pos.embedding_weight.astype(self.dtype)
        tokens = self.embed_tokens(inputs, self.dtype)
        if "registers" in self:
            registers = self.registers.astype(self.dtype)
            registers = mx.broadcast_to(registers, (inputs.shape[0], *registers.shape))
            tokens = mx.concatenate([registers, tokens], axis=1)
        return embed_inputs(tokens, rows, self.positions, table)

    def read_outputs(self, state: mx.array) -> Outputs:
        """Read logits and Q values from the state that holds the answer, (B, T, D)."""
        logits = self.lm_head(state[:, self.positions :])
        q = self.q_head(state[:, 0]).astype(mx.float32)
        return Outputs(logits, q[:, 0], q[:, 1])


def no_random_start(config: NetworkConfig) -> List[str]:
    """Find a random start of a model whose only latent is the answer."""
    if config.start == "random":
        return ["start: must be fixed; random is for latents beside the answer, and it has none"]
    return []


def fill_puzzle_ndim(config: C) -> C:
    """Copy a configuration, its ``puzzle_emb_ndim`` a number where it was left open.

    Raises:
        ValueError: if its settings do not fit together.
    """
    problems = config.problems()
    if problems:
        raise ValueError("; ".join(problems))
    return dataclasses.replace(config, puzzle_emb_ndim=config.puzzle_ndim)


def find_too_many_blocks(config: Any) -> List[str]:
    """Find layers and cycles that no machine would get through.

    Args:
        config: a model section; ``L_layers``, ``H_layers``, ``H_cycles``, ``L_cycles`` are read
            where it has them.

    Returns:
        A line, or nothing.
    """
    names = ("L_layers", "H_layers", "H_cycles", "L_cycles")
    given = {name: int(getattr(config, name)) for name in names if hasattr(config, name)}
    layers = given.get("L_layers", 0) + given.get("H_layers", 0)
    blocks = layers * given.get("H_cycles", 1) * (given.get("L_cycles", 0) + 1)
    if blocks <= MOST_BLOCKS:
        return []
    largest = max(given, key=given.__getitem__)
    return [
        f"{largest}: with {given[largest]} a step has {blocks:,} blocks, at most {MOST_BLOCKS:,} "
        "make sense; lower it"
    ]


def check_latent(length: int, size: int) -> None:
    """Refuse a latent that a single row cannot have.

    Args:
        length: T, positions.
        size: D, numbers of each.

    Raises:
        ConfigError: saying how large it would be.
    """
    if length * size > MOST_LATENT:
        raise ConfigError(
            f"model: latents of {length:,} positions with {size:,} numbers are too large (at most "
            f"{MOST_LATENT:,} numbers a row); lower hidden_size, or positions and puzzles"
        )
