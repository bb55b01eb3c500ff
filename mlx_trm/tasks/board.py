"""A puzzle or an answer as a grid of cells: what every picture of it is drawn from."""

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np

from mlx_trm.tasks.svg import draw_svg


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
