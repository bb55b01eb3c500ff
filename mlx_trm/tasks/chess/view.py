"""A position with the marks of an answer: painted, drawn for a terminal, and typed on a page."""

from typing import Any, Dict, Optional

import numpy as np

from mlx_trm.tasks.board import CellsEditor, Choice, Look, Tool, css_color
from mlx_trm.tasks.chess.tokens import (
    EMPTY,
    FROM,
    LETTERS,
    MARKED,
    MARKED_CASTLING,
    PAD,
    TO,
    VOCABULARY,
)
from mlx_trm.tasks.text import BOLD, GREEN, RED, UNDERLINE, mark_of, styled

_LIGHT, _DARK = (240, 217, 181), (181, 136, 99)
_LEFT, _REACHED, _ASKED, _NONE = (247, 211, 88), (140, 186, 81), (120, 170, 214), (128, 128, 128)
_PIECES = ("king", "queen", "rook", "bishop", "knight", "pawn")
_GLYPHS = dict(zip("KQRBNPkqrbnp", "♔♕♖♗♘♙♚♛♜♝♞♟"))
_SQUARES = tuple(f"{file}{rank}" for rank in "87654321" for file in "abcdefgh")
_EMPTY_TEXT = "/".join(["." * 8] * 8)
_SIDES = {"from": "()", "to": "[]", "asked": "<>"}


def put_together(tokens: np.ndarray, inputs: Optional[np.ndarray]) -> np.ndarray:
    """Give (64,) what is drawn below marks: the position, or what stands in the cells without one.

    Args:
        tokens: (64,) of a position or an answer.
        inputs: (64,) the position that it answers; None: not known.
    """
    return np.asarray(tokens if inputs is None else inputs)


def show_letters(tokens: np.ndarray, inputs: Optional[np.ndarray]) -> np.ndarray:
    """Give the (8, 8) symbols of a picture: pieces, and what a pawn is promoted to."""
    under = put_together(tokens, inputs)
    known = np.where(under < VOCABULARY, under, PAD)
    letters = np.array([LETTERS[token].strip() for token in known.tolist()], dtype=object)
    for number, piece in enumerate("QRBN", TO + 1):
        letters[np.asarray(tokens) == number] = f"={piece}"
    letters[np.asarray(tokens) == PAD] = "?"
    return np.reshape(letters, (8, 8))


def paint_squares(tokens: np.ndarray, inputs: Optional[np.ndarray]) -> np.ndarray:
    """Paint (64,) tokens: (8, 8, 3) uint8, marks in colours of their own."""
    tokens, under = np.asarray(tokens), put_together(tokens, inputs)
    place = np.arange(64)
    dark = (place // 8 + place % 8) % 2 == 1
    colors = np.where(dark[:, None], np.array(_DARK), np.array(_LIGHT))
    colors[(under > MARKED) & (under <= MARKED_CASTLING)] = _ASKED
    colors[tokens == FROM], colors[tokens >= TO] = _LEFT, _REACHED
    colors[(tokens == PAD) | (tokens >= VOCABULARY)] = _NONE
    return np.reshape(colors, (8, 8, 3)).astype(np.uint8)


def draw_text(
    tokens: np.ndarray,
    inputs: Optional[np.ndarray],
    changed: np.ndarray,
    wrong: np.ndarray,
    color: bool,
) -> str:
    """Draw (64,) tokens for a terminal, four characters a square.

    A piece that is asked about stands in ``<>``, a square that is left in ``()``, one that is
    reached in ``[]``, with the new piece where a pawn is promoted; then the mark of a step.

    Args:
        tokens: of a position or an answer.
        inputs: (64,) the position; None: not known.
        changed, wrong: (64,) bool.
        color: use ANSI colours.
    """
    tokens, under = np.asarray(tokens), put_together(tokens, inputs)
    letters = show_letters(tokens, inputs).reshape(-1)
    cells = []
    for cell, token in enumerate(tokens.tolist()):
        letter = str(letters[cell])[-1:] or ("·" if token != PAD else "?")
        sides, style = "  ", ""
        if MARKED < under[cell] <= MARKED_CASTLING:
            sides, style = _SIDES["asked"], BOLD
        if token == FROM:
            sides, style = _SIDES["from"], BOLD
        elif token >= TO:
            sides, style = _SIDES["to"], GREEN
        if wrong[cell]:
            style = RED
        style += UNDERLINE if changed[cell] else ""
        text = sides[0] + letter + sides[1]
        mark = mark_of(bool(changed[cell]), bool(wrong[cell]))
        cells.append(styled(text, style, color) + mark)
    line = "─" * 32
    rows = [f"  ┌{line}┐"]
    for row in range(8):
        rows.append(f"{8 - row} │{''.join(cells[8 * row : 8 * row + 8])}│")
    return "\n".join([*rows, f"  └{line}┘", "    " + "   ".join("abcdefgh")])


def only_marks(tokens: np.ndarray) -> np.ndarray:
    """Give (64,) tokens with everything but an answer's marks and padding as empty cells."""
    tokens = np.asarray(tokens)
    return np.where((tokens >= FROM) | (tokens == PAD), tokens, EMPTY)


def describe_cells(asks: bool) -> Dict[str, Any]:
    """Say how a page lets a position be set up, as :meth:`TextForm.describe_editor` does.

    Args:
        asks: whether a piece is named that the puzzle asks about.
    """
    looks = {".": Look("empty")}
    tools = []
    for color, letters in (("white", "KQRBNP"), ("black", "kqrbnp")):
        for letter, piece in zip(letters, _PIECES):
            # A variation selector keeps a phone from drawing a pawn as an emoji.
            glyph = _GLYPHS[letter] + "\ufe0e"
            looks[letter] = Look(f"{color} {piece}", glyph)
            tools.append(Tool(f"{color} {piece}", letter, turns={letter: "."}, keys=(letter,)))
    tools.append(Tool("empty", ".", keys=(".", "Delete", "Backspace")))
    rights = [
        "".join(right for bit, right in enumerate("KQkq") if number >> bit & 1) or "-"
        for number in range(16)
    ]
    passed = [square for square in _SQUARES if square[1] in "36"]
    choices = [
        Choice("to move", (("w", "White"), ("b", "Black"))),
        Choice("castling", tuple((each, "nobody" if each == "-" else each) for each in rights)),
        Choice("en passant", (("-", "nowhere"), *((each, each) for each in passed))),
    ]
    hint = "A FEN, or eight rows of letters and points with / between them"
    if asks:
        choices.append(
            Choice("asked about", (("", "no piece yet"), *((each, each) for each in _SQUARES)))
        )
        tools.append(Tool("the piece that is asked about", points="asked about", keys=("?",)))
        hint += ", and behind it the square of the piece that is asked about"
    return CellsEditor(
        label="Chess board",
        hint=f"{hint}.",
        rows=8,
        columns=8,
        looks=looks,
        tools=tools,
        choices=choices,
        names=_SQUARES,
        papers=(css_color(np.array(_LIGHT)), css_color(np.array(_DARK))),
        empty=f"{_EMPTY_TEXT} w - -",
    ).describe()
