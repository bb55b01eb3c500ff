"""The Go task on 7x7 and 9x9: can a group be captured and where, or whose territory is what.

Tokens of both kinds: 0 padding, 1 ``.`` an empty point, 2 ``X`` black, 3 ``O`` white. Of
``capture``: 4 ``B`` and 5 ``W`` are the stones of the group in question, whose opponent is to
move, and 6 ``1`` a first move that captures it; the label marks all of them that need the fewest
quiet moves (:mod:`solver`), none where the group is safe. Of ``territory``: 4 ``x`` and 5 ``o``
are black's and white's points; neutral ones stay empty. V = 7 or 6, S = size * size. No puzzle
has a name, so all share row 0 of the puzzle table.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets.dataset import SetSource
from mlx_trm.datasets.writing import SPLITS, PuzzleBlock, in_blocks
from mlx_trm.tasks.base import ScoredRows, Scorer, ShareScorer, Task, register_task
from mlx_trm.tasks.board import Board, differing, is_unanswered, make_board
from mlx_trm.tasks.go.answers import answer_puzzles, is_right
from mlx_trm.tasks.go.files import (
    describe_cells,
    format_board,
    parse_board,
    read_boards,
    split_boards,
)
from mlx_trm.tasks.go.generator import GENERATOR_VERSION, generate_puzzles
from mlx_trm.tasks.go.positions import (
    BLACK,
    BLACK_POINT,
    EMPTY,
    GIVEN,
    KINDS,
    MARKED_BLACK,
    MARKED_WHITE,
    MOVE,
    SYMBOLS,
    WHITE,
    WHITE_POINT,
    board_keys,
    point_name,
    token_swap,
)
from mlx_trm.tasks.go.rules import SIZES, rules_of
from mlx_trm.tasks.go.sgf import is_sgf, split_trees
from mlx_trm.tasks.puzzle_files import FilePuzzles, PuzzleFileConfig, hash_puzzle_file
from mlx_trm.tasks.symmetries import Symmetry, dihedral_transform
from mlx_trm.tasks.text import BOLD, GREEN, RED, UNDERLINE, frame_square, mark_of, styled

_WOOD, _DARK, _LIGHT = [220, 179, 92], [34, 34, 34], [250, 250, 250]
# What a picture paints points with: wood, stones, the group in question, and answers.
_COLORS = {
    "capture": np.array(
        [[128, 128, 128], _WOOD, _DARK, _LIGHT, [0, 70, 125], [155, 205, 240], [0, 158, 115]],
        dtype=np.uint8,
    ),
    "territory": np.array(
        [[128, 128, 128], _WOOD, _DARK, _LIGHT, [110, 100, 85], [235, 220, 185]], dtype=np.uint8
    ),
}


@dataclass
class GoConfig(PuzzleFileConfig):
    """Settings of the Go task."""

    kind: str = field(default="capture", metadata={"choices": KINDS})
    """capture: first moves that capture a marked group; territory: whose each empty point is."""
    size: int = field(default=7, metadata={"choices": SIZES})
    """Rows and columns of the board."""
    quiet_moves: int = field(default=1, metadata={"min": 0, "max": 2})
    """capture: moves of the attacker that are no atari, at most; 0: ladders only, 1: nets too."""
    augment: str = field(default="online", metadata={"choices": ("none", "online")})
    """online: turn, flip or recolour each training board every time it comes up; none: as built."""
    train_puzzles: int = field(default=8000, metadata={"min": 1})
    """Generate so many training puzzles where there is no file."""
    test_puzzles: int = field(default=500, metadata={"min": 1})
    """Generate so many test puzzles where there is no file."""


@register_task("go", GoConfig)
class Go(Task):  # pylint: disable=too-many-public-methods
    """Capture a group, or tell the territory of a settled board."""

    config: GoConfig

    def __init__(self, config: Any, seed: int = 0) -> None:
        """Keep the settings; nothing is read or generated yet."""
        super().__init__(config, seed)
        self.symbols = SYMBOLS[config.kind][1 : GIVEN[config.kind]] + "/"

    @property
    def spec(self) -> TaskSpec:
        """Dimensions and special tokens."""
        return TaskSpec(vocab_size=len(SYMBOLS[self.config.kind]), seq_len=self.config.size**2)

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[PuzzleBlock]:
        """Yield the puzzles of a split, from its file or generated.

        Raises:
            DataError: if the file cannot be used, or so many puzzles are not found.
        """
        config, path = self.config, self.raw_file(split)
        if path is not None:
            for part in self.read_file(path):
                yield PuzzleBlock(part.inputs, part.labels, 1)
            return
        count = config.train_puzzles if split == "train" else config.test_puzzles
        puzzles = generate_puzzles(
            split, count, config.kind, config.size, config.quiet_moves, rng, self._excluded(split)
        )
        yield from in_blocks(puzzles)

    def generate(
        self, count: int, rng: np.random.Generator, exclude: Sequence[Union[str, Path]] = ()
    ) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Make different puzzles of the settings' kind and size, of either split.

        Args:
            count: how many.
            rng: decides everything.
            exclude: files whose puzzles, in any of their sixteen forms, are left out.

        Returns:
            (S,) uint8 inputs and labels of each.

        Raises:
            DataError: if so many are not found, or a file cannot be read.
        """
        go, keys = self.config, self._keys(exclude)
        return generate_puzzles(None, count, go.kind, go.size, go.quiet_moves, rng, keys)

    def _excluded(self, split: str) -> List[bytes]:
        """Give the keys of the other split's file, whose puzzles are not generated for this one."""
        other = self.raw_file(SPLITS[1 - SPLITS.index(split)])
        return [] if other is None else self._keys([other])

    def _keys(self, paths: Sequence[Union[str, Path]]) -> List[bytes]:
        parts = (part.inputs for path in paths for part in self.read_file(path))
        go = self.config
        return [key for inputs in parts for key in board_keys(inputs, go.kind, go.size)]

    def content(self, split: str) -> Dict[str, Any]:
        """Return what decides the built files of a split."""
        config, path = self.config, self.raw_file(split)
        about: Dict[str, Any] = {"task": config.name, "split": split, "size": config.size}
        about.update(kind=config.kind)
        if config.kind == "capture":
            about.update(quiet_moves=config.quiet_moves)
        if path is not None:
            about.update(file=hash_puzzle_file(path))
            if config.columns is not None:
                about.update(columns=config.columns)
        else:
            other = self.raw_file(SPLITS[1 - SPLITS.index(split)])
            about.update(
                seed=self.seed,
                generator=GENERATOR_VERSION,
                count=config.train_puzzles if split == "train" else config.test_puzzles,
                exclude=None if other is None else hash_puzzle_file(other),
            )
        return about

    def augment(
        self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Turn or flip each row of (B, S) uint8 inputs and labels, and swap colours, at random."""
        turns, swaps = rng.integers(8, size=len(inputs)), rng.random(len(inputs)) < 0.5
        pairs = np.stack([self._grids(inputs), self._grids(labels)], axis=1)
        pairs[swaps] = token_swap(self.config.kind)[pairs[swaps]]
        turned = np.empty_like(pairs)
        for number in range(8):
            rows = np.flatnonzero(turns == number)
            turned[rows] = dihedral_transform(pairs[rows], number)
        return turned[:, 0].reshape(inputs.shape), turned[:, 1].reshape(labels.shape)

    def random_symmetry(self, rng: np.random.Generator) -> Symmetry:
        """Draw one of the eight turns and flips, with or without a swap of colours."""
        places = self._grids(np.arange(self.config.size**2))[0]
        turned = dihedral_transform(places, int(rng.integers(8)))
        swap = token_swap(self.config.kind)
        tokens = swap if rng.integers(2) else np.arange(len(swap), dtype=np.uint8)
        return Symmetry(turned.reshape(-1), tokens)

    def _grids(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(tokens).reshape(-1, self.config.size, self.config.size)

    # As a person sees it -----------------------------------------------------------------------

    def read_file(self, path: Union[str, Path]) -> Iterator[FilePuzzles]:
        """Read boards of text, SGF, or a CSV, whose answers are checked by the rules."""
        config = self.config
        return read_boards(path, config.kind, config.size, config.quiet_moves, config.columns)

    def split_puzzles(self, lines: Iterable[str]) -> Iterator[Tuple[int, str]]:
        """Find the puzzles in lines of text: game trees of SGF, or boards."""
        return split_boards(lines, self.config.size)

    def parse(self, text: str) -> np.ndarray:
        """Read a board of text or SGF.

        Raises:
            DataError: if it is malformed, or no such position can come up.
        """
        return parse_board(text, self.config.kind, self.config.size)

    def expand_puzzle(self, text: str) -> List[str]:
        """Give the game trees of a text of SGF; a board stands for itself."""
        return [tree for _, tree in split_trees(text)] if is_sgf(text) else [text]

    def describe_editor(self) -> Dict[str, Any]:
        """Let stones be put on a board."""
        return describe_cells(self.config.kind, self.config.size)

    def draw_example(self, rng: np.random.Generator) -> str:
        """Make a puzzle to begin with."""
        return self.format(next(self.generate(1, rng))[0])

    def format(self, tokens: np.ndarray) -> str:
        """Write (S,) tokens on one line, ``/`` between rows; ``?`` is no point."""
        return format_board(tokens, self.config.kind, self.config.size)

    @property
    def token_names(self) -> List[str]:
        """Padding, an empty point, stones and answers, as :meth:`format` writes them."""
        return list(SYMBOLS[self.config.kind])

    def answers(self, inputs: np.ndarray) -> Tuple[np.ndarray, Dict[int, str]]:
        """Answer (n, S) puzzles by the rules, and say which have no answer."""
        config = self.config
        return answer_puzzles(inputs, config.kind, config.size, config.quiet_moves)

    def check(self, inputs: np.ndarray, tokens: np.ndarray) -> bool:
        """Say whether (S,) ``tokens`` answer the puzzle: any moves that capture, exact territory.

        At least one first move has to be marked, and each one that is has to capture the group; of
        a safe group nothing may be marked.
        """
        config = self.config
        return is_right(inputs, tokens, config.kind, config.size, config.quiet_moves)

    def describe_answer(self, inputs: np.ndarray, tokens: np.ndarray) -> str:
        """Say what the (S,) ``tokens`` of an answer claim."""
        tokens = np.asarray(tokens)
        if self.config.kind == "territory":
            black, white = (
                int(np.isin(tokens, sides).sum())
                for sides in ((BLACK, BLACK_POINT), (WHITE, WHITE_POINT))
            )
            return f"black {black}, white {white}, neutral {int((tokens == EMPTY).sum())}"
        rules = rules_of(self.config.size)
        moves = [
            point_name(rules.to_bits(np.arange(len(tokens)) == cell), self.config.size)
            for cell in np.flatnonzero(tokens == MOVE)
        ]
        side = "white" if (np.asarray(inputs) == MARKED_BLACK).any() else "black"
        if not moves:
            return f"{side} cannot capture the group"
        return f"{side} captures at {' or '.join(moves)}"

    def image(self, tokens: np.ndarray, inputs: Optional[np.ndarray] = None) -> np.ndarray:
        """Paint (S,) tokens: (size, size, 3) uint8."""
        del inputs
        colors = _COLORS[self.config.kind]
        known = np.where(np.asarray(tokens) < len(colors), tokens, 0)
        return np.asarray(colors[self._grids(known)[0]])

    def board(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        before: Optional[np.ndarray] = None,
    ) -> Board:
        """Give the board, stones as X and O; other moves that capture are not wrong."""
        shape, tokens = (self.config.size, self.config.size), np.asarray(tokens)
        wrong = differing(tokens, labels)
        if labels is not None and inputs is not None and wrong.any():
            if is_unanswered(tokens, inputs) or self.check(inputs, tokens):
                wrong[:] = False
        names = {MARKED_BLACK: "X", MARKED_WHITE: "O"} if self.config.kind == "capture" else {}
        names = {**dict(enumerate(self.token_names)), **names, EMPTY: ""}
        symbols = np.array([names.get(int(token), "?") for token in tokens], dtype=object)
        return make_board(
            symbols.reshape(shape),
            self.image(tokens),
            np.isin(tokens, range(EMPTY + 1, GIVEN[self.config.kind])).reshape(shape),
            differing(tokens, before).reshape(shape),
            wrong.reshape(shape),
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
        """Draw a board, two characters a point, what changed marked with ``+``.

        Args:
            tokens: (S,) what stands on the points.
            before: (S,) the answer of the step before.
            inputs: (S,) the puzzle. An answer that is right by the rules has nothing wrong.
            labels: (S,) the answer; what differs is marked with ``!``, red in colour.
            color: use ANSI colours: stones bold, answers green, changes underlined.
        """
        given = GIVEN[self.config.kind]
        board = self.board(tokens, inputs, labels, before)
        symbols = dict(enumerate(self.token_names))
        cells = []
        for place, token in enumerate(np.asarray(tokens).tolist()):
            changed, wrong = bool(board.changed.flat[place]), bool(board.wrong.flat[place])
            text = symbols.get(token, "?") + mark_of(changed, wrong)
            style = GREEN if token >= given else BOLD if token > EMPTY else ""
            style = (RED if wrong else style) + (UNDERLINE if changed else "")
            cells.append(styled(text, style, color))
        return frame_square(cells, self.config.size)

    def scorer(self, source: Optional[SetSource] = None) -> Scorer:
        """Return a scorer by the rules.

        Of capture puzzles ``right_moves`` are those answered right, whichever capturing moves are
        marked; ``captured`` is their share among groups that can be captured, ``safe`` among the
        others. Of territory ``points`` is the share of empty points that are told right.
        """
        del source
        if self.config.kind == "territory":
            return ShareScorer(("points",), _judge_points)
        return ShareScorer(("right_moves", "captured", "safe"), self._judge_moves)

    def _judge_moves(self, rows: ScoredRows) -> Dict[str, np.ndarray]:
        """Say which answers are right. A label's own moves need no search."""
        inputs, labels, predictions = (np.asarray(each) for each in rows[:3])
        right = (predictions == labels).all(axis=1)
        for row in np.flatnonzero(~right & (predictions == MOVE).any(axis=1)):
            right[row] = self.check(inputs[row], predictions[row])
        caught = (labels == MOVE).any(axis=1)
        return {"right_moves": right, "captured": right[caught], "safe": right[~caught]}


def _judge_points(rows: ScoredRows) -> Dict[str, np.ndarray]:
    """Say which empty points are told right."""
    empty = np.asarray(rows.inputs) == EMPTY
    return {"points": np.asarray(rows.predictions)[empty] == np.asarray(rows.labels)[empty]}
