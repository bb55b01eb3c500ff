"""A run's metrics.jsonl, read while it is written: when it had which accuracy."""

import json
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

# Intervals of the log around one, on each side, by which it is seen whether it was slow.
AROUND = 2
SLOW = 1.5
T = TypeVar("T")


def later_half(intervals: Sequence[T]) -> Sequence[T]:
    """Give the later half of a log: what was compiled has been, and a curriculum has its cycles."""
    return intervals[len(intervals) // 2 :]


def later_lines(run: Path) -> Sequence[Dict[str, Any]]:
    """Give the lines of training in the later half of a run's log."""
    texts = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return later_half([line for line in map(json.loads, texts) if line["kind"] == "train"])


class Evaluation(NamedTuple):
    """An evaluation of a run.

    Attributes:
        step: supervision steps before it.
        accuracy: in percent.
        seconds: from the start of the process to its line.
        training_seconds: of these, in training steps by the log's clock; kernels that were compiled
            on the way included.
        steady_seconds: the same at the speed that the run had when nothing was compiled.
        joules: of the GPUs; None where they do not tell.
    """

    step: int
    accuracy: float
    seconds: float
    training_seconds: float
    steady_seconds: float
    joules: Optional[float]


class Log:
    """Follows the file.

    Attributes:
        metric: that is read from the first set of each evaluation.
        evaluations: so far.
        trained: supervision steps so far.
        facts: what the log says of the whole run: peak memory, and what the original's tells.
    """

    def __init__(self, metric: str) -> None:
        """Begin before the first line."""
        self.metric = metric
        self.evaluations: List[Evaluation] = []
        self.facts: Dict[str, Any] = {}
        self.trained = 0
        self._offset = 0
        # (steps, seconds a step) of each line of training
        self._intervals: List[Tuple[int, float]] = []

    def read(self, path: Path, seconds: float, joules: Optional[float]) -> List[Evaluation]:
        """Read the lines that are new.

        Args:
            path: of the file, which need not be there yet.
            seconds: since the run was started.
            joules: since then.

        Returns:
            The evaluations among them.
        """
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = len(self.evaluations)
        for text in whole.splitlines():
            self._take(json.loads(text), seconds, joules)
        return self.evaluations[found:]

    def steps_per_second(self) -> Optional[float]:
        """Give the median rate over the later half of the log; None before its first line."""
        later = later_half(self._intervals)
        return 1 / median(seconds for _, seconds in later) if later else None

    def _take(self, line: Dict[str, Any], seconds: float, joules: Optional[float]) -> None:
        kind = line.pop("kind")
        if kind == "about":
            self.facts.update(line)
        elif kind == "train":
            steps = line["step"] - self.trained
            self.trained = line["step"]
            self._intervals.append((steps, 1 / line["steps_per_second"]))
            if line.get("peak_memory"):
                self.facts["peak_memory"] = line["peak_memory"]
        elif kind == "eval" and line.get(self.metric) is not None:
            if self.evaluations and self.evaluations[-1].step == line["step"]:
                return  # of another set
            training = sum(steps * each for steps, each in self._intervals)
            accuracy = 100 * line[self.metric]
            steady = steady_seconds(self._intervals)
            self.evaluations.append(
                Evaluation(line["step"], accuracy, seconds, training, steady, joules)
            )


def steady_seconds(intervals: Sequence[Tuple[int, float]]) -> float:
    """Add up intervals, those in which something was compiled at the speed of those around them.

    Args:
        intervals: steps, and seconds a step. One that is half as slow again as the median of the
            five around it counts as that median.
    """
    total = 0.0
    for number, (steps, seconds) in enumerate(intervals):
        near = intervals[max(0, number - AROUND) : number + AROUND + 1]
        usual = median(each for _, each in near)
        total += steps * (usual if seconds > SLOW * usual else seconds)
    return total


def reached(evaluations: Sequence[Evaluation], accuracy: float) -> Dict[str, Any]:
    """Say when an accuracy was reached, or which one was the best.

    Returns:
        ``accuracy``, ``reached``, and the fields of :class:`Evaluation` of the first that was as
        good, or else of the best, with its accuracy as ``found``; None for each where there is no
        evaluation.
    """
    first = next((each for each in evaluations if each.accuracy >= accuracy), None)
    shown = first or max(evaluations, key=lambda each: each.accuracy, default=None)
    values = {name: None for name in Evaluation._fields} if shown is None else shown._asdict()
    found = values.pop("accuracy")
    return {"accuracy": accuracy, "reached": first is not None, "found": found, **values}
