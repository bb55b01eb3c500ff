"""Makes Sudoku puzzles: seeded, each with exactly one solution, each rated.

A puzzle is thinned out of a random complete grid: givens are taken away in random order, each only
where the solver still proves one solution. All puzzles of a call go through each step together.
"""

from typing import Collection, List, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.sudoku.files import read_sample
from mlx_trm.tasks.sudoku.keys import mix_bits, puzzle_keys
from mlx_trm.tasks.sudoku.solver import (
    DIGIT,
    NUMBER,
    PuzzleSet,
    box_shape,
    singles_round,
    solve_puzzles,
)

# Raised whenever the same seed gives other puzzles.
GENERATOR_VERSION = 1

# Givens (at least, at most) where nothing else is said: below, few random puzzles have one
# solution; above, they are filled in without thinking.
DEFAULT_GIVENS = {4: (6, 8), 6: (10, 14), 9: (24, 30), 12: (54, 66), 16: (112, 128)}

# Candidates after which nothing found means that nothing will be.
_HOPELESS = 2048


def rate_puzzles(puzzles: np.ndarray, size: int) -> PuzzleSet:
    """Solve puzzles that have one solution, and rate them.

    Raises:
        ValueError: if a puzzle does not have exactly one solution.
    """
    found = solve_puzzles(puzzles, size)
    if (found.counts != 1).any():
        raise ValueError(f"puzzle {int(np.argmax(found.counts != 1))} has not exactly one solution")
    return PuzzleSet(puzzles.astype(np.uint8), found.solutions[:, 0], found.guesses)


def random_grids(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Fill complete grids at random.

    A cell with few candidates takes one of them, singles follow, and a contradiction starts the
    grid afresh. Every grid can come out, not all equally often (4x4: within a factor of four).

    Args:
        count: N, how many; the same grid may come twice.
        size: one of :data:`~mlx_trm.tasks.sudoku.solver.SIZES`.
        rng: decides everything.

    Returns:
        (N, S) uint8.
    """
    box_shape(size)
    full = (1 << size) - 1
    grids = np.zeros((count, size * size), dtype=np.uint8)
    todo = np.arange(count)
    cells = np.full((size * size, count), full, dtype=np.uint16)
    while len(todo):
        cells = _follow_singles(cells, size)
        number = NUMBER[cells]
        solved = (number == 1).all(axis=0)
        grids[todo[solved]] = DIGIT[cells[:, solved]].T
        todo, cells, number = todo[~solved], cells[:, ~solved], number[:, ~solved]
        if len(todo):
            _place_at_random(cells, number, rng)
    return grids


def _follow_singles(cells: np.ndarray, size: int) -> np.ndarray:
    """Apply singles to (S, n) candidates to the end; contradictions become empty grids."""
    masks = cells.reshape(size, size, -1)
    dead = np.zeros(masks.shape[-1], dtype=bool)
    while True:
        new, wrong = singles_round(masks, size)
        dead |= wrong
        if not ((new != masks).any(axis=(0, 1)) & ~dead).any():
            break
        masks = new
    masks[:, :, dead] = (1 << size) - 1
    return masks.reshape(size * size, -1)


def _place_at_random(cells: np.ndarray, number: np.ndarray, rng: np.random.Generator) -> None:
    """Fix, in each of (S, n) grids, one of the open cells with the fewest candidates."""
    n = cells.shape[1]
    order = np.where(number > 1, number, 99) + rng.random(number.shape)
    cell = order.argmin(axis=0)
    bits = cells[cell, np.arange(n)]
    skip = (rng.random(n) * NUMBER[bits]).astype(np.int64)
    while (skip > 0).any():
        bits = np.where(skip > 0, bits & (bits - np.uint16(1)), bits)
        skip -= 1
    cells[cell, np.arange(n)] = bits & np.negative(bits)


def thin_out(
    grids: np.ndarray, size: int, rng: np.random.Generator, givens: Optional[np.ndarray] = None
) -> np.ndarray:
    """Take givens away in random order, as long as one solution stays.

    Args:
        grids: (N, S) puzzles with one solution, complete grids for example.
        size: one of :data:`~mlx_trm.tasks.sudoku.solver.SIZES`.
        rng: decides the order.
        givens: (N,) stop at so many; None: go on until no given can be spared.

    Returns:
        (N, S) uint8.
    """
    puzzles = np.array(grids, dtype=np.uint8)
    order = np.argsort(rng.random(puzzles.shape), axis=1, kind="stable")
    target = np.zeros(len(puzzles), dtype=np.int64) if givens is None else np.asarray(givens)
    for step in range(size * size):
        cell = order[:, step]
        rows = np.flatnonzero((puzzles != 0).sum(axis=1) > target)
        rows = rows[puzzles[rows, cell[rows]] != 0]
        tried = puzzles[rows]
        tried[np.arange(len(rows)), cell[rows]] = 0
        spared = solve_puzzles(tried, size).counts == 1
        puzzles[rows[spared]] = tried[spared]
    return puzzles


def generate_sets(
    counts: Sequence[int],
    size: int,
    rng: np.random.Generator,
    givens: Optional[Tuple[int, int]] = None,
    symmetries: Collection[str] = ("digits",),
    exclude: Optional[np.ndarray] = None,
) -> List[PuzzleSet]:
    """Make sets of puzzles, such as a training and a test set, that share nothing.

    Args:
        counts: how many puzzles each set gets.
        size: one of :data:`~mlx_trm.tasks.sudoku.solver.SIZES`.
        rng: decides everything.
        givens: (at least, at most); None: ``DEFAULT_GIVENS``.
        symmetries: a puzzle that these turn into another belongs to the same set as that.
        exclude: :func:`puzzle_keys` under ``symmetries`` of puzzles to keep out of all sets.

    Returns:
        One set for each count; no puzzle stands twice in a set.

    Raises:
        DataError: if so many different puzzles are not found.
    """
    low, high = givens or DEFAULT_GIVENS[size]
    salt = rng.integers(0, 2**63, dtype=np.uint64)
    shares = np.cumsum(counts) / max(1, sum(counts))
    found: List[List[np.ndarray]] = [[] for _ in counts]
    have = np.zeros(len(counts), dtype=np.int64)
    seen = np.empty(0, dtype=np.uint64)
    drawn, limit = 0, 20 * sum(counts) + 20000
    while (have < counts).any():
        if drawn >= limit or (drawn >= _HOPELESS and not have.any()):
            raise DataError(
                f"{size}x{size} puzzles with {low}-{high} givens: only {int(have.sum())} different "
                f"ones found, {sum(counts)} wanted; ask for fewer, or for other numbers of givens"
            )
        wanted = np.subtract(counts, have) / np.maximum(counts, 1)
        chunk = int(np.clip(1.2 * wanted.max() * sum(counts), 64, 8192))
        drawn += chunk
        target = rng.integers(low, high + 1, chunk)
        puzzles = thin_out(random_grids(chunk, size, rng), size, rng, target)
        puzzles = puzzles[(puzzles != 0).sum(axis=1) <= high]
        puzzles, seen = _not_seen(puzzles, size, seen)
        keys = puzzle_keys(puzzles, size, symmetries)
        if exclude is not None:
            puzzles, keys = puzzles[~np.isin(keys, exclude)], keys[~np.isin(keys, exclude)]
        place = np.searchsorted(shares, mix_bits(keys ^ salt) / 2.0**64, side="right")
        for which, parts in enumerate(found):
            part = puzzles[place == which][: counts[which] - have[which]]
            parts.append(part)
            have[which] += len(part)
    return [rate_puzzles(np.concatenate(parts), size) if parts else _empty(size) for parts in found]


def _empty(size: int) -> PuzzleSet:
    cells = np.zeros((0, size * size), dtype=np.uint8)
    return PuzzleSet(cells, cells, np.zeros(0, dtype=np.int64))


def _not_seen(puzzles: np.ndarray, size: int, seen: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Drop puzzles that came before; return the rest and everything seen so far."""
    keys = puzzle_keys(puzzles, size, ())
    _, first = np.unique(keys, return_index=True)
    first = np.sort(first[~np.isin(keys[first], seen)])
    return puzzles[first], np.concatenate([seen, keys[first]])


def draw_puzzle(size: int, givens: Tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw one puzzle, (S,) digits: at 9x9 a hard one of the package, else a new one.

    Args:
        size: rows and columns.
        givens: of a new one, at least and at most.
        rng: decides which.
    """
    if size == 9:
        puzzles = read_sample()
        return np.asarray(puzzles[rng.integers(len(puzzles))])
    return np.asarray(generate_sets([1], size, rng, givens)[0].puzzles[0])
