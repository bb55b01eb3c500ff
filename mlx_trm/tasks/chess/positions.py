"""Positions and moves of python-chess as tokens, and back."""

from typing import NamedTuple, Optional, Sequence

import chess
import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.chess.tokens import (
    CELLS,
    EMPTY,
    EN_PASSANT,
    FROM,
    MARKED,
    MARKED_CASTLING,
    OTHER,
    OTHER_CASTLING,
    OWN,
    OWN_CASTLING,
    PROMOTION,
    TO,
    is_clean,
    read_marks,
)

_PROBLEMS = (
    (chess.STATUS_EMPTY, "the board is empty"),
    (chess.STATUS_NO_WHITE_KING, "White has no king"),
    (chess.STATUS_NO_BLACK_KING, "Black has no king"),
    (chess.STATUS_TOO_MANY_KINGS, "a side has more than one king"),
    (chess.STATUS_PAWNS_ON_BACKRANK, "a pawn stands on the first or the last rank"),
    (chess.STATUS_TOO_MANY_WHITE_PAWNS, "White has more than 8 pawns"),
    (chess.STATUS_TOO_MANY_BLACK_PAWNS, "Black has more than 8 pawns"),
    (chess.STATUS_TOO_MANY_WHITE_PIECES, "White has more than 16 pieces"),
    (chess.STATUS_TOO_MANY_BLACK_PIECES, "Black has more than 16 pieces"),
    (chess.STATUS_OPPOSITE_CHECK, "the side that is not to move is in check"),
    (
        chess.STATUS_BAD_CASTLING_RIGHTS,
        "its castling rights name a king or rook that has moved; write - where nobody may castle",
    ),
    (
        chess.STATUS_INVALID_EP_SQUARE,
        "no pawn has just passed the en passant square; write - in its place",
    ),
    (chess.STATUS_TOO_MANY_CHECKERS, "more pieces give check than a move can bring about"),
    (chess.STATUS_IMPOSSIBLE_CHECK, "no move can have given this check"),
)
_PROMOTED = {PROMOTION - piece: piece for piece in (2, 3, 4, 5)}


class Position(NamedTuple):
    """A position with the side to move as White.

    Attributes:
        board: of python-chess.
        marked: the square of the piece that is asked about; None: none is.
    """

    board: chess.Board
    marked: Optional[int] = None


def find_problem(board: chess.Board) -> Optional[str]:
    """Say what makes a position illegal; None: nothing does."""
    status = board.status()
    for flag, problem in _PROBLEMS:
        if status & flag:
            return problem
    return None if status == chess.STATUS_VALID else "it is no legal position"


def turn_to_white(board: chess.Board, marked: Optional[int] = None) -> Position:
    """Give a position as the side to move sees it: as White's, where it is Black's by a mirror."""
    if board.turn == chess.WHITE:
        return Position(board, marked)
    return Position(board.mirror(), None if marked is None else chess.square_mirror(marked))


def encode_position(position: Position) -> np.ndarray:
    """Turn a position with White to move into (64,) uint8 tokens."""
    board, marked = position
    tokens = np.full(CELLS, EMPTY, dtype=np.uint8)
    for square, piece in board.piece_map().items():
        base = OWN if piece.color == chess.WHITE else OTHER
        tokens[square ^ 56] = base + piece.piece_type
    for square in chess.scan_forward(board.clean_castling_rights()):
        tokens[square ^ 56] = OWN_CASTLING if square < 8 else OTHER_CASTLING
    # Where no pawn can capture there, the right is no part of the position.
    if board.ep_square is not None and board.has_legal_en_passant():
        tokens[board.ep_square ^ 56] = EN_PASSANT
    if marked is not None:
        cell = marked ^ 56
        castles = tokens[cell] == OWN_CASTLING
        tokens[cell] = MARKED_CASTLING if castles else tokens[cell] - OWN + MARKED
    return tokens


def decode_position(tokens: np.ndarray) -> Position:
    """Turn (64,) tokens into a position with White to move; whether it is legal is not checked.

    Raises:
        DataError: if a token is of no position, or several pieces or en passant squares are marked.
    """
    board = chess.Board(None)
    marked: Optional[int] = None
    rights = 0
    for cell, token in enumerate(np.asarray(tokens).tolist()):
        square = cell ^ 56
        if not EMPTY <= token <= MARKED_CASTLING:
            raise DataError(f"{chess.square_name(square)}: token {token} is of no position")
        if token > MARKED:
            if marked is not None:
                raise DataError("more than one piece is marked")
            marked = square
            token = OWN_CASTLING if token == MARKED_CASTLING else token - MARKED + OWN
        if token == EN_PASSANT:
            if board.ep_square is not None:
                raise DataError("there is more than one en passant square")
            board.ep_square = square
        elif token in (OWN_CASTLING, OTHER_CASTLING):
            rights |= chess.BB_SQUARES[square]
            board.set_piece_at(square, chess.Piece(chess.ROOK, token == OWN_CASTLING))
        elif token > EMPTY:
            own = token <= OTHER
            board.set_piece_at(square, chess.Piece(token - (OWN if own else OTHER), own))
    board.castling_rights = rights
    return Position(board, marked)


def encode_move(move: chess.Move) -> np.ndarray:
    """Mark where a move of White leaves from and goes to, and what it promotes to: (64,) uint8."""
    tokens = np.full(CELLS, EMPTY, dtype=np.uint8)
    tokens[move.from_square ^ 56] = FROM
    tokens[move.to_square ^ 56] = PROMOTION - move.promotion if move.promotion else TO
    return tokens


def decode_move(tokens: np.ndarray) -> Optional[chess.Move]:
    """Read the move that a (64,) answer marks; None: it marks no single one."""
    left, reached = (np.flatnonzero(cells) for cells in read_marks(tokens))
    if len(left) != 1 or len(reached) != 1 or not is_clean(tokens):
        return None
    promotion = _PROMOTED.get(int(np.asarray(tokens)[reached[0]]))
    return chess.Move(int(left[0]) ^ 56, int(reached[0]) ^ 56, promotion)


def encode_targets(squares: Sequence[int]) -> np.ndarray:
    """Mark squares that a piece may go to: (64,) uint8."""
    tokens = np.full(CELLS, EMPTY, dtype=np.uint8)
    tokens[[square ^ 56 for square in squares]] = TO
    return tokens
