"""What the 64 cells of a position and of an answer hold, as tokens.

The board is seen from the side to move, row by row from its far end: own pieces are White's, and
where Black is to move ranks are flipped and colours exchanged. So no token says whose turn it is,
and equal positions of both colours are one. Rights are tokens of their own: a rook that may still
castle, and the empty square on which a pawn may capture en passant.

An answer holds nothing but marks: the cell that a piece leaves, and the cells it goes to.
"""

from typing import Tuple

import numpy as np

# What is asked, and where generated positions come from.
KINDS = ("moves", "mate1", "mate2")
STYLES = ("games", "endings")

# Columns of Lichess' puzzles.
COLUMNS = ("FEN", "Moves")

CELLS = 64
PAD, EMPTY = 0, 1
# A piece is one of these plus its type: 1 pawn, 2 knight, 3 bishop, 4 rook, 5 queen, 6 king.
OWN, OTHER = 1, 7
OWN_CASTLING, OTHER_CASTLING, EN_PASSANT = 14, 15, 16
# A piece that is asked about is this plus its type, or, where it is a rook that may castle, that.
MARKED, MARKED_CASTLING = 16, 23
FROM, TO = 24, 25
# The cell of a promotion is this less the type of the new piece: 26 a queen, 29 a knight.
PROMOTION = 31

_PIECES = "PNBRQK"
# How each token is written: one character for a cell of the position, words for what is marked.
SYMBOLS = "?." + _PIECES + _PIECES.lower() + "RreABDEFGHox1234"
TOKEN_NAMES = (
    ["padding", "empty", *_PIECES, *_PIECES.lower(), "castling R", "castling r", "en passant"]
    + [f"marked {piece}" for piece in _PIECES]
    + ["marked castling R", "from", "to", "to=Q", "to=R", "to=B", "to=N"]
)
VOCABULARY = len(TOKEN_NAMES)

# The letter that a cell of a position shows; rights do not show.
LETTERS = "  " + _PIECES + _PIECES.lower() + "Rr " + _PIECES + "R" + 6 * " "

_UNMARKED = np.arange(VOCABULARY, dtype=np.uint8)
_UNMARKED[MARKED + 1 : MARKED + 7] -= MARKED - OWN
_UNMARKED[MARKED_CASTLING] = OWN_CASTLING
_MIRRORED = np.arange(CELLS).reshape(8, 8)[:, ::-1].reshape(-1)


def unmark(tokens: np.ndarray) -> np.ndarray:
    """Give (..., 64) uint8 positions without the mark of the piece that is asked about."""
    return np.asarray(_UNMARKED[np.asarray(tokens)])


def has_castling(tokens: np.ndarray) -> np.ndarray:
    """Say which of (..., 64) positions have castling rights, (...,) bool."""
    found = np.isin(tokens, (OWN_CASTLING, OTHER_CASTLING, MARKED_CASTLING))
    return np.asarray(found.any(axis=-1))


def mirrored_cells() -> np.ndarray:
    """Give (64,) the cell from which each cell's content comes when files are mirrored."""
    return np.array(_MIRRORED)


def mirror(tokens: np.ndarray) -> np.ndarray:
    """Mirror the files of (..., 64) tokens; true of positions without castling rights only."""
    return np.asarray(np.asarray(tokens)[..., _MIRRORED])


def position_key(tokens: np.ndarray) -> bytes:
    """Give a key of a (64,) position: equal where marks or a mirror make the only difference."""
    plain = unmark(tokens)
    if has_castling(plain):
        return plain.tobytes()
    return min(plain.tobytes(), mirror(plain).tobytes())


def read_marks(tokens: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Find the marks of (..., 64) answers.

    Returns:
        (..., 64) bool, cells that a piece leaves; and cells that one goes to, by any promotion.
    """
    tokens = np.asarray(tokens)
    return tokens == FROM, (tokens >= TO) & (tokens < VOCABULARY)


def most_probable_move(logits: np.ndarray) -> np.ndarray:
    """Read (n, 64, V) float logits as moves, legal or not.

    Returns:
        (n, 64) uint8: of all answers that mark one square left and another one reached, whatever
        it promotes to, the most probable, cells taken as independent.
    """
    logits = np.asarray(logits, dtype=np.float32)
    # How much likelier an answer gets by a mark in place of an empty cell.
    gain = logits - logits[..., EMPTY : EMPTY + 1]
    left, reached = gain[..., FROM], gain[..., TO:].max(axis=-1)
    both = left[:, :, None] + reached[:, None, :]
    both[:, np.arange(CELLS), np.arange(CELLS)] = -np.inf
    start, end = np.divmod(both.reshape(len(both), -1).argmax(axis=1), CELLS)
    rows = np.arange(len(logits))
    answers = np.full((len(logits), CELLS), EMPTY, dtype=np.uint8)
    answers[rows, start] = FROM
    answers[rows, end] = TO + gain[rows, end, TO:].argmax(axis=-1)
    return answers


def is_clean(tokens: np.ndarray) -> np.ndarray:
    """Say which of (..., 64) answers hold marks and empty cells only, (...,) bool."""
    left, reached = read_marks(tokens)
    return np.asarray((left | reached | (np.asarray(tokens) == EMPTY)).all(axis=-1))
