"""The solver: solutions, proofs, ratings that depend on the puzzle alone."""

from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.tasks.sudoku.files import read_puzzles
from mlx_trm.tasks.sudoku.generator import random_grids
from mlx_trm.tasks.sudoku.solver import (
    SIZES,
    PuzzleSet,
    box_shape,
    conflicts,
    solve_puzzles,
    unit_cells,
    valid_grids,
)
from mlx_trm.tasks.sudoku.task import SAMPLES

# An easy puzzle: singles solve it.
QUESTION = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def digits(text: str) -> np.ndarray:
    """(1, S) digits of a puzzle."""
    return np.array([[0 if char == "." else int(char) for char in text]])


def read_all(path: Path, size: int = 9) -> PuzzleSet:
    """A whole file."""
    return PuzzleSet(*map(np.concatenate, zip(*read_puzzles(path, size))))


def test_units_of_each_size() -> None:
    """Rows, columns and boxes, each cell in three of them; 6x6 has boxes of 2 rows x 3 columns."""
    assert [box_shape(size) for size in SIZES] == [(2, 2), (2, 3), (3, 3), (3, 4), (4, 4)]
    assert unit_cells(6)[13].tolist() == [3, 4, 5, 9, 10, 11]
    assert unit_cells(9)[22].tolist() == [30, 31, 32, 39, 40, 41, 48, 49, 50]
    for size in (4, 6, 9, 12, 16):
        assert (np.bincount(unit_cells(size).ravel()) == 3).all()
    with pytest.raises(ValueError, match="size 4, 6, 9, 12 or 16, not 25"):
        box_shape(25)


def test_a_known_puzzle() -> None:
    """Its only solution; singles suffice, so no guesses."""
    found = solve_puzzles(digits(QUESTION), 9)
    assert found.counts.tolist() == [1] and found.guesses.tolist() == [0]
    assert found.solutions[0, 0].tolist() == digits(ANSWER)[0].tolist()
    assert not found.solutions[0, 1].any()


def backtrack(cells: List[int], size: int, limit: int) -> List[List[int]]:
    """All solutions by plain search, at most ``limit``."""
    if 0 not in cells:
        return [cells]
    place = cells.index(0)
    taken = {cells[c] for unit in unit_cells(size) if place in unit for c in unit}
    found: List[List[int]] = []
    for digit in range(1, size + 1):
        if digit not in taken and len(found) < limit:
            trial = cells[:place] + [digit] + cells[place + 1 :]
            found += backtrack(trial, size, limit - len(found))
    return found


@settings(deadline=None, max_examples=40)
@given(size=st.sampled_from([4, 6]), seed=st.integers(0, 10**6), share=st.floats(0.2, 0.8))
def test_the_solver_finds_what_plain_search_finds(size: int, seed: int, share: float) -> None:
    """Solvable puzzles with one and with many solutions, and puzzles with a wrong given."""
    rng = np.random.default_rng(seed)
    grids = random_grids(6, size, rng).astype(int)
    puzzles = np.where(rng.random(grids.shape) < share, grids, 0)
    puzzles[3:, 0] = rng.integers(1, size + 1, 3)
    found = solve_puzzles(puzzles, size, max_solutions=5)
    for puzzle, count, solutions in zip(puzzles, found.counts, found.solutions):
        clash = conflicts(puzzle[None], size).any()
        expected = [] if clash else backtrack(puzzle.tolist(), size, 5)
        assert count == len(expected)
        if count < 5:
            assert sorted(solutions[:count].tolist()) == sorted(expected)
        assert valid_grids(solutions[:count], size).all()
        assert ((puzzle == 0) | (solutions[:count] == puzzle)).all()


def test_ratings_do_not_depend_on_company() -> None:
    """A puzzle is rated alike alone, among others and in another order."""
    rows = read_all(SAMPLES / "sudoku_hard_train.csv").take(np.arange(40))
    again = solve_puzzles(rows.puzzles, 9)
    assert again.guesses.tolist() == rows.ratings.tolist()
    assert solve_puzzles(rows.puzzles[::-1], 9).guesses[::-1].tolist() == rows.ratings.tolist()
    assert solve_puzzles(rows.puzzles[7:8], 9).guesses[0] == rows.ratings[7]


def test_contradictions_and_empty_grids() -> None:
    """No solution where givens clash; two found at once in an empty grid; nothing for nothing."""
    clash = digits("55" + "." * 79)
    assert solve_puzzles(np.concatenate([clash, digits("." * 81)]), 9).counts.tolist() == [0, 2]
    assert solve_puzzles(np.zeros((0, 81), int), 9).counts.shape == (0,)
    assert solve_puzzles(digits("." * 16), 4, max_solutions=1000).counts.tolist() == [288]
    for wrong in (np.zeros((1, 80), int), np.full((1, 81), 10), np.full((1, 81), -1)):
        with pytest.raises(ValueError):
            solve_puzzles(wrong, 9)


def test_conflicts_mark_both_cells() -> None:
    """Same row, same column, same box; blanks never clash."""
    puzzle = np.zeros((1, 81), int)
    puzzle[0, [0, 8]] = 5  # row 1
    puzzle[0, [13, 76]] = 6  # column 5
    puzzle[0, [60, 70]] = 7  # box 9
    puzzle[0, [40]] = 9
    assert np.flatnonzero(conflicts(puzzle, 9)).tolist() == [0, 8, 13, 60, 70, 76]


@pytest.mark.parametrize("change", [{0: 0}, {0: 3, 1: 5}, {80: 10}, {40: -1}, {3: 4}])
def test_valid_grids(change: Any) -> None:
    """A blank, swapped cells, numbers out of range, one wrong digit."""
    grid = digits(ANSWER)
    assert valid_grids(grid, 9).tolist() == [True]
    for cell, value in change.items():
        grid[0, cell] = value
    assert valid_grids(grid, 9).tolist() == [False]
