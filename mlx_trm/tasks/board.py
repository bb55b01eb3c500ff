"""A puzzle or an answer as a grid of cells, from which pictures are drawn; how one is typed."""

import math
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

GIVEN, CHANGED, WRONG = 1, 2, 4  # the bits of a cell's marks
CELL = 20  # units of an SVG's own coordinates
AMBER, RED = "#e69f00", "#d4351c"
# Written with the page's own ink; a wash of it makes lines that show on light and dark.
INK = "currentColor"


@dataclass(frozen=True, eq=False)
class Board:
    """A grid of H x W cells with their marks; a notebook shows it as a picture.

    Attributes:
        symbols: (H, W) str, what is written in the cells, empty where nothing is.
        colors: (H, W, 3) uint8, what the cells are painted with; None: they have no colours.
        given: (H, W) bool, cells that the puzzle gives; written bold.
        changed: (H, W) bool, cells that differ from the step before.
        wrong: (H, W) bool, cells that differ from the right answer.
        boxes: rows and columns of the boxes that thick lines divide the grid into; 0 and 0: none.
        text: the grid on one line, as the task writes it.
    """

    symbols: np.ndarray
    colors: Optional[np.ndarray]
    given: np.ndarray
    changed: np.ndarray
    wrong: np.ndarray
    boxes: Tuple[int, int] = (0, 0)
    text: str = ""

    @property
    def shape(self) -> Tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.symbols.shape
        return rows, columns

    def svg(self, pixels: int = 260) -> str:
        """Draw it as an ``<svg>`` element that follows the page's light or dark colours.

        Args:
            pixels: its longer side.
        """
        return draw_svg(self.symbols, self.colors, self.marks(), self.boxes, self.text, pixels)

    def marks(self) -> np.ndarray:
        """Give (H, W) uint8: 1 for given, 2 for changed, 4 for wrong, added up."""
        return np.asarray(self.given + 2 * self.changed + 4 * self.wrong, dtype=np.uint8)

    def _repr_html_(self) -> str:
        return self.svg()


def make_board(
    symbols: np.ndarray,
    colors: Optional[np.ndarray] = None,
    given: Optional[np.ndarray] = None,
    changed: Optional[np.ndarray] = None,
    wrong: Optional[np.ndarray] = None,
    boxes: Tuple[int, int] = (0, 0),
    text: str = "",
) -> Board:
    """Make a board; marks that are left out are nowhere. See :class:`Board` for the arguments."""
    nowhere = np.zeros(symbols.shape, dtype=bool)
    flags = [nowhere if each is None else each.astype(bool) for each in (given, changed, wrong)]
    return Board(symbols, colors, flags[0], flags[1], flags[2], boxes, text)


def differing(tokens: np.ndarray, others: Optional[np.ndarray]) -> np.ndarray:
    """Say which of (S,) tokens differ from others; none do where there are no others."""
    tokens = np.asarray(tokens)
    if others is None:
        return np.zeros(tokens.shape, dtype=bool)
    return np.asarray(tokens != np.asarray(others), dtype=bool)


def is_unanswered(tokens: np.ndarray, inputs: Optional[np.ndarray]) -> bool:
    """Say whether (S,) tokens are the puzzle itself, which is no answer yet: nothing is wrong."""
    return inputs is not None and np.array_equal(tokens, inputs)


def lay_out(values: np.ndarray, fill: object) -> np.ndarray:
    """Put (S,) values into rows: a square where S is one, else the next larger square, filled up.

    Returns:
        (H, W), at most one row and less than a square too many.
    """
    width = max(1, math.isqrt(len(values) - 1) + 1) if len(values) else 1
    height = max(1, -(-len(values) // width))
    grid = np.full(height * width, fill, dtype=values.dtype if values.dtype != object else object)
    grid[: len(values)] = values
    return grid.reshape(height, width)


# How a page lets a grid be typed ---------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """How a cell that holds a symbol looks.

    Attributes:
        name: what it is, for those who do not see it.
        text: written in the cell.
        ink: the colour of that.
        fill: the colour of the cell; empty: that of its paper.
        disc: whether it is a disc of ``ink`` rather than a text.
    """

    name: str
    text: str = ""
    ink: str = "#000000"
    fill: str = ""
    disc: bool = False


@dataclass(frozen=True)
class Tool:
    """What a click, or a key, does to a cell.

    Attributes:
        name: of the tool, for a person.
        put: the symbol that the cell gets; empty: it keeps its own.
        turns: by the cell's symbol, what a click puts instead; a key always puts ``put``.
        clears: by symbol, what other cells that hold it get, where there may be one such cell only.
        keys: names of the keys that do it.
        drags: whether it draws on while the pointer is held down.
        points: the field whose value becomes the cell's name; empty: none.
    """

    name: str
    put: str = ""
    turns: Dict[str, str] = field(default_factory=dict)
    clears: Dict[str, str] = field(default_factory=dict)
    keys: Tuple[str, ...] = ()
    drags: bool = False
    points: str = ""


@dataclass(frozen=True)
class Choice:
    """What a puzzle says beside its cells, as one of several words.

    Attributes:
        name: what it is, for a person.
        words: which there are, each with what a person is told; the first is where one begins.
    """

    name: str
    words: Tuple[Tuple[str, str], ...]


@dataclass(frozen=True)
class CellsEditor:
    """A grid whose cells are clicked on. Its text is its rows, ``/`` between them, then choices.

    Attributes:
        label: what the grid is, for those who do not see it.
        hint: how the puzzle is written as text.
        rows: of the grid.
        columns: of the grid.
        looks: by symbol, a character each, the first one that of a cell without anything else.
        tools: the first is the one that a person begins with.
        choices: behind the rows, in their order, with spaces between them.
        names: of the cells, row by row; none: rows and columns are numbered.
        papers: colours below the cells, of which neighbours have different ones by turns.
        empty: the text to begin with.
    """

    label: str
    hint: str
    rows: int
    columns: int
    looks: Dict[str, Look]
    tools: Sequence[Tool]
    choices: Sequence[Choice] = ()
    names: Sequence[str] = ()
    papers: Sequence[str] = ("#ffffff",)
    empty: str = ""

    def describe(self) -> Dict[str, Any]:
        """Give it as JSON has it."""
        return {"kind": "cells", **asdict(self)}


# As SVG: no script, no style sheet, readable on light and dark ------------------------------------


def css_color(color: np.ndarray) -> str:
    """Write (3,) uint8 red, green and blue as ``#rrggbb``."""
    return "#" + "".join(f"{int(part):02x}" for part in color)


def ink_on(color: np.ndarray) -> str:
    """Give black or white, whichever can be read on a (3,) uint8 colour."""
    red, green, blue = (int(part) for part in color)
    return "#000000" if 299 * red + 587 * green + 114 * blue > 128000 else "#ffffff"


def draw_svg(
    symbols: np.ndarray,
    colors: Optional[np.ndarray],
    marks: np.ndarray,
    boxes: Tuple[int, int],
    text: str,
    pixels: int,
) -> str:
    """Draw a grid.

    Args:
        symbols: (H, W) str.
        colors: (H, W, 3) uint8, or None.
        marks: (H, W) uint8, bits as above.
        boxes: rows and columns of a box; 0 and 0: there are none.
        text: said to those who do not see the picture.
        pixels: of the longer side.
    """
    height, width = symbols.shape
    scale = pixels / (CELL * max(height, width, 1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(text)}" '
        f'width="{scale * CELL * width:.0f}" height="{scale * CELL * height:.0f}" '
        f'viewBox="-1 -1 {CELL * width + 2} {CELL * height + 2}">'
    ]
    for row in range(height):
        for column in range(width):
            color = None if colors is None else colors[row, column]
            parts += _cell(row, column, str(symbols[row, column]), color, int(marks[row, column]))
    parts += _lines(height, width, boxes, colors is not None)
    return "".join(parts) + "</svg>"


def _cell(row: int, column: int, symbol: str, color: Optional[np.ndarray], marks: int) -> List[str]:
    x, y = column * CELL, row * CELL
    place = f'x="{x}" y="{y}" width="{CELL}" height="{CELL}"'
    parts, ink = [], INK
    if color is not None:
        parts.append(f'<rect {place} fill="{css_color(color)}"/>')
        ink = ink_on(color)
    elif marks & CHANGED:
        parts.append(f'<rect {place} fill="{AMBER}" fill-opacity="0.3"/>')
    if marks & WRONG:
        inner = f'x="{x + 2}" y="{y + 2}" width="{CELL - 4}" height="{CELL - 4}" fill="none"'
        if color is not None:
            parts.append(f'<rect {inner} stroke="#fff" stroke-width="2.8"/>')
        parts.append(f'<rect {inner} stroke="{RED}" stroke-width="1.5"/>')
    if marks & CHANGED and color is not None:
        corner = f"M{x} {y}h{CELL * 0.45}l-{CELL * 0.45} {CELL * 0.45}z"
        parts.append(f'<path d="{corner}" fill="{AMBER}" stroke="#000" stroke-width="0.8"/>')
    if symbol:
        weight = ' font-weight="bold"' if marks & GIVEN else ""
        fill = RED if marks & WRONG and color is None else ink
        small = CELL * (0.7 if len(symbol) < 2 else 1.1 / len(symbol))
        parts.append(
            f'<text x="{x + CELL / 2:g}" y="{y + CELL * 0.74:g}" font-size="{small:.1f}"'
            f' font-family="sans-serif" text-anchor="middle" fill="{fill}"{weight}>'
            f"{escape(symbol)}</text>"
        )
    return parts


def _lines(height: int, width: int, boxes: Tuple[int, int], painted: bool) -> List[str]:
    """Draw the lines between cells, thicker around boxes."""
    parts = []
    for number, step, vertical in ((height, boxes[0], False), (width, boxes[1], True)):
        for at in range(number + 1):
            thick = at in (0, number) or (step and at % step == 0)
            path = (
                f"M{at * CELL} 0v{height * CELL}" if vertical else f"M0 {at * CELL}h{width * CELL}"
            )
            opacity = 0.9 if thick and not painted else 0.35
            stroke = "#808080" if painted else INK
            parts.append(
                f'<path d="{path}" stroke="{stroke}" stroke-opacity="{opacity}" '
                f'stroke-width="{1.6 if thick else 0.6}"/>'
            )
    return parts
