"""Maze files: the CSV of Maze-Hard (source,question,answer,rating), and plain text.

A CSV brings its answers, which are checked by the rules. Text holds mazes as blocks of lines with
a blank line between them, or one a line with ``/`` between its rows; their answers are computed.
There are no comments in text, because ``#`` is a wall.

Reference: dataset/build_maze_dataset.py.
"""

import csv
from math import isqrt
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from mlx_trm.datasets.writing import write_whole_text
from mlx_trm.errors import DataError
from mlx_trm.tasks.maze.generator import MazeSet
from mlx_trm.tasks.maze.paths import GOAL, PATH, START, UNREACHED, judge, place_name, solve_mazes
from mlx_trm.tasks.sudoku.files import check_no_folder

COLUMNS = ("source", "question", "answer", "rating")
# Token t is SYMBOLS[t]; 0, padding, is no cell of a maze. In one line a point stands for a space.
SYMBOLS = "?# SGo"


def read_mazes(path: Union[str, Path], size: int) -> MazeSet:
    """Read a file of mazes: a CSV where its first line is a header, else text.

    Args:
        path: of a CSV or a text file, UTF-8.
        size: rows and columns.

    Returns:
        Its mazes, at least one, in their order.

    Raises:
        DataError: naming file and line of something wrong.
    """
    path = Path(path).expanduser()
    check_no_folder(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    lines = _lines(path, content)
    is_csv = path.suffix.lower() == ".csv" or (lines and "question" in lines[0].lower())
    mazes = _read_csv(path, lines, size) if is_csv else _read_text(path, lines, size)
    if not len(mazes.inputs):
        raise DataError(f"{path}: holds no mazes")
    return mazes


def _lines(path: Path, content: bytes) -> List[str]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{number}: is not UTF-8 text") from error
    lines = text.split("\n")
    return [line[:-1] if line.endswith("\r") else line for line in lines]


# CSV -------------------------------------------------------------------------------------------


def _read_csv(path: Path, lines: Sequence[str], size: int) -> MazeSet:
    """Read the questions and answers below a header."""
    names = [name.strip().lower() for name in _fields(path, 1, lines[0])]
    if not {"question", "answer"} <= set(names):
        given = ",".join(names) if any(names) else "nothing"
        raise DataError(f"{path}:1: the columns must be {','.join(COLUMNS)}, not {given[:80]}")
    question, answer = names.index("question"), names.index("answer")
    numbers: List[int] = []
    texts: Tuple[List[str], List[str]] = ([], [])
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        fields = _fields(path, number, line)
        if len(fields) != len(names):
            raise DataError(f"{path}:{number}: {len(fields)} columns, the header has {len(names)}")
        numbers.append(number)
        texts[0].append(fields[question])
        texts[1].append(fields[answer])
    inputs, labels = _cells(texts[0], size), _cells(texts[1], size)
    judged = judge(inputs, labels)
    good = judged.valid & (inputs > 0).all(axis=1)
    for row in np.flatnonzero(~good)[:1]:
        problem = _row_problem(texts[0][row], texts[1][row], size)
        raise DataError(f"{path}:{numbers[row]}: {problem}")
    return MazeSet(inputs, labels, judged.steps)


def _fields(path: Path, number: int, line: str) -> List[str]:
    """Split a line; most have no quotes, and then a field may be of any length."""
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise DataError(f"{path}:{number}: {error}") from error


def _cells(texts: Sequence[str], size: int) -> np.ndarray:
    """Turn texts into (n, S) uint8 tokens; what cannot be a cell becomes padding."""
    table = np.zeros(256, dtype=np.uint8)
    table[[ord(symbol) for symbol in SYMBOLS[1:]]] = range(1, len(SYMBOLS))
    blank = b"\0" * (size * size)
    rows = (text.encode("ascii", "replace") for text in texts)
    joined = b"".join(row if len(row) == len(blank) else blank for row in rows)
    return table[np.frombuffer(joined, dtype=np.uint8)].reshape(-1, size * size)


def _row_problem(question: str, answer: str, size: int) -> str:
    """Say what is wrong with a row of a CSV."""
    problem = _text_problem(question, size, "question") or _text_problem(answer, size, "answer")
    if problem is not None:
        return problem
    maze, solved = _cells([question], size), _cells([answer], size)
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


def _read_text(path: Path, lines: Sequence[str], size: int) -> MazeSet:
    """Read mazes and solve them."""
    numbers, mazes = [], []
    for number, text in split_mazes(lines, size):
        try:
            mazes.append(parse_maze(text, size))
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        numbers.append(number)
    inputs = np.array(mazes, dtype=np.uint8).reshape(-1, size * size)
    labels, problems = solve_mazes(inputs)
    for row in sorted(problems)[:1]:
        raise DataError(f"{path}:{numbers[row]}: {problems[row]}")
    return MazeSet(inputs, labels, (labels == PATH).sum(axis=1) + 1)


def split_mazes(lines: Iterable[str], size: int) -> Iterator[Tuple[int, str]]:
    """Find the mazes in lines of text.

    A line that is a whole maze stands alone. Other lines belong together up to the next blank line;
    a line of exactly ``size`` spaces is blank only where ``size`` rows stand above it.

    Returns:
        Pairs of the number of a maze's first line, from 1, and its text.
    """
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
            point or a space; ``?`` is no cell at all, as a model may predict.
        size: rows and columns.

    Returns:
        (S,) uint8 tokens; that start and goal are there is not checked.

    Raises:
        DataError: if the number of cells is wrong, or there is another character.
    """
    rows = text.replace("\r", "").strip("\n").split("\n")
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
    lines = [",".join(COLUMNS)]
    for maze, label, steps in zip(*mazes):
        question, answer = ("".join(SYMBOLS[token] for token in cells) for cells in (maze, label))
        lines.append(f"{source},{question},{answer},{int(steps)}")
    return "\n".join(lines) + "\n"


def write_csv(path: Union[str, Path], mazes: MazeSet, source: str) -> None:
    """Write mazes in the CSV's columns; the file is there whole or not at all.

    Args:
        path: of the file; replaced if it is there.
        mazes: what is written.
        source: the first column.

    Raises:
        DataError: if it cannot be written.
    """
    write_whole_text(path, csv_text(mazes, source))
