"""Makes puzzles: positions of seeded random games, whose labels a search finds exactly."""

import random
from typing import Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, TypeVar

import chess
import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.chess.mates import find_mates, find_mates_in_two, find_targets
from mlx_trm.tasks.chess.positions import (
    Position,
    decode_position,
    encode_move,
    encode_position,
    encode_targets,
    turn_to_white,
)
from mlx_trm.tasks.chess.tokens import position_key

# Raised whenever the same seed gives other puzzles.
GENERATOR_VERSION = 1

T = TypeVar("T")
# (64,) uint8 inputs and labels.
Puzzle = Tuple[np.ndarray, np.ndarray]

# Half-moves of a game from the first position, and from a random ending.
_LONGEST = {"games": 160, "endings": 30}
# So often a greedy player takes the most valuable piece that it can; the rest is at random.
_GREED = 0.8
_VALUES = (0, 1, 3, 3, 5, 9, 0)
# Of the pieces that are asked about, so many may be ones without a move.
_STUCK = 0.125
# Of a game's positions, so many are used to ask about a piece: neighbours are much alike.
_TAKEN = 0.2
# A variant differs by up to so many changes of a piece; so many are tried for each that is kept.
_CHANGES = 3
_TRIES = 6
# So many positions in a row without a new puzzle, and no more are looked for.
_PATIENCE = 200_000


class Wanted(NamedTuple):
    """Which puzzles are to be made.

    Attributes:
        kind: one of ``KINDS``.
        style: one of ``STYLES``.
        unique: of mates, only positions in which one move alone is right.
    """

    kind: str
    style: str = "games"
    unique: bool = True


def generate_puzzles(
    wanted: Wanted, count: int, rng: np.random.Generator, exclude: Optional[Set[bytes]] = None
) -> Iterator[Puzzle]:
    """Make different puzzles, one after the other.

    Args:
        wanted: which.
        count: how many.
        rng: decides everything.
        exclude: :func:`position_key` of positions to keep out.

    Returns:
        Pairs of (64,) uint8 inputs and (64,) uint8 labels.

    Raises:
        DataError: if so many are not found.
    """
    # Python's generator draws single numbers ten times as fast as NumPy's.
    draws = random.Random(int(rng.integers(2**62)))
    seen = set(exclude or ())
    find = {"moves": _ask_for_moves, "mate1": _ask_for_mate, "mate2": _ask_for_two}[wanted.kind]
    made = in_vain = 0
    while made < count:
        for position in find(wanted, draws):
            in_vain += 1
            if position is None:
                continue
            inputs, labels = position
            key = position_key(inputs)
            if key in seen:
                continue
            seen.add(key)
            yield inputs, labels
            made, in_vain = made + 1, 0
            if made == count:
                return
        if in_vain > _PATIENCE:
            raise DataError(
                f"chess ({wanted.kind}, {wanted.style}): only {made} different puzzles found, "
                f"{count} wanted; ask for fewer"
            )


Found = Iterator[Optional[Puzzle]]


def _ask_for_moves(wanted: Wanted, draws: random.Random) -> Found:
    """Play a game; ask where a piece of some of its positions may go."""
    for board, moves in play_game(wanted.style, draws):
        if draws.random() >= _TAKEN:
            yield None
            continue
        movable = sorted({move.from_square for move in moves})
        own = list(chess.scan_forward(board.occupied_co[board.turn]))
        square = _pick(own if draws.random() < _STUCK else movable, draws)
        position = turn_to_white(board, square)
        asked = square if position.marked is None else position.marked
        yield encode_position(position), encode_targets(find_targets(position.board, asked))


def _ask_for_mate(wanted: Wanted, draws: random.Random) -> Found:
    """Play a game; ask for the mates that it has, for each once."""
    asked: Set[chess.Move] = set()
    for board, moves in play_game(wanted.style, draws):
        found = find_mates(board, moves)
        yield None if asked.intersection(found) else _puzzle(board, found, wanted.unique)
        asked.update(found)


def _ask_for_two(wanted: Wanted, draws: random.Random) -> Found:
    """Play a game; where a side can mate, ask what it could have done a move before."""
    earlier: List[Tuple[chess.Board, bool]] = []
    for board, moves in play_game(wanted.style, draws):
        mates = bool(find_mates(board, moves))
        puzzle = None
        if mates and len(earlier) > 1 and not earlier[-2][1]:
            before = earlier[-2][0]
            found = find_mates_in_two(before, 2 if wanted.unique else None)
            puzzle = _puzzle(before, found, wanted.unique)
        yield puzzle
        earlier = [*earlier[-1:], (board.copy(stack=False), mates)]


def _puzzle(board: chess.Board, right: List[chess.Move], unique: bool) -> Optional[Puzzle]:
    """Make a puzzle of a position whose right moves are known; None: there is none or too many."""
    if not right or unique and len(right) > 1:
        return None
    position = turn_to_white(board)
    move = right[0]
    if not board.turn:
        move = chess.Move(move.from_square ^ 56, move.to_square ^ 56, move.promotion)
    return encode_position(Position(position.board)), encode_move(move)


def vary_puzzles(
    puzzles: Iterable[Puzzle],
    wanted: Wanted,
    variants: int,
    rng: np.random.Generator,
    exclude: Set[bytes],
) -> Iterator[Puzzle]:
    """Follow each mate by variants of it, positions that a few pieces tell apart.

    A search answers each anew: often the mate is the same, else another, and positions without one
    are dropped. It takes a tenth of the time that looking through games for another mate does.

    Args:
        puzzles: pairs of (64,) uint8 inputs and labels.
        wanted: which variants are kept.
        variants: of each puzzle, at most.
        rng: decides everything.
        exclude: :func:`position_key` of positions to keep out.

    Returns:
        Pairs of (64,) uint8 inputs and labels; all variants are different.
    """
    draws = random.Random(int(rng.integers(2**62)))
    seen = set(exclude)
    for inputs, labels in puzzles:
        seen.add(position_key(inputs))
        yield inputs, labels
        board = decode_position(inputs).board
        left = variants
        for _ in range(_TRIES * variants):
            if not left:
                break
            found = _change(board, wanted, draws)
            if found is not None and position_key(found[0]) not in seen:
                seen.add(position_key(found[0]))
                left -= 1
                yield found


def _change(board: chess.Board, wanted: Wanted, draws: random.Random) -> Optional[Puzzle]:
    """Take off, move or add pieces; give the puzzle that this makes, if it makes one."""
    changed = board.copy(stack=False)
    changed.ep_square = None
    for _ in range(1 + int(draws.random() * _CHANGES)):
        occupied = list(chess.scan_forward(changed.occupied))
        square, action = _pick(occupied, draws), draws.random()
        piece = changed.piece_at(square)
        if piece is None or (piece.piece_type == chess.KING and action >= 0.2):
            continue  # a king may move, and not often
        empty = list(chess.scan_forward(chess.BB_ALL & ~changed.occupied))
        if action < 0.8:
            changed.remove_piece_at(square)
        if action < 0.5 or action >= 0.8:  # moved; or a piece like it is added
            changed.set_piece_at(_pick(empty, draws), piece)
    changed.castling_rights = changed.clean_castling_rights()
    if not changed.is_valid():
        return None
    if wanted.kind == "mate1":
        return _puzzle(changed, find_mates(changed), wanted.unique)
    if find_mates(changed):
        return None
    return _puzzle(changed, find_mates_in_two(changed, 2 if wanted.unique else None), wanted.unique)


def play_game(style: str, draws: random.Random) -> Iterator[Tuple[chess.Board, List[chess.Move]]]:
    """Play a game, each side at random or greedy.

    Args:
        style: ``games``: from the first position; ``endings``: from one of few pieces.
        draws: decides everything.

    Returns:
        The board before each move, which goes on to change, and its legal moves, at least one.
    """
    board = chess.Board() if style == "games" else draw_ending(draws)
    greedy = (draws.random() < 0.5, draws.random() < 0.5)
    for _ in range(_LONGEST[style]):
        moves = list(board.legal_moves)
        if not moves:
            return
        yield board, moves
        move = _pick(moves, draws)
        if greedy[board.turn] and draws.random() < _GREED:
            worth = [_worth(board, each) + draws.random() for each in moves]
            move = moves[worth.index(max(worth))]
        board.push(move)


def _worth(board: chess.Board, move: chess.Move) -> int:
    """Give what a move wins, in pawns."""
    taken = _VALUES[board.piece_type_at(move.to_square) or 0]
    return taken + (_VALUES[move.promotion] - 1 if move.promotion else 0)


def draw_ending(draws: random.Random) -> chess.Board:
    """Draw a legal position of two kings, two or three pieces of a side, at most two of another."""
    while True:
        board = chess.Board(None)
        squares = draws.sample(range(64), 7)
        strong = draws.random() < 0.5
        board.turn = draws.random() < 0.5
        board.set_piece_at(squares[0], chess.Piece(chess.KING, strong))
        board.set_piece_at(squares[1], chess.Piece(chess.KING, not strong))
        for square in squares[2 : 4 + int(draws.random() * 2)]:
            board.set_piece_at(square, chess.Piece(_pick((5, 4, 4, 3, 2), draws), strong))
        for square in squares[5 : 5 + int(draws.random() * 3)]:
            board.set_piece_at(square, chess.Piece(_pick((1, 2, 3, 4), draws), not strong))
        if board.is_valid():
            return board


def _pick(items: Sequence[T], draws: random.Random) -> T:
    """Draw one of the items, the same in every version of Python."""
    return items[int(draws.random() * len(items))]
