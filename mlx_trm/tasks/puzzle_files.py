"""Files of puzzles: a CSV with a column for the puzzle and one for its answer, or plain text.

A CSV is read in blocks whose fields are found by NumPy, so that millions of puzzles take seconds
and little memory. What the cells of a puzzle are, and what the lines of a text mean, each task
says itself.
"""

from dataclasses import dataclass
from itertools import chain
from itertools import count as numbers_from
from itertools import takewhile
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

import numpy as np

from mlx_trm.config.columns import (
    SYNONYMS,
    check_names,
    has_columns,
    own_names,
    plain_name,
    split_fields,
)
from mlx_trm.config.sections import TaskConfig
from mlx_trm.errors import DataError, shown
from mlx_trm.system.bounded import open_unpacked
from mlx_trm.system.files import hash_file

COLUMNS = ("source", "question", "answer", "rating")
T = TypeVar("T")
_BLOCK_BYTES = 1 << 23
# Bytes of a line; a maze of 255 x 255 and its answer have 130,000.
_MOST_LINE = 1 << 20
_NEWLINE, _COMMA = ord("\n"), ord(",")
# Stands for a comma within quotes, which separates nothing.
_INNER_COMMA = "\x1f"


@dataclass
class PuzzleFileConfig(TaskConfig):
    """Settings of a task whose puzzles stand in such files."""

    columns: Optional[List[str]] = None
    """Columns of the puzzle and of its answer in CSV files; unset: known by their usual names."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = super().problems()
        if self.columns is not None:
            names = {plain_name(name) for name in self.columns}
            if len(self.columns) != 2 or len(names) != 2 or "" in names:
                found.append(
                    "columns: name two, that of the puzzle and that of its answer, such as "
                    "[quizzes, solutions]"
                )
        return found


class FilePuzzles(NamedTuple):
    """Some puzzles of a file, with what it says of them.

    Attributes:
        inputs: (n, S) uint8 tokens.
        labels: (n, S) uint8 tokens of their answers.
        ratings: (n,) int64; None where the file has none.
        sources: n words of its column ``source``; None where it has none.
    """

    inputs: np.ndarray
    labels: np.ndarray
    ratings: Optional[np.ndarray] = None
    sources: Optional[List[str]] = None


class CsvHead(NamedTuple):
    """What the first line of a CSV tells.

    Attributes:
        names: of the columns, as they stand there, or as they are called where they do not.
        columns: those of the puzzle and of its answer; None: known by their usual names.
        is_row: the line names nothing, but is a row already.
    """

    names: List[str]
    columns: Optional[Sequence[str]] = None
    is_row: bool = False


def count_first(part: Any) -> int:
    """Give the length of the first array of a part of a file."""
    return len(part[0])


class CsvBlock:
    """Whole lines of a CSV as an array of bytes, with the borders of their fields.

    Attributes:
        fields: by column, (n,) places where a row's field begins and where it ends.
        columns: those of the puzzle and of its answer; None: known by their usual names.
    """

    columns: Optional[Sequence[str]] = None

    def __init__(self, path: Path, block: bytes, names: List[str], line: int) -> None:
        """Find the fields.

        Args:
            path: of the file, for messages.
            block: lines, each with its end.
            names: of the columns.
            line: number of the first line.

        Raises:
            DataError: if a line is not UTF-8, or has another number of fields.
        """
        block = block.replace(b"\r\n", b"\n")
        if b'"' in block or not block.isascii():
            lines = block.split(b"\n")[:-1]
            rows = (_split(path, number, text) for number, text in enumerate(lines, line))
            block = "".join(",".join(row) + "\n" for row in rows).encode()
        self._path = path
        self._bytes = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero(self._bytes == _NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        commas = np.flatnonzero(self._bytes == _COMMA)
        number = np.diff(np.searchsorted(commas, ends), prepend=0)
        filled = ends > starts
        for row in np.flatnonzero(filled & (number != len(names) - 1)):
            if block[starts[row] : ends[row]].strip():
                raise DataError(
                    f"{path}:{line + row}: {number[row] + 1} columns, the header has {len(names)}"
                )
            filled[row] = False
        self._lines = line + np.flatnonzero(filled)
        inner = commas.reshape(-1, len(names) - 1)
        borders = np.column_stack([starts[filled] - 1, inner, ends[filled]])
        self.fields: Dict[str, Tuple[np.ndarray, np.ndarray]] = {
            name: (borders[:, i] + 1, borders[:, i + 1]) for i, name in enumerate(names)
        }

    def cut_behind_misfit(self, count: int) -> None:
        """Leave out the rows behind the first one whose question or answer has another length.

        That one is refused, so they need not be read; a million short lines as puzzles of 900 cells
        would take gigabytes.

        Args:
            count: characters of a field.
        """
        fits = np.ones(len(self._lines), dtype=bool)
        for column in ("question", "answer"):
            starts, ends = self.fields[column]
            fits &= ends - starts == count
        if not fits.all():
            stop = int(fits.argmin()) + 1
            self._lines = self._lines[:stop]
            self.fields = {name: (a[:stop], b[:stop]) for name, (a, b) in self.fields.items()}

    def cells(self, column: str, count: int, table: np.ndarray) -> np.ndarray:
        """Turn a column's characters into tokens.

        Args:
            column: one of ``fields``.
            count: characters of a field.
            table: (256,) uint8, the token of each character.

        Returns:
            (n, count) uint8; a field of another length is made of ``table[0]``.
        """
        starts, ends = self.fields[column]
        fits = ends - starts == count
        if not fits.any():
            return np.full((len(fits), count), table[0])
        windows = np.lib.stride_tricks.sliding_window_view(self._bytes, count)
        cells = table[windows[np.where(fits, starts, starts[fits][0])]]
        cells[~fits] = table[0]
        return cells

    def numbers(self, column: str) -> Tuple[np.ndarray, np.ndarray]:
        """Give (n,) int64 whole numbers of a column, and (n,) whether a field is no such number."""
        starts, ends = self.fields[column]
        width = ends - starts
        bad = (width < 1) | (width > 18)
        values = np.zeros(len(starts), dtype=np.int64)
        for at in range(int(np.clip(width.max(initial=0), 0, 18))):
            inside = at < width
            digit = self._bytes[np.where(inside, starts + at, 0)].astype(np.int64) - ord("0")
            bad |= inside & ((digit < 0) | (digit > 9))
            values = np.where(inside, values * 10 + digit, values)
        return values, bad

    def text(self, column: str, row: int) -> str:
        """Give a field as text."""
        starts, ends = self.fields[column]
        text = self._bytes[starts[row] : ends[row]].tobytes().decode("utf-8", "replace")
        return text.replace(_INNER_COMMA, ",")

    def texts(self, column: str) -> Optional[List[str]]:
        """Give all fields of a column as text; None where there is no such column."""
        if column not in self.fields:
            return None
        return [self.text(column, row) for row in range(len(self._lines))]

    def refuse(self, row: int, problem: str) -> NoReturn:
        """Raise a DataError that names the file and a row's line."""
        raise DataError(f"{self._path}:{self._lines[row]}: {problem}")


def read_puzzle_file(
    path: Union[str, Path],
    from_csv: Callable[[CsvBlock], T],
    from_text: Callable[[Path, Iterator[Tuple[int, str]]], Iterable[T]],
    comments: bool,
    columns: Optional[Sequence[str]] = None,
    what: str = "puzzles",
    count: Callable[[T], int] = count_first,
    *,
    errors: str = "strict",
    read_head: Optional[Callable[[List[str]], CsvHead]] = None,
) -> Iterator[T]:
    """Read a file part by part; what it is, its first line tells.

    Args:
        path: of a CSV or a text file, UTF-8.
        from_csv: makes a part of a block of a CSV.
        from_text: makes parts of the path and of numbered lines of text.
        comments: a first line that begins with ``#`` is no header.
        columns: those of the puzzle and of its answer in a CSV; None: known by their usual names.
        what: it should hold, for the message where it holds none.
        count: gives how many of these a part has.
        errors: how text is decoded that is not UTF-8, as Python's ``bytes.decode`` has it.
        read_head: in place of ``columns`` tells what the fields of a first line are.

    Returns:
        An iterator over the parts, in the file's order.

    Raises:
        DataError: at the first thing wrong, naming file and line, or where there is nothing.
    """
    path, found = Path(path).expanduser(), 0
    read_head = read_head or (lambda names: CsvHead(names, columns))
    for part in _read_parts(path, from_csv, from_text, comments, read_head, errors):
        found += count(part)
        yield part
    if not found:
        raise DataError(f"{path}: holds no {what}")


def _read_parts(
    path: Path,
    from_csv: Callable[[CsvBlock], T],
    from_text: Callable[[Path, Iterator[Tuple[int, str]]], Iterable[T]],
    comments: bool,
    read_head: Callable[[List[str]], CsvHead],
    errors: str,
) -> Iterator[T]:
    check_no_folder(path)
    try:
        with open_unpacked(path) as file:
            first = _read_line(path, 1, file)
            head = read_head(_first_fields(first))
            header = _is_header(first, head.columns) and not (
                comments and first.lstrip().startswith(b"#")
            )
            if header or head.is_row or ".csv" in path.name.lower():
                yield from map(from_csv, _blocks(path, file, first, head))
            else:
                more = (_read_line(path, number, file) for number in numbers_from(2))
                lines = enumerate(chain([first], takewhile(bool, more)), 1)
                yield from from_text(
                    path, ((n, _decode(path, n, line, errors)) for n, line in lines)
                )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_no_folder(path: Path) -> None:
    """Refuse a folder where a file should be.

    Raises:
        DataError: saying so.
    """
    if path.is_dir():
        hint = "; for a built dataset use data_dir" if (path / "train").is_dir() else ""
        raise DataError(f"{path}: is a folder, not a CSV or text file{hint}")


def hash_puzzle_file(path: Path) -> str:
    """Return the SHA-256 of a file of puzzles.

    Raises:
        DataError: if it is a folder, or cannot be read.
    """
    check_no_folder(path)
    return hash_file(path)


def csv_of(rows: Iterable[Tuple[str, str, int]], source: str) -> str:
    """Write question, answer and rating of each puzzle as a CSV; ``source`` is the first column."""
    lines = (f"{source},{question},{answer},{rating}\n" for question, answer, rating in rows)
    return ",".join(COLUMNS) + "\n" + "".join(lines)


def _first_fields(line: bytes) -> List[str]:
    """Split a first line, whatever it is, at its commas."""
    text = line.decode("utf-8-sig", "replace").strip()
    try:
        return split_fields("", text)
    except DataError:
        return text.split(",")


def _blocks(path: Path, file: BinaryIO, first: bytes, head: CsvHead) -> Iterator[CsvBlock]:
    """Yield the lines of a CSV, but a header, in blocks of whole lines."""
    columns, header = head.columns, first.rstrip(b"\r\n")
    if b"\r" in header:
        raise DataError(f"{path}:1: lines end with carriage returns alone; end them with newlines")
    there = head.names if head.is_row else _split(path, 1, header)
    if columns is not None and not has_columns(there, columns):
        raise DataError(
            f"{path}:1: has not each of the columns {shown(', '.join(columns))} once, but "
            f"{shown(','.join(there)) if any(there) else 'nothing'}; task.columns names others"
        )
    check_names(f"{path}:1", there, columns)
    names = own_names(there, columns)
    if not all(names.count(needed) == 1 for needed in SYNONYMS):
        given = shown(",".join(names)) if any(names) else "nothing"
        raise DataError(
            f"{path}:1: the columns must be one question (puzzle, quizzes) and one answer "
            f"(solution, solutions), with others or without, not {given}; "
            "task.columns=[PUZZLE,ANSWER] names others"
        )
    line, rest = (1, first) if head.is_row else (2, b"")
    while True:
        read = file.read(_BLOCK_BYTES)
        block = rest + read
        if read:
            whole = block.rfind(b"\n") + 1
            block, rest = block[:whole], block[whole:]
            if len(rest) > _MOST_LINE:
                _refuse_line(path, line + block.count(b"\n"))
        elif block and not block.endswith(b"\n"):
            block += b"\n"
        if block:
            made = CsvBlock(path, block, names, line)
            made.columns = columns
            yield made
            line += block.count(b"\n")
        if not read:
            return


def _is_header(line: bytes, columns: Optional[Sequence[str]]) -> bool:
    """Whether a first line names columns: one of them is the question."""
    text = line.decode("utf-8-sig", "replace").replace('"', "")
    return "question" in own_names(text.split(","), columns) or "question" in text.lower()


def _read_line(path: Path, number: int, file: BinaryIO) -> bytes:
    line = file.readline(_MOST_LINE + 1)
    if len(line) > _MOST_LINE:
        _refuse_line(path, number)
    return line


def _refuse_line(path: Path, number: int) -> NoReturn:
    raise DataError(f"{path}:{number}: has more than {_MOST_LINE:,} bytes, which no puzzle needs")


def _split(path: Path, number: int, line: bytes) -> List[str]:
    """Split a line at its commas; those within quotes become others."""
    fields = split_fields(f"{path}:{number}", _decode(path, number, line))
    return [field.replace(",", _INNER_COMMA) for field in fields]


def _decode(path: Path, number: int, line: bytes, errors: str = "strict") -> str:
    """Turn a line into text."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: is not UTF-8 text") from error
