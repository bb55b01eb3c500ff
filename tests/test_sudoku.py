"""The Sudoku task: files and what is wrong with them, tokens, rules, augmentation."""

import csv
import time
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.config import TaskSpec
from mlx_trm.errors import DataError
from mlx_trm.tasks import PuzzleDataset, Sudoku, SudokuConfig
from mlx_trm.tasks import sudoku_files as files_module
from mlx_trm.tasks.sudoku import SAMPLES
from mlx_trm.tasks.sudoku_files import csv_text, parse_puzzle, puzzle_text, read_puzzles, write_csv
from mlx_trm.tasks.sudoku_generator import random_grids
from mlx_trm.tasks.sudoku_keys import puzzle_keys, rename_digits
from mlx_trm.tasks.sudoku_solver import (
    PuzzleSet,
    box_shape,
    conflicts,
    solve_puzzles,
    unit_cells,
    valid_grids,
)
from mlx_trm.tasks.transforms import SYMMETRIES, default_symmetries, random_transforms

TDOKU = Path(__file__).resolve().parents[2] / "shared" / "data" / "sudoku_tdoku"

# Royle's collection gave this one to half the textbooks.
QUESTION = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
SMALL, SMALL_ANSWER = "..2....3.1..24..", "1324421331422431"
SIZES = st.sampled_from([4, 6, 9])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def sudoku(seed: int = 0, **settings_: Any) -> Sudoku:
    """A task with these settings."""
    return Sudoku(SudokuConfig(name="sudoku", **settings_), seed)


def digits(text: str) -> np.ndarray:
    """(1, S) digits of a puzzle."""
    return np.array([[0 if char == "." else int(char) for char in text]])


def read_all(path: Path, size: int = 9) -> PuzzleSet:
    """A whole file."""
    return PuzzleSet(*map(np.concatenate, zip(*read_puzzles(path, size))))


def stored(dataset: PuzzleDataset, name: str = "inputs") -> np.ndarray:
    """An array as it lies on disk."""
    array: np.ndarray = np.load(dataset.path / f"all__{name}.npy")
    return array


# Solver ----------------------------------------------------------------------------------------


def test_units_of_each_size() -> None:
    """Rows, columns and boxes, each cell in three of them; 6x6 has boxes of 2 rows x 3 columns."""
    assert [box_shape(size) for size in (4, 6, 9)] == [(2, 2), (2, 3), (3, 3)]
    assert unit_cells(6)[13].tolist() == [3, 4, 5, 9, 10, 11]
    assert unit_cells(9)[22].tolist() == [30, 31, 32, 39, 40, 41, 48, 49, 50]
    for size in (4, 6, 9):
        assert (np.bincount(unit_cells(size).ravel()) == 3).all()
    with pytest.raises(ValueError, match="size 4, 6 or 9, not 16"):
        box_shape(16)


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


# Keys ------------------------------------------------------------------------------------------


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


# Text and tokens -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(SIZES, st.data())
def test_encode_decode(size: int, data: Any) -> None:
    """parse and format are inverse on puzzles without contradictions, whatever the white space."""
    seed = data.draw(st.integers(0, 50))
    rng = np.random.default_rng(seed)
    grid = random_grids(1, size, rng)[0]
    cells = np.where(rng.random(size * size) < 0.5, grid, 0)
    text = puzzle_text(cells)
    task = sudoku(size=size)
    tokens = task.parse(text)
    assert tokens.dtype == np.uint8 and (tokens == cells + 1).all()
    assert task.format(tokens) == text
    spaced = "\n".join(text[i : i + size].replace(".", "0") for i in range(0, len(text), size))
    assert (task.parse(f"  {spaced}\t\n") == tokens).all()


@pytest.mark.parametrize(
    "text, message",
    [
        (QUESTION[:-1], "the puzzle has 80 cells, 9x9 needs 81"),
        (QUESTION + ".", "the puzzle has 82 cells, 9x9 needs 81"),
        ("", "the puzzle has 0 cells"),
        ("x" + QUESTION[1:], "'x' in row 1 column 1; allowed are 1-9, . and 0"),
        (QUESTION[:-1] + "\u0663", "in row 9 column 9; allowed"),
        ("55" + QUESTION[2:], "contradictory givens: 5 stands twice in row 1"),
        ("5" + "." * 8 + "5" + "." * 71, "5 stands twice in column 1"),
        ("5" + "." * 9 + "5" + "." * 70, "5 stands twice in box 1"),
    ],
)
def test_malformed_puzzles(text: str, message: str) -> None:
    """One line that says what and where."""
    with pytest.raises(DataError) as caught:
        sudoku().parse(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_small_grids_take_small_digits() -> None:
    """A 5 has no place in a 4x4."""
    with pytest.raises(DataError, match="'5' in row 1 column 2; allowed are 1-4"):
        parse_puzzle("15..............", 4)


def test_the_spec() -> None:
    """V and S of each size; padding and blank are tokens too, nobody has a name."""
    assert sudoku().spec == TaskSpec(11, 81)
    assert sudoku(size=4).spec == TaskSpec(6, 16)
    assert sudoku(size=6).spec == TaskSpec(8, 36)
    assert sudoku().spec.ignore_label_id == 0 and sudoku().spec.num_puzzle_identifiers == 1


def test_format_shows_what_is_no_digit() -> None:
    """A model may predict padding or the blank."""
    assert sudoku(size=4).format(np.array([0, 1, 2, 5, 6, 77])) == "?.14??"


def test_render() -> None:
    """Boxes; what is wrong is marked; givens bold and wrong digits red in colour."""
    task = sudoku(size=6)
    grid = task.parse("." * 30 + "123456")
    expected = """\
┌───────┬───────┐
│ . . . │ . . . │
│ . . . │ . . . │
├───────┼───────┤
│ . . . │ . . . │
│ . . . │ . . . │
├───────┼───────┤
│ . . . │ . . . │
│ 1 2 3 │ 4 5 6 │
└───────┴───────┘"""
    assert task.render(grid) == expected
    labels = grid.copy()
    labels[-1] = 2
    marked = expected.replace("5 6", "5!6")
    assert task.render(grid, labels=labels) == marked
    colored = task.render(
        grid, inputs=np.where(np.arange(36) == 30, grid, 1), labels=labels, color=True
    )
    assert "\033[1m1\033[0m 2 3" in colored and "5!\033[31m6\033[0m" in colored
    assert colored.count("\033[0m") == 2
    lines = sudoku().render(sudoku().parse(QUESTION)).split("\n")
    assert lines[1] == "│ 5 3 . │ . 7 . │ . . . │" and len(lines) == 13
    assert {len(line) for line in lines} == {25}


def test_check_and_score() -> None:
    """Complete, valid, and the givens kept."""
    task = sudoku()
    puzzle, answer = task.parse(QUESTION), task.parse(ANSWER)
    assert task.check(puzzle, answer)
    assert not task.check(puzzle, puzzle)
    other = np.roll(answer.reshape(9, 9), 3, axis=1).ravel()  # valid, but not this puzzle's
    assert valid_grids(other[None].astype(int) - 1, 9)[0] and not task.check(puzzle, other)
    assert task.check(np.ones(81, np.uint8), other)
    scorer = task.scorer()
    assert scorer.result() == {"valid_grids": 0.0}
    labels = np.array([answer] * 2, dtype=np.int32)
    scorer.update(np.array([puzzle, puzzle]), labels, np.array([answer, puzzle]))
    scorer.update(puzzle[None], labels[:1], answer[None].astype(np.int64))
    scorer.update(puzzle[None], labels[:1], np.zeros((1, 81), np.int32))
    assert scorer.result() == {"valid_grids": 0.5}


# Files -----------------------------------------------------------------------------------------


def csv_file(path: Path, *rows: str, header: str = "source,question,answer,rating") -> Path:
    """A CSV with these lines."""
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


GOOD = f"a,{QUESTION},{ANSWER},3"


@pytest.mark.parametrize("ending, quote", [("\n", ""), ("\r\n", ""), ("\n", '"'), ("\r\n", '"')])
def test_a_csv_is_read(tmp_path: Path, ending: str, quote: str) -> None:
    """Line ends of either kind, quotes, blank lines, no line end at the end, a byte order mark."""
    source = quote + ("x, y" if quote else "x") + quote
    zeros = QUESTION.replace(".", "0")
    lines = ["source,question,answer,rating", f"{source},{QUESTION},{ANSWER},12", "",
             f"{source},{zeros},{ANSWER},0"]  # fmt: skip
    path = tmp_path / "p.csv"
    path.write_bytes("\ufeff".encode() + ending.join(lines).encode())
    rows = read_all(path)
    assert rows.puzzles.tolist() == digits(QUESTION).tolist() * 2
    assert rows.solutions.tolist() == digits(ANSWER).tolist() * 2
    assert rows.ratings.tolist() == [12, 0]
    assert rows.puzzles.dtype == rows.solutions.dtype == np.uint8


def test_columns_in_another_order(tmp_path: Path) -> None:
    """The header says which is which; source and rating may be missing."""
    path = csv_file(tmp_path / "p.csv", f"{ANSWER},7,{QUESTION}", header="Answer,extra,question")
    rows = read_all(path)
    assert rows.puzzles.tolist() == digits(QUESTION).tolist()
    assert rows.ratings.tolist() == [-1]
    with pytest.raises(DataError, match="p.csv:1: has no column 'rating', min_difficulty needs it"):
        sudoku(train_file=str(path), min_difficulty=1).dataset("train")


def test_blocks_end_anywhere(tmp_path: Path, monkeypatch: Any) -> None:
    """A file is the same whatever the size of the blocks it is read in."""
    rows = read_all(SAMPLES / "sudoku_hard_train.csv").take(np.arange(30))
    write_csv(tmp_path / "p.csv", rows, "x")
    for size in (200, 341, 1000):
        monkeypatch.setattr(files_module, "_BLOCK_BYTES", size)
        again = read_all(tmp_path / "p.csv")
        assert all((a == b).all() for a, b in zip(rows, again))
    # A line number is that of the file, not of the block.
    text = (tmp_path / "p.csv").read_text().split("\n")
    text[20] = text[20].replace(".", "x", 1)
    (tmp_path / "p.csv").write_text("\n".join(text))
    with pytest.raises(DataError, match="p.csv:21: the question has 'x'"):
        read_all(tmp_path / "p.csv")


@pytest.mark.parametrize(
    "rows, header, message",
    [
        ([GOOD], "id,puzzle,solution", ":1: the columns must be source,question,answer,rating"),
        ([GOOD], "", ":1: the columns must be source,question,answer,rating, not nothing"),
        ([GOOD, QUESTION], None, ":3: 1 columns, the header has 4"),
        ([GOOD + ",5"], None, ":2: 5 columns, the header has 4"),
        ([GOOD, f"a,{QUESTION[:-1]},{ANSWER},3"], None, ":3: the question has 80 cells"),
        ([f"a,{SMALL},{SMALL_ANSWER},3"], None, ":2: the question has 16 cells, 9x9 needs 81"),
        ([GOOD, f"a,{QUESTION},{ANSWER}1,3"], None, ":3: the answer has 82 cells"),
        ([f"a,{QUESTION[:-1]}q,{ANSWER},3"], None, ":2: the question has 'q' in row 9 column 9"),
        ([f"a,{QUESTION},{ANSWER[:-1]}x,3"], None, ":2: the answer has 'x' in row 9 column 9"),
        (["", f"a,55{QUESTION[2:]},{ANSWER},3"], None, ":3: contradictory givens: 5 stands twice"),
        (
            [f"a,{QUESTION},4{ANSWER[1:]},3"],
            None,
            "answer has 4 in row 1 column 1, where 5 is given",
        ),
        (
            [f"a,{'.' * 81},4{ANSWER[1:]},3"],
            None,
            ":2: the answer is wrong: 4 stands twice in row 1",
        ),
        ([f"a,{'.' * 81},{ANSWER[:40]}.{ANSWER[41:]},3"], None, "a blank in row 5 column 5"),
        ([GOOD, f"a,{QUESTION},{ANSWER},hard"], None, ":3: the rating must be a whole number"),
        ([f"a,{QUESTION},{ANSWER},"], None, ":2: the rating must be a whole number, not ''"),
        ([f"a,{QUESTION},{ANSWER},-1"], None, ":2: the rating must be a whole number, not '-1'"),
        ([f"a,{QUESTION},{ANSWER},{'9' * 20}"], None, ":2: the rating must be a whole number"),
        ([f'"a,{QUESTION},{ANSWER},3'], None, ":2: unexpected end of data"),
        ([], None, ": holds no puzzles"),
        (["", ""], None, ": holds no puzzles"),
    ],
)
def test_a_wrong_csv(tmp_path: Path, rows: List[str], header: Optional[str], message: str) -> None:
    """One line: file, line, what is wrong."""
    names = "source,question,answer,rating" if header is None else header
    path = csv_file(tmp_path / "p.csv", *rows, header=names)
    with pytest.raises(DataError) as caught:
        sudoku(train_file=str(path)).dataset("train")
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


def test_text_is_read_and_solved(tmp_path: Path) -> None:
    """Comments, blank lines, an answer in a second column; solved and rated by the solver."""
    hard = read_all(SAMPLES / "sudoku_hard_train.csv").take(np.arange(2))
    lines = ["# puzzles of mine", "", QUESTION, f"{QUESTION.replace('.', '0')} {ANSWER}  # again",
             f"{puzzle_text(hard.puzzles[0])},{puzzle_text(hard.solutions[0])}",
             puzzle_text(hard.puzzles[1])]  # fmt: skip
    path = tmp_path / "p.txt"
    path.write_text("\n".join(lines))
    rows = read_all(path)
    assert rows.puzzles.tolist() == digits(QUESTION).tolist() * 2 + hard.puzzles.tolist()
    assert rows.solutions.tolist() == digits(ANSWER).tolist() * 2 + hard.solutions.tolist()
    assert rows.ratings.tolist() == [0, 0] + hard.ratings.tolist()
    path.write_text(SMALL)
    assert read_all(path, 4).solutions.tolist() == digits(SMALL_ANSWER).tolist()


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", ": holds no puzzles"),
        (b"# nothing\n\n", ": holds no puzzles"),
        (f"{QUESTION}\n{QUESTION[:-2]}\n".encode(), ":2: the question has 79 cells"),
        (f"{QUESTION} {ANSWER} 3\n".encode(), ":1: 3 columns; expected a puzzle"),
        (f"\n5a{QUESTION[2:]}\n".encode(), ":2: the question has 'a' in row 1 column 2"),
        (f"33{QUESTION[2:]}\n".encode(), ":1: contradictory givens: 3 stands twice in row 1"),
        (f"{QUESTION} 1{ANSWER[1:]}\n".encode(), ":1: the answer has 1 in row 1 column 1"),
        (f"{QUESTION}\n{'.' * 81}\n".encode(), ":2: the puzzle has more than one solution: row"),
        (f"5317{QUESTION[4:]}\n".encode(), ":1: contradictory givens"),
        (f"534678.{QUESTION[7:]}\n..2{QUESTION[3:]}\n".encode(), ":2: the puzzle has no solution"),
        (b"\xff\xfe5\x003\x00", ":1: is not UTF-8 text"),
        (f"{QUESTION}\n".encode() + b"\xe9t\xe9\n", ":2: is not UTF-8 text"),
    ],
)
def test_a_wrong_text(tmp_path: Path, text: bytes, message: str) -> None:
    """One line: file, line, what is wrong; two solutions and none are found out."""
    path = tmp_path / "p.txt"
    path.write_bytes(text)
    with pytest.raises(DataError) as caught:
        sudoku(test_file=str(path)).dataset("test")
    assert f"{path}{message}" in str(caught.value) and "\n" not in str(caught.value)


def test_two_solutions_are_shown(tmp_path: Path) -> None:
    """The message names a cell and both digits."""
    (tmp_path / "p.txt").write_text("1.3.............\n")
    with pytest.raises(DataError, match=r"p.txt:1: .* row \d column \d can be \d or \d$"):
        read_all(tmp_path / "p.txt", 4)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Missing, a folder, a built dataset, not UTF-8."""
    for path, message in (
        (tmp_path / "no.csv", "no.csv: cannot be read: No such file"),
        (tmp_path, "is a folder, not a CSV or text file$"),
    ):
        with pytest.raises(DataError, match=message):
            read_all(path)
        with pytest.raises(DataError, match="No such file|is a folder|Is a directory"):
            sudoku(train_file=str(path)).dataset("train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="for a built dataset use data_dir"):
        read_all(tmp_path)
    latin = f"source,question,answer,rating\n{GOOD}\n\xe9,{QUESTION},{ANSWER},1\n".encode("latin-1")
    (tmp_path / "bad.csv").write_bytes(latin)
    with pytest.raises(DataError, match="bad.csv:3: is not UTF-8 text"):
        read_all(tmp_path / "bad.csv")
    (tmp_path / "good.csv").write_text(f"source,question,answer,rating\né,{GOOD[2:]}\n", "utf-8")
    assert len(read_all(tmp_path / "good.csv").puzzles) == 1


@settings(deadline=None, max_examples=15)
@given(SIZES, st.integers(0, 1000))
def test_a_csv_written_is_read(tmp_path_factory: Any, size: int, seed: int) -> None:
    """write_csv, then read_puzzles: equal."""
    rng = np.random.default_rng(seed)
    grids = random_grids(5, size, rng)
    rows = PuzzleSet(np.where(rng.random(grids.shape) < 0.5, grids, 0).astype(np.uint8), grids,
                     rng.integers(0, 10**6, 5))  # fmt: skip
    path = tmp_path_factory.mktemp("csv") / "p.csv"
    write_csv(path, rows, "x")
    again = read_all(path, size)
    assert all((a == b).all() for a, b in zip(rows, again))
    with open(path, encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [r["question"] for r in read] == [puzzle_text(p) for p in rows.puzzles]
    assert path.read_text(encoding="utf-8") == csv_text(rows, "x")


def test_a_csv_that_cannot_be_written(tmp_path: Path) -> None:
    """One line; nothing stays behind."""
    rows = PuzzleSet(digits(QUESTION), digits(ANSWER), np.array([1]))
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        write_csv(tmp_path / "file" / "p.csv", rows, "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: cannot be written"):
        write_csv(tmp_path / "folder", rows, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_millions_of_rows_take_seconds(tmp_path: Path) -> None:
    """40,000 rows in well under a second; 3.8 million then take well under a minute."""
    text = (SAMPLES / "sudoku_hard_train.csv").read_text().split("\n", 1)
    (tmp_path / "p.csv").write_text(text[0] + "\n" + text[1] * 40)
    best = 9.0
    for _ in range(3):
        started = time.perf_counter()
        assert sum(len(rows.puzzles) for rows in read_puzzles(tmp_path / "p.csv", 9)) == 40000
        best = min(best, time.perf_counter() - started)
    assert best < 0.5


# Datasets --------------------------------------------------------------------------------------


def test_the_bundled_sample() -> None:
    """Used without a file: 1,000 and 1,000; valid, one solution, rated, train and test apart."""
    sets = {}
    for split in ("train", "test"):
        rows = read_all(SAMPLES / f"sudoku_hard_{split}.csv")
        assert len(rows.puzzles) == 1000
        assert rows.ratings.mean() > 400 and rows.ratings.min() > 100
        dataset = sudoku().dataset(split)
        assert (stored(dataset) == rows.puzzles + 1).all()
        assert (stored(dataset, "labels") == rows.solutions + 1).all()
        sets[split] = rows
    keys = [puzzle_keys(rows.puzzles, 9, SYMMETRIES) for rows in sets.values()]
    assert len(np.unique(np.concatenate(keys))) == 2000
    grids = [puzzle_keys(rows.solutions, 9, ["digits"]) for rows in sets.values()]
    assert len(np.unique(np.concatenate(grids))) == 2000  # nor are their solutions relabelled
    some = sets["test"].take(np.arange(0, 1000, 10))
    found = solve_puzzles(some.puzzles, 9)
    assert (found.counts == 1).all() and (found.solutions[:, 0] == some.solutions).all()
    assert found.guesses.tolist() == some.ratings.tolist()


@pytest.mark.slow
def test_every_bundled_puzzle_has_one_solution() -> None:
    """All 2,000, with their ratings."""
    for path in SAMPLES.glob("sudoku_*.csv"):
        rows = read_all(path)
        found = solve_puzzles(rows.puzzles, 9)
        assert (found.counts == 1).all() and (found.solutions[:, 0] == rows.solutions).all()
        assert found.guesses.tolist() == rows.ratings.tolist()


@pytest.mark.skipif(not TDOKU.is_dir(), reason="the collection is not here")
@pytest.mark.parametrize("split, number", [("train", 1000), ("test", 4000)])
def test_another_collection_agrees(split: str, number: int) -> None:
    """Somebody else's answers and ratings: ours are the same, for every puzzle."""
    rows = read_all(TDOKU / f"{split}.csv")
    some = rows.take(np.arange(0, number, number // 500))
    found = solve_puzzles(some.puzzles, 9)
    assert (found.counts == 1).all() and (found.solutions[:, 0] == some.solutions).all()
    assert found.guesses.tolist() == some.ratings.tolist()
    dataset = sudoku(train_file=str(TDOKU / "train.csv"), test_file=str(TDOKU / "test.csv"))
    assert len(dataset.dataset(split)) == number


def test_min_difficulty_and_subsample() -> None:
    """The rating filters both splits, the sample only training; order and seed are kept."""
    rows = read_all(SAMPLES / "sudoku_hard_train.csv")
    path = str(SAMPLES / "sudoku_hard_train.csv")
    hard = sudoku(train_file=path, test_file=path, min_difficulty=500, subsample_size=50)
    expected = rows.puzzles[rows.ratings >= 500] + 1
    assert (stored(hard.dataset("test")) == expected).all()
    train = stored(hard.dataset("train"))
    places = [int(np.flatnonzero((expected == row).all(axis=1))[0]) for row in train]
    assert len(places) == 50 and places == sorted(set(places))
    other = sudoku(1, train_file=path, min_difficulty=500, subsample_size=50).dataset("train")
    assert (stored(other) != train).any()
    many = sudoku(train_file=path, subsample_size=5000).dataset("train")
    assert len(many) == 1000
    with pytest.raises(DataError, match=r"the highest rating is \d+; min_difficulty is 99999"):
        sudoku(train_file=path, min_difficulty=99999).dataset("train")


def test_a_sample_does_not_depend_on_the_blocks(monkeypatch: Any) -> None:
    """Lots are drawn row by row."""
    path = str(SAMPLES / "sudoku_hard_train.csv")
    one = sudoku(train_file=path, subsample_size=30).groups("train", np.random.default_rng(5))
    first = np.concatenate([block.inputs for block in one])
    monkeypatch.setattr(files_module, "_BLOCK_BYTES", 5000)
    two = sudoku(train_file=path, subsample_size=30).groups("train", np.random.default_rng(5))
    assert (np.concatenate([block.inputs for block in two]) == first).all()


def test_num_aug_on_disk() -> None:
    """The puzzle first, then its copies, one group; each a valid puzzle of the same rating."""
    path = str(SAMPLES / "sudoku_hard_train.csv")
    task = sudoku(train_file=path, test_file=path, num_aug=4, subsample_size=20)
    train = task.dataset("train")
    assert (len(train), train.total_puzzles, train.total_groups) == (100, 100, 20)
    inputs, labels = stored(train).astype(int), stored(train, "labels").astype(int)
    assert valid_grids(labels - 1, 9).all()
    assert ((inputs == 1) | (inputs == labels)).all()
    keys = puzzle_keys(inputs - 1, 9, SYMMETRIES).reshape(20, 5)
    assert (keys == keys[:, :1]).all() and len(np.unique(keys)) == 20
    assert len(np.unique(inputs, axis=0)) == 100
    originals = read_all(Path(path)).puzzles + 1
    assert all((originals == row).all(axis=1).any() for row in inputs[::5])
    assert stored(train, "group_indices").tolist() == list(range(0, 101, 5))
    assert len(task.dataset("test")) == 1000
    for batch in train.train_batches(20, 0, 1):
        groups = {
            int(np.flatnonzero((inputs == row).all(axis=1))[0]) // 5 for row in batch["inputs"]
        }
        assert groups == set(range(20))


def test_a_million_augmented_puzzles_take_seconds(tmp_path: Path) -> None:
    """1,000 puzzles x 1,000 augmentations in under 10 s; here a tenth of it in under 1 s."""
    task = sudoku(num_aug=100)
    best = 9.0
    for number in range(3):
        started = time.perf_counter()
        about = task.build(tmp_path / str(number), ("train",))
        best = min(best, time.perf_counter() - started)
        assert about["train"]["total_puzzles"] == 101000
    assert best < 1.0


@settings(deadline=None, max_examples=20)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_online_augmentation_keeps_the_rules(size: int, seed: int) -> None:
    """An augmented puzzle stays valid and its transformed answer solves it; uint8 all the way."""
    rng = np.random.default_rng(seed)
    task = sudoku(size=size)
    labels = random_grids(10, size, rng) + np.uint8(1)
    inputs = np.where(rng.random(labels.shape) < 0.5, labels, 1).astype(np.uint8)
    before = inputs.copy(), labels.copy()
    new_inputs, new_labels = task.augment(inputs, labels, rng)
    assert new_inputs.dtype == new_labels.dtype == np.uint8
    assert task.right(new_inputs, new_labels).all()
    assert (new_labels != labels).any()
    assert (inputs == before[0]).all() and (labels == before[1]).all()


def test_only_the_symmetries_asked_for() -> None:
    """Digits alone: blanks stay where they are."""
    task = sudoku(symmetries=["digits"])
    dataset = task.dataset("train")
    batch = next(dataset.train_batches(64, 0, 1, augment=task.augment))
    plain = next(dataset.train_batches(64, 0, 1))
    assert ((batch["inputs"] == 1) == (plain["inputs"] == 1)).all()
    assert (batch["inputs"] != plain["inputs"]).any(axis=1).all()
    first = next(dataset.train_batches(64, 0, 1, augment=task.augment))
    second = next(dataset.train_batches(64, 0, 1, iteration=2, augment=task.augment))
    assert (first["inputs"] == batch["inputs"]).all() and (
        second["inputs"] != batch["inputs"]
    ).any()


def test_a_batch_is_augmented_in_milliseconds() -> None:
    """768 puzzles; a supervision step on a GPU takes hundreds of milliseconds."""
    task = sudoku()
    rows = read_all(SAMPLES / "sudoku_hard_train.csv").puzzles[:768] + np.uint8(1)
    rng = np.random.default_rng(0)
    best = 9.0
    for _ in range(10):
        started = time.perf_counter()
        task.augment(rows, rows, rng)
        best = min(best, time.perf_counter() - started)
    assert best < 0.01


def test_generated_splits_share_nothing() -> None:
    """4x4: no test puzzle is a relabelling of a training puzzle; both are what was asked for."""
    task = sudoku(size=4, train_puzzles=800, test_puzzles=200, symmetries=["digits"])
    train, test = (stored(task.dataset(split)).astype(int) - 1 for split in ("train", "test"))
    assert len(train) == 800 and len(test) == 200
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == 1000
    keys = [puzzle_keys(part, 4, ["digits"]) for part in (train, test)]
    assert not np.isin(*keys).any()
    for part in (train, test):
        given = (part > 0).sum(axis=1)
        assert given.min() == 6 and given.max() == 8
        assert (solve_puzzles(part, 4).counts == 1).all()
    # With rows and columns permuted in training too, equivalents of those are kept out as well.
    task = sudoku(size=4, train_puzzles=800, test_puzzles=200)
    train, test = (stored(task.dataset(split)).astype(int) - 1 for split in ("train", "test"))
    assert not np.isin(*[puzzle_keys(p, 4, SYMMETRIES) for p in (train, test)]).any()


def test_generated_puzzles_stay_clear_of_a_training_file(tmp_path: Path) -> None:
    """Only a training file: generated test puzzles are no relabellings of its puzzles."""
    made = sudoku(size=4, train_puzzles=3000, test_puzzles=10, symmetries=["digits"])
    rows = stored(made.dataset("train")) - 1
    solved = solve_puzzles(rows, 4)
    write_csv(tmp_path / "p.csv", PuzzleSet(rows, solved.solutions[:, 0], solved.guesses), "x")
    task = sudoku(9, size=4, train_file=str(tmp_path / "p.csv"), test_puzzles=1500,
                  symmetries=["digits"])  # fmt: skip
    test = stored(task.dataset("test")) - 1
    assert len(test) == 1500
    keys = puzzle_keys(rows, 4, ["digits"])
    assert not np.isin(puzzle_keys(test, 4, ["digits"]), keys).any()
    plain = sudoku(9, size=4, test_puzzles=1500, symmetries=["digits"])
    assert np.isin(puzzle_keys(stored(plain.dataset("test")) - 1, 4, ["digits"]), keys).any()


def test_what_decides_the_cached_files() -> None:
    """Settings that change nothing on disk rebuild nothing, the others do."""

    def key(split: str = "train", seed: int = 0, **changes: Any) -> str:
        return sudoku(seed, **changes).cache_key([split])

    copy = str(SAMPLES / "sudoku_hard_train.csv")
    assert key() == key(seed=1) == key(augment="none") == key(symmetries=["rows"])
    assert key() == key(train_file=copy) == key(test_file=copy)
    assert key("test") == key("test", num_aug=5) == key("test", subsample_size=5)
    keys = [key(), key("test"), key(num_aug=1), key(num_aug=1, seed=1), key(subsample_size=9),
            key(num_aug=1, symmetries=["rows"]), key(min_difficulty=1), key(train_puzzles=50),
            key(subsample_size=9, seed=1), key("test", min_difficulty=1), key(size=4),
            key(size=4, seed=1), key(size=4, max_givens=9), key(size=6),
            key(size=4, symmetries=["digits"])]  # fmt: skip
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 6, "symmetries": ["digits", "transpose"]}, "symmetries: a 6x6 Sudoku has no"),
        ({"symmetries": []}, "symmetries: is empty; use augment: none"),
        ({"size": 4, "min_givens": 9, "max_givens": 8}, "min_givens: 9 is more than max_givens 8"),
        ({"size": 4, "max_givens": 16}, "max_givens: 16 leaves no blank in 16 cells"),
        ({"size": 9, "max_givens": 16}, "max_givens: 9x9 needs at least 17 givens"),
    ],
)
def test_settings_that_do_not_fit(changes: Any, message: str) -> None:
    """One line each, beginning with the setting's name."""
    (problem,) = SudokuConfig(name="sudoku", **changes).problems()
    assert problem.startswith(message)


def test_default_givens() -> None:
    """One bound alone moves the other out of its way."""
    assert SudokuConfig(name="sudoku", size=4).givens == (6, 8)
    assert SudokuConfig(name="sudoku", size=4, min_givens=10).givens == (10, 10)
    assert SudokuConfig(name="sudoku", size=4, max_givens=5).givens == (5, 5)
    assert SudokuConfig(name="sudoku", size=4, min_givens=5, max_givens=9).givens == (5, 9)
    assert SudokuConfig(name="sudoku").problems() == []
