"""Data of one's own without code: a folder in the reference's format says what the task is.

Each split has a ``dataset.json`` with the dimensions, and ``.npy`` files (docs/extending.md). There
are no rules to check an answer by, and nothing is known of a token but its number.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NoReturn, Optional, Tuple

import numpy as np

from mlx_trm.config.sections import TaskConfig, TaskSpec
from mlx_trm.datasets.dataset import IGNORE_LABEL_ID, PuzzleDataset
from mlx_trm.datasets.names import row_names
from mlx_trm.datasets.reading import read_metadata
from mlx_trm.datasets.writing import SPLITS, Group
from mlx_trm.errors import DataError
from mlx_trm.tasks.base import Task, register_task
from mlx_trm.tasks.board import Board, differing, make_board
from mlx_trm.tasks.pasted import LINES, MARKS, split_numbers
from mlx_trm.tasks.text import RED, UNDERLINE, mark_of, styled

# A token is a byte where puzzles are solved.
MOST_TOKENS = 256
_NO_MARKS = str.maketrans(dict.fromkeys(MARKS, " "))
_PLACE = re.compile(rf"({'|'.join(SPLITS)}):(\d{{1,9}})")


@dataclass
class FolderConfig(TaskConfig):
    """Settings of the folder task."""

    symbols: Optional[str] = None
    """What the tokens are written with, a character for each, token 0 first; unset: numbers."""
    width: Optional[int] = field(default=None, metadata={"min": 1})
    """Cells in a row where puzzles are drawn; unset: a square where S is one, else one row."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = super().problems()
        if self.data_dir is None:
            found.append("data_dir: is missing; name a folder in the reference's format")
        for name in ("train_file", "test_file"):
            if getattr(self, name):
                found.append(f"{name}: is not read, the folder of data_dir is")
        if self.symbols is not None:
            unfit = set(self.symbols) & set(" \t\n,;" + LINES + MARKS)
            if len(set(self.symbols)) < len(self.symbols):
                found.append("symbols: has a character twice")
            elif unfit or not self.symbols.isprintable():
                found.append("symbols: no white space, commas, semicolons, lines or any of + ! *")
        return found


@register_task("folder", FolderConfig)
class Folder(Task):
    """Answer puzzles as a data set does; every dimension is that of its files."""

    config: FolderConfig

    def __init__(self, config: Any, seed: int = 0) -> None:
        """Keep the settings; nothing is read yet."""
        super().__init__(config, seed)
        self.symbols = config.symbols or "0123456789"
        self._spec: Optional[TaskSpec] = None
        self._opened: Dict[str, PuzzleDataset] = {}
        self._names_of_rows: Dict[str, Optional[List[str]]] = {}

    @property
    def spec(self) -> TaskSpec:
        """Dimensions and special tokens, as the folder says; where it is gone those of the model.

        Raises:
            DataError: if the folder is there and cannot be read, or no model says what they are.
        """
        if self._spec is None:
            if self.assumed is not None and not self._described():
                return self._fitting(self.assumed)
            self._spec = self._read_spec()
        return self._spec

    def _folders(self) -> List[Path]:
        listed = self.config.data_dir
        listed = [listed] if isinstance(listed, str) else listed or []
        return [Path(each).expanduser() for each in listed]

    def _described(self) -> List[Path]:
        """Give the files that say what the splits are."""
        found = [path / split / "dataset.json" for path in self._folders() for split in SPLITS]
        return [path for path in found if path.is_file()]

    def _read_spec(self) -> TaskSpec:
        folders, found = self._folders(), self._described()
        if not found:
            if (folders[0] / "dataset.json").is_file():
                raise DataError(
                    f"task.data_dir: {folders[0]}: is one split; name the folder that holds train "
                    "and test"
                )
            raise DataError(
                f"task.data_dir: {folders[0]}: holds neither train/dataset.json nor "
                "test/dataset.json; name a folder in the reference's format (docs/extending.md)"
            )
        spec = read_metadata(found[0])[1]
        if spec.vocab_size > MOST_TOKENS:
            raise DataError(
                f"{found[0]}: vocab_size is {spec.vocab_size}; at most {MOST_TOKENS} tokens are "
                "supported"
            )
        return self._fitting(spec)

    def _fitting(self, spec: TaskSpec) -> TaskSpec:
        """Give dimensions that the symbols fit."""
        symbols = self.config.symbols
        if symbols is not None and len(symbols) != spec.vocab_size:
            raise DataError(
                f"task.symbols: has {len(symbols)} characters, the data have {spec.vocab_size} "
                "tokens; give one for each"
            )
        return spec

    def dataset(self, split: str, progress: bool = False) -> PuzzleDataset:
        """Open a split of the folder; see :meth:`Task.dataset`."""
        if split not in self._opened:
            self._read_spec()  # says more than what is missing
            self._opened[split] = super().dataset(split, progress)
        return self._opened[split]

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[Group]:
        """Refuse: what lies in a folder is built.

        Raises:
            DataError: always.
        """
        del split, rng
        self._refuse("nothing is built from it")

    def _refuse(self, problem: str) -> NoReturn:
        raise DataError(f"task.data_dir: {self.config.data_dir} is used as it is; {problem}")

    # As a person sees it -----------------------------------------------------------------------

    @property
    def token_names(self) -> List[str]:
        """The symbols of the settings, else numbers."""
        return list(self.config.symbols or map(str, range(self.spec.vocab_size)))

    def parse(self, text: str) -> np.ndarray:
        """Read a puzzle.

        Args:
            text: S tokens, numbers with white space or commas between them, or where there are
                ``symbols`` these; or the place of an example in the data, ``test:0``.

        Raises:
            DataError: if it is malformed.
        """
        place = self._place(text)
        if place is not None:
            return np.asarray(self._example(*place)[0], np.uint8)
        spec, symbols = self.spec, self.config.symbols
        words = self._words(text)
        known = {name: token for token, name in enumerate(self.token_names)}
        for number, word in enumerate(words):
            if word not in known:
                allowed = symbols or f"0 to {spec.vocab_size - 1}"
                raise DataError(
                    f"token {number + 1} of the puzzle is {word!r}; allowed are {allowed}"
                )
        if len(words) != spec.seq_len:
            raise DataError(f"the puzzle has {len(words)} tokens, it needs {spec.seq_len}")
        return np.array([known[word] for word in words], np.uint8)

    def _words(self, text: str) -> List[str]:
        """Give the tokens of a text, as they are written."""
        words = split_numbers(text.translate(_NO_MARKS))
        return words if self.config.symbols is None else list("".join(words))

    def split_puzzles(self, lines: Iterable[str]) -> Iterator[Tuple[int, str]]:
        """Find the puzzles in lines of text: a line each, or several lines up to a blank one."""
        # Where # is a symbol, a maze's wall say, it begins no comment.
        comments = "#" not in (self.config.symbols or "")
        rows: List[str] = []
        first, count = 1, 0
        for number, line in enumerate([*lines, ""], start=1):
            text = (line.split("#")[0] if comments else line).strip()
            words = len(self._words(text))
            if rows and (not text or count + words > self.spec.seq_len):
                yield first, "\n".join(rows)
                rows = []
            if text:
                first, count = (first, count) if rows else (number, 0)
                rows.append(text)
                count += words
                if count == self.spec.seq_len or _PLACE.fullmatch(text):
                    yield first, "\n".join(rows)
                    rows = []

    def _place(self, text: str) -> Optional[Tuple[str, int]]:
        match = _PLACE.fullmatch(text.strip())
        return None if match is None else (match[1], int(match[2]))

    def _example(self, split: str, index: int) -> Tuple[np.ndarray, np.ndarray]:
        dataset = self.dataset(split)
        if index >= len(dataset):
            raise DataError(f"{split}:{index}: the split has puzzles 0 to {len(dataset) - 1}")
        return dataset.example(index)

    def identifier(self, text: str) -> int:
        """Return the row of the puzzle table of an example of the data, 0 for any other puzzle."""
        place = self._place(text)
        return 0 if place is None else self.dataset(place[0]).example_identifier(place[1])

    def row_name(self, text: str) -> Optional[str]:
        """Return the name of an example's row, where the data have names."""
        place = self._place(text)
        if place is None:
            return None
        if place[0] not in self._names_of_rows:
            self._names_of_rows[place[0]] = row_names(self.dataset(place[0]))
        names = self._names_of_rows[place[0]]
        return None if names is None else names[self.identifier(text)]

    def known_answer(self, text: str) -> Optional[np.ndarray]:
        """Return the (S,) int32 answer of an example, IGNORE_LABEL_ID where it is not scored."""
        place = self._place(text)
        if place is None:
            return None
        labels = self._example(*place)[1].astype(np.int32)
        if self.spec.ignore_label_id is not None:
            labels[labels == self.spec.ignore_label_id] = IGNORE_LABEL_ID
        return np.asarray(labels)

    def equal(self, tokens: np.ndarray, labels: np.ndarray) -> bool:
        """Say whether (S,) ``tokens`` are right wherever the (S,) ``labels`` are scored."""
        return bool(
            ((np.asarray(tokens) == labels) | (np.asarray(labels) == IGNORE_LABEL_ID)).all()
        )

    def format(self, tokens: np.ndarray) -> str:
        """Write (S,) tokens on one line: symbols, or numbers with spaces between them."""
        return ("" if self.config.symbols else " ").join(self._names(tokens))

    def _names(self, tokens: np.ndarray) -> List[str]:
        names = self.token_names
        return [names[int(t)] if 0 <= int(t) < len(names) else "?" for t in np.asarray(tokens)]

    @property
    def width(self) -> int:
        """Cells in a row of a drawing."""
        cells = self.spec.seq_len
        root = int(cells**0.5 + 0.5)
        return self.config.width or (root if root * root == cells else cells)

    def board(
        self,
        tokens: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        before: Optional[np.ndarray] = None,
    ) -> Board:
        """Give the tokens in rows; what is not scored is never wrong. Arguments as of any task."""
        tokens = np.asarray(tokens)
        wrong = differing(tokens, labels)
        if labels is not None:
            wrong &= np.asarray(labels) != IGNORE_LABEL_ID
            if inputs is not None and np.array_equal(tokens, inputs):
                wrong[:] = False  # the puzzle is no answer yet
        symbols = np.array([*self._names(tokens), None], dtype=object)[:-1]
        changed = differing(tokens, before)
        return make_board(
            self._rows(symbols, ""),
            changed=self._rows(changed, False),
            wrong=self._rows(wrong, False),
            text=self.format(tokens),
        )

    def _rows(self, values: np.ndarray, fill: object) -> np.ndarray:
        missing = -len(values) % self.width
        filled = np.concatenate([values, np.full(missing, fill, dtype=values.dtype)])
        return filled.reshape(-1, self.width)

    def render_step(
        self,
        tokens: np.ndarray,
        before: np.ndarray,
        inputs: Optional[np.ndarray] = None,
        labels: Optional[np.ndarray] = None,
        color: bool = False,
    ) -> str:
        """Draw tokens in rows, what changed marked with ``+``, underlined in colour.

        Args:
            tokens: (S,) what is drawn.
            before: (S,) the answer of the step before.
            inputs: (S,) the puzzle.
            labels: (S,) the answer; what differs is marked with ``!``, red in colour.
            color: use ANSI colours.
        """
        board = self.board(tokens, inputs, labels, before)
        wide = max(len(name) for name in self.token_names)
        lines = []
        for symbols, changed, wrong in zip(board.symbols, board.changed, board.wrong):
            line = ""
            for symbol, new, bad in zip(symbols, changed, wrong):
                style = (RED if bad else "") + (UNDERLINE if new else "")
                text = mark_of(bool(new), bool(bad)) + symbol.rjust(wide)
                line += styled(text, style, color)
            lines.append(line)
        return "\n".join(lines)
