"""Blocks one after the other, which a state goes through once for each of its updates.

Shape letters: B batch, T positions, D hidden.

Reference: the ReasoningModule of models/recursive_reasoning/trm.py and hrm.py.
"""

from typing import Optional, Sequence, Tuple

import mlx.core as mx
from mlx import nn

from mlx_trm.nn import fused
from mlx_trm.nn.functional import CosSin
from mlx_trm.nn.layers import compute_again
from mlx_trm.nn.residual import add_norm_sum


class PostNormBlock(nn.Module):
    """A block that ends in rms_norm(x + y).

    Attributes:
        eps: added to that norm's mean square.
        whole_warps: see :func:`mlx_trm.nn.residual.add_norm`.
    """

    eps: float
    whole_warps = False

    def keeps_nothing(self) -> bool:
        """Whether it is computed as on a GPU, and no gradient will be asked for."""
        return fused.in_use() and not fused.keeps(self.training)

    def before_norm(
        self, x: mx.array, cos_sin: Optional[CosSin] = None
    ) -> Tuple[mx.array, mx.array]:
        """Give x and y, both (B, T, D) or as many rows, of a block that maps (B, T, D).

        What is computed is what a call computes, without its end, where :meth:`keeps_nothing`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement before_norm(x, cos_sin)")


class ReasoningModule(nn.Module):
    """Add the injection to the state, where there is one, then run the blocks."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        """Keep the blocks under the reference's name."""
        super().__init__()
        self.layers = list(blocks)
        self.recomputed = False

    def __call__(
        self, state: mx.array, injection: Optional[mx.array], cos_sin: Optional[CosSin]
    ) -> mx.array:
        """Map (B, T, D) to (B, T, D)."""
        if injection is not None:
            state = state + injection
        for layer in self.layers:
            if self.recomputed:  # keep what enters a block only, for the gradient

                def run(x: mx.array, layer: nn.Module = layer) -> mx.array:
                    return layer(x, cos_sin)

                state = compute_again(layer, run, state)
            else:
                state = layer(state, cos_sin)
        return state

    def add_after(
        self,
        entering: mx.array,
        cos_sin: Optional[CosSin],
        following: Optional[mx.array],
        keep_state: bool,
    ) -> Tuple[Optional[mx.array], Optional[mx.array]]:
        """Run the blocks on a sum, and give the next one.

        Where no gradient is asked for, the kernel of the last norm adds what follows. (Nothing is
        kept then, so there is nothing to compute again either.)

        Args:
            entering: (B, T, D), the state and what was added to it.
            cos_sin: rotates queries and keys where given.
            following: (B, T, D), what is added to the new state; None for no sum.
            keep_state: whether the new state is used besides its sum.

        Returns:
            The sum, None without ``following``; and the new state, which is None where it is not
            kept and a kernel has left it out.
        """
        *before, last = self.layers
        if following is not None and isinstance(last, PostNormBlock) and last.keeps_nothing():
            for layer in before:
                entering = layer(entering, cos_sin)
            x, y = last.before_norm(entering, cos_sin)
            return add_norm_sum(x, y, following, last.eps, keep_state, last.whole_warps)
        state = self(entering, None, cos_sin)
        return None if following is None else state + following, state
