"""Muon: the blocks' matrices move by nearly orthogonal updates, all other weights by AdamW.

From its published description (K. Jordan and others, "Muon: An optimizer for hidden layers", 2024).
MLX has a Muon too; there the decay goes into the gradient, and the momentum is no mean.
"""

from typing import AbstractSet, Any, Dict, Sequence

import mlx.core as mx
from mlx.optimizers import AdamW

from mlx_trm.models.base import Tree, named_arrays
from mlx_trm.system.device import on_gpu

# Of the iteration x <- a x + (b A + c A A) x with A = x x^T, which moves singular values towards 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: mx.array, steps: int) -> mx.array:
    """Move a matrix's singular values towards 1 by Newton-Schulz steps.

    Args:
        matrix: (out, in), float32.
        steps: of the iteration; three bring most singular values near 1, five nearly all.

    Returns:
        (out, in) float32; on a GPU the products are of bfloat16, which is all this needs.
    """
    # Divided in float32: the squares of a small gradient vanish in bfloat16.
    x = matrix / mx.maximum(mx.sqrt(mx.sum(mx.square(matrix))), 1e-20)
    x = x.astype(mx.bfloat16) if on_gpu() else x
    tall = x.shape[0] > x.shape[1]  # the smaller of the two squares is the cheaper one
    x = x.T if tall else x
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.T if tall else x).astype(mx.float32)


class Muon(AdamW):
    """Muon for the matrices that it is given, AdamW for all other weights.

    A matrix p of shape (out, in), with gradient g, rate and decay of its own:

        m <- momentum * m + (1 - momentum) * g
        u  = momentum * m + (1 - momentum) * g
        p <- p * (1 - rate * decay) - rate * sqrt(max(1, out / in)) * orthogonalize(u)

    Attributes:
        matrices: names of the weights that Muon moves.
        other_rates: the matrices' rate before the schedule, under its name in the state.
    """

    def __init__(
        self,
        matrices: AbstractSet[str],
        rate: float = 0.02,
        momentum: float = 0.6,
        steps: int = 3,
        decay: float = 0.05,
        betas: Sequence[float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        """Create the optimiser; AdamW's rate is set as that of every optimiser.

        Args:
            matrices: dotted names of the weights that Muon moves.
            rate: of the matrices, before the schedule.
            momentum: decay of the matrices' mean gradient.
            steps: of Newton-Schulz.
            decay: of the matrices, multiplied by their rate.
            betas: decay rates of AdamW's two moments.
            weight_decay: of AdamW, multiplied by its rate.
        """
        super().__init__(0.0, list(betas), weight_decay=weight_decay, bias_correction=True)
        self.matrices = frozenset(matrices)
        self.momentum = momentum
        self.steps = steps
        self.decay = decay
        self.other_rates = {"matrix_rate": rate}
        self.state["matrix_rate"] = mx.array(rate)

    def init(self, parameters: Tree) -> None:
        """Start all moments at zero; a matrix has no second one."""
        super().init(parameters)
        for name, _ in named_arrays(parameters):
            if name in self.matrices:
                state: Any = self.state
                for part in name.split("."):
                    state = state[int(part) if isinstance(state, list) else part]
                state.pop("v", None)

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: Dict[str, mx.array]
    ) -> mx.array:
        """Update one parameter and its moments; all arrays have the parameter's shape."""
        if "v" in state:
            moved: mx.array = super().apply_single(gradient, parameter, state)
            return moved
        momentum, rate = self.momentum, self.state["matrix_rate"]
        state["m"] = momentum * state["m"] + (1.0 - momentum) * gradient
        update = momentum * state["m"] + (1.0 - momentum) * gradient
        out, size = parameter.shape
        step = rate * max(1.0, out / size) ** 0.5 * orthogonalize(update, self.steps)
        return parameter * (1.0 - rate * self.decay) - step
