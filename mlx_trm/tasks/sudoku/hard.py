"""Searches for hard 9x9 puzzles: many walks, the harder half of which goes on.

A walk changes its puzzle by one given: take one away, list the solutions of what is left, and put
in a digit that only one of them has in its cell; what comes out has one solution by construction.
Of these neighbours the one with the highest rating is taken, if it is not much easier. Walks
begin at random puzzles that cannot spare a given; between stages the easier ones are given up.
"""

import logging
from typing import List, Optional, Tuple

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.sudoku.generator import random_grids, rate_puzzles, thin_out
from mlx_trm.tasks.sudoku.keys import puzzle_keys
from mlx_trm.tasks.sudoku.solver import PuzzleSet, solve_puzzles
from mlx_trm.tasks.sudoku.transforms import SYMMETRIES

LOG = logging.getLogger(__name__)

_SIZE = 9
_CELLS = _SIZE * _SIZE
# Random puzzles made for each puzzle wanted.
_STARTS = 16
# (walks for each puzzle wanted, guesses spent on each walk), stage by stage, at effort 1.
_STAGES = ((8, 3000), (4, 8000), (2, 20000), (1, 80000))
_LISTED = 256  # solutions listed at most; with more, a neighbourhood is not looked at
_RATED = 32  # neighbours rated at most
_EASIER = (17, 20)  # a step may go down to 17/20 of the rating
_PAUSE = (8, 20)  # steps before a cell is tried again: listed, too many solutions
_BLOCK = 1024  # walks worked on together


def generate_hard(
    count: int,
    rng: np.random.Generator,
    effort: float = 1.0,
    exclude: Optional[np.ndarray] = None,
) -> PuzzleSet:
    """Search for hard 9x9 puzzles, each grown from a grid of its own.

    Args:
        count: how many.
        rng: decides everything.
        effort: search time; 1 takes about a second for each puzzle.
        exclude: :func:`puzzle_keys` under all symmetries of puzzles to keep out.

    Returns:
        The puzzles; none can be turned into another or into an excluded one by symmetries.

    Raises:
        DataError: if too many of the puzzles found are excluded ones.
    """
    spare = count + max(1, count // 50) if count else 0
    puzzles = thin_out(random_grids(_STARTS * spare, _SIZE, rng), _SIZE, rng)
    ratings = rate_puzzles(puzzles, _SIZE).ratings
    for number, (walks, guesses) in enumerate(_STAGES, 1):
        keep = _hardest(ratings, walks * spare)
        puzzles, ratings = puzzles[keep], ratings[keep]
        blocks: List[Tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(puzzles), _BLOCK):
            part = slice(start, start + _BLOCK)
            blocks.append(_walk(puzzles[part], ratings[part], rng, guesses * effort))
        if blocks:
            puzzles = np.concatenate([block[0] for block in blocks])
            ratings = np.concatenate([block[1] for block in blocks])
            LOG.info(
                "stage %d of %d: %d walks, rating %.0f on average, %d at most",
                number, len(_STAGES), len(puzzles), ratings.mean(), ratings.max(),
            )  # fmt: skip
    keys = puzzle_keys(puzzles, _SIZE, SYMMETRIES)
    fresh = np.zeros(len(keys), dtype=bool)
    fresh[np.unique(keys, return_index=True)[1]] = True
    if exclude is not None:
        fresh &= ~np.isin(keys, exclude)
    if fresh.sum() < count:
        raise DataError(
            f"only {int(fresh.sum())} of {count} hard puzzles are new; try another seed"
        )
    puzzles, ratings = puzzles[fresh], ratings[fresh]
    return rate_puzzles(puzzles[_hardest(ratings, count)], _SIZE)


def _hardest(ratings: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the ``count`` highest ratings, in their order."""
    return np.sort(np.argsort(-ratings, kind="stable")[:count])


def _walk(
    puzzles: np.ndarray, ratings: np.ndarray, rng: np.random.Generator, guesses: float
) -> Tuple[np.ndarray, np.ndarray]:
    """Walk from (n, 81) puzzles for ``guesses`` each; return the hardest met and their ratings."""
    n = len(puzzles)
    here, rating = puzzles.copy(), ratings.copy()
    best, best_rating = puzzles.copy(), ratings.copy()
    pause = np.zeros((n, _CELLS))
    spent, step = 0, 0
    while spent < guesses * n:
        step += 1
        order = np.where(here != 0, pause + rng.random((n, _CELLS)), np.inf)
        cell = order.argmin(axis=1)
        less = here.copy()
        less[np.arange(n), cell] = 0
        found = solve_puzzles(less, _SIZE, _LISTED)
        listed = found.counts < _LISTED
        pause[np.arange(n), cell] = step + np.where(listed, *_PAUSE)
        walk, tried = _neighbours(here, less, cell, found.solutions, found.counts, rng)
        rated = solve_puzzles(tried, _SIZE).guesses
        spent += int(found.guesses.sum() + rated.sum())
        walk, tried, rated = _best_of_each(walk, tried, rated)
        good = rated * _EASIER[1] >= rating[walk] * _EASIER[0]
        here[walk[good]], rating[walk[good]] = tried[good], rated[good]
        better = rating > best_rating
        best[better], best_rating[better] = here[better], rating[better]
    return best, best_rating


def _neighbours(
    here: np.ndarray,
    less: np.ndarray,
    cell: np.ndarray,
    solutions: np.ndarray,
    counts: np.ndarray,
    rng: np.random.Generator,
) -> Tuple[np.ndarray, np.ndarray]:
    """List puzzles with one solution that are one given away.

    Returns:
        (m,) the walk each belongs to, ascending, and (m, 81) the puzzles.
    """
    n = len(here)
    bits = np.left_shift(1, solutions, dtype=np.uint16) >> np.uint16(1)
    once, twice = np.zeros_like(bits[:, 0]), np.zeros_like(bits[:, 0])
    for number in range(bits.shape[1]):
        twice |= once & bits[:, number]
        once |= bits[:, number]
    own = (np.arange(_CELLS) == cell[:, None]) * (np.left_shift(1, here, dtype=np.uint16) >> 1)
    new = once & ~twice & ~own.astype(np.uint16)
    new[(counts < 2) | (counts >= _LISTED)] = 0
    new[less != 0] = 0
    digit_bits = np.left_shift(1, np.arange(_SIZE)).astype(np.uint16)
    walk, place, digit = np.nonzero(new[:, :, None] & digit_bits)
    order = np.lexsort((rng.random(len(walk)), walk))
    rank = np.arange(len(walk)) - np.searchsorted(walk, walk)
    order = order[rank < _RATED]
    walk, place, digit = walk[order], place[order], digit[order]
    tried = less[walk]
    tried[np.arange(len(walk)), place] = digit + 1
    # Where one solution stays, the given could be spared: that is a neighbour too.
    walk = np.concatenate([walk, np.arange(n)[counts == 1]])
    tried = np.concatenate([tried, less[counts == 1]])
    order = np.argsort(walk, kind="stable")
    return walk[order], tried[order]


def _best_of_each(
    walk: np.ndarray, tried: np.ndarray, rated: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the highest rating of each walk."""
    order = np.lexsort((rated, walk))
    last = np.flatnonzero(np.append(np.diff(walk[order]) != 0, True)[: len(order)])
    best = order[last]
    return walk[best], tried[best], rated[best]
