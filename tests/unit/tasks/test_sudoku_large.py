"""Sudoku of 12x12 and 16x16: letters for what is more than 9, boxes of 3x4 and 4x4."""

from pathlib import Path
from typing import List

import numpy as np
import pytest

from mlx_trm.errors import DataError
from mlx_trm.tasks import SudokuConfig, Task, build_task
from mlx_trm.tasks.sudoku import task as sudoku_task
from mlx_trm.tasks.sudoku.files import csv_text, read_puzzles
from mlx_trm.tasks.sudoku.generator import DEFAULT_GIVENS, generate_sets, random_grids
from mlx_trm.tasks.sudoku.keys import puzzle_keys
from mlx_trm.tasks.sudoku.solver import SIZES, solve_puzzles, valid_grids
from mlx_trm.tasks.sudoku.transforms import default_symmetries, random_transforms

LARGE = pytest.mark.parametrize("size", [12, 16])


def task_of(size: int) -> Task:
    """The task of a size."""
    return build_task(SudokuConfig("sudoku", size=size))


@LARGE
def test_generated_puzzles_have_one_solution_and_come_back_from_files(
    size: int, tmp_path: Path
) -> None:
    """Generated, written, read: as a CSV and as text, which is solved again."""
    (made,) = generate_sets([1], size, np.random.default_rng(3))
    low, high = DEFAULT_GIVENS[size]
    givens = (made.puzzles > 0).sum(axis=1)
    assert (low <= givens).all() and (givens <= high).all()
    assert valid_grids(made.solutions, size).all()
    assert (solve_puzzles(made.puzzles, size).counts == 1).all()
    text = csv_text(made, "here")
    (tmp_path / "a.csv").write_text(text)
    lines = "\n".join(row.split(",")[1] for row in text.splitlines()[1:])
    (tmp_path / "b.txt").write_text(lines.lower())
    for name in ("a.csv", "b.txt"):
        parts = list(read_puzzles(tmp_path / name, size))
        assert np.array_equal(parts[0].puzzles, made.puzzles), name
        assert np.array_equal(parts[0].solutions, made.solutions), name
    (tmp_path / "a.csv").write_text(text.replace("\nhere,", "\nhere,H", 1))
    with pytest.raises(DataError, match=":2: the question has .* cells"):
        list(read_puzzles(tmp_path / "a.csv", size))


@LARGE
def test_symmetries_keep_the_rules_and_the_keys(size: int) -> None:
    """All that is drawn is a valid grid; puzzles that symmetries make equal have equal keys."""
    grids = random_grids(6, size, np.random.default_rng(1))
    symmetries = default_symmetries(size)
    assert ("transpose" in symmetries) == (size == 16)
    moves = random_transforms(6, size, symmetries, np.random.default_rng(2))
    assert all(len(set(cells)) == size**2 for cells in moves.cells.tolist())
    moved = moves.apply((grids + 1).astype(np.uint8))
    assert valid_grids(moved.astype(np.int64) - 1, size).all()
    assert not np.array_equal(moved, grids + 1)
    holes = np.random.default_rng(3).random(grids.shape) < 0.5
    puzzles = (np.where(holes, 0, grids) + 1).astype(np.uint8)
    keys = puzzle_keys(puzzles - 1, size, symmetries)
    assert np.array_equal(keys, puzzle_keys(moves.apply(puzzles) - 1, size, symmetries))
    assert len(set(keys.tolist())) == len(keys)


@pytest.mark.parametrize("names", [[], ["bands"], ["rows"], ["stacks", "columns"]])
def test_each_symmetry_moves_what_it_names(names: List[str]) -> None:
    """Bands keep what is in them in order; rows stay in their band; columns are not touched."""
    cells = random_transforms(50, 16, names, np.random.default_rng(0)).cells.reshape(50, 16, 16)
    rows, columns = cells[:, :, 0] // 16, cells[:, 0, :] % 16
    plain = np.arange(16)
    assert (rows != plain).any() == bool({"bands", "rows"} & set(names))
    assert (columns != plain).any() == ("stacks" in names)
    if names == ["bands"]:
        assert (rows % 4 == plain % 4).all()
    if names == ["rows"]:
        assert (rows // 4 == plain // 4).all()


@LARGE
def test_solved_drawn_and_described(size: int) -> None:
    """The task answers a puzzle by the rules, draws it and says which digit stands twice."""
    task = task_of(size)
    assert task.spec.vocab_size == size + 2 and task.spec.seq_len == size**2
    grid = random_grids(1, size, np.random.default_rng(5))[0]
    tokens = (grid + 1).astype(np.uint8)
    puzzle = tokens.copy()
    puzzle[::7] = 1
    labels, problems = task.answers(puzzle[None])
    assert not problems and labels is not None and np.array_equal(labels[0], tokens)
    assert task.check(puzzle, tokens)
    lines = task.render(puzzle, puzzle).splitlines()
    rows, columns = (3, 4) if size == 12 else (4, 4)
    assert len(lines) == size + size // rows + 1
    assert len({len(line) for line in lines}) == 1 and lines[0].count("┬") == size // columns - 1
    assert "ABC" in "".join(task.token_names)
    twice = "A" * 2 + "." * (size**2 - 2)
    with pytest.raises(DataError, match="A stands twice in row 1"):
        task.parse(twice)
    assert task.format(task.parse("C" + "." * (size**2 - 1)))[0] == "C"


def test_a_search_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty 16x16 grid has many solutions; after so many guesses that is not looked for."""
    monkeypatch.setattr(sudoku_task, "MOST_GUESSES", 100)
    empty = np.ones((1, 256), np.uint8)
    problem = task_of(16).answers(empty)[1][0]
    assert "not clear after 100 guesses" in problem


def test_settings_that_would_take_hours_are_refused() -> None:
    """Few givens are not found in large grids; other sizes are named."""
    (problem,) = SudokuConfig("sudoku", size=16, min_givens=60).problems()
    assert problem.startswith("min_givens: 16x16 is generated with 98")
    assert not any(SudokuConfig("sudoku", size=size).problems() for size in SIZES)
