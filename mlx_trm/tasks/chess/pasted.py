"""Boards as people paste them: this program's drawings, other programs', pictures of pieces.

What is read is a board's eight rows, with or without a frame, coordinates and signs for empty
squares, whichever side is below; and a FEN within a line, as chess programs print it.
"""

import re
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mlx_trm.errors import DataError, shown
from mlx_trm.tasks.pasted import cut_drawing, split_drawings, strip_colors

_PIECES = "pnbrqkPNBRQK"
# Pictures of pieces, and what others write for an empty square.
_TO_TEXT = str.maketrans(
    {
        **dict(zip("♔♕♖♗♘♙♚♛♜♝♞♟", "KQRBNPkqrbnp")),
        **dict.fromkeys("·∙•_-*□■▢◻◼⭘○░▒▓", "."),
        "\ufe0e": "",
        "\ufe0f": "",
    }
)
_ROW = re.compile(f"[{_PIECES}.]{{8}}")
# A FEN's first field; in front of it may stand what a program calls it.
_FEN = re.compile(
    rf"(?<![^\s:=\"'(>\[])(?:[{_PIECES}1-8]{{1,8}}/){{7}}[{_PIECES}1-8]{{1,8}}(?=[\s\"'\]),;]|$)"
)
_LEFT_RANK = re.compile(r"^\s*([1-8])(?=\s*[|│┃║]|\s+\S)\s*")
_RIGHT_RANK = re.compile(r"(?<=[\s|│┃║])([1-8])\s*$")
_BARS = re.compile("[|│┃║]")
_RULE = re.compile(r"[\s+|=\u2500-\u257f-]*")
_FILES = re.compile(r"[\s|+]*(a[\s|]*b[\s|]*c[\s|]*d|h[\s|]*g[\s|]*f[\s|]*e)[\sa-h|+]*", re.I)
_TO_MOVE = re.compile(r"\W*(white|black)\W+(?:is\W+)?(?:to\W+)?(?:move|play)s?\W*", re.I)
_FIELDS = re.compile(r"[wb](\s+\S+)*|[a-h][1-8]")
# Four characters a square: what this program draws.
_OWN_WIDTH = 32


class Pasted(NamedTuple):
    """A board that was found in a text.

    Attributes:
        rows: eight of eight letters and points, from the far end as White sees it.
        fields: words that follow it, as behind a FEN's first field.
    """

    rows: List[str]
    fields: List[str]


def find_fen(line: str) -> Optional[str]:
    """Find a FEN in a line, with what follows it; None: there is none.

    Quotes and brackets around it, as a tag of PGN has, end it.
    """
    found = _FEN.search(line)
    if found is None:
        return None
    text = line[found.start() :]
    if found.start() and line[found.start() - 1] in "\"'([":
        text = re.split(r"[\"'\])]", text)[0]
    return text.strip()


def read_row(line: str) -> Optional[str]:
    """Give the eight squares of a row without a frame; None: the line is none."""
    text = _RIGHT_RANK.sub("", _LEFT_RANK.sub("", line)).translate(_TO_TEXT)
    parts = [part.strip() for part in _BARS.split(text.strip().rstrip("/"))]
    if len(parts) == 10 and not parts[0] and not parts[-1]:
        parts = parts[1:-1]
    cells = (
        "".join(part or "." for part in parts)
        if len(parts) == 8
        else "".join("".join(parts).split())
    )
    return cells if _ROW.fullmatch(cells) else None


def is_beside(line: str) -> bool:
    """Say whether a line is part of a frame, or names the files."""
    return bool(_RULE.fullmatch(line) and line.strip() or _FILES.fullmatch(line))


def read_board(text: str) -> Optional[Pasted]:
    """Find a board of rows in a text; None: there is none.

    Raises:
        DataError: if a framed board has a row that cannot be read.
    """
    lines = strip_colors(text).splitlines()
    drawn = cut_drawing(lines)
    ranks = [rank for rank in map(_rank_of, lines) if rank]
    asked = ""
    if drawn is not None:
        rows, asked = _read_drawn(drawn)
        others = lines[_last_row(lines) + 1 :]
    else:
        places = [place for place, line in enumerate(lines) if read_row(line)]
        rows = [read_row(lines[place]) or "" for place in places]
        others = [line for place, line in enumerate(lines) if place not in places]
    if len(rows) != 8:
        return None
    if ranks == sorted(ranks) and len(ranks) >= 8:  # Black's side is below
        rows = [row[::-1] for row in rows[::-1]]
        asked = asked and f"{'hgfedcba'['abcdefgh'.index(asked[0])]}{9 - int(asked[1])}"
    fields: List[str] = []
    for line in others:
        side = _TO_MOVE.fullmatch(line)
        if side:
            fields = [side[1][0].lower(), *fields]
        elif line.strip() and not is_beside(line) and (drawn is None or is_field(line)):
            fields += line.split()
    return Pasted(rows, fields + ([asked] if asked and not fields[-1:] == [asked] else []))


def is_field(line: str) -> bool:
    """Say whether a line holds a FEN's other fields, or says who is to move."""
    return bool(_FIELDS.fullmatch(line.strip())) or says_side(line)


def says_side(line: str) -> bool:
    """Say whether a line tells in words who is to move."""
    return _TO_MOVE.fullmatch(line) is not None


def _rank_of(line: str) -> str:
    found = _LEFT_RANK.search(line) or _RIGHT_RANK.search(line)
    return found[1] if found else ""


def _last_row(lines: Sequence[str]) -> int:
    """Give the place of a drawing's last line; behind it stands what was said of it."""
    return max(place for place, line in enumerate(lines) if set(line) & set("│|┘┗╝╯└"))


def _read_drawn(drawn: Sequence[str]) -> Tuple[List[str], str]:
    """Read what stands between a frame's sides: the rows, and the square that is asked about."""
    rows, asked = [], ""
    for number, line in enumerate(drawn):
        text = line.translate(_TO_TEXT)
        if len(line) == _OWN_WIDTH and len(text) == _OWN_WIDTH and not _BARS.search(text):
            row, at = text[1::4], text[::4].find("<")
            asked = f"{'abcdefgh'[at]}{8 - number}" if at >= 0 else asked
        elif len(text) == 24 and not _BARS.search(text):
            row = text[1::3].replace(" ", ".")
        else:
            row = read_row(f"|{text}|") or text
        if not _ROW.fullmatch(row):
            raise DataError(
                f"row {number + 1} of the board is {shown(repr(line.strip()))}, not eight squares: "
                "letters of KQRBNPkqrbnp, points where they are empty"
            )
        rows.append(row)
    return rows, asked


def split_pasted(lines: Sequence[str]) -> Iterator[Tuple[int, str]]:
    """Find boards where a program has written other things, too; none where it has not.

    A FEN tells more than a drawing, so drawings count only where there is none.

    Returns:
        Pairs of the number of a board's first line, from 1, and its text.
    """
    found = [(number, find_fen(line)) for number, line in enumerate(lines, 1)]
    fens = [(number, fen) for number, fen in found if fen]
    named = any(not lines[number - 1].strip().startswith(fen) for number, fen in fens)
    parts = list(split_drawings(lines))
    if named or fens and any(drawn for _, _, drawn in parts):
        yield from fens
        return
    for place, (start, part, drawn) in enumerate(parts):
        if not drawn:
            continue
        behind = parts[place + 1][1] if place + 1 < len(parts) else []
        said = [line for line in behind if is_field(line)]
        yield start, "\n".join([*part, *said[:1]])
