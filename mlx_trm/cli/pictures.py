"""Pictures of grid puzzles, drawn by matplotlib (extra ``plot``); how its figures are written."""

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, NamedTuple, Sequence

import numpy as np

from mlx_trm.cli.arguments import writable
from mlx_trm.errors import ConfigError
from mlx_trm.system.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES, MOST_PANELS = 2.2, 400
# By suffix: the date that a picture would carry; without it the same bytes come out tomorrow.
FORMATS: Dict[str, Dict[str, Any]] = {
    ".png": {},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}


class Panel(NamedTuple):
    """One grid of a picture.

    Attributes:
        title: above it.
        pixels: (H, W, 3) uint8, one pixel a cell.
    """

    title: str
    pixels: np.ndarray


def add_png(parser: argparse.ArgumentParser, text: str) -> None:
    """Let a command take ``--png FILE``.

    Args:
        parser: of the command.
        text: the option's help.
    """
    parser.add_argument("--png", type=writable, metavar="FILE", help=text)


def check_matplotlib(who: str) -> None:
    """Refuse where matplotlib is missing; before the work, not after it.

    Args:
        who: needs it, ``plot`` or ``--png``.

    Raises:
        ConfigError: saying what to install.
    """
    try:
        import matplotlib  # noqa: F401  pylint: disable=unused-import
    except ImportError as error:
        raise ConfigError(f'{who}: needs matplotlib; pip install "mlx_trm[plot]"') from error


def save_png(path: Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw panels in rows and write them whole.

    Args:
        path: of the file; replaced if it is there.
        rows: of panels; they may have different lengths.

    Raises:
        ConfigError: if there are too many panels, or the file cannot be written.
    """
    check_matplotlib("--png")
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    if len(rows) * columns > MOST_PANELS:
        raise ConfigError(f"--png: {len(rows) * columns} grids do not fit a picture; show fewer")
    figure = Figure((INCHES * columns, (INCHES + 0.3) * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, grid):
        for panel, axes in zip(row, line):
            height, width = panel.pixels.shape[:2]
            axes.imshow(panel.pixels, interpolation="nearest")
            axes.set_title(panel.title, fontsize=8)
            axes.set_xticks(np.arange(-0.5, width))
            axes.set_yticks(np.arange(-0.5, height))
            axes.grid(color="#808080", linewidth=0.3)
            axes.tick_params(length=0, labelbottom=False, labelleft=False)
        for axes in line[len(row) :]:
            axes.set_axis_off()
    write_figure(figure, path, "--png")


def write_figure(figure: "Figure", path: Path, option: str) -> None:
    """Write a figure whole or not at all.

    Args:
        figure: of matplotlib.
        path: of the file; replaced if it is there. Its suffix says the format: .pdf or .svg,
            else PNG.
        option: that named the file, for the error.

    Raises:
        ConfigError: if it cannot be written.
    """
    from matplotlib import rc_context

    suffix = path.suffix.lower() if path.suffix.lower() in FORMATS else ".png"
    try:
        salted = rc_context({"svg.hashsalt": "mlx_trm"})  # of an SVG's names: the same tomorrow
        with warnings.catch_warnings(), salted, replace_file(path) as temporary:
            warnings.simplefilter("ignore", UserWarning)  # of characters that the font lacks
            figure.savefig(temporary, format=suffix[1:], dpi=120, metadata=FORMATS[suffix])
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written ({error.strerror})") from error
