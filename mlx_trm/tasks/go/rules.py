"""The rules of Go: chains, liberties, captures, ko and suicide, on boards of up to 9x9.

Sets of points are whole numbers, one bit a point: row r and column c are bit r * size + c. A
machine's shifts and masks then do for a whole set what a loop would do point by point. A position
is two such sets, the stones of each side, and perhaps a point that ko forbids.
"""

from functools import lru_cache
from typing import Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

SIZES = (7, 9)


class Played(NamedTuple):
    """A position after a move.

    Attributes:
        own: stones of the side that has moved.
        other: stones of the side to move now.
        ko: the point where that side may not take back at once; 0: there is none.
    """

    own: int
    other: int
    ko: int


class Region(NamedTuple):
    """Empty points that hang together.

    Attributes:
        points: the set of them.
        black: whether one of them lies beside a black stone.
        white: whether one of them lies beside a white stone.
    """

    points: int
    black: bool
    white: bool


class Rules:
    """The rules on a board of one size; it keeps no position."""

    def __init__(self, size: int) -> None:
        """Prepare the masks of a board.

        Args:
            size: rows and columns.
        """
        self.size = size
        self.full = (1 << size * size) - 1
        column = sum(1 << row * size for row in range(size))
        self._not_left, self._not_right = self.full ^ column, self.full ^ (column << (size - 1))

    def around(self, points: int) -> int:
        """Give the neighbours of a set of points; points of the set may be among them."""
        size = self.size
        beside = ((points & self._not_right) << 1) | ((points & self._not_left) >> 1)
        return ((points << size) | (points >> size) | beside) & self.full

    def chain(self, start: int, stones: int) -> int:
        """Give all of ``stones`` that hang together with those of ``start`` among them."""
        found = start & stones
        while True:
            grown = (found | self.around(found)) & stones
            if grown == found:
                return found
            found = grown

    def chains(self, stones: int) -> Iterator[int]:
        """Yield the chains that stones of one colour form; of a set of points, its parts."""
        while stones:
            found = self.chain(stones & -stones, stones)
            yield found
            stones ^= found

    def play(self, own: int, other: int, point: int, ko: int = 0) -> Optional[Played]:
        """Put a stone on the board, and take off what it captures.

        Args:
            own: stones of the side that moves.
            other: stones of the other side.
            point: where, a set of one point.
            ko: the point that ko forbids, or 0.

        Returns:
            The position after the move; None where it is illegal: the point is taken, ko forbids
            it, or it is suicide.
        """
        if point & (own | other) or point == ko:
            return None
        own |= point
        near = self.around(point)
        captured, beside = 0, near & other
        for chain in self.chains(self.chain(beside, other)) if beside else ():
            if not self.around(chain) & ~(own | other):
                captured |= chain
        other ^= captured
        empty = self.full & ~(own | other)
        if not near & empty:
            if not self.around(self.chain(point, own)) & empty:
                return None
            return Played(own, other, 0)
        # Ko: a lone stone has taken a lone stone, and could be taken back right there.
        taken_back = captured and near & empty == captured and not captured & (captured - 1)
        return Played(own, other, captured if taken_back and not near & own else 0)

    def regions(self, black: int, white: int) -> List[Region]:
        """Give the empty regions of a board, with the colours that border on each."""
        found = []
        for points in self.chains(self.full & ~(black | white)):
            border = self.around(points)
            found.append(Region(points, bool(border & black), bool(border & white)))
        return found

    def territory(self, black: int, white: int) -> Tuple[int, int]:
        """Give the points of either side under area scoring, no stone being dead.

        Returns:
            The empty points from which only black stones are reached, and those from which only
            white ones are; the others are neutral.
        """
        regions = self.regions(black, white)
        blacks = sum(each.points for each in regions if each.black and not each.white)
        whites = sum(each.points for each in regions if each.white and not each.black)
        return blacks, whites

    def without_liberty(self, black: int, white: int) -> int:
        """Give the stones of chains that have no liberty: on a legal board there are none."""
        empty = self.full & ~(black | white)
        return sum(
            chain
            for stones in (black, white)
            for chain in self.chains(stones)
            if not self.around(chain) & empty
        )

    def to_bits(self, flags: np.ndarray) -> int:
        """Turn (S,) bool into a set of points."""
        packed = np.packbits(np.asarray(flags, dtype=bool), bitorder="little").tobytes()
        return int.from_bytes(packed, "little")

    def to_flags(self, points: int) -> np.ndarray:
        """Turn a set of points into (S,) bool."""
        raw = np.frombuffer(points.to_bytes(self.size**2 // 8 + 1, "little"), dtype=np.uint8)
        return np.unpackbits(raw, bitorder="little")[: self.size**2].astype(bool)


@lru_cache(maxsize=None)
def rules_of(size: int) -> Rules:
    """Give the rules on a board of ``size`` rows; they are made once."""
    return Rules(size)


def points_of(points: int) -> Iterator[int]:
    """Yield the points of a set one by one, each as a set of one."""
    while points:
        one = points & -points
        yield one
        points ^= one


def count_points(points: int) -> int:
    """Count the points of a set."""
    return bin(points).count("1")
