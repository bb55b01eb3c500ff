"""Positions and answers as text: FEN, boards of letters, squares and moves."""

import re
from typing import Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import chess
import numpy as np

from mlx_trm.errors import DataError, shown
from mlx_trm.tasks.chess.fen import find_fen, plain_fields, plain_text, read_side
from mlx_trm.tasks.chess.pasted import drop_quotes, is_beside, is_field
from mlx_trm.tasks.chess.pasted import read_board as find_board
from mlx_trm.tasks.chess.pasted import read_row, says_side, split_pasted
from mlx_trm.tasks.chess.positions import (
    Position,
    decode_move,
    decode_position,
    encode_position,
    find_problem,
    turn_to_white,
)
from mlx_trm.tasks.chess.tokens import CELLS, SYMBOLS, is_clean, read_marks

# What FENs, boards and squares are written with.
WRITTEN = "pnbrqkPNBRQK12345678/.-wabcdefgh0"

_SQUARE = re.compile(r"[a-h][1-8]")
_GAME = re.compile(r"\[\w+ \"|1\.\s*\S")
# A mating move may end with the sign of a comment.
_COMMENT = re.compile(r"(?:^|\s)#")
_COUNTER = re.compile(r"\d{1,5}")
_FORM = (
    "write a FEN, such as '6k1/5ppp/8/8/8/8/8/R3K3 w Q - 0 1', or eight rows of eight letters, "
    "points for empty squares"
)


def parse_position(text: str, wants_square: bool) -> np.ndarray:
    """Read a position.

    Args:
        text: a FEN, whose fields behind the first may be missing from the right; or eight rows of
            letters and points instead of its first field. Then the square of a piece, if one is
            asked about. Without a side it is White's move.
        wants_square: whether a piece has to be named; otherwise none may be.

    Returns:
        (64,) uint8 tokens, seen from the side to move.

    Raises:
        DataError: if it cannot be read, or is no legal position.
    """
    position = turn_to_white(*read_position(text, wants_square))
    if position.marked is not None and position.board.color_at(position.marked) != chess.WHITE:
        raise DataError("the square that is named has no piece of the side to move")
    return encode_position(position)


def write_rows(text: str, wants_square: bool) -> str:
    """Give a position as rows of letters and points with ``/`` between them, and the other fields.

    It stays as it is written, with Black's pieces Black's. Arguments and errors are those of
    :func:`parse_position`.
    """
    board, square = read_position(text, wants_square)
    placement, *fields = board.fen(en_passant="fen").split()[:4]
    rows = re.sub(r"\d", lambda run: "." * int(run[0]), placement)
    asked = [] if square is None else [chess.square_name(square)]
    return " ".join([rows, *fields, *asked])


def read_position(text: str, wants_square: bool) -> Position:
    """Read a position as it is written; arguments and errors are those of parse_position."""
    placement, fields = _split(text)
    square: Optional[int] = None
    if wants_square:
        if not fields or not _SQUARE.fullmatch(fields[-1]) or _passes(placement, fields):
            raise DataError(
                "the square of the piece that is asked about is missing: write it behind the "
                "position, such as 'FEN e2'"
            )
        square = chess.parse_square(fields.pop())
    board = read_board(placement, fields)
    return Position(board, square)


def _passes(placement: str, fields: List[str]) -> bool:
    """Say whether the third field, where it is the last, is the square that a pawn has passed."""
    if len(fields) != 3:
        return False
    try:
        return chess.BaseBoard(placement).piece_at(chess.parse_square(fields[2])) is None
    except ValueError:
        return True  # the board says what is wrong with it


def read_board(placement: str, fields: List[str]) -> chess.Board:
    """Make a board of the fields of a FEN.

    Args:
        placement: the first one.
        fields: the others, as far as they are there.

    Raises:
        DataError: if they are malformed, or the position is not legal.
    """
    if len(fields) > 5 or any(not _COUNTER.fullmatch(each) for each in fields[3:]):
        raise DataError(f"{shown(repr(' '.join(fields)))} is not what follows a board; {_FORM}")
    try:
        board = chess.Board(" ".join([placement, *fields, *["w", "-", "-"][len(fields) :]]))
    except ValueError as error:
        raise DataError(f"cannot be read: {shown(str(error), 120)}; {_FORM}") from error
    problem = find_problem(board)
    if problem is not None:
        raise DataError(f"no legal position: {problem}")
    return board


def _split(text: str) -> Tuple[str, List[str]]:
    """Split a text into the first field of a FEN and the others."""
    lines = plain_text(text).splitlines()
    sides = {read_side(line) for line in lines if says_side(line)}
    rows, fields = _split_plain("\n".join(line for line in lines if not says_side(line)))
    if len(sides) == 1 and (not fields or _SQUARE.fullmatch(fields[0])):
        fields = [str(sides.pop()), *fields]
    elif len(sides) > 1 and not fields:
        raise DataError(
            "both sides are said to be to move; say it once, as w or b behind the board"
        )
    return "/".join(re.sub(r"\.+", lambda run: str(len(run[0])), row) for row in rows), fields


def _split_plain(text: str) -> Tuple[List[str], List[str]]:
    """Split a text in which no line says whose move it is."""
    first, *others = text.split("/")
    if others and "://" not in text:  # a page writes a row a line, with the slash behind it
        text = "/".join([first.rstrip(), *map(str.strip, others)])
    named = _find_named(text)
    if named is not None:
        words = named.split()
        return words[0].split("/"), words[1:]
    words = text.split()
    if words and "/" in words[0]:
        return words[0].split("/"), plain_fields(" ".join(["", *words[1:]]))
    return _split_rows(text)


def _find_named(text: str) -> Optional[str]:
    """Find the FEN in lines of text, with the fields that stand on lines of their own behind it.

    Raises:
        DataError: if there are several.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    found = [(number, fen) for number, fen in enumerate(map(find_fen, lines)) if fen]
    if not found:
        return None
    if len({fen for _, fen in found}) > 1:
        raise DataError(f"there are {len(found)} FENs; give one, or a file with one a line")
    number, fen = found[0]
    behind = [line.strip() for line in lines[number + 1 :] if is_field(line)]
    if " " in fen:  # what it says itself is not said again
        behind = [line for line in behind if _SQUARE.fullmatch(line)]
    return " ".join([fen, *plain_fields(" ".join(["", *behind]))])


def _split_rows(text: str) -> Tuple[List[str], List[str]]:
    """Find a board of letters: as programs print it, or without line ends."""
    if _GAME.match(text.lstrip()):
        raise DataError(f"is a game in PGN that does not begin with a position; {_FORM}")
    board = find_board(text)
    if board is not None:
        return board.rows, board.fields
    letters, words = "", drop_quotes(text).split()
    while words and len(letters) < CELLS and re.fullmatch("[pnbrqkPNBRQK.]+", words[0]):
        letters += words.pop(0)
    if len(letters) != CELLS:
        what = f" and then {shown(repr(words[0]))}" if words else ""
        raise DataError(f"the board has {len(letters)} squares{what}, not 64; {_FORM}")
    return [letters[at : at + 8] for at in range(0, CELLS, 8)], plain_fields(" ".join(["", *words]))


def split_positions(lines: Iterable[str]) -> Iterator[Tuple[int, str]]:
    """Find the positions in lines of text: one a line, or a row a line; ``#`` begins a comment.

    Behind eight rows a line may hold the other fields of the FEN. Of what a program has printed,
    PGN among it, the FENs that it names are taken, or else the boards that it has drawn.

    Returns:
        Pairs of the number of a position's first line, from 1, and its text.
    """
    lines = [_COMMENT.split(plain_text(line))[0] for line in lines]
    pasted = list(split_pasted(lines))
    if pasted:
        yield from pasted
        return
    before: Optional[_Part] = None
    for part in _split_lines(lines):
        fen = None if before is None else _one_of_two(before, part)
        if before is not None and fen is None:
            yield before.first, before.text
        before = part if before is None or fen is None else _Part(before.first, part.last, fen)
    if before is not None:
        yield before.first, before.text


class _Part(NamedTuple):
    """Lines that hold one position: the numbers of the first and the last one, and their text."""

    first: int
    last: int
    text: str


def _one_of_two(before: _Part, part: _Part) -> Optional[str]:
    """Give the FEN of a board that is drawn directly above or below it; None: they are two."""
    fens = [each.text for each in (before, part) if "/" in each.text]
    if part.first != before.last + 1 or len(fens) != 1:
        return None
    try:
        (above, said), (below, more) = _split(before.text), _split(part.text)
    except DataError:
        return None
    drawn = said if fens[0] == part.text else more
    return fens[0] if above == below and not drawn else None


def _split_lines(lines: Sequence[str]) -> Iterator[_Part]:
    """Find the positions in lines of text without frames, comments or names of FENs."""
    rows = [read_row(line) is not None for line in lines]
    sides = [number for number, line in enumerate(lines) if says_side(line)]
    # Whether the side is said above a board or below it, the first one tells.
    above = bool(sides) and True in rows and sides[0] < rows.index(True)
    parts: List[str] = []
    first, last, before, left = 0, 0, "", 0
    for number, (line, row) in enumerate(zip([*lines, ""], [*rows, False]), start=1):
        text = line.strip()
        if text and not row and is_beside(line):
            continue
        whole = bool(parts) and left == 0
        if whole and not row and (is_field(text) if text else not above and number <= len(lines)):
            if not (above and says_side(text)):
                parts, last = (parts + [text], number) if text else (parts, last)
                continue
        if parts and (whole or not row):
            yield _Part(first, last, "\n".join(parts))
            parts = []
        last = number
        if row:
            if not parts:
                parts, first, before, left = [before] if before else [], number, "", 8
            parts, left = [*parts, line.rstrip("\r\n")], left - 1
        elif says_side(text):
            before = text
        elif text:
            parts, first, before, left = [*filter(None, [before]), text], number, "", 0


def format_tokens(tokens: np.ndarray) -> str:
    """Write (64,) tokens on one line.

    A position is a FEN with White to move, then the square that is asked about; an answer is its
    move or its squares, ``-`` where there are none; anything else eight rows of symbols.
    """
    tokens = np.asarray(tokens)
    if is_clean(tokens):
        move = decode_move(tokens)
        if move is not None:
            return move.uci()
        left, _ = read_marks(tokens)
        if not left.any() and tokens.max() < 26:
            return " ".join(name_targets(tokens)) or "-"
    try:
        position = decode_position(tokens)
    except DataError:
        text = "".join(SYMBOLS[each] if each < len(SYMBOLS) else "?" for each in tokens.tolist())
        return "/".join(text[at : at + 8] for at in range(0, CELLS, 8))
    marked = "" if position.marked is None else f" {chess.square_name(position.marked)}"
    return position.board.fen(en_passant="fen") + marked


def name_targets(tokens: np.ndarray) -> List[str]:
    """Give the names of the squares that a (64,) answer marks as reached, from a1 to h8."""
    cells = np.flatnonzero(read_marks(tokens)[1])
    return [chess.square_name(square) for square in sorted(int(cell) ^ 56 for cell in cells)]
