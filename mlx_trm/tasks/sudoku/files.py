"""Sudoku files: the CSV of Sudoku-Extreme (source,question,answer,rating), and plain text.

Text holds one puzzle a line, perhaps followed by its answer; ``#`` begins a comment. Every puzzle
of a text file is solved, which proves that it has one solution, and rated; a CSV brings its own
answers and ratings, which are checked by the rules but not solved again.
"""

from functools import lru_cache, partial
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from mlx_trm.datasets.sources import SAMPLES
from mlx_trm.errors import DataError
from mlx_trm.tasks.pasted import clean_cells, fill_blanks, split_numbers
from mlx_trm.tasks.puzzle_files import CsvBlock, FilePuzzles, csv_of, read_puzzle_file
from mlx_trm.tasks.sudoku.solver import (
    PuzzleSet,
    SolveResult,
    conflicts,
    solve_puzzles,
    unit_cells,
    valid_grids,
)
from mlx_trm.tasks.text import place_name

SAMPLE_FILES = {"train": "sudoku_hard_train.csv", "test": "sudoku_hard_test.csv"}
_TEXT_ROWS = 4096
_BAD = 255
# What the digits are written as; a Sudoku of 16 rows has all of them.
DIGITS = "123456789ABCDEFG"
# Puzzles, and what reads their words in the column source, where there is one. Most callers want
# no such words, and reading them takes far longer than the puzzles.
_Part = Tuple[PuzzleSet, Callable[[], Optional[List[str]]]]


def read_puzzles(
    path: Union[str, Path], size: int, columns: Optional[Sequence[str]] = None
) -> Iterator[PuzzleSet]:
    """Read a file of puzzles in blocks: a CSV where its first line is a header, else text.

    Args:
        path: of a CSV or a text file, UTF-8.
        size: one of :data:`~mlx_trm.tasks.sudoku.solver.SIZES`.
        columns: of a CSV, those of the puzzle and of its answer; None: known by their usual names.

    Returns:
        An iterator over parts of the file, in order; at least one puzzle in all.

    Raises:
        DataError: at the first thing wrong, naming file and line.
    """
    for part, _ in _read_parts(path, size, columns):
        yield part


def read_with_sources(
    path: Union[str, Path], size: int, columns: Optional[Sequence[str]] = None
) -> Iterator[FilePuzzles]:
    """Read a file of puzzles as tokens, with all that it says; else as :func:`read_puzzles`."""
    for part, sources in _read_parts(path, size, columns):
        rated = part.ratings if (part.ratings >= 0).all() else None
        inputs, labels = (np.asarray(c + 1, np.uint8) for c in (part.puzzles, part.solutions))
        yield FilePuzzles(inputs, labels, rated, sources())


def _read_parts(
    path: Union[str, Path], size: int, columns: Optional[Sequence[str]]
) -> Iterator[_Part]:
    def from_csv(block: CsvBlock) -> _Part:
        return _read_csv(block, size), partial(block.texts, "source")

    def from_text(file: Path, lines: Iterator[Tuple[int, str]]) -> Iterator[_Part]:
        return ((rows, lambda: None) for rows in _read_text(file, lines, size))

    return read_puzzle_file(
        path, from_csv, from_text, True, columns, count=lambda part: len(part[0].puzzles)
    )


def csv_text(rows: PuzzleSet, source: str) -> str:
    """Write puzzles as a CSV; ``source`` goes into the first column."""
    puzzles, solutions = (map(puzzle_text, cells) for cells in (rows.puzzles, rows.solutions))
    return csv_of(zip(puzzles, solutions, rows.ratings), source)


@lru_cache(maxsize=None)
def read_sample() -> np.ndarray:
    """Read the hard 9x9 test puzzles of the package, (n, 81) digits."""
    parts = read_puzzles(SAMPLES / SAMPLE_FILES["test"], 9)
    return np.concatenate([part.puzzles for part in parts])


def puzzle_text(cells: np.ndarray) -> str:
    """Write (S,) digits on one line, ``.`` for a blank."""
    return "".join("." if cell == 0 else DIGITS[int(cell) - 1] for cell in cells)


def parse_puzzle(text: str, size: int) -> np.ndarray:
    """Read one puzzle.

    Args:
        text: S cells, ``.``, ``0`` or ``_`` for a blank, as people write or paste them
            (:mod:`mlx_trm.tasks.pasted`), or nothing where all blanks are nothing between lines,
            commas or tabs, or spaces in columns; where digits go beyond 9, numbers with white
            space or commas between them, too.
        size: one of :data:`~mlx_trm.tasks.sudoku.solver.SIZES`.

    Returns:
        (S,) uint8.

    Raises:
        DataError: if the number of cells is wrong, there is another character, or givens
            contradict each other.
    """
    numbers = split_numbers(text) if size > 9 else []
    if len(numbers) == size**2 and all(word.isdigit() and int(word) <= size for word in numbers):
        text = "".join(("0" + DIGITS)[int(word)] for word in numbers)
    cells_of = [clean_cells(text)]
    # Stars and dashes are marks and lines, unless they have to be blanks for all cells to be there.
    cells_of += [clean_cells(text.replace(blank, ".")) for blank in "*-"]
    cells_of += [fill_blanks(text, size) or ""]
    text = next((found for found in cells_of if len(found) == size**2), cells_of[0])
    problem = _cells_problem(text, size, "the puzzle")
    if problem is None:
        cells = _digits(text)
        problem = _givens_problem(cells, size)
    if problem is not None:
        raise DataError(problem)
    return cells


def _digits(text: str) -> np.ndarray:
    """Turn cells that are known to be good into (S,) uint8 digits, 0 for a blank."""
    return np.array(
        [("." + DIGITS).find(char.upper()) for char in text.replace("0", ".")], np.uint8
    )


def _cells_problem(text: str, size: int, what: str) -> Optional[str]:
    """Say what keeps a text from being S cells."""
    if len(text) != size * size:
        return f"{what} has {len(text)} cells, {size}x{size} needs {size * size}"
    for place, char in enumerate(text):
        if char.upper() not in (".0" + DIGITS)[: size + 2]:
            allowed = f"1-{size}" if size <= 9 else f"1-9, A-{DIGITS[size - 1]}"
            return (
                f"{what} has {char!r} in {place_name(place, size)}; allowed are {allowed}, . and 0"
            )
    return None


def _givens_problem(cells: np.ndarray, size: int) -> Optional[str]:
    """Say which givens contradict each other."""
    if not conflicts(cells[None], size).any():
        return None
    for number, unit in enumerate(unit_cells(size)):
        digits, times = np.unique(cells[unit][cells[unit] > 0], return_counts=True)
        if (times > 1).any():
            name = ("row", "column", "box")[number // size]
            digit = DIGITS[int(digits[times > 1][0]) - 1]
            return f"contradictory givens: {digit} stands twice in {name} {number % size + 1}"
    return None


def solution_problem(found: SolveResult, row: int, size: int) -> str:
    """Say why one of the puzzles that were solved has not exactly one solution."""
    if found.counts[row] == 0:
        return "the puzzle has no solution"
    first, second = found.solutions[row]
    cell = int(np.argmax(first != second))
    low, high = (DIGITS[digit - 1] for digit in sorted((int(first[cell]), int(second[cell]))))
    return f"the puzzle has more than one solution: {place_name(cell, size)} can be {low} or {high}"


def _row_problem(question: str, answer: Optional[str], size: int) -> Optional[str]:
    """Say what is wrong with a puzzle and its answer, None if nothing."""
    problem = _cells_problem(question, size, "the question")
    if problem is not None:
        return problem
    cells = _digits(question)
    problem = _givens_problem(cells, size)
    if problem is not None or answer is None:
        return problem
    problem = _cells_problem(answer, size, "the answer")
    if problem is not None:
        return problem
    solved = _digits(answer)
    for cell in np.flatnonzero((cells != 0) & (cells != solved)):
        given, other = (puzzle_text(part[cell : cell + 1]) for part in (cells, solved))
        return f"the answer has {other} in {place_name(int(cell), size)}, where {given} is given"
    if not valid_grids(solved[None], size)[0]:
        twice = _givens_problem(solved, size)
        if twice is None:
            return f"the answer has a blank in {place_name(int(np.argmin(solved)), size)}"
        return f"the answer is wrong: {twice.split(': ')[1]}"
    return None


def _read_text(path: Path, lines: Iterator[Tuple[int, str]], size: int) -> Iterator[PuzzleSet]:
    """Read puzzles one a line, and solve them."""
    rows: List[Tuple[int, str, Optional[str]]] = []
    for number, line in lines:
        words = line.split("#")[0].replace(",", " ").split()
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
    puzzles = np.stack([_digits(text) for _, text, _ in rows])
    found = solve_puzzles(puzzles, size)
    for at in np.flatnonzero(found.counts != 1)[:1].tolist():
        raise DataError(f"{path}:{rows[at][0]}: {solution_problem(found, at, size)}")
    return PuzzleSet(puzzles, found.solutions[:, 0], found.guesses)


def _read_csv(block: CsvBlock, size: int) -> PuzzleSet:
    """Turn the fields of a CSV into arrays and check them."""
    table = np.full(256, _BAD, dtype=np.uint8)
    table[[ord("."), ord("0")]] = 0
    for written in (DIGITS, DIGITS.lower()):
        table[[ord(char) for char in written[:size]]] = np.arange(1, size + 1)
    block.cut_behind_misfit(size**2)
    puzzles, solutions = (block.cells(name, size**2, table) for name in ("question", "answer"))
    bad = ((puzzles == _BAD) | (solutions == _BAD)).any(axis=1) | ~valid_grids(solutions, size)
    bad |= ((puzzles != 0) & (puzzles != solutions)).any(axis=1)
    ratings = np.full(len(bad), -1, dtype=np.int64)
    if "rating" in block.fields:
        ratings, wrong = block.numbers("rating")
        bad |= wrong
    for row in np.flatnonzero(bad)[:1]:
        problem = _row_problem(block.text("question", row), block.text("answer", row), size)
        if problem is None:
            given = block.text("rating", row)[:40]
            problem = f"the rating must be a whole number, not {given!r}"
        block.refuse(row, problem)
    return PuzzleSet(puzzles, solutions, ratings)


def draw_puzzles(rows: Iterator[PuzzleSet], count: int, rng: np.random.Generator) -> PuzzleSet:
    """Draw ``count`` puzzles without holding more: those with the lowest random numbers."""
    kept: Optional[PuzzleSet] = None
    lots = np.empty(0)
    for part in rows:
        lots = np.concatenate([lots, rng.random(len(part.puzzles))])
        kept = part if kept is None else PuzzleSet(*map(np.concatenate, zip(kept, part)))
        if len(lots) > count:
            chosen = np.sort(np.argsort(lots, kind="stable")[:count])
            lots, kept = lots[chosen], kept.take(chosen)
    if kept is None:
        raise DataError("no puzzles to draw from")
    return kept
