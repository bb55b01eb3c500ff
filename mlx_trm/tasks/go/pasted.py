"""Boards as Go programs print them: coordinates, frames, the last move marked, words beside."""

import re
from functools import lru_cache
from typing import Iterator, List, Optional, Pattern, Sequence, Tuple

# Points that others write: star points, crossings, pictures of stones.
_TO_TEXT = str.maketrans(
    {
        **dict.fromkeys("+_·∙•*,➕", "."),
        **dict.fromkeys("●⚫⬤", "X"),
        **dict.fromkeys("○⚪◯", "O"),
        "\ufe0e": "",
        "\ufe0f": "",
    }
)
# Crossings of lines, which may be a frame's, too.
_CROSSINGS = "┌┬┐├┼┤└┴┘╋╬"
# What a bulletin board puts in front of a diagram, and what an engine answers with.
_LONGEST_LINE = 200
_BEFORE = re.compile(r"^\s*(?:\$\$\w*|=|>)\s?")
_WORD = re.compile(r"[^\W\d_xobw]{2,}[^\W\d_]", re.IGNORECASE)
_NUMBERED = re.compile(r"^\s*\d{1,2}\s+|\s+\d{1,2}\s*$")


def plain_points(text: str) -> str:
    """Give a row's points as ``.``, ``X`` and ``O``, whatever signs they were written with."""
    return text.translate(_TO_TEXT)


@lru_cache(maxsize=None)
def _row_form(size: int) -> Pattern[str]:
    """Give what a printed row is: a number, points, perhaps marked, a number, and words."""
    # The last move stands in brackets or has a number behind it.
    point = r"[\s()\[\]]*[.XOxoBWbw][)\]1-3]?"
    return re.compile(
        rf"\s*(?P<left>\d{{1,2}}(?=\D))?\s*[|│]?(?P<points>(?:{point}){{{size}}})\s*[|│]?"
        r"(?:\s*(?P<right>\d{1,2})(?:\s.*)?)?\s*"
    )


def read_row(line: str, size: int) -> Optional[str]:
    """Give the points of a printed row; None: the line is none."""
    found = _match_row(line, size)
    return None if found is None else re.sub(r"[^.XOxoBWbw]", "", found["points"])


def is_numbered(line: str, size: int) -> bool:
    """Say whether a line is a row of a board beside its number, or of a bulletin's diagram."""
    found = _match_row(line, size)
    marked = _BEFORE.match(line) is not None
    return found is not None and bool(found["left"] or found["right"] or marked)


def _match_row(line: str, size: int) -> Optional["re.Match[str]"]:
    if len(line) > _LONGEST_LINE:  # the form below would take long to find that it does not fit
        return None
    text = _BEFORE.sub("", line)
    core = "".join(_NUMBERED.sub("", text).split())
    if len(core) == 2 * size - 1 and set(core[1::2]) <= set("─━-"):  # lines between its points
        core = text = core[::2]
    if len(core) == size and not set(core) & set("─━═"):
        text = "".join("." if char in _CROSSINGS else char for char in text)
    return _row_form(size).fullmatch(plain_points(text))


def find_rows(lines: Sequence[str], size: int) -> Optional[List[str]]:
    """Give the rows of the one board that a program has printed; None: there is none such."""
    rows = [row for row in (read_row(line, size) for line in lines) if row]
    return rows if len(rows) == size else None


def split_printed(lines: Sequence[str], size: int) -> Iterator[Tuple[int, str]]:
    """Find boards with numbered rows among the other things that a program printed.

    Returns:
        Pairs of the number of a board's first line, from 1, and its rows; nothing where the
        lines may be boards of another form.
    """
    rows = [number for number, line in enumerate(lines) if read_row(line, size)]
    if not rows or len(rows) % size or not all(is_numbered(lines[row], size) for row in rows):
        return
    for at in range(0, len(rows), size):
        board = rows[at : at + size]
        yield board[0] + 1, "\n".join(lines[row] for row in board)


def split_titled(lines: Sequence[str], size: int) -> Iterator[Tuple[int, str]]:
    """Find boards of plain rows between lines of words, or with a blank line behind each row.

    Returns:
        Pairs of the number of a board's first line, from 1, and its rows; nothing where other
        lines may be parts of boards, too.
    """
    rows = [number for number, line in enumerate(lines) if read_row(line, size)]
    others = [line for number, line in enumerate(lines) if number not in set(rows)]
    if not rows or len(rows) % size or not all(map(_is_said, others)):
        return
    boards = [rows[at : at + size] for at in range(0, len(rows), size)]
    steps = {board[at + 1] - board[at] for board in boards for at in range(size - 1)}
    if len(steps) == 1 and steps <= {1, 2}:
        for board in boards:
            yield board[0] + 1, "\n".join(lines[row] for row in board)


def _is_said(line: str) -> bool:
    """Say whether a line is blank, a comment, or one of words, and so no part of a board."""
    text = line.strip()
    return not text or text[0] in "#;`" or _WORD.search(text) is not None
