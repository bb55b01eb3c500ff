"""Generated puzzles: one solution each, seeded, rated; the hard ones are hard."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.errors import DataError
from mlx_trm.tasks.sudoku import hard
from mlx_trm.tasks.sudoku.generator import generate_sets, random_grids, rate_puzzles, thin_out
from mlx_trm.tasks.sudoku.hard import generate_hard
from mlx_trm.tasks.sudoku.keys import puzzle_keys
from mlx_trm.tasks.sudoku.solver import PuzzleSet, solve_puzzles, valid_grids
from mlx_trm.tasks.sudoku.transforms import SYMMETRIES

SIZES = st.sampled_from([4, 6, 9])


def digest(*sets: PuzzleSet) -> str:
    """A short hash of puzzles, solutions and ratings."""
    total = hashlib.sha256()
    for made in sets:
        for array in (made.puzzles, made.solutions, made.ratings.astype("<i8")):
            total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


@settings(deadline=None, max_examples=9)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_random_grids_are_valid(size: int, seed: int) -> None:
    """Complete, by the rules, decided by the seed."""
    grids = random_grids(20, size, np.random.default_rng(seed))
    assert grids.shape == (20, size * size) and grids.dtype == np.uint8
    assert valid_grids(grids, size).all()
    assert (grids == random_grids(20, size, np.random.default_rng(seed))).all()


def test_every_4x4_grid_comes_up() -> None:
    """There are 288, none much more often than another."""
    grids = random_grids(28800, 4, np.random.default_rng(0))
    _, times = np.unique(grids, axis=0, return_counts=True)
    assert len(times) == 288 and times.min() > 40 and times.max() < 200
    assert random_grids(0, 9, np.random.default_rng(0)).shape == (0, 81)


@settings(deadline=None, max_examples=6)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_thinned_puzzles_cannot_spare_a_given(size: int, seed: int) -> None:
    """One solution with all givens, more without any one of them."""
    rng = np.random.default_rng(seed)
    grids = random_grids(3, size, rng)
    puzzles = thin_out(grids, size, rng)
    found = solve_puzzles(puzzles, size)
    assert (found.counts == 1).all() and (found.solutions[:, 0] == grids).all()
    for puzzle in puzzles:
        cells = np.flatnonzero(puzzle)
        less = np.repeat(puzzle[None], len(cells), axis=0)
        less[np.arange(len(cells)), cells] = 0
        assert (solve_puzzles(less, size).counts == 2).all()


def test_thinning_stops_at_the_number_wanted() -> None:
    """Each puzzle has a number of its own."""
    rng = np.random.default_rng(0)
    wanted = np.arange(30, 50)
    puzzles = thin_out(random_grids(20, 9, rng), 9, rng, wanted)
    assert (puzzles > 0).sum(axis=1).tolist() == wanted.tolist()


@pytest.mark.parametrize("size, givens", [(4, (6, 8)), (4, (4, 5)), (6, (10, 14)), (9, (24, 30))])
def test_generated_puzzles(size: int, givens: Any) -> None:
    """As many as asked for, all different, one solution, rated, givens within bounds."""
    (made,) = generate_sets([60], size, np.random.default_rng(1), givens)
    assert len(made.puzzles) == 60 == len(np.unique(made.puzzles, axis=0))
    found = solve_puzzles(made.puzzles, size)
    assert (found.counts == 1).all() and (found.solutions[:, 0] == made.solutions).all()
    assert found.guesses.tolist() == made.ratings.tolist()
    number = (made.puzzles > 0).sum(axis=1)
    assert givens[0] <= number.min() <= number.max() <= givens[1]
    assert len(np.unique(number)) > 1


def test_sets_share_no_equivalents() -> None:
    """Symmetries never turn a puzzle of one set into one of the other, nor into an excluded one."""
    for symmetries in (["digits"], SYMMETRIES):
        rng = np.random.default_rng(2)
        one, two = generate_sets([400, 100], 4, rng, (6, 8), symmetries)
        keys = [puzzle_keys(made.puzzles, 4, symmetries) for made in (one, two)]
        assert not np.isin(*keys).any()
        (three,) = generate_sets([100], 4, rng, (6, 8), symmetries, np.concatenate(keys))
        assert not np.isin(puzzle_keys(three.puzzles, 4, symmetries), np.concatenate(keys)).any()


@pytest.mark.parametrize("count, givens", [(300, (16, 16)), (5, (3, 3))])
def test_what_does_not_exist_is_not_searched_for_ever(count: int, givens: Any) -> None:
    """There are 288 full grids; no 4x4 puzzle has fewer than 4 givens."""
    with pytest.raises(DataError, match=rf"\d different ones found, {count} wanted; ask for fewer"):
        generate_sets([count], 4, np.random.default_rng(0), givens)


@pytest.mark.parametrize(
    "size, expected",
    [(4, "970900860ff537fb"), (6, "4466071502123940"), (9, "cc989ae938c83e1c")],
)
def test_a_seed_decides_every_digit(size: int, expected: str) -> None:
    """Recorded: other puzzles for the same seed need a new GENERATOR_VERSION and a reason."""
    sets = generate_sets([30, 10], size, np.random.default_rng(5))
    assert digest(*sets) == expected
    other = generate_sets([30, 10], size, np.random.default_rng(6))
    assert digest(*other) != expected


def test_hard_puzzles_can_be_made_again() -> None:
    """Recorded: if this changes, the bundled samples cannot be remade any more."""
    made = generate_hard(2, np.random.default_rng(3), effort=0.05)
    assert digest(made) == "225b8e961e0991b1"


def test_hard_puzzles_are_hard(monkeypatch: Any) -> None:
    """Harder than random ones by far, one solution each, none equivalent to another."""
    monkeypatch.setattr(hard, "_STARTS", 8)
    monkeypatch.setattr(hard, "_STAGES", ((4, 300), (1, 3000)))
    rng = np.random.default_rng(7)
    random = rate_puzzles(thin_out(random_grids(60, 9, rng), 9, rng), 9)
    made = generate_hard(3, rng)
    assert made.ratings.min() > np.percentile(random.ratings, 90) > 0
    assert made.ratings.mean() > 5 * random.ratings.mean()
    found = solve_puzzles(made.puzzles, 9)
    assert (found.counts == 1).all() and (found.solutions[:, 0] == made.solutions).all()
    assert found.guesses.tolist() == made.ratings.tolist()
    assert len(np.unique(puzzle_keys(made.puzzles, 9, SYMMETRIES))) == 3


def test_hard_puzzles_stay_clear_of_excluded_ones(monkeypatch: Any) -> None:
    """The same seed finds the same puzzles, so nothing new; another seed does."""
    monkeypatch.setattr(hard, "_STARTS", 2)
    monkeypatch.setattr(hard, "_STAGES", ((1, 100),))
    first = generate_hard(3, np.random.default_rng(8))
    keys = puzzle_keys(first.puzzles, 9, SYMMETRIES)
    with pytest.raises(DataError, match="only 1 of 3 hard puzzles are new; try another seed"):
        generate_hard(3, np.random.default_rng(8), exclude=keys)
    other = generate_hard(3, np.random.default_rng(9), exclude=keys)
    assert not np.isin(puzzle_keys(other.puzzles, 9, SYMMETRIES), keys).any()


def test_each_step_of_the_search_keeps_one_solution() -> None:
    """Neighbours are right by construction; the solver agrees."""
    rng = np.random.default_rng(4)
    puzzles = thin_out(random_grids(12, 9, rng), 9, rng)
    cell = (puzzles > 0).argmax(axis=1)
    less = puzzles.copy()
    less[np.arange(12), cell] = 0
    found = solve_puzzles(less, 9, hard._LISTED)  # pylint: disable=protected-access
    walk, tried = hard._neighbours(  # pylint: disable=protected-access
        puzzles, less, cell, found.solutions, found.counts, rng
    )
    assert len(walk) > 12
    assert (solve_puzzles(tried, 9).counts == 1).all()
    assert ((tried != puzzles[walk]).sum(axis=1) <= 2).all()
    assert (np.diff(walk) >= 0).all()
    assert (tried != puzzles[walk]).any(axis=1).all()


def test_rating_needs_one_solution() -> None:
    """An empty grid has no rating."""
    with pytest.raises(ValueError, match="puzzle 0 has not exactly one solution"):
        rate_puzzles(np.zeros((1, 81), dtype=np.uint8), 9)
