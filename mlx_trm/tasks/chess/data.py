"""Where the chess task's positions come from: files, random games and endings, and variants."""

from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple, Union

import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets.writing import SPLITS, PuzzleBlock, in_blocks
from mlx_trm.errors import ConfigError
from mlx_trm.tasks.base import Task
from mlx_trm.tasks.chess.tokens import (
    CELLS,
    KINDS,
    STYLES,
    TOKEN_NAMES,
    VOCABULARY,
    position_key,
)
from mlx_trm.tasks.puzzle_files import FilePuzzles, PuzzleFileConfig, hash_puzzle_file

# What tells the draws of variants from those of the positions that they are made of.
_VARIANTS = 1


def check_library() -> None:
    """Refuse where python-chess is missing.

    Raises:
        ConfigError: saying what to install.
    """
    try:
        found = import_module("chess")
    except ImportError:
        found = None
    # A folder of that name beside a script imports, too.
    if not hasattr(found, "Board"):
        raise ConfigError('the task chess needs python-chess; pip install "mlx_trm[chess]"')


@dataclass
class ChessConfig(PuzzleFileConfig):
    """Settings of the chess task."""

    kind: str = field(default="moves", metadata={"choices": KINDS})
    """moves: where the marked piece may go; mate1, mate2: the move that mates, in one or in two."""
    augment: str = field(default="online", metadata={"choices": ("none", "online")})
    """online: mirror files at random where nobody may castle; none: as built."""
    train_puzzles: int = field(default=10000, metadata={"min": 1})
    """Generate so many training positions where there is no file."""
    test_puzzles: int = field(default=1000, metadata={"min": 1})
    """Generate so many test positions where there is no file."""
    style: str = field(default="games", metadata={"choices": STYLES})
    """Generated positions: of whole random games, or of endings with few pieces."""
    unique: bool = True
    """Generate mates with one right move only; otherwise the label is one of several."""
    variants: int = field(default=0, metadata={"min": 0})
    """Of each training position with a mate so many more, which differ by a few pieces, at most."""
    min_rating: Optional[int] = field(default=None, metadata={"min": 0})
    """Take puzzles of a file with at least this rating only."""
    max_rating: Optional[int] = field(default=None, metadata={"min": 0})
    """Take puzzles of a file with at most this rating only."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = super().problems()
        low, high = self.min_rating, self.max_rating
        if low is not None and high is not None and low > high:
            found.append(f"min_rating: {low} is more than max_rating {high}")
        if self.variants and self.kind == "moves":
            found.append(
                "variants: are made of mates; set kind to mate1 or mate2, or variants to 0"
            )
        return found


class ChessData(Task):  # pylint: disable=abstract-method
    """The positions of a chess task, and what is known of them before anybody reads one."""

    config: ChessConfig

    def __init__(self, config: Any, seed: int = 0) -> None:
        """Keep the settings; nothing is read or generated yet.

        Raises:
            ConfigError: if python-chess is not installed.
        """
        super().__init__(config, seed)
        check_library()

    @property
    def spec(self) -> TaskSpec:
        """Dimensions and special tokens."""
        return TaskSpec(vocab_size=VOCABULARY, seq_len=CELLS)

    @property
    def token_names(self) -> List[str]:
        """What each of the V tokens stands for."""
        return list(TOKEN_NAMES)

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[PuzzleBlock]:
        """Yield the positions of a split, of its file or generated, and in training variants."""
        path, varied = self.raw_file(split), split == "train" and self.config.variants > 0
        if path is not None and not varied:
            for part in self._read(path):
                yield PuzzleBlock(part.inputs, part.labels)
            return
        del rng  # each split has one of its own, since training leaves out what the test set has
        pairs = self._generate(split) if path is None else self._read_pairs(path)
        yield from in_blocks(self._vary(pairs) if varied else pairs)

    def generate(
        self, count: int, rng: np.random.Generator, exclude: Sequence[Union[str, Path]] = ()
    ) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Make different puzzles of the settings' kind and style.

        Args:
            count: how many.
            rng: decides everything.
            exclude: files whose positions, or their mirror images, are left out.

        Returns:
            (64,) uint8 inputs and labels of each.

        Raises:
            DataError: if so many are not found, or a file cannot be read.
        """
        return self._generate_without(count, rng, self._keys(exclude))

    def _generate_without(
        self, count: int, rng: np.random.Generator, exclude: Set[bytes]
    ) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        from mlx_trm.tasks.chess.generator import Wanted, generate_puzzles

        config = self.config
        wanted = Wanted(config.kind, config.style, config.unique)
        return generate_puzzles(wanted, count, rng, exclude)

    def _generate(self, split: str) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Generate a split, without the positions of the other one."""
        count = self.config.train_puzzles if split == "train" else self.config.test_puzzles
        rng = np.random.default_rng([self.seed, SPLITS.index(split)])
        return self._generate_without(count, rng, self._excluded(split))

    def _read_pairs(self, path: Path) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        for part in self._read(path):
            yield from zip(part.inputs, part.labels)

    def _vary(
        self, pairs: Iterable[Tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Follow each training position by its variants."""
        from mlx_trm.tasks.chess.generator import Wanted, vary_puzzles

        config = self.config
        wanted = Wanted(config.kind, config.style, config.unique)
        rng = np.random.default_rng([self.seed, SPLITS.index("train"), _VARIANTS])
        return vary_puzzles(pairs, wanted, config.variants, rng, self._excluded("train"))

    def _excluded(self, split: str) -> Set[bytes]:
        """Give the keys of the other split's positions, where that one is not made after this."""
        path = self.raw_file("test" if split == "train" else "train")
        if path is not None:
            return self._keys([path])
        if split == "test":
            return set()
        return {position_key(inputs) for inputs, _ in self._generate("test")}

    def _keys(self, paths: Sequence[Union[str, Path]]) -> Set[bytes]:
        parts = (part for path in paths for part in self._read(Path(path)))
        return {position_key(inputs) for part in parts for inputs in part.inputs}

    def _read(self, path: Path) -> Iterator[FilePuzzles]:
        from mlx_trm.tasks.chess.files import Chosen, read_chess_file

        config = self.config
        chosen = Chosen(config.kind, config.min_rating, config.max_rating, config.columns)
        return read_chess_file(path, chosen)

    def content(self, split: str) -> Dict[str, Any]:
        """Return what decides the built files of a split."""
        config, files = self.config, [self.raw_file(each) for each in SPLITS]
        own = self.raw_file(split)
        kept = asdict(config)
        names = ["kind"]
        hashes: List[Optional[str]] = []
        varied = split == "train" and config.variants > 0
        if any(files):
            names += ["min_rating", "max_rating", "columns"]
        if own is not None:
            hashes = [hash_puzzle_file(own)]
        if own is None or varied:
            from mlx_trm.tasks.chess.generator import GENERATOR_VERSION

            names += ["style", "unique", "train_puzzles", "test_puzzles"]
            hashes = [None if path is None else hash_puzzle_file(path) for path in files]
            kept.update(generator=GENERATOR_VERSION, seed=self.seed)
            names += ["generator", "seed"] + ["variants"] * varied
        about: Dict[str, Any] = {"task": config.name, "split": split, "files": hashes}
        return {**about, **{name: kept[name] for name in names}}
