"""Files of chess: the puzzles of Lichess as a CSV, and plain text with a position a line.

A row of the CSV has the position before the opponent's move in FEN, and Moves: that move, then the
solution. Text is answered by search.
"""

from functools import partial
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import chess
import numpy as np

from mlx_trm.errors import DataError, shown
from mlx_trm.tasks.chess.answers import find_answer
from mlx_trm.tasks.chess.mates import find_targets
from mlx_trm.tasks.chess.notation import parse_position, read_board, split_positions
from mlx_trm.tasks.chess.positions import (
    encode_move,
    encode_position,
    encode_targets,
    turn_to_white,
)
from mlx_trm.tasks.puzzle_files import CsvBlock, FilePuzzles, read_puzzle_file

COLUMNS = ("FEN", "Moves")
# The theme that a row has to have, and the moves in it, the opponent's first one among them.
_THEMES = {"mate1": "mateIn1", "mate2": "mateIn2"}
_MOVES = {"mate1": 2, "mate2": 4}
_TEXT_CHUNK = 256


class Chosen(NamedTuple):
    """Which puzzles of a file are taken.

    Attributes:
        kind: ``moves``, ``mate1`` or ``mate2``.
        low, high: ratings, at least and at most; None: any.
        columns: of the position and of the moves; None: Lichess' names.
    """

    kind: str
    low: Optional[int] = None
    high: Optional[int] = None
    columns: Optional[Sequence[str]] = None


def read_chess_file(path: Union[str, Path], chosen: Chosen) -> Iterator[FilePuzzles]:
    """Read a file part by part: a CSV where its name or first line says so, else text.

    Args:
        path: of the file, UTF-8.
        chosen: which puzzles. Rows of other themes or ratings are left out unread.

    Raises:
        DataError: at the first row that is wrong, naming file and line, or if nothing is left.
    """
    parts = read_puzzle_file(
        path,
        partial(_read_csv, chosen=chosen),
        partial(_read_text, chosen=chosen),
        True,
        chosen.columns or COLUMNS,
        f"puzzle that is wanted: {_describe(chosen)}",
    )
    return (part for part in parts if len(part.inputs))


def _describe(chosen: Chosen) -> str:
    words = [f"task.kind is {chosen.kind}"]
    if chosen.kind in _THEMES:
        words.append(f"the theme {_THEMES[chosen.kind]}")
    words += [f"task.min_rating {chosen.low}"] if chosen.low is not None else []
    words += [f"task.max_rating {chosen.high}"] if chosen.high is not None else []
    return ", ".join(words)


def _read_csv(block: CsvBlock, chosen: Chosen) -> FilePuzzles:
    """Turn the rows of a block that are wanted into puzzles."""
    themes = block.texts("themes")
    rated = "rating" in block.fields
    if not rated and (chosen.low is not None or chosen.high is not None):
        block.refuse(0, "there is no column Rating, which min_rating and max_rating need")
    count = len(block.fields["question"][0])
    ratings, bad = np.zeros(count, np.int64), np.zeros(count, bool)
    if rated:
        ratings, bad = block.numbers("rating")
    rows: List[int] = []
    puzzles: List[Tuple[np.ndarray, np.ndarray]] = []
    for row in range(count):
        theme = _THEMES.get(chosen.kind)
        if theme is not None and themes is not None and theme not in themes[row].split():
            continue
        if rated and bad[row]:
            block.refuse(row, f"the rating {shown(repr(block.text('rating', row)))} is no number")
        if chosen.low is not None and ratings[row] < chosen.low:
            continue
        if chosen.high is not None and ratings[row] > chosen.high:
            continue
        try:
            puzzles.append(
                read_row(block.text("question", row), block.text("answer", row), chosen.kind)
            )
        except DataError as error:
            block.refuse(row, str(error))
        rows.append(row)
    inputs, labels = (
        np.array([each[side] for each in puzzles], dtype=np.uint8).reshape(-1, 64)
        for side in (0, 1)
    )
    return FilePuzzles(inputs, labels, ratings[rows] if rated else None)


def read_row(fen: str, moves: str, kind: str) -> Tuple[np.ndarray, np.ndarray]:
    """Make a puzzle of a row.

    Args:
        fen: before the opponent's move.
        moves: that move and the solution, in UCI notation.
        kind: ``moves`` asks about the piece that the solution moves.

    Returns:
        (64,) uint8 inputs and labels.

    Raises:
        DataError: if a move is not legal, or the last one does not mate. That a first move forces
            mate whatever is replied is not searched.
    """
    placement, _, fields = fen.strip().partition(" ")
    board = read_board(placement, fields.split())
    words = moves.split()
    wanted = _MOVES.get(kind)
    if len(words) < 2 or wanted is not None and len(words) != wanted:
        raise DataError(f"has {len(words)} moves, {kind} needs {wanted or 'at least 2'}")
    puzzle: Optional[Tuple[np.ndarray, np.ndarray]] = None
    for number, word in enumerate(words[: wanted or 2]):
        try:
            move = chess.Move.from_uci(word)
        except ValueError as error:
            raise DataError(f"{shown(repr(word))} is no move, such as e2e4 or e7e8q") from error
        if not board.is_legal(move):
            raise DataError(f"the move {shown(word)} is not legal")
        move = board.parse_uci(word)  # castling as the king moves, however it is written
        if number == 1:
            puzzle = _puzzle(board, move, kind)
        board.push(move)
    if wanted is not None and not board.is_checkmate():
        raise DataError(f"the moves end without mate, which {kind} needs")
    if puzzle is None:  # there are two words at least
        raise DataError("has no solution")
    return puzzle


def _puzzle(board: chess.Board, move: chess.Move, kind: str) -> Tuple[np.ndarray, np.ndarray]:
    position = turn_to_white(board, move.from_square if kind == "moves" else None)
    inputs = encode_position(position)
    if position.marked is not None:
        return inputs, encode_targets(find_targets(position.board, position.marked))
    if board.turn == chess.BLACK:
        move = chess.Move(
            chess.square_mirror(move.from_square),
            chess.square_mirror(move.to_square),
            move.promotion,
        )
    return inputs, encode_move(move)


def _read_text(
    path: Path, lines: Iterator[Tuple[int, str]], chosen: Chosen
) -> Iterator[FilePuzzles]:
    """Read positions and answer them."""
    if chosen.low is not None or chosen.high is not None:
        raise DataError(f"{path}: text has no ratings, which min_rating and max_rating need")
    inputs, labels = [], []
    for number, text in split_positions(line for _, line in lines):
        try:
            position = parse_position(text, chosen.kind == "moves")
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        answer, problem = find_answer(position, chosen.kind)
        if problem is not None:
            raise DataError(f"{path}:{number}: {problem}")
        inputs.append(position)
        labels.append(answer)
        if len(inputs) == _TEXT_CHUNK:
            yield FilePuzzles(np.stack(inputs), np.stack(labels))
            inputs, labels = [], []
    if inputs:
        yield FilePuzzles(np.stack(inputs), np.stack(labels))
