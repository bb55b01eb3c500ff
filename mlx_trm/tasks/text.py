"""Puzzles as people write and see them: parsing, formatting, drawing, and judging an answer."""

import re
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.tasks.board import Board, differing, is_unanswered, lay_out, make_board
from mlx_trm.tasks.symmetries import Symmetry

# Reads (n, S, V) float32 logits, whose softmax over V is each cell's probabilities: (n, S) uint8.
Decoder = Callable[[np.ndarray], np.ndarray]
# How a terminal is told to write, and to stop it.
BOLD, RED, GREEN, PLAIN = "\033[1m", "\033[31m", "\033[32m", "\033[0m"
UNDERLINE, NO_UNDERLINE = "\033[4m", "\033[24m"
ANSI = re.compile(r"(\033\[[0-9;]*m)")
# What stands beside a cell in a terminal, whether it has colours or not.
WRONG_MARK, CHANGED_MARK, BOTH_MARK = "!", "+", "*"
LEGEND = f"{CHANGED_MARK} changed  {WRONG_MARK} wrong  {BOTH_MARK} both"


def mark_of(changed: bool, wrong: bool) -> str:
    """Give the character that stands beside a cell; a space where there is nothing to say."""
    if wrong:
        return BOTH_MARK if changed else WRONG_MARK
    return CHANGED_MARK if changed else " "


def styled(text: str, style: str, color: bool) -> str:
    """Write a text in a terminal's style, where that is wanted and there is one."""
    return style + text + PLAIN if color and style else text


def frame_square(cells: Sequence[str], size: int) -> str:
    """Put the cells of a square grid into a frame, row by row.

    Args:
        cells: size x size of them, each two characters wide, colour codes apart.
        size: rows and columns.
    """
    rows = ["".join(cells[at : at + size]) for at in range(0, len(cells), size)]
    line = "─" * (2 * size)
    return "\n".join([f"┌{line}┐", *(f"│{row}│" for row in rows), f"└{line}┘"])


def place_name(cell: int, size: int) -> str:
    """Say where a cell of a square grid is."""
    return f"row {cell // size + 1} column {cell % size + 1}"


class TextForm:  # pylint: disable=too-many-public-methods
    """Puzzles as people write and see them, for ``solve`` and ``data show``: a base of tasks.

    Each method may be overridden; those that a task does without say so or give nothing.

    Attributes:
        symbols: what puzzles are written with, white space apart; so a mistyped puzzle is told
            from a mistyped file name.
        config: the task's section of the configuration.
    """

    symbols = ".0123456789"
    config: Any

    def split_puzzles(self, lines: Iterable[str]) -> Iterator[Tuple[int, str]]:
        """Find the puzzles in the lines of a text file: one a line, ``#`` begins a comment.

        Returns:
            Pairs of the number of a puzzle's first line, from 1, and what :meth:`parse` reads.
        """
        for number, line in enumerate(lines, start=1):
            text = line.split("#")[0].strip()
            if text:
                yield number, text

    @property
    def csv_columns(self) -> Optional[Sequence[str]]:
        """Names of a CSV's columns of puzzle and answer; None: known by their usual names."""
        columns: Optional[Sequence[str]] = getattr(self.config, "columns", None)
        return columns

    def csv_question(self, row: Dict[str, str], question: str) -> Optional[str]:
        """Give the puzzle that a row of a CSV stands for, as :meth:`parse` reads it.

        Args:
            row: its fields by their columns' names, in small letters.
            question: the field of the puzzle's column; by default it is the puzzle.

        Returns:
            None: the row is left out.
        """
        del row
        return question

    def parse(self, text: str) -> np.ndarray:
        """Read one puzzle as a person writes it.

        Returns:
            (S,) uint8 tokens.

        Raises:
            DataError: if it is malformed, or the task has no written form.
        """
        raise DataError(f"the task {self.config.name!r} does not read puzzles as text")

    def expand_puzzle(self, text: str) -> List[str]:
        """Return the puzzles that a text on the command line stands for.

        By default that is one, the text itself. A task whose puzzles have names may take a name for
        several of them.

        Returns:
            Texts that :meth:`parse` reads.
        """
        return [text]

    def describe_editor(self) -> Dict[str, Any]:
        """Say how a page lets puzzles be typed, as JSON.

        Returns:
            ``hint``, a line about the text, and ``kind``: ``cells`` (:class:`CellsEditor`);
            ``digits``, with ``size``, ``boxes`` and ``symbols``; ``names``, where puzzles are
            picked; or ``text``.
        """
        return {"kind": "text", "hint": "As the task reads it."}

    def write_for_editor(self, text: str) -> str:
        """Give a puzzle that a person wrote as the text that the page's editor shows.

        Raises:
            DataError: if it is malformed.
        """
        return self.format(self.parse(text))

    def draw_example(self, rng: np.random.Generator) -> str:
        """Give a puzzle to begin with, as text; ``rng`` decides which.

        Raises:
            DataError: if the task has none, or its data cannot be read.
        """
        del rng
        raise DataError(f"the task {self.config.name} has no examples here")

    def list_names(self) -> List[str]:
        """Give the names by which puzzles of the task's data can be asked for."""
        return []

    def demonstrations(self, text: str) -> List[Tuple[np.ndarray, np.ndarray]]:
        """Return the pairs that show what a puzzle given as text asks for, where there are such.

        Returns:
            (S,) uint8 inputs and answers.
        """
        del text
        return []

    def identifier(self, text: str) -> int:
        """Return the row of the puzzle table that belongs to a puzzle given as text; 0: none."""
        del text
        return 0

    # pylint: disable-next=useless-return
    def row_name(self, text: str) -> Optional[str]:
        """Return the name of the puzzle table's row for a puzzle given as text; None: it has none.

        A checkpoint knows its rows by name; :meth:`identifier` is for where it does not.
        """
        del text
        return None

    # pylint: disable-next=useless-return
    def known_answer(self, text: str) -> Optional[np.ndarray]:
        """Return the (S,) uint8 answer of a puzzle given as text, if the data have it."""
        del text
        return None

    def equal(self, tokens: np.ndarray, labels: np.ndarray) -> bool:
        """Say whether (S,) ``tokens`` are as good as the right answer, the (S,) ``labels``."""
        return bool((np.asarray(tokens) == np.asarray(labels)).all())

    def answers(self, inputs: np.ndarray) -> Tuple[Optional[np.ndarray], Dict[int, str]]:
        """Answer puzzles by the rules alone.

        Args:
            inputs: (n, S) uint8 tokens.

        Returns:
            (n, S) uint8 labels, None where the task cannot tell; and what is wrong with the
            puzzles that have no answer, by row.
        """
        del inputs
        return None, {}

    def format(self, tokens: np.ndarray) -> str:
        """Write (S,) tokens on one line."""
        return " ".join(str(int(token)) for token in tokens)

    def render(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        color: bool = False,
    ) -> str:
        """Draw (S,) tokens for a terminal, as a step that changed nothing; else on one line.

        Args:
            tokens: what is drawn.
            inputs: the puzzle, to tell what was given.
            labels: the answer, to mark what is wrong.
            color: use ANSI colours.
        """
        if type(self).render_step is not TextForm.render_step:
            return self.render_step(tokens, tokens, inputs, labels, color)
        return self.format(tokens)

    def render_step(
        self,
        tokens: np.ndarray,
        before: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        color: bool = False,
    ) -> str:
        """Draw (S,) tokens for a terminal as the answer of a step, what changed marked.

        A task writes this or :meth:`render`. One that writes :meth:`render` alone has changes
        underlined in colour, where its drawings keep their length.

        Args:
            tokens: what is drawn.
            before: (S,) the answer of the step before.
            inputs: the puzzle, to tell what was given.
            labels: the answer, to mark what is wrong.
            color: use ANSI colours.
        """
        drawn = self.render(tokens, inputs, labels, color)
        if not color:
            return drawn
        return underline_changes(drawn, self.render(tokens), self.render(before))

    def board(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        before: Optional[np.ndarray] = None,
    ) -> Board:
        """Give (S,) tokens as a grid of cells, which every picture is drawn from.

        By default that is what :meth:`image` paints, else the tokens' numbers in a square.

        Args:
            tokens: what stands in the cells.
            inputs: (S,) the puzzle, to tell what was given.
            labels: (S,) the answer, to mark what is wrong.
            before: (S,) the answer of the step before, to mark what has changed.
        """
        flags = differing(tokens, before), differing(tokens, labels)
        if is_unanswered(tokens, inputs):
            flags = flags[0], np.zeros(len(tokens), dtype=bool)
        text = self.format(tokens)
        try:
            colors = np.asarray(self.image(tokens, inputs))
        except DataError:
            symbols = np.array([str(int(token)) for token in tokens], dtype=object)
            changed, wrong = (lay_out(each, False) for each in flags)
            return make_board(lay_out(symbols, ""), None, None, changed, wrong, text=text)
        shape = colors.shape[:2]
        if colors[..., 0].size != len(tokens):  # its pixels are not the tokens
            return make_board(np.full(shape, "", dtype=object), colors, text=text)
        changed, wrong = (each.reshape(shape) for each in flags)
        blank = np.full(shape, "", dtype=object)
        return make_board(blank, colors, None, changed, wrong, text=text)

    def place_values(self, values: np.ndarray, tokens: np.ndarray) -> Optional[np.ndarray]:
        """Put (S,) values of (S,) tokens where :meth:`board` draws these tokens.

        Returns:
            (H, W) of the values' type; None where the board's cells are not the tokens.
        """
        shape = self.board(tokens).shape
        if shape[0] * shape[1] == len(values):
            return np.asarray(values).reshape(shape)
        placed = lay_out(np.asarray(values), 1)
        return placed if placed.shape == shape else None

    @property
    def decoder(self) -> Optional[Decoder]:
        """What reads answers as wholes, where cells depend on each other.

        Of a move, say, one square alone is left. By default None: each cell has its most probable
        token.
        """
        return None

    def check(self, inputs: np.ndarray, tokens: np.ndarray) -> bool:
        """Say by the rules alone whether (S,) ``tokens`` answer the puzzle ``inputs``.

        Raises:
            DataError: if the task has no rules to check by.
        """
        raise DataError(f"the task {self.config.name!r} cannot check an answer")

    def check_many(self, inputs: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Check answers by the rules alone, many at once; a task may do that faster.

        Args:
            inputs: (n, S) tokens of the puzzles.
            tokens: (n, S) tokens of the answers.

        Returns:
            (n,) bool.

        Raises:
            DataError: if the task has no rules to check by.
        """
        return np.array([self.check(*pair) for pair in zip(inputs, tokens)], dtype=bool)

    @property
    def has_rules(self) -> bool:
        """Whether :meth:`check` can tell: a class that writes neither check has no rules."""
        own = type(self)
        return own.check is not TextForm.check or own.check_many is not TextForm.check_many

    @property
    def has_symmetries(self) -> bool:
        """Whether :meth:`random_symmetry` gives any."""
        return type(self).random_symmetry is not TextForm.random_symmetry

    def random_symmetry(self, rng: np.random.Generator) -> Symmetry:
        """Draw a symmetry of the task's puzzles; solving may then work on a copy.

        Raises:
            DataError: if the task names none.
        """
        del rng
        raise DataError(f"the task {self.config.name!r} names no symmetries")

    def draw_symmetry(self, inputs: np.ndarray, rng: np.random.Generator) -> Symmetry:
        """Draw a symmetry of the (S,) puzzle ``inputs``; a task's puzzles may differ in those."""
        del inputs
        return self.random_symmetry(rng)

    def describe_difficulty(self, inputs: np.ndarray) -> str:
        """Say in a line why a model may fail at a puzzle of (S,) tokens; empty: not known."""
        del inputs
        return ""

    def describe_answer(self, inputs: np.ndarray, tokens: np.ndarray) -> str:
        """Say in a few words what an answer is, beyond right or wrong.

        Args:
            inputs: (S,) tokens of the puzzle.
            tokens: (S,) tokens of the answer.

        Returns:
            Such as "a path of 12 steps"; empty where there is nothing to say.
        """
        del inputs, tokens
        return ""

    def image(self, tokens: np.ndarray, inputs: Optional[np.ndarray] = None) -> np.ndarray:
        """Paint (S,) tokens.

        Args:
            tokens: what is painted.
            inputs: the puzzle, where it decides what is shown.

        Returns:
            (H, W, 3) uint8, one pixel a cell, red green blue.

        Raises:
            DataError: if the task is not one of coloured grids.
        """
        del tokens, inputs
        raise DataError(f"the task {self.config.name!r} has no pictures; it is drawn as text")


def underline_changes(drawn: str, now: str, before: str) -> str:
    """Underline the characters of a drawing that differ between two plain drawings.

    Args:
        drawn: with colour codes; apart from them and from marks as long as ``now``.
        now: the same, plain.
        before: the drawing of the step before, plain.
    """
    if not len(ANSI.sub("", drawn)) == len(now) == len(before):
        return drawn
    pieces, place = [], 0
    for part in ANSI.split(drawn):
        if ANSI.fullmatch(part):
            pieces.append(part)
            continue
        for char in part:
            changed = now[place] != before[place]
            pieces.append(UNDERLINE + char + NO_UNDERLINE if changed else char)
            place += 1
    return "".join(pieces)
