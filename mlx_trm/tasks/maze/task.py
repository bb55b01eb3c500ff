"""The maze task: find a shortest path, in grids of any size, from files or generated.

Tokens: 0 padding, 1 ``#`` wall, 2 space (open), 3 ``S`` start, 4 ``G`` goal, 5 ``o`` path; V = 6,
S = size * size. The label is the maze with a shortest path marked. No maze has a name, so all share
row 0 of the puzzle table.

Reference: dataset/build_maze_dataset.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets.dataset import SetSource
from mlx_trm.datasets.writing import SPLITS, PuzzleBlock
from mlx_trm.tasks.base import ScoredRows, Scorer, ShareScorer, Task, register_task
from mlx_trm.tasks.board import Board, differing, is_unanswered, make_board
from mlx_trm.tasks.maze.files import (
    SYMBOLS,
    describe_cells,
    parse_maze,
    read_mazes,
    read_with_sources,
    split_mazes,
)
from mlx_trm.tasks.maze.generator import (
    GENERATOR_VERSION,
    STYLES,
    MazeSet,
    default_min_path,
    generate_sets,
    longest_path,
    maze_keys,
)
from mlx_trm.tasks.maze.paths import (
    GOAL,
    PATH,
    START,
    WALL,
    Judged,
    judge,
    mark_all_shortest_paths,
    solve_mazes,
)
from mlx_trm.tasks.puzzle_files import FilePuzzles, PuzzleFileConfig, hash_puzzle_file
from mlx_trm.tasks.symmetries import Symmetry, dihedral_transform
from mlx_trm.tasks.text import BOLD, GREEN, RED, UNDERLINE, frame_square, mark_of, styled

_CHUNK = 1024
# How the tokens are drawn, and the colours of a picture.
_DRAWN = "?█ SG•"
_COLORS = np.array(
    [
        [128, 128, 128],  # padding
        [34, 34, 34],  # wall
        [255, 255, 255],  # open
        [0, 158, 115],  # start
        [213, 94, 0],  # goal
        [86, 180, 233],  # path
    ],
    dtype=np.uint8,
)


@dataclass
class MazeConfig(PuzzleFileConfig):
    """Settings of the maze task."""

    size: int = field(default=30, metadata={"min": 3, "max": 1000})
    """Rows and columns."""
    # Differs from reference: its README promises turns and flips of mazes, and its command builds
    # without them.
    augment: str = field(default="online", metadata={"choices": ("none", "online")})
    """online: turn or flip each training maze at random every time it comes up; none: as built."""
    aug: bool = False
    """Write each training maze to disk in all eight turns and flips (reference: aug)."""
    subsample_size: Optional[int] = field(default=None, metadata={"min": 1})
    """Train on so many mazes of the file, drawn by the seed (reference: subsample_size)."""
    train_puzzles: int = field(default=1000, metadata={"min": 1})
    """Generate so many training mazes where there is no file."""
    test_puzzles: int = field(default=1000, metadata={"min": 1})
    """Generate so many test mazes where there is no file."""
    style: str = field(default="mixed", metadata={"choices": STYLES})
    """Generated mazes: walls at random, corridors with some loops, or both by turns."""
    min_path: Optional[int] = field(default=None, metadata={"min": 1})
    """Steps from S to G in generated mazes, at least; unset: 111 at 30x30, less in smaller ones."""
    unique_path: bool = False
    """Generate mazes with exactly one shortest path."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = super().problems()
        if self.min_path is not None and self.min_path > longest_path(self.size):
            found.append(
                f"min_path: a {self.size}x{self.size} maze has no shortest path of "
                f"{self.min_path} steps; at most {longest_path(self.size)} can be asked for"
            )
        return found


@register_task("maze", MazeConfig)
class Maze(Task):  # pylint: disable=too-many-public-methods
    """Mark a shortest path from S to G; a step goes to one of the four neighbours."""

    config: MazeConfig
    symbols = "#.SGo/"

    def __init__(self, config: Any, seed: int = 0) -> None:
        """Keep the settings; nothing is read or generated yet."""
        super().__init__(config, seed)
        self._made: Dict[str, MazeSet] = {}

    @property
    def spec(self) -> TaskSpec:
        """Dimensions and special tokens."""
        return TaskSpec(vocab_size=len(SYMBOLS), seq_len=self.config.size**2)

    def mazes(self, split: str, rng: np.random.Generator) -> MazeSet:
        """Return the mazes of a split, subsampled, not augmented.

        Raises:
            DataError: if the file cannot be used, or so many mazes cannot be generated.
        """
        path = self.raw_file(split)
        if path is None:
            return self._generated(split)
        found = read_mazes(path, self.config.size, self.config.columns)
        # Differs from reference: there every run draws other mazes, in random order; here the seed
        # decides, and the order of the file stays.
        wanted = self.config.subsample_size if split == "train" else None
        if wanted is not None and wanted < len(found.inputs):
            lots = rng.random(len(found.inputs))
            found = found.take(np.sort(np.argsort(lots, kind="stable")[:wanted]))
        return found

    def _generated(self, split: str) -> MazeSet:
        """Generate what has no file, so that the splits share nothing, and return one."""
        if split not in self._made:
            config = self.config
            files = [path for path in map(self.raw_file, SPLITS) if path is not None]
            splits = [each for each in SPLITS if self.raw_file(each) is None]
            counts = {"train": config.train_puzzles, "test": config.test_puzzles}
            exclude = [
                key
                for path in files
                for key in maze_keys(read_mazes(path, config.size, config.columns).inputs)
            ]
            sets = generate_sets(
                [counts[each] for each in splits],
                config.size,
                np.random.default_rng(self.seed),
                config.style,
                config.min_path,
                config.unique_path,
                exclude,
            )
            self._made = dict(zip(splits, sets))
        return self._made.pop(split)  # the other one is going to be asked for next

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[PuzzleBlock]:
        """Yield the mazes of a split; with ``aug`` training mazes in their eight forms."""
        mazes = self.mazes(split, rng)
        forms = 8 if split == "train" and self.config.aug else 1
        for start in range(0, len(mazes.inputs), _CHUNK):
            part = slice(start, start + _CHUNK)
            inputs, labels = (self._forms(side[part], forms) for side in mazes[:2])
            yield PuzzleBlock(inputs, labels, forms)

    def _forms(self, tokens: np.ndarray, number: int) -> np.ndarray:
        """Follow each of (n, S) grids by its other turns and flips: transforms 0, 1, 2, ..."""
        grids = self._grids(tokens)
        forms = [dihedral_transform(grids, each) for each in range(number)]
        return np.stack(forms, axis=1).reshape(-1, self.config.size**2)

    def _grids(self, tokens: np.ndarray) -> np.ndarray:
        return np.asarray(tokens).reshape(-1, self.config.size, self.config.size)

    def content(self, split: str) -> Dict[str, Any]:
        """Return what decides the built files of a split."""
        config, path = self.config, self.raw_file(split)
        about: Dict[str, Any] = {"task": config.name, "split": split, "size": config.size}
        if path is not None:
            about.update(file=hash_puzzle_file(path))
            if config.columns is not None:
                about.update(columns=config.columns)
            if split == "train" and config.subsample_size is not None:
                about.update(seed=self.seed, subsample_size=config.subsample_size)
        else:
            about.update(
                seed=self.seed,
                generator=GENERATOR_VERSION,
                counts=[config.train_puzzles, config.test_puzzles],
                style=config.style,
                min_path=config.min_path or default_min_path(config.size),
                unique_path=config.unique_path,
                exclude=[
                    hash_puzzle_file(file) if file else None for file in map(self.raw_file, SPLITS)
                ],
            )
        if split == "train" and config.aug:
            about.update(aug=True)
        return about

    def augment(
        self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Turn or flip each row of (B, S) uint8 inputs and labels at random."""
        chosen = rng.integers(8, size=len(inputs))
        pairs = np.stack([self._grids(inputs), self._grids(labels)], axis=1)
        turned = np.empty_like(pairs)
        for number in range(8):
            rows = np.flatnonzero(chosen == number)
            turned[rows] = dihedral_transform(pairs[rows], number)
        return turned[:, 0].reshape(inputs.shape), turned[:, 1].reshape(labels.shape)

    def random_symmetry(self, rng: np.random.Generator) -> Symmetry:
        """Draw one of the eight turns and flips."""
        places = self._grids(np.arange(self.config.size**2))[0]
        turned = dihedral_transform(places, int(rng.integers(8)))
        return Symmetry(turned.reshape(-1), np.arange(self.spec.vocab_size, dtype=np.uint8))

    def read_file(self, path: Union[str, Path]) -> Iterator[FilePuzzles]:
        """Read a CSV or text file."""
        return read_with_sources(path, self.config.size, self.config.columns)

    def split_puzzles(self, lines: Iterable[str]) -> Iterator[Tuple[int, str]]:
        """Find the mazes in lines of text: blocks with a blank line between them, or one a line."""
        return split_mazes(lines, self.config.size)

    def parse(self, text: str) -> np.ndarray:
        """Read a maze whose rows have line ends or ``/`` between them, or follow each other.

        Raises:
            DataError: if it is malformed. That it can be solved is not checked.
        """
        return parse_maze(text, self.config.size)

    def describe_editor(self) -> Dict[str, Any]:
        """Let walls, S and G be drawn by clicks."""
        return describe_cells(self.config.size)

    def draw_example(self, rng: np.random.Generator) -> str:
        """Make a maze to begin with."""
        config = self.config
        made = generate_sets([1], config.size, rng, config.style, config.min_path)[0]
        return self.format(made.inputs[0])

    def answers(self, inputs: np.ndarray) -> Tuple[np.ndarray, Dict[int, str]]:
        """Mark a shortest path in each of (n, S) mazes, and say which have none."""
        return solve_mazes(inputs)

    def format(self, tokens: np.ndarray) -> str:
        """Write (S,) tokens on one line, ``/`` between rows: ``.`` is open, ``?`` is no cell."""
        text = "".join(self._symbol(int(token), SYMBOLS) for token in tokens).replace(" ", ".")
        size = self.config.size
        return "/".join(text[at : at + size] for at in range(0, len(text), size))

    @property
    def token_names(self) -> List[str]:
        """Padding and the five kinds of cells, as :meth:`format` writes them."""
        return list(SYMBOLS.replace(" ", "."))

    def _symbol(self, token: int, symbols: str) -> str:
        return symbols[token] if 0 <= token < len(symbols) else symbols[0]

    def board(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        before: Optional[np.ndarray] = None,
    ) -> Board:
        """Give the maze; a shortest path has nothing wrong. Arguments as of every task."""
        shape, tokens = (self.config.size, self.config.size), np.asarray(tokens)
        wrong = differing(tokens, labels)
        if labels is not None and inputs is not None:
            if self.check(inputs, tokens) or is_unanswered(tokens, inputs):
                wrong[:] = False  # another shortest path, or none yet
        symbols = np.full(len(tokens), "", dtype=object)
        symbols[tokens == START], symbols[tokens == GOAL] = "S", "G"
        changed = differing(tokens, before).reshape(shape)
        return make_board(
            symbols.reshape(shape),
            self.image(tokens),
            (symbols != "").reshape(shape),
            changed,
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
        """Draw a maze, two characters a cell, what changed marked with ``+``, underlined in colour.

        Args:
            tokens: (S,) what stands in the cells.
            before: (S,) the answer of the step before.
            inputs: (S,) the maze. An answer that is a shortest path of it has nothing wrong.
            labels: (S,) the answer; what differs is marked with ``!``, red in colour.
            color: use ANSI colours.
        """
        board = self.board(tokens, inputs, labels, before)
        styles = {START: BOLD, GOAL: BOLD, PATH: GREEN}
        cells = []
        for place, token in enumerate(tokens):
            changed, wrong = bool(board.changed.flat[place]), bool(board.wrong.flat[place])
            symbol, mark = self._symbol(int(token), _DRAWN), mark_of(changed, wrong)
            text = symbol + (symbol if mark == " " and token == WALL else mark)
            style = RED if wrong else styles.get(int(token), "")
            style += UNDERLINE if changed else ""
            cells.append(styled(text, style, color))
        return frame_square(cells, self.config.size)

    def check(self, inputs: np.ndarray, tokens: np.ndarray) -> bool:
        """Say whether (S,) ``tokens`` mark a shortest path in the maze ``inputs``."""
        return bool(self.judge(inputs, tokens).optimal[0])

    def check_many(self, inputs: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Say which of (n, S) ``tokens`` mark a shortest path in their maze, (n,) bool."""
        return self.judge(inputs, tokens).optimal

    def judge(self, inputs: np.ndarray, tokens: np.ndarray) -> Judged:
        """Judge (n, S) or (S,) predictions by the rules alone."""
        return judge(np.atleast_2d(inputs), np.atleast_2d(tokens))

    def describe_answer(self, inputs: np.ndarray, tokens: np.ndarray) -> str:
        """Say what path the (S,) ``tokens`` of an answer mark."""
        judged = self.judge(inputs, tokens)
        steps, shortest = int(judged.steps[0]), int(judged.shortest[0])
        if not judged.valid[0]:
            return "no clean path from S to G"
        if judged.optimal[0]:
            return f"a shortest path, {steps} steps"
        return f"a path of {steps} steps, {shortest} are enough"

    def describe_difficulty(self, inputs: np.ndarray) -> str:
        """Say where a maze has several shortest paths: more cells on them than one path has."""
        inputs = np.asarray(inputs)
        cells = int(mark_all_shortest_paths(inputs[None]).sum())
        if cells <= int(self.judge(inputs, inputs).shortest[0]) + 1:
            return ""
        return (
            "the maze has several shortest paths; a model that learnt mazes with one (those of the "
            "package did) may mix them up"
        )

    def image(self, tokens: np.ndarray, inputs: Optional[np.ndarray] = None) -> np.ndarray:
        """Paint (S,) tokens: (size, size, 3) uint8."""
        del inputs
        known = np.where(np.asarray(tokens) < len(SYMBOLS), tokens, 0)
        return np.asarray(_COLORS[self._grids(known)[0]])

    def scorer(self, source: Optional[SetSource] = None) -> Scorer:
        """Return a scorer of predictions that keep the maze and mark exactly a path from S to G.

        ``valid_path`` counts all of them, ``optimal_path`` those that no path is shorter than.
        Where a maze has several shortest paths, exact accuracy, which knows the label only, is
        lower.
        """
        del source

        def paths(rows: ScoredRows) -> Dict[str, np.ndarray]:
            judged = self.judge(rows.inputs, rows.predictions)
            return {"valid_path": judged.valid, "optimal_path": judged.optimal}

        return ShareScorer(("valid_path", "optimal_path"), paths)
