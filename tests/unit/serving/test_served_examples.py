"""Puzzles to begin with, and how those of each task are typed."""

import numpy as np
import pytest
from marks import Marks, MarksConfig

from mlx_trm.errors import DataError
from mlx_trm.serving.examples import describe_editor, draw_example, list_names
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


@pytest.mark.parametrize("size", [4, 6, 9])
def test_a_sudoku_has_one_solution(size: int) -> None:
    task = Sudoku(SudokuConfig(name="sudoku", size=size))
    first, second = (draw_example(task, np.random.default_rng(seed)) for seed in (0, 1))
    assert first != second
    assert task.answers(np.stack([task.parse(first), task.parse(second)]))[1] == {}
    editor = describe_editor(task)
    assert editor["boxes"] == [{4: 2, 6: 2, 9: 3}[size], {4: 2, 6: 3, 9: 3}[size]]
    assert editor["symbols"] == [str(digit) for digit in range(1, size + 1)]


def test_a_maze_has_a_way() -> None:
    task = Maze(MazeConfig(name="maze", size=7))
    assert task.answers(task.parse(draw_example(task, np.random.default_rng(0)))[None])[1] == {}


def test_a_chess_position_has_an_answer() -> None:
    """It is typed as text, a FEN."""
    pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")
    task = Chess(ChessConfig(name="chess", kind="mate1", style="endings"))
    first, second = (draw_example(task, np.random.default_rng(seed)) for seed in (0, 1))
    assert first != second and describe_editor(task) == {"kind": "text"}
    assert task.answers(np.stack([task.parse(first), task.parse(second)]))[1] == {}


@pytest.mark.parametrize("kind", ["capture", "territory"])
def test_a_go_board_has_an_answer(kind: str) -> None:
    task = Go(GoConfig(name="go", kind=kind))
    assert describe_editor(task) == {"kind": "text"}
    assert task.answers(task.parse(draw_example(task, np.random.default_rng(0)))[None])[1] == {}


def test_arc_s_data_or_those_of_the_package() -> None:
    """Names of the model's own data; where these are not here, a grid that fits its canvas."""
    own = ARC(
        ARCConfig(name="arc", input_file_prefix="arc_tiny", subsets=["training", "evaluation"])
    )
    assert draw_example(own, np.random.default_rng(0)) in list_names(own)
    other = ARC(ARCConfig(name="arc", input_file_prefix="/nowhere/x", max_grid_size=5))
    assert list_names(other) == []
    text = draw_example(other, np.random.default_rng(0))
    assert len(other.parse(text)) == 25 and set(text) <= set("0123456789/")


def test_a_task_of_one_s_own_is_typed_as_text() -> None:
    task = Marks(MarksConfig(name="marks"))
    assert describe_editor(task) == {"kind": "text"}
    with pytest.raises(DataError, match="has no examples here"):
        draw_example(task, np.random.default_rng(0))
