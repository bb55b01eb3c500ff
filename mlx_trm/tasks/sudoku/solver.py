"""A Sudoku solver for many puzzles at once: solutions, proof of uniqueness, rating.

The candidates of a cell are the bits of a ``uint16`` (bit 0 is the digit 1). A pool of search
states, ``(size, size, pool)`` with the pool last, goes through rounds of naked and hidden singles
together; a state that no longer changes is solved or branches on its first cell with the fewest
candidates, one child for each. The search ends when nothing is left to try, so the number of
solutions is proved, and the rating of a puzzle with one solution, the number of candidates tried,
is the size of the whole search tree: it does not depend on the order of the search.
"""

from functools import lru_cache
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.system.patience import check_patience

# (rows, columns) of a box for each size of grid.
BOX_SHAPES = {4: (2, 2), 6: (2, 3), 9: (3, 3), 12: (3, 4), 16: (4, 4)}
SIZES = tuple(BOX_SHAPES)
# With fewer, no puzzle of up to 9 rows has one solution, and larger ones are not found in hours.
FEWEST_GIVENS = {4: 4, 6: 8, 9: 17, 12: 46, 16: 98}
# After so many, half a minute, a puzzle of 12 or 16 rows is given up.
MOST_GUESSES = 20_000_000
# For each set of candidates: how many they are, and the digit where it is one (else the highest).
NUMBER, DIGIT = np.zeros((2, 1 << max(SIZES)), dtype=np.uint8)
for _digit in range(max(SIZES)):  # twice as many sets with each digit
    NUMBER[1 << _digit : 2 << _digit] = NUMBER[: 1 << _digit] + 1
    DIGIT[1 << _digit : 2 << _digit] = _digit + 1

# Search states that are worked on together: large enough to hide NumPy's overhead, small enough
# for the cache. The bundled samples depend on it: a puzzle of many solutions shows the first found.
_POOL = 2048
_ONE = np.uint16(1)

_States = Tuple[np.ndarray, np.ndarray]  # (size, size, n) uint16 candidates; (n,) puzzle numbers


class PuzzleSet(NamedTuple):
    """N puzzles with their only solution.

    Attributes:
        puzzles: (N, S) uint8, digits from 1, 0 for blank.
        solutions: (N, S) uint8.
        ratings: (N,) int64, guesses of the solver; -1 where not known.
    """

    puzzles: np.ndarray
    solutions: np.ndarray
    ratings: np.ndarray

    def take(self, index: np.ndarray) -> "PuzzleSet":
        """Return the puzzles at ``index``, places or a mask."""
        return PuzzleSet(self.puzzles[index], self.solutions[index], self.ratings[index])


class SolveResult(NamedTuple):
    """What :func:`solve_puzzles` found for N puzzles of S cells.

    Attributes:
        counts: (N,) int64, the number of solutions, at most ``max_solutions`` (then there may be
            more).
        solutions: (N, max_solutions, S) uint8, those found, in no particular order; 0 where none.
        guesses: (N,) int64, candidates tried: the rating of a puzzle with one solution. For any
            other it is what was tried before the answer was clear.
    """

    counts: np.ndarray
    solutions: np.ndarray
    guesses: np.ndarray


def any_of(values: Sequence[object]) -> str:
    """Give such as ``4, 6 or 9``."""
    return f"{', '.join(map(str, values[:-1]))} or {values[-1]}"


def box_shape(size: int) -> Tuple[int, int]:
    """Return (rows, columns) of one box.

    Raises:
        ValueError: if ``size`` is none of ``SIZES``.
    """
    if size not in BOX_SHAPES:
        raise ValueError(f"a Sudoku has size {any_of(SIZES)}, not {size}")
    return BOX_SHAPES[size]


def unit_cells(size: int) -> np.ndarray:
    """Return the cells of each row, each column and each box, (3 * size, size) int64."""
    rows, cols = box_shape(size)
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(size // rows, rows, size // cols, cols).swapaxes(1, 2)
    return np.concatenate([cells, cells.T, boxes.reshape(size, size)])


def valid_grids(grids: np.ndarray, size: int) -> np.ndarray:
    """Say which grids are complete and keep the rules.

    Args:
        grids: (N, S) integers; the digits are 1..size.

    Returns:
        (N,) bool.
    """
    table = np.concatenate([[0], 1 << np.arange(size)]).astype(np.uint16)
    grids = np.asarray(grids)
    digits = np.where((grids >= 1) & (grids <= size), grids, 0)
    n = len(grids)
    bits = np.ascontiguousarray(table[digits].T).reshape(size, size, n)
    rows, cols = box_shape(size)
    boxes = bits.reshape(size // rows, rows, size // cols, cols, n)
    valid = np.ones(n, dtype=bool)
    for cells, axis in ((bits, 0), (bits, 1), (boxes, (1, 3))):
        seen = np.bitwise_or.reduce(cells, axis=axis).reshape(size, n)
        valid &= (seen == (1 << size) - 1).all(axis=0)
    return valid


def conflicts(grids: np.ndarray, size: int) -> np.ndarray:
    """Mark the cells whose digit stands twice in a row, a column or a box.

    Args:
        grids: (N, S) integers, 0 for blank.

    Returns:
        (N, S) bool.
    """
    grids = np.asarray(grids)
    units, places = _unit_tables(size)
    values = grids[:, units]
    same = (values[..., None] == values[..., None, :]).sum(axis=-1)
    twice = (same > 1) & (values != 0)
    # Each cell stands in three units: its own column of the table says where.
    return np.asarray(twice.reshape(len(grids), -1)[:, places].any(axis=-1))


@lru_cache(maxsize=None)
def _unit_tables(size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Give :func:`unit_cells`, and where in it, flat, each cell stands, (S, 3)."""
    units = unit_cells(size)
    places = np.argsort(units.ravel(), kind="stable").reshape(size * size, 3)
    units.setflags(write=False)
    places.setflags(write=False)
    return units, places


def start_states(puzzles: np.ndarray, size: int) -> np.ndarray:
    """Turn (N, S) puzzles into candidates, (size, size, N) uint16."""
    table = np.concatenate([[(1 << size) - 1], 1 << np.arange(size)]).astype(np.uint16)
    return np.ascontiguousarray(table[puzzles].T).reshape(size, size, len(puzzles))


def singles_round(masks: np.ndarray, size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Apply naked and hidden singles once to (size, size, n) candidates.

    Returns:
        The new candidates, and (n,) bool: the state has a contradiction.
    """
    rows, cols = box_shape(size)
    n = masks.shape[-1]
    cells = masks.reshape(size // rows, rows, size // cols, cols, n)
    single = _all_bits((cells & (cells - _ONE)) == 0)
    pair = np.stack([cells, cells & single])  # all candidates, and those of fixed cells
    third = _once_twice(pair, None, 4)  # of each row within each box
    units = [
        _once_twice(*third, 3),
        _once_twice(*_once_twice(pair, None, 2), 1),
        _once_twice(*third, 2),
    ]
    # Digits fixed in a unit of the cell, and digits with one place left in a unit of the cell.
    (_, lost), (_, column_lost), (_, box_lost) = (once for once, _ in units)
    hidden, column_hidden, box_hidden = (once[0] & ~twice[0] for once, twice in units)
    lost, hidden = lost | column_lost, hidden | column_hidden
    lost |= box_lost
    hidden |= box_hidden
    left = cells & ~(lost & ~single)
    hidden &= left
    left &= hidden | ~_all_bits(hidden != 0)
    empty = (left == 0) | (hidden & (hidden - _ONE) != 0)
    dead = empty.reshape(-1, n).any(axis=0)
    full = np.uint16((1 << size) - 1)
    for once, twice in units:
        dead |= np.bitwise_or.reduce(twice[1].reshape(-1, n), axis=0) != 0
        dead |= np.bitwise_and.reduce(once[0].reshape(-1, n), axis=0) != full
    return left.reshape(masks.shape), dead


def _once_twice(
    once: np.ndarray, twice: Optional[np.ndarray], axis: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Return the bits set at least once, and at least twice, along an axis of 2 or 3.

    Args:
        once: bits set at least once in each part.
        twice: bits set at least twice in each part; None: there are none.
        axis: along which the parts stand; it stays, with length 1.
    """
    places = [(slice(None),) * axis + (slice(i, i + 1),) for i in range(once.shape[axis])]
    seen = once[places[0]]
    again = seen & once[places[1]]
    seen = seen | once[places[1]]
    for place in places[2:]:
        again |= seen & once[place]
        seen |= once[place]
    if twice is not None:
        for place in places:
            again |= twice[place]
    return seen, again


def _all_bits(flags: np.ndarray) -> np.ndarray:
    """Return uint16 with every bit set where ``flags``, else 0 (faster than np.where)."""
    return np.negative(flags.astype(np.uint16))


def solve_puzzles(
    puzzles: np.ndarray, size: int, max_solutions: int = 2, most_guesses: Optional[int] = None
) -> SolveResult:
    """Solve puzzles and prove how many solutions each has.

    Args:
        puzzles: (N, S) integers, 0 for blank, digits 1..size. Contradictory givens are allowed;
            they have no solution.
        size: one of ``SIZES``.
        max_solutions: stop searching a puzzle where so many are found.
        most_guesses: give a puzzle up after so many, which its number of guesses then exceeds;
            None: never. What has up to 9 rows needs no limit.

    Returns:
        The number of solutions, those found, and the guesses it took.

    Raises:
        ValueError: for another size or shape, or a digit out of range.
        GivenUp: if :func:`mlx_trm.system.patience.limit_patience` has set a limit that is passed.
    """
    box_shape(size)
    puzzles = np.asarray(puzzles)
    if puzzles.ndim != 2 or puzzles.shape[1] != size * size:
        raise ValueError(f"puzzles must have shape (N, {size * size}), not {puzzles.shape}")
    if puzzles.size and (puzzles.min() < 0 or puzzles.max() > size):
        raise ValueError(f"cells must be 0..{size}")
    search = _Search(puzzles, size, max_solutions, most_guesses)
    search.run()
    return SolveResult(search.counts, search.solutions, search.guesses)


class _Search:
    """The state of one call of :func:`solve_puzzles`."""

    def __init__(
        self, puzzles: np.ndarray, size: int, max_solutions: int, most_guesses: Optional[int]
    ) -> None:
        self.puzzles = puzzles
        self.size = size
        self.max_solutions = max_solutions
        self.most_guesses = most_guesses
        self.counts = np.zeros(len(puzzles), dtype=np.int64)
        self.solutions = np.zeros((len(puzzles), max_solutions, size * size), dtype=np.uint8)
        self.guesses = np.zeros(len(puzzles), dtype=np.int64)
        self.done = np.zeros(len(puzzles), dtype=bool)
        self.stack: List[_States] = []
        self.waiting = self._starts()

    def _starts(self) -> Iterator[_States]:
        for start in range(0, len(self.puzzles), _POOL // 2):
            block = self.puzzles[start : start + _POOL // 2]
            yield start_states(block, self.size), np.arange(start, start + len(block))

    def run(self) -> None:
        """Search until nothing is left to try."""
        masks = np.empty((self.size, self.size, 0), dtype=np.uint16)
        owner = np.empty(0, dtype=np.int64)
        while True:
            check_patience()
            masks, owner = self._refill(masks, owner)
            if not len(owner):
                return
            new, dead = singles_round(masks, self.size)
            changed = (new != masks).reshape(-1, len(owner)).any(axis=0)
            alive = ~dead & ~self.done[owner]
            stuck = np.flatnonzero(alive & ~changed)
            if len(stuck):
                self._settle(new[:, :, stuck].reshape(-1, len(stuck)), owner[stuck])
            keep = alive & changed
            masks, owner = np.compress(keep, new, axis=2), owner[keep]

    def _refill(self, masks: np.ndarray, owner: np.ndarray) -> _States:
        """Top the pool up, from the stack and then from the puzzles not yet begun."""
        parts = [(masks, owner)]
        room = _POOL - len(owner)
        while room > 0:
            if self.stack:
                block, who = self.stack.pop()
                live = ~self.done[who]
                if not live.all():
                    block, who = block[:, :, live], who[live]
            else:
                begun = next(self.waiting, None) if room >= _POOL // 2 else None
                if begun is None:
                    break
                block, who = begun
            if len(who) > room:
                self.stack.append((block[:, :, room:], who[room:]))
                block, who = block[:, :, :room], who[:room]
            parts.append((block, who))
            room -= len(who)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([p[0] for p in parts], 2), np.concatenate([p[1] for p in parts])

    def _settle(self, cells: np.ndarray, owner: np.ndarray) -> None:
        """Note the solutions among (S, n) states at rest; push the children of the others."""
        number = NUMBER[cells]
        is_open = (number > 1).any(axis=0)
        if not is_open.all():
            self._note(cells[:, ~is_open], owner[~is_open])
        branch = np.flatnonzero(is_open & ~self.done[owner])
        if not len(branch):
            return
        cells, owner, number = cells[:, branch], owner[branch], number[:, branch]
        number[number < 2] = self.size + 1
        cell = number.argmin(axis=0)
        tries = number.min(axis=0).astype(np.int64)
        np.add.at(self.guesses, owner, tries)
        if self.most_guesses is not None:
            self.done |= self.guesses > self.most_guesses
        values = cells[cell, np.arange(len(branch)), None]
        options = values & np.left_shift(1, np.arange(self.size)).astype(np.uint16)
        children = np.repeat(cells, tries, axis=1)
        children[np.repeat(cell, tries), np.arange(children.shape[1])] = options[options != 0]
        self.stack.append(
            (children.reshape(self.size, self.size, -1), np.repeat(owner, tries)),
        )

    def _note(self, cells: np.ndarray, owner: np.ndarray) -> None:
        """Store (S, n) solved states, at most ``max_solutions`` for each puzzle."""
        order = np.argsort(owner, kind="stable")
        owner = owner[order]
        _, first, number = np.unique(owner, return_index=True, return_counts=True)
        place = self.counts[owner] + np.arange(len(owner)) - np.repeat(first, number)
        fits = place < self.max_solutions
        owner, place = owner[fits], place[fits]
        self.solutions[owner, place] = DIGIT[cells[:, order[fits]]].T
        np.add.at(self.counts, owner, 1)
        self.done[owner] = self.counts[owner] == self.max_solutions
