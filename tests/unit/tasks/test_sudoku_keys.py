"""Keys of puzzles: symmetries do not change them, anything else does."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.tasks.sudoku.files import read_puzzles
from mlx_trm.tasks.sudoku.generator import generate_sets, random_grids
from mlx_trm.tasks.sudoku.keys import puzzle_keys, rename_digits
from mlx_trm.tasks.sudoku.solver import PuzzleSet
from mlx_trm.tasks.sudoku.task import SAMPLES
from mlx_trm.tasks.sudoku.transforms import SYMMETRIES, default_symmetries, random_transforms

SIZES = st.sampled_from([4, 6, 9])


def digits(text: str) -> np.ndarray:
    """(1, S) digits of a puzzle."""
    return np.array([[0 if char == "." else int(char) for char in text]])


def read_all(path: Path, size: int = 9) -> PuzzleSet:
    """A whole file."""
    return PuzzleSet(*map(np.concatenate, zip(*read_puzzles(path, size))))


@settings(deadline=None, max_examples=20)
@given(SIZES, st.integers(0, 2**32 - 1), st.data())
def test_keys_do_not_see_symmetries(size: int, seed: int, data: Any) -> None:
    """A transformed puzzle has the key of the original, another puzzle has another."""
    rng = np.random.default_rng(seed)
    grids = random_grids(8, size, rng)
    puzzles = np.where(rng.random(grids.shape) < 0.5, grids, 0)
    names = data.draw(st.sets(st.sampled_from(default_symmetries(size)), min_size=1))
    moves = random_transforms(8, size, names, rng)
    moved = moves.apply((puzzles + 1).astype(np.uint8)) - 1
    assert (puzzle_keys(puzzles, size, names) == puzzle_keys(moved, size, names)).all()
    everything = default_symmetries(size)
    assert (puzzle_keys(puzzles, size, everything) == puzzle_keys(moved, size, everything)).all()
    different = len(np.unique(puzzles, axis=0))
    assert len(np.unique(puzzle_keys(puzzles, size, ()))) == different
    if size == 9:
        assert len(np.unique(puzzle_keys(puzzles, 9, everything))) == 8


def test_keys_tell_different_puzzles_apart() -> None:
    """Two clues changed places, or one clue less: another key in the bundled sample's puzzles."""
    puzzles = read_all(SAMPLES / "sudoku_hard_train.csv").puzzles[:300]
    keys = puzzle_keys(puzzles, 9, SYMMETRIES)
    assert len(np.unique(keys)) == 300
    less = puzzles.copy()
    less[np.arange(300), (puzzles > 0).argmax(axis=1)] = 0
    assert not np.isin(puzzle_keys(less, 9, SYMMETRIES), keys).any()
    swapped = puzzles.copy()
    given = np.argsort(puzzles == 0, axis=1, kind="stable")[:, :2]
    rows = np.arange(300)
    swapped[rows, given[:, 0]], swapped[rows, given[:, 1]] = (
        puzzles[rows, given[:, 1]], puzzles[rows, given[:, 0]],
    )  # fmt: skip
    changed = (swapped != puzzles).any(axis=1)
    assert changed.sum() > 200
    assert not np.isin(puzzle_keys(swapped[changed], 9, SYMMETRIES), keys).any()


def test_digits_are_renamed_in_order_of_appearance() -> None:
    """So relabellings become equal, and only they."""
    assert (
        rename_digits(digits(".3.1..31........"), 4).tolist() == digits(".1.2..12........").tolist()
    )
    one, two, other = (puzzle_keys(digits(p), 4, ["digits"]) for p in
                       (".3.1..31........", ".2.4..24........", ".3.1..13........"))  # fmt: skip
    assert one == two != other


def test_keys_against_all_symmetries_of_4x4() -> None:
    """The smallest of 128 rearrangements, digits renamed, is exact: equal there, equal keys."""
    (made,) = generate_sets([1500], 4, np.random.default_rng(0))
    moves = random_transforms(3000, 4, default_symmetries(4)[1:], np.random.default_rng(1))
    orders = np.unique(moves.cells, axis=0)
    assert len(orders) == 128
    weights = 5 ** np.arange(16, dtype=np.int64)
    exact = np.min([rename_digits(made.puzzles[:, o], 4) @ weights for o in orders], axis=0)
    pairs = np.unique(np.stack([exact, puzzle_keys(made.puzzles, 4, SYMMETRIES).view(np.int64)]).T,
                      axis=0)  # fmt: skip
    classes = len(np.unique(exact))
    assert 900 < classes == len(pairs)
    assert len(np.unique(pairs[:, 1])) >= 0.99 * classes
