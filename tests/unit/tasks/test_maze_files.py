"""Maze files, CSV and text: what is read, and what is said about what cannot be."""

from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import pytest
from counting import count_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.datasets.writing import write_whole_text
from mlx_trm.errors import DataError
from mlx_trm.tasks import puzzle_files
from mlx_trm.tasks.maze.files import (
    csv_text,
    parse_maze,
    read_mazes,
    split_mazes,
)
from mlx_trm.tasks.maze.generator import MazeSet, generate_sets

HEADER = "source,question,answer,rating"
# Four rows of four: a wall, two shortest paths of 6 steps, and detours.
QUESTION = "S # " + "   #" + " #  " + "   G"
ANSWER = "S # " + "o  #" + "o#  " + "oooG"
ROWS = [[3, 2, 1, 2], [2, 2, 2, 1], [2, 1, 2, 2], [2, 2, 2, 4]]
MARKED = [[3, 2, 1, 2], [5, 2, 2, 1], [5, 1, 2, 2], [5, 5, 5, 4]]
GOOD = f"a,{QUESTION},{ANSWER},3"


def csv_file(path: Path, *rows: str, header: str = HEADER) -> Path:
    """A CSV with these lines."""
    path.write_bytes("\n".join([header, *rows, ""]).encode())
    return path


def made(count: int, size: int, seed: int = 0) -> MazeSet:
    """Generated mazes."""
    return generate_sets([count], size, np.random.default_rng(seed))[0]


@pytest.mark.parametrize("ending, quote", [("\n", ""), ("\r\n", ""), ("\n", '"'), ("\r\n", '"')])
def test_a_csv_is_read(tmp_path: Path, ending: str, quote: str) -> None:
    """Line ends of either kind, quotes, blank lines, no line end at the end, a byte order mark."""
    source = '"x, y"' if quote else "x"
    row = f"{source},{quote}{QUESTION}{quote},{quote}{ANSWER}{quote},12"
    path = tmp_path / "m.csv"
    path.write_bytes("\ufeff".encode() + ending.join([HEADER, row, "", row]).encode())
    found = read_mazes(path, 4)
    assert found.inputs.tolist() == [sum(ROWS, [])] * 2
    assert found.labels.tolist() == [sum(MARKED, [])] * 2
    assert found.lengths.tolist() == [6, 6]
    assert found.inputs.dtype == found.labels.dtype == np.uint8


def test_columns_in_another_order(tmp_path: Path) -> None:
    """The header says which is which, whatever the file is called; only two are needed."""
    path = csv_file(tmp_path / "m.txt", f"{ANSWER},7,{QUESTION}", header="Answer,extra,question")
    found = read_mazes(path, 4)
    assert found.inputs.tolist() == [sum(ROWS, [])]
    assert found.labels.tolist() == [sum(MARKED, [])]


def test_blocks_end_anywhere(tmp_path: Path, monkeypatch: Any) -> None:
    """A file is the same whatever the size of the blocks it is read in; so is a line's number."""
    mazes = made(20, 5)
    path = csv_file(
        tmp_path / "m.csv", *csv_text(mazes, "x").replace("\n", "\n \t\n").split("\n")[1:]
    )
    for size in (1, 70, 200, 1 << 20):
        monkeypatch.setattr(puzzle_files, "_BLOCK_BYTES", size)
        assert all((a == b).all() for a, b in zip(mazes, read_mazes(path, 5)))
    lines = path.read_text().split("\n")
    lines[20] = lines[20].replace("S", "?", 1)
    path.write_text("\n".join(lines))
    for size in (70, 1 << 20):
        monkeypatch.setattr(puzzle_files, "_BLOCK_BYTES", size)
        with pytest.raises(DataError, match="m.csv:21: the question has '[?]' in row"):
            read_mazes(path, 5)


def test_a_longer_path_is_an_answer_too(tmp_path: Path) -> None:
    """The file's answer is the label, whether or not it is the shortest path."""
    question = "S   G" + " ### " + "     " + "     " + "     "
    answer = "S   G" + "o###o" + "o   o" + "o   o" + "ooooo"
    found = read_mazes(csv_file(tmp_path / "m.csv", f"a,{question},{answer},1"), 5)
    assert found.lengths.tolist() == [12] and (found.labels == 5).sum() == 11


@pytest.mark.parametrize(
    "rows, header, message",
    [
        ([GOOD], "id,maze,path", ":1: the columns must be one question"),
        ([GOOD], "", ":1: the columns must be one question"),
        ([GOOD], 'source,"question,answer', ":1: unexpected end of data"),
        ([GOOD], HEADER + "\r" + GOOD, ":1: lines end with carriage returns alone"),
        ([GOOD, QUESTION], HEADER, ":3: 1 columns, the header has 4"),
        ([GOOD + ",5"], HEADER, ":2: 5 columns, the header has 4"),
        ([GOOD, f'a,"{QUESTION},{ANSWER},3'], HEADER, ":3: unexpected end of data"),
        ([GOOD, f"a,{QUESTION[:-1]},{ANSWER},3"], HEADER, ":3: the question has 15 cells, 4x4"),
        ([f"a,{'S' * 25},{'S' * 25},3"], HEADER, "has 25 cells, 4x4 needs 16; is task.size=5 me"),
        ([f"a,{QUESTION},{ANSWER[:-1]},3"], HEADER, ":2: the answer has 15 cells"),
        ([f"a,x{QUESTION[1:]},{ANSWER},3"], HEADER, ":2: the question has 'x' in row 1 column 1"),
        ([f"a,x{QUESTION[1:]},x{ANSWER[1:]},3"], HEADER, "question has 'x' in row 1 column 1; all"),
        (
            [f"a,S #x{QUESTION[4:]},S #x{ANSWER[4:]},3"],
            HEADER,
            "'x' in row 1 column 4; allowed are",
        ),
        ([f"a,{QUESTION},{ANSWER[:-1]}\u0663,3"], HEADER, "the answer has '\u0663' in row 4"),
        ([f"a,{ANSWER},{ANSWER},3"], HEADER, "the question has 'o' in row 2 column 1; allowed are"),
        ([f"a,{QUESTION[1:]} ,{ANSWER[1:]} ,3"], HEADER, ":2: the maze has no start S"),
        ([f"a,{QUESTION[:-1]} ,{ANSWER},3"], HEADER, ":2: the maze has no goal G"),
        ([f"a,SS{QUESTION[2:]},{ANSWER},3"], HEADER, ":2: the maze has 2 times S, in row 1 column"),
        ([f"a,S###{'#' * 11}G,S###{'#' * 11}G,3"], HEADER, ":2: no way leads from S in row 1 col"),
        ([GOOD, f"a,{QUESTION},{QUESTION},3"], HEADER, ":3: the answer is no path: its o do not"),
        ([f"a,{QUESTION},S # o  #o#o oooG,3"], HEADER, "which takes 5 of them, and there are 6"),
        ([f"a,{QUESTION},So# o  #o#  oooG,3"], HEADER, "in 6 steps, which takes 5 of them, and t"),
        ([f"a,{QUESTION},S # o  #o   oooG,3"], HEADER, "the answer has ' ' in row 3 column 2, th"),
        ([f"a,{QUESTION},Soo    #o#  oooG,3"], HEADER, "'o' in row 1 column 3, the question '#'"),
        ([], HEADER, "holds no mazes"),
    ],
)
def test_what_is_said_about_a_csv(
    tmp_path: Path, rows: List[str], header: str, message: str
) -> None:
    """One line with the file, the line, and what is wrong there."""
    path = csv_file(tmp_path / "m.csv", *rows, header=header)
    with pytest.raises(DataError) as caught:
        read_mazes(path, 4)
    assert message in str(caught.value) and str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)


TEXT = "S.#.\n...#\n.#..\n...G\n"


@pytest.mark.parametrize(
    "text",
    [
        TEXT + "\n" + TEXT,
        "\n\n" + TEXT.replace(".", " ") + "  \n\t\n\n" + TEXT,
        (TEXT + "\n" + TEXT).replace("\n", "\r\n"),
        "S.#./...#/.#../...G\n" * 2,
        QUESTION + "\n" + TEXT,
        TEXT + "S.#./...#/.#../...G",
        "\ufeff" + TEXT + "\n" + TEXT[:-1],
    ],
)
def test_text_is_read_and_solved(tmp_path: Path, text: str) -> None:
    """Blocks of lines, or one maze a line; the label is computed."""
    path = tmp_path / "m.txt"
    path.write_bytes(text.encode())
    found = read_mazes(path, 4)
    assert found.inputs.tolist() == [sum(ROWS, [])] * 2
    assert found.lengths.tolist() == [6, 6]
    marks = [np.flatnonzero(row == 5).tolist() for row in found.labels]
    assert marks == [[1, 5, 6, 10, 11]] * 2


def test_an_open_row_of_spaces_is_no_gap() -> None:
    """Where rows are missing it is one; where the maze is whole it is none."""
    lines = ["S##", "   ", "##G", "   ", "S  ", "   ", "  G"]
    assert list(split_mazes(lines, 3)) == [(1, "S##\n   \n##G"), (5, "S  \n   \n  G")]


@pytest.mark.parametrize(
    "text, line, message",
    [
        ("", 0, "holds no mazes"),
        ("\n \n", 0, "holds no mazes"),
        (TEXT + "\n" + TEXT[:-5], 6, "the maze has 3 rows, 4x4 needs 4"),
        (TEXT + TEXT, 1, "the maze has 8 rows, 4x4 needs 4"),
        (TEXT.replace("#\n", "\n", 1), 1, "row 2 of the maze has 3 cells, 4x4 needs 4; write open"),
        ("\n" + TEXT.replace("G", "g"), 2, "the maze has 'g' in row 4 column 4; allowed are"),
        (TEXT.replace("G", "."), 1, "the maze has no goal G"),
        (TEXT + "\n" + TEXT.replace("G", "S"), 6, "the maze has 2 times S"),
        (TEXT + "\n" + TEXT.replace(".#..", "####"), 6, "no way leads from S in row 1 column 1"),
        (TEXT + "\n" + TEXT.replace("S.", "So"), 6, "the maze has 'o' in row 1 column 2"),
        ("S..", 1, "the maze has 3 cells, 4x4 needs 16; write / between rows"),
        ("S../.../..G", 1, "the maze has 3 rows"),
    ],
)
def test_what_is_said_about_text(tmp_path: Path, text: str, line: int, message: str) -> None:
    """The line where the maze begins."""
    path = tmp_path / "m.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_mazes(path, 4)
    where = f"{path}:{line}: " if line else f"{path}: "
    assert str(caught.value).startswith(where + message) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """No file, a folder, a built dataset, another encoding: the line of the bad byte."""
    (tmp_path / "built" / "train").mkdir(parents=True)
    (tmp_path / "m.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode() + b"\n\xff\n")
    (tmp_path / "m.csv").write_bytes(f"{HEADER}\n{GOOD}\n".encode() + b"\xff" + GOOD.encode())
    for name, message in (
        ("none.csv", "none.csv: cannot be read: No such file"),
        (".", "is a folder, not a CSV or text file"),
        ("built", "for a built dataset use data_dir"),
        ("m.txt", "m.txt:6: is not UTF-8 text"),
        ("m.csv", "m.csv:3: is not UTF-8 text"),
    ):
        with pytest.raises(DataError) as caught:
            read_mazes(tmp_path / name, 4)
        assert message in str(caught.value)


@settings(deadline=None, max_examples=20)
@given(st.integers(4, 12), st.integers(0, 2**32 - 1))
def test_what_is_written_is_read(tmp_path_factory: Any, size: int, seed: int) -> None:
    """As a CSV, and as blocks of text."""
    mazes = made(6, size, seed)
    path = tmp_path_factory.mktemp("files") / "m.csv"
    write_whole_text(path, csv_text(mazes, "x"))
    again = read_mazes(path, size)
    assert all((a == b).all() for a, b in zip(mazes, again))
    assert path.read_text() == csv_text(mazes, "x")
    blocks = []
    for line in path.read_text().split("\n")[1:-1]:
        source, question, _, rating = line.split(",")
        assert source == "x" and int(rating) >= 1
        blocks.append("\n".join(question[at : at + size] for at in range(0, len(question), size)))
    path = path.with_suffix(".txt")
    path.write_text("\n\n".join(blocks))
    assert all((a == b).all() for a, b in zip(mazes, read_mazes(path, size)))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    """A full disk leaves the old file and nothing else; a new file has the usual rights."""
    mazes = made(2, 5)
    path = tmp_path / "new" / "m.csv"
    write_whole_text(path, csv_text(mazes, "x"))
    plain = tmp_path / "new" / "plain"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode
    plain.unlink()
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DataError, match="m.csv: cannot be written: No space left on device"):
        write_whole_text(path, csv_text(made(2, 5, 1), "y"))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_cells_of_a_maze_are_read_together(tmp_path: Path) -> None:
    """A maze of 30x30 takes a few calls, not one for each of its 900 cells."""
    mazes = generate_sets([200], 30, np.random.default_rng(0), "loops")[0]

    def calls(count: int) -> int:
        write_whole_text(tmp_path / "m.csv", csv_text(mazes.take(np.arange(count)), "x"))
        assert (read_mazes(tmp_path / "m.csv", 30).labels == mazes.labels[:count]).all()
        return count_calls(lambda: read_mazes(tmp_path / "m.csv", 30))

    assert calls(200) - calls(100) < 50 * 100


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the maze has 0 cells, 3x3 needs 9"),
        ("S./.G", "the maze has 2 rows, 3x3 needs 3"),
        ("S../../..G", "row 2 of the maze has 2 cells"),
        ("S..,...,..GG", "the maze has 10 cells"),
        ("S.." + "..." + "..0", "the maze has '0' in row 3 column 3; allowed are #, point or sp"),
    ],
)
def test_malformed_mazes(text: str, message: str) -> None:
    """One line that says what and where."""
    with pytest.raises(DataError) as caught:
        parse_maze(text, 3)
    assert str(caught.value).startswith(message)


def test_every_way_to_write_a_maze() -> None:
    """Rows with line ends or slashes, or one after the other; spaces or points."""
    expected: Optional[List[int]] = [3, 2, 2, 1, 1, 2, 5, 0, 4]
    for text in ("S..\n##.\no?G", "S../##./o?G", "S  ##.o?G", "\nS..\r\n##.\r\no?G\r\n",
                 "S../##./o?G\n", "S../\n##./\no?G"):  # fmt: skip
        assert parse_maze(text, 3).tolist() == expected
