"""Reads the puzzles that a command is given, and refuses those that cannot be solved."""

import errno
import os
import re
import sys
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.config.columns import SYNONYMS, check_names, own_names, plain_name, split_fields
from mlx_trm.errors import DataError, listed, shown
from mlx_trm.system.bounded import open_unpacked
from mlx_trm.tasks import Task
from mlx_trm.tasks.pasted import PASTED

LISTED_PROBLEMS = 10
# A text with a larger share of the task's symbols and spaces is a puzzle, not a file's name.
MOSTLY = 0.85
# A puzzle whose number of cells is so far from a task's, as a share of it, may be meant for it.
NEARLY = 0.25
# What the text of a file, and a line of it besides, may take: 900,000 Sudokus. What is made of it
# takes up to six times as much.
_MOST_BYTES, _LINE_BYTES = 1 << 27, 60
# What stands for a byte that is not UTF-8.
_NO_UTF8 = re.compile("[\udc80-\udcff]")


class Given(NamedTuple):
    """A puzzle that may be solved.

    Attributes:
        where: its first line in a file, or empty.
        text: as it was given.
        inputs: (S,) uint8 tokens.
        labels: (S,) tokens of its answer; None where the task cannot tell.
        by_rules: whether the rules gave the answer; otherwise the data did.
    """

    where: str
    text: str
    inputs: np.ndarray
    labels: Optional[np.ndarray]
    by_rules: bool = False


class Unread(NamedTuple):
    """Why a task does not read a puzzle, and whether the puzzle seems to be one of the task's.

    Attributes:
        problem: in a line.
        symbols: the share of the text's characters that the task's puzzles have.
        near: whether there are about as many of them as the task's puzzles have cells.
    """

    problem: str
    symbols: float
    near: bool


def reading_problem(source: str, task: Task, content: Optional[bytes] = None) -> Optional[Unread]:
    """Say why a task does not read the first of the puzzles; None: it does.

    Arguments are those of :func:`read_given`.
    """
    text = ""
    try:
        _, text = next(read_texts(source, task, content))
        for puzzle in task.expand_puzzle(text):
            task.parse(puzzle)
    except DataError as error:
        cells = "".join(char for char in text if char not in PASTED and not char.isspace())
        known = sum(char in task.symbols for char in cells)
        near = abs(len(cells) / task.spec.seq_len - 1) <= NEARLY
        return Unread(str(error), known / max(len(cells), 1), near)
    return None


def read_given(source: str, task: Task, content: Optional[bytes] = None) -> List[Given]:
    """Read the puzzles and refuse those that cannot be solved.

    Args:
        source: a puzzle, the path of a file, or ``-``.
        task: reads them and, where it can, answers them.
        content: of standard input, where it has been read already.

    Raises:
        DataError: naming every puzzle that is malformed or has no answer.
    """
    places, texts, rows = [], [], []
    problems: List[Tuple[int, str]] = []
    for number, written in read_texts(source, task, content):
        for text in task.expand_puzzle(written):
            try:
                rows.append(task.parse(text))
                places.append(number)
                texts.append(text)
            except DataError as error:
                problems.append((number, str(error)))
    labels = None
    if rows:
        labels, unsolvable = task.answers(np.stack(rows))
        problems += [(places[i], text) for i, text in unsolvable.items()]
    name = "standard input" if source == "-" else source
    if problems:
        raise DataError(describe_problems(name, sorted(problems)))
    return [
        Given(
            f"{name}:{number}" if number else "",
            text,
            row,
            task.known_answer(text) if labels is None else labels[i],
            labels is not None,
        )
        for i, (number, text, row) in enumerate(zip(places, texts, rows))
    ]


def read_texts(
    source: str, task: Task, content: Optional[bytes] = None
) -> Iterator[Tuple[int, str]]:
    """Yield (line, puzzle) of a file or of standard input; line 0 for a puzzle itself.

    Arguments are those of :func:`read_given`. Of a CSV the column ``question`` is taken; text is
    split as the task says.

    Raises:
        DataError: if a file cannot be read or holds no puzzle.
    """
    path = os.path.expanduser(source)
    if source != "-" and not os.path.exists(path):
        # A typing error in a file's name should not be reported as a strange puzzle.
        named = "/" in source or re.search(r"\.[A-Za-z]\w*$", source) is not None
        named = named and "\n" not in source.strip()
        cells = sum(char in task.symbols or char in PASTED or char.isspace() for char in source)
        if named and cells <= MOSTLY * len(source) and not _is_read(source, task):
            raise DataError(f"{source}: no such file, and not a puzzle either")
        yield 0, source
        return
    if os.path.isdir(path):
        raise DataError(f"{source}: is a folder; name a file of puzzles")
    name = "standard input" if source == "-" else source
    try:
        if content is None:
            content = read_standard_input() if source == "-" else _read_file(path)
        if len(content) + _LINE_BYTES * content.count(b"\n") > _MOST_BYTES:
            raise ValueError("it has too many lines")
        if len(content) > _MOST_BYTES // 4 and not content.isascii():
            # One wide character makes all that stand with it four times as large.
            raise ValueError(f"it has more than {_MOST_BYTES // 4:,} bytes, and not ASCII alone")
        text = content.decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read ({error.strerror or error}); name a text file"
        ) from error
    except ValueError as error:
        raise DataError(f"{name}: {error}; give fewer puzzles at a time") from error
    found = _find_puzzles(name, text.splitlines(), task)
    # Of text that is not UTF-8 puzzles may still be: in SGF only comments are in other letters.
    if _NO_UTF8.search(text) and any(_NO_UTF8.search(puzzle) for _, puzzle in found or [(0, text)]):
        raise DataError(f"{name}: is not UTF-8 text; name a file of puzzles")
    if not found:
        raise DataError(f"{name}: holds no puzzle")
    yield from found


def _find_puzzles(name: str, lines: Sequence[str], task: Task) -> List[Tuple[int, str]]:
    """Find (line, puzzle) in the lines of a CSV or of text.

    Raises:
        DataError: naming the file, if it has other columns, or the task cannot tell its puzzles.
    """
    first = [word.strip(' "') for word in lines[0].split(",")] if lines else []
    columns = task.csv_columns
    header = own_names(first, columns)
    if "question" in header:
        check_names(f"{name}:1", first, columns)
        names = [plain_name(word) for word in first]
        return list(_questions(name, lines[1:], names, header.index("question"), task))
    if set(map(plain_name, [*(columns or ()), *SYNONYMS])) & set(header):
        wanted = " and ".join(columns) if columns else "one question (puzzle, quizzes)"
        raise DataError(
            f"{name}:1: the columns must be {wanted}, with others or without, not "
            f"{shown(','.join(first))}"
        )
    try:
        return list(task.split_puzzles(lines))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _is_read(text: str, task: Task) -> bool:
    """Say whether a task reads a puzzle in a text, such as an address that ends with one."""
    try:
        return bool([task.parse(puzzle) for puzzle in task.expand_puzzle(text)])
    except DataError:
        return False


def _read_file(path: str) -> bytes:
    """Read a file, unpacked where it is packed.

    Raises:
        OSError: if it cannot be read, or is damaged.
        ValueError: if it is too large.
    """
    with open_unpacked(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return content


def read_standard_input() -> bytes:
    """Read all of standard input, as much as a file of puzzles may have.

    Raises:
        DataError: if it is closed, as under cron, cannot be read, or does not end.
    """
    try:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "it is closed")
        content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"standard input: cannot be read ({error.strerror}); name a file of puzzles"
        ) from error
    if len(content) > _MOST_BYTES:
        raise DataError(
            f"standard input: has more than {_MOST_BYTES:,} bytes; give fewer puzzles at a time"
        )
    return content


def _questions(
    name: str, lines: Sequence[str], names: Sequence[str], column: int, task: Task
) -> Iterator[Tuple[int, str]]:
    """Yield (line, puzzle) of the lines below a CSV's header, of which the columns' names are."""
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        fields = split_fields(f"{name}:{number}", line)
        if len(fields) <= column or len(fields) < len(names):
            raise DataError(f"{name}:{number}: {len(fields)} columns, the header has {len(names)}")
        try:
            question = task.csv_question(dict(zip(names, fields)), fields[column])
        except DataError as error:
            raise DataError(f"{name}:{number}: {error}") from error
        if question is not None:
            yield number, question


def describe_problems(name: str, problems: Sequence[Tuple[int, str]]) -> str:
    """Write (line, problem) pairs, one a line; the first ten where there are more."""
    lines = [f"{name}:{number}: {text}" if number else text for number, text in problems]
    if len(lines) == 1:
        return lines[0]
    first = listed(lines, LISTED_PROBLEMS, "\n  ")
    return f"{name} has {len(lines)} problems:\n  {first}"
