"""Symmetries: the group laws of the square, and Sudokus that stay Sudokus."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.config.sections import TaskConfig, TaskSpec
from mlx_trm.errors import DataError
from mlx_trm.tasks import Maze, MazeConfig, Sudoku, SudokuConfig, Task
from mlx_trm.tasks.maze.generator import generate_sets
from mlx_trm.tasks.sudoku.generator import random_grids
from mlx_trm.tasks.sudoku.solver import solve_puzzles, valid_grids
from mlx_trm.tasks.sudoku.transforms import (
    SYMMETRIES,
    SudokuTransforms,
    default_symmetries,
    random_transforms,
)
from mlx_trm.tasks.symmetries import (
    DIHEDRAL_INVERSE,
    Symmetry,
    dihedral_transform,
    inverse_dihedral_transform,
)

SIZES = st.sampled_from([4, 6, 9])
SEEDS = st.integers(0, 2**32 - 1)
NUMBERS = st.integers(0, 7)
GRID = np.arange(6).reshape(2, 3)


@pytest.mark.parametrize(
    "number, expected",
    [
        (0, [[0, 1, 2], [3, 4, 5]]),
        (1, [[2, 5], [1, 4], [0, 3]]),
        (2, [[5, 4, 3], [2, 1, 0]]),
        (3, [[3, 0], [4, 1], [5, 2]]),
        (4, [[2, 1, 0], [5, 4, 3]]),
        (5, [[3, 4, 5], [0, 1, 2]]),
        (6, [[0, 3], [1, 4], [2, 5]]),
        (7, [[5, 2], [4, 1], [3, 0]]),
    ],
)
def test_dihedral_values(number: int, expected: list) -> None:
    """Each transform by its number, as the reference numbers them."""
    assert dihedral_transform(GRID, number).tolist() == expected


def test_dihedral_transforms_are_eight_different_ones() -> None:
    """No two agree on a grid without symmetry."""
    square = np.arange(9).reshape(3, 3)
    assert len({dihedral_transform(square, n).tobytes() for n in range(8)}) == 8


@given(NUMBERS, NUMBERS)
def test_dihedral_transforms_are_a_group(first: int, second: int) -> None:
    """Two after one another are one of the eight, and it is the same one for every grid."""
    square, other = np.arange(9).reshape(3, 3), np.arange(16).reshape(4, 4)
    both = dihedral_transform(dihedral_transform(square, first), second)
    (product,) = [n for n in range(8) if (dihedral_transform(square, n) == both).all()]
    both = dihedral_transform(dihedral_transform(other, first), second)
    assert (dihedral_transform(other, product) == both).all()
    # The inverse of a product is the product of the inverses the other way round.
    undone = dihedral_transform(
        dihedral_transform(square, DIHEDRAL_INVERSE[second]), DIHEDRAL_INVERSE[first]
    )
    assert (dihedral_transform(square, DIHEDRAL_INVERSE[product]) == undone).all()


@given(NUMBERS, st.integers(1, 5), st.integers(1, 5))
def test_dihedral_inverse(number: int, height: int, width: int) -> None:
    """Transform, then inverse: nothing has changed, for rectangles and batches too."""
    grids = np.arange(2 * height * width).reshape(2, height, width)
    there = dihedral_transform(grids, number)
    assert (inverse_dihedral_transform(there, number) == grids).all()
    assert (there[1] == dihedral_transform(grids[1], number)).all()


@pytest.mark.parametrize("number", [-1, 8])
def test_dihedral_refuses_other_numbers(number: int) -> None:
    """There are eight."""
    with pytest.raises(ValueError, match="0..7"):
        dihedral_transform(GRID, number)
    with pytest.raises(ValueError, match="0..7"):
        inverse_dihedral_transform(GRID, number)


@settings(deadline=None, max_examples=30)
@given(SIZES, SEEDS, st.data())
def test_a_transformed_sudoku_is_solved_by_the_transformed_solution(
    size: int, seed: int, data: st.DataObject
) -> None:
    """Valid stays valid, one solution stays one solution, whatever symmetries are chosen."""
    names = data.draw(st.sets(st.sampled_from(default_symmetries(size))))
    rng = np.random.default_rng(seed)
    solutions = random_grids(5, size, rng)
    puzzles = np.where(rng.random(solutions.shape) < 0.6, solutions, 0)
    number = solve_puzzles(puzzles, size).counts
    moves = random_transforms(5, size, names, rng)
    moved = moves.apply((puzzles + 1).astype(np.uint8))
    answers = moves.apply(solutions + np.uint8(1))
    assert valid_grids(answers.astype(int) - 1, size).all()
    assert ((moved == 1) | (moved == answers)).all()
    assert ((moved > 1).sum(axis=1) == (puzzles > 0).sum(axis=1)).all()
    assert (solve_puzzles(moved - 1, size).counts == number).all()


@settings(deadline=None, max_examples=50)
@given(SIZES, SEEDS, st.data())
def test_inverse_of_a_sudoku_transform(size: int, seed: int, data: st.DataObject) -> None:
    """Transform, then inverse: nothing has changed; padding and blanks never move to a digit."""
    names = data.draw(st.sets(st.sampled_from(default_symmetries(size))))
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, size + 2, (7, size * size)).astype(np.uint8)
    moves = random_transforms(7, size, names, rng)
    moved = moves.apply(tokens)
    assert moved.dtype == np.uint8
    back = SudokuTransforms(
        np.argsort(moves.cells, axis=1), np.argsort(moves.tokens, axis=1).astype(np.uint8)
    )
    assert (back.apply(moved) == tokens).all()
    assert (moves.apply(back.apply(tokens)) == tokens).all()
    for token in (0, 1):
        assert ((moved == token).sum(axis=1) == (tokens == token).sum(axis=1)).all()


@pytest.mark.parametrize(
    "name, number",
    [("digits", 24), ("transpose", 2), ("bands", 2), ("rows", 4), ("stacks", 2), ("columns", 4)],
)
def test_each_symmetry_has_its_number_of_versions(name: str, number: int) -> None:
    """4x4: 4! digits, 2! bands, 2!^2 rows; each comes up about equally often."""
    rng = np.random.default_rng(0)
    # All cells differ, so that every cell permutation shows.
    moves = random_transforms(240 * number, 4, [name], rng)
    whole = np.concatenate([moves.cells, moves.tokens], axis=1)
    _, times = np.unique(whole, axis=0, return_counts=True)
    assert len(times) == number
    assert 160 < times.min() <= times.max() < 330


def test_all_symmetries_of_a_4x4() -> None:
    """2 * (2! * 2!^2)^2 = 128 orders of the cells, and no symmetry: only the identity."""
    moves = random_transforms(5000, 4, SYMMETRIES, np.random.default_rng(1))
    assert len(np.unique(moves.cells, axis=0)) == 128
    moves = random_transforms(50, 4, [], np.random.default_rng(1))
    assert (moves.cells == np.arange(16)).all()
    assert (moves.tokens == np.arange(6)).all()


def test_lines_stay_with_their_band() -> None:
    """6x6 has boxes of 2 rows x 3 columns: 3 bands of 2 rows, 2 stacks of 3 columns."""
    cells = random_transforms(2000, 6, ["bands", "rows", "stacks", "columns"],
                              np.random.default_rng(2)).cells  # fmt: skip
    rows, cols = cells[:, ::6] // 6, cells[:, :6] % 6
    assert (rows[:, 0::2] // 2 == rows[:, 1::2] // 2).all()
    assert (cols[:, 0] // 3 == cols[:, 1] // 3).all()
    assert len(np.unique(rows, axis=0)) == 48
    assert len(np.unique(cols, axis=0)) == 72


def test_a_seed_decides_the_transforms() -> None:
    """The same twice, others for another seed."""
    one, same, other = (
        random_transforms(20, 9, SYMMETRIES, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert (one.cells == same.cells).all() and (one.tokens == same.tokens).all()
    assert (one.cells != other.cells).any() and (one.tokens != other.tokens).any()


def test_impossible_symmetries_are_refused() -> None:
    """Boxes of 2x3 cannot be transposed."""
    assert "transpose" not in default_symmetries(6)
    with pytest.raises(ValueError, match="6x6 Sudoku has no symmetry 'transpose'"):
        random_transforms(1, 6, ["transpose"], np.random.default_rng(0))
    with pytest.raises(ValueError, match="no symmetry 'mirror'"):
        random_transforms(1, 9, ["mirror"], np.random.default_rng(0))


@given(st.integers(1, 30), st.integers(2, 9), SEEDS)
def test_what_a_symmetry_does_it_undoes(cells: int, tokens: int, seed: int) -> None:
    """Of any permutation of cells and of tokens; values of cells go back with their cells."""
    rng = np.random.default_rng(seed)
    symmetry = Symmetry(rng.permutation(cells), rng.permutation(tokens).astype(np.uint8))
    puzzle = rng.integers(0, tokens, cells).astype(np.uint8)
    copy = symmetry.apply(puzzle)
    assert copy.dtype == np.uint8 and symmetry.undo(copy).tolist() == puzzle.tolist()
    assert symmetry.apply(symmetry.undo(puzzle)).tolist() == puzzle.tolist()
    values = rng.random(cells)
    assert symmetry.undo_places(values[symmetry.cells]).tolist() == values.tolist()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([4, 6, 9]), SEEDS)
def test_an_answer_of_a_sudokus_copy_is_one_of_the_sudoku(size: int, seed: int) -> None:
    """The copy is valid with the copied answer, and only with it."""
    rng = np.random.default_rng(seed)
    task = Sudoku(SudokuConfig(name="sudoku", size=size))
    label = (random_grids(1, size, rng)[0] + 1).astype(np.uint8)
    puzzle = np.where(rng.random(len(label)) < 0.5, label, 1).astype(np.uint8)
    symmetry = task.random_symmetry(rng)
    copy, answer = symmetry.apply(puzzle), symmetry.apply(label)
    assert task.check(copy, answer) and (copy == 1).sum() == (puzzle == 1).sum()
    assert symmetry.undo(answer).tolist() == label.tolist()
    assert task.check(puzzle, symmetry.undo(answer))
    wrong = answer.copy()
    wrong[0] = 2 + (wrong[0] - 1) % size
    assert not task.check(copy, wrong) and not task.check(puzzle, symmetry.undo(wrong))


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_an_answer_of_a_mazes_copy_is_one_of_the_maze(seed: int) -> None:
    """A shortest path stays one."""
    rng = np.random.default_rng(seed)
    task = Maze(MazeConfig(name="maze", size=7))
    mazes = generate_sets([1], 7, rng)[0]
    symmetry = task.random_symmetry(rng)
    copy, answer = (symmetry.apply(side[0]) for side in (mazes.inputs, mazes.labels))
    assert task.check_many(copy[None], answer[None]).tolist() == [True]
    assert symmetry.undo(answer).tolist() == mazes.labels[0].tolist()
    assert not task.check(copy, copy)


class Parity(Task):
    """An answer is right where its sum is even; no symmetries."""

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(vocab_size=4, seq_len=3)

    def groups(self, split: str, rng: Any) -> Any:
        return []

    def check(self, inputs: np.ndarray, tokens: np.ndarray) -> bool:
        return int(tokens.sum()) % 2 == 0


def test_many_are_checked_as_one() -> None:
    """A task needs one check only; what it has neither of, it does not have."""
    task = Parity(TaskConfig("parity"))
    tokens = np.array([[1, 1, 0], [1, 0, 0], [3, 3, 2]])
    assert task.check_many(tokens, tokens).tolist() == [True, False, True]
    assert task.check_many(tokens[:0], tokens[:0]).shape == (0,)
    assert task.has_rules and not task.has_symmetries
    assert Maze(MazeConfig(name="maze")).has_symmetries
    with pytest.raises(DataError, match="'parity' names no symmetries"):
        task.random_symmetry(np.random.default_rng(0))
    with pytest.raises(DataError, match="x.csv: the task 'parity' reads no puzzle files"):
        task.read_file("x.csv")


def test_files_are_read_with_what_they_say(tmp_path: Path) -> None:
    """Tokens, answers, ratings and sources; text has neither of the last two, mazes are rated."""
    path = tmp_path / "a.csv"
    rows = ["a,1...........2..4,1243342143122134,7", "b,1.....2..3.....4,1243342143122134,0"]
    path.write_text("source,question,answer,rating\n" + "\n".join(rows) + "\n")
    task = Sudoku(SudokuConfig(name="sudoku", size=4))
    part = next(task.read_file(path))
    assert part.sources == ["a", "b"] and part.ratings is not None
    assert part.ratings.tolist() == [7, 0] and part.inputs[0].tolist() == [2, *[1] * 11, 3, 1, 1, 5]
    assert task.check_many(part.inputs, part.labels).all()
    path.write_text("question,answer\n1.....2..3.....4,1243342143122134\n")
    part = next(task.read_file(path))
    assert part.sources is None and part.ratings is None
    path = tmp_path / "a.txt"
    path.write_text("S../.#./..G\n")
    mazes = next(Maze(MazeConfig(name="maze", size=3)).read_file(path))
    assert mazes.ratings is not None and mazes.ratings.tolist() == [4] and mazes.sources is None
    path.write_text("\n")
    with pytest.raises(DataError, match="a.txt: holds no mazes"):
        list(Maze(MazeConfig(name="maze", size=3)).read_file(path))
