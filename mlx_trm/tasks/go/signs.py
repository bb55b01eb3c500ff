"""Signs that mean one thing on one board and another elsewhere: ``#``, ``@``, ``*``, ``0``, ``-``.

``#`` is a black stone, or begins a comment; ``*`` a black stone, a star point or any empty one;
``0`` a white stone, or a coordinate; ``-`` an empty point, or a frame. What they are, the whole
board tells: it has to be one when they are read so, and no other sign of it may mean the same.
"""

from itertools import product
from typing import Dict, Iterator, List, Sequence, Set, Tuple

from mlx_trm.errors import DataError
from mlx_trm.tasks.go.pasted import read_row
from mlx_trm.tasks.go.positions import point_name

# What may stand for each; the first choice of them that makes lines a board is taken.
_EMPTY, _WHITE, _BLACK = "-", "0", "#@*•"
# Of the signs for black those that are empty points, unless the board says otherwise.
_STARS = "*•"
_SAME = {"X": "Xx", "O": "Oo", ".": "."}
_QUOTES = str.maketrans("", "", "[](){},'\"")


def name_signs(lines: Sequence[str], size: int) -> List[str]:
    """Write stones and points that have such a sign as ``X``, ``O`` and ``.``.

    Args:
        lines: boards, and whatever stands between them.
        size: rows of a board.

    Returns:
        As many lines; those of a board that cannot be read so are as they were.

    Raises:
        DataError: if a sign may be a stone as well as an empty point.
    """
    return [line for block in _blocks(lines, size) for line in _name_block(block, size)]


def _blocks(lines: Sequence[str], size: int) -> Iterator[List[str]]:
    """Yield lines that belong together: up to a blank one, or one that is a board by itself."""
    block: List[str] = []
    for line in lines:
        alone = "/" in line or len("".join(line.split())) >= size * size
        if block and (alone or not line.strip()):
            yield block
            block = []
        block.append(line)
        if alone:
            yield block
            block = []
    if block:
        yield block


def _name_block(block: List[str], size: int) -> List[str]:
    """Write the signs of one board, or of several alike."""
    there = set("".join(block))
    if there & set("'\""):  # a list of Python's
        plain = [line.translate(_QUOTES) for line in block]
        block = [new if _rows_in(new, size) else old for new, old in zip(plain, block)]
    if not there & set(_EMPTY + _WHITE + _BLACK):
        return block
    choices = (["", *(sign for sign in each if sign in there)] for each in (_EMPTY, _WHITE, _BLACK))
    doubtful = ""
    for empty, white, black in product(*choices):
        signs = {sign: name for sign, name in ((empty, "."), (white, "O"), (black, "X")) if sign}
        points = _points_of(block, size, signs)
        if not points or len(points) % size**2 or (empty and len(points) != size**2):
            continue
        if any(_places(block, size, signs, sign)[1] & set(_SAME[signs[sign]]) for sign in signs):
            continue
        doubt = "" if black else _find_doubt(block, size, signs, there & set(_STARS))
        if not doubt:
            return [_name_line(line, size, signs) for line in block]
        doubtful = doubtful or doubt
    if doubtful:
        raise DataError(
            f"the board has {doubtful}, which may be a black stone or an empty point; write X or ."
        )
    return block


def _name_line(line: str, size: int, signs: Dict[str, str]) -> str:
    """Write the signs of a row or a board, without the comment behind it; other lines stay."""
    named = "".join(signs.get(char, char) for char in line)
    ends = [at for at, char in enumerate(line[:200]) if char == "#" and line[:at].strip()]
    for text in (named, *(named[:at] for at in ends)):
        if _rows_in(text, size):
            return text
    return line


def _rows_in(line: str, size: int) -> List[str]:
    """Give the rows that a line holds: one, or a board's; none where it is no such line."""
    cells = "".join(line.split())
    if "/" in cells:
        parts = cells.split("/")
    elif len(cells) == size * size:
        parts = [cells[at : at + size] for at in range(0, len(cells), size)]
    else:
        row = read_row(line, size)
        return [row] if row else []
    rows = [read_row(part, size) or "" for part in parts]
    return rows if len(rows) == size and all(rows) else []


def _points_of(block: Sequence[str], size: int, signs: Dict[str, str]) -> str:
    """Give the points of all rows, one after another, when signs are read so."""
    rows = (_rows_in(_name_line(line, size, signs), size) for line in block)
    return "".join(point for line in rows for point in line)


def _places(
    block: Sequence[str], size: int, signs: Dict[str, str], sign: str
) -> Tuple[Set[int], Set[str]]:
    """Give the points on which a sign stands, and what stands on the others."""
    first, second = (_points_of(block, size, {**signs, sign: name}) for name in "XO")
    places = {at for at, pair in enumerate(zip(first, second)) if pair[0] != pair[1]}
    return places, {char for at, char in enumerate(first) if at not in places}


def _find_doubt(block: Sequence[str], size: int, signs: Dict[str, str], stars: Set[str]) -> str:
    """Name a sign that seems to be an empty point beside others, and is at no star point."""
    near, far = (2, size - 3) if size > 5 else (1, size - 2)
    lines = {near, size // 2, far}
    for sign in sorted(stars):
        places, others = _places(block, size, signs, sign)
        for place in sorted(place % size**2 for place in places if "." in others):
            if place // size not in lines or place % size not in lines:
                return f"{sign!r} at {point_name(1 << place, size)}"
    return ""
