"""The Sudoku task: 4x4 to 16x16, from files, from the bundled sample, or generated.

Tokens: 0 padding, 1 blank, 2 the digit 1, 11 the digit A, which is 10; V = size + 2, S = size *
size. No puzzle has a name, so all share row 0 of the puzzle table.

Reference: dataset/build_sudoku_dataset.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets.dataset import SetSource
from mlx_trm.datasets.sources import SAMPLES
from mlx_trm.datasets.writing import PuzzleBlock
from mlx_trm.errors import DataError
from mlx_trm.tasks.base import Scorer, ShareScorer, Task, register_task
from mlx_trm.tasks.board import Board, differing, make_board
from mlx_trm.tasks.pasted import gather_rows
from mlx_trm.tasks.puzzle_files import FilePuzzles, PuzzleFileConfig, hash_puzzle_file
from mlx_trm.tasks.sudoku.files import (
    DIGITS,
    SAMPLE_FILES,
    draw_puzzles,
    parse_puzzle,
    puzzle_text,
    read_puzzles,
    read_with_sources,
    solution_problem,
)
from mlx_trm.tasks.sudoku.generator import (
    DEFAULT_GIVENS,
    GENERATOR_VERSION,
    draw_puzzle,
    generate_sets,
)
from mlx_trm.tasks.sudoku.keys import puzzle_keys
from mlx_trm.tasks.sudoku.solver import (
    FEWEST_GIVENS,
    MOST_GUESSES,
    SIZES,
    PuzzleSet,
    box_shape,
    solve_puzzles,
    valid_grids,
)
from mlx_trm.tasks.sudoku.transforms import SYMMETRIES, default_symmetries, random_transforms
from mlx_trm.tasks.sudoku.view import describe_digits, frame_cells
from mlx_trm.tasks.symmetries import Symmetry
from mlx_trm.tasks.text import BOLD, RED, UNDERLINE, mark_of, styled

DEFAULT_COUNTS = {"train": 4000, "test": 1000}

_CHUNK = 8192


@dataclass
class SudokuConfig(PuzzleFileConfig):
    """Settings of the Sudoku task."""

    size: int = field(default=9, metadata={"choices": SIZES})
    """Rows of the grid; boxes are 2x2, 2 rows x 3 columns, 3x3, 3 rows x 4 columns, or 4x4."""
    augment: str = field(default="online", metadata={"choices": ("none", "online")})
    """online: other symmetries of each training puzzle every time it comes up; none: as built."""
    symmetries: Optional[List[str]] = field(default=None, metadata={"choices": SYMMETRIES})
    """What augmentation may permute; unset: all that the size allows (6x6, 12x12: no transpose)."""
    num_aug: int = field(default=0, metadata={"min": 0})
    """Augmented copies of each training puzzle that are written to disk (reference: num_aug)."""
    subsample_size: Optional[int] = field(default=None, metadata={"min": 1})
    """Train on so many puzzles of the file, drawn by the seed (reference: subsample_size)."""
    min_difficulty: Optional[int] = field(default=None, metadata={"min": 0})
    """Take puzzles of a file with at least this rating only (reference: min_difficulty)."""
    train_puzzles: Optional[int] = field(default=None, metadata={"min": 1})
    """Generate so many training puzzles where there is no file; unset: 4,000, at 9x9 the sample."""
    test_puzzles: Optional[int] = field(default=None, metadata={"min": 1})
    """Generate so many test puzzles where there is no file; unset: 1,000, at 9x9 the sample."""
    min_givens: Optional[int] = field(default=None, metadata={"min": 1})
    """Fewest givens of generated puzzles; unset, by size: 6, 10, 24, 54 or 112."""
    max_givens: Optional[int] = field(default=None, metadata={"min": 1})
    """Most givens of generated puzzles; unset, by size: 8, 14, 30, 66 or 128."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = super().problems()
        for name in self.symmetries or ():
            if name not in default_symmetries(self.size):
                found.append(f"symmetries: a {self.size}x{self.size} Sudoku has no {name!r}")
        if self.symmetries is not None and not self.symmetries:
            found.append("symmetries: is empty; use augment: none")
        (low, high), fewest = self.givens, FEWEST_GIVENS[self.size]
        if low > high:
            found.append(f"min_givens: {low} is more than max_givens {high}")
        elif high < fewest:
            found.append(f"max_givens: {self.size}x{self.size} needs at least {fewest} givens")
        elif self.size > 9 and low < fewest:
            found.append(f"min_givens: {self.size}x{self.size} is generated with {fewest} or more")
        elif high >= self.size**2:
            found.append(f"max_givens: {high} leaves no blank in {self.size**2} cells")
        return found

    @property
    def givens(self) -> Tuple[int, int]:
        """Givens of generated puzzles: at least, at most."""
        low, high = DEFAULT_GIVENS[self.size]
        if self.min_givens is not None:
            low, high = self.min_givens, max(self.min_givens, high)
        if self.max_givens is not None:
            high = self.max_givens
            low = low if self.min_givens is not None else min(low, high)
        return low, high

    @property
    def active_symmetries(self) -> Tuple[str, ...]:
        """The symmetries that augmentation uses, in a fixed order."""
        if self.symmetries is None:
            return default_symmetries(self.size)
        return tuple(name for name in SYMMETRIES if name in self.symmetries)


@register_task("sudoku", SudokuConfig)
class Sudoku(Task):
    """Fill the blanks so that every row, column and box holds every digit."""

    config: SudokuConfig

    def __init__(self, config: Any, seed: int = 0) -> None:
        """Keep the settings; nothing is read or generated yet."""
        super().__init__(config, seed)
        self.symbols = ".0" + DIGITS[: config.size] + DIGITS[9 : config.size].lower()

    @property
    def spec(self) -> TaskSpec:
        """Dimensions and special tokens."""
        return TaskSpec(vocab_size=self.config.size + 2, seq_len=self.config.size**2)

    def source(self, split: str) -> Optional[Path]:
        """Return the file that a split comes from; None: it is generated."""
        config, named = self.config, self.raw_file(split)
        if named is not None:
            return named
        made = config.train_puzzles, config.test_puzzles, config.min_givens, config.max_givens
        if config.size == 9 and made == (None, None, None, None):
            return SAMPLES / SAMPLE_FILES[split]
        return None

    def puzzles(self, split: str, rng: np.random.Generator) -> Iterator[PuzzleSet]:
        """Yield the puzzles of a split as digits, filtered and subsampled, not augmented.

        Raises:
            DataError: if the file cannot be used, or nothing is left.
        """
        path = self.source(split)
        if path is None:
            yield self._generated(split)
            return
        rows = self._filtered(path)
        if split == "train" and self.config.subsample_size is not None:
            yield draw_puzzles(rows, self.config.subsample_size, rng)
        else:
            yield from rows

    def _filtered(self, path: Path) -> Iterator[PuzzleSet]:
        least, kept, highest = self.config.min_difficulty, 0, -1
        for rows in read_puzzles(path, self.config.size, self._columns(path)):
            if least is not None:
                if (rows.ratings < 0).any():
                    raise DataError(f"{path}:1: has no column 'rating', min_difficulty needs it")
                highest = max(highest, int(rows.ratings.max(initial=-1)))
                rows = rows.take(rows.ratings >= least)
            kept += len(rows.puzzles)
            yield rows
        if not kept:
            raise DataError(f"{path}: the highest rating is {highest}; min_difficulty is {least}")

    def _columns(self, path: Path) -> Optional[List[str]]:
        """Give the columns of a file of the user's; the sample has its own."""
        return None if path.parent == SAMPLES else self.config.columns

    def _generated(self, split: str) -> PuzzleSet:
        """Generate both splits, so that they share nothing, and return one."""
        config = self.config
        counts = dict(DEFAULT_COUNTS)
        counts["train"] = config.train_puzzles or counts["train"]
        counts["test"] = config.test_puzzles or counts["test"]
        shared = {"digits", *config.active_symmetries}
        exclude = None
        other = self._other_file(split)
        if other is not None:
            parts = read_puzzles(other, config.size, config.columns)
            keys = [puzzle_keys(rows.puzzles, config.size, shared) for rows in parts]
            exclude = np.concatenate(keys)
        sets = generate_sets(
            [counts["train"], counts["test"]],
            config.size,
            np.random.default_rng(self.seed),
            config.givens,
            shared,
            exclude,
        )
        return sets[("train", "test").index(split)]

    def _other_file(self, split: str) -> Optional[Path]:
        """Return the file of the other split, whose puzzles are not generated for this one."""
        return self.raw_file("test" if split == "train" else "train")

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[PuzzleBlock]:
        """Yield the puzzles of a split, training puzzles with ``num_aug`` augmented copies each."""
        copies = 1 + (self.config.num_aug if split == "train" else 0)
        step = max(1, _CHUNK // copies)
        for rows in self.puzzles(split, rng):
            for start in range(0, len(rows.puzzles), step):
                part = slice(start, start + step)
                inputs, labels = rows.puzzles[part] + 1, rows.solutions[part] + 1
                if copies > 1:
                    inputs, labels = self._copies(inputs, labels, copies, rng)
                yield PuzzleBlock(inputs.astype(np.uint8), labels.astype(np.uint8), copies)

    def _copies(
        self, inputs: np.ndarray, labels: np.ndarray, copies: int, rng: np.random.Generator
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Follow each puzzle by ``copies - 1`` augmented ones."""
        inputs, labels = np.repeat(inputs, copies, axis=0), np.repeat(labels, copies, axis=0)
        moves = random_transforms(len(inputs), self.config.size, self.config.active_symmetries, rng)
        moves.cells[::copies] = np.arange(moves.cells.shape[1])
        moves.tokens[::copies] = np.arange(moves.tokens.shape[1])
        return moves.apply(inputs), moves.apply(labels)

    def content(self, split: str) -> Dict[str, Any]:
        """Return what decides the built files of a split."""
        config, path = self.config, self.source(split)
        about: Dict[str, Any] = {"task": config.name, "split": split, "size": config.size}
        random = {"seed": self.seed}
        if path is not None:
            about.update(file=hash_puzzle_file(path), min_difficulty=config.min_difficulty)
            if self._columns(path) is not None:
                about.update(columns=config.columns)
        else:
            other = self._other_file(split)
            about.update(
                random,
                generator=GENERATOR_VERSION,
                counts=[config.train_puzzles, config.test_puzzles],
                givens=config.givens,
                symmetries=config.active_symmetries,
                exclude=None if other is None else hash_puzzle_file(other),
            )
        if split == "train" and path is not None and config.subsample_size is not None:
            about.update(random, subsample_size=config.subsample_size)
        if split == "train" and config.num_aug:
            about.update(random, num_aug=config.num_aug, symmetries=config.active_symmetries)
        return about

    def augment(
        self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Apply a random symmetry to each row of (B, S) uint8 inputs and labels."""
        moves = random_transforms(len(inputs), self.config.size, self.config.active_symmetries, rng)
        return moves.apply(inputs), moves.apply(labels)

    def random_symmetry(self, rng: np.random.Generator) -> Symmetry:
        """Draw any of the symmetries that the size has, whatever augmentation uses."""
        moves = random_transforms(1, self.config.size, default_symmetries(self.config.size), rng)
        return Symmetry(moves.cells[0], moves.tokens[0])

    def read_file(self, path: Union[str, Path]) -> Iterator[FilePuzzles]:
        """Read a CSV or text file; that puzzles of a CSV have one solution is not checked."""
        return read_with_sources(path, self.config.size, self._columns(Path(path)))

    def split_puzzles(self, lines: Iterable[str]) -> Iterator[Tuple[int, str]]:
        """Find the puzzles in lines of text: one a line, a row a line, or drawn by ``solve``."""
        return gather_rows(lines, self.config.size, self.symbols)

    def parse(self, text: str) -> np.ndarray:
        """Read a puzzle of S cells, ``.``, ``0`` or ``_`` for a blank, A to G for 10 to 16.

        White space, commas and lines around boxes do not count; of a drawing with its answer
        beside it the puzzle is read.

        Raises:
            DataError: if it is malformed or its givens contradict each other.
        """
        return (parse_puzzle(text, self.config.size) + 1).astype(np.uint8)

    def describe_editor(self) -> Dict[str, Any]:
        """Let digits be typed into cells."""
        return describe_digits(self.config.size, self.token_names[2:])

    def draw_example(self, rng: np.random.Generator) -> str:
        """Draw one of the package's hard puzzles; where there are none of the size, make one."""
        return puzzle_text(draw_puzzle(self.config.size, self.config.givens, rng))

    def answers(self, inputs: np.ndarray) -> Tuple[np.ndarray, Dict[int, str]]:
        """Solve (n, S) puzzles; what has not exactly one solution has no answer."""
        size = self.config.size
        most = MOST_GUESSES if size > 9 else None
        found = solve_puzzles(np.asarray(inputs, np.int64) - 1, size, most_guesses=most)
        unclear = np.flatnonzero(found.counts != 1).tolist()
        problems = {row: solution_problem(found, row, size) for row in unclear}
        for row in np.flatnonzero((found.guesses > MOST_GUESSES) & (found.counts < 2)).tolist():
            problems[row] = (
                f"whether the puzzle has one solution is not clear after {MOST_GUESSES:,} guesses; "
                "give more of its digits"
            )
        return np.asarray(found.solutions[:, 0] + 1, dtype=np.uint8), problems

    def format(self, tokens: np.ndarray) -> str:
        """Write (S,) tokens on one line: ``.`` is a blank, ``?`` is no digit at all."""
        symbols = dict(enumerate(self.token_names))
        return "".join([symbols.get(token, "?") for token in np.asarray(tokens).tolist()])

    @property
    def token_names(self) -> List[str]:
        """Padding, a blank, and the digits, as :meth:`format` writes them."""
        return [self._symbol(token) for token in range(self.spec.vocab_size)]

    def _symbol(self, token: int) -> str:
        if token == 1:
            return "."
        return DIGITS[token - 2] if 1 < token < self.config.size + 2 else "?"

    def board(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        before: Optional[np.ndarray] = None,
    ) -> Board:
        """Give the grid with its boxes; blanks are never wrong. Arguments as of every task."""
        shape, tokens = (self.config.size, self.config.size), np.asarray(tokens)
        symbols = np.array([self._symbol(int(token)) for token in tokens], dtype=object)
        symbols[symbols == "."] = ""
        wrong = differing(tokens, labels) & (tokens != 1)
        given = np.zeros(len(tokens), bool) if inputs is None else np.asarray(inputs) > 1
        return make_board(
            symbols.reshape(shape),
            given=given.reshape(shape),
            changed=differing(tokens, before).reshape(shape),
            wrong=wrong.reshape(shape),
            boxes=box_shape(self.config.size),
            text=self.format(tokens),
        )

    def render_step(
        self,
        tokens: np.ndarray,
        before: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        color: bool = False,
    ) -> str:
        """Draw a grid with its boxes, what changed marked with ``+``, underlined in colour.

        Args:
            tokens: (S,) what stands in the cells.
            before: (S,) the answer of the step before.
            inputs: (S,) the puzzle; its givens are bold in colour.
            labels: (S,) the answer; other digits are marked with ``!``, red in colour.
            color: use ANSI colours.
        """
        board = self.board(tokens, inputs, labels, before)
        cells = []
        for place, token in enumerate(tokens):
            given, changed, wrong = (
                bool(flags.flat[place]) for flags in (board.given, board.changed, board.wrong)
            )
            style = BOLD if given else ""
            style += (RED if wrong else "") + (UNDERLINE if changed else "")
            symbol, mark = self._symbol(int(token)), mark_of(changed, wrong)
            cells.append(mark + styled(symbol, style, color))
        return frame_cells(cells, self.config.size)

    def check(self, inputs: np.ndarray, tokens: np.ndarray) -> bool:
        """Say whether (S,) ``tokens`` are a valid grid, of perhaps several, with those givens."""
        return bool(self.check_many(np.asarray(inputs)[None], np.asarray(tokens)[None])[0])

    def check_many(self, inputs: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Check answers by the rules alone, many at once.

        Args:
            inputs: (n, S) tokens of the puzzles.
            tokens: (n, S) tokens of the answers.

        Returns:
            (n,) bool, whether an answer is a valid grid that keeps its puzzle's givens.
        """
        inputs, tokens = np.asarray(inputs, np.int64), np.asarray(tokens, np.int64)
        kept = ((inputs <= 1) | (inputs == tokens)).all(axis=1)
        return np.asarray(kept & valid_grids(tokens - 1, self.config.size))

    def scorer(self, source: Optional[SetSource] = None) -> Scorer:
        """Return a scorer of ``valid_grids``: complete ones that keep the rules and the givens."""
        del source
        return ShareScorer(
            ("valid_grids",),
            lambda rows: {"valid_grids": self.check_many(rows.inputs, rows.predictions)},
        )
