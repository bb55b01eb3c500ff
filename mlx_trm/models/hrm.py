"""The Hierarchical Reasoning Model, TRM's predecessor: two modules, one for each state.

``L_level`` updates the low state z_L from (z_L, z_H + x) L_cycles times, then ``H_level`` updates
the high state z_H, which holds the answer, from (z_H, z_L); that H_cycles times. Only the very last
update of each is differentiated. Halting is Q-learning: a row ends where q_halt > q_continue, and
q_continue learns the better Q value that a second forward pass finds one step on.

Reference: models/recursive_reasoning/hrm.py; "Hierarchical Reasoning Model" (arXiv 2506.21734).
"""

from dataclasses import dataclass, field
from typing import Optional, Tuple

import mlx.core as mx

from mlx_trm.config.sections import TaskSpec
from mlx_trm.models.base import register_model
from mlx_trm.models.carry import Carry, Outputs
from mlx_trm.models.network import Network, NetworkConfig
from mlx_trm.nn import fused
from mlx_trm.nn.init import KeySequence


@dataclass
class HRMConfig(NetworkConfig):
    """Size and schedule of a Hierarchical Reasoning Model; the defaults are the reference's."""

    name: str = "hrm"
    H_layers: int = field(default=4, metadata={"min": 1})
    """Blocks in the module H_level."""
    L_layers: int = field(default=4, metadata={"min": 1})
    """Blocks in the module L_level."""
    H_cycles: int = field(default=2, metadata={"min": 1})
    """Updates of the high state z_H in one supervision step; only the last has a gradient."""
    L_cycles: int = field(default=2, metadata={"min": 1})
    """Updates of the low state z_L before each update of z_H; only the last has a gradient."""
    mlp_t: bool = False
    """Mix positions with an MLP over positions instead of attention."""

    @property
    def attends(self) -> bool:
        """Whether attention mixes the positions, and not an MLP."""
        return not self.mlp_t


@register_model("hrm", HRMConfig)
class HRM(Network):
    """A Hierarchical Reasoning Model. Parameter names are the reference's without ``inner.``."""

    initial_names = ("H_init", "L_init")
    compares_continue = True
    has_continue_target = True

    def __init__(self, config: HRMConfig, spec: TaskSpec, seed: int = 0) -> None:
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
        self.L_level = self.level(config.L_layers, keys)
        self.draw_initial_states(keys)

    @property
    def differentiated_blocks(self) -> int:
        """The last update of each state."""
        return int(self.config.H_layers + self.config.L_layers)

    def reason(
        self, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Tuple[mx.array, ...], Outputs]:
        """Run all cycles, the last update of each state with a gradient. See the base class."""
        x = self.embed(carry.current.inputs, rows)
        z_H, z_L = carry.latents
        cycles, updates = self.cycles
        for cycle in range(cycles):
            for update in range(updates):
                last = cycle == cycles - 1 and update == updates - 1
                if last:
                    z_H, z_L = mx.stop_gradient(z_H), mx.stop_gradient(z_L)
                with fused.expect_gradient(last):
                    z_L = self.L_level(z_L, z_H + x, self._cos_sin)
            with fused.expect_gradient(cycle == cycles - 1):
                z_H = self.H_level(z_H, z_L, self._cos_sin)
        return (mx.stop_gradient(z_H), mx.stop_gradient(z_L)), self.read_outputs(z_H)
