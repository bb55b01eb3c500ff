"""Boards as people paste them: this program's drawings, other programs', pictures of pieces.

What is read is a board's eight rows, with or without a frame, coordinates and signs for empty
squares; Black's side is below where coordinates say so.
"""

import re
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mlx_trm.errors import DataError, shown
from mlx_trm.tasks.chess.fen import PIECES, find_fen, looks_like_fen, plain_text, read_side
from mlx_trm.tasks.pasted import cut_drawing, split_drawings

# Pictures of pieces, and what others write for an empty square.
_TO_TEXT = str.maketrans(
    {
        **dict(zip("♔♕♖♗♘♙♚♛♜♝♞♟", "KQRBNPkqrbnp")),
        **dict.fromkeys("·∙•_-*0+□■▢◻◼⬜⬛⭘○░▒▓", "."),
        "\ufe0e": "",
        "\ufe0f": "",
    }
)
_BARS = "|│┃║"
_ROW = re.compile(f"[{PIECES}.]{{8}}")
# A piece as its colour and its kind, as in "wK"; then every piece of a row is written so.
_NAMED_PIECE = re.compile(f"[wb][{PIECES}]")
_LEFT_RANK = re.compile(rf"^\s*(?:[{_BARS}]\s*)?([1-8])(?=\s*[{_BARS}):]|\s+\S)[):]?\s*")
_RIGHT_RANK = re.compile(rf"(?<=[\s{_BARS}])([1-8])\s*(?:[{_BARS}]\s*)?$")
_BAR = re.compile(f"[{_BARS}]")
_REPLY = re.compile(r"^\s*>+\s?")
_QUOTES = str.maketrans("", "", "[](){}'\"`")
_RULE = re.compile(r"[\s+|=_`\[\](){},\u2500-\u257f-]*")
_FILES = re.compile(r"[\s|+]*(a[\s|]*b[\s|]*c[\s|]*d|h[\s|]*g[\s|]*f[\s|]*e)[\sa-h|+]*", re.I)
_SQUARE = re.compile(r"[a-h][1-8]")
_FIELDS = re.compile(r"[wb](\s+\S+)*|[a-h][1-8]")
# So many ranks beside rows are more than a chance; some may be missing.
_SOME_RANKS = 4
# Four characters a square: what this program draws.
_OWN_WIDTH = 32
_OWN_ROW = re.compile(r"(?:[ (\[<].[ )\]>][ +!*])*")


class Pasted(NamedTuple):
    """A board that was found in a text.

    Attributes:
        rows: eight of eight letters and points, from the far end as White sees it.
        fields: words that follow it, as behind a FEN's first field.
    """

    rows: List[str]
    fields: List[str]


def read_row(line: str) -> Optional[str]:
    """Give the eight squares of a row without a frame; None: the line is none."""
    line = _RIGHT_RANK.sub("", _LEFT_RANK.sub("", _REPLY.sub("", line)))
    cells = _split_cells(line.translate(_QUOTES).translate(_TO_TEXT).rstrip("/\r\n"))
    cells = ["." if cell in ("", "..") else cell for cell in cells]
    if all(cell == "." or _NAMED_PIECE.fullmatch(cell) for cell in cells):
        cells = [cell[-1].upper() if cell[0] == "w" else cell[-1].lower() for cell in cells]
    row = "".join(cells)
    return row if _ROW.fullmatch(row) else None


def drop_quotes(text: str) -> str:
    """Take out of a text the quotes, brackets and commas of lists."""
    return text.translate(_QUOTES).replace(",", " ")


def _split_cells(text: str) -> List[str]:
    """Split a row at what stands between its squares: bars, commas, tabs, blanks or nothing."""
    for marks in (_BARS, ",;", "\t"):
        parts = re.split(f"[{marks}]", text)
        first, last = not parts[0].strip(), not parts[-1].strip()
        if marks == _BARS and first and last:
            parts = parts[1:-1]
        elif len(parts) == 9 and (last or marks == _BARS and first):
            parts = parts[:-1] if last else parts[1:]
        # Nothing at all is an empty square, but not where others are written: there one is missing.
        blank = [part for part in parts if not part.strip(" .")]
        empty = {"." if part.strip() else part[:1] * (marks == _BARS) for part in blank}
        if len(parts) == 8 and ("" not in empty or len(empty) == 1):
            return [part.strip() for part in parts]
    words = re.sub(f"[{_BARS},]", " ", text).split()
    return words if len(words) == 8 else list("".join(words))


def is_beside(line: str) -> bool:
    """Say whether a line is part of a frame, or names the files."""
    return bool(_RULE.fullmatch(line) and line.strip() or _FILES.fullmatch(line))


def read_board(text: str) -> Optional[Pasted]:
    """Find a board of rows in a text that has no line of words; None: there is none.

    Raises:
        DataError: if a framed board has a row that cannot be read.
    """
    lines = plain_text(text).splitlines()
    drawn = cut_drawing(lines)
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
    if _is_turned(lines):
        rows = [row[::-1] for row in rows[::-1]]
        asked = asked and f"{'hgfedcba'['abcdefgh'.index(asked[0])]}{9 - int(asked[1])}"
    fields: List[str] = []
    for line in others:
        if line.strip() and not is_beside(line) and (drawn is None or is_field(line)):
            fields += line.split()
    return Pasted(rows, fields + ([asked] if asked and fields[-1:] != [asked] else []))


def _is_turned(lines: Sequence[str]) -> bool:
    """Say whether Black's side is below, by the ranks beside the rows or else the files."""
    rows = [line for line in lines if _BAR.search(line) or read_row(line)]
    ranks = [rank for rank in map(_rank_of, rows) if rank]
    if len(ranks) >= _SOME_RANKS:
        turned = ranks == sorted(ranks)
        if not turned and len(ranks) <= 8 and ranks != sorted(ranks)[::-1]:
            raise DataError(f"the ranks beside the rows are {' '.join(ranks)}; put them in order")
        return turned
    return any(_FILES.fullmatch(line) and line.strip(" |+\t")[:1] in "hH" for line in lines)


def is_field(line: str) -> bool:
    """Say whether a line holds a FEN's other fields, or says who is to move."""
    return bool(_FIELDS.fullmatch(line.strip())) or says_side(line)


def says_side(line: str) -> bool:
    """Say whether a line tells in words who is to move."""
    return not _BAR.search(line) and line.count("/") < 5 and read_side(line) is not None


def _rank_of(line: str) -> str:
    found = _LEFT_RANK.search(line) or _RIGHT_RANK.search(line)
    return found[1] if found else ""


def _last_row(lines: Sequence[str]) -> int:
    """Give the place of a drawing's last line; behind it stands what was said of it."""
    sides = [place for place, line in enumerate(lines) if set(line) & set("│|┘┗╝╯└")]
    return sides[-1] if sides else len(lines) - 1


def _read_drawn(drawn: Sequence[str]) -> Tuple[List[str], str]:
    """Read what stands between a frame's sides: the rows, and the square that is asked about."""
    rows, asked = [], ""
    for number, line in enumerate(drawn):
        text = line.translate(_TO_TEXT)
        if len(line) == _OWN_WIDTH and _OWN_ROW.fullmatch(line):
            row, at = text[1::4], text[::4].find("<")
            if re.search(r"\[[QRBN]\]", text):
                raise DataError(
                    f"row {number + 1} of the board shows what an answer promotes to, not what "
                    "stands there; give the position without the answer"
                )
            asked = f"{'abcdefgh'[at]}{8 - number}" if at >= 0 else asked
        elif len(text) == 24 and not (text[::3] + text[2::3]).strip():
            row = text[1::3].replace(" ", ".")
        else:
            # Where something is missing, the frame's side stands further left.
            row = read_row(f"|{text}" if _BAR.search(text[-1:]) else f"|{text}|") or text
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
    named = any(not lines[number - 1].strip().startswith(fen.split()[0]) for number, fen in fens)
    parts = list(split_drawings(lines))
    if named or fens and any(drawn for _, _, drawn in parts):
        for number, fen in found:
            square = lines[number].strip() if number < len(lines) else ""
            if fen:
                yield number, f"{fen}\n{square}" if _SQUARE.fullmatch(square) else fen
            elif looks_like_fen(lines[number - 1]):  # what is wrong with it is said, not passed by
                yield number, lines[number - 1].strip()
        return
    above = bool(parts) and not parts[0][2] and any(map(says_side, parts[0][1]))
    for place, (start, part, drawn) in enumerate(parts):
        if not drawn:
            continue
        near = place - 1 if above else place + 1
        beside = parts[near][1] if 0 <= near < len(parts) else []
        said = [line for line in beside if is_field(line)]
        yield start, "\n".join([*part, *(said[-1:] if above else said[:1])])
