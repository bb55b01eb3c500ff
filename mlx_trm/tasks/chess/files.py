"""Files of chess: the puzzles of Lichess, CSVs of question and answer, and text of positions.

A row of Lichess' has the position before the opponent's move in FEN, and Moves: that move, then the
solution. ``data generate`` writes a position and its answer as the task writes them. Text is
answered by search.
"""

import re
from functools import partial
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import chess
import numpy as np

from mlx_trm.config.columns import own_names
from mlx_trm.errors import DataError, shown
from mlx_trm.tasks.chess.answers import find_answer, is_right
from mlx_trm.tasks.chess.mates import find_targets
from mlx_trm.tasks.chess.notation import parse_position, read_board, read_position, split_positions
from mlx_trm.tasks.chess.positions import (
    encode_move,
    encode_position,
    encode_targets,
    turn_to_white,
)
from mlx_trm.tasks.chess.tokens import COLUMNS
from mlx_trm.tasks.puzzle_files import CsvBlock, CsvHead, FilePuzzles, read_puzzle_file

# The theme that a row has to have, and the moves in it, the opponent's first one among them.
_THEMES = {"mate1": "mateIn1", "mate2": "mateIn2"}
_MOVES = {"mate1": 2, "mate2": 4}
_TEXT_CHUNK = 256
# Lichess' columns, as its files have them, and two fields of a row.
_LICHESS = "PuzzleId FEN Moves Rating RatingDeviation Popularity NbPlays Themes GameUrl".split()
_FEN = re.compile(r"(?:\w+/){7}\w+ [wb] \S+ \S+( \d+){0,2}")
_TWO_MOVES = re.compile(r"[a-h][1-8][a-h][1-8][qrbn]?( [a-h][1-8][a-h][1-8][qrbn]?)+")


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
        chosen: which puzzles. Rows of other themes or ratings are left out unread; where there is
            no column of themes, those that the rules call mates are taken.

    Raises:
        DataError: at the first row that is wrong, naming file and line, or if nothing is left.
    """
    parts = read_puzzle_file(
        path,
        partial(_read_csv, chosen=chosen),
        partial(_read_text, chosen=chosen),
        True,
        what=f"puzzle that is wanted: {_describe(chosen)}",
        read_head=partial(_read_head, columns=chosen.columns),
    )
    return (part for part in parts if len(part.inputs))


def _read_head(fields: List[str], columns: Optional[Sequence[str]]) -> CsvHead:
    """Tell question and answer from Lichess' columns, and a row of Lichess' from both."""
    if columns is not None:
        return CsvHead(fields, columns)
    names = name_columns(fields)
    if names is not None:
        return CsvHead(names, COLUMNS, True)
    own = {"question", "answer"} <= set(own_names(fields))
    return CsvHead(fields, None if own else COLUMNS)


def name_columns(fields: Sequence[str]) -> Optional[List[str]]:
    """Name the columns of a row of Lichess', where the header is missing; None: it is none."""
    for at, (fen, moves) in enumerate(zip(fields, fields[1:])):
        if _FEN.fullmatch(fen.strip()) and _TWO_MOVES.fullmatch(moves.strip()):
            known = _LICHESS if at == 1 else ()
            others = [f"column {number}" for number in range(1, len(fields) + 1)]
            names = [*known[: len(fields)], *others[len(known) :]]
            names[at : at + 2] = COLUMNS
            return names
    return None


# (64,) uint8 inputs and labels.
Puzzle = Tuple[np.ndarray, np.ndarray]


class NoMateError(DataError):
    """A row's moves are legal and end without mate."""


def has_theme(themes: Optional[str], kind: str) -> bool:
    """Say whether a row's themes are those of a kind's puzzles, or may be: they are not known."""
    return themes is None or kind not in _THEMES or _THEMES[kind] in themes.split()


def read_wanted_row(fen: str, moves: str, themes: Optional[str], kind: str) -> Optional[Puzzle]:
    """Make a puzzle of a row of Lichess', if it is one of the kind.

    Args:
        fen, moves, kind: as of :func:`read_row`.
        themes: what the row is said to be; None: it is not said, and the rules tell.

    Returns:
        (64,) uint8 inputs and labels; None: it is another kind's.

    Raises:
        DataError: if a move is not legal, or a row is not what its themes say.
    """
    if not has_theme(themes, kind):
        return None
    if themes is not None or kind not in _MOVES:
        return read_row(fen, moves, kind)
    if len(moves.split()) != _MOVES[kind]:
        return None
    try:
        puzzle = read_row(fen, moves, kind)
    except NoMateError:
        return None
    return puzzle if is_right(*puzzle, kind) else None


def _describe(chosen: Chosen) -> str:
    words = [f"task.kind is {chosen.kind}"]
    if chosen.kind in _THEMES:
        words.append(f"the theme {_THEMES[chosen.kind]}")
    words += [f"task.min_rating {chosen.low}"] if chosen.low is not None else []
    words += [f"task.max_rating {chosen.high}"] if chosen.high is not None else []
    return ", ".join(words)


def _read_csv(block: CsvBlock, chosen: Chosen) -> FilePuzzles:
    """Turn the rows of a block that are wanted into puzzles."""
    own = block.columns is None
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
        said = None if themes is None else themes[row]
        if not own and not has_theme(said, chosen.kind):
            continue
        if rated and bad[row]:
            block.refuse(row, f"the rating {shown(repr(block.text('rating', row)))} is no number")
        if chosen.low is not None and ratings[row] < chosen.low:
            continue
        if chosen.high is not None and ratings[row] > chosen.high:
            continue
        question, answer = block.text("question", row), block.text("answer", row)
        try:
            if own:
                puzzle: Optional[Puzzle] = read_own_row(question, answer, chosen.kind)
            else:
                puzzle = read_wanted_row(question, answer, said, chosen.kind)
        except DataError as error:
            block.refuse(row, str(error))
        if puzzle is not None:
            rows.append(row)
            puzzles.append(puzzle)
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
        raise NoMateError(f"the moves end without mate, which {kind} needs")
    if puzzle is None:  # there are two words at least
        raise DataError("has no solution")
    return puzzle


def read_own_row(question: str, answer: str, kind: str) -> Tuple[np.ndarray, np.ndarray]:
    """Make a puzzle of a position and its answer, as the task writes them.

    Args:
        question: the position, for ``moves`` with the square that is asked about.
        answer: a move such as ``e2e4`` as the position is written, or squares; ``-``: none.
        kind: ``moves``, ``mate1`` or ``mate2``.

    Returns:
        (64,) uint8 inputs and labels.

    Raises:
        DataError: if it cannot be read, or the answer is wrong by the rules.
    """
    board, marked = read_position(question, kind == "moves")
    inputs = encode_position(turn_to_white(board, marked))
    try:
        if kind == "moves":
            words = [] if answer.strip() == "-" else answer.split()
            labels = encode_targets([chess.parse_square(word) for word in words])
            if board.turn == chess.BLACK:
                labels = np.reshape(labels.reshape(8, 8)[::-1], -1)
        else:
            labels = encode_move(_as_white(board, chess.Move.from_uci(answer.strip())))
    except ValueError as error:
        what = "squares, such as 'e3 e4'" if kind == "moves" else "move, such as e2e4 or e7e8q"
        raise DataError(f"{shown(repr(answer))} is no {what}") from error
    if not is_right(inputs, labels, kind):
        raise DataError(f"the answer {shown(repr(answer))} is wrong by the rules")
    return inputs, labels


def _as_white(board: chess.Board, move: chess.Move) -> chess.Move:
    """Give a move as the side to move sees it."""
    if board.turn == chess.WHITE:
        return move
    left, reached = map(chess.square_mirror, (move.from_square, move.to_square))
    return chess.Move(left, reached, move.promotion)


def _puzzle(board: chess.Board, move: chess.Move, kind: str) -> Tuple[np.ndarray, np.ndarray]:
    position = turn_to_white(board, move.from_square if kind == "moves" else None)
    inputs = encode_position(position)
    if position.marked is not None:
        return inputs, encode_targets(find_targets(position.board, position.marked))
    return inputs, encode_move(_as_white(board, move))


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
