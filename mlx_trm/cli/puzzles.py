"""Reads the puzzles that a command is given, and refuses those that cannot be solved."""

import os
import re
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks import Sudoku, Task
from mlx_trm.tasks.sudoku_solver import solve_puzzles

LISTED_PROBLEMS = 10
# A text with a larger share of digits, points and spaces is a puzzle, not a file's name.
MOSTLY = 0.85


class Given(NamedTuple):
    """A puzzle that may be solved.

    Attributes:
        where: its line in a file, or empty.
        text: as it was given.
        inputs: (S,) uint8 tokens.
        labels: (S,) uint8 tokens of its one answer; None where the task cannot tell.
    """

    where: str
    text: str
    inputs: np.ndarray
    labels: Optional[np.ndarray]


def read_given(source: str, task: Task) -> List[Given]:
    """Read the puzzles and refuse those that cannot be solved.

    Args:
        source: a puzzle, the path of a file, or ``-``.
        task: reads them and, for Sudoku, knows whether there is exactly one solution.

    Raises:
        DataError: naming every puzzle that is malformed or has not exactly one solution.
    """
    places, texts, rows = [], [], []
    problems: List[Tuple[int, str]] = []
    for number, text in read_lines(source):
        try:
            rows.append(task.parse(text))
            places.append(number)
            texts.append(text)
        except DataError as error:
            problems.append((number, str(error)))
    labels = None
    if rows and isinstance(task, Sudoku):
        labels, unsolvable = only_answers(task, np.stack(rows))
        problems += [(places[i], text) for i, text in unsolvable.items()]
    name = "standard input" if source == "-" else source
    if problems:
        raise DataError(describe_problems(name, sorted(problems)))
    return [
        Given(
            f"{name}:{number}" if number else "", text, row, None if labels is None else labels[i]
        )
        for i, (number, text, row) in enumerate(zip(places, texts, rows))
    ]


def read_lines(source: str) -> Iterator[Tuple[int, str]]:
    """Yield (line, puzzle) of a file or of standard input; line 0 for a puzzle itself.

    In text ``#`` begins a comment; of a CSV the column ``question`` is taken.

    Raises:
        DataError: if a file cannot be read or holds no puzzle.
    """
    path = os.path.expanduser(source)
    if source != "-" and not os.path.exists(path):
        # A typing error in a file's name should not be reported as a strange puzzle.
        cells = len(re.findall(r"[\d.\s]", source))
        named = re.search(r"\.[A-Za-z]\w*$", source) and cells <= MOSTLY * len(source)
        if named or "/" in source:
            raise DataError(f"{source}: no such file, and not a puzzle either")
        yield 0, source
        return
    if os.path.isdir(path):
        raise DataError(f"{source}: is a folder; name a file with one puzzle a line")
    name = "standard input" if source == "-" else source
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(path).read_bytes()
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); name a text file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 text; name a file with one puzzle a line") from error
    puzzles = [line.split("#")[0].strip() for line in lines]
    header = [word.strip().lower() for word in puzzles[0].split(",")] if puzzles else []
    if "question" in header:
        column = header.index("question")
        puzzles = [""] + [(line.split(",") + [line] * column)[column] for line in puzzles[1:]]
    if not any(puzzles):
        raise DataError(f"{name}: holds no puzzle; write one a line")
    yield from ((number, text) for number, text in enumerate(puzzles, start=1) if text)


def only_answers(task: Sudoku, inputs: np.ndarray) -> Tuple[np.ndarray, Dict[int, str]]:
    """Find the one answer of each puzzle.

    Args:
        task: of the puzzles.
        inputs: (n, S) uint8 tokens.

    Returns:
        (n, S) uint8 tokens, and what is wrong with the rows that have none or more than one.
    """
    size = task.config.size
    found = solve_puzzles(inputs.astype(np.int64) - 1, size)
    problems = {}
    for row in np.flatnonzero(found.counts != 1):
        first, second = found.solutions[row]
        cell = int(np.argmax(first != second))
        problems[int(row)] = (
            f"the puzzle has more than one solution: row {cell // size + 1} column "
            f"{cell % size + 1} can be {min(first[cell], second[cell])} or "
            f"{max(first[cell], second[cell])}"
            if found.counts[row]
            else "the puzzle has no solution"
        )
    return np.asarray(found.solutions[:, 0] + 1, dtype=np.uint8), problems


def describe_problems(name: str, problems: Sequence[Tuple[int, str]]) -> str:
    """Write (line, problem) pairs, one a line; the first ten where there are more."""
    lines = [f"{name}:{number}: {text}" if number else text for number, text in problems]
    if len(lines) == 1:
        return lines[0]
    shown = lines[:LISTED_PROBLEMS]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    return "\n  ".join([f"{name} has {len(lines)} problems:", *shown])
