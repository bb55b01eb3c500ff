"""Boards as tokens: what each token is in either kind of puzzle, and boards that are the same."""

import hashlib
from typing import List, NamedTuple

import numpy as np

from mlx_trm.tasks.go.rules import Rules, rules_of
from mlx_trm.tasks.symmetries import dihedral_transform

KINDS = ("capture", "territory")
# Token t of a kind is written SYMBOLS[kind][t]; 0, padding, is no point of a board.
EMPTY, BLACK, WHITE = 1, 2, 3
MARKED_BLACK, MARKED_WHITE, MOVE = 4, 5, 6  # capture: the group in question, and where to play
BLACK_POINT, WHITE_POINT = 4, 5  # territory; a neutral point stays an empty one
SYMBOLS = {"capture": "?.XOBW1", "territory": "?.XOxo"}
# Tokens of a puzzle; the others stand in answers only.
GIVEN = {"capture": 6, "territory": 4}


class Position(NamedTuple):
    """A board as sets of points (:mod:`rules`).

    Attributes:
        black: stones, marked ones among them.
        white: stones, marked ones among them.
        marked: stones of the group in question; 0 for territory.
    """

    black: int
    white: int
    marked: int = 0

    @property
    def attacker(self) -> int:
        """Stones of the side to move: the other one than the marked group's."""
        return self.white if self.marked & self.black else self.black

    @property
    def defender(self) -> int:
        """Stones of the marked group's side."""
        return self.black if self.marked & self.black else self.white


def token_swap(kind: str) -> np.ndarray:
    """Give (V,) uint8: what each token becomes when black and white change places."""
    tokens = np.arange(len(SYMBOLS[kind]), dtype=np.uint8)
    tokens[[2, 3, 4, 5]] = [3, 2, 5, 4]
    return tokens


def decode(tokens: np.ndarray, kind: str, rules: Rules) -> Position:
    """Read the stones of (S,) tokens, whatever else stands between them."""
    tokens = np.asarray(tokens)
    black, white = (rules.to_bits(tokens == each) for each in (BLACK, WHITE))
    if kind == "territory":
        return Position(black, white)
    blacks, whites = (rules.to_bits(tokens == each) for each in (MARKED_BLACK, MARKED_WHITE))
    return Position(black | blacks, white | whites, blacks | whites)


def encode(position: Position, rules: Rules) -> np.ndarray:
    """Write a position as (S,) uint8 tokens."""
    tokens = np.full(rules.size**2, EMPTY, dtype=np.uint8)
    black, white, marked = (rules.to_flags(points) for points in position)
    tokens[black], tokens[white] = BLACK, WHITE
    tokens[black & marked], tokens[white & marked] = MARKED_BLACK, MARKED_WHITE
    return tokens


def position_problem(position: Position, kind: str, size: int) -> str:
    """Say what keeps a position from being a puzzle; nothing where it is one."""
    rules = rules_of(size)
    choked = rules.without_liberty(position.black, position.white)
    if choked:
        place = point_name(choked, size)
        return f"the stones at {place} have no liberty, so they cannot stand there; take them off"
    if kind == "territory":
        return ""
    if not position.marked:
        return (
            "no group is marked; write one black group with B, or one white group with W, and the "
            "other side is asked to capture it"
        )
    chain = rules.chain(position.marked & -position.marked, position.defender)
    if chain != position.marked:
        return "more than one group is marked; mark stones of one group"
    return ""


def point_name(points: int, size: int) -> str:
    """Name the first of a set of points as players do: columns A to J without I, rows upwards."""
    cell = (points & -points).bit_length() - 1
    return f"{'ABCDEFGHJ'[cell % size]}{size - cell // size}"


def board_keys(inputs: np.ndarray, kind: str, size: int) -> List[bytes]:
    """Give a key for each of (n, S) puzzles: equal for those that turns and colours make equal."""
    grids = np.asarray(inputs, dtype=np.uint8).reshape(-1, size, size)
    forms = [
        np.ascontiguousarray(dihedral_transform(grid, number))
        for grid in (grids, token_swap(kind)[grids])
        for number in range(8)
    ]
    return [
        hashlib.blake2b(min(form[row].tobytes() for form in forms), digest_size=16).digest()
        for row in range(len(grids))
    ]
