"""Draws the curves of runs with matplotlib (extra ``plot``), one panel for each kind of metric."""

import math
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, cast

import numpy as np

from mlx_trm.cli.pictures import check_matplotlib, write_figure
from mlx_trm.cli.run_logs import Curves, RunLog, smooth, thin
from mlx_trm.errors import DataError

# By panel: title, metrics. The first two are what one looks at first, and are drawn large.
PANELS: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    "loss": ("loss", ("lm_loss", "q_halt_loss")),
    "accuracy": ("accuracy", ("exact_accuracy", "accuracy", "q_halt_accuracy")),
    "steps": ("supervision steps until halting", ("steps",)),
    "lr": ("learning rate", ("lr",)),
    "speed": ("steps per second", ("steps_per_second",)),
    "memory": ("peak memory", ("peak_memory",)),
}
LARGE = ("loss", "accuracy")
# Drawn only when asked for.
ON_REQUEST = ("q_halt_accuracy", "count")
MOST_POINTS, LONGEST_NAME = 600, 60
GIB, MIB = float(1 << 30), float(1 << 20)
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
GRAY = "#555555"


class Line(NamedTuple):
    """One curve of a panel.

    Attributes:
        run: its place among the runs.
        metric: its name.
        subset: of an evaluation, its set; None for training.
        steps: (n,) float64.
        values: (n,) float64.
        low: (n,) float64, the lower end of an interval around each value; or None.
        high: (n,) float64, its upper end; or None.
    """

    run: int
    metric: str
    subset: Optional[str]
    steps: np.ndarray
    values: np.ndarray
    low: Optional[np.ndarray] = None
    high: Optional[np.ndarray] = None


# What is drawn where ----------------------------------------------------------------------------


def plan(
    logs: Sequence[RunLog], metrics: Optional[Sequence[str]] = None, lines: int = 1
) -> Dict[str, List[Line]]:
    """Choose the curves of each panel.

    Args:
        logs: of the runs.
        metrics: to draw; None for those one usually looks at.
        lines: of a log that are averaged.

    Returns:
        By panel, in their order; none of them empty. A metric that has no panel has one of its
        own.

    Raises:
        DataError: if there is nothing to draw.
    """
    panels: Dict[str, List[Line]] = {name: [] for name in PANELS}
    for number, log in enumerate(logs):
        train = smooth(log.train, lines)
        names = log.metrics() if metrics is None else metrics
        for name in sorted(names, key=_rank):
            panel = _panel(name, log, on_request=metrics is not None)
            if panel is None:
                continue
            found = list(_lines_of(name, number, log, train, panel))
            panels.setdefault(panel, []).extend(found)
    panels = {name: found for name, found in panels.items() if found}
    if not panels:
        raise DataError(f"{logs[0].path}: nothing to draw; --metrics chooses what is drawn")
    return panels


def _rank(name: str) -> int:
    """Put the metrics that panels know into their order, before the others."""
    known = [metric for _, metrics in PANELS.values() for metric in metrics]
    return known.index(name) if name in known else len(known)


def _panel(name: str, log: RunLog, on_request: bool) -> Optional[str]:
    """Give the panel of a metric; None where it is not drawn."""
    if not on_request and (name in ON_REQUEST or name.endswith(("_low", "_high"))):
        return None
    for panel, (_, metrics) in PANELS.items():
        if name in metrics:
            return panel
    values = [curves.values[name] for curves in log.evals.values() if name in curves.values]
    rates = bool(values) and all(np.nanmin(v) >= 0 and np.nanmax(v) <= 1 for v in values)
    if rates and name != "count":
        return "accuracy"
    return f"other/{name}" if on_request else None


def _lines_of(name: str, number: int, log: RunLog, train: Curves, panel: str) -> Iterator[Line]:
    """Yield a metric's curves of one run: its training, then its evaluations."""
    if name in train.values:
        steps, values = thin(train.steps, train.values[name], MOST_POINTS)
        yield Line(number, name, None, steps, values)
    if panel == "steps" and name in train.values:
        return  # an evaluation takes as many as it is told to
    for subset, curves in log.evals.items():
        if name not in curves.values:
            continue
        ends = [curves.values.get(f"{name}_{end}") for end in ("low", "high")]
        steps, values = thin(curves.steps, curves.values[name], MOST_POINTS)
        if any(end is None or len(steps) != np.count_nonzero(~np.isnan(end)) for end in ends):
            yield Line(number, name, subset, steps, values)
        else:
            low, high = (thin(curves.steps, end, MOST_POINTS)[1] for end in ends if end is not None)
            yield Line(number, name, subset, steps, values, low, high)


# Drawing ----------------------------------------------------------------------------------------


def save_chart(path: Path, logs: Sequence[RunLog], panels: Dict[str, List[Line]]) -> None:
    """Draw panels and write them whole.

    Args:
        path: a .png or .pdf file; replaced if it is there.
        logs: of the runs, for their names.
        panels: of :func:`plan`.

    Raises:
        ConfigError: if matplotlib is missing, or the file cannot be written.
    """
    check_matplotlib("plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = layout(list(panels))
    names = [_plain(log.name) for log in logs]
    width = (3.7 if len(rows[0]) > 2 else 5.5) * len(rows[0])
    columns = max(1, min(len(logs), int(11 * width / (max(map(len, names)) + 9))))
    height = 3.6 * len(rows) + 0.22 * math.ceil(len(logs) / columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic(cast(Any, rows), empty_sentinel="")
    last = max(line.steps.max() for lines in panels.values() for line in lines)
    for name, lines in panels.items():
        _draw(axes[name], name, lines, len(logs))
        axes[name].set_xlim(-0.02 * last, 1.02 * last if last else 1.0)
    if len(logs) == 1:
        figure.suptitle(names[0], fontsize=13)
    else:
        handles = [
            Line2D([], [], color=color(number, len(logs)), linewidth=2.5)
            for number in range(len(logs))
        ]
        figure.legend(handles, names, loc="outside upper center", ncols=columns, frameon=False)
    write_figure(figure, path, "--output")


def layout(names: Sequence[str]) -> List[List[str]]:
    """Lay panels out in rows; a large one takes two places beside each other."""
    cells = [[name, name] if name in LARGE and len(names) > 2 else [name] for name in names]
    large = [cell for cell in cells if len(cell) == 2]
    small = [name for cell in cells if len(cell) == 1 for name in cell]
    if not large:
        width = len(small) if len(small) <= 3 else 2 if len(small) == 4 else 3
        rows = [list(small[start : start + width]) for start in range(0, len(small), width)]
    else:
        # The large ones below each other, the small ones to their right.
        width = -(-len(small) // len(large))
        beside = [small[row * width : (row + 1) * width] for row in range(len(large))]
        rows = [cell + row for cell, row in zip(large, beside)]
    longest = max(map(len, rows))
    return [row + [""] * (longest - len(row)) for row in rows]


def _draw(axes: Any, panel: str, lines: Sequence[Line], runs: int) -> None:
    """Draw a panel: colours are runs, or metrics where there is one run; points are evaluations."""
    metrics = list(dict.fromkeys(line.metric for line in lines))
    subsets = list(dict.fromkeys(line.subset for line in lines))
    sets = [subset for subset in subsets if subset is not None]
    unit, scale = "", 1.0
    if panel == "memory":
        large = max(line.values.max() for line in lines) >= GIB
        unit, scale = (", GiB", GIB) if large else (", MiB", MIB)
    of_metric: Dict[str, Any] = {}
    of_subset: Dict[str, Any] = {}
    for line in lines:
        place = metrics.index(line.metric)
        look: Dict[str, Any] = {
            "color": color(line.run, runs) if runs > 1 else color(place, len(metrics)),
            "linestyle": STYLES[place % len(STYLES)] if runs > 1 else "-",
        }
        of_metric[line.metric] = {**look, "color": GRAY if runs > 1 else look["color"]}
        kind: Dict[str, Any] = {"linewidth": 1.4}
        if line.subset is not None:
            kind = {"linewidth": 1.8, "marker": MARKERS[sets.index(line.subset) % len(MARKERS)]}
            _band(axes, line, look["color"], alpha=min(0.15, 0.4 / runs))
        elif sets:
            kind = {"linewidth": 1.1, "alpha": 0.55}
        elif len(line.steps) == 1:
            kind["marker"] = "."
        of_subset[_kind(line.subset, sets)] = {"color": GRAY, **kind}
        # The first metric on top; of the later ones rings look out where values are the same.
        ring = {"markersize": 4.5} if place < 2 else {"markersize": 7, "markerfacecolor": "white"}
        axes.plot(line.steps, line.values / scale, **look, **kind, **ring, zorder=9 - place)
    alone = panel not in PANELS or (panel in LARGE and len(metrics) == 1)
    axes.set_title(_plain((metrics[0] if alone else PANELS[panel][0]) + unit), fontsize=11)
    _scale(axes, panel, np.concatenate([line.values / scale for line in lines]))
    _finish(axes)
    entries = of_metric if len(metrics) > 1 else {}
    if len(subsets) > 1 or len(sets) > 1:
        entries = {**entries, **of_subset}
    if entries:
        _legend(axes, entries)


def _kind(subset: Optional[str], sets: Sequence[str]) -> str:
    """Say what was measured on: training, or a set; the only set needs no name."""
    if subset is None:
        return "in training"
    return f"evaluation: {subset}" if len(sets) > 1 else "evaluation"


def _band(axes: Any, line: Line, shade: Any, alpha: float) -> None:
    """Draw the interval around each value: a band, or a bar where there is one value."""
    if line.low is None or line.high is None:
        return
    if len(line.steps) == 1:
        axes.vlines(line.steps, line.low, line.high, color=shade, linewidth=4, alpha=2 * alpha)
    else:
        axes.fill_between(line.steps, line.low, line.high, color=shade, alpha=alpha, linewidth=0)


def _scale(axes: Any, panel: str, values: np.ndarray) -> None:
    """Choose the vertical scale: logarithmic for losses, from zero for what has no negatives."""
    low, high = float(values.min()), float(values.max())
    if panel == "loss" and low > 0:
        axes.set_yscale("log")
        return
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    if panel == "accuracy":
        axes.set_ylim(-0.02, 1.02)
    elif low >= 0 < high:
        axes.set_ylim(0.0, 1.06 * high)


def _finish(axes: Any) -> None:
    """Give a panel its ticks and grid."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel("training step", fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=9)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(axes: Any, entries: Dict[str, Any]) -> None:
    """Say what the lines of a panel are."""
    from matplotlib.lines import Line2D

    axes.legend(
        [Line2D([], [], **{"markersize": 4.5, **look}) for look in entries.values()],
        [_plain(name) for name in entries],
        fontsize=8,
        ncols=1 if len(entries) < 7 else 2,
        framealpha=0.8,
        edgecolor="none",
        handlelength=2.6,
        loc="best",
    ).set_zorder(20)


def color(place: int, count: int) -> Any:
    """Give one of ``count`` colours that can be told apart."""
    if count <= 10:
        return f"C{place}"
    from matplotlib import colormaps

    return colormaps["turbo"](0.05 + 0.9 * place / (count - 1))


def _plain(text: str) -> str:
    """Keep matplotlib from reading ``$`` as mathematics and a first ``_`` as a secret; be brief."""
    text = text if len(text) <= LONGEST_NAME else "..." + text[3 - LONGEST_NAME :]
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
