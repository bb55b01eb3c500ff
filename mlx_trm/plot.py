"""``python -m mlx_trm.plot``: draw what runs have logged, or print it."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from mlx_trm.cli import tables as display
from mlx_trm.cli.arguments import positive, writable
from mlx_trm.cli.running import make_main
from mlx_trm.drawing.charts import save_chart
from mlx_trm.drawing.figures import FORMATS, check_matplotlib
from mlx_trm.drawing.run_logs import RunLog, Series, read_runs, smooth
from mlx_trm.errors import ConfigError, did_you_mean

LOGGER = logging.getLogger(__name__)
PICTURE, SUFFIXES = "metrics.png", ".png, .pdf or .svg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run folder, or a metrics.jsonl file"
    )
    parser.add_argument(
        "--output",
        type=picture,
        metavar="FILE",
        help=f"a {SUFFIXES} file (default: {PICTURE} in the run folder; of several runs, here)",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="only these, such as lm_loss exact_accuracy lr (default: what one usually looks at)",
    )
    parser.add_argument(
        "--smooth",
        type=positive,
        default=1,
        metavar="N",
        help="average over N lines of training",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the last values; a picture is drawn only where --output asks for it",
    )


def picture(text: str) -> Path:
    """Read the name of a picture to write."""
    path = writable(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: its name must end in {SUFFIXES}")
    return path


def run(args: argparse.Namespace) -> int:
    """Draw the runs, or print their last values."""
    drawn = args.output is not None or not args.table
    if drawn:
        check_matplotlib("plot")
    logs = read_runs(args.runs)
    check_metrics(args.metrics, logs)
    for log in logs:
        if log.cut:
            LOGGER.info("%s: its last line was cut off and is left out", log.path)
    logs = [smooth(log, args.smooth) for log in logs]
    if args.table:
        rows = last_values(logs, args.metrics)
        names = ["value"] if len(logs) == 1 else [log.name for log in logs]
        print(display.table(rows, ["set", "metric", *names]))
    if drawn:
        path = args.output or default_output(logs)
        save_chart(path, logs, args.metrics)
        if not args.quiet:
            print(f"written: {path}")
    return 0


def check_metrics(names: Optional[Sequence[str]], logs: Sequence[RunLog]) -> None:
    """Refuse metrics that no run has.

    Raises:
        ConfigError: with a suggestion.
    """
    known = list(dict.fromkeys(name for log in logs for name in log.metrics()))
    for name in names or []:
        if name not in known:
            raise ConfigError(
                f"--metrics: no run has {name!r}{did_you_mean(name, known)} "
                f"(logged: {', '.join(known)})"
            )


def default_output(logs: Sequence[RunLog]) -> Path:
    """Give the place of the picture where none was named.

    Raises:
        ConfigError: if nothing can be written there.
    """
    folder = logs[0].path.parent if len(logs) == 1 else Path()
    try:
        return writable(os.fspath(folder / PICTURE))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{error}; name another place with --output") from error


# The table --------------------------------------------------------------------------------------


def last_values(logs: Sequence[RunLog], metrics: Optional[Sequence[str]] = None) -> List[List[str]]:
    """Lay out the last values as (part of the logs, metric, value of each run).

    Args:
        logs: of the runs.
        metrics: to show; None for all.
    """
    rows: List[List[str]] = []
    for part in dict.fromkeys(part for log in logs for part in log.parts):
        columns = [_cells(log.parts.get(part, {}), metrics) for log in logs]
        for metric in dict.fromkeys(metric for column in columns for metric in column):
            rows.append([part, metric, *(column.get(metric, "-") for column in columns)])
    return rows


def _cells(part: Dict[str, Series], metrics: Optional[Sequence[str]]) -> Dict[str, str]:
    """Give the last values of a run by metric, as text; the step comes first."""
    if not part:
        return {}
    cells = {"step": f"{max(series.steps[-1] for series in part.values()):.0f}"}
    for name, series in part.items():
        if name not in metrics if metrics is not None else name.endswith(("_low", "_high")):
            continue
        cells[name] = as_text(name, series.values[-1])
        if f"{name}_low" in part and f"{name}_high" in part:
            low, high = (part[f"{name}_{end}"].values[-1] for end in ("low", "high"))
            cells[name] += f"  ({low:.4f} to {high:.4f})"
    return cells


def as_text(name: str, value: float) -> str:
    """Write a value as its metric is usually written."""
    if name == "peak_memory":
        return display.size(value)
    formats = {"lr": ".2e", "count": ".0f", "steps": ".2f", "steps_per_second": ".2f"}
    return f"{value:{formats.get(name, '.4f')}}"


main = make_main("plot", add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
