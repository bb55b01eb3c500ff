"""Grids as people paste them are read as those that they type."""

from typing import List

import numpy as np
import pytest

from mlx_trm.cli.puzzles import Given
from mlx_trm.cli.solve_display import Display
from mlx_trm.drawing.terminal import side_by_side, with_beliefs
from mlx_trm.errors import DataError
from mlx_trm.inference.solver import SolverStep
from mlx_trm.tasks import ARCConfig, GoConfig, MazeConfig, SudokuConfig, Task, build_task
from mlx_trm.tasks.arc.grids import draw_answer, parse_grid
from mlx_trm.tasks.pasted import cut_drawing

SMALL = "4.211...3.4...1."
ANSWER = "4321123434122143"
MAZE = "S.#/..#/..G"


def sudoku(size: int = 4) -> Task:
    """A Sudoku of this size."""
    return build_task(SudokuConfig("sudoku", size=size))


def maze() -> Task:
    """Mazes of 3x3."""
    return build_task(MazeConfig("maze", size=3))


@pytest.mark.parametrize(
    "text",
    [
        "4 . 2 1\n1 . . .\n3 . 4 .\n. . 1 .",
        "4_21 1___ 3_4_ __1_",
        "4,0,2,1,1,0,0,0,3,0,4,0,0,0,1,0",
        "[[4,0,2,1],[1,0,0,0],[3,0,4,0],[0,0,1,0]]",
        "+---+---+\n|4 .|2 1|\n|1 .|. .|\n+---+---+\n|3 .|4 .|\n|. .|1 .|\n+---+---+",
        "4.|21\n1.|..\n--+--\n3.|4.\n..|1.\n",
        "║4.│21║\n║1.│..║\n╟──┼──╢\n║3.│4.║\n║..│1.║",
        "\t4.21;1...;3.4.;..1.",
        "4 * 2 1\n1 * * *\n3 * 4 *\n* * 1 *",
        "|4 -|2 1|\n|1 -|- -|\n|3 -|4 -|\n|- -|1 -|",
    ],
)
def test_sudoku_as_people_write_it(text: str) -> None:
    """Spaces, lines, commas, brackets, boxes and ``_`` mean what they seem to mean."""
    task = sudoku()
    assert task.format(task.parse(text)) == SMALL
    lines = text.splitlines()
    found = list(task.split_puzzles(lines))
    if "*" not in text and " -" not in text and (len(lines) > 1 or "[" not in text):
        assert [task.format(task.parse(each)) for _, each in found] == [SMALL]


NINE = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."
ROWS = [NINE[at : at + 9] for at in range(0, 81, 9)]
BOXED = [" | ".join(" ".join(row[at : at + 3]) for at in (0, 3, 6)) for row in ROWS]
FRAME, CELLS = "+-------+-------+-------+", "+-+-+-+-+-+-+-+-+-+"


def ruled(rows: List[str], rule: str) -> str:
    """Rows of a 9x9 grid with a line below the third and the sixth."""
    return "\n".join([*rows[:3], rule, *rows[3:6], rule, *rows[6:]])


@pytest.mark.parametrize(
    "text",
    [
        ruled(BOXED, "------+-------+------"),
        ruled([row.replace(" | ", "|") for row in BOXED], "-----+-----+-----"),
        ruled(["|".join(row[at : at + 3] for at in (0, 3, 6)) for row in ROWS], "---+---+---"),
        ruled(BOXED, "======+=======+======"),
        ruled(BOXED, "──────┼───────┼──────"),
    ],
)
def test_a_line_below_boxes_is_no_frame(text: str) -> None:
    """Rows above and below lines with two crossings belong to the puzzle."""
    task = sudoku(9)
    assert task.format(task.parse(text)) == NINE
    assert [task.format(task.parse(each)) for _, each in task.split_puzzles(text.split("\n"))] == [
        NINE
    ]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(",".join(row).replace(".", "") for row in ROWS),
        "\n".join("\t".join(row).replace(".", "") for row in ROWS),
        "\n".join("| " + " | ".join(row).replace(".", " ") + " |" for row in ROWS),
        f"{CELLS}\n"
        + "\n".join("|" + "|".join(row) + f"|\n{CELLS}" for row in ROWS).replace(".", " "),
        "\n".join(ROWS).replace(".", " "),
        ruled(BOXED, "------+-------+------").replace(".", " "),
        f"{FRAME}\n"
        + ruled([f"| {row} |" for row in BOXED], FRAME).replace(".", " ")
        + f"\n{FRAME}",
        NINE.replace(".", " "),
    ],
)
def test_blanks_that_are_nothing_at_all(text: str) -> None:
    """Empty fields of a table, and spaces in columns, are blanks; in a file, too."""
    task = sudoku(9)
    assert task.format(task.parse(text)) == NINE
    if "\n" in text:
        found = [task.parse(each) for _, each in task.split_puzzles(text.split("\n"))]
        assert [task.format(each) for each in found] == [NINE]


@pytest.mark.parametrize("text", ["1234 34.. 2143 .", "12 34 3 1 2143 41", "1,2,3,4\n,,,\n,,,"])
def test_a_cell_that_is_missing_is_not_taken_for_a_blank(text: str) -> None:
    """Spaces part groups where blanks are written, and rows that lack cells are refused."""
    with pytest.raises(DataError, match="cells, 4x4 needs 16"):
        sudoku().parse(text)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("size", [4, 6, 9, 12, 16])
def test_sudoku_as_the_program_draws_it(size: int, color: bool) -> None:
    """What ``solve`` prints is read again: with its answer, marks, beliefs and words around it."""
    task = sudoku(size)
    puzzle = np.ones(size**2, np.uint8)
    puzzle[[0, size + 1, 2 * size + 3]] = [size + 1, size, 4]
    answer = np.arange(size**2, dtype=np.uint8) % size + 2
    drawn = task.render(puzzle, puzzle, color=color)
    assert np.array_equal(task.parse(drawn), puzzle)
    printed = f"puzzle: {task.format(puzzle)}\n" + side_by_side(drawn, task.render(answer))
    printed += "\nafter 2 steps: wrong (3 of 16 cells right), halt probability 0.123\n"
    assert np.array_equal(task.parse(printed), puzzle)
    found = list(task.split_puzzles(printed.splitlines()))
    assert [np.array_equal(task.parse(each), puzzle) for _, each in found][-1:] == [True]
    step = with_beliefs(task.render_step(puzzle, answer, puzzle, answer, color), [0.5, 0.9])
    assert np.array_equal(task.parse(step), puzzle)


def test_lines_of_a_file_are_told_apart() -> None:
    """One a line, a row a line and drawings mix; a wrong line is still named."""
    task = sudoku()
    drawn = task.render(task.parse(SMALL)).splitlines()
    lines = [SMALL, "# a comment", "", *"4.21 1... 3.4. ..1.".split(), *drawn, SMALL]
    assert [number for number, _ in task.split_puzzles(lines)] == [1, 4, 8, 15]
    cut = list(task.split_puzzles(["4.21", "1...", "", SMALL, "4.2"]))
    assert cut == [(1, "4.21\n1..."), (4, SMALL), (5, "4.2")]
    with pytest.raises(DataError, match="has 8 cells"):
        task.parse(cut[0][1])


def test_numbers_beyond_nine() -> None:
    """A 16x16 puzzle of a table has numbers with white space or commas between them."""
    task, tokens = sudoku(16), np.ones(256, np.uint8)
    tokens[:16] = np.arange(16) + 2
    numbers = " ".join(str(token - 1) for token in tokens)
    for text in (numbers, numbers.replace(" ", ","), task.format(tokens).lower()):
        assert np.array_equal(task.parse(text), tokens)
    assert task.format(tokens)[:16] == "123456789ABCDEFG"
    with pytest.raises(DataError, match="allowed are 1-9, A-G"):
        task.parse("H" + "." * 255)


@pytest.mark.parametrize(
    "text",
    [
        "S . #\n. . #\n. . G",
        "S,.,#/.,.,#/.,.,G",
        "S_#/__#/__G",
        "+---+\n|S.#|\n|..#|\n|..G|\n+---+",
        "S █\n  █\n  G",
    ],
)
def test_mazes_as_people_write_them(text: str) -> None:
    """Spaces between cells, commas, frames, blocks and ``_``."""
    assert maze().format(maze().parse(text)) == MAZE


@pytest.mark.parametrize("color", [False, True])
def test_mazes_as_the_program_draws_them(color: bool) -> None:
    """Two characters a cell, marks, and the answer beside it."""
    task = maze()
    tokens = task.parse(MAZE)
    answer = task.answers(tokens[None])[0][0]
    printed = side_by_side(task.render(tokens, tokens, color=color), task.render(answer))
    printed = f"puzzle: {MAZE}\n{printed}\nafter 3 steps: right"
    assert np.array_equal(task.parse(printed), tokens)
    found = list(task.split_puzzles(printed.splitlines()))
    assert [np.array_equal(task.parse(text), tokens) for _, text in found] == [True]
    step = task.render_step(answer, tokens, tokens, answer, color)
    assert np.array_equal(task.parse(step), tokens)  # the maze that it answers
    found = list(task.split_puzzles([MAZE, "", "S.#", "..#", "..G"]))
    assert [number for number, _ in found] == [1, 3]


@pytest.mark.parametrize("color", [False, True])
def test_arc_as_the_program_draws_it(color: bool) -> None:
    """Of a puzzle with its answer beside it the puzzle is read, whichever is taller."""
    grids = [np.array([[0, 1, 2], [3, 4, 5]]), np.array([[7, 7], [8, 8], [9, 9]])]
    for left, right in (grids, grids[::-1]):
        drawn = side_by_side(draw_answer(left, right, color), draw_answer(right, None, color))
        drawn = "\n".join(line for line in drawn.splitlines() if "instead" not in line)
        assert parse_grid(drawn).tolist() == left.tolist()
    assert parse_grid("│0 1│\n│2 3│").tolist() == [[0, 1], [2, 3]]
    assert parse_grid("    0 1\n    2 3\n").tolist() == [[0, 1], [2, 3]]
    assert build_task(ARCConfig("arc", max_grid_size=5)).parse("0,1/2,3")[0] == 2


@pytest.mark.parametrize("kind", ["maze", "sudoku", "capture", "territory"])
@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("every_step", [False, True])
def test_all_that_solve_showed_is_its_puzzles(
    kind: str, color: bool, every_step: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its steps and the rules' answers are left out; an answer's marks are taken off."""
    config = {
        "maze": MazeConfig("maze", size=3),
        "sudoku": SudokuConfig("sudoku", size=4),
        "capture": GoConfig("go", kind="capture"),
        "territory": GoConfig("go", kind="territory"),
    }[kind]
    ladder = "......./..XX.../.XW..../......./......./......./......."
    written = {"maze": MAZE, "sudoku": SMALL, "capture": ladder}.get(kind, ladder.replace("W", "O"))
    task = build_task(config)
    puzzle = task.parse(written)
    labels = task.answers(puzzle[None])[0]
    assert labels is not None
    given = Given("", written, puzzle, labels[0], True)
    display = Display(task, 2, every_step, quiet=False)
    display.color = color
    wrong = np.where(puzzle == 1, task.spec.vocab_size - 1, puzzle).astype(np.uint8)
    for number in range(2):
        display.start(number, given)
        step = SolverStep(1, task.format(wrong), 0.25, False, 3, wrong)
        display.step(given, step, puzzle)
        display.result(number, given, step)
    shown = capsys.readouterr().out
    found = [task.parse(text) for _, text in task.split_puzzles(shown.splitlines())]
    assert [task.format(each) for each in found] == [task.format(puzzle)] * 2
    assert np.array_equal(task.parse(shown), puzzle)
    if kind != "sudoku":
        assert np.array_equal(task.parse(task.render(labels[0], puzzle, color=color)), puzzle)
        assert np.array_equal(task.parse(shown.splitlines()[0]), puzzle)


def test_a_frame_that_does_not_end_is_none() -> None:
    """What was cut off is no drawing."""
    assert cut_drawing(["┌──┐", "│S │"]) is None
    with pytest.raises(DataError, match="has 2 cells"):
        sudoku().parse("┌──┐\n│4 2│")


# Corners, sides, lines and crossings: top left, line, top crossing, top right, side, inner side,
# left and right of a line between rows with its crossing, bottom left, bottom crossing, right.
FRAMES = {
    "light": "┌─┬┐││├─┼┤└┴┘",
    "heavy": "┏━┳┓┃┃┣━╋┫┗┻┛",
    "double": "╔═╦╗║║╠═╬╣╚╩╝",
    "rounded": "╭─┬╮││├─┼┤╰┴╯",
    "double sides": "╓─╥╖║║╟─╫╢╙╨╜",
    "double lines": "╒═╤╕││╞═╪╡╘╧╛",
    "double outside": "╔═╤╗║│╟─┼╢╚╧╝",
    "heavy outside": "┏━┯┓┃│┠─┼┨┗┷┛",
    "dashed": "┌┄┬┐┆┊├┈┼┤└┴┘",
    "ascii": "+-++||+-+++++",
    "ascii double": "+=++||+-+++++",
    "ascii sides": "+-++│|+-+++++",
    "round and double": "╭═╤╮║│╟─┼╢╰╧╯",
}


def framed(kind: str, rows: List[str], boxes: int, spaced: bool) -> str:
    """Draw rows in a frame with lines after so many cells both ways."""
    tl, top, top_x, tr, side, inner, left, line, cross, right, bl, bottom_x, br = FRAMES[kind]
    size = len(rows)
    width = (
        (2 * boxes + 1 if spaced else boxes) if boxes < size else 2 * size + 1 if spaced else size
    )
    count = size // boxes

    def rule(first: str, char: str, between: str, last: str) -> str:
        return first + between.join([char * width] * count) + last

    lines = [rule(tl, top, top_x, tr)]
    for number, row in enumerate(rows):
        if number and number % boxes == 0:
            lines.append(rule(left, line, cross, right))
        parts = [row[at : at + boxes] for at in range(0, size, boxes)]
        parts = [f" {' '.join(part)} " if spaced else part for part in parts]
        lines.append(side + inner.join(parts) + side)
    return "\n".join([*lines, rule(bl, top, bottom_x, br)])


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize("kind", FRAMES)
def test_frames_of_every_kind(kind: str, spaced: bool) -> None:
    """Alone, between words, and with the answer beside it; in files too."""
    cases = [
        (sudoku(), SMALL, [SMALL[at : at + 4] for at in range(0, 16, 4)], (4, 2, 1)),
        (maze(), MAZE, MAZE.split("/"), (3, 1)),
        (build_task(ARCConfig("arc", max_grid_size=5)), "012/345/678", ["012", "345", "678"], (3,)),
    ]
    for task, text, rows, boxes in cases:
        for box in boxes:
            drawn = framed(kind, rows, box, spaced)
            beside = side_by_side(drawn, drawn.replace("1", "2").replace("S", "."))
            for pasted in (drawn, f"puzzle: {text}\n{drawn}\nafter 3 steps: right", beside):
                assert task.format(task.parse(pasted)) == text, pasted
            twice = list(task.split_puzzles(f"{drawn}\n\n{drawn}".splitlines()))
            assert [task.format(task.parse(each)) for _, each in twice] == [text] * 2


def test_frames_of_several_kinds_in_a_file() -> None:
    """One kind after the other, with and without lines between them."""
    rows = [SMALL[at : at + 4] for at in range(0, 16, 4)]
    drawn = [framed(kind, rows, 2, True) for kind in FRAMES]
    for between in ("\n", "\n\n", "\nand this one:\n"):
        found = list(sudoku().split_puzzles(between.join(drawn).splitlines()))
        assert [sudoku().format(sudoku().parse(each)) for _, each in found] == [SMALL] * len(FRAMES)
