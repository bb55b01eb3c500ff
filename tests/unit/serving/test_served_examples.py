"""Puzzles to begin with, and how those of each task are typed."""

import json
from typing import Any

import numpy as np
import pytest
from marks import Marks, MarksConfig

from mlx_trm.errors import DataError
from mlx_trm.tasks import (
    ARC,
    ARCConfig,
    Chess,
    ChessConfig,
    Go,
    GoConfig,
    Maze,
    MazeConfig,
    Sudoku,
    SudokuConfig,
)


def check_editor(editor: Any, text: str, choices: int) -> None:
    """What the page builds its grid of, and a puzzle in its form, fit together."""
    assert json.loads(json.dumps(editor)) and editor["kind"] == "cells" and editor["hint"]
    looks, words = editor["looks"], {}
    for written in (text, editor["empty"]):
        board, *words = written.split(" ")
        rows = board.split("/")
        assert len(rows) == editor["rows"] and {len(row) for row in rows} == {editor["columns"]}
        assert set("".join(rows)) <= set(looks)
    assert len(editor["choices"]) == choices
    for word, choice in zip(words, editor["choices"]):
        assert word in dict(choice["words"])
    assert len(editor["names"]) in (0, editor["rows"] * editor["columns"])
    keys = [key for tool in editor["tools"] for key in tool["keys"]]
    assert len(set(keys)) == len(keys)
    for tool in editor["tools"]:
        put = [tool["put"]] if tool["put"] else []
        maps = (tool["turns"], tool["clears"])
        symbols = [*put, *(each for one in maps for pair in one.items() for each in pair)]
        assert set(symbols) <= set(looks)
        assert not tool["points"] or tool["points"] in [each["name"] for each in editor["choices"]]


@pytest.mark.parametrize("size", [4, 6, 9])
def test_a_sudoku_has_one_solution(size: int) -> None:
    task = Sudoku(SudokuConfig(name="sudoku", size=size))
    first, second = (task.draw_example(np.random.default_rng(seed)) for seed in (0, 1))
    assert first != second
    assert task.answers(np.stack([task.parse(first), task.parse(second)]))[1] == {}
    editor = task.describe_editor()
    assert editor["boxes"] == [{4: 2, 6: 2, 9: 3}[size], {4: 2, 6: 3, 9: 3}[size]]
    assert editor["symbols"] == [str(digit) for digit in range(1, size + 1)]


def test_a_maze_has_a_way() -> None:
    task = Maze(MazeConfig(name="maze", size=7))
    first = task.draw_example(np.random.default_rng(0))
    assert task.answers(task.parse(first)[None])[1] == {}
    editor = task.describe_editor()
    check_editor(editor, task.write_for_editor(first), 0)
    assert task.answers(task.parse(editor["empty"])[None])[1] == {}


def test_a_chess_position_has_an_answer() -> None:
    """It is set up on a board, as it is written: Black's stays Black's."""
    pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")
    task = Chess(ChessConfig(name="chess", kind="mate1", style="endings"))
    first, second = (task.draw_example(np.random.default_rng(seed)) for seed in (0, 1))
    assert first != second
    assert task.answers(np.stack([task.parse(first), task.parse(second)]))[1] == {}
    check_editor(task.describe_editor(), task.write_for_editor(first), 3)
    black = "3rk3/8/8/8/4pP2/8/8/6K1 b - f3 0 1"
    rows = "...rk.../......../......../......../....pP../......../......../......K. b - f3"
    assert task.write_for_editor(black) == rows
    assert task.parse(rows).tolist() == task.parse(black).tolist()
    asking = Chess(ChessConfig(name="chess", kind="moves"))
    check_editor(asking.describe_editor(), asking.write_for_editor(black + " d8"), 4)


@pytest.mark.parametrize("kind", ["capture", "territory"])
def test_a_go_board_has_an_answer(kind: str) -> None:
    task = Go(GoConfig(name="go", kind=kind))
    first = task.draw_example(np.random.default_rng(1))
    check_editor(task.describe_editor(), task.write_for_editor(first), 0)
    assert task.answers(task.parse(task.draw_example(np.random.default_rng(0)))[None])[1] == {}


def test_arc_s_data_or_those_of_the_package() -> None:
    """Names of the model's own data; where these are not here, a grid that fits its canvas."""
    own = ARC(
        ARCConfig(name="arc", input_file_prefix="arc_tiny", subsets=["training", "evaluation"])
    )
    assert own.draw_example(np.random.default_rng(0)) in own.list_names()
    other = ARC(ARCConfig(name="arc", input_file_prefix="/nowhere/x", max_grid_size=5))
    assert other.list_names() == []
    text = other.draw_example(np.random.default_rng(0))
    assert len(other.parse(text)) == 25 and set(text) <= set("0123456789/")


def test_a_task_of_one_s_own_is_typed_as_text() -> None:
    task = Marks(MarksConfig(name="marks"))
    assert task.describe_editor()["kind"] == "text" and task.list_names() == []
    with pytest.raises(DataError, match="has no examples here"):
        task.draw_example(np.random.default_rng(0))
