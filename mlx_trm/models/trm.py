"""The Tiny Recursive Model: one small network that improves a latent and an answer in turn.

The paper's answer *y* is ``z_H`` and its latent *z* is ``z_L``. Each of the H_cycles updates z_L
L_cycles times from (z_L, z_H + x) and then z_H once from (z_H, z_L), all with the same module
``L_level``; only the last H cycle is differentiated.

Reference: models/recursive_reasoning/trm.py.
"""

from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, List, Optional, Set, Tuple

import mlx.core as mx

from mlx_trm.config.sections import ModelConfig, TaskSpec
from mlx_trm.models.base import RecursiveModel, named_arrays, register_model
from mlx_trm.models.carry import Carry, Outputs, draw_normal, noise_keys, split_keys
from mlx_trm.models.network import Network, NetworkConfig, alternate, find_too_many_blocks
from mlx_trm.nn.init import KeySequence

# How a latent moves from its old value to what the network gives.
Move = Callable[[mx.array, mx.array], mx.array]


@dataclass
class TRMConfig(NetworkConfig):
    """Size and schedule of a Tiny Recursive Model; the defaults are the paper's."""

    name: str = "trm"
    L_layers: int = field(default=2, metadata={"min": 1})
    """Blocks in the module L_level."""
    H_cycles: int = field(default=3, metadata={"min": 1})
    """Updates of the answer z_H in one supervision step; only the last has a gradient."""
    L_cycles: int = field(default=6, metadata={"min": 1})
    """Updates of the latent z_L before each update of z_H."""
    mlp_t: bool = False
    """Mix positions with an MLP over positions instead of attention."""
    puzzle_emb_len: int = field(default=16, metadata={"min": 0})
    """P, positions given to the puzzle vector; 0 for as many as it fills."""
    no_ACT_continue: bool = True
    """Halt on q_halt > 0 alone; false trains q_continue too (one more forward pass a step)."""
    damping: float = field(default=0.0, metadata={"min": 0, "below": 1})
    """Share of a latent that an update leaves as it was (EqR)."""
    noise: float = field(default=0.0, metadata={"min": 0})
    """Deviation of the noise that training adds to each update of a latent (EqR)."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = super().problems()
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
    def attends(self) -> bool:
        """Whether attention mixes the positions, and not an MLP."""
        return not self.mlp_t

    @property
    def positions(self) -> int:
        """P, positions before the sequence."""
        return self.puzzle_emb_len or super().positions


@dataclass
class SymmetricTRMConfig(ModelConfig):
    """What TRMs with a symmetry built in have set alike: the schedule, and no puzzle table."""

    L_layers: int = field(default=2, metadata={"min": 1})
    """Blocks in the module L_level."""
    H_cycles: int = field(default=3, metadata={"min": 1})
    """Updates of the answer z_H in one supervision step; only the last has a gradient."""
    L_cycles: int = field(default=6, metadata={"min": 1})
    """Updates of the latent z_L before each update of z_H."""
    start: str = field(default="fixed", metadata={"choices": ("fixed", "random")})
    """What training starts z_L from: fixed, or random each time."""
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

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        return find_too_many_blocks(self)

    @property
    def puzzle_emb_ndim(self) -> int:
        """Numbers in a puzzle's vector: there is no puzzle table."""
        return 0


class SymmetricTRM(RecursiveModel):  # pylint: disable=abstract-method
    """The recursion of TRM around a network with a symmetry built in, which a subclass makes.

    A subclass has ``L_level``, :meth:`embed` and :meth:`read_outputs`.
    """

    initial_names: Tuple[str, ...] = ("H_init", "L_init")
    compares_continue = False
    has_continue_target = False

    @property
    def differentiated_blocks(self) -> int:
        """The last H cycle: every update of z_L, and one of z_H."""
        return int(self.config.L_layers * (self.cycles[1] + 1))

    def block_matrices(self) -> Set[str]:
        """Name the matrices of all blocks. See the base class."""
        return {f"L_level.{name}" for name, _ in named_arrays(self.L_level.trainable_parameters())}

    def embed(self, inputs: mx.array) -> mx.array:
        """Embed (B, S) int32 tokens; gives x, (B, T, D) in ``forward_dtype``."""
        raise NotImplementedError(f"{type(self).__name__} must implement embed(inputs)")

    def read_outputs(self, state: mx.array) -> Outputs:
        """Read logits and Q from the state that holds the answer, (B, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} must implement read_outputs(state)")

    def reason(
        self, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Tuple[mx.array, ...], Outputs]:
        """Run H_cycles cycles of the recursion, the last with a gradient. See the base class."""
        del rows
        x = self.embed(carry.current.inputs)

        def update(
            _: mx.array, entering: mx.array, following: Optional[mx.array], keep_state: bool
        ) -> Tuple[Any, Any]:
            return self.L_level.add_after(entering, None, following, keep_state)

        z_H, z_L = alternate(carry.latents, x, self.cycles, update)
        return (mx.stop_gradient(z_H), mx.stop_gradient(z_L)), self.read_outputs(z_H)


@register_model("trm", TRMConfig)
class TRM(Network):
    """A Tiny Recursive Model. Parameter names are the reference's without its ``inner.`` prefix."""

    initial_names: Tuple[str, ...] = ("H_init", "L_init")

    def __init__(self, config: TRMConfig, spec: TaskSpec, seed: int = 0) -> None:
        """Create the model with weights decided by ``seed``.

        Args:
            config: sizes and schedule.
            spec: the task's vocabulary, sequence length and number of puzzle identifiers.
            seed: of the initial weights.

        Raises:
            ValueError: if the configuration's settings do not fit together.
        """
        keys = KeySequence(seed)
        super().__init__(config, spec, keys)
        self.L_level = self.level(config.L_layers, keys)
        self.draw_initial_states(keys)

    @property
    def differentiated_blocks(self) -> int:
        """The last H cycle: every update of z_L, and one of z_H."""
        return int(self.config.L_layers * (self.cycles[1] + 1))

    def replaces(self) -> bool:
        """Whether a latent becomes what the network gives: :meth:`move` is not called then."""
        return not (self.config.damping or (self.config.noise and self.training))

    def move(self) -> Move:
        """Give the function by which each update of a step moves a latent, in order.

        Raises:
            ValueError: if there shall be noise and nobody has given keys.
        """
        if self.replaces():
            return lambda old, new: new
        damping, noise = self.config.damping, self.config.noise if self.training else 0.0
        draws: Iterator[mx.array] = iter(())
        if noise:
            keys = noise_keys()
            if keys is None:
                raise ValueError("model.noise: a training step needs keys; see with_noise")
            cycles, updates = self.cycles
            # Of the keys that a row has for its latents' starts, the answer's, which draws nothing.
            spare = split_keys(keys, len(self.initial_names))[0]
            draws = iter(split_keys(spare, cycles * (updates + 1)))

        def move(old: mx.array, new: mx.array) -> mx.array:
            wide = damping * old.astype(mx.float32) + (1.0 - damping) * new.astype(mx.float32)
            if noise:
                wide = wide + noise * draw_normal(next(draws), new.shape[1:], mx.float32)
            return wide.astype(new.dtype)

        return move

    def reason(
        self, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Tuple[mx.array, ...], Outputs]:
        """Run H_cycles cycles of the recursion, the last with a gradient. See the base class."""
        x = self.embed(carry.current.inputs, rows)
        move, replaced = self.move(), self.replaces()

        def update(
            old: mx.array, entering: mx.array, following: Optional[mx.array], keep_state: bool
        ) -> Tuple[Any, Any]:
            if replaced:
                return self.L_level.add_after(entering, self._cos_sin, following, keep_state)
            new = move(old, self.L_level(entering, None, self._cos_sin))
            return None if following is None else new + following, new

        z_H, z_L = alternate(carry.latents, x, self.cycles, update)
        return (mx.stop_gradient(z_H), mx.stop_gradient(z_L)), self.read_outputs(z_H)
