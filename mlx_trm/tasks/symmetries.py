"""The eight symmetries of a square, for many grids at a time.

Reference: dataset/common.py ``dihedral_transform``.
"""

import numpy as np

# Which transform undoes each of 0..7: identity, three turns, two flips, two transpositions.
DIHEDRAL_INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)


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
