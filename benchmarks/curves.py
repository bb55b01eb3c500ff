"""Tables and pictures of what benchmarks/time_to_accuracy.py and growth.py have measured."""

from math import log
from typing import Any, Dict, List, Optional, Sequence, Tuple

Line = Dict[str, Any]
GIB = 1 << 30


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table."""
    body = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in body)


def digits(value: float) -> str:
    """Write a number with three digits, or all of its whole ones."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


# Time to accuracy --------------------------------------------------------------------------------


def hms(seconds: Optional[float]) -> str:
    """Write seconds, from ten minutes on as minutes."""
    if seconds is None:
        return "-"
    if seconds >= 600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def accuracy_table(lines: Sequence[Line]) -> str:
    """Tabulate when each run reached each accuracy; the newest run of each side and size counts.

    One that was measured for its speed alone does not take the place of one that shows accuracies.
    """
    newest: Dict[Tuple, Line] = {}
    for line in lines:
        if line["kind"] == "accuracy":
            keys = ("machine", "device", "implementation", "config", "gpus", "batch")
            speed_alone = line["ended"] == "steps" or not line["evaluations"]
            key = (*(line[name] for name in keys), tuple(line["settings"]), speed_alone)
            newest.pop(key, None)
            newest[key] = line
    rows = [row for line in newest.values() for row in _accuracy_rows(line)]
    header = ["of", "recipe", "processes", "accuracy", "from the start", "training",
              "the same without compiling", "steps", "kJ", "steps a second at last"]  # fmt: skip
    return markdown(header, rows) if rows else ""


def _accuracy_rows(line: Line) -> List[List[str]]:
    rows = []
    for found in line["reached"]:
        text = f"{found['accuracy']:g} %"
        if not found["reached"]:
            ends = {"limit": f"in {hms(line['limit'])}", "ended": "by its end",
                    "steps": "in the steps asked for"}  # fmt: skip
            text += f": not {ends.get(line['ended'], 'before it was stopped')}"
            best = found["found"]
            text += "; no evaluation" if best is None else f"; best {best:.1f} %"
        joules, step, rate = found["joules"], found["step"], line.get("steps_per_second")
        rows.append(
            [line["implementation"], f"{line['config']}, batch {line['batch']}", str(line["gpus"]),
             text, hms(found["seconds"]), hms(found["training_seconds"]),
             hms(found["steady_seconds"]), "-" if step is None else f"{step:,}",
             "-" if joules is None else f"{joules / 1000:.1f}", digits(rate) if rate else "-"]
        )  # fmt: skip
    return rows


# Growth ------------------------------------------------------------------------------------------

# A slope that changes by so much is a bend.
BEND = 0.3
# Below this share of its floor a step is bound by neither products nor bytes.
FAR = 0.15
SERIES = {
    "batch": "rows of a batch",
    "positions": "positions T, as many in a batch together",
    "cycles": "updates of a step, H (L + 1)",
    "gpus": "processes, as many rows each",
}
QUANTITIES = {
    "ms": lambda line: 1e3 * line["seconds"]["median"],
    "GiB": lambda line: line["peak_memory"] and line["peak_memory"] / GIB,
}
Key = Tuple[str, str, str]


def in_series(lines: Sequence[Line]) -> Dict[Key, List[Line]]:
    """Sort the points of a machine by series, size and case; of each value the newest counts.

    Processes with other rows each are a series of their own: only its points have equal work.

    Returns:
        Points in order of their value, by (series, size, case).
    """
    found: Dict[Key, Dict[Tuple[int, int], Line]] = {}
    for line in lines:
        if line["kind"] == "growth":
            size = line["size"]
            if line["series"] == "gpus":
                size += f", {line['batch'] // line['value']} rows each"
            key = (line["series"], size, line["case"])
            found.setdefault(key, {})[(line["value"], line["batch"])] = line
    return {key: [points[at] for at in sorted(points)] for key, points in found.items()}


def slopes(points: Sequence[Line], quantity: str) -> List[Optional[float]]:
    """Give the slope of the logarithms that leads to each point; None for the first.

    Args:
        points: of a series, by value.
        quantity: of :data:`QUANTITIES`.
    """
    read = QUANTITIES[quantity]
    found: List[Optional[float]] = [None] * min(1, len(points))
    for before, after in zip(points, points[1:]):
        low, high = read(before), read(after)
        apart = before["value"] != after["value"]
        found.append(
            log(high / low) / log(after["value"] / before["value"])
            if low and high and apart
            else None
        )
    return found


def bends(key: Key, points: Sequence[Line]) -> List[str]:
    """Say where a series bends, a line for each place, and how far from its floor it is there."""
    found = []
    for quantity in QUANTITIES:
        rises = slopes(points, quantity)
        for number in range(1, len(points) - 1):
            before, after = rises[number], rises[number + 1]
            if before is not None and after is not None and abs(after - before) > BEND:
                text = f"{key[2]}, {key[1]}, {key[0]}: {quantity} bends at "
                text += (
                    f"{points[number]['label']}, slope {before:.2f} before and {after:.2f} after"
                )
                found.append(text + why(points[number], quantity))
    return found


def why(line: Line, quantity: str) -> str:
    """Say how far a point is from its floor, which tells what bounds it."""
    note = line.get("roofline")
    if quantity != "ms" or not note:
        return ""
    share = f"; {100 * note['share']:.0f} % of the {note['bound']} floor"
    return share + (", so launches and small operations bind" if note["share"] < FAR else "")


def growth_tables(lines: Sequence[Line]) -> str:
    """Tabulate the points of a machine, a table for each series."""
    parts = []
    for series, text in SERIES.items():
        rows = []
        for (name, size, case), points in in_series(lines).items():
            if name == series:
                rises = {quantity: slopes(points, quantity) for quantity in QUANTITIES}
                for number, line in enumerate(points):
                    cells = [f"{case}, {size}", line["label"], str(line["batch"])]
                    for quantity, read in QUANTITIES.items():
                        value, rise = read(line), rises[quantity][number]
                        cells.append("-" if not value else digits(value))
                        cells.append("" if rise is None else f"{rise:.2f}")
                    note = line.get("roofline")
                    share = f"{100 * note['share']:.0f} % ({note['bound']})" if note else "-"
                    rows.append([*cells, share])
        if rows:
            header = ["of", series, "rows", "ms", "slope", "GiB", "slope", "of its floor"]
            parts.append(f"{text[:1].upper()}{text[1:]}:\n\n{markdown(header, rows)}")
    return "\n".join(parts)


def draw_growth(axes: Any, lines: Sequence[Line], series: str) -> None:
    """Draw a series, milliseconds on the first of two axes and GiB on the second."""
    from matplotlib.ticker import LogLocator, NullLocator

    for axis, (quantity, read) in zip(axes, QUANTITIES.items()):
        for (name, size, case), points in in_series(lines).items():
            shown = [(line["value"], read(line)) for line in points if read(line)]
            if name == series and shown:
                style = "-" if case == "train" else "--"
                axis.plot(*zip(*shown), style, marker="o", markersize=3, label=f"{case}, {size}")
        axis.set(xscale="log", yscale="log")
        places = {line["value"]: line["label"] for line in lines if line.get("series") == series}
        axis.set_xticks(list(places), list(places.values()), fontsize=7)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
        axis.tick_params(labelsize=7)
        axis.set_xlabel(SERIES[series], fontsize=8)
        axis.set_ylabel(quantity, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=6)
