"""ARC's grids: as token sequences, under their augmentations, as text and as pictures.

Tokens: 0 padding, 1 end of grid, 2 to 11 the colours 0 to 9. A grid stands on a square canvas of
30 x 30 cells; end tokens mark the row below it and the column to its right where there is room.

Reference: dataset/build_arc_dataset.py ``np_grid_to_seq_translational_augment``, ``aug``,
``inverse_aug``; evaluators/arc.py ``_crop``.
"""

import re
from textwrap import dedent
from typing import List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.errors import DataError, shown
from mlx_trm.system.bounded import parse_json
from mlx_trm.tasks.pasted import LINES, MARKS, cut_drawing, strip_colors
from mlx_trm.tasks.symmetries import dihedral_transform, inverse_dihedral_transform
from mlx_trm.tasks.text import mark_of

CANVAS = 30
COLORS = 10
END, FIRST_COLOR = 1, 2
VOCABULARY = FIRST_COLOR + COLORS
SEPARATOR = "|||"

# The transforms after which rows have become columns.
TURNED = np.array([number in (1, 3, 6, 7) for number in range(8)])

# What each colour looks like, red green blue: black, blue, red, green, yellow, grey, pink, orange,
# light blue, brown; and behind them the canvas and the end marks.
PALETTE = np.array(
    [(0, 0, 0), (0, 116, 217), (224, 52, 41), (46, 184, 64), (255, 220, 0), (150, 150, 150),
     (230, 20, 180), (255, 133, 27), (120, 200, 245), (128, 20, 40)], dtype=np.uint8
)  # fmt: skip
CANVAS_COLOR, END_COLOR = (225, 225, 225), (190, 190, 190)


class Augmentation(NamedTuple):
    """How a puzzle was changed.

    Attributes:
        original: the puzzle's own name.
        transform: 0..7, see :func:`~mlx_trm.tasks.symmetries.dihedral_transform`.
        colors: (10,) uint8, what each colour became.
    """

    original: str
    transform: int
    colors: np.ndarray

    def apply(self, grid: np.ndarray) -> np.ndarray:
        """Change an (H, W) uint8 grid of colours."""
        return dihedral_transform(self.colors[grid], self.transform)

    def undo(self, grid: np.ndarray) -> np.ndarray:
        """Change an (H, W) uint8 grid of colours back."""
        inverse = np.argsort(self.colors).astype(np.uint8)
        return inverse[inverse_dihedral_transform(grid, self.transform)]


def augmented_name(original: str, transform: int, colors: Sequence[int]) -> str:
    """Name an augmented puzzle, as the reference does."""
    return f"{original}{SEPARATOR}t{transform}{SEPARATOR}{''.join(map(str, colors))}"


def parse_name(name: str) -> Augmentation:
    """Read what :func:`augmented_name` wrote; any other name is that of a puzzle as it is.

    Raises:
        DataError: if the name has the separator and is malformed.
    """
    if SEPARATOR not in name:
        return Augmentation(name, 0, np.arange(COLORS, dtype=np.uint8))
    parts = name.split(SEPARATOR)
    transform, colors = parts[-2], parts[-1]
    if not re.fullmatch("t[0-7]", transform) or sorted(colors) != list("0123456789"):
        raise DataError(
            f"{shown(repr(name))} is not the name of an augmented puzzle; build the dataset again"
        )
    return Augmentation(parts[0], int(transform[1]), np.array(list(colors)).astype(np.uint8))


def check_grid(rows: object, where: str, size: int = CANVAS) -> np.ndarray:
    """Turn lists of rows of colours into an array.

    Args:
        rows: as JSON gives it.
        where: put before the problem.
        size: of the canvas, the most rows and columns.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: if it is no rectangle of whole numbers 0..9 of at most ``size`` by ``size``.
    """
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise DataError(f"{where}: a grid is a list of rows, each a list of colours 0 to 9")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise DataError(f"{where}: row {number} has {len(row)} cells, row 1 has {width}")
        for cell in row:
            if isinstance(cell, bool) or not isinstance(cell, int) or not 0 <= cell < COLORS:
                raise DataError(
                    f"{where}: row {number} has {shown(repr(cell))}, which is no colour 0 to 9"
                )
    if not width or max(len(rows), width) > size:
        raise DataError(f"{where}: is {len(rows)}x{width}, allowed are 1x1 to {size}x{size}")
    return np.array(rows, dtype=np.uint8)


def encode(grid: np.ndarray, size: int = CANVAS, row: int = 0, column: int = 0) -> np.ndarray:
    """Put an (H, W) grid of colours on the canvas.

    Args:
        grid: uint8.
        size: of the canvas.
        row: of its upper left cell.
        column: of its upper left cell.

    Returns:
        (size * size,) uint8 tokens.
    """
    canvas = np.zeros((size + 1, size + 1), dtype=np.uint8)
    bottom, right = row + grid.shape[0], column + grid.shape[1]
    canvas[row:bottom, column:right] = grid + FIRST_COLOR
    canvas[bottom, column:right] = END
    canvas[row:bottom, right] = END
    return canvas[:size, :size].reshape(-1)


def crop_sizes(tokens: np.ndarray, size: int = CANVAS) -> np.ndarray:
    """Find the largest rectangle of colours in the upper left corner; of equal ones the flattest.

    Args:
        tokens: (n, size * size) integers.
        size: of the canvas.

    Returns:
        (n, 2) int64 rows and columns; 0 and 0 where the first cell is no colour.

    Reference: evaluators/arc.py ``_crop``.
    """
    cells = tokens.reshape(-1, size, size)
    colored = (cells >= FIRST_COLOR) & (cells < VOCABULARY)
    lengths = np.logical_and.accumulate(colored, axis=2).sum(axis=2)
    widths = np.minimum.accumulate(lengths, axis=1)
    areas = widths * np.arange(1, size + 1)
    best = areas.argmax(axis=1)  # the first of the largest
    rows = np.arange(len(cells))
    height = np.where(areas[rows, best] > 0, best + 1, 0)
    return np.column_stack([height, widths[rows, best]])


def crop(tokens: np.ndarray, size: int = CANVAS) -> np.ndarray:
    """Cut the grid in the upper left corner out of (size * size,) tokens, see :func:`crop_sizes`.

    Returns:
        (H, W) uint8 colours, (0, 0) where there is none.
    """
    return cut_shape(tokens, crop_sizes(tokens[None], size)[0].tolist(), size)


def cut_shape(tokens: np.ndarray, shape: Sequence[int], size: int = CANVAS) -> np.ndarray:
    """Cut the upper left colours of a shape out of (size * size,) tokens, (H, W) uint8."""
    height, width = shape
    return (tokens.reshape(size, size)[:height, :width] - FIRST_COLOR).astype(np.uint8)


def find_visible(tokens: np.ndarray, size: int = CANVAS) -> Tuple[int, int, int, int]:
    """Find what :func:`cut_visible` cuts out: its first row and column, its rows and columns."""
    height, width = crop_sizes(tokens[None], size)[0].tolist()
    if height and width:
        return 0, 0, height, width
    cells = tokens.reshape(size, size)
    rows, columns = np.nonzero((cells >= FIRST_COLOR) & (cells < VOCABULARY))
    if not len(rows):
        return 0, 0, 1, 1
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left


def cut_visible(tokens: np.ndarray, size: int = CANVAS) -> np.ndarray:
    """Cut the grid out of the canvas for a person, wherever on it the grid stands.

    Args:
        tokens: (size * size,) integers.
        size: of the canvas.

    Returns:
        (H, W) int64: the grid as colours 0 to 9; if it does not begin in the corner, the rectangle
        around all colours, -1 where there is none and -2 for an end mark.
    """
    top, left, height, width = find_visible(tokens, size)
    cells = tokens.reshape(size, size).astype(np.int64)
    box = cells[top : top + height, left : left + width]
    colored = (box >= FIRST_COLOR) & (box < VOCABULARY)
    if not colored.any():
        return np.full((1, 1), -1, dtype=np.int64)
    return np.where(colored, box - FIRST_COLOR, np.where(box == END, -2, -1))


def parse_grid(text: str, size: int = CANVAS) -> np.ndarray:
    """Read a grid as a person writes it: ``[[0, 1], [2, 3]]`` or rows of digits, ``01/23``.

    What this program drew is read, too; of two grids beside each other the left one.

    Raises:
        DataError: if it is neither.
    """
    if text.strip().startswith("["):
        try:
            return check_grid(parse_json(text), "the grid", size)
        except ValueError as error:
            raise DataError(f"the grid is not JSON: {error}") from error
    # Grids beside each other have four spaces between them, cells have one at most, or a mark.
    plain = strip_colors(text)
    drawn = cut_drawing(plain.splitlines())
    plain = plain if drawn is None else "\n".join(drawn)
    lines = dedent(plain.translate(_BETWEEN)).split("\n")
    lines = [re.split(r" {3,}", line.rstrip(), maxsplit=1)[0] for line in lines]
    rows = [
        row for row in re.sub(r"[ ,]", "", "\n".join(lines)).replace("/", "\n").split("\n") if row
    ]
    if not rows or not all(row.isascii() and row.isdigit() for row in rows):
        raise DataError(
            "a grid is written as rows of digits, 012/345, or as JSON, [[0, 1], [2, 3]]"
        )
    return check_grid([[int(cell) for cell in row] for row in rows], "the grid", size)


# Lines and marks become white space.
_BETWEEN = str.maketrans(dict.fromkeys(LINES + MARKS, " "))


def format_grid(grid: np.ndarray) -> str:
    """Write an (H, W) grid on one line, as rows of digits; ``.`` stands for no colour."""
    return "/".join("".join(str(c) if c >= 0 else "." for c in row) for row in grid.tolist())


def paint(grid: np.ndarray) -> np.ndarray:
    """Turn (H, W) colours, or what :func:`cut_visible` gives, into (H, W, 3) uint8."""
    colors = np.concatenate([PALETTE, [END_COLOR, CANVAS_COLOR]]).astype(np.uint8)
    painted: np.ndarray = colors[grid]  # -1 and -2 count from the end
    return painted


def differing_cells(grid: np.ndarray, other: Optional[np.ndarray]) -> np.ndarray:
    """Say which cells of an (H, W) grid differ from another one of any shape, or from nothing.

    Args:
        grid: what :func:`cut_visible` gives.
        other: the same; None: no cell differs.

    Returns:
        (H, W) bool.
    """
    if other is None:
        return np.zeros(grid.shape, dtype=bool)
    padded, drawn = pad_to_one_shape(other, grid)
    differ: np.ndarray = (padded != drawn)[: grid.shape[0], : grid.shape[1]]
    return differ


def draw(grid: np.ndarray, wrong: np.ndarray, changed: np.ndarray, color: bool) -> List[str]:
    """Draw a grid for a terminal, two characters a cell.

    Args:
        grid: (H, W), what :func:`cut_visible` gives.
        wrong: (H, W) bool, cells to mark as wrong.
        changed: (H, W) bool, cells to mark as changed.
        color: use ANSI colours (24 bits).
    """
    lines = []
    painted = paint(grid)
    for row in range(grid.shape[0]):
        line = ""
        for column in range(grid.shape[1]):
            value = int(grid[row, column])
            symbol = str(value) if value >= 0 else ("·" if value == -1 else "|")
            text = mark_of(bool(changed[row, column]), bool(wrong[row, column])) + symbol
            if color:
                line += colored_cell(text, painted[row, column])
            else:
                line += text
        lines.append(line + (" " if not color else ""))
    return lines


def draw_answer(
    grid: np.ndarray,
    right: Optional[np.ndarray],
    color: bool,
    before: Optional[np.ndarray] = None,
) -> str:
    """Draw a grid, its wrong and changed cells marked, and say below it if its shape is wrong.

    Args:
        grid: (H, W), what :func:`cut_visible` gives.
        right: the right answer, of any shape; None: it is not known.
        color: use ANSI colours (24 bits).
        before: the grid of the step before, of any shape; None: nothing is marked as changed.
    """
    note = ""
    if right is not None and right.shape != grid.shape:
        note = f"{_shape(grid)} instead of {_shape(right)}"
        note = f"\n\033[31m{note}\033[0m" if color else f"\n{note}"
    wrong, changed = differing_cells(grid, right), differing_cells(grid, before)
    return "\n".join(draw(grid, wrong, changed, color)) + note


def _shape(grid: np.ndarray) -> str:
    return f"{grid.shape[0]}x{grid.shape[1]}"


def colored_cell(text: str, background: np.ndarray) -> str:
    """Write text on a background, dark on bright and bright on dark."""
    red, green, blue = (int(part) for part in background)
    ink = "30" if 299 * red + 587 * green + 114 * blue > 128000 else "97"
    return f"\033[{ink};48;2;{red};{green};{blue}m{text}\033[0m"


def pad_to_one_shape(first: np.ndarray, second: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Bring two (H, W) grids to one shape, filled up with -1."""
    height, width = np.maximum(first.shape, second.shape)
    both = []
    for grid in (first, second):
        canvas = np.full((height, width), -1, dtype=np.int64)
        canvas[: grid.shape[0], : grid.shape[1]] = grid
        both.append(canvas)
    return both[0], both[1]
