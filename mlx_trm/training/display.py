"""How a run in Python shows that it goes on, and what a notebook shows of its report."""

import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from mlx_trm.config.html import table_html
from mlx_trm.drawing.notebook import in_notebook
from mlx_trm.inference.evaluator import Metrics
from mlx_trm.runs.metrics import StepReport

SHOWN = ("lm_loss", "exact_accuracy")


class ProgressBar:
    """A bar of a run's steps and one of each evaluation's puzzles, of tqdm.

    They are pictures in a notebook that has widgets, and text everywhere else.
    """

    def __init__(self, start: int, total: int, shown: bool) -> None:
        """Show the bar.

        Args:
            start: steps done before.
            total: steps of the run.
            shown: False: everything below does nothing.
        """
        self._bar: Any = None
        self._evaluation: Any = None
        if shown:
            self._bar = _make_bar(total=total, initial=start, unit="step")

    def tick(self, step: int) -> None:
        """Show that a step is done."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def step(self, report: StepReport) -> None:
        """Show what training measures."""
        if self._bar is not None:
            values = {name: report.metrics[name] for name in SHOWN if name in report.metrics}
            shown = {name: f"{value:.4f}" for name, value in values.items()}
            self._bar.set_postfix(shown, refresh=False)

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is; its bar goes when it is through."""
        if self._bar is None:
            return
        if self._evaluation is None:
            self._evaluation = _make_bar(total=total, unit="puzzle", desc="evaluating", leave=False)
        self._evaluation.update(done - self._evaluation.n)
        if done >= total:
            self._evaluation.close()
            self._evaluation = None

    def close(self) -> None:
        """End the bars."""
        for bar in (self._evaluation, self._bar):
            if bar is not None:
                bar.close()


def _make_bar(**options: Any) -> Any:
    """Make the bar that suits the place: a widget in a notebook that has any, else text."""
    import warnings

    # A notebook without widgets shows what comes from stderr on red, as if it were an error.
    file = sys.stdout if in_notebook() else sys.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm says that widgets are missing
        from tqdm.auto import tqdm

        return tqdm(dynamic_ncols=True, file=file, mininterval=0.5, **options)


def wants_bar(progress: Optional[bool]) -> bool:
    """Say whether to show a bar; None: in a terminal or a notebook, not in a file or a pipe."""
    return progress if progress is not None else sys.stderr.isatty() or in_notebook()


def both(first: Callable[..., None], second: Optional[Callable[..., None]]) -> Callable[..., None]:
    """Give what calls one, then the other, if there is another, with the same arguments."""
    if second is None:
        return first
    other = second

    def call(*words: Any) -> None:
        first(*words)
        other(*words)

    return call


def report_html(
    about: Sequence[Tuple[str, str]], evaluations: Sequence[Tuple[int, Dict[str, Metrics]]]
) -> str:
    """Write a report as tables: what the run did, then its evaluations, the newest last.

    Args:
        about: names and values.
        evaluations: (step, metrics of each set) in order.
    """
    names = [
        name
        for name in dict.fromkeys(
            name for _, sets in evaluations for values in sets.values() for name in values
        )
        if not name.endswith(("_low", "_high"))
    ]
    rows: List[List[str]] = [
        [str(step), kind, *(f"{values[name]:.4g}" if name in values else "" for name in names)]
        for step, sets in evaluations
        for kind, values in sets.items()
    ]
    table = table_html(rows, ["step", "set", *names]) if rows else ""
    return table_html(about) + table
