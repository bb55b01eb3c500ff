"""Figures of matplotlib (extra ``plot``): is it there, and how they are written."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict

from mlx_trm.errors import ConfigError
from mlx_trm.system.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By suffix: the date that a picture would carry; without it the same bytes come out tomorrow.
FORMATS: Dict[str, Dict[str, Any]] = {
    ".png": {},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}


def check_matplotlib(who: str) -> None:
    """Refuse where matplotlib is missing; before the work, not after it.

    Args:
        who: needs it, such as ``plot``.

    Raises:
        ConfigError: saying what to install.
    """
    try:
        import matplotlib  # noqa: F401  pylint: disable=unused-import
    except ImportError as error:
        raise ConfigError(f'{who}: needs matplotlib; pip install "mlx_trm[plot]"') from error


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
