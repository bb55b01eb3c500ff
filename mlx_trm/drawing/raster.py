"""Boards in pixels, drawn by Pillow (extra ``plot``): a strip of steps, an animation."""

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from mlx_trm.drawing.scenes import Frame, Scene
from mlx_trm.errors import ConfigError
from mlx_trm.system.files import replace_file
from mlx_trm.tasks.board import Board, css_color, ink_on

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

PIXELS, MOST_PANELS, ACROSS = 360, 400, 6
PAPER, INK, FOUND, FAINT = "#ffffff", "#1a1a1a", "#1f5fa8", "#767676"
CHANGED, CHANGED_EDGE, WRONG, RIGHT = "#fbe2a8", "#e69f00", "#c62f1d", "#0b7a53"
MARGIN, GAP, TEXT = 24, 28, 22
STEP_MS, LAST_MS = 700, 2600
LEGEND = (("changed", "changed in this step"), ("wrong", "wrong"))


class Panel(NamedTuple):
    """One grid of a picture.

    Attributes:
        title: above it.
        board: the grid.
        belief: Q, drawn as a bar below the title; None: no bar.
        correct: colours the title; None: it has the colour of all text.
    """

    title: str
    board: Board
    belief: Optional[float] = None
    correct: Optional[bool] = None


def check_pillow(who: str) -> None:
    """Refuse where Pillow is missing or old; before the work, not after it.

    Args:
        who: needs it, such as ``--png``.

    Raises:
        ConfigError: saying what to install.
    """
    try:
        from PIL import ImageFont

        ImageFont.load_default(12)
    except (ImportError, TypeError) as error:  # older ones have a font of one size
        raise ConfigError(f'{who}: needs Pillow; pip install "mlx_trm[plot]"') from error


def scene_panels(scene: Scene) -> List[Panel]:
    """Give a puzzle, the steps of the answer that was given, and the right answer if known."""
    found = [Panel("puzzle", scene.puzzle)]
    found += [frame_panel(frame) for frame in scene.chosen.frames]
    return found if scene.solution is None else [*found, Panel("solution", scene.solution)]


def frame_panel(frame: Frame, total: Optional[int] = None) -> Panel:
    """Give a step with its title.

    Args:
        frame: of the step.
        total: steps in all; None: they are not named.
    """
    title = f"step {frame.step}" + (f" of {total}" if total else "")
    title += f", {frame.verdict}" if frame.verdict else ""
    return Panel(title, frame.board, frame.belief, frame.correct)


# Files ------------------------------------------------------------------------------------------


def save_strip(path: Path, rows: Sequence[Sequence[Panel]], option: str = "--png") -> None:
    """Draw panels as a PNG and write it whole or not at all.

    Args:
        path: of the file; replaced if it is there.
        rows: a puzzle each; long ones are broken.
        option: that named the file, for errors.

    Raises:
        ConfigError: if Pillow is missing, there are too many panels, or the file cannot be written.
    """
    check_pillow(option)
    count = sum(len(row) for row in rows)
    if count > MOST_PANELS:
        raise ConfigError(f"{option}: {count} grids do not fit a picture; show fewer")
    picture = draw_strip(rows)
    try:
        with replace_file(path) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written ({error.strerror}); name another file"
        ) from error


def save_animation(path: Path, scenes: Sequence[Scene], option: str = "--gif") -> None:
    """Draw the steps of puzzles, one after the other, as a GIF; written whole or not at all.

    Args:
        path: of the file; replaced if it is there.
        scenes: a puzzle each.
        option: that named the file, for errors.

    Raises:
        ConfigError: if Pillow is missing, there are too many steps, or the file cannot be written.
    """
    check_pillow(option)
    count = sum(len(scene.chosen.frames) + 1 for scene in scenes)
    if count > MOST_PANELS:
        raise ConfigError(f"{option}: {count} pictures are too many for it; show fewer")
    pictures, times = draw_animation(scenes)
    try:
        with replace_file(path) as temporary:
            pictures[0].save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=pictures[1:],
                duration=times,
                loop=0,
                disposal=1,
            )
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: cannot be written ({error.strerror}); name another file"
        ) from error


def draw_animation(scenes: Sequence[Scene]) -> Tuple[List["Image"], List[int]]:
    """Draw each puzzle and its steps, all of one size.

    Returns:
        The pictures, and for how many milliseconds each is shown.
    """
    from PIL import Image as images

    panels: List[Panel] = []
    times: List[int] = []
    for scene in scenes:
        frames = scene.chosen.frames
        panels += [
            Panel("puzzle", scene.puzzle),
            *(frame_panel(frame, len(frames)) for frame in frames),
        ]
        times += [STEP_MS * 2, *[STEP_MS] * (len(frames) - 1), LAST_MS]
    sheets = [draw_strip([[panel]]) for panel in panels]
    width, height = (max(sizes) for sizes in zip(*(sheet.size for sheet in sheets)))
    whole = []
    for sheet in sheets:
        canvas = images.new("RGB", (width, height), PAPER)
        canvas.paste(sheet, ((width - sheet.width) // 2, 0))
        whole.append(canvas.quantize(64))
    return whole, times


# Drawing ----------------------------------------------------------------------------------------


def draw_strip(rows: Sequence[Sequence[Panel]]) -> "Image":
    """Draw panels in rows of at most six, and a legend below them."""
    from PIL import Image as images
    from PIL import ImageDraw

    lines = [list(line) for row in rows for line in _broken(row)]
    head = 2 * TEXT + 18
    widths = [
        max(_width(line[at].board) for line in lines if at < len(line))
        for at in range(max(len(line) for line in lines))
    ]
    heights = [max(_height(panel.board) for panel in line) for line in lines]
    width = max(2 * MARGIN + sum(widths) + GAP * (len(widths) - 1), 2 * MARGIN + 340)
    total = 2 * MARGIN + sum(heights) + (head + GAP) * len(lines) + TEXT
    picture = images.new("RGB", (width, total), PAPER)
    pen = ImageDraw.Draw(picture)
    y = MARGIN
    # One panel stands in the middle, where the legend is wider than it.
    indent = max(0, (width - 2 * MARGIN - sum(widths)) // 2) if len(widths) == 1 else 0
    for line, height in zip(lines, heights):
        x = MARGIN + indent
        for panel, room in zip(line, widths):
            _draw_head(pen, panel, x, y, room)
            _draw_board(pen, panel.board, x, y + head)
            x += room + GAP
        y += head + height + GAP
    _draw_legend(pen, MARGIN, y)
    return picture


def _broken(row: Sequence[Panel]) -> Iterator[Sequence[Panel]]:
    """Break a row into lines of about the same length."""
    lines = math.ceil(len(row) / ACROSS)
    length = math.ceil(len(row) / lines)
    for start in range(0, len(row), length):
        yield row[start : start + length]


def _cell(board: Board) -> int:
    """Give the pixels of a cell."""
    return max(6, min(60, PIXELS // max(board.shape)))


def _width(board: Board) -> int:
    return max(board.shape[1] * _cell(board) + 3, 220)  # a title needs that


def _height(board: Board) -> int:
    return board.shape[0] * _cell(board) + 3


@lru_cache(maxsize=32)
def _font(size: float) -> "Union[FreeTypeFont, ImageFont]":
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _write(
    pen: "ImageDraw", place: Tuple[float, float], text: str, size: float, fill: str, anchor: str
) -> None:
    pen.text(place, text, fill=fill, font=_font(size), anchor=anchor)


def _draw_head(pen: "ImageDraw", panel: Panel, x: int, y: int, room: int) -> None:
    """Write the title, and draw Q as a bar below it."""
    fill = {True: RIGHT, False: WRONG, None: INK}[panel.correct]
    _write(pen, (x, y), panel.title, TEXT, fill, "la")
    if panel.belief is None:
        return
    top, left, right = y + TEXT + 10, x + 28, x + min(room, _width(panel.board)) - 62
    _write(pen, (x, top - 3), "Q", TEXT * 0.8, FAINT, "la")
    pen.rectangle((left, top, right, top + 12), outline=FAINT)
    if panel.belief > 0.005:
        pen.rectangle((left, top, left + (right - left) * panel.belief, top + 12), fill=FOUND)
    _write(pen, (right + 10, top - 3), f"{panel.belief:.2f}", TEXT * 0.8, FAINT, "la")


def _draw_board(pen: "ImageDraw", board: Board, x: int, y: int) -> None:
    cell, (height, width) = _cell(board), board.shape
    for row, column in np.ndindex(height, width):
        left, top = x + column * cell, y + row * cell
        box = (left, top, left + cell, top + cell)
        changed, wrong = board.changed[row, column], board.wrong[row, column]
        ink = INK if board.given[row, column] else FOUND
        if board.colors is not None:
            pen.rectangle(box, fill=css_color(board.colors[row, column]))
            ink = ink_on(board.colors[row, column])
        elif changed:
            pen.rectangle(box, fill=CHANGED)
        if symbol := _symbol(board, row, column):
            ink = WRONG if wrong and board.colors is None else ink
            size = cell * (0.62 if len(symbol) < 2 else 1.1 / len(symbol))
            _write(pen, (left + cell / 2, top + cell / 2), symbol, size, ink, "mm")
    _draw_lines(pen, board, x, y, cell)
    for row, column in np.ndindex(height, width):
        left, top = x + column * cell, y + row * cell
        if board.wrong[row, column]:
            thick = max(2, cell // 14)
            if board.colors is not None:  # seen on red, too
                pen.rectangle(_inner(left, top, cell, 1), outline=PAPER, width=thick + 2)
            pen.rectangle(_inner(left, top, cell, 2), outline=WRONG, width=thick)
        if board.colors is not None and board.changed[row, column]:
            edge = max(4, cell * 2 // 5)
            corner = [(left + 1, top + 1), (left + edge, top + 1), (left + 1, top + edge)]
            pen.polygon(corner, fill=CHANGED_EDGE, outline="#000000")


def _inner(left: int, top: int, cell: int, by: int) -> Tuple[int, int, int, int]:
    return left + by, top + by, left + cell - by, top + cell - by


def _symbol(board: Board, row: int, column: int) -> str:
    """Give what is written in a cell; the font has no other than Latin letters."""
    text = str(board.symbols[row, column])
    return text if text.isascii() else "?"


def _draw_lines(pen: "ImageDraw", board: Board, x: int, y: int, cell: int) -> None:
    """Draw the lines between cells, thicker around boxes, and the frame last."""
    height, width = board.shape
    right, bottom = x + width * cell, y + height * cell
    color = "#bbbbbb" if board.colors is None else "#808080"
    for thick in (False, True):
        for number, box, vertical in ((height, board.boxes[0], 0), (width, board.boxes[1], 1)):
            for at in range(number + 1):
                if thick != (at in (0, number) or bool(box and at % box == 0)):
                    continue
                offset = at * cell
                line = (x + offset, y, x + offset, bottom) if vertical else (
                    x, y + offset, right, y + offset)  # fmt: skip
                pen.line(line, fill=INK if thick else color, width=3 if thick else 1)


def _draw_legend(pen: "ImageDraw", x: int, y: int) -> None:
    """Say what the marks mean."""
    size = TEXT * 0.8
    for name, text in LEGEND:
        box = (x, y + 2, x + 16, y + 18)
        if name == "changed":
            pen.rectangle(box, fill=CHANGED, outline="#bbbbbb")
            pen.polygon([(x, y + 2), (x + 8, y + 2), (x, y + 10)], fill=CHANGED_EDGE)
        else:
            pen.rectangle(box, outline=WRONG, width=2)
        _write(pen, (x + 24, y), text, size, FAINT, "la")
        x += 24 + int(pen.textlength(text, font=_font(size))) + 28
