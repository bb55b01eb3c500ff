"""Boards of all tasks, and what is drawn of them in pixels and as SVG."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from marks import Marks, MarksConfig
from PIL import Image

from mlx_trm.drawing.raster import Panel, draw_animation, draw_strip, save_strip
from mlx_trm.drawing.scenes import Subject, Take, find_labels
from mlx_trm.errors import ConfigError
from mlx_trm.tasks import ARC, ARCConfig, Maze, MazeConfig, Sudoku, SudokuConfig
from mlx_trm.tasks.board import ink_on, make_board

SUDOKU = Sudoku(SudokuConfig(name="sudoku", size=4))
MAZE = Maze(MazeConfig(name="maze", size=3))
ARC_TASK = ARC(ARCConfig(name="arc", max_grid_size=4))
PUZZLE, SOLVED = SUDOKU.parse("1... ..2. .3.. ...4"), SUDOKU.parse("1243 3421 4312 2134")


def places(flags: np.ndarray) -> list:
    """The places of a board's cells that have a mark."""
    return np.flatnonzero(flags).tolist()


def test_a_sudoku() -> None:
    """Blanks are empty and never wrong; givens, changes and wrong digits are told apart."""
    tokens = SOLVED.copy()
    tokens[1], tokens[2] = 1, tokens[3]  # a blank, and a wrong digit
    board = SUDOKU.board(tokens, PUZZLE, SOLVED, SOLVED)
    assert board.symbols[0].tolist() == ["1", "", "3", "3"] and board.boxes == (2, 2)
    assert board.text == "1.33342143122134" and board.colors is None
    assert places(board.given) == [0, 6, 9, 15]
    assert places(board.changed) == [1, 2] and places(board.wrong) == [2]
    assert board.marks()[0].tolist() == [1, 2, 6, 0]
    assert not places(SUDOKU.board(tokens).wrong) and not places(SUDOKU.board(tokens).changed)


def test_a_maze() -> None:
    """The maze itself and any shortest path have nothing wrong."""
    inputs, label = MAZE.parse("S../.#./..G"), MAZE.parse("Soo/.#o/..G")
    other, wrong = MAZE.parse("S../o#./ooG"), MAZE.parse("Soo/.#./..G")
    boards = [MAZE.board(each, inputs, label, inputs) for each in (inputs, label, other, wrong)]
    assert [places(board.wrong) for board in boards] == [[], [], [], [5]]
    assert [places(board.changed) for board in boards] == [[], [1, 2, 5], [3, 6, 7], [1, 2]]
    assert boards[0].symbols.tolist() == [["S", "", ""], ["", "", ""], ["", "", "G"]]
    assert (boards[0].colors == MAZE.image(inputs)).all()


def test_a_grid_of_colours() -> None:
    """Cut out of its canvas; grids of other shapes are compared where both are."""
    grid, before, answer = (ARC_TASK.parse(text) for text in ("01/23", "01", "01/24/55"))
    board = ARC_TASK.board(grid, None, answer, before)
    assert board.shape == (2, 2) and board.text == "01/23"
    assert places(board.changed) == [2, 3] and places(board.wrong) == [3]
    assert (board.colors == ARC_TASK.image(grid)).all()
    assert not places(ARC_TASK.board(grid, grid, answer).wrong)  # the puzzle is no answer yet


def test_steps_in_a_terminal() -> None:
    """The same marks for every task."""
    drawn = MAZE.render_step(
        MAZE.parse("Soo/.#./..G"),
        MAZE.parse("S#./.#./..G"),
        MAZE.parse("S../.#./..G"),
        MAZE.parse("Soo/.#o/..G"),
    )
    assert drawn == "┌──────┐\n│S •+•+│\n│  ██ !│\n│    G │\n└──────┘"
    grids = [ARC_TASK.parse(text) for text in ("01/23", "01/33", "01/24")]
    assert ARC_TASK.render_step(grids[0], grids[1], None, grids[2]) == " 0 1 \n+2!3 "


def test_a_task_that_draws_nothing_is_drawn_by_numbers() -> None:
    """In a square, filled up; its changes are marked."""
    tokens, before = np.array([1, 2, 3, 4, 5]), np.array([1, 2, 3, 4, 4])
    board = Marks(MarksConfig()).board(tokens, before=before)
    assert board.symbols.tolist() == [["1", "2", "3"], ["4", "5", ""]]
    assert places(board.changed) == [4] and not places(board.wrong)


def test_a_task_that_paints_is_drawn_by_its_picture() -> None:
    """As plugins did before there were boards; a picture of other pixels has no marks."""

    class Painted(Marks):
        """It has a picture."""

        def image(self, tokens, inputs=None):
            """One pixel a token."""
            del inputs
            return np.stack([np.asarray(tokens, np.uint8) * 40] * 3, axis=-1)[None]

    class Doubled(Painted):
        """Its picture has two pixels a token."""

        def image(self, tokens, inputs=None):
            """Each twice."""
            return np.repeat(super().image(tokens), 2, axis=1)

    tokens, before = np.array([1, 2, 3, 4, 5]), np.array([1, 2, 3, 4, 4])
    board = Painted(MarksConfig()).board(tokens, before=before)
    assert board.shape == (1, 5) and places(board.changed) == [4]
    assert Doubled(MarksConfig()).board(tokens, before=before).shape == (1, 10)


def test_svg_is_well_formed_and_foreign_text_stays_text() -> None:
    """A symbol or a text that looks like markup is escaped."""
    evil = '<script>alert("1")</script>'
    symbols = np.array([[evil, "2"], ["", "4"]], dtype=object)
    flags = np.array([[False, True], [True, False]])
    for colors in (None, np.zeros((2, 2, 3), np.uint8)):
        text = make_board(symbols, colors, None, flags, flags, (1, 2), evil + '" x="').svg()
        root = ET.fromstring(text)
        assert root.attrib["aria-label"] == evil + '" x="' and "<script" not in text
        names = [node.tag.rpartition("}")[2] for node in root]
        assert set(names) <= {"rect", "path", "text"} and names.count("text") == 3
        assert [node.text for node in root if node.tag.endswith("text")] == [evil, "2", "4"]
    assert ink_on(np.array([255, 220, 0])) == "#000000" and ink_on(np.array([0, 0, 0])) == "#ffffff"


def scene(*answers: np.ndarray):
    """A scene of Sudoku answers."""
    subject = Subject(SUDOKU, PUZZLE, find_labels(SUDOKU, PUZZLE))
    before = [None, *answers]
    frames = [
        subject.frame(number + 1, tokens, before[number], 0.25 * number, number == 1)
        for number, tokens in enumerate(answers)
    ]
    return subject.scene("a title", (Take(0, tuple(frames)),))


def test_a_strip_paints_what_the_marks_say() -> None:
    """A changed cell is amber, a wrong one framed red; others are paper."""
    flags = np.zeros((4, 4), bool)
    changed, wrong = flags.copy(), flags.copy()
    changed[0, 0] = wrong[3, 3] = True
    nothing = np.full((4, 4), "", dtype=object)
    boards = [
        make_board(nothing),
        make_board(nothing, changed=changed),
        make_board(nothing, wrong=wrong),
    ]
    amber, red = (251, 226, 168), (198, 47, 29)
    counts = []
    for board in boards:
        pixels = np.asarray(draw_strip([[Panel("", board)]]))[:-60]  # without the legend
        counts.append([int((pixels == color).all(axis=-1).sum()) for color in (amber, red)])
    assert counts[0] == [0, 0]
    assert counts[1][0] > 2500 and counts[1][1] == 0
    assert counts[2][0] == 0 and counts[2][1] > 300


def test_an_animation_has_a_picture_a_step() -> None:
    """All of one size, the last one longest."""
    found = scene(PUZZLE, SOLVED)
    pictures, times = draw_animation([found])
    assert len(pictures) == len(times) == 3 and max(times) == times[-1]
    assert len({picture.size for picture in pictures}) == 1
    assert np.asarray(pictures[0]).shape == np.asarray(pictures[2]).shape
    assert found.chosen.frames[1].changed == 12 and found.chosen.frames[1].correct


def test_a_strip_is_whole_or_not_there(tmp_path: Path) -> None:
    """The same bytes again; a folder in its place is refused."""
    panels = [[Panel("one", SUDOKU.board(SOLVED, PUZZLE), 0.5, True)] * 14]
    for name in ("a.png", "b.png"):
        save_strip(tmp_path / name, panels)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width < 2400  # 14 panels stand in three lines
    (tmp_path / "c.png").mkdir()
    with pytest.raises(ConfigError, match="c.png: cannot be written"):
        save_strip(tmp_path / "c.png", panels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_labels_are_found_by_the_rules() -> None:
    """Where there is exactly one answer."""
    assert np.array_equal(find_labels(SUDOKU, PUZZLE), SOLVED)
    assert find_labels(SUDOKU, np.ones(16, np.uint8)) is None
    assert find_labels(ARC_TASK, ARC_TASK.parse("01")) is None


def test_values_stand_where_the_grid_is_drawn() -> None:
    """In rows; of ARC's canvas the part that shows, wherever it is; a square where S is none."""
    values = np.arange(16, dtype=np.float32)
    assert SUDOKU.place_values(values, PUZZLE).tolist() == values.reshape(4, 4).tolist()
    canvas = ARC_TASK.parse("01/23")
    assert ARC_TASK.place_values(values, canvas).tolist() == [[0, 1], [4, 5]]
    moved = np.zeros(16, dtype=np.uint8)
    moved[[6, 10, 11]] = 5
    assert ARC_TASK.place_values(values, moved).tolist() == [[6, 7], [10, 11]]
    assert ARC_TASK.place_values(values, np.zeros(16, np.uint8)).tolist() == [[0]]
    marks = Marks(MarksConfig(name="marks"))
    tokens = np.zeros(marks.spec.seq_len, dtype=np.uint8)
    placed = marks.place_values(np.full(len(tokens), 0.5), tokens)
    assert placed is None or placed.shape == marks.board(tokens).shape
