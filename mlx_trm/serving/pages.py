"""The pages, put together from their parts; they load nothing but these scripts and styles."""

from pathlib import Path
from string import Template
from typing import Dict, NamedTuple, Tuple

from mlx_trm.drawing.page import read_part

HERE = Path(__file__).parent
DRAWING = ("page.css", "board.js", "player.js")  # the same as those of `solve --html`
OWN = ("serve.css", "shared.js", "editors.js", "solve.js", "charts.js", "runs.js")
MEDIA = {".css": "text/css", ".js": "text/javascript"}


class Pages(NamedTuple):
    """All that a browser gets.

    Attributes:
        solving: the page that solves puzzles.
        runs: the page that follows runs.
        assets: type and text of each script and style sheet, by name.
    """

    solving: str
    runs: str
    assets: Dict[str, Tuple[str, str]]


def make_pages() -> Pages:
    """Read the parts and put the pages together."""
    texts = {name: read_part(name) for name in DRAWING}
    texts.update({name: _read(name) for name in OWN})
    assets = {name: (MEDIA[Path(name).suffix], text) for name, text in texts.items()}
    solving = Template(_read("solve.html")).substitute(player=read_part("player.html"))
    return Pages(solving, _read("runs.html"), assets)


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8").strip() + "\n"
