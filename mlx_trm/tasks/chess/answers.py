"""Answers by the rules: which are right, what the right one is, and what an answer says."""

from typing import Optional, Tuple

import chess
import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.chess.mates import find_mates, find_mates_in_two, find_targets, forces_mate
from mlx_trm.tasks.chess.notation import name_targets
from mlx_trm.tasks.chess.positions import (
    Position,
    decode_move,
    decode_position,
    encode_move,
    encode_targets,
)
from mlx_trm.tasks.chess.tokens import EMPTY, is_clean, read_marks


def find_answer(inputs: np.ndarray, kind: str) -> Tuple[np.ndarray, Optional[str]]:
    """Answer a puzzle.

    Args:
        inputs: (64,) tokens of a position.
        kind: ``moves``, ``mate1`` or ``mate2``.

    Returns:
        (64,) uint8, of several right moves the first that the search finds; and what is wrong with
        a puzzle that has no answer, whose labels are empty cells.
    """
    board, marked = decode_position(inputs)
    if kind == "moves":
        return encode_targets([] if marked is None else find_targets(board, marked)), None
    found = find_mates(board) if kind == "mate1" else []
    if kind == "mate2" and not find_mates(board):
        found = find_mates_in_two(board, 1)
    if found:
        return encode_move(found[0]), None
    problem = "there is no mate in one" if kind == "mate1" else "there is no mate in two"
    if kind == "mate2" and find_mates(board):
        problem = "there is mate in one already"
    return np.full(len(inputs), EMPTY, dtype=np.uint8), problem


def read_move(inputs: np.ndarray, tokens: np.ndarray) -> Optional[Tuple[Position, chess.Move]]:
    """Read the legal move that an answer marks.

    Args:
        inputs: (64,) tokens of a position.
        tokens: (64,) of the answer.

    Returns:
        The position and the move; None: it marks no legal move.
    """
    move = decode_move(tokens)
    if move is None:
        return None
    try:
        position = decode_position(inputs)
    except DataError:
        return None
    board = position.board
    # python-chess takes a king that moves onto its own rook for castling, too.
    onto_own = board.color_at(move.to_square) == board.turn
    return None if onto_own or not board.is_legal(move) else (position, move)


def is_right(inputs: np.ndarray, tokens: np.ndarray, kind: str) -> bool:
    """Say by the rules whether an answer is right: any move that mates, or forces mate in two.

    Args:
        inputs: (64,) tokens of a position.
        tokens: (64,) of the answer.
        kind: ``moves``, ``mate1`` or ``mate2``.
    """
    if kind == "moves":
        if not is_clean(tokens):
            return False
        try:
            return bool((find_answer(inputs, kind)[0] == tokens).all())
        except DataError:
            return False
    found = read_move(inputs, tokens)
    if found is None:
        return False
    board, move = found[0].board, found[1]
    if kind == "mate1":
        board.push(move)
        return board.is_checkmate()
    return forces_mate(board, move)


def describe(inputs: np.ndarray, tokens: np.ndarray, kind: str) -> str:
    """Say in a few words what an answer is; arguments as of :func:`is_right`."""
    if kind == "moves":
        names = name_targets(tokens)
        left, _ = read_marks(tokens)
        return "no answer" if left.any() or not is_clean(tokens) else _count(len(names))
    found = read_move(inputs, tokens)
    if found is None:
        return "no legal move"
    board, move = found[0].board, found[1]
    written = board.san(move)
    if is_right(inputs, tokens, kind):
        return f"{written}, mate" if written.endswith("#") else f"{written}, mate in two"
    return f"{written}, which {'is no mate' if kind == 'mate1' else 'forces no mate in two'}"


def _count(number: int) -> str:
    return f"{number} square" + ("" if number == 1 else "s")
