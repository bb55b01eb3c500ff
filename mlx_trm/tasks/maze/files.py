"""Maze files: the CSV of Maze-Hard (source,question,answer,rating), and plain text.

A CSV brings its answers, which are checked by the rules. Text holds mazes as blocks of lines with
a blank line between them, or one a line with ``/`` between its rows; their answers are computed.
There are no comments in text, because ``#`` is a wall.

Reference: dataset/build_maze_dataset.py.
"""

from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.board import CellsEditor, Look, Tool
from mlx_trm.tasks.maze.generator import MazeSet
from mlx_trm.tasks.maze.paths import GOAL, PATH, START, UNREACHED, judge, solve_mazes
from mlx_trm.tasks.pasted import plain_maze, split_drawings, strip_colors
from mlx_trm.tasks.puzzle_files import CsvBlock, FilePuzzles, csv_of, read_puzzle_file
from mlx_trm.tasks.text import place_name

# Token t is SYMBOLS[t]; 0, padding, is no cell of a maze. In one line a point stands for a space.
SYMBOLS = "?# SGo"
_TOKENS = np.zeros(256, dtype=np.uint8)
_TOKENS[[ord(symbol) for symbol in SYMBOLS[1:]]] = range(1, len(SYMBOLS))


def read_mazes(
    path: Union[str, Path], size: int, columns: Optional[Sequence[str]] = None
) -> MazeSet:
    """Read a file of mazes: a CSV where its first line is a header, else text.

    Args:
        path: of a CSV or a text file, UTF-8.
        size: rows and columns.
        columns: of a CSV, those of the maze and of its answer; None: known by their usual names.

    Returns:
        Its mazes, at least one, in their order.

    Raises:
        DataError: naming file and line of something wrong.
    """
    from_csv, from_text = partial(_read_csv, size=size), partial(_read_text, size=size)
    parts = list(read_puzzle_file(path, from_csv, from_text, False, columns, "mazes"))
    return MazeSet(*(np.concatenate(arrays) for arrays in zip(*parts)))


def read_with_sources(
    path: Union[str, Path], size: int, columns: Optional[Sequence[str]] = None
) -> Iterator[FilePuzzles]:
    """Read a file of mazes part by part, rated by the steps of their paths; see read_mazes."""

    def from_csv(block: CsvBlock) -> FilePuzzles:
        return FilePuzzles(*_read_csv(block, size), block.texts("source"))

    def from_text(file: Path, lines: Iterator[Tuple[int, str]]) -> Iterator[FilePuzzles]:
        return (FilePuzzles(*mazes) for mazes in _read_text(file, lines, size))

    return read_puzzle_file(path, from_csv, from_text, False, columns, "mazes")


# CSV -------------------------------------------------------------------------------------------


def _read_csv(block: CsvBlock, size: int) -> MazeSet:
    """Turn the fields of a CSV into arrays and check them."""
    block.cut_behind_misfit(size**2)
    inputs, labels = (block.cells(name, size**2, _TOKENS) for name in ("question", "answer"))
    judged = judge(inputs, labels)
    good = judged.valid & (inputs > 0).all(axis=1)
    for row in np.flatnonzero(~good)[:1]:
        texts = block.text("question", row), block.text("answer", row)
        block.refuse(row, _row_problem(*texts, inputs[[row]], labels[[row]], size))
    return MazeSet(inputs, labels, judged.steps)


def _row_problem(
    question: str, answer: str, maze: np.ndarray, solved: np.ndarray, size: int
) -> str:
    """Say what is wrong with a row of a CSV, given as text and as (1, S) tokens."""
    problem = _text_problem(question, size, "question") or _text_problem(answer, size, "answer")
    if problem is not None:
        return problem
    problems = solve_mazes(maze)[1]
    if problems:
        return problems[0]
    changed = (solved != maze) & ~((solved == PATH) & (maze == SYMBOLS.index(" ")))
    if changed.any():
        cell = int(changed[0].argmax())
        place = place_name(cell, size)
        return f"the answer has {answer[cell]!r} in {place}, the question {question[cell]!r}"
    return _marks_problem(solved, int((solved == PATH).sum()))


def _marks_problem(solved: np.ndarray, marks: int) -> str:
    """Say why the marks of a (1, S) answer are no path."""
    only = np.where((solved == PATH) | (solved == START) | (solved == GOAL), solved, 1)
    open_only = np.where(only == PATH, SYMBOLS.index(" "), only)
    steps = judge(open_only, open_only).shortest[0]
    if steps == UNREACHED:
        return "the answer is no path: its o do not lead from S to G"
    return (
        f"the answer is no path: its o lead from S to G in {steps} steps, which takes {steps - 1} "
        f"of them, and there are {marks}"
    )


def _text_problem(text: str, size: int, what: str) -> Optional[str]:
    """Say what keeps a text from being S cells."""
    if len(text) != size * size:
        advice = ""
        if isqrt(len(text)) ** 2 == len(text) and len(text) >= 9:
            advice = f"; is task.size={isqrt(len(text))} meant?"
        return f"the {what} has {len(text)} cells, {size}x{size} needs {size * size}{advice}"
    for cell, char in enumerate(text):
        if char not in SYMBOLS[1:] or (char == "o" and what == "question"):
            allowed = "#, space, S and G" + (" and o" if what == "answer" else "")
            return f"the {what} has {char!r} in {place_name(cell, size)}; allowed are {allowed}"
    return None


# Text ------------------------------------------------------------------------------------------


def _read_text(path: Path, lines: Iterator[Tuple[int, str]], size: int) -> Iterator[MazeSet]:
    """Read mazes and solve them."""
    numbers, mazes = [], []
    for number, text in split_mazes((line.rstrip("\r\n") for _, line in lines), size):
        try:
            mazes.append(parse_maze(text, size))
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        numbers.append(number)
    inputs = np.array(mazes, dtype=np.uint8).reshape(-1, size * size)
    labels, problems = solve_mazes(inputs)
    for row in sorted(problems)[:1]:
        raise DataError(f"{path}:{numbers[row]}: {problems[row]}")
    yield MazeSet(inputs, labels, (labels == PATH).sum(axis=1) + 1)


def split_mazes(lines: Iterable[str], size: int) -> Iterator[Tuple[int, str]]:
    """Find the mazes in lines of text.

    A maze that this program drew is one, with whatever the program wrote around it left out. A line
    that is a whole maze stands alone. Other lines belong together up to the next blank line;
    a line of exactly ``size`` spaces is blank only where ``size`` rows stand above it.

    Returns:
        Pairs of the number of a maze's first line, from 1, and its text.
    """
    parts = list(split_drawings([strip_colors(line) for line in lines]))
    spoken = any(drawn for _, _, drawn in parts)
    for start, part, drawn in parts:
        if drawn:
            yield start, "\n".join(part)
        else:
            for number, text in _split_plain(part, size):
                if not spoken or not set(text) - set("/\n." + SYMBOLS[1:]):
                    yield start + number - 1, text


def _split_plain(lines: Sequence[str], size: int) -> Iterator[Tuple[int, str]]:
    """Find the mazes in lines without drawings."""
    block: List[str] = []
    number = 0
    for number, line in enumerate(lines, start=1):
        alone = "/" in line or len(line) == size * size
        blank = not line.strip() and (len(line) != size or len(block) == size)
        if block and (alone or blank):
            yield number - len(block), "\n".join(block)
            block = []
        if alone:
            yield number, line
        elif not blank:
            block.append(line)
    if block:
        yield number - len(block) + 1, "\n".join(block)


def parse_maze(text: str, size: int) -> np.ndarray:
    """Read a maze or an answer.

    Args:
        text: rows with line ends or ``/`` between them, or all cells in one row. An open cell is a
            point or a space; ``?`` is no cell at all, as a model may predict. Commas or spaces may
            stand between cells, and what this program drew is read, too.
        size: rows and columns.

    Returns:
        (S,) uint8 tokens; that start and goal are there is not checked.

    Raises:
        DataError: if the number of cells is wrong, or there is another character.
    """
    rows = plain_maze(text, size).replace("\r", "").strip("\n").split("\n")
    if "/" in text:
        rows = "".join(rows).split("/")
    if len(rows) == 1 and len(rows[0]) == size * size:
        rows = [rows[0][at : at + size] for at in range(0, size * size, size)]
    if len(rows) == 1:
        raise DataError(
            f"the maze has {len(rows[0])} cells, {size}x{size} needs {size * size}; write / "
            "between rows, or a row a line"
        )
    if len(rows) != size:
        raise DataError(f"the maze has {len(rows)} rows, {size}x{size} needs {size}")
    tokens = np.zeros((size, size), dtype=np.uint8)
    for number, row in enumerate(rows):
        if len(row) != size:
            raise DataError(
                f"row {number + 1} of the maze has {len(row)} cells, {size}x{size} needs {size}; "
                "write open cells as points where spaces may get lost"
            )
        for column, char in enumerate(row.replace(".", " ")):
            if char not in SYMBOLS:
                raise DataError(
                    f"the maze has {row[column]!r} in row {number + 1} column {column + 1}; "
                    "allowed are #, point or space, S and G"
                )
            tokens[number, column] = SYMBOLS.index(char)
    return tokens.reshape(-1)


# Writing ---------------------------------------------------------------------------------------


def csv_text(mazes: MazeSet, source: str) -> str:
    """Write mazes as a CSV; ``source`` goes into the first column, the steps into the last."""
    texts = (["".join(SYMBOLS[token] for token in row) for row in cells] for cells in mazes[:2])
    return csv_of(zip(*texts, mazes.lengths), source)


# Mazes typed on a page ---------------------------------------------------------------------------


def describe_cells(size: int) -> Dict[str, Any]:
    """Say how a page lets a maze be drawn, as :meth:`TextForm.describe_editor` does."""
    rows = ["." * size for _ in range(size)]
    rows[0], rows[-1] = "S" + rows[0][1:], rows[-1][1:] + "G"
    return CellsEditor(
        label="Maze",
        hint="# is a wall, . is open, S the start, G the goal; a row a line, or / between rows.",
        rows=size,
        columns=size,
        looks={
            ".": Look("open"),
            "#": Look("wall", ink="#ffffff", fill="#222222"),
            "S": Look("start", "S", fill="#009e73"),
            "G": Look("goal", "G", fill="#d55e00"),
        },
        tools=(
            Tool("wall", "#", turns={"#": "."}, keys=("w",), drags=True),
            Tool("open", ".", keys=("o",), drags=True),
            Tool("start", "S", clears={"S": "."}, keys=("s",)),
            Tool("goal", "G", clears={"G": "."}, keys=("g",)),
        ),
        empty="/".join(rows),
    ).describe()
