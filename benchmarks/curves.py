"""Tables and pictures of what benchmarks/time_to_accuracy.py and growth.py have measured."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

Line = Dict[str, Any]
GIB = 1 << 30


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table."""
    body = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in body)


# Time to accuracy --------------------------------------------------------------------------------


def hms(seconds: Optional[float]) -> str:
    """Write seconds, from ten minutes on as minutes."""
    if seconds is None:
        return "-"
    if seconds >= 600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def accuracy_table(lines: Sequence[Line]) -> str:
    """Tabulate when each run reached each accuracy; the newest run of each side and size counts."""
    newest: Dict[Tuple, Line] = {}
    for line in lines:
        if line["kind"] == "accuracy":
            keys = ("machine", "device", "implementation", "config", "gpus", "batch")
            key = tuple(line[name] for name in keys) + (tuple(line["settings"]),)
            newest.pop(key, None)
            newest[key] = line
    rows = [row for line in newest.values() for row in _accuracy_rows(line)]
    header = ["of", "recipe", "processes", "accuracy", "from the start", "training",
              "the same without compiling", "steps", "kJ"]  # fmt: skip
    return markdown(header, rows) if rows else ""


def _accuracy_rows(line: Line) -> List[List[str]]:
    rows = []
    for found in line["reached"]:
        text = f"{found['accuracy']:g} %"
        if not found["reached"]:
            why = {"limit": f"in {hms(line['limit'])}", "ended": "by its end"}
            text += f": not {why.get(line['ended'], 'before it was stopped')}"
            best = found["found"]
            text += "; no evaluation" if best is None else f"; best {best:.1f} %"
        joules, step = found["joules"], found["step"]
        rows.append(
            [line["implementation"], f"{line['config']}, batch {line['batch']}", str(line["gpus"]),
             text, hms(found["seconds"]), hms(found["training_seconds"]),
             hms(found["steady_seconds"]), "-" if step is None else f"{step:,}",
             "-" if joules is None else f"{joules / 1000:.1f}"]
        )  # fmt: skip
    return rows
