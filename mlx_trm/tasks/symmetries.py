"""Symmetries of puzzles: one as cells and tokens that change places, and the eight of a square.

Reference: dataset/common.py ``dihedral_transform``.
"""

from typing import NamedTuple

import numpy as np

# Which transform undoes each of 0..7: identity, three turns, two flips, two transpositions.
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)


class Symmetry(NamedTuple):
    """A change of a puzzle that leaves it the same puzzle: an answer of the copy gives one of it.

    Attributes:
        cells: (S,) integers: where the content of each cell of the copy comes from.
        tokens: (V,) uint8: what each token becomes.
    """

    cells: np.ndarray
    tokens: np.ndarray

    def apply(self, tokens: np.ndarray) -> np.ndarray:
        """Turn (S,) tokens of the puzzle into those of its copy, uint8."""
        return np.asarray(self.tokens[np.asarray(tokens)[self.cells]])

    def undo(self, tokens: np.ndarray) -> np.ndarray:
        """Turn (S,) tokens of the copy, such as its answer, into those of the puzzle, uint8."""
        back = np.empty_like(self.tokens)
        back[self.tokens] = np.arange(len(self.tokens))
        return self.undo_places(back[np.asarray(tokens)])

    def undo_places(self, values: np.ndarray) -> np.ndarray:
        """Put (S,) values of the copy's cells, such as confidences, where the puzzle has them."""
        found = np.empty_like(values)
        found[self.cells] = values
        return found


def dihedral_transform(grids: np.ndarray, number: int) -> np.ndarray:
    """Turn or flip grids.

    Args:
        grids: (..., H, W).
        number: 0 identity; 1, 2, 3 quarter turns to the left; 4 left-right flip; 5 up-down flip;
            6 transposition; 7 left-right flip of one quarter turn.

    Returns:
        (..., H, W) or (..., W, H), the same dtype.

    Raises:
        ValueError: if ``number`` is not 0..7.

    Reference: dataset/common.py ``dihedral_transform``.
    """
    if number not in range(8):
        raise ValueError(f"a dihedral transform is 0..7, not {number}")
    if number < 4:
        return np.rot90(grids, number, axes=(-2, -1))
    if number < 6:
        return np.flip(grids, axis=-1 if number == 4 else -2)
    turned = np.swapaxes(grids, -1, -2)
    return turned if number == 6 else np.flip(turned, axis=(-2, -1))


def inverse_dihedral_transform(grids: np.ndarray, number: int) -> np.ndarray:
    """Undo :func:`dihedral_transform` with the same number."""
    if number not in range(8):
        raise ValueError(f"a dihedral transform is 0..7, not {number}")
    return dihedral_transform(grids, DIHEDRAL_INVERSE[number])
