"""What the commands show while they work: a bar in a terminal, plain lines elsewhere."""

import os
import re
import sys
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from tqdm import tqdm

from mlx_trm.runs.folder import StepReport

GIB = 1 << 30
ANSI = re.compile(r"(\033\[[0-9;]*m)")


def table(rows: Sequence[Sequence[str]], header: Optional[Sequence[str]] = None) -> str:
    """Lay out rows of text in columns as wide as their longest entry.

    Args:
        rows: each as long as the others.
        header: printed first and underlined, where given.
    """
    lines = [list(header)] + [list(row) for row in rows] if header else [list(row) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines]
    if header:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in text)


def duration(seconds: float) -> str:
    """Give seconds as ``1h02m``, ``3m05s`` or ``12s``."""
    whole = int(round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"


def size(number_of_bytes: float) -> str:
    """Give bytes as ``3.2 GiB`` or ``12 MiB``."""
    if number_of_bytes >= GIB:
        return f"{number_of_bytes / GIB:.1f} GiB"
    return f"{number_of_bytes / (1 << 20):.1f} MiB"


def metric_rows(metrics: Dict[str, Dict[str, float]]) -> List[Tuple[str, str, str]]:
    """Turn an evaluation's metrics into (set, metric, value) rows for a table."""
    rows = []
    for name, values in metrics.items():
        low, high = values.get("exact_accuracy_low"), values.get("exact_accuracy_high")
        for key, value in values.items():
            if key.startswith("exact_accuracy_"):
                continue
            text = f"{value:.0f}" if key == "count" else f"{value:.4f}"
            if key == "steps":
                text = f"{value:.2f}"
            if key == "exact_accuracy" and low is not None and high is not None:
                text += f"  (95 % interval {low:.4f} to {high:.4f})"
            rows.append((name, key, text))
    return rows


def side_by_side(left: str, right: str, gap: str = "   ") -> str:
    """Put two drawings beside each other; colour codes take no room."""
    ours, theirs = left.splitlines(), right.splitlines()
    width = max(len(ANSI.sub("", line)) for line in ours)
    height = max(len(ours), len(theirs))
    ours += [""] * (height - len(ours))
    theirs += [""] * (height - len(theirs))
    lines = (a + " " * (width - len(ANSI.sub("", a))) + gap + b for a, b in zip(ours, theirs))
    return "\n".join(line.rstrip() for line in lines)


def use_color() -> bool:
    """Whether standard output is a terminal that may be coloured."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


class Progress:
    """Shows a training run; give its methods to :meth:`mlx_trm.training.trainer.Trainer.fit`."""

    def __init__(
        self,
        total: int,
        quiet: bool = False,
        seconds_between_lines: float = 10.0,
        start: int = 0,
    ) -> None:
        """Start the display.

        Args:
            total: supervision steps of the run.
            quiet: show nothing.
            seconds_between_lines: how often a line is printed where there is no terminal.
            start: steps done before.
        """
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
            "exact": f"{metrics['exact_accuracy']:.3f}",
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

    def evaluation(self, event: Dict[str, Any]) -> None:
        """Show the result of an evaluation in one line."""
        for name, values in event["metrics"].items():
            extra = "".join(
                f"  {key} {value:.4f}"
                for key, value in values.items()
                if key in ("accuracy", "valid_grids")
            )
            self.line(
                f"evaluation at step {event['step']}  {name}: "
                f"exact {values.get('exact_accuracy', 0.0):.4f}{extra}"
            )

    def line(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self.quiet:
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
