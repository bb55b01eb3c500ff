"""Models for tests of searches: one needs a lucky start, one answers the puzzle itself."""

from dataclasses import dataclass
from typing import Any, List, Tuple

import mlx.core as mx
import numpy as np
from scripted import experiment

from mlx_trm.inference.solver import Solver
from mlx_trm.models import RecursiveModel, TRMConfig, register_model
from mlx_trm.models.carry import Outputs
from mlx_trm.tasks import build_task


@dataclass
class GamblerConfig(TRMConfig):
    """Settings of the gambler; the usual ones, smaller."""

    name: str = "gambler"
    hidden_size: int = 4
    num_heads: int = 1
    puzzle_emb_ndim: int = 0
    puzzle_emb_len: int = 0
    halt_max_steps: int = 6
    forward_dtype: str = "float32"


@register_model("gambler", GamblerConfig)
class Gambler(RecursiveModel):
    """Knows every solution, and gives it after some steps where its start and its puzzle let it.

    From its own start it solves the puzzles whose first cell is given. From a random start it does
    where the numbers of z_L have a sum above 0; from step 1 to 6, as another of them says. Its
    belief is right.

    Attributes:
        calls: rows of each step.
    """

    initial_names = ("H_start", "L_start")

    def __init__(self, config: Any, spec: Any, seed: int = 0) -> None:
        """Know nothing yet; the seed decides nothing."""
        del seed
        super().__init__(config, spec, positions=0)
        self.H_start, self.L_start = mx.zeros((4,)), mx.zeros((4,))
        self._known: List[mx.array] = []
        self.calls: List[int] = []

    def learn(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Learn (n, S) puzzles and their solutions by heart."""
        self._known = [mx.array(np.asarray(side, dtype=np.int32)) for side in (inputs, labels)]

    def reason(self, carry: Any, rows: Any) -> Any:
        """Count the step, and answer accordingly."""
        del rows
        inputs = carry.current.inputs
        self.calls.append(inputs.shape[0])
        z_H, z_L = carry.latents
        z_H = z_H + 1
        step, drawn = z_H[:, 0, 0], (z_L != 0).any(axis=(1, 2))
        lucky = mx.where(drawn, z_L.sum(axis=(1, 2)) > 0, inputs[:, 0] > 1)
        needed = mx.where(drawn, 1 + mx.floor(mx.abs(z_L[:, 0, 0]) * 3), 2)
        solved = lucky & (step >= needed)
        puzzles, solutions = self._known
        place = mx.argmax((inputs[:, None] == puzzles[None]).all(axis=-1), axis=1)
        answer = mx.where(solved[:, None], solutions[place], mx.maximum(inputs, 2))
        q_halt = mx.where(solved, 1.0, -1.0) - 0.01 * step
        return (z_H, z_L), Outputs(5.0 * mx.eye(6)[answer], q_halt, mx.zeros_like(q_halt))


class Echo(Gambler):
    """Answers the puzzle itself, whatever copy of it; the answer of a full grid is right."""

    def reason(self, carry: Any, rows: Any) -> Any:
        """Answer at once, and believe more the larger the first token is."""
        del rows
        inputs = carry.current.inputs
        q_halt = inputs[:, 0].astype(mx.float32)
        logits = mx.eye(6)[inputs] * (1 + inputs[..., None])
        return carry.latents, Outputs(logits, q_halt, mx.zeros_like(q_halt))


def small_puzzles(count: int) -> Tuple[np.ndarray, np.ndarray]:
    """So many 4x4 puzzles and their solutions, (n, 16) uint8 each."""
    config = experiment()
    config.task.test_puzzles = count
    arrays = next(build_task(config.task).dataset("test").eval_batches(count))[1]
    return arrays["inputs"].astype(np.uint8), arrays["labels"].astype(np.uint8)


def gambling(kind: Any, puzzles: Tuple[np.ndarray, np.ndarray]) -> Solver:
    """A solver with a gambler or an echo that knows the puzzles."""
    config = experiment(GamblerConfig())
    model = kind(config.model, build_task(config.task).spec)
    model.learn(*puzzles)
    return Solver(model, config)
