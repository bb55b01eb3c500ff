"""One supervision step of a trained model, compiled where that pays."""

from typing import Callable, Optional, Tuple

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import Carry, Outputs
from mlx_trm.system.device import on_gpu
from mlx_trm.system.environment import note_computing, prepare_temporary_folder
from mlx_trm.system.streams import joined, over_rows, share_cores

Reason = Callable[[Tree, Carry, Optional[mx.array]], Tuple[Carry, Outputs]]

# On the CPU a model of fewer weights is not compiled unless that is asked for.
LARGE = 1_000_000


def should_compile(setting: str, model: Optional[RecursiveModel] = None) -> bool:
    """Turn ``train.compile`` into yes or no.

    Args:
        setting: ``auto`` compiles on a GPU, and on the CPU a large model: the C++ compiler takes
            some 20 seconds once, which a small model's whole run may be too short for.
        model: the one to compile; None where its run is short.
    """
    if setting == "auto":
        weights = (
            0 if model is None else sum(a.size for _, a in named_arrays(model.trained_weights()))
        )
        return on_gpu() or weights >= LARGE
    return setting == "always"


def cell_confidence(logits: mx.array) -> mx.array:
    """Give the softmax probability of each cell's token, which is the one of the highest logit.

    Args:
        logits: (B, S, V), any float dtype.

    Returns:
        (B, S) float32.
    """
    return mx.max(mx.softmax(logits.astype(mx.float32), axis=-1), axis=-1)


def merge_weights(tree: Tree, other: Tree) -> Tree:
    """Give a tree of weights with the leaves of another one, of some of them, in their places."""
    merged = dict(named_arrays(tree))
    merged.update(named_arrays(other))
    whole: Tree = tree_unflatten(list(merged.items()))
    return whole


def compile_reason(model: RecursiveModel, compiled: bool) -> Reason:
    """Give one evaluation step as a function of weights, carry and puzzle vectors.

    This is the only place where the evaluation step is compiled.

    Args:
        model: in evaluation mode; its structure is used, its weights are an argument.
        compiled: whether to use ``mx.compile``.

    Returns:
        ``reason(weights, carry, rows) -> (carry with new latents, outputs)``.
    """

    def share(packed: Tuple, rows: Optional[mx.array]) -> Tuple:
        latents, outputs = model.reason(Carry.unpack(packed), rows)
        return tuple(latents), tuple(outputs)

    def traced(weights: Tree, packed: Tuple, rows: Optional[mx.array]) -> Tuple:
        with model.using(weights):
            found: Tuple = joined(over_rows(share, Carry.unpack(packed).extent, packed, rows))
        return found

    if compiled:
        prepare_temporary_folder()
    step: Callable = mx.compile(traced) if compiled else traced

    def reason(weights: Tree, carry: Carry, rows: Optional[mx.array]) -> Tuple[Carry, Outputs]:
        note_computing()
        share_cores(*carry.extent)
        latents, outputs = step(weights, carry.pack(), rows)
        return carry._replace(latents=tuple(latents)), Outputs(*outputs)

    return reason
