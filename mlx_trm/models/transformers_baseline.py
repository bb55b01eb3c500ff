"""The baseline without recursion: one pass of a plain transformer each supervision step.

The state z_H is updated once from z_H + x by the blocks of ``H_level``; the steps of deep
supervision are all the recursion there is. A row halts as with HRM, where q_halt > q_continue.

Reference: models/recursive_reasoning/transformers_baseline.py.
"""

from dataclasses import dataclass, field
from typing import List, Optional, Tuple

import mlx.core as mx

from mlx_trm.config.sections import TaskSpec
from mlx_trm.models.base import register_model
from mlx_trm.models.carry import Carry, Outputs
from mlx_trm.models.network import Network, NetworkConfig, no_random_start
from mlx_trm.nn.init import KeySequence


@dataclass
class TransformersBaselineConfig(NetworkConfig):
    """Size of the baseline; the defaults are the reference's but for the heads.

    Differs from reference: 8 heads by default, where its configuration has 12, which do not divide
    its hidden size of 512.
    """

    name: str = "transformers_baseline"
    H_layers: int = field(default=8, metadata={"min": 1})
    """Blocks in the module H_level."""
    pos_encodings: str = field(default="rope", metadata={"choices": ("rope", "learned")})
    """How positions are told apart: rotary, or a learned table."""
    act_enabled: bool = True
    """Let rows halt early in training; false runs all of halt_max_steps."""
    act_inference: bool = False
    """Let rows halt early in evaluation too; what a row said when it halted is its answer."""
    compute_target_q: bool = False
    """Train q_continue as HRM does (one more forward pass a step); false leaves it untrained."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        return super().problems() + no_random_start(self)


@register_model("transformers_baseline", TransformersBaselineConfig)
class TransformersBaseline(Network):
    """A transformer under deep supervision. Parameter names are the reference's."""

    initial_names = ("H_init",)
    compares_continue = True

    def __init__(self, config: TransformersBaselineConfig, spec: TaskSpec, seed: int = 0) -> None:
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
        self.H_level = self.level(config.H_layers, keys)
        self.draw_initial_states(keys)

    @property
    def halts_early(self) -> bool:
        """Whether a row may halt before halt_max_steps: a setting for each mode."""
        return bool(self.config.act_enabled if self.training else self.config.act_inference)

    @property
    def has_continue_target(self) -> bool:
        """Whether training adds the continue target."""
        # Differs from reference: compute_target_q is a setting; there it is an argument that
        # training never gives, so that q_continue has no loss.
        return bool(self.config.compute_target_q and self.config.act_enabled)

    @property
    def differentiated_blocks(self) -> int:
        """Every block, once a step."""
        return int(self.config.H_layers)

    def reason(
        self, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Tuple[mx.array, ...], Outputs]:
        """Run the blocks once. See the base class."""
        x = self.embed(carry.current.inputs, rows)
        (before,) = carry.latents
        z_H = self.H_level(before, x, self._cos_sin)
        if self.config.act_inference and not self.training:
            z_H = mx.where(self._finished(before)[:, None, None], before, z_H)
        return (mx.stop_gradient(z_H),), self.read_outputs(z_H)

    def _finished(self, state: mx.array) -> mx.array:
        """Tell which rows halted by their own Q values in the step before, (B,) bool.

        Differs from reference: with act_inference a row that has halted keeps its state and so its
        answer. There it starts again from H_init, and an evaluation lasts until all rows of a batch
        happen to halt in the same step.
        """
        said = self.read_outputs(state)
        fresh = mx.all(state[:, 0] == self.H_init.astype(state.dtype), axis=-1)
        return (said.q_halt > said.q_continue) & ~fresh
