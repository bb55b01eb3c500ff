"""Grids of cells as SVG, for notebooks: no script, no style sheet, readable on light and dark."""

from html import escape
from typing import List, Optional, Tuple

import numpy as np

GIVEN, CHANGED, WRONG = 1, 2, 4  # the bits of a cell's marks
CELL = 20  # units of an SVG's own coordinates
AMBER, RED = "#e69f00", "#d4351c"
# Written with the page's own ink; a wash of it makes lines that show on light and dark.
INK = "currentColor"


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
