"""The log of a run's metrics: averages, lines, and going back to a checkpoint's line."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, TypedDict

import mlx.core as mx

from mlx_trm.errors import CheckpointError, describe_error
from mlx_trm.models.losses import Metrics, metric_values
from mlx_trm.runs.reporters import Reporter
from mlx_trm.system.files import flush, json_text, write_bytes


@dataclass
class StepReport:
    """Progress of training, averaged over the steps since the report before.

    Attributes:
        step: supervision steps done.
        total: supervision steps of the run.
        metrics: ``lm_loss``, ``q_halt_loss`` per row; ``accuracy``, ``exact_accuracy``,
            ``q_halt_accuracy`` and ``steps`` per puzzle that halted, NaN where none did;
            ``count`` of those; ``grad_norm`` per step, before it was clipped, with
            ``train.grad_clip``.
        lr: learning rate of the last step.
        steps_per_second: over the same steps.
        peak_memory: bytes, since the process started.
    """

    step: int
    total: int
    metrics: Dict[str, float]
    lr: float
    steps_per_second: float
    peak_memory: int


class LogState(TypedDict):
    """What a log has added up since its last line, as JSON has it; saved with a checkpoint.

    Attributes:
        sums: of each metric.
        steps: that were added.
        seconds: they took.
        step: the last one's number.
        lr: its learning rate.
        lines: written so far.
    """

    sums: Dict[str, Optional[float]]
    steps: int
    seconds: float
    step: int
    lr: float
    lines: int


class MetricsLog:
    """Averages step metrics, writes them to ``metrics.jsonl`` and reports progress.

    Attributes:
        path: the file; one JSON object a line, ``kind`` is ``train`` or ``eval``.
        reporters: services that get every line too.
        lines: written so far.
    """

    def __init__(
        self,
        path: Optional[Path],
        batch_size: int,
        interval: int,
        total: int,
        on_step: Optional[Callable[[StepReport], None]] = None,
    ) -> None:
        """Prepare a log; the file is appended to.

        Args:
            path: of the file; None: nothing is written.
            batch_size: B, by which summed losses are divided.
            interval: steps averaged in one line.
            total: steps of the run, for the reports.
            on_step: called with each line's report.
        """
        self.path = path
        self._batch_size = batch_size
        self._interval = interval
        self._total = total
        self._on_step = on_step
        self._sums: Dict[str, float] = {}
        self._steps = 0
        self._lr = 0.0
        self._step = 0
        self.reporters: List[Reporter] = []
        self.lines = 0
        self._seconds = 0.0
        self._resumed = time.monotonic()

    def resume_clock(self) -> None:
        """Leave what was done since the last step (evaluating, saving) out of the speed."""
        self._resumed = time.monotonic()

    def state(self) -> LogState:
        """Give what has been added since the last line, as JSON has it; see :meth:`restore`.

        JSON has no NaN and no infinity: such a sum, whose mean is null in the log, is None.
        """
        return {
            "sums": {name: v if math.isfinite(v) else None for name, v in self._sums.items()},
            "steps": self._steps,
            "seconds": self._seconds,
            "step": self._step,
            "lr": self._lr,
            "lines": self.lines,
        }

    def restore(self, state: LogState) -> None:
        """Go on from a log's :meth:`state`."""
        self._sums = {
            name: math.nan if value is None else float(value)
            for name, value in state["sums"].items()
        }
        self._steps, self._seconds = int(state["steps"]), float(state["seconds"])
        self._step, self._lr = int(state["step"]), float(state["lr"])
        self.lines = int(state["lines"])
        self.resume_clock()

    def add(self, step: int, metrics: Metrics, lr: float) -> None:
        """Take the metric sums of a step; report when ``interval`` of them are there."""
        for name, value in metric_values(metrics).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        now = time.monotonic()
        self._seconds += now - self._resumed
        self._resumed = now
        self._steps += 1
        self._step, self._lr = step, lr
        if step % self._interval == 0:
            self.report()

    def report(self) -> None:
        """Write and report the average since the last report, where there is any."""
        if not self._steps:
            return
        rows = self._steps * self._batch_size
        count = self._sums["count"]
        means = {
            name: value / rows if name.endswith("loss") else value / count if count else math.nan
            for name, value in self._sums.items()
            if name != "count"
        }
        if "grad_norm" in self._sums:  # one a step
            means["grad_norm"] = self._sums["grad_norm"] / self._steps
        report = StepReport(
            step=self._step,
            total=self._total,
            metrics={"count": count, **means},
            lr=self._lr,
            steps_per_second=self._steps / max(self._seconds, 1e-9),
            peak_memory=mx.get_peak_memory(),
        )
        self._sums, self._steps, self._seconds = {}, 0, 0.0
        flat = asdict(report)
        self.write({"kind": "train", **flat.pop("metrics"), **flat})
        if self._on_step is not None:
            self._on_step(report)

    def flush(self) -> None:
        """Bring what has been written to the disk."""
        if self.path is None or not self.path.exists():
            return
        try:
            flush(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror})") from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, and give it to the reporters; what is no finite number becomes null.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        for reporter in self.reporters:
            reporter.report(line)
        try:
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json_text(line) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror})") from error
        self.lines += 1  # last: a checkpoint may never count a line that is not there


def count_lines(path: Path) -> int:
    """Count a log's whole lines, 0 where there is no log.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        return path.read_bytes().count(b"\n") if path.exists() else 0
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({describe_error(error)})") from error


def check_metrics(path: Path, lines: int) -> bool:
    """See that a log holds what it held when a checkpoint was saved.

    Args:
        path: of the log.
        lines: that were there then.

    Returns:
        Whether there is a log; without one a new one can be begun.

    Raises:
        CheckpointError: if it is shorter, or cannot be read.
    """
    found = count_lines(path)
    if not path.exists():
        return False
    if found < lines:
        raise CheckpointError(
            f"{path}: has {found} lines, and the checkpoint was saved after {lines}; the log has "
            "been cut: bring it back, go on from an older checkpoint, or move the log away to "
            "begin a new one"
        )
    return True


def rewind_metrics(path: Path, lines: int) -> None:
    """Take all but the first ``lines`` lines out of a log; they are about to be written again.

    Args:
        path: of the log; it need not be there.
        lines: that were there when the checkpoint was saved.

    Raises:
        CheckpointError: if the log is shorter, or cannot be read or written.
    """
    if not check_metrics(path, lines):
        return
    try:
        content = path.read_bytes().split(b"\n")
        if len(content) > lines + 1 or content[-1]:  # what follows the last newline is cut, too
            write_bytes(path, b"".join(line + b"\n" for line in content[:lines]))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be rewound ({error})") from error
