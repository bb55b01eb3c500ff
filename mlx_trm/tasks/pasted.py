"""Grids as people paste them: this program's own drawings, lines around cells, commas, ``_``."""

import re
from typing import Iterable, Iterator, List, Optional, Sequence, Tuple

# How a terminal is told to write in colour.
_ANSI = re.compile(r"\033\[[0-9;]*m")
# What a drawing has besides its cells: lines, and the marks of a step (tasks/text.py).
LINES = "".join(map(chr, range(0x2500, 0x2580))) + "|"
MARKS = "+!*"
# What people put around and between cells, of which no task's symbols are any.
PASTED = LINES + MARKS + "-,;_█•"
# A line above or below a grid.
_RULE = re.compile(r" *[+-]*-[+-]* *")
_NOTHING = str.maketrans("", "", LINES + MARKS + "-,;[](){}'\"")


def strip_colors(text: str) -> str:
    """Take a terminal's colour codes out of a text."""
    return _ANSI.sub("", text)


def cut_drawing(lines: Sequence[str]) -> Optional[List[str]]:
    """Find the first framed grid in the lines that a terminal showed.

    What stands above it, below it and beside it, such as the answer, is left out.

    Args:
        lines: without colour codes.

    Returns:
        What stands between the frame's sides, row by row, lines of boxes included; None where
        there is no frame.
    """
    for number, line in enumerate(lines):
        left = line.find("┌")
        right = line.find("┐", left)
        if left < 0 or right < 0:
            continue
        rows: List[str] = []
        for below in lines[number + 1 :]:
            if below[left : left + 1] == "└":
                return rows
            rows.append(below[left + 1 : right])
    return None


def split_drawings(lines: Sequence[str]) -> Iterator[Tuple[int, List[str], bool]]:
    """Cut lines into drawings and what stands between them.

    Args:
        lines: of a text file.

    Returns:
        The number of a part's first line, from 1, its lines, and whether it is a drawing.
    """
    start, inside = 0, False
    for number, line in enumerate([*lines, "┌┐"]):
        if not inside and "┌" in line:
            if number > start:
                yield start + 1, list(lines[start:number]), False
            start, inside = number, True
        elif inside and "└" in line:
            yield start + 1, list(lines[start : number + 1]), True
            start, inside = number + 1, False
    if inside and start < len(lines):
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
    text = strip_colors(text)
    drawn = cut_drawing(text.splitlines())
    if drawn is not None:
        return "\n".join(row[::2].replace(" ", ".") for row in drawn).translate(_TO_TEXT)
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


_TO_TEXT = str.maketrans({"_": ".", "█": "#", "•": "o"})
