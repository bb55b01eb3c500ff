"""Grids as people paste them: this program's own drawings, lines around cells, commas, ``_``."""

import re
from typing import Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

# How a terminal is told to write in colour.
_ANSI = re.compile(r"\033\[[0-9;]*m")
# What a drawing has besides its cells: lines, and the marks of a step (tasks/text.py).
LINES = "".join(map(chr, range(0x2500, 0x2580))) + "|"
MARKS = "+!*"
# What people put around and between cells, of which no task's symbols are any.
PASTED = LINES + MARKS + "-=,;_█•"
# Corners of frames, light, heavy, double, rounded and mixed, or ``+``.
_TOP_LEFT, _TOP_RIGHT, _BOTTOM_LEFT = "┌┍┎┏╒╓╔╭+", "┐┑┒┓╕╖╗╮+", "└┕┖┗╘╙╚╰"
# The upper line of a frame; marks of cells have no line between them. What follows a line is a
# crossing of one without a frame, as in ``---+---+---``.
_TOP = re.compile(
    rf"(?<![\u2500-\u257f=-])[{_TOP_LEFT}]"
    rf"[\u2500-\u257f+=-]*?[\u2500-\u257f=-][+=-]*?[{_TOP_RIGHT}]"
)
# What stands to the left of a frame's rows; a line between rows has another one there.
_SIDES = "|│┃║┆┇┊┋╎╏╽╿"
# What `solve` writes above an answer that it draws.
_ANSWERED = re.compile(r"\s*(?:step \d+: |not the model's, but what the rules give: )")
# What it writes before a puzzle or an answer on one line.
_TITLE = re.compile(r"\s*(?:puzzle(?: \d+ of \d+)?(?: \(.*\))?|not the model's[^:\n]*): ")
# A line above or below a grid.
_RULE = re.compile(r" *[+-]*-[+-]* *")
_NOTHING = str.maketrans("", "", LINES + MARKS + "-=,;[](){}'\"")


def strip_colors(text: str) -> str:
    """Take a terminal's colour codes out of a text."""
    return _ANSI.sub("", text)


def strip_title(text: str) -> str:
    """Take what ``solve`` writes before a puzzle off a line of it; other text stays."""
    title = None if "\n" in text.strip() else _TITLE.match(text)
    return text if title is None else text[title.end() :]


class _Frame(NamedTuple):
    """Where a frame stands: its upper left corner's column, its right side's, its last line."""

    left: int
    right: int
    last: int


def _find_frame(lines: Sequence[str], number: int) -> Optional[_Frame]:
    """Find the frame that begins in a line; None: there is none, or it does not end."""
    top = _TOP.search(lines[number])
    if top is None:
        return None
    left, last = top.start(), -1
    for place in range(number + 1, len(lines)):
        side = lines[place][left : left + 1]
        if side and side in _BOTTOM_LEFT:
            last = place
            break
        if last == place - 1 and side and side in _TOP_LEFT:  # the next frame's upper line
            break
        if side == "+":  # a line between rows, or the lower one
            last = place
        elif last >= 0 and (not side or side not in LINES):
            break
    return None if last < 0 else _Frame(left, _right_side(lines[number], top), last)


def _right_side(line: str, top: "re.Match[str]") -> int:
    """Give the column of a frame's right side; a corner ``+`` looks like a crossing."""
    whole = re.match(r"[+=-]*[+]", line[top.end() :]) if top[0].endswith("+") else None
    return top.end() - 1 + (0 if whole is None else whole.end())


def cut_drawing(lines: Sequence[str]) -> Optional[List[str]]:
    """Find the first framed grid in the lines that a terminal showed.

    What stands above it, below it and beside it, such as the answer, is left out.

    Args:
        lines: without colour codes.

    Returns:
        What stands between the frame's sides, row by row, without lines between rows; None where
        there is no frame.
    """
    for number in range(len(lines)):
        frame = _find_frame(lines, number)
        if frame is not None:
            inside = lines[number + 1 : frame.last]
            rows = [row for row in inside if row[frame.left : frame.left + 1] in _SIDES]
            return [row[frame.left + 1 : frame.right] for row in rows]
    return None


def split_drawings(lines: Sequence[str]) -> Iterator[Tuple[int, List[str], bool]]:
    """Cut lines into drawings and what stands between them.

    Of all that ``solve`` showed the puzzles are drawings; the answers are left out.

    Args:
        lines: of a text file.

    Returns:
        The number of a part's first line, from 1, its lines, and whether it is a drawing.
    """
    frames, number = [], 0
    while number < len(lines):
        frame = _find_frame(lines, number)
        if frame is not None:
            frames.append((number, frame.last + 1))
        number = number + 1 if frame is None else frame.last + 1
    puzzles = {at for at, _ in frames if not (at and _ANSWERED.match(lines[at - 1]))}
    start = 0
    for number, end in frames:
        if number > start:
            yield start + 1, list(lines[start:number]), False
        if number in puzzles or not puzzles:
            yield number + 1, list(lines[number:end]), True
        start = end
    if start < len(lines):
        yield start + 1, list(lines[start:]), False


def clean_cells(text: str) -> str:
    """Give the cells of a grid in which white space means nothing, ``.`` for ``_``.

    Args:
        text: perhaps with lines around boxes, commas, brackets, or several lines of output.
    """
    text = strip_colors(text)
    drawn = cut_drawing(text.splitlines())
    if drawn is not None:
        text = "".join(drawn)
    return "".join(text.translate(_NOTHING).replace("_", ".").split())


def fill_blanks(text: str, size: int) -> Optional[str]:
    """Give the cells of a square grid in which blanks are nothing at all, ``.`` for them.

    Args:
        text: rows on lines of their own, with commas, tabs or lines between all cells
            (``8,,3``, ``| 8 |   | 3 |``), or with spaces where blanks are; or all in one line.
        size: rows and columns; cells are single characters.

    Returns:
        The cells; None where they are written otherwise, or a blank is written in two ways.
    """
    text = strip_colors(text)
    if set(text) & set(".0_*") or not text.strip():
        return None
    lines = text.splitlines()
    if len(lines) == 1 and len(text) == size * size:
        lines = [text[at : at + size] for at in range(0, len(text), size)]
    drawn = cut_drawing(lines)
    if drawn is None:
        drawn = [line for line in lines if line and not _is_rule(line)]
    rows = [_fill_row(row, size) for row in drawn]
    if len(rows) != size or any(len(row) != size for row in rows):
        return None
    return "".join(rows)


def _is_rule(line: str) -> bool:
    """Tell whether a line is one between rows; bars alone are a row of blanks."""
    return set(line) <= set(LINES + "+-=: ") and not set(line) <= set(_SIDES + " ")


def _fill_row(row: str, size: int) -> str:
    """Give the cells of a row as :func:`fill_blanks` does; perhaps of another number."""
    parts = [part.strip() for part in re.split(f"[,;\t{_SIDES}]", row)]
    if len(parts) == size + 2 and not parts[0] and not parts[-1]:
        parts = parts[1:-1]
    if len(parts) == size:
        return "".join(part or "." for part in parts)
    return _cells_of(re.sub(f"[{_SIDES}] ", "", row), size)


def split_numbers(text: str) -> List[str]:
    """Give the words of a text, parted by white space, commas or lines around boxes."""
    lines = strip_colors(text).splitlines()
    drawn = cut_drawing(lines)
    text = " ".join(lines if drawn is None else drawn)
    return re.sub(f"[{re.escape(LINES + ',;[](){}')}]", " ", text).split()


def gather_rows(lines: Iterable[str], size: int, plain: Iterable[str]) -> Iterator[Tuple[int, str]]:
    """Find square puzzles in lines of text: one a line, or a row a line, or drawn in a frame.

    Args:
        lines: of a file; ``#`` begins a comment.
        size: rows and columns.
        plain: the characters of a puzzle; beside drawings, lines with others are what the program
            said about them.

    Returns:
        Pairs of the number of a puzzle's first line, from 1, and its text.
    """
    parts = list(split_drawings([strip_colors(line) for line in lines]))
    spoken = any(drawn for _, _, drawn in parts)
    for start, part, drawn in parts:
        if drawn:
            yield start, "\n".join(part)
            continue
        if len(part) <= 3 * size and fill_blanks("\n".join(part), size):
            yield start, "\n".join(part)
            continue
        rows: List[str] = []
        first = start
        for number, line in enumerate(part, start):
            text = line.split("#")[0].strip()
            cells = clean_cells(text)
            if not cells:  # a line of a frame, say; a blank line ends a puzzle
                if rows and not text:
                    yield first, "\n".join(rows)
                    rows = []
            elif spoken and (set(cells) - set(plain) or len(cells) < size):
                continue
            elif len(cells) == size:
                first = first if rows else number
                rows.append(text)
                if len(rows) == size:
                    yield first, "\n".join(rows)
                    rows = []
            else:
                if rows:
                    yield first, "\n".join(rows)
                    rows = []
                yield number, text
        if rows:
            yield first, "\n".join(rows)


def plain_maze(text: str, size: int) -> str:
    """Give a maze, where white space means open cells, as rows with nothing between cells.

    Args:
        text: perhaps drawn by this program, two characters a cell, or with commas or spaces
            between cells, or ``_`` for open ones.
        size: rows and columns.
    """
    text = strip_title(strip_colors(text))
    drawn = cut_drawing(text.splitlines())
    if drawn is not None:
        cells = "\n".join(_cells_of(row, size) for row in drawn).translate(_TO_TEXT)
        return cells.replace("o", ".")  # a path that this program drew, in this maze
    lines = [line for line in text.splitlines() if not _RULE.fullmatch(line)]
    text = "\n".join(line.strip("|│") if line[:1] in ("|", "│") else line for line in lines)
    text = re.sub(r"[,;]", "", text).translate(_TO_TEXT)
    rows = []
    for row in re.split(r"([/\n])", text):
        spaced = row.strip()
        if len(spaced) == 2 * size - 1 and not spaced[1::2].strip():
            row = spaced[::2]
        rows.append(row)
    return "".join(rows)


def _cells_of(row: str, size: int) -> str:
    """Give the cells of a row in a frame: with lines, a mark or spaces between them, or nothing."""
    parts = re.split(f"[{_SIDES}]", row)
    if len(parts) == size > 1:
        return "".join(part.strip() or "." for part in parts)
    row = "".join(parts)
    if len(row) in (2 * size - 1, 2 * size):
        row = row[::2]
    elif len(row) == 2 * size + 1:
        row = row[1::2]
    return row.replace(" ", ".")


_TO_TEXT = str.maketrans({"_": ".", "█": "#", "•": "o"})
