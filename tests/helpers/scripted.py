"""A model that solves two 4x4 puzzles by heart, so that tests know every answer it will give."""

from dataclasses import dataclass
from typing import Any, List, Tuple

import mlx.core as mx

from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import EvalConfig, ExperimentConfig
from mlx_trm.inference.solver import Solver
from mlx_trm.models import TRM, RecursiveModel, TRMConfig, register_model
from mlx_trm.models.carry import Outputs
from mlx_trm.tasks import SudokuConfig, build_task

FIRST, FIRST_SOLVED = "1.....2..3.....4", "1243342143122134"
SECOND, SECOND_SOLVED = "2.....1..3.....4", "2143341243211234"


@dataclass
class ScriptedConfig(TRMConfig):
    """Settings of the scripted model; the usual ones, smaller."""

    name: str = "scripted"
    hidden_size: int = 4
    num_heads: int = 1
    puzzle_emb_ndim: int = 0
    puzzle_emb_len: int = 0
    halt_max_steps: int = 4


@register_model("scripted", ScriptedConfig)
class Scripted(RecursiveModel):
    """Has a row of the grid more right after each step, and 1 in the rows below.

    It believes so after step 2 where the puzzle starts with 1, after step 3 where it starts with 2.
    The step is counted in the latent, so only the carry decides what comes next.

    Attributes:
        seen: (rows, in training mode) of each call.
    """

    initial_names = ("start",)

    def __init__(self, config: Any, spec: Any, seed: int = 0) -> None:
        """Learn the solutions by heart; the seed decides nothing."""
        del seed
        super().__init__(config, spec, positions=0)
        self.start = mx.zeros((config.hidden_size,))
        solved = [[int(digit) + 1 for digit in text] for text in (FIRST_SOLVED, SECOND_SOLVED)]
        self._solutions = mx.array(solved)
        self.seen: List[Tuple[int, bool]] = []

    def reason(self, carry: Any, rows: Any) -> Any:
        """Count the step, and answer accordingly."""
        assert rows is None
        inputs = carry.current.inputs
        self.seen.append((inputs.shape[0], self.training))
        latent = carry.latents[0] + 1
        step = latent[:, :1, 0]
        which = mx.clip(inputs[:, 0] - 2, 0, 1)
        tokens = mx.where(mx.arange(16)[None] < 4 * step, self._solutions[which], 2)
        q_halt = step[:, 0] - 1.5 - which
        return (latent,), Outputs(mx.eye(6)[tokens], q_halt, mx.zeros_like(q_halt))


def experiment(model: Any = None, **parts: Any) -> ExperimentConfig:
    """An experiment with 4x4 Sudoku, by default with the scripted model."""
    return ExperimentConfig(
        task=SudokuConfig(name="sudoku", size=4),
        model=ScriptedConfig() if model is None else model,
        train=TrainConfig(compile="never"),
        eval=parts.pop("evaluation", EvalConfig()),
        **parts,
    )


def scripted_model() -> Scripted:
    """The model, for the task of :func:`experiment`."""
    return Scripted(ScriptedConfig(), build_task(experiment().task).spec)


def tiny_config(**changes: Any) -> TRMConfig:
    """Settings of a real model of a few thousand weights; two cycles of two updates, four steps."""
    settings = {
        "hidden_size": 16,
        "num_heads": 2,
        "L_layers": 1,
        "swiglu_multiple": 16,
        "mlp_t": True,
        "puzzle_emb_len": 1,
        "H_cycles": 2,
        "L_cycles": 2,
        "forward_dtype": "float32",
        "halt_max_steps": 4,
    }
    return TRMConfig(**{**settings, **changes})


def tiny_solver(model: TRMConfig) -> Solver:
    """A solver with a real model of random weights, for 4x4 puzzles."""
    config = experiment(model)
    return Solver(TRM(model, build_task(config.task).spec, seed=3).eval(), config)
