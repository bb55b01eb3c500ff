"""Where a run is, besides its step: saved with each checkpoint, and what a resumed run needs."""

from dataclasses import dataclass
from typing import Any, List, Optional

from mlx_trm.errors import shown
from mlx_trm.runs.metrics import LogState


@dataclass
class RunProgress:
    """Where a run is; saved with each checkpoint as JSON.

    Attributes:
        iteration: of the data, from 1; an iteration is ``eval.interval`` epochs.
        batches: taken from it.
        evaluate_first: an iteration ended and its evaluation is still to come.
        log: metric sums that are not in a line of the log yet.
        best: the best value of ``eval.best_metric``, and its step.
        without_better: evaluations since.
        evaluated: step of the last evaluation.
        ended: why the run has ended before its last step; empty: it has not.
        data: describes the data sets, so that no others are taken.
        seconds: that it has taken so far, evaluations included, in all its stretches.
        skipped_in_row: steps skipped since the last finite one.
    """

    iteration: int = 1
    batches: int = 0
    evaluate_first: bool = False
    log: Optional[LogState] = None
    best: Optional[List[float]] = None
    without_better: int = 0
    evaluated: int = -1
    ended: str = ""
    data: str = ""
    seconds: float = 0.0
    skipped_in_row: int = 0

    @classmethod
    def read(cls, values: Any) -> "RunProgress":
        """Rebuild it from JSON.

        Raises:
            ValueError: if something is missing or makes no sense.
        """
        try:
            progress = cls(**values)
            log, best = progress.log, progress.best
            counts = [progress.iteration - 1, progress.batches, progress.without_better]
            counts.append(progress.skipped_in_row)
            counts += [] if log is None else [log["steps"], log["lines"], log["step"]]
            good = all(isinstance(count, int) and 0 <= count < 2**63 for count in counts)
            good = good and isinstance(progress.evaluated, int) and progress.seconds >= 0
            if log is not None:
                good = good and all(
                    isinstance(v, (float, type(None))) for v in log["sums"].values()
                )
            if best is not None:
                good = good and isinstance(best, list) and len(best) == 2
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"progress is damaged ({shown(error)})") from error
        if not good:
            raise ValueError("progress is damaged")
        return progress

    @property
    def best_step(self) -> Optional[int]:
        """The step of the best evaluation so far; None before the first one."""
        return None if self.best is None else int(self.best[1])
