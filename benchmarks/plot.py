"""Make tables and pictures of results.

    python benchmarks/plot.py                          # all of benchmarks/results
    python benchmarks/plot.py FILE.jsonl --output pictures

Writes tables.md, and with matplotlib (in the extras plot and dev) times, memory, roofline and
growth as .png and .pdf. Of measurements of the same thing on the same machine the newest counts;
beside the original, the newest run that measured both.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from curves import SERIES, accuracy_table, digits, draw_growth, growth_tables, in_series, markdown
from results import FOLDER, OURS, THEIRS, read, remarks

from mlx_trm.cli.arguments import Parser
from mlx_trm.cli.running import console_messages, report_error
from mlx_trm.drawing.figures import check_matplotlib, write_figure
from mlx_trm.errors import ConfigError
from mlx_trm.system.files import write_text

Line = Dict[str, Any]
GIB = 1 << 30
COLORS = {OURS: "#1b7f5c", THEIRS: "#9aa0a6"}
KINDS = ("result", "accuracy", "growth", "kernels")
SAME = ("machine", "device", "implementation", "case", "size", "batch", "dtype", "compiled")


def newest(lines: Sequence[Line], kind: str = "result") -> List[Line]:
    """Keep the newest result of each thing measured, in order of first appearance."""
    found: Dict[Tuple, Line] = {}
    for line in lines:
        if line["kind"] == kind:
            found[tuple(line[key] for key in SAME)] = line
    return list(found.values())


def machines(lines: Sequence[Line]) -> List[Tuple[str, str]]:
    """Give (machine, device) in order."""
    return list(dict.fromkeys((line["machine"], line["device"]) for line in lines))


def of_machine(lines: Sequence[Line], machine: Tuple[str, str]) -> List[Line]:
    """Give the results of a machine and device."""
    return [line for line in lines if (line["machine"], line["device"]) == machine]


# Tables ------------------------------------------------------------------------------------------


def tables(lines: Sequence[Line]) -> str:
    """Write Markdown tables, a section for each machine and device."""
    parts = []
    for machine in machines(lines):
        every = of_machine(lines, machine)
        mine = newest(every)
        parts.append(f"### {machine[0]}, {machine[1]}\n\n{about(mine or every)}\n")
        found = (beside(every), steps(mine), kernel_table(newest(every, "kernels")), others(mine),
                 accuracy_table(every), growth_tables(every))  # fmt: skip
        parts += [table for table in found if table]
    return "\n".join(parts)


def about(lines: Sequence[Line]) -> str:
    """Say with what and when a machine's results were made."""
    ours = [line for line in lines if line["implementation"] == OURS] or list(lines)
    theirs = [line for line in lines if line["implementation"] == THEIRS]
    last = ours[-1]
    versions = ", ".join(f"{name} {text}" for name, text in last["versions"].items())
    mark = " with changes" if last["dirty"] else ""
    said = [f"{last['date'][:10]}, commit `{last['commit']}`{mark}; {versions}."]
    if theirs:
        facts, made = theirs[-1]["facts"], theirs[-1].get("original", {})
        substituted = "; ".join(facts.get("substituted", [])) or "nothing"
        said.append(
            f"Original: commit `{made.get('commit')}`, PyTorch {theirs[-1]['versions']['torch']}, "
            f"{facts.get('mode')}; replaced: {substituted}."
        )
    return " ".join(said)


def name(line: Line) -> str:
    """Name what a result is of."""
    kind = f"{line['case']}"
    if line.get("size") and not line["case"].startswith("data"):
        kind += f", {line['size']}"
        kind += f", batch {line['batch']}" if line["unit"] in ("step", "batch") else ""
    return kind


def milliseconds(line: Line) -> str:
    """Write the median and quartiles."""
    times = line["seconds"]
    return f"{in_ms(times['median'])} ({in_ms(times['q1'])} to {in_ms(times['q3'])})"


def in_ms(seconds: float) -> str:
    """Write seconds in milliseconds with three digits."""
    return digits(1e3 * seconds)


def gib(line: Optional[Line], key: str = "peak_memory") -> str:
    """Write a memory in GiB, a dash where it was not counted."""
    held = line.get(key) if line else None
    return "-" if not held else f"{held / GIB:.3g}"


def pairs(lines: Sequence[Line]) -> List[Tuple[Line, Line]]:
    """Give ours and theirs of what was measured in turns, each from the newest run with both."""
    keys = ("run", "case", "size", "batch", "dtype")
    lines = [line for line in lines if line["kind"] == "result"]
    theirs = {tuple(x[k] for k in keys): x for x in lines if x["implementation"] == THEIRS}
    found: Dict[Tuple, Tuple[Line, Line]] = {}
    for line in lines:
        other = theirs.get(tuple(line[key] for key in keys))
        if line["implementation"] == OURS and other:
            found[tuple(line[key] for key in SAME)] = (line, other)
    return list(found.values())


def beside(lines: Sequence[Line]) -> str:
    """Tabulate what was measured in turns with the original."""
    rows = []
    for ours, theirs in pairs(lines):
        ratio = theirs["seconds"]["median"] / ours["seconds"]["median"]
        memory = "resident_memory" if not theirs.get("peak_memory") else "peak_memory"
        rows.append(
            [name(ours), ours["dtype"], milliseconds(ours), milliseconds(theirs), f"{ratio:.2f}",
             gib(ours, memory), gib(theirs, memory), memory.split("_", maxsplit=1)[0]]
        )  # fmt: skip
    header = ["case", "dtype", "mlx_trm ms", "original ms", "times as fast", "mlx_trm GiB",
              "original GiB", "memory"]  # fmt: skip
    return markdown(header, rows) if rows else ""


def steps(lines: Sequence[Line]) -> str:
    """Tabulate steps against their floors."""
    rows = []
    for line in lines:
        note = line.get("roofline")
        if note:
            rows.append(
                [name(line), line["implementation"], line["dtype"], milliseconds(line),
                 f"{note['flops'] / 1e12:.3g}", f"{note['bytes'] / 1e9:.3g}",
                 in_ms(note["compute_floor"]), in_ms(note["memory_floor"]),
                 f"{100 * note['share']:.0f} % ({note['bound']})", gib(line)]
            )  # fmt: skip
    header = ["case", "of", "dtype", "ms", "TFLOP", "GB at least", "compute floor ms",
              "memory floor ms", "share reached", "peak GiB"]  # fmt: skip
    return markdown(header, rows) if rows else ""


def kernel_table(lines: Sequence[Line]) -> str:
    """Tabulate what a step's kernels take by kind, in milliseconds, and the power."""
    kinds = list(dict.fromkeys(kind for line in lines for kind in line["kinds"]))
    rows = []
    for line in lines:
        seconds = [line["kinds"].get(kind, 0.0) for kind in kinds]
        rows.append(
            [name({**line, "unit": "step"}), line["implementation"],
             in_ms(line["seconds"]), *(in_ms(value) if value >= 1e-6 else "-" for value in seconds),
             in_ms(line["waits"]), f"{line['launches']:.0f}",
             *(digits(line[key]) if line.get(key) else "-" for key in ("watts", "joules")),
             f"`{line['commit'][:7]}`"]
        )  # fmt: skip
    header = ["case", "of", "ms", *kinds, "waits", "launches", "W", "J", "commit"]
    return markdown(header, rows) if rows else ""


def others(lines: Sequence[Line]) -> str:
    """Tabulate everything else."""
    rows = []
    for line in lines:
        if not line.get("roofline"):
            facts = ", ".join(remarks(line))
            rows.append([name(line), line["unit"], milliseconds(line), facts or "-"])
    return markdown(["case", "unit", "ms", "remarks"], rows) if rows else ""


# Pictures ----------------------------------------------------------------------------------------


def bars(axis: Any, groups: Sequence[Tuple[str, Dict[str, Optional[float]]]]) -> None:
    """Draw horizontal bars, one group a label, one bar an implementation."""
    from matplotlib.patches import Patch

    sides = [side for side in COLORS if any(side in values for _, values in groups)]
    height = 0.8 / len(sides)
    for place, (_, values) in enumerate(groups):
        for offset, side in enumerate(sides):
            value = values.get(side)
            if value is not None:
                at = place + (offset - (len(sides) - 1) / 2) * height
                axis.barh(at, value, height * 0.92, color=COLORS[side])
                axis.annotate(f" {value:.3g}", (value, at), va="center", fontsize=7)
    axis.set_yticks(range(len(groups)), [label for label, _ in groups], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    if len(sides) > 1:
        axis.legend(handles=[Patch(color=COLORS[s], label=s) for s in sides], fontsize=8)


def grouped(lines: Sequence[Line], value: Any) -> List[Tuple[str, Dict[str, Optional[float]]]]:
    """Group results of train and eval by what they are of; two sides are of one run."""
    found: Dict[str, Dict[str, Optional[float]]] = {}
    for line in newest(lines):
        if line.get("roofline") and (line["implementation"] == OURS or name(line) not in found):
            found[name(line)] = {line["implementation"]: value(line)}
    for ours, theirs in pairs(lines):
        if ours.get("roofline"):
            found[name(ours)] = {OURS: value(ours), THEIRS: value(theirs)}
    return [(label, values) for label, values in found.items() if any(values.values())]


PICTURES = {
    "times": ("milliseconds a step (median)", lambda x: 1e3 * x["seconds"]["median"]),
    "memory": ("peak memory, GiB", lambda x: x["peak_memory"] and x["peak_memory"] / GIB),
    "roofline": ("% of the higher floor", lambda x: 100 * x["roofline"]["share"]),
}


def draw(lines: Sequence[Line], folder: Path) -> List[Path]:
    """Draw the pictures, a panel for each machine and device; gives the files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    for title, (text, value) in PICTURES.items():
        panels = [(m, grouped(of_machine(lines, m), value)) for m in machines(lines)]
        panels = [(machine, groups) for machine, groups in panels if groups]
        if not panels:
            continue
        heights = [0.8 + 0.45 * len(groups) for _, groups in panels]
        figure = Figure(figsize=(8, sum(heights) + 0.6 * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, (machine, groups) in zip(axes, panels):
            bars(axis, groups)
            axis.set_title(f"{machine[0]}, {machine[1]}", fontsize=9)
            axis.set_xlabel(text, fontsize=8)
        written += save(figure, folder / title)
    return written + draw_curves(lines, folder)


def draw_curves(lines: Sequence[Line], folder: Path) -> List[Path]:
    """Draw how a step grows, a row for each machine and series; gives the files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [
        (machine, series)
        for machine in machines(lines)
        for series in SERIES
        if any(key[0] == series for key in in_series(of_machine(lines, machine)))
    ]
    if not rows:
        return []
    figure = Figure(figsize=(8, 3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (machine, series) in zip(figure.subplots(len(rows), 2, squeeze=False), rows):
        draw_growth(axes, of_machine(lines, machine), series)
        axes[0].set_title(f"{machine[0]}, {machine[1]}", fontsize=9)
    return save(figure, folder / "growth")


def save(figure: Any, path: Path) -> List[Path]:
    """Write a figure as .png and .pdf."""
    written = [path.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for each in written:
        write_figure(figure, each, "--output")
    return written


def run(args: argparse.Namespace) -> int:
    """Read, tabulate, draw."""
    lines = [line for line in read(args.results) if line["kind"] in KINDS]
    if all(line["kind"] == "kernels" for line in lines):
        raise ConfigError(f"{args.results}: holds no results; python benchmarks/run.py makes some")
    if not args.no_pictures:
        check_matplotlib("benchmarks/plot.py")
    folder = args.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be made ({error.strerror})") from error
    table = folder / "tables.md"
    write_text(table, tables(lines))
    written = [table] + ([] if args.no_pictures else draw(lines, folder))
    print(f"written: {', '.join(str(path) for path in written)}")
    return 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command; gives the exit code."""
    parser = Parser(
        prog="python benchmarks/plot.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results", nargs="?", type=Path, default=FOLDER, metavar="RESULTS",
        help="a file of results, or a folder of them (default: benchmarks/results)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark_plots"), metavar="FOLDER",
        help="where tables and pictures go (default: benchmark_plots)",
    )  # fmt: skip
    parser.add_argument("--no-pictures", action="store_true", help="tables only")
    with console_messages():
        try:
            return run(parser.parse_args(argv))
        except (Exception, KeyboardInterrupt) as error:  # pylint: disable=broad-exception-caught
            return report_error(error)


if __name__ == "__main__":
    sys.exit(main())
