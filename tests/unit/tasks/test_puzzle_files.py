"""Columns of CSV files by the names that others give them, and lines that no puzzle needs."""

import json
from pathlib import Path
from typing import List

import numpy as np
import pytest

from mlx_trm.cli.puzzles import read_texts
from mlx_trm.config.columns import SYNONYMS
from mlx_trm.config.loading import load_config
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.tasks import build_task, puzzle_files
from mlx_trm.tasks.maze.files import read_mazes
from mlx_trm.tasks.maze.task import MazeConfig
from mlx_trm.tasks.sudoku.files import read_puzzles
from mlx_trm.tasks.sudoku.task import SudokuConfig

PUZZLE, SOLVED = "1.....2..3.....4", "1243342143122134"


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
@pytest.mark.parametrize("header", [
    *(f"{question},answer" for question in SYNONYMS["question"]),
    *(f"question,{answer}" for answer in SYNONYMS["answer"]),
    "puzzle,solution", "quizzes,solutions", "Puzzle,SOLUTION", '"quizzes","solutions"',
])  # fmt: skip
def test_other_names_of_the_columns(tmp_path: Path, header: str, name: str) -> None:
    """In either case, whatever the file is called."""
    (tmp_path / name).write_text(f"{header}\n{PUZZLE},{SOLVED}\n")
    found = list(read_puzzles(tmp_path / name, 4))
    assert found[0].solutions.tolist() == [[int(char) for char in SOLVED]]


def test_others_beside_them(tmp_path: Path) -> None:
    """Columns that are not needed are passed over."""
    path = tmp_path / "a.csv"
    path.write_text(f"id,solutions,puzzle,clues\n7,{SOLVED},{PUZZLE},4\n")
    assert len(list(read_puzzles(path, 4))[0].puzzles) == 1


def test_what_is_asked_for_is_what_is_needed(tmp_path: Path) -> None:
    """No rating and no source."""
    path = tmp_path / "a.csv"
    path.write_text(f"puzzle,key\n{PUZZLE},{SOLVED}\n")
    with pytest.raises(DataError) as caught:
        list(read_puzzles(path, 4))
    assert "solution" in str(caught.value) and "rating" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
@pytest.mark.parametrize("header", ["given,wanted", '"Given"," WANTED "', "question,given,wanted",
                                    "answer,given,wanted", "wanted,rating,given"])  # fmt: skip
def test_columns_are_named_by_the_user(tmp_path: Path, header: str, name: str) -> None:
    """Whatever else is called question or answer there."""
    names = [part.strip('" ').lower() for part in header.split(",")]
    row = {"given": PUZZLE, "wanted": SOLVED, "rating": "3"}
    (tmp_path / name).write_text(f"{header}\n{','.join(row.get(n, 'x') for n in names)}\n")
    (found,) = read_puzzles(tmp_path / name, 4, ["given", "Wanted"])
    assert found.solutions.tolist() == [[int(char) for char in SOLVED]]
    assert found.ratings.tolist() == [3 if "rating" in names else -1]
    with pytest.raises(DataError, match="b.csv:1: has not each of the columns a, b once"):
        (tmp_path / name).rename(tmp_path / "b.csv")
        list(read_puzzles(tmp_path / "b.csv", 4, ["a", "b"]))


def test_a_header_that_nobody_knows_names_the_option(tmp_path: Path) -> None:
    """And the option is what helps, for a split of the task and in the puzzles of ``solve``."""
    path = tmp_path / "a.csv"
    path.write_text(f"raetsel,loesung\n{PUZZLE},{SOLVED}\n")
    with pytest.raises(DataError, match=r"task.columns=\[PUZZLE,ANSWER\] names others"):
        list(read_puzzles(path, 4))
    settings = {"name": "sudoku", "size": 4, "train_file": str(path)}
    task = build_task(SudokuConfig(**settings, columns=["raetsel", "loesung"]), 0)
    (rows,) = task.puzzles("train", np.random.default_rng(0))
    assert len(rows.puzzles) == 1
    assert [text for _, text in read_texts(str(path), task)] == [PUZZLE]
    plain = build_task(SudokuConfig(**settings), 0)
    assert "columns" not in plain.content("train"), "caches of before are still used"
    assert task.content("train") != plain.content("train")


@pytest.mark.parametrize("header, both", [
    ("question,puzzle,answer", "question and puzzle may both be the question"),
    ("Puzzle,answer,Quizzes", "Puzzle and Quizzes may both be the question"),
    ("question,answer,solution", "answer and solution may both be the answer"),
    ('"question",solutions,label', "solutions and label may both be the answer"),
    ("question,question,answer", "question and question may both be the question"),
])  # fmt: skip
def test_two_columns_for_one_are_refused(header: str, both: str, tmp_path: Path) -> None:
    """By whoever reads the file, naming both; ``columns`` says which is meant."""
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n{PUZZLE},{PUZZLE},{SOLVED}\n")
    says = f"a.csv:1: the columns {both}; rename one, or say which by task.columns"
    task = build_task(SudokuConfig("sudoku", size=4), 0)
    with pytest.raises(DataError, match=says):
        list(read_puzzles(path, 4))
    with pytest.raises(DataError, match=says):
        list(read_texts(str(path), task))
    names = [name.strip('"') for name in header.split(",")]
    if len(set(names)) == 3:
        list(
            read_texts(str(path), build_task(SudokuConfig("sudoku", size=4, columns=names[:2]), 0))
        )


def test_columns_of_mazes(tmp_path: Path) -> None:
    """The same option."""
    path = tmp_path / "m.csv"
    path.write_text("from,to\nS   ####    ###G,So  ####    ###G\n".replace("    ###G", "   ####G"))
    with pytest.raises(DataError, match="m.csv:2: "):
        read_mazes(path, 4, ["from", "to"])
    path.write_text("from,to\nS  G############,SooG############\n")
    assert len(read_mazes(path, 4, ["from", "to"]).inputs) == 1
    task = build_task(MazeConfig("maze", size=4, test_file=str(path), columns=["from", "to"]), 0)
    assert len(task.mazes("test", np.random.default_rng(0)).inputs) == 1


@pytest.mark.parametrize("columns", [["a"], ["a", "A "], ["a", "b", "c"], ["a", ""]])
def test_two_columns_are_named(columns: List[str]) -> None:
    """No fewer, no more, not one twice."""
    with pytest.raises(ConfigError, match="task.columns: name two"):
        load_config("sudoku_tiny.yaml", [f"task.columns={json.dumps(columns)}"])


@pytest.mark.parametrize("text, line", [
    ("question,answer\n" + "1" * 3000, 2),
    ("question,answer\n" + f"{PUZZLE},{SOLVED}\n" * 2 + "1" * 3000, 4),
    ("question,answer" + "," * 3000 + "\n", 1),
    ("1" * 3000, 1),
    (f"{PUZZLE}\n" + "." * 3000 + "\n", 2),
])  # fmt: skip
def test_a_line_that_no_puzzle_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int
) -> None:
    """It is refused before it is held, with its number."""
    monkeypatch.setattr(puzzle_files, "_MOST_LINE", 2000)
    monkeypatch.setattr(puzzle_files, "_BLOCK_BYTES", 1500)
    path = tmp_path / "a"
    path.write_text(text)
    with pytest.raises(DataError, match=f"a:{line}: has more than 2,000 bytes"):
        list(read_puzzles(path, 4))


def test_a_million_short_lines_are_not_read_as_puzzles(tmp_path: Path) -> None:
    """The first one is refused; each as a row of cells would take gigabytes."""
    maze, path = "S #    # #     G", "S # o  #o#  oooG"
    block = puzzle_files.CsvBlock(
        Path("x"), f"{maze},{path}\n,\n{maze},{path}\n".encode(), ["question", "answer"], 2
    )
    block.cut_behind_misfit(16)
    assert block.cells("question", 16, np.zeros(256, np.uint8)).shape == (2, 16)
    file = tmp_path / "a.csv"
    file.write_text(f"question,answer\n{maze},{path}\n,\nx,\n")
    with pytest.raises(DataError, match="a.csv:3: the question has 0 cells"):
        read_mazes(file, 4)


@pytest.mark.parametrize("name", ["task.data_dir", "task.train_file", "task.test_file", "run_dir"])
@pytest.mark.parametrize("value", ['""', '[""]', "[]", "5", "{a: 1}", "[[a]]"])
def test_a_path_of_the_wrong_kind_is_one_line(name: str, value: str) -> None:
    """What is no name of a file or folder, an empty text among it, with the setting's name."""
    with pytest.raises(ConfigError) as caught:
        load_config("sudoku_tiny.yaml", [f"{name}={value}"])
    assert f": {name}: " in str(caught.value) and "\n" not in str(caught.value)
