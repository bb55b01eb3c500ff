"""The ablation with six latents instead of one: ``z_L1`` to ``z_L6`` beside the answer ``z_H``.

The i-th of the L_cycles sets z_Li from the sum of all six and z_H + x; then z_H is updated from
z_H and the sum, all with the same module ``L_level``. Only the last H cycle is differentiated.

Reference: models/recursive_reasoning/trm_hier6.py.
"""

from dataclasses import dataclass, field
from typing import List, Optional, Tuple

import mlx.core as mx

from mlx_trm.models.base import register_model
from mlx_trm.models.carry import Carry, Outputs
from mlx_trm.models.trm import TRM, TRMConfig
from mlx_trm.nn import fused

LATENTS = 6


@dataclass
class TRMHier6Config(TRMConfig):
    """Size and schedule; the same settings as TRM's."""

    name: str = "trm_hier6"
    L_cycles: int = field(default=LATENTS, metadata={"min": 1})
    """Updates of latents before each update of z_H; 6, one for each latent."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = super().problems()
        if self.L_cycles != LATENTS:
            # Differs from reference: with fewer cycles it leaves latents as they began, with more
            # it fails on an index.
            found.append(f"L_cycles: must be 6, one for each latent, not {self.L_cycles}")
        return found


@register_model("trm_hier6", TRMHier6Config)
class TRMHier6(TRM):
    """TRM with six latents. It has TRM's weights, and seven initial states."""

    initial_names = ("H_init", *(f"L{number}_init" for number in range(1, LATENTS + 1)))

    def reason(
        self, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Tuple[mx.array, ...], Outputs]:
        """Run H_cycles cycles of the recursion, the last with a gradient. See the base class."""
        x = self.embed(carry.current.inputs, rows)
        z_H, *z_L = carry.latents
        cycles, _ = self.cycles
        move = self.move()
        for cycle in range(cycles):
            last = cycle == cycles - 1
            if last:
                z_H, z_L = mx.stop_gradient(z_H), [mx.stop_gradient(z) for z in z_L]
            with fused.expect_gradient(last):
                for i in range(LATENTS):
                    new = self.L_level(add_in_order(z_L), z_H + x, self._cos_sin)
                    z_L[i] = move(z_L[i], new)
                z_H = move(z_H, self.L_level(z_H, add_in_order(z_L), self._cos_sin))
        return tuple(mx.stop_gradient(z) for z in (z_H, *z_L)), self.read_outputs(z_H)


def add_in_order(latents: List[mx.array]) -> mx.array:
    """Add arrays of one shape from the first to the last, rounding after each."""
    return sum(latents[1:], latents[0])
