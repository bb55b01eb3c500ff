"""Numbers that are equal for puzzles which symmetries turn into one another.

They keep test puzzles apart from training puzzles. Digits alone: a key of the puzzle with its
digits renamed in order of appearance, so equal keys mean equal puzzles. With rows, columns or
transposition: a colour refinement, which never gives equivalent puzzles different keys. That
different puzzles may have the same key only keeps out more than it must; among the bundled puzzles
it does not happen, among complete grids, where all cells look alike, it always does.
"""

from typing import Collection, Tuple, Union

import numpy as np

from mlx_trm.tasks.sudoku.solver import box_shape

_ROUNDS = 5
_CHUNK = 8192


def mix_bits(values: np.ndarray) -> np.ndarray:
    """Scramble (...) uint64: a bijection that spreads every bit (splitmix64's finaliser)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def puzzle_keys(puzzles: np.ndarray, size: int, symmetries: Collection[str]) -> np.ndarray:
    """Return a key for each puzzle, equal where the symmetries make puzzles equal.

    Args:
        puzzles: (N, S) integers, 0 for blank.
        size: one of :data:`~mlx_trm.tasks.sudoku.solver.SIZES`.
        symmetries: names as in :mod:`mlx_trm.tasks.symmetries`; none: only equal puzzles agree.
            Any but ``digits`` stands for all of them.

    Returns:
        (N,) uint64.
    """
    box_shape(size)
    puzzles = np.asarray(puzzles).astype(np.uint8)
    keys = [np.empty(0, dtype=np.uint64)]
    for start in range(0, len(puzzles), _CHUNK):
        part = puzzles[start : start + _CHUNK]
        if set(symmetries) - {"digits"}:
            keys.append(_refined_keys(part, size))
        else:
            keys.append(_hash_cells(rename_digits(part, size) if symmetries else part))
    return np.concatenate(keys)


def rename_digits(puzzles: np.ndarray, size: int) -> np.ndarray:
    """Name the digits of each (N, S) puzzle 1, 2, ... in order of first appearance."""
    first = np.stack(
        [
            np.where((puzzles == digit).any(axis=1), (puzzles == digit).argmax(axis=1), 1000)
            for digit in range(1, size + 1)
        ],
        axis=1,
    )
    rank = np.argsort(np.argsort(first, axis=1, kind="stable"), axis=1, kind="stable")
    names = np.concatenate([np.zeros((len(puzzles), 1), np.int64), rank + 1], axis=1)
    return np.take_along_axis(names, puzzles.astype(np.int64), axis=1).astype(np.uint8)


def _hash_cells(cells: np.ndarray) -> np.ndarray:
    place = np.arange(cells.shape[1], dtype=np.uint64) << np.uint64(8)
    return mix_bits(_sum(mix_bits(cells.astype(np.uint64) + place), 1))


def _refined_keys(puzzles: np.ndarray, size: int) -> np.ndarray:
    """Colour refinement: a cell's colour takes in those of its row, column, box and digit."""
    rows, cols = box_shape(size)
    n = len(puzzles)
    split = (n, size // rows, rows, size // cols, cols)
    given = puzzles != 0
    same_digit = [puzzles == digit for digit in range(1, size + 1)]
    colour = given.astype(np.uint64)
    for step in range(_ROUNDS):
        mixed = mix_bits(colour + np.uint64(step))
        grid = mixed.reshape(n, size, size)
        # A line's colour takes in its band (or stack) too; rows and columns count alike, since
        # transposition swaps them.
        row, col = mix_bits(_sum(grid, 2)), mix_bits(_sum(grid, 1))
        row += _sum(row.reshape(n, -1, rows), 2).repeat(rows, axis=1)
        col += _sum(col.reshape(n, -1, cols), 2).repeat(cols, axis=1)
        lines = mix_bits(row)[:, :, None] + mix_bits(col)[:, None, :]
        box = _sum(mixed.reshape(split), (2, 4))[:, :, None, :, None]
        boxes = np.broadcast_to(mix_bits(box + np.uint64(1)), split)
        digits = np.zeros_like(mixed)
        for same in same_digit:
            total = _sum(np.where(same, mixed, np.uint64(0)), 1)
            digits += np.where(same, mix_bits(total + np.uint64(2))[:, None], np.uint64(0))
        colour = mixed + mix_bits(lines.reshape(n, -1) + np.uint64(3)) * np.uint64(3)
        colour += boxes.reshape(n, -1) * np.uint64(5) + digits * np.uint64(7)
    return mix_bits(_sum(mix_bits(colour), 1))


def _sum(values: np.ndarray, axis: Union[int, Tuple[int, ...]]) -> np.ndarray:
    """Add up uint64, letting it wrap."""
    return np.asarray(np.add.reduce(values, axis=axis, dtype=np.uint64))
