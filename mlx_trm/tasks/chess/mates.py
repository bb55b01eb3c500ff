"""Moves that mate at once or in two, found exactly by search, and where a piece may go."""

from typing import Iterable, Iterator, List, Optional

import chess


def find_targets(board: chess.Board, square: int) -> List[int]:
    """Give the squares to which the piece on a square may legally move, in order."""
    moves = board.generate_legal_moves(from_mask=chess.BB_SQUARES[square])
    return sorted({move.to_square for move in moves})


def find_checks(
    board: chess.Board, moves: Optional[Iterable[chess.Move]] = None
) -> Iterator[chess.Move]:
    """Yield the legal moves that may give check, all that do and a few that do not.

    Trying each move takes most of a search's time. A move checks from where it goes, by uncovering
    a piece behind it, or is one of those that change more than two squares.

    Args:
        board: the position.
        moves: all its legal moves, where they are known.
    """
    own, occupied = board.occupied_co[board.turn], board.occupied
    king = board.king(not board.turn)
    if king is None:
        return
    knight = chess.BB_KNIGHT_ATTACKS[king]
    bishop = chess.BB_DIAG_ATTACKS[king][chess.BB_DIAG_MASKS[king] & occupied]
    rook = (
        chess.BB_RANK_ATTACKS[king][chess.BB_RANK_MASKS[king] & occupied]
        | chess.BB_FILE_ATTACKS[king][chess.BB_FILE_MASKS[king] & occupied]
    )
    # From where a pawn of this side attacks the king: where one of the other would attack from it.
    pawn = chess.BB_PAWN_ATTACKS[not board.turn][king]
    reaching = (0, pawn, knight, bishop, rook, bishop | rook, 0)
    # A piece of this side uncovers another one only if a line piece stands behind it.
    covers = own & (bishop | rook)
    open_lines = occupied & ~covers
    behind = (
        chess.BB_DIAG_ATTACKS[king][chess.BB_DIAG_MASKS[king] & open_lines] & board.bishops
        | chess.BB_RANK_ATTACKS[king][chess.BB_RANK_MASKS[king] & open_lines] & board.rooks
        | chess.BB_FILE_ATTACKS[king][chess.BB_FILE_MASKS[king] & open_lines] & board.rooks
    )
    covers = covers if (behind | board.queens) & own else 0
    special = board.kings | (chess.BB_SQUARES[board.ep_square] if board.ep_square else 0)
    for move in board.legal_moves if moves is None else moves:
        left, reached = chess.BB_SQUARES[move.from_square], chess.BB_SQUARES[move.to_square]
        piece = board.piece_type_at(move.from_square) or 0
        if reaching[piece] & reached or left & covers or move.promotion:
            yield move
        elif (left | reached) & special:
            yield move


def find_mates(
    board: chess.Board, moves: Optional[Iterable[chess.Move]] = None
) -> List[chess.Move]:
    """Give the moves that mate at once; arguments as of :func:`find_checks`."""
    return list(_mates(board, moves))


def _mates(
    board: chess.Board, moves: Optional[Iterable[chess.Move]] = None
) -> Iterator[chess.Move]:
    for move in find_checks(board, moves):
        board.push(move)
        mate = board.is_checkmate()
        board.pop()
        if mate:
            yield move


def forces_mate(board: chess.Board, move: chess.Move) -> bool:
    """Say whether a legal move mates, or leaves only replies after which there is mate at once."""
    board.push(move)
    try:
        replied = False
        for reply in board.legal_moves:
            replied = True
            board.push(reply)
            mate = next(_mates(board), None)
            board.pop()
            if mate is None:
                return False
        return replied or board.is_check()
    finally:
        board.pop()


def find_mates_in_two(board: chess.Board, most: Optional[int] = None) -> List[chess.Move]:
    """Give the moves that force mate in two, or mate at once.

    Args:
        board: the position; it is as it was afterwards.
        most: stop at so many; None: find all.
    """
    found: List[chess.Move] = []
    for move in list(board.legal_moves):
        if forces_mate(board, move):
            found.append(move)
            if len(found) == most:
                break
    return found
