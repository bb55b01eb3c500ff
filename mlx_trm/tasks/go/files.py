"""Boards as people write them: text with or without coordinates, SGF, and files of these.

Text holds a board as a row a line with a blank line between boards, or one a line with ``/``
between its rows; ``#`` begins a comment. A CSV has a column for the board and one for its answer.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from mlx_trm.errors import DataError, shown
from mlx_trm.tasks.board import CellsEditor, Look, Tool
from mlx_trm.tasks.go.answers import answer_puzzles, is_right
from mlx_trm.tasks.go.pasted import find_rows, plain_points, split_printed, split_titled
from mlx_trm.tasks.go.positions import (
    EMPTY,
    GIVEN,
    SYMBOLS,
    Position,
    decode,
    encode,
    point_name,
    position_problem,
)
from mlx_trm.tasks.go.rules import rules_of
from mlx_trm.tasks.go.sgf import decode_sgf, is_sgf, read_board, read_problem, split_trees
from mlx_trm.tasks.go.signs import name_signs
from mlx_trm.tasks.pasted import cut_drawing, split_drawings, strip_colors, strip_title
from mlx_trm.tasks.puzzle_files import CsvBlock, FilePuzzles, read_puzzle_file

# What stands around boards and between their points.
_AROUND = re.compile(r"[\s,;|│]")
_RULE = re.compile(r"[\s|+]*-[-+|\s]*")
_COLUMNS = ("ABCDEFGHJ", "ABCDEFGHI")
_NUMBERS = re.compile(r"^\s*\d{1,2}(?!\d)|(?<!\d)\d{1,2}\s*$")


def parse_board(text: str, kind: str, size: int) -> np.ndarray:
    """Read a puzzle as a person writes it.

    Args:
        text: SGF, or rows with line ends or ``/`` between them. ``.`` or ``+`` is an empty point,
            ``X`` black, ``O`` white; of a capture puzzle ``B`` and ``W`` are stones of the group in
            question. Coordinates around the board do not count.
        kind: ``capture`` or ``territory``.
        size: rows of the board.

    Returns:
        (S,) uint8 tokens; of a marked group all stones are marked.

    Raises:
        DataError: if it is malformed, or no such position can come up.
    """
    rules = rules_of(size)
    if is_sgf(text):
        if kind == "capture":
            position = read_problem(text, rules)
        else:
            position = Position(*read_board(text, rules, play=True)[:2])
    else:
        lines = strip_title(strip_colors(text)).lstrip("\ufeff").splitlines()
        text = "\n".join(name_signs(lines, size))
        tokens = read_cells(_name_stones(text, kind), kind, size)
        if cut_drawing(lines) is not None:  # an answer that this program drew, of this puzzle
            tokens[tokens >= GIVEN[kind]] = EMPTY
        for cell in np.flatnonzero(tokens >= GIVEN[kind])[:1]:
            raise DataError(
                f"the board has {SYMBOLS[kind][tokens[cell]]!r} in row {cell // size + 1} column "
                f"{cell % size + 1}, which stands in answers only; stones are X and O"
            )
        position = decode(tokens, kind, rules)
    # Whoever marks one stone of a group means the group.
    group = rules.chain(position.marked & -position.marked, position.defender)
    if position.marked | group == group:
        position = position._replace(marked=group)
    problem = position_problem(position, kind, size)
    if problem:
        raise DataError(problem)
    return encode(position, rules)


def _name_stones(text: str, kind: str) -> str:
    """Give a puzzle's text with stones in capitals; those of territory may be B and W, too."""
    if kind == "capture":
        return text.upper()
    # Small letters are answers beside stones; a board without stones has no answers.
    if not set(text) & set("XO●○⚫⚪⬤◯"):
        return text.translate(str.maketrans("xobwBW", "XOXOXO"))
    return text


def read_cells(text: str, kind: str, size: int) -> np.ndarray:
    """Read a board or an answer of text as (S,) uint8 tokens, whatever position it is.

    Raises:
        DataError: if the number of points is wrong, or there is another character.
    """
    rows = _rows(text, size)
    if len(rows) == 1 and len(rows[0]) == size * size:
        rows = [rows[0][at : at + size] for at in range(0, size * size, size)]
    if len(rows) != size:
        raise DataError(
            f"the board has {len(rows)} row{'' if len(rows) == 1 else 's'}, {size}x{size} needs "
            f"{size}; write / between rows, or a row a line"
        )
    tokens = np.zeros((size, size), dtype=np.uint8)
    for number, row in enumerate(rows):
        if len(row) != size:
            raise DataError(
                f"row {number + 1} of the board has {len(row)} points, {size}x{size} needs {size}"
            )
        for column, char in enumerate(row):
            token = SYMBOLS[kind].find(char)
            if token < 0:
                allowed = ", ".join(SYMBOLS[kind][1 : GIVEN[kind]])
                raise DataError(
                    f"the board has {shown(char)!r} in row {number + 1} column {column + 1}; "
                    f"allowed are {allowed}"
                )
            tokens[number, column] = token
    return tokens.reshape(-1)


def _rows(text: str, size: int) -> List[str]:
    """Give the rows of a board, nothing between its points."""
    lines = strip_colors(text).splitlines()
    printed = find_rows(lines, size)
    if printed is not None:
        return printed
    drawn = cut_drawing(lines)
    if drawn is not None:  # this program writes a point and its mark
        rows = (row[::2] if len(row) == 2 * size else "".join(row.split()) for row in drawn)
        return list(map(plain_points, rows))
    parts = [part for line in lines for part in line.split("#")[0].split("/")]
    found = (_row(part, size) for part in parts)
    return [row for row in found if row]


def _row(line: str, size: int) -> str:
    """Give the points of a row; nothing for a line of coordinates, of a frame, or a blank one."""
    cells = _AROUND.sub("", line)
    if _RULE.fullmatch(line) or cells.upper() in [names[:size] for names in _COLUMNS]:
        return ""
    if len(cells) not in (size, size * size):  # the row's number stands on one side or on both
        cells = _AROUND.sub("", _NUMBERS.sub("", line))
    return plain_points(cells)


def split_boards(lines: Iterable[str], size: int) -> Iterator[Tuple[int, str]]:
    """Find the puzzles in lines of text: game trees, drawings of this program, or plain boards.

    Returns:
        Pairs of the number of a puzzle's first line, from 1, and its text.
    """
    lines = [strip_colors(line) for line in lines]
    text = decode_sgf("\n".join(lines))
    if is_sgf(text):
        yield from split_trees(text)
        return
    lines = name_signs(lines, size)
    printed = list(split_printed(lines, size)) or list(split_titled(lines, size))
    if printed:
        yield from printed
        return
    parts = list(split_drawings(lines))
    spoken = any(drawn for _, _, drawn in parts)
    for start, part, drawn in parts:
        if drawn:
            yield start, "\n".join(part)
        elif not spoken:  # beside drawings stands what the program said about them
            for number, board in _split_plain(part, size):
                yield start + number - 1, board


def _split_plain(lines: Sequence[str], size: int) -> Iterator[Tuple[int, str]]:
    """Find the boards in lines without drawings."""
    block: List[str] = []
    first = 1
    for number, line in enumerate([*lines, ""], start=1):
        text = line.split("#")[0].strip()
        cells = "".join(_row(part, size) for part in text.split("/"))
        if text and not cells:
            continue
        alone = "/" in text or len(cells) == size * size
        if block and (not text or alone):
            yield first, "\n".join(block)
            block = []
        if alone:
            yield number, text
        elif text:
            first = first if block else number
            block.append(text)
            if len(block) == size:
                yield first, "\n".join(block)
                block = []


def format_board(tokens: np.ndarray, kind: str, size: int) -> str:
    """Write (S,) tokens on one line, ``/`` between rows; ``?`` is no point."""
    symbols = dict(enumerate(SYMBOLS[kind]))
    text = "".join(symbols.get(token, "?") for token in np.asarray(tokens).tolist())
    return "/".join(text[at : at + size] for at in range(0, len(text), size))


def read_boards(
    path: Union[str, Path],
    kind: str,
    size: int,
    quiet: int,
    columns: Optional[Sequence[str]] = None,
) -> Iterator[FilePuzzles]:
    """Read a file of puzzles with their answers: text, SGF, or a CSV.

    Args:
        path: of the file, UTF-8; SGF may have its comments in other encodings.
        kind: ``capture`` or ``territory``.
        size: rows of the board.
        quiet: moves of the attacker that are no atari, at most.
        columns: of a CSV, those of the board and of its answer; None: known by their usual names.

    Raises:
        DataError: naming file and line of the first thing wrong.
    """
    from_csv = partial(_read_csv, kind=kind, size=size, quiet=quiet)
    from_text = partial(_read_text, kind=kind, size=size, quiet=quiet)
    return read_puzzle_file(
        path, from_csv, from_text, True, columns, "board", errors="surrogateescape"
    )


def _read_csv(block: CsvBlock, kind: str, size: int, quiet: int) -> FilePuzzles:
    inputs, labels = [], []
    for row, (board, answer) in enumerate(
        zip(block.texts("question") or (), block.texts("answer") or ())
    ):
        try:
            inputs.append(parse_board(board, kind, size))
            labels.append(read_cells(answer, kind, size))
        except DataError as error:
            block.refuse(row, str(error))
        if not is_right(inputs[-1], labels[-1], kind, size, quiet):
            block.refuse(row, "the answer is wrong by the rules")
    return FilePuzzles(_stacked(inputs, size), _stacked(labels, size), None, block.texts("source"))


def _read_text(
    path: Path, lines: Iterator[Tuple[int, str]], kind: str, size: int, quiet: int
) -> Iterator[FilePuzzles]:
    numbers, rows = [], []
    content = [line.rstrip("\r\n") for _, line in lines]
    try:
        for number, text in split_boards(content, size):
            numbers.append(number)
            rows.append(parse_board(text, kind, size))
    except DataError as error:
        where = f"{path}:{numbers[-1]}" if len(numbers) > len(rows) else str(path)
        raise DataError(f"{where}: {error}") from error
    inputs = _stacked(rows, size)
    labels, problems = answer_puzzles(inputs, kind, size, quiet)
    for row in sorted(problems)[:1]:
        raise DataError(f"{path}:{numbers[row]}: {problems[row]}")
    yield FilePuzzles(inputs, labels)


def _stacked(rows: Sequence[np.ndarray], size: int) -> np.ndarray:
    return np.array(rows, dtype=np.uint8).reshape(-1, size * size)


# Boards typed on a page --------------------------------------------------------------------------


def describe_cells(kind: str, size: int) -> Dict[str, Any]:
    """Say how a page lets a board be set up, as :meth:`TextForm.describe_editor` does."""
    looks = {
        ".": Look("empty"),
        "X": Look("black stone", ink="#222222", disc=True),
        "O": Look("white stone", ink="#fafafa", disc=True),
    }
    turns = {".": "X", "X": "O", "O": "."}
    if kind == "capture":
        turns.update(B="O", W=".")
    tools = [
        Tool("stones, by turns", turns=turns, keys=("Enter", " ")),
        Tool("black", "X", turns={"X": "."}, keys=("x", "X")),
        Tool("white", "O", turns={"O": "."}, keys=("o", "O")),
        Tool("empty", ".", keys=(".", "Delete", "Backspace")),
    ]
    hint = "X is black, O white, . empty; a row a line, or / between rows; or SGF."
    if kind == "capture":
        looks["B"] = Look("black stone of the group", ink="#222222", fill="#9bcdf0", disc=True)
        looks["W"] = Look("white stone of the group", ink="#fafafa", fill="#00467d", disc=True)
        marks = {"X": "B", "O": "W", "B": "X", "W": "O"}
        clears = {"B": "X", "W": "O"}
        tools.append(Tool("the group to capture", turns=marks, clears=clears, keys=("m",)))
        hint = f"B or W is a stone of the group to capture; {hint}"
    names = tuple(point_name(1 << cell, size) for cell in range(size * size))
    empty = "/".join(["." * size] * size)
    return CellsEditor(
        label="Go board",
        hint=hint,
        rows=size,
        columns=size,
        looks=looks,
        tools=tools,
        names=names,
        papers=("#dcb35c",),
        empty=empty,
    ).describe()
