"""Answers by the rules: the labels of puzzles, and whether an answer is right."""

from functools import lru_cache
from typing import Dict, Optional, Tuple

import numpy as np

from mlx_trm.tasks.go.positions import (
    BLACK_POINT,
    EMPTY,
    MOVE,
    WHITE_POINT,
    Position,
    decode,
    position_problem,
)
from mlx_trm.tasks.go.rules import points_of, rules_of
from mlx_trm.tasks.go.solver import MOST_NODES, CaptureSearch, UnsettledError


def answer_puzzles(
    inputs: np.ndarray, kind: str, size: int, quiet: int
) -> Tuple[np.ndarray, Dict[int, str]]:
    """Answer puzzles.

    Args:
        inputs: (n, S) uint8 tokens.
        kind: ``capture`` or ``territory``.
        size: rows of the board.
        quiet: moves of the attacker that are no atari, at most.

    Returns:
        (n, S) uint8 labels, and what is wrong with puzzles that have none, by row.
    """
    labels, problems = np.array(inputs, dtype=np.uint8), {}
    for row, tokens in enumerate(labels):
        problem = position_problem(decode(tokens, kind, rules_of(size)), kind, size)
        label = None if problem else label_of(tokens, kind, size, quiet)
        if label is None:
            problems[row] = problem or (
                f"whether the marked group can be captured is not settled after {MOST_NODES:,} "
                "positions; give a board with fewer open points, or a lower task.quiet_moves"
            )
        else:
            labels[row] = label
    return labels, problems


def label_of(tokens: np.ndarray, kind: str, size: int, quiet: int) -> Optional[np.ndarray]:
    """Give the (S,) uint8 label of a puzzle of (S,) tokens; None: the solver does not settle it."""
    rules, label = rules_of(size), np.array(tokens, dtype=np.uint8)
    position = decode(tokens, kind, rules)
    if kind == "territory":
        black, white = map(rules.to_flags, rules.territory(position.black, position.white))
        label[black], label[white] = BLACK_POINT, WHITE_POINT
        return label
    moves = best_moves(position, size, quiet)
    if moves is None:
        return None
    label[rules.to_flags(moves)] = MOVE
    return label


@lru_cache(maxsize=4096)
def best_moves(position: Position, size: int, quiet: int) -> Optional[int]:
    """Give the set of first moves that capture the marked group with the fewest quiet moves.

    Returns:
        A set of points, 0 where the group is safe; None where the solver does not settle it.
    """
    try:
        return sum(_search(position, size).first_moves(quiet))
    except UnsettledError:
        return None


@lru_cache(maxsize=4096)
def move_captures(position: Position, move: int, size: int, quiet: int) -> bool:
    """Say whether one first move captures the marked group; False where that is not settled."""
    try:
        return _search(position, size).captures(move, quiet)
    except UnsettledError:
        return False


def _search(position: Position, size: int) -> CaptureSearch:
    return CaptureSearch(rules_of(size), position.attacker, position.defender, position.marked)


def is_right(inputs: np.ndarray, tokens: np.ndarray, kind: str, size: int, quiet: int) -> bool:
    """Say by the rules whether (S,) tokens answer the puzzle of (S,) inputs.

    Territory has to be exact. Of a group that can be captured at least one first move has to be
    marked, and each one that is marked has to capture it, whether it is the label's or not; where
    the group is safe, nothing may be marked.
    """
    inputs, tokens = np.asarray(inputs), np.asarray(tokens)
    if kind == "territory":
        label = label_of(inputs, kind, size, quiet)
        return label is not None and np.array_equal(tokens, label)
    marks = tokens == MOVE
    rules = rules_of(size)
    position = decode(inputs, kind, rules)
    if not np.array_equal(np.where(marks, EMPTY, tokens), inputs):
        return False
    if position_problem(position, kind, size):
        return False
    if not marks.any():
        return best_moves(position, size, quiet) == 0
    return all(
        move_captures(position, move, size, quiet) for move in points_of(rules.to_bits(marks))
    )
