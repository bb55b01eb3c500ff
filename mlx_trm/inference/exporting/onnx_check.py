"""An ONNX file compared with the model that it was made of, step by step.

Two programs that add the same numbers in another order differ by rounding, and a recursion makes
the difference larger. How much larger is measured: MLX computes each step again with every weight
moved by a unit in its last place or less. An ONNX runtime may be as many times as far away as
``ROOM``, since it rounds every operation otherwise, and not the weights alone. Each step is
compared from the same state, that of MLX, so that differences do not add up.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_trm.errors import ConfigError
from mlx_trm.inference.exporting.onnx_layers import to_numpy
from mlx_trm.models import RecursiveModel
from mlx_trm.models.carry import Batch, Carry

QUANTITIES = ("new_z_H", "new_z_L", "logits", "q")
ROOM, DRAWS = 8.0, 2
# Of two numbers near 1 that rounding may tell apart, whatever the weights do: 16 units.
FLOOR = 16 * 2.0**-23


@dataclass(frozen=True)
class StepError:
    """How far an ONNX runtime is from MLX in one quantity of one step.

    Attributes:
        step: from 1 on.
        quantity: an output of the graph.
        error: norm of the difference over the norm of MLX's.
        allowed: the largest error that rounding may make.
    """

    step: int
    quantity: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether rounding can have made the difference."""
        return self.error <= self.allowed


def compare_onnx(
    model: RecursiveModel,
    path: Union[str, Path],
    tokens: np.ndarray,
    steps: int,
    identifiers: Any = None,
) -> List[StepError]:
    """Run an ONNX file with onnxruntime on the CPU, and compare it with MLX in float32.

    Args:
        model: that the file was made of, in evaluation mode.
        path: of the file.
        tokens: puzzles, (B, S) int32.
        steps: how many.
        identifiers: (B,) int32; default: those of no puzzle.

    Returns:
        A line for each step and quantity.

    Raises:
        ConfigError: if onnxruntime is not installed, or does not take the file.
    """
    run = _load(path)
    if identifiers is None:
        identifiers = np.full(len(tokens), model.spec.blank_identifier_id)
    inputs, rows = (mx.array(each, dtype=mx.int32) for each in (tokens, identifiers))
    batch = Batch(inputs, inputs, rows)  # labels are not read
    feed: Dict[str, np.ndarray] = {"tokens": to_numpy(inputs).astype(np.int32)}
    if model.config.puzzle_emb_ndim > 0:
        feed["identifiers"] = to_numpy(rows).astype(np.int32)
    found = []
    own, model.dtype = model.dtype, mx.float32
    try:
        carry = model.begin(model.initial_carry(batch), batch)
        for step in range(1, steps + 1):
            feed["begin"] = np.full(len(tokens), step == 1)
            for name, latent in zip(("z_H", "z_L"), carry.latents):
                # A row that begins must not read its latents.
                feed[name] = to_numpy(latent) if step > 1 else np.full(latent.shape, np.nan, "f4")
            theirs = run(feed)
            ours, latents = _step(model, carry)
            moved = [_step_moved(model, carry, seed) for seed in range(DRAWS)]
            for name, wanted, given, *others in zip(QUANTITIES, ours, theirs, *moved):
                rounding = max(_relative(other, wanted) for other in others)
                allowed = max(ROOM * rounding, FLOOR)
                found.append(StepError(step, name, _relative(given, wanted), allowed))
            carry = carry._replace(latents=latents)
    finally:
        model.dtype = own
    return found


def _load(path: Union[str, Path]) -> Any:
    """Give the function that a file holds, of arrays by name."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"--check: needs the package onnxruntime ({error}); pip install 'mlx-trm[onnx]'"
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common but this one
        raise ConfigError(
            f"{path}: onnxruntime {onnxruntime.__version__} does not take it "
            f"({' '.join(str(error).split())}); install a newer one"
        ) from error
    return lambda feed: session.run(list(QUANTITIES), feed)


def _step(model: RecursiveModel, carry: Carry) -> Tuple[List[np.ndarray], Tuple[mx.array, ...]]:
    """Give the quantities of a step, and the latents as arrays of MLX."""
    latents, outputs = model.reason(carry, model.puzzle_rows(carry))
    q = mx.stack([outputs.q_halt, outputs.q_continue], axis=-1)
    return [to_numpy(each) for each in (*latents, outputs.logits, q)], latents


def _step_moved(model: RecursiveModel, carry: Carry, seed: int) -> List[np.ndarray]:
    """Give the quantities of a step whose weights are each up to a unit larger or smaller."""
    random = np.random.default_rng(seed)

    def move(weight: mx.array) -> mx.array:
        unit = 2.0**-23 * random.uniform(-1.0, 1.0, weight.shape)
        return mx.array(to_numpy(weight) * (1.0 + unit.astype(np.float32)))

    with model.using(tree_map(move, model.weights())):
        return _step(model, carry)[0]


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return float("inf")
    wide = theirs.astype(np.float64)
    return float(np.linalg.norm(ours - wide) / max(np.linalg.norm(wide), 1e-30))
