"""How training shows that it goes on: a bar in a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any, Callable, Optional

from tqdm import tqdm

from mlx_trm.cli.tables import duration, rough_duration, size
from mlx_trm.runs.metrics import StepReport
from mlx_trm.training.report import LONG_STEP, Evaluation


def decimals(value: Optional[float], digits: int) -> str:
    """Write a number with so many digits after the point; a dash where it was not measured."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


# A run that takes less needs no estimate; one that takes more gets advice.
SHORT, LONG = 60.0, 6 * 3600.0


class Estimate:
    """Says once how long a run is going to take, as soon as its first steps tell."""

    def __init__(
        self,
        steps: int,
        compiled: bool = False,
        limit: Optional[float] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock; the first step follows.

        Args:
            steps: that are left to do.
            compiled: whether the first step compiles, and so tells nothing.
            limit: seconds after which the run ends in any case.
            clock: gives the time in seconds.
        """
        self._left, self._compiled, self._limit, self._clock = steps, compiled, limit, clock
        self._done, self._started, self._said = 0, clock(), False

    def foresee(self, pace: Optional[float]) -> Optional[str]:
        """Say it before the first step, where that is going to be a long one.

        Args:
            pace: seconds of a step, estimated; None: not known.

        Returns:
            The line, where there is something to say; :meth:`tick` says nothing then.
        """
        if pace is None or pace < LONG_STEP:
            return None
        self._said = True
        return describe_estimate(pace, self._left, self._limit)

    def tick(self) -> Optional[str]:
        """Count a step.

        Returns:
            The line, once, where there is something to say.
        """
        if self._said:
            return None
        self._done += 1
        self._left -= 1
        now = self._clock()
        if self._done == 1:
            first, self._started = now - self._started, now
            if self._compiled or first < LONG_STEP:
                return None
            pace = first
        elif now - self._started < 1.0:
            return None
        else:
            pace = (now - self._started) / (self._done - 1)
        self._said = True
        return describe_estimate(pace, self._left, self._limit)


def describe_estimate(pace: float, left: int, limit: Optional[float] = None) -> Optional[str]:
    """Say how long a run is going to take; None where it is short.

    Args:
        pace: seconds of a step.
        left: steps.
        limit: seconds after which the run ends in any case.
    """
    seconds = pace * left
    if limit is not None and seconds >= limit:
        return None  # the table above has said when it ends
    if seconds < SHORT:
        return None
    step = f"{pace:.2g} s" if pace < 100 else rough_duration(pace)
    text = f"the run takes about {rough_duration(seconds)}, {step} a step, without evaluations"
    if seconds < LONG:
        return text
    return (
        f"{text}; try train.max_hours=1 (--resume goes on with it), a smaller model, or a GPU; "
        "sudoku_tiny.yaml and maze_tiny.yaml take minutes"
    )


class Progress:
    """Shows a training run; give its methods to :meth:`mlx_trm.training.trainer.Trainer.fit`."""

    def __init__(
        self,
        total: int,
        quiet: bool = False,
        seconds_between_lines: float = 10.0,
        start: int = 0,
        estimate: Optional[Estimate] = None,
    ) -> None:
        """Start the display.

        Args:
            total: supervision steps of the run.
            quiet: show nothing.
            seconds_between_lines: how often a line is printed where there is no terminal.
            start: steps done before.
            estimate: says how long the run is going to take.
        """
        self._estimate = estimate
        self.quiet = quiet
        self._between = seconds_between_lines
        self._total = total
        self._last_line = time.monotonic()
        self._bar: Any = None
        self._eval_bar: Any = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1
            )

    def step(self, report: StepReport) -> None:
        """Show the progress of training."""
        if self.quiet:
            return
        metrics = report.metrics
        shown = {
            "loss": f"{metrics['lm_loss']:.4f}",
            "exact": decimals(metrics.get("exact_accuracy"), 3),
            "mem": size(report.peak_memory),
        }
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            return
        if not self._line_is_due() and report.step < report.total:
            return
        left = (report.total - report.step) / max(report.steps_per_second, 1e-9)
        line = "  ".join(f"{name} {value}" for name, value in shown.items())
        self.line(
            f"step {report.step}/{report.total}  {line}  lr {report.lr:.2e}  "
            f"{report.steps_per_second:.2f} steps/s  {duration(left)} left"
        )

    def tick(self, step: int) -> None:
        """Show that a step is done; lines only where steps are so slow that nothing else comes."""
        said = None if self._estimate is None else self._estimate.tick()
        if said is not None:
            self.line(said)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        elif self._line_is_due(patience=3.0):
            self.line(f"step {step}/{self._total}")

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is."""
        if self._bar is not None:
            if self._eval_bar is None:
                self._eval_bar = tqdm(
                    total=total, unit="puzzle", desc="evaluating", leave=False, dynamic_ncols=True
                )
            self._eval_bar.update(done - self._eval_bar.n)
            if done >= total:
                self._eval_bar.close()
                self._eval_bar = None
        elif self._line_is_due():
            self.line(f"evaluating: {done}/{total} puzzles")

    def _line_is_due(self, patience: float = 1.0) -> bool:
        """Whether it is time for the next line; what says less has more patience."""
        now = time.monotonic()
        if self.quiet or now - self._last_line < patience * self._between:
            return False
        self._last_line = now
        return True

    def evaluation(self, event: Evaluation) -> None:
        """Show the result of an evaluation in one line."""
        for name, values in event["metrics"].items():
            extra = "".join(
                f"  {key} {decimals(value, 4)}"
                for key, value in values.items()
                if key in ("accuracy", "valid_grids")
            )
            self.line(
                f"evaluation at step {event['step']}  {name}: "
                f"exact {decimals(values.get('exact_accuracy'), 4)}{extra}"
            )

    def line(self, text: str) -> None:
        """Print a line without breaking the bar; an empty one is none."""
        if self.quiet or not text:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bars."""
        for bar in (self._eval_bar, self._bar):
            if bar is not None:
                bar.close()
