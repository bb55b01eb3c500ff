"""Draws the curves of runs with matplotlib (extra ``plot``): a panel a metric, a colour a run."""

import io
import math
import warnings
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Union

import numpy as np

from mlx_trm.drawing.figures import check_matplotlib, write_figure
from mlx_trm.drawing.run_logs import TRAIN, RunLog, read_runs, thin
from mlx_trm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The order of the panels: FIRST, whatever else the runs have measured, LAST.
FIRST = ("lm_loss", "q_halt_loss", "exact_accuracy", "accuracy")
LAST = ("steps", "lr", "steps_per_second", "peak_memory")
TITLES = {
    "steps": "supervision steps until halting",
    "lr": "learning rate",
    "steps_per_second": "steps per second",
}
ON_REQUEST = ("q_halt_accuracy", "count")
MOST_PANELS, MOST_POINTS, LONGEST_NAME = 100, 600, 60
GIB, MIB = float(1 << 30), float(1 << 20)
Look = Dict[str, Any]  # of a line, as matplotlib takes it
TRAINED: Look = {"linewidth": 1.2, "alpha": 0.7}
EVALUATED: Look = {"linewidth": 1.6, "markersize": 4.5, "zorder": 3}


def choose_metrics(logs: Sequence[RunLog]) -> List[str]:
    """Choose what one usually looks at, in the order of its panels.

    Raises:
        DataError: if the runs have logged nothing of the kind.
    """
    logged = dict.fromkeys(name for log in logs for name in log.metrics())
    others = [
        name
        for name in logged
        if name not in FIRST + LAST + ON_REQUEST and not name.endswith(("_low", "_high"))
    ]
    names = [name for name in (*FIRST, *others, *LAST) if name in logged]
    if not names:
        raise DataError(f"{logs[0].path}: nothing to draw; --metrics chooses what is drawn")
    return names


def save_chart(path: Path, logs: Sequence[RunLog], metrics: Optional[Sequence[str]] = None) -> None:
    """Draw runs and write the picture whole or not at all.

    Args:
        path: a .png, .pdf or .svg file; replaced if it is there.
        logs: of the runs.
        metrics: to draw, each logged by a run; None for those of :func:`choose_metrics`.

    Raises:
        ConfigError: if matplotlib is missing, there are too many metrics, or the file cannot be
            written.
        DataError: if there is nothing to draw.
    """
    check_matplotlib("plot")
    names = choose_metrics(logs) if metrics is None else list(dict.fromkeys(metrics))
    if len(names) > MOST_PANELS:
        raise ConfigError(f"{len(names)} metrics do not fit a picture; choose some by --metrics")
    write_figure(draw_chart(logs, names), path, "--output")


class Chart:
    """Curves of runs: a notebook shows them, :meth:`save` writes them.

    Attributes:
        figure: of matplotlib, to be changed before it is shown.
    """

    def __init__(self, figure: "Figure") -> None:
        """Keep a figure.

        Args:
            figure: of matplotlib.
        """
        self.figure = figure

    def __repr__(self) -> str:
        """Say what it is, without an address that differs each time."""
        return f"Chart({len(self.figure.axes)} panels)"

    def save(self, path: Union[str, Path]) -> None:
        """Write it as .png, .pdf or .svg; the file is replaced if it is there.

        Raises:
            ConfigError: if it cannot be written.
        """
        write_figure(self.figure, Path(path), "save")

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of characters that the font lacks
            self.figure.savefig(content, format="png", dpi=100)
        return content.getvalue()


def chart_run(folder: Path) -> Chart:
    """Draw the log of a run.

    Args:
        folder: of the run.

    Raises:
        ConfigError: if matplotlib is missing.
        DataError: if there is nothing to draw.
    """
    check_matplotlib("plot")
    logs = read_runs([str(folder)])
    return Chart(draw_chart(logs, choose_metrics(logs)))


def draw_chart(logs: Sequence[RunLog], metrics: Sequence[str]) -> "Figure":
    """Draw a panel for each metric in a grid, and a legend above them.

    A colour is a run; thin lines are training, lines with markers are evaluations.

    Args:
        logs: of the runs.
        metrics: at least one, each logged by a run.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    count = len(logs)
    palette = colormaps["tab10" if count <= 10 else "tab20" if count <= 20 else "turbo"]
    colors = [(palette.resampled(count) if count > 20 else palette)(n) for n in range(count)]
    parts = dict.fromkeys(part for log in logs for name in metrics for part in _parts(log, name))
    markers = cycle("os^DvP")
    looks = {
        part: TRAINED if part == TRAIN else {**EVALUATED, "marker": next(markers)} for part in parts
    }

    columns = 2 if len(metrics) == 4 else min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    labels = [_plain(name) for name in [*(log.name for log in logs), *looks]]
    inches = 0.65 + 0.09 * max(map(len, labels))  # of a place in the legend, roughly
    width = max(4.6 * columns, inches)
    across = int(width / inches)
    height = 3.2 * rows + 0.22 * math.ceil(len(labels) / across)
    figure = Figure((width, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for name, axes in zip(metrics, grid):
        _draw(axes, name, logs, colors, looks)
    for axes in grid[len(metrics) :]:
        axes.set_axis_off()
    figure.supxlabel("training step", fontsize=10)
    figure.legend(
        [Line2D([], [], color=color, linewidth=2.5) for color in colors]
        + [Line2D([], [], color="#555555", **look) for look in looks.values()],
        labels,
        loc="outside upper center",
        ncols=across,
        frameon=False,
    )
    return figure


def _parts(log: RunLog, metric: str) -> List[str]:
    """Give the parts of a log in which a metric is drawn."""
    parts = [part for part, series in log.parts.items() if metric in series]
    # An evaluation takes as many steps as it is told to, which says nothing.
    return [TRAIN] if metric == "steps" and TRAIN in parts else parts


def _draw(
    axes: "Axes",
    metric: str,
    logs: Sequence[RunLog],
    colors: Sequence[Any],
    looks: Dict[str, Look],
) -> None:
    """Draw a metric of all runs, with the interval around each value where one was logged."""
    found = [
        (log.parts[part], color, looks[part])
        for log, color in zip(logs, colors)
        for part in _parts(log, metric)
    ]
    values = np.concatenate([part[metric].values for part, _, _ in found])
    title, scale = TITLES.get(metric, metric), 1.0
    if metric == "peak_memory":
        unit, scale = ("GiB", GIB) if values.max() >= GIB else ("MiB", MIB)
        title = f"peak memory, {unit}"
    for part, color, look in found:
        steps, line = thin(part[metric], MOST_POINTS)
        point = {"marker": "."} if len(steps) == 1 else {}  # a line of one point is invisible
        axes.plot(steps, line / scale, color=color, **{**point, **look})
        ends = [part.get(f"{metric}_{end}") for end in ("low", "high")]
        bounds = [thin(end, MOST_POINTS) for end in ends if end is not None]
        if len(bounds) == 2 and all(np.array_equal(bound.steps, steps) for bound in bounds):
            lower, upper = (bound.values for bound in bounds)
            alpha = min(0.2, 0.5 / len(logs))
            # The edge makes the interval of a single value visible.
            axes.fill_between(steps, lower, upper, color=color, alpha=alpha, linewidth=2)
    _scale(axes, values, far=metric.endswith("loss"))
    axes.set_title(_plain(title), fontsize=11)


def _scale(axes: "Axes", values: np.ndarray, far: bool) -> None:
    """Choose scale and ticks: both axes begin at zero, but for losses, which may fall far.

    Args:
        axes: of a panel, drawn.
        values: (n,) float64, all that is drawn.
        far: whether values that lie far apart get a logarithmic scale.
    """
    from matplotlib.ticker import EngFormatter, LogLocator

    low, high = float(values.min()), float(values.max())
    if far and 0 < 10 * low < high:
        axes.set_yscale("log")
        axes.update_datalim([(0.0, low)], updatey=False)
        if high < 1000 * low:  # powers of ten would be too few
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    else:
        axes.update_datalim([(0.0, 0.0), (0.0, float(high == 0))], updatey=low >= 0)
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    axes.autoscale_view()
    axes.locator_params(axis="x", integer=True, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=9, labelbottom=True)  # where panels share an axis, all show it
    axes.grid(alpha=0.3)


def _plain(text: str) -> str:
    """Keep matplotlib from reading ``$`` as mathematics and a first ``_`` as a secret; be brief."""
    text = text if len(text) <= LONGEST_NAME else "..." + text[3 - LONGEST_NAME :]
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
