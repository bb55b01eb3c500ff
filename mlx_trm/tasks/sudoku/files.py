"""Sudoku files: the CSV of Sudoku-Extreme (source,question,answer,rating), and plain text.

A CSV is read in blocks, vectorised, so that millions of puzzles take seconds and little memory.
Text holds one puzzle a line, perhaps followed by its answer; ``#`` begins a comment. Every puzzle
of a text file is solved, which proves that it has one solution, and rated; a CSV brings its own
answers and ratings, which are checked by the rules but not solved again.
"""

import csv
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, Optional, Tuple, Union

import numpy as np

from mlx_trm.datasets.writing import write_whole_text
from mlx_trm.errors import DataError
from mlx_trm.tasks.sudoku.solver import (
    PuzzleSet,
    conflicts,
    solve_puzzles,
    unit_cells,
    valid_grids,
)

COLUMNS = ("source", "question", "answer", "rating")

_BLOCK_BYTES = 1 << 23
_TEXT_ROWS = 4096
_BAD = 255
_NEWLINE, _COMMA = ord("\n"), ord(",")


def read_puzzles(path: Union[str, Path], size: int) -> Iterator[PuzzleSet]:
    """Read a file of puzzles in blocks: a CSV where its first line is a header, else text.

    Args:
        path: of a CSV or a text file, UTF-8.
        size: 4, 6 or 9.

    Returns:
        An iterator over parts of the file, in order; at least one puzzle in all.

    Raises:
        DataError: at the first thing wrong, naming file and line.
    """
    path = Path(path).expanduser()
    check_no_folder(path)
    found = False
    try:
        with open(path, "rb") as file:
            first = file.readline()
            header = b"question" in first.lower() and not first.lstrip().startswith(b"#")
            if header or path.suffix.lower() == ".csv":
                parts = _read_csv(path, file, first, size)
            else:
                file.seek(0)
                parts = _read_text(path, file, size)
            for part in parts:
                found = found or len(part.puzzles) > 0
                yield part
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not found:
        raise DataError(f"{path}: holds no puzzles")


def check_no_folder(path: Path) -> None:
    """Refuse a folder where a file should be.

    Raises:
        DataError: saying so.
    """
    if path.is_dir():
        hint = "; for a built dataset use data_dir" if (path / "train").is_dir() else ""
        raise DataError(f"{path}: is a folder, not a CSV or text file{hint}")


def write_csv(path: Union[str, Path], rows: PuzzleSet, source: str) -> None:
    """Write puzzles in the CSV's columns; the file is there whole or not at all.

    Args:
        path: of the file; replaced if it is there.
        rows: the puzzles.
        source: the first column.

    Raises:
        DataError: if it cannot be written.
    """
    write_whole_text(path, csv_text(rows, source))


def csv_text(rows: PuzzleSet, source: str) -> str:
    """Write puzzles as a CSV; ``source`` goes into the first column."""
    lines = [",".join(COLUMNS)]
    for puzzle, solution, rating in zip(*rows):
        lines.append(f"{source},{puzzle_text(puzzle)},{puzzle_text(solution)},{int(rating)}")
    return "\n".join(lines) + "\n"


def puzzle_text(cells: np.ndarray) -> str:
    """Write (S,) digits on one line, ``.`` for a blank."""
    return "".join("." if cell == 0 else str(int(cell)) for cell in cells)


def parse_puzzle(text: str, size: int) -> np.ndarray:
    """Read one puzzle.

    Args:
        text: S cells, ``.`` or ``0`` for a blank; white space does not count.
        size: 4, 6 or 9.

    Returns:
        (S,) uint8.

    Raises:
        DataError: if the number of cells is wrong, there is another character, or givens
            contradict each other.
    """
    text = "".join(text.split())
    problem = _cells_problem(text, size, "the puzzle")
    if problem is None:
        cells = np.array([0 if char == "." else int(char) for char in text], dtype=np.uint8)
        problem = _givens_problem(cells, size)
    if problem is not None:
        raise DataError(problem)
    return cells


def _cells_problem(text: str, size: int, what: str) -> Optional[str]:
    """Say what keeps a text from being S cells."""
    if len(text) != size * size:
        return f"{what} has {len(text)} cells, {size}x{size} needs {size * size}"
    for place, char in enumerate(text):
        if char not in ".0123456789"[: size + 2]:
            return f"{what} has {char!r} in {_place(place, size)}; allowed are 1-{size}, . and 0"
    return None


def _givens_problem(cells: np.ndarray, size: int) -> Optional[str]:
    """Say which givens contradict each other."""
    if not conflicts(cells[None], size).any():
        return None
    for number, unit in enumerate(unit_cells(size)):
        digits, times = np.unique(cells[unit][cells[unit] > 0], return_counts=True)
        if (times > 1).any():
            name = ("row", "column", "box")[number // size]
            digit = int(digits[times > 1][0])
            return f"contradictory givens: {digit} stands twice in {name} {number % size + 1}"
    return None


def _place(cell: int, size: int) -> str:
    return f"row {cell // size + 1} column {cell % size + 1}"


def _row_problem(question: str, answer: Optional[str], size: int) -> Optional[str]:
    """Say what is wrong with a puzzle and its answer, None if nothing."""
    problem = _cells_problem(question, size, "the question")
    if problem is not None:
        return problem
    cells = np.array([0 if char == "." else int(char) for char in question], dtype=np.uint8)
    problem = _givens_problem(cells, size)
    if problem is not None or answer is None:
        return problem
    problem = _cells_problem(answer, size, "the answer")
    if problem is not None:
        return problem
    solved = np.array([0 if char == "." else int(char) for char in answer], dtype=np.uint8)
    for cell in np.flatnonzero((cells != 0) & (cells != solved)):
        given, other = int(cells[cell]), puzzle_text(solved[cell : cell + 1])
        return f"the answer has {other} in {_place(int(cell), size)}, where {given} is given"
    if not valid_grids(solved[None], size)[0]:
        twice = _givens_problem(solved, size)
        if twice is None:
            return f"the answer has a blank in {_place(int(np.argmin(solved)), size)}"
        return f"the answer is wrong: {twice.split(': ')[1]}"
    return None


def _read_text(path: Path, file: BinaryIO, size: int) -> Iterator[PuzzleSet]:
    """Read puzzles one a line, and solve them."""
    rows: List[Tuple[int, str, Optional[str]]] = []
    for number, line in enumerate(file, 1):
        words = _decode(path, line, number).split("#")[0].replace(",", " ").split()
        if not words:
            continue
        if len(words) > 2:
            wanted = "expected a puzzle, or a puzzle and its answer"
            raise DataError(f"{path}:{number}: {len(words)} columns; {wanted}")
        answer = words[1] if len(words) == 2 else None
        problem = _row_problem(words[0], answer, size)
        if problem is not None:
            raise DataError(f"{path}:{number}: {problem}")
        rows.append((number, words[0], answer))
        if len(rows) == _TEXT_ROWS:
            yield _solved(path, rows, size)
            rows = []
    if rows:
        yield _solved(path, rows, size)


def _solved(path: Path, rows: List[Tuple[int, str, Optional[str]]], size: int) -> PuzzleSet:
    puzzles = np.array(
        [[0 if char == "." else int(char) for char in row[1]] for row in rows], dtype=np.uint8
    )
    found = solve_puzzles(puzzles, size)
    for at in np.flatnonzero(found.counts != 1):
        where = f"{path}:{rows[at][0]}"
        if found.counts[at] == 0:
            raise DataError(f"{where}: the puzzle has no solution")
        first, second = found.solutions[at]
        cell = int(np.argmax(first != second))
        raise DataError(
            f"{where}: the puzzle has more than one solution: {_place(cell, size)} can be "
            f"{min(first[cell], second[cell])} or {max(first[cell], second[cell])}"
        )
    return PuzzleSet(puzzles, found.solutions[:, 0], found.guesses)


def _decode(path: Path, line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: is not UTF-8 text") from error


def _read_csv(path: Path, file: BinaryIO, header: bytes, size: int) -> Iterator[PuzzleSet]:
    """Read the lines after the header, in blocks of whole lines."""
    try:
        fields = next(csv.reader([_decode(path, header, 1)]), [])
    except csv.Error as error:  # NUL bytes before Python 3.11, or a field without end
        raise DataError(f"{path}:1: {error}; the columns must be {','.join(COLUMNS)}") from error
    names = [name.strip().lower() for name in fields]
    if not {"question", "answer"} <= set(names):
        given = ",".join(names) if any(names) else "nothing"
        raise DataError(f"{path}:1: the columns must be {','.join(COLUMNS)}, not {given[:80]}")
    line, rest = 2, b""
    while True:
        read = file.read(_BLOCK_BYTES)
        block = rest + read
        if read:
            whole = block.rfind(b"\n") + 1
            block, rest = block[:whole], block[whole:]
        elif block and not block.endswith(b"\n"):
            block += b"\n"
        if block:
            yield _CsvBlock(path, block, names, line).rows(size)
            line += block.count(b"\n")
        if not read:
            return


class _CsvBlock:
    """Whole lines of a CSV as an array of bytes, with the borders of its fields."""

    def __init__(self, path: Path, block: bytes, names: List[str], line: int) -> None:
        self.path = path
        block = block.replace(b"\r\n", b"\n")
        if not block.isascii():
            self._check_utf8(block, line)
        if b'"' in block:
            block = self._unquoted(block, names, line)
        self.bytes = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero(self.bytes == _NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        commas = np.flatnonzero(self.bytes == _COMMA)
        number = np.diff(np.searchsorted(commas, ends), prepend=0)
        filled = ends > starts
        wrong = np.flatnonzero(filled & (number != len(names) - 1))
        if len(wrong):
            columns, at = int(number[wrong[0]]) + 1, line + int(wrong[0])
            raise DataError(f"{path}:{at}: {columns} columns, the header has {len(names)}")
        self.lines = line + np.flatnonzero(filled)
        borders = np.column_stack(
            [starts[filled] - 1, commas.reshape(-1, len(names) - 1), ends[filled]]
        )
        self.fields: Dict[str, Tuple[np.ndarray, np.ndarray]] = {
            name: (borders[:, i] + 1, borders[:, i + 1]) for i, name in enumerate(names)
        }

    def _check_utf8(self, block: bytes, line: int) -> None:
        for number, text in enumerate(block.split(b"\n"), line):
            _decode(self.path, text, max(2, number))

    def _unquoted(self, block: bytes, names: List[str], line: int) -> bytes:
        """Take quotes away; commas within them become semicolons."""
        lines = []
        for number, text in enumerate(block.decode("utf-8").split("\n")[:-1], line):
            try:
                fields = next(csv.reader([text], strict=True), [])
            except csv.Error as error:
                raise DataError(f"{self.path}:{number}: {error}") from error
            lines.append(",".join(field.replace(",", ";") for field in fields))
        del names
        return ("\n".join(lines) + "\n").encode()

    def rows(self, size: int) -> PuzzleSet:
        """Turn the fields into arrays and check them."""
        puzzles, bad = self._cells("question", size)
        solutions, wrong = self._cells("answer", size)
        bad |= wrong | ~valid_grids(solutions, size)
        bad |= ((puzzles != 0) & (puzzles != solutions)).any(axis=1)
        ratings = np.full(len(bad), -1, dtype=np.int64)
        if "rating" in self.fields:
            ratings, wrong = self._numbers("rating")
            bad |= wrong
        if bad.any():
            self._refuse(int(np.argmax(bad)), size)
        return PuzzleSet(puzzles, solutions, ratings)

    def _cells(self, name: str, size: int) -> Tuple[np.ndarray, np.ndarray]:
        """Return (n, S) digits of a column, and (n,) where it is malformed."""
        table = np.full(256, _BAD, dtype=np.uint8)
        table[[ord("."), ord("0")]] = 0
        table[ord("1") : ord("1") + size] = np.arange(1, size + 1)
        starts, ends = self.fields[name]
        bad = ends - starts != size * size
        if not len(bad):
            return np.zeros((0, size * size), dtype=np.uint8), bad
        if bad.all():
            self._refuse(0, size)
        windows = np.lib.stride_tricks.sliding_window_view(self.bytes, size * size)
        cells = table[windows[np.where(bad, starts[~bad][:1], starts)]]
        bad |= (cells == _BAD).any(axis=1)
        return cells, bad

    def _numbers(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """Return (n,) whole numbers of a column, and (n,) where it is malformed."""
        starts, ends = self.fields[name]
        width = ends - starts
        bad = (width < 1) | (width > 18)
        values = np.zeros(len(starts), dtype=np.int64)
        for at in range(int(np.clip(width.max(initial=0), 0, 18))):
            inside = at < width
            digit = self.bytes[np.where(inside, starts + at, 0)].astype(np.int64) - ord("0")
            bad |= inside & ((digit < 0) | (digit > 9))
            values = np.where(inside, values * 10 + digit, values)
        return values, bad

    def _refuse(self, row: int, size: int) -> None:
        """Say what is wrong with a row."""
        text = {
            name: self.bytes[starts[row] : ends[row]].tobytes().decode("utf-8", "replace")
            for name, (starts, ends) in self.fields.items()
        }
        problem = _row_problem(text["question"], text["answer"], size)
        if problem is None:
            problem = f"the rating must be a whole number, not {text['rating'][:40]!r}"
        raise DataError(f"{self.path}:{self.lines[row]}: {problem}")
