"""Tables, durations, sizes and metrics as the commands print them."""

import math
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from mlx_trm.drawing.terminal import side_by_side, use_color
from mlx_trm.errors import printable
from mlx_trm.system.memory import GIB

__all__ = [
    "duration",
    "metric_rows",
    "rough_duration",
    "score_header",
    "score_rows",
    "side_by_side",
    "size",
    "table",
    "use_color",
]


# Said where nothing can be right or wrong, because no answer is known.
NO_SOLUTIONS = "no solutions"


def table(rows: Sequence[Sequence[str]], header: Optional[Sequence[str]] = None) -> str:
    """Lay out rows of text in columns as wide as their longest entry.

    Args:
        rows: each as long as the others.
        header: printed first and underlined, where given.
    """
    lines = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    if header:
        lines.insert(0, list(header))
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


def rough_duration(seconds: float) -> str:
    """Give seconds as people say them: ``12 minutes``, ``5 hours``, ``11 days``."""
    year = 365 * 86400
    for unit, length, least in (
        ("year", year, 2),
        ("day", 86400, 2),
        ("hour", 3600, 2),
        ("minute", 60, 2),
    ):
        if seconds >= least * length:
            return f"{seconds / length:.0f} {unit}s"
    return f"{max(1, seconds):.0f} seconds"


def size(number_of_bytes: float) -> str:
    """Give bytes as ``3.2 GiB`` or ``12 MiB``."""
    if number_of_bytes >= GIB:
        return f"{number_of_bytes / GIB:.1f} GiB"
    return f"{number_of_bytes / (1 << 20):.1f} MiB"


def metric_rows(metrics: Dict[str, Dict[str, float]]) -> List[Tuple[str, str, str]]:
    """Turn an evaluation's metrics into (set, metric, value) rows for a table.

    What was not measured is a dash.
    """
    rows = []
    for name, values in metrics.items():
        nothing = "-"
        if values.get("count") == 0:
            rows += [(name, "count", "0"), (name, "accuracy", NO_SOLUTIONS)]
            values = {key: value for key, value in values.items() if key != "count"}
            nothing = NO_SOLUTIONS
        low, high = values.get("exact_accuracy_low"), values.get("exact_accuracy_high")
        for key, value in values.items():
            if key.startswith("exact_accuracy_"):
                continue
            text = f"{value:.0f}" if key == "count" else f"{value:.4f}"
            if key == "steps":
                text = f"{value:.2f}"
            if math.isnan(value):
                text = nothing
            if key == "exact_accuracy" and low is not None and high is not None:
                text += f"  (95 % interval {low:.4f} to {high:.4f})"
            rows.append((name, key, text))
    return rows


def score_header(name: str) -> Tuple[str, ...]:
    """Give the header of :func:`score_rows`, with what the first column holds."""
    return (name, "puzzles", "exact", "95 % interval", "mean steps", "rollouts")


def score_rows(scores: Mapping[str, Mapping[str, float]]) -> List[Tuple[str, ...]]:
    """Turn accuracies with their cost into rows of a table; what is not known is left empty."""
    rows = []
    nothing = "" if any(values["count"] for values in scores.values()) else NO_SOLUTIONS
    for name, values in scores.items():
        row = [name, f"{values['count']:.0f}"]
        if "exact_accuracy" in values:
            low, high = values["exact_accuracy_low"], values["exact_accuracy_high"]
            row += [f"{values['exact_accuracy']:.4f}", f"{low:.4f} to {high:.4f}"]
        for cost in ("steps", "rollouts"):
            row.append(f"{values[cost]:.2f}" if cost in values else "")
        rows.append(tuple(row[:2] + [nothing, ""] + row[2:] if len(row) < 6 else row))
    return rows
