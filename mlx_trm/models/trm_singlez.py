"""The ablation with a single state: the answer and the latent are one, ``z_L``.

Each of the H_cycles updates z_L L_cycles times from z_L + x, then once from z_L alone, all with the
same module ``L_level``; only the last H cycle is differentiated. The answer is read from z_L.

Reference: models/recursive_reasoning/trm_singlez.py.
"""

from dataclasses import dataclass, field
from typing import List, Optional, Tuple

import mlx.core as mx

from mlx_trm.models.base import register_model
from mlx_trm.models.carry import Carry, Outputs
from mlx_trm.models.network import no_random_start
from mlx_trm.models.trm import TRM, TRMConfig
from mlx_trm.nn import fused


@dataclass
class TRMSingleZConfig(TRMConfig):
    """Size and schedule; the same settings as TRM's."""

    name: str = "trm_singlez"
    H_cycles: int = field(default=3, metadata={"min": 1})
    """Updates of the state without the input in one step; only the last cycle has a gradient."""
    L_cycles: int = field(default=6, metadata={"min": 1})
    """Updates of the state with the input before each of them."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        return super().problems() + no_random_start(self)


@register_model("trm_singlez", TRMSingleZConfig)
class TRMSingleZ(TRM):
    """TRM with one state. It has TRM's weights, and of the initial states ``L_init`` alone."""

    initial_names = ("L_init",)

    def reason(
        self, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Tuple[mx.array, ...], Outputs]:
        """Run H_cycles cycles of the recursion, the last with a gradient. See the base class."""
        x = self.embed(carry.current.inputs, rows)
        (z_L,) = carry.latents
        cycles, updates = self.cycles
        move = self.move()
        for cycle in range(cycles):
            last = cycle == cycles - 1
            if last:
                z_L = mx.stop_gradient(z_L)
            with fused.expect_gradient(last):
                for _ in range(updates):
                    z_L = move(z_L, self.L_level(z_L, x, self._cos_sin))
                z_L = move(z_L, self.L_level(z_L, None, self._cos_sin))
        return (mx.stop_gradient(z_L),), self.read_outputs(z_L)
