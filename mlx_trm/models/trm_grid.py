"""A TRM whose cells know their neighbours on a grid, and nothing of where on the grid they are.

A maze moved by a row has its path moved by a row. Here a cell is updated from the 3x3 cells around
it, by weights that are the same everywhere, so that a rule learnt in one place holds in all; news
travels a cell further with every block, and far in a step, since the recursion runs dozens. Borders
show as cells of zeros.

The recursion, the carry and halting are TRM's: z_H is the paper's answer *y*, z_L its latent *z*.
Shape letters are those of carry.py; there are no positions before the cells, so T = S.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from math import isqrt
from typing import Any, Optional, Tuple

import mlx.core as mx
from mlx import nn

from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.models.base import register_model
from mlx_trm.models.carry import Outputs
from mlx_trm.models.network import check_latent, draw_states, make_q_head
from mlx_trm.models.trm import SymmetricTRM, SymmetricTRMConfig
from mlx_trm.nn import fused
from mlx_trm.nn.functional import CosSin, computes_plainly, scaled
from mlx_trm.nn.gating import gated_norm
from mlx_trm.nn.init import KeySequence, trunc_normal
from mlx_trm.nn.layers import CastedEmbedding, CastedLinear
from mlx_trm.nn.reasoning import PostNormBlock, ReasoningModule

# A cell and those around it.
NEIGHBOURS = 9


@dataclass
class TRMGridConfig(SymmetricTRMConfig):
    """Size and schedule of the model for grids."""

    name: str = "trm_grid"
    columns: Optional[int] = field(default=None, metadata={"min": 1})
    """Cells in a row of the grid; unset: as many as there are rows."""
    hidden_size: int = field(default=128, metadata={"min": 1})
    """D, numbers per cell."""
    inner: int = field(default=256, metadata={"min": 1})
    """Inner size of the SwiGLU over a cell's neighbourhood."""


class NeighbourLinear(nn.Module):
    """A linear layer from the 3x3 cells around each cell, cells outside the grid being zeros.

    ``weight`` is (out, 9 * in), LeCun normal: a matrix, as optimisers of matrices want it, a cell
    after the other, row by row. It is float32 and cast to the input's dtype.
    """

    def __init__(self, in_features: int, out_features: int, keys: KeySequence) -> None:
        """Create the layer with weights drawn from ``keys``."""
        super().__init__()
        inputs = NEIGHBOURS * in_features
        self.weight = trunc_normal((out_features, inputs), inputs**-0.5, keys.next())

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, rows, columns, in) to (B, rows, columns, out)."""
        weight = self.weight.astype(x.dtype)
        if computes_plainly():
            return _convolve(x, weight)
        result: mx.array = _convolution()(x, weight)
        return result


def _convolve(x: mx.array, weight: mx.array) -> mx.array:
    """Map (B, rows, columns, in) by (out, 9 * in) to (B, rows, columns, out)."""
    return mx.conv2d(x, weight.reshape(weight.shape[0], 3, 3, -1), padding=1)


@lru_cache(maxsize=None)
def _convolution() -> Any:
    """Give :func:`_convolve` with a gradient of its own.

    Convolution libraries sum a weight's gradient in no fixed order, and two equal runs would
    differ. As a product with the neighbourhoods it is summed as every other layer's is.
    """
    function: Any = mx.custom_function(_convolve)

    @function.vjp
    def backward(primals: Any, cotangent: Any, outputs: Any) -> Tuple[mx.array, mx.array]:
        del outputs
        x, weight = primals
        # What a cell gave to a neighbour comes back from it: the same sum, seen from the other end.
        turned = weight.reshape(weight.shape[0], 3, 3, -1)[:, ::-1, ::-1, :].transpose(3, 1, 2, 0)
        d_x = mx.conv2d(cotangent, mx.contiguous(turned), padding=1)
        around = neighbourhoods(x).reshape(-1, weight.shape[1])
        return d_x, cotangent.reshape(-1, weight.shape[0]).T @ around

    return function


def neighbourhoods(x: mx.array) -> mx.array:
    """Put the 3x3 cells around each cell beside one another, row by row.

    Args:
        x: (B, rows, columns, D).

    Returns:
        (B, rows, columns, 9 * D), zeros for cells outside the grid.
    """
    rows, columns = x.shape[1:3]
    padded = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    moved = [
        padded[:, down : down + rows, right : right + columns]
        for down in range(3)
        for right in range(3)
    ]
    return mx.concatenate(moved, axis=-1)


class GridBlock(PostNormBlock):
    """A gate-normed SwiGLU over each cell's neighbourhood, added and normalised."""

    def __init__(self, config: TRMGridConfig, columns: int, keys: KeySequence) -> None:
        """Create a block for grids of so many columns."""
        super().__init__()
        self.eps, self.columns = config.rms_norm_eps, columns
        self.gate_proj = NeighbourLinear(config.hidden_size, config.inner, keys)
        self.up_proj = NeighbourLinear(config.hidden_size, config.inner, keys)
        self.down_proj = CastedLinear(config.inner, config.hidden_size, bias=False, keys=keys)

    def __call__(self, x: mx.array, cos_sin: Optional[CosSin] = None) -> mx.array:
        """Map (B, T, D) to (B, T, D); there are no angles to rotate by."""
        return fused.post_norm(*self.before_norm(x, cos_sin), self.eps, self.training)

    def before_norm(
        self, x: mx.array, cos_sin: Optional[CosSin] = None
    ) -> Tuple[mx.array, mx.array]:
        """Give what the last norm is of. See the base class."""
        del cos_sin
        grid = x.reshape(x.shape[0], -1, self.columns, x.shape[-1])
        shape = (*x.shape[:2], -1)
        gate, up = self.gate_proj(grid).reshape(shape), self.up_proj(grid).reshape(shape)
        return x, self.down_proj(gated_norm(gate, up, self.eps))


@register_model("trm_grid", TRMGridConfig)
class TRMGrid(SymmetricTRM):
    """A Tiny Recursive Model of cells that see their neighbours."""

    def __init__(self, config: TRMGridConfig, spec: TaskSpec, seed: int = 0) -> None:
        """Create the model with weights decided by ``seed``.

        Args:
            config: sizes and schedule.
            spec: the task's vocabulary and sequence length, the cells of a grid row by row.
            seed: of the initial weights.

        Raises:
            ConfigError: if the sequence is no grid of so many columns, or a row's latent is too
                large.
        """
        columns = find_columns(config, spec)
        super().__init__(config, spec, 0)
        keys, size = KeySequence(seed), config.hidden_size
        check_latent(spec.seq_len, size)
        self.embed_tokens = CastedEmbedding(spec.vocab_size, size, size**-0.5, keys)
        self.L_level = ReasoningModule(
            [GridBlock(config, columns, keys) for _ in range(config.L_layers)]
        )
        self.lm_head = CastedLinear(size, spec.vocab_size, bias=True, keys=keys)
        self.q_head = make_q_head(2 * size, 1, keys)
        draw_states(self, size, keys)

    def row_bytes(self, training: bool) -> int:
        """Estimate the bytes of a row. See the base class."""
        state = self.spec.seq_len * self.config.hidden_size
        inner = self.spec.seq_len * self.config.inner
        if not training:
            # States and what is added to them, the inner arrays, and the neighbourhoods that a
            # convolution may be computed by.
            return int(((10 + NEIGHBOURS) * state + 4 * inner) * self.dtype.size)
        element = 4.0 if self.dtype == mx.float32 else 3.0
        kept = 5 * state + 4 * inner
        passing = 2 * NEIGHBOURS * max(state, inner) + 4 * inner
        return int((kept * self.differentiated_blocks + passing) * element)

    def embed(self, inputs: mx.array) -> mx.array:
        """Embed (B, S) int32 tokens; gives x, (B, T, D) in ``forward_dtype``."""
        return scaled(self.embed_tokens(inputs, self.dtype), self.config.hidden_size**0.5)

    def read_outputs(self, state: mx.array) -> Outputs:
        """Read logits and Q from the state that holds the answer, (B, T, D).

        Q is read from the mean over the cells and from their largest numbers: one wrong cell is
        enough for an answer to be wrong. There is no q_continue: it is 0, which a row that halts
        has q_halt above.
        """
        wide = state.astype(mx.float32)
        seen = mx.concatenate([mx.mean(wide, axis=1), mx.max(wide, axis=1)], axis=-1)
        q = self.q_head(seen)[:, 0]
        return Outputs(self.lm_head(state), q, mx.zeros_like(q))


def find_columns(config: TRMGridConfig, spec: TaskSpec) -> int:
    """Give the columns of the task's grid.

    Raises:
        ConfigError: if its cells do not fill rows of so many.
    """
    columns = isqrt(spec.seq_len) if config.columns is None else config.columns
    if spec.seq_len % columns or (config.columns is None and columns**2 != spec.seq_len):
        raise ConfigError(
            f"model.columns: the task's {spec.seq_len} cells are no grid of "
            f"{'as many rows as columns' if config.columns is None else f'{columns} columns'}; set "
            "a divisor of their number"
        )
    return columns
