"""The chess task: where a piece may move, mate in one, mate in two.

S = 64 cells seen from the side to move, V = 30 tokens: see tokens.py. The label marks cells: those
that the marked piece may go to, or those that the mating move leaves and reaches. No position has a
name, so all share row 0 of the puzzle table.

Positions and moves are python-chess' (extra ``chess``); nothing is imported of it before a task is
made.
"""

from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence, Tuple, Union

import numpy as np

from mlx_trm.config.columns import split_fields
from mlx_trm.datasets.dataset import SetSource
from mlx_trm.errors import DataError
from mlx_trm.tasks.base import ScoredRows, Scorer, ShareScorer, register_task
from mlx_trm.tasks.board import Board, differing, is_unanswered, make_board
from mlx_trm.tasks.chess.data import ChessConfig, ChessData
from mlx_trm.tasks.chess.tokens import (
    CELLS,
    COLUMNS,
    VOCABULARY,
    has_castling,
    is_clean,
    mirror,
    mirrored_cells,
    most_probable_move,
)
from mlx_trm.tasks.chess.view import (
    describe_cells,
    draw_text,
    only_marks,
    paint_squares,
    show_letters,
)
from mlx_trm.tasks.puzzle_files import FilePuzzles
from mlx_trm.tasks.symmetries import Symmetry
from mlx_trm.tasks.text import Decoder


@register_task("chess", ChessConfig)
class Chess(ChessData):  # pylint: disable=too-many-public-methods
    """Mark where a piece may go, or the move that mates."""

    config: ChessConfig
    symbols = "pnbrqkPNBRQK12345678/.-wabcdefgh0"

    def augment(
        self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Mirror the files of half the rows of (B, 64) uint8 that have no castling rights."""
        flipped = (rng.random(len(inputs)) < 0.5) & ~has_castling(inputs)
        inputs, labels = (
            np.where(flipped[:, None], mirror(side), side) for side in (inputs, labels)
        )
        return inputs, labels

    def random_symmetry(self, rng: np.random.Generator) -> Symmetry:
        """Draw the mirror of the files, or nothing; true where nobody may castle."""
        cells = mirrored_cells() if rng.random() < 0.5 else np.arange(CELLS)
        return Symmetry(cells, np.arange(VOCABULARY, dtype=np.uint8))

    def draw_symmetry(self, inputs: np.ndarray, rng: np.random.Generator) -> Symmetry:
        """Draw a symmetry of the (64,) position: with castling rights it has none."""
        if has_castling(inputs):
            return Symmetry(np.arange(CELLS), np.arange(VOCABULARY, dtype=np.uint8))
        return self.random_symmetry(rng)

    def read_file(self, path: Union[str, Path]) -> Iterator[FilePuzzles]:
        """Read a CSV of Lichess or a text file.

        Mates come without labels: any mating move is right, so the rules judge.
        """
        for part in self._read(Path(path)):
            labels = part.labels if self.config.kind == "moves" else np.zeros_like(part.labels)
            yield part._replace(labels=labels)

    @property
    def csv_columns(self) -> Sequence[str]:
        """Lichess' names, or those that the settings give."""
        return self.config.columns or COLUMNS

    def csv_question(self, row: Dict[str, str], question: str) -> Optional[str]:
        """Play the opponent's move of a row of Lichess'; None where its themes are others.

        Raises:
            DataError: if the row is wrong.
        """
        from mlx_trm.tasks.chess.files import read_wanted_row

        fen, moves = (row.get(name.strip().lower()) for name in self.csv_columns)
        if fen is None or moves is None:
            return question
        found = read_wanted_row(fen, moves, row.get("themes"), self.config.kind)
        return None if found is None else self.format(found[0])

    def split_puzzles(self, lines: Iterable[str]) -> Iterator[Tuple[int, str]]:
        """Find the positions in lines of text: one a line, or eight rows; or rows of Lichess'."""
        from mlx_trm.tasks.chess.files import name_columns
        from mlx_trm.tasks.chess.notation import split_positions

        lines = list(lines)
        names = name_columns(lines[0].split(",")) if lines else None
        if names is None or self.config.columns is not None:
            return split_positions(lines)
        return self._play_rows(lines, [name.lower() for name in names])

    def _play_rows(self, lines: Sequence[str], names: Sequence[str]) -> Iterator[Tuple[int, str]]:
        """Find the positions in rows of Lichess' without a header."""
        for number, line in enumerate(lines, 1):
            try:
                fields = split_fields("", line)
                if line.strip() and len(fields) != len(names):
                    raise DataError(f"{len(fields)} columns, the first line has {len(names)}")
                question = self.csv_question(dict(zip(names, fields)), "") if line.strip() else None
            except DataError as error:
                raise DataError(f"line {number}: {error}") from error
            if question is not None:
                yield number, question

    def parse(self, text: str) -> np.ndarray:
        """Read a FEN or a board of letters, for ``moves`` with the square of a piece behind it.

        Raises:
            DataError: if it is malformed, or no legal position.
        """
        from mlx_trm.tasks.chess.notation import parse_position

        return parse_position(text, self.config.kind == "moves")

    def describe_editor(self) -> Dict[str, Any]:
        """Let pieces be put on a board."""
        return describe_cells(self.config.kind == "moves")

    def write_for_editor(self, text: str) -> str:
        """Give a position as eight rows, the side to move, castling, en passant, and the piece.

        Raises:
            DataError: if it cannot be read, or is no legal position.
        """
        from mlx_trm.tasks.chess.notation import write_rows

        return write_rows(text, self.config.kind == "moves")

    def draw_example(self, rng: np.random.Generator) -> str:
        """Make a puzzle to begin with, of a whole game or an ending."""
        return self.format(next(self.generate(1, rng))[0])

    def format(self, tokens: np.ndarray) -> str:
        """Write (64,) tokens: a FEN with White to move, a move such as ``e7e8q``, or squares."""
        from mlx_trm.tasks.chess.notation import format_tokens

        return format_tokens(tokens)

    @property
    def decoder(self) -> Optional[Decoder]:
        """Mates are answered by the most probable of all moves, which need not be legal."""
        return None if self.config.kind == "moves" else most_probable_move

    def answers(self, inputs: np.ndarray) -> Tuple[np.ndarray, Dict[int, str]]:
        """Answer (n, 64) positions by search, and say which have no mate."""
        from mlx_trm.tasks.chess.answers import find_answer

        found = [find_answer(row, self.config.kind) for row in inputs]
        labels = np.array([labels for labels, _ in found], dtype=np.uint8).reshape(-1, CELLS)
        return labels, {row: text for row, (_, text) in enumerate(found) if text is not None}

    def check(self, inputs: np.ndarray, tokens: np.ndarray) -> bool:
        """Say whether (64,) ``tokens`` are right: all cells, or any move that mates."""
        from mlx_trm.tasks.chess.answers import is_right

        return is_right(inputs, tokens, self.config.kind)

    def describe_answer(self, inputs: np.ndarray, tokens: np.ndarray) -> str:
        """Say what move or how many squares the (64,) ``tokens`` of an answer mark."""
        from mlx_trm.tasks.chess.answers import describe

        return describe(inputs, tokens, self.config.kind)

    def scorer(self, source: Optional[SetSource] = None) -> Optional[Scorer]:
        """Return a scorer of mates: ``legal_move``, and ``mate`` by whatever move.

        Where several moves mate, exact accuracy, which knows the label only, is lower. Of ``moves``
        the label says all.
        """
        del source
        if self.config.kind == "moves":
            return None
        return ShareScorer(("legal_move", "mate"), self._judge)

    def _judge(self, rows: ScoredRows) -> Dict[str, np.ndarray]:
        from mlx_trm.tasks.chess.answers import read_move

        inputs, predictions = rows.inputs, rows.predictions
        legal = is_clean(predictions)
        for row in np.flatnonzero(legal):
            legal[row] = read_move(inputs[row], predictions[row]) is not None
        right = legal.copy()
        for row in np.flatnonzero(legal):
            right[row] = self.check(inputs[row], predictions[row])
        return {"legal_move": legal, "mate": right}

    def board(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        before: Optional[np.ndarray] = None,
    ) -> Board:
        """Give the position with an answer's marks; no right answer has anything wrong."""
        changed, wrong = self._compare(tokens, inputs, labels, before)
        symbols = show_letters(tokens, inputs)
        return make_board(
            symbols,
            paint_squares(tokens, inputs),
            symbols != "",
            changed.reshape(8, 8),
            wrong.reshape(8, 8),
            text=self.format(tokens),
        )

    def _compare(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray],
        labels: Optional[np.ndarray],
        before: Optional[np.ndarray],
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Say which of the 64 cells have changed, and which are wrong."""
        previous = None if before is None else only_marks(before)
        changed, wrong = differing(only_marks(tokens), previous), differing(tokens, labels)
        if is_unanswered(np.asarray(tokens), inputs):
            wrong[:] = False
        elif inputs is not None and wrong.any() and self.check(inputs, tokens):
            wrong[:] = False  # another move that mates
        return changed, wrong

    def render_step(
        self,
        tokens: np.ndarray,
        before: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        color: bool = False,
    ) -> str:
        """Draw the position with an answer's marks, what changed marked. Arguments as of others."""
        changed, wrong = self._compare(tokens, inputs, labels, before)
        return draw_text(tokens, inputs, changed, wrong, color)

    def image(self, tokens: np.ndarray, inputs: Optional[np.ndarray] = None) -> np.ndarray:
        """Paint (64,) tokens: (8, 8, 3) uint8."""
        return paint_squares(tokens, inputs)
