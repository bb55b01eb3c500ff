"""Sudoku's symmetries: digits relabelled, bands, stacks, rows and columns permuted, transposed.

Reference: dataset/build_sudoku_dataset.py.
"""

from functools import lru_cache
from itertools import permutations
from typing import Collection, List, NamedTuple, Tuple

import numpy as np

from mlx_trm.tasks.sudoku.solver import box_shape

# What may be permuted in a Sudoku. Bands are rows of boxes, stacks are columns of boxes.
SYMMETRIES = ("digits", "transpose", "bands", "rows", "stacks", "columns")


class SudokuTransforms(NamedTuple):
    """One symmetry for each of n Sudokus.

    Attributes:
        cells: (n, S) int64: where the content of each cell comes from.
        tokens: (n, V) uint8: what each token becomes; padding and blank stay.
    """

    cells: np.ndarray
    tokens: np.ndarray

    def apply(self, grids: np.ndarray) -> np.ndarray:
        """Transform row i of (n, S) tokens by symmetry i.

        Args:
            grids: (n, S) uint8 tokens: 0 padding, 1 blank, 2 the digit 1, ...

        Returns:
            (n, S) uint8.
        """
        rows = np.arange(len(grids))[:, None]
        moved = grids.ravel().take(self.cells + rows * grids.shape[1])
        return self.tokens.ravel().take(moved + rows * self.tokens.shape[1])


def default_symmetries(size: int) -> Tuple[str, ...]:
    """Return all symmetries of a Sudoku; boxes of 2x3 and 3x4 cannot be transposed."""
    rows, cols = box_shape(size)
    return SYMMETRIES if rows == cols else tuple(s for s in SYMMETRIES if s != "transpose")


def random_transforms(
    count: int, size: int, symmetries: Collection[str], rng: np.random.Generator
) -> SudokuTransforms:
    """Draw symmetries, each equally often.

    Args:
        count: n, how many.
        size: one of :data:`~mlx_trm.tasks.sudoku.solver.SIZES`.
        symmetries: some of ``SYMMETRIES``. ``rows`` permutes rows within their band, ``columns``
            columns within their stack.
        rng: decides everything.

    Returns:
        n symmetries.

    Raises:
        ValueError: for an unknown symmetry, or one that the size does not have.

    Reference: dataset/build_sudoku_dataset.py ``shuffle_sudoku``.
    """
    for name in symmetries:
        if name not in default_symmetries(size):
            raise ValueError(f"a {size}x{size} Sudoku has no symmetry {name!r}")
    box_rows, box_cols = box_shape(size)
    draw = _drawn_orders if size > 9 else _listed_orders
    rows = draw(count, size, box_rows, "bands" in symmetries, "rows" in symmetries, rng)
    cols = draw(count, size, box_cols, "stacks" in symmetries, "columns" in symmetries, rng)
    rows, cols = rows[:, :, None], cols[:, None, :]
    cells = rows * size + cols
    if "transpose" in symmetries:
        flipped = np.flatnonzero(rng.integers(2, size=count))
        cells[flipped] = cols[flipped] * size + rows[flipped]
    tokens = np.tile(np.arange(size + 2, dtype=np.uint8), (count, 1))
    if "digits" in symmetries:
        tokens[:, 2:] = np.argsort(rng.random((count, size)), axis=1, kind="stable") + 2
    return SudokuTransforms(cells.reshape(count, size * size), tokens)


def _listed_orders(
    count: int, size: int, box: int, bands: bool, lines: bool, rng: np.random.Generator
) -> np.ndarray:
    """Draw (n, size) orders of rows (or columns) out of a list of them all."""
    orders = _line_orders(size, box, bands, lines)
    return np.asarray(orders[rng.integers(len(orders), size=count)])


# 16 rows have eight million orders, too many for a list; a draw costs more random numbers.
def _drawn_orders(
    count: int, size: int, box: int, bands: bool, lines: bool, rng: np.random.Generator
) -> np.ndarray:
    """Draw (n, size) orders of rows (or columns), bands and what is in them each by itself."""
    number = size // box
    outer = np.tile(np.arange(number), (count, 1))
    inner = np.tile(np.arange(box), (count, number, 1))
    if bands:
        outer = np.argsort(rng.random(outer.shape), axis=1, kind="stable")
    if lines:
        inner = np.argsort(rng.random(inner.shape), axis=2, kind="stable")
    return np.asarray((outer[:, :, None] * box + inner).reshape(count, size))


@lru_cache(maxsize=None)
def _line_orders(size: int, box: int, bands: bool, lines: bool) -> np.ndarray:
    """List the orders that the rows (or columns) of a grid may take, (number, size) int64."""
    number = size // box
    outer = list(permutations(range(number))) if bands else [tuple(range(number))]
    inner = list(permutations(range(box))) if lines else [tuple(range(box))]
    orders: List[List[int]] = []
    for order in outer:
        grown: List[List[int]] = [[]]
        for band in order:
            grown = [g + [band * box + i for i in way] for g in grown for way in inner]
        orders += grown
    return np.array(orders, dtype=np.int64)
