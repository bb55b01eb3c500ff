"""What a run tells while it trains, and at its end."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple, TypedDict

from mlx_trm.inference.evaluator import Metrics
from mlx_trm.runs.metrics import StepReport


class Evaluation(TypedDict):
    """What ``on_eval`` is called with.

    Attributes:
        step: supervision steps done.
        metrics: of each set.
    """

    step: int
    metrics: Dict[str, Metrics]


class Callbacks(NamedTuple):
    """What a run calls while it trains; None: nothing.

    Attributes:
        on_eval: after each evaluation.
        on_step: every ``train.log_interval`` steps and at the last one.
        on_tick: after every step, with its number.
        on_eval_progress: during evaluations, with (puzzles done, puzzles in all).
        stop_requested: asked after every step; once it says yes the run saves and ends.
    """

    on_eval: Optional[Callable[[Evaluation], None]] = None
    on_step: Optional[Callable[[StepReport], None]] = None
    on_tick: Optional[Callable[[int], None]] = None
    on_eval_progress: Optional[Callable[[int, int], None]] = None
    stop_requested: Callable[[], bool] = lambda: False


@dataclass
class TrainReport:
    """What a run did.

    Attributes:
        run_dir: its folder.
        checkpoint: the newest checkpoint.
        steps: supervision steps done.
        total: supervision steps the configuration asks for.
        seconds: of wall-clock time, evaluations included.
        interrupted: whether it was stopped before its end.
        reason: why it stopped, in words; empty at its end.
        taken: supervision steps of this stretch.
        skipped: steps that were not finite and were skipped.
        evaluations: (step, metrics of each set) in order.
        peak_memory: bytes.
    """

    run_dir: Path
    checkpoint: Path
    steps: int = 0
    total: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    reason: str = ""
    taken: int = 0
    skipped: int = 0
    evaluations: List[Tuple[int, Dict[str, Metrics]]] = field(default_factory=list)
    peak_memory: int = 0
