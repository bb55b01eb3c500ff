"""Sudoku files, CSV and text: what is read, and what is said about what cannot be."""

import csv
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import pytest
from counting import count_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.datasets.writing import write_whole_text
from mlx_trm.errors import DataError
from mlx_trm.tasks import Sudoku, SudokuConfig, puzzle_files
from mlx_trm.tasks.sudoku.files import csv_text, parse_puzzle, puzzle_text, read_puzzles
from mlx_trm.tasks.sudoku.generator import random_grids
from mlx_trm.tasks.sudoku.solver import PuzzleSet
from mlx_trm.tasks.sudoku.task import SAMPLES

# An easy puzzle: singles solve it.
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


def test_a_comment_is_no_header(tmp_path: Path) -> None:
    """A CSV need not be called so; a comment about questions makes no CSV of a text file."""
    (tmp_path / "a.txt").write_text(f"# a question\n{QUESTION}\n")
    assert read_all(tmp_path / "a.txt").ratings.tolist() == [0]
    (tmp_path / "b.txt").write_text(f"Source,Question,Answer,Rating\n{GOOD}\n")
    assert read_all(tmp_path / "b.txt").ratings.tolist() == [3]


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
    write_whole_text(tmp_path / "p.csv", csv_text(rows, "x"))
    for size in (200, 341, 1000):
        monkeypatch.setattr(puzzle_files, "_BLOCK_BYTES", size)
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
        (
            [GOOD],
            "id,puzzle,rating",
            ":1: the columns must be one question",
        ),
        ([GOOD], "", ":1: the columns must be one question"),
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
        ([f'a,"{QUESTION[:-1]},",{ANSWER},3'], None, ":2: the question has ',' in row 9 column 9"),
        ([GOOD], "question,answer\r" + GOOD, ":1: lines end with carriage returns alone"),
        ([], None, ": holds no puzzles"),
        (["", " \t"], None, ": holds no puzzles"),
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
    """Written as a CSV, puzzles are read back as they were."""
    rng = np.random.default_rng(seed)
    grids = random_grids(5, size, rng)
    rows = PuzzleSet(np.where(rng.random(grids.shape) < 0.5, grids, 0).astype(np.uint8), grids,
                     rng.integers(0, 10**6, 5))  # fmt: skip
    path = tmp_path_factory.mktemp("csv") / "p.csv"
    write_whole_text(path, csv_text(rows, "x"))
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
        write_whole_text(tmp_path / "file" / "p.csv", csv_text(rows, "x"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: cannot be written"):
        write_whole_text(tmp_path / "folder", csv_text(rows, "x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_rows_of_a_csv_are_read_together(tmp_path: Path) -> None:
    """40,000 rows take as many calls as 1,000, so that millions take seconds."""
    header, rows = (SAMPLES / "sudoku_hard_train.csv").read_text().split("\n", 1)

    def calls(times: int) -> int:
        (tmp_path / "p.csv").write_text(f"{header}\n{rows * times}")
        parts = [len(part.puzzles) for part in read_puzzles(tmp_path / "p.csv", 9)]
        assert sum(parts) == 1000 * times
        return count_calls(lambda: list(read_puzzles(tmp_path / "p.csv", 9)))

    assert calls(40) == calls(1)


def test_small_grids_take_small_digits() -> None:
    """A 5 has no place in a 4x4."""
    with pytest.raises(DataError, match="'5' in row 1 column 2; allowed are 1-4"):
        parse_puzzle("15..............", 4)
