"""The Tiny Recursive Model: one small network that improves a latent and an answer in turn.

The paper's answer *y* is ``z_H`` and its latent *z* is ``z_L``. Each of the H_cycles updates z_L
L_cycles times from (z_L, z_H + x) and then z_H once from (z_H, z_L), all with the same module
``L_level``; only the last H cycle is differentiated.

Reference: models/recursive_reasoning/trm.py.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import List, Optional, Tuple

import mlx.core as mx
from mlx import nn

from mlx_trm.carry import Carry, Outputs
from mlx_trm.config import ModelConfig, TaskSpec
from mlx_trm.layers import (
    Attention,
    CastedEmbedding,
    CastedLinear,
    CosSin,
    KeySequence,
    SwiGLU,
    rms_norm,
    rope_tables,
    trunc_normal,
)
from mlx_trm.models.base import RecursiveModel, embed_inputs, register_model


@dataclass
class TRMConfig(ModelConfig):
    """Size and schedule of a Tiny Recursive Model; the defaults are the paper's."""

    name: str = "trm"
    hidden_size: int = field(default=512, metadata={"min": 1})
    """D, numbers per position."""
    num_heads: int = field(default=8, metadata={"min": 1})
    """Attention heads; must divide hidden_size (unused with mlp_t)."""
    expansion: float = field(default=4.0, metadata={"above": 0})
    """SwiGLU expansion; the inner size is about 2/3 of expansion times the width."""
    swiglu_multiple: int = field(default=256, metadata={"min": 1})
    """SwiGLU inner sizes are rounded up to a multiple of this (fixed at 256 in the reference)."""
    L_layers: int = field(default=2, metadata={"min": 1})
    """Blocks in the module L_level."""
    H_cycles: int = field(default=3, metadata={"min": 1})
    """Updates of the answer z_H in one supervision step; only the last has a gradient."""
    L_cycles: int = field(default=6, metadata={"min": 1})
    """Updates of the latent z_L before each update of z_H."""
    mlp_t: bool = False
    """Mix positions with an MLP over positions instead of attention."""
    pos_encodings: str = field(default="rope", metadata={"choices": ("rope", "learned", "none")})
    """How positions are told apart: rotary, a learned table, or not at all."""
    puzzle_emb_ndim: Optional[int] = field(default=None, metadata={"min": 0})
    """Numbers in a puzzle's learned vector; 0 for none, unset for hidden_size."""
    puzzle_emb_len: int = field(default=16, metadata={"min": 0})
    """P, positions given to the puzzle vector; 0 for as many as it fills."""
    halt_max_steps: int = field(default=16, metadata={"min": 1})
    """Supervision steps a puzzle gets at most (all of them in evaluation)."""
    halt_exploration_prob: float = field(default=0.1, metadata={"min": 0, "max": 1})
    """Probability that training makes a row go on for a random number of steps."""
    no_ACT_continue: bool = True
    """Halt on q_halt > 0 alone; false trains q_continue too (one more forward pass a step)."""
    forward_dtype: str = field(
        default="auto", metadata={"choices": ("auto", "float32", "bfloat16", "float16")}
    )
    """Dtype of activations; auto is bfloat16 on a GPU and float32 on the CPU."""
    rms_norm_eps: float = field(default=1e-5, metadata={"above": 0})
    """Added to the mean square in every RMS norm."""
    rope_theta: float = field(default=10000.0, metadata={"above": 0})
    """Base of the rotary frequencies."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = []
        if not self.mlp_t and self.hidden_size % self.num_heads:
            found.append(
                f"num_heads: {self.num_heads} does not divide hidden_size {self.hidden_size}"
            )
        elif not self.mlp_t and self.pos_encodings == "rope" and self.head_dim % 2:
            found.append(
                f"pos_encodings: rope needs an even head size, and hidden_size {self.hidden_size} "
                f"/ num_heads {self.num_heads} is {self.head_dim}"
            )
        ndim = self.puzzle_ndim
        if ndim == 0 and self.puzzle_emb_len > 0:
            found.append(
                f"puzzle_emb_len: must be 0 where puzzle_emb_ndim is 0, not {self.puzzle_emb_len}"
            )
        elif self.puzzle_emb_len and ndim > self.puzzle_emb_len * self.hidden_size:
            found.append(
                f"puzzle_emb_ndim: {ndim} numbers do not fit puzzle_emb_len {self.puzzle_emb_len} "
                f"positions of hidden_size {self.hidden_size}"
            )
        return found

    @property
    def puzzle_ndim(self) -> int:
        """Numbers in a puzzle's vector, where unset those of hidden_size."""
        return self.hidden_size if self.puzzle_emb_ndim is None else self.puzzle_emb_ndim

    @property
    def head_dim(self) -> int:
        """Numbers per attention head."""
        return self.hidden_size // self.num_heads


class Block(nn.Module):
    """Post-norm block: mix positions, add, normalise; mix features, add, normalise."""

    def __init__(self, config: TRMConfig, length: int, keys: KeySequence) -> None:
        """Create a block for sequences of ``length`` = T positions."""
        super().__init__()
        self.eps = config.rms_norm_eps

        def swiglu(size: int) -> SwiGLU:
            inner = SwiGLU.inner_size(size, config.expansion, config.swiglu_multiple)
            return SwiGLU(size, inner, keys)

        if config.mlp_t:
            self.mlp_t = swiglu(length)
        else:
            self.self_attn = Attention(config.hidden_size, config.num_heads, keys)
        self.mlp = swiglu(config.hidden_size)

    def __call__(self, x: mx.array, cos_sin: Optional[CosSin]) -> mx.array:
        """Map (B, T, D) to (B, T, D)."""
        if "mlp_t" in self:
            x = rms_norm(x + self.mlp_t.left(x), self.eps, axis=-2)
        else:
            x = rms_norm(x + self.self_attn(x, cos_sin), self.eps)
        return rms_norm(x + self.mlp(x), self.eps)


class ReasoningModule(nn.Module):
    """Add the injection to the state, then run the blocks."""

    def __init__(self, blocks: List[Block]) -> None:
        """Keep the blocks under the reference's name."""
        super().__init__()
        self.layers = blocks

    def __call__(self, state: mx.array, injection: mx.array, cos_sin: Optional[CosSin]) -> mx.array:
        """Map two (B, T, D) to (B, T, D)."""
        state = state + injection
        for layer in self.layers:
            state = layer(state, cos_sin)
        return state


@register_model("trm", TRMConfig)
class TRM(RecursiveModel):
    """A Tiny Recursive Model. Parameter names are the reference's without its ``inner.`` prefix."""

    initial_names = ("H_init", "L_init")

    def __init__(self, config: TRMConfig, spec: TaskSpec, seed: int = 0) -> None:
        """Create the model with weights decided by ``seed``.

        Args:
            config: sizes and schedule.
            spec: the task's vocabulary, sequence length and number of puzzle identifiers.
            seed: of the initial weights.

        Raises:
            ValueError: if the configuration's settings do not fit together.
        """
        problems = config.problems()
        if problems:
            raise ValueError("; ".join(problems))
        config = dataclasses.replace(config, puzzle_emb_ndim=config.puzzle_ndim)
        positions = config.puzzle_emb_len or -(-config.puzzle_ndim // config.hidden_size)
        super().__init__(config, spec, positions)
        keys = KeySequence(seed)
        size, length = config.hidden_size, positions + spec.seq_len
        std = 1.0 / math.sqrt(size)
        self.embed_tokens = CastedEmbedding(spec.vocab_size, size, std, keys)
        self.lm_head = CastedLinear(size, spec.vocab_size, bias=False, keys=keys)
        # The Q head starts by saying "not finished" everywhere: weight 0, bias -5.
        self.q_head = CastedLinear(size, 2, bias=True, keys=keys)
        self.q_head.weight = mx.zeros_like(self.q_head.weight)
        self.q_head.bias = mx.full((2,), -5.0, dtype=mx.float32)
        self._cos_sin: Optional[CosSin] = None
        if config.pos_encodings == "rope" and not config.mlp_t:
            self._cos_sin = rope_tables(config.head_dim, length, config.rope_theta)
        elif config.pos_encodings == "learned":
            self.embed_pos = CastedEmbedding(length, size, std, keys)
        self.L_level = ReasoningModule(
            [Block(config, length, keys) for _ in range(config.L_layers)]
        )
        self.H_init = trunc_normal((size,), 1.0, keys.next())
        self.L_init = trunc_normal((size,), 1.0, keys.next())
        self.freeze(recurse=False, keys=["H_init", "L_init"])

    def reason(
        self, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Tuple[mx.array, ...], Outputs]:
        """Run H_cycles cycles of the recursion, the last with a gradient. See the base class."""
        x = self._input_embeddings(carry.current.inputs, rows)
        z_H, z_L = carry.latents
        for cycle in range(self.config.H_cycles):
            if cycle == self.config.H_cycles - 1:
                z_H, z_L = mx.stop_gradient(z_H), mx.stop_gradient(z_L)
            for _ in range(self.config.L_cycles):
                z_L = self.L_level(z_L, z_H + x, self._cos_sin)
            z_H = self.L_level(z_H, z_L, self._cos_sin)
        logits = self.lm_head(z_H[:, self.positions :])
        q = self.q_head(z_H[:, 0]).astype(mx.float32)
        latents = (mx.stop_gradient(z_H), mx.stop_gradient(z_L))
        return latents, Outputs(logits, q[:, 0], q[:, 1])

    def _input_embeddings(self, inputs: mx.array, rows: Optional[mx.array]) -> mx.array:
        table = None
        if self.config.pos_encodings == "learned":
            table = self.embed_pos.embedding_weight.astype(self.dtype)
        tokens = self.embed_tokens(inputs, self.dtype)
        return embed_inputs(tokens, rows, self.positions, table)
