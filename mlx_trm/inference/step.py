"""One supervision step of a trained model, compiled where that pays."""

import logging
import os
from functools import lru_cache
from typing import Callable, ContextManager, Optional, Tuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import Carry, Outputs
from mlx_trm.models.memory import count_evaluation_parts, limit_evaluation_memory
from mlx_trm.system.blas import slow_blas_advice
from mlx_trm.system.device import on_gpu
from mlx_trm.system.environment import note_computing, prepare_temporary_folder
from mlx_trm.system.streams import joined, one_by_one, over_rows, share_cores
from mlx_trm.tasks import Task

# On the CPU a model of fewer weights is not compiled unless that is asked for.
LARGE = 1_000_000
LOG = logging.getLogger(__name__)


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


def tell_of_slow_blas(model: RecursiveModel) -> None:
    """Say, once a process, where the CPU's BLAS makes this model's steps many times slower.

    Whoever computes steps says so when they are prepared, from Python as in the commands.
    """
    advice = (
        None
        if on_gpu()
        else slow_blas_advice(sum(a.size for _, a in named_arrays(model.weights())))
    )
    if advice is not None and os.environ.get("MLX_RANK", "0") == "0":
        _warn_once(advice)


@lru_cache(maxsize=None)
def _warn_once(advice: str) -> None:
    LOG.warning("%s", advice)


def cell_confidence(logits: mx.array) -> mx.array:
    """Give the softmax probability of each cell's token, which is the one of the highest logit.

    Args:
        logits: (B, S, V), any float dtype.

    Returns:
        (B, S) float32.
    """
    return mx.max(mx.softmax(logits.astype(mx.float32), axis=-1), axis=-1)


def read_answers(task: Task, logits: mx.array) -> mx.array:
    """Read answers: each cell's token of the highest logit, or as the task decodes them.

    Args:
        task: whose :attr:`~mlx_trm.tasks.Task.decoder` is used where it has one.
        logits: (B, S, V), any float dtype.

    Returns:
        (B, S) unsigned integers, not computed yet unless the task decodes.
    """
    decoder = task.decoder
    if decoder is None:
        return mx.argmax(logits, axis=-1)
    return mx.array(decoder(np.array(logits.astype(mx.float32))))


def merge_weights(tree: Tree, other: Tree) -> Tree:
    """Give a tree of weights with the leaves of another one, of some of them, in their places."""
    merged = dict(named_arrays(tree))
    merged.update(named_arrays(other))
    whole: Tree = tree_unflatten(list(merged.items()))
    return whole


class EvaluationStep:
    """One supervision step of a trained model without gradient, compiled where that is asked for.

    This is the only place where the evaluation step is compiled.

    Attributes:
        memory_limit: ``eval.memory_limit_gb``, or None.
    """

    def __init__(
        self, model: RecursiveModel, compiled: bool, memory_limit: Optional[float] = None
    ) -> None:
        """Prepare it; nothing is computed yet.

        Args:
            model: in evaluation mode; its structure is used, its weights are an argument.
            compiled: whether to use ``mx.compile``.
            memory_limit: ``eval.memory_limit_gb``.
        """
        self._model = model
        self.memory_limit = memory_limit
        if compiled:
            prepare_temporary_folder()
        self._step: Callable = mx.compile(self._traced) if compiled else self._traced

    @classmethod
    def configured(
        cls, model: RecursiveModel, config: ExperimentConfig, short: bool
    ) -> "EvaluationStep":
        """Prepare the step that a configuration asks for.

        Args:
            model: in evaluation mode.
            config: ``train.compile`` and ``eval.memory_limit_gb`` are read.
            short: whether few steps are to be expected; see :func:`should_compile`.
        """
        tell_of_slow_blas(model)
        compiled = should_compile(config.train.compile, None if short else model)
        return cls(model, compiled, config.eval.memory_limit_gb)

    def __call__(
        self, weights: Tree, carry: Carry, rows: Optional[mx.array]
    ) -> Tuple[Carry, Outputs]:
        """Take a step; nothing is computed until something is asked for.

        Args:
            weights: the model's, or others in their places.
            carry: of B rows.
            rows: (B, puzzle_emb_ndim), the rows' puzzle vectors, or None.

        Returns:
            The carry with new latents, and the outputs.

        Raises:
            ConfigError: if the memory limit is too small for B rows.
        """
        note_computing()
        # Parts that follow one another are computed in one stream, by all cores.
        extent = carry.extent if self._parts(carry.extent[0]) == 1 else (1, 0)
        share_cores(*extent)

        def share(packed: Tuple, rows: Optional[mx.array]) -> Tuple:
            found: Tuple = self._step(weights, packed, rows)
            return found

        latents, outputs = joined(over_rows(share, extent, carry.pack(), rows))
        return carry._replace(latents=tuple(latents)), Outputs(*outputs)

    def limit_memory(self, rows: int) -> ContextManager[None]:
        """Keep MLX, inside a ``with`` block, from taking more memory than steps of B rows need."""
        return limit_evaluation_memory(self._model, rows, self.memory_limit)

    def _parts(self, rows: int) -> int:
        return count_evaluation_parts(self._model, rows, self.memory_limit)

    def _traced(self, weights: Tree, packed: Tuple, rows: Optional[mx.array]) -> Tuple:
        count = Carry.unpack(packed).extent[0]
        with self._model.using(weights):
            found: Tuple = joined(one_by_one(self._share, count, self._parts(count), packed, rows))
        return found

    def _share(self, packed: Tuple, rows: Optional[mx.array]) -> Tuple:
        latents, outputs = self._model.reason(Carry.unpack(packed), rows)
        return tuple(latents), tuple(outputs)
