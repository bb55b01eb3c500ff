"""Finds a test task of a data set by its name or by one of its test inputs, for ``solve``.

It is looked for in the raw files, or in folders that are built already: building a data set of
seven gigabytes takes many minutes, and only the names and the test pairs are needed.
"""

import json
import re
from functools import lru_cache
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.datasets.dataset import SetSource
from mlx_trm.datasets.names import load_names
from mlx_trm.errors import DataError, did_you_mean
from mlx_trm.system.bounded import parse_json
from mlx_trm.tasks.arc.files import Pair, Subset, read_subset
from mlx_trm.tasks.arc.grids import CANVAS
from mlx_trm.tasks.arc.voting import load_puzzles, pack

RowNumbers = Callable[[], Dict[str, int]]
Demonstrations = Callable[[], Dict[str, List[Pair]]]


class KnownSet(NamedTuple):
    """The test tasks of one data set.

    Attributes:
        pairs: test inputs and answers of each, (H, W) uint8 grids, by name.
        row_numbers: gives the rows of the puzzle table by name; only called where one is needed.
        demonstrations: gives the pairs that show what each task asks for, likewise.
    """

    pairs: Dict[str, List[Pair]]
    row_numbers: RowNumbers
    demonstrations: Demonstrations


class KnownInput(NamedTuple):
    """A test input of a task.

    Attributes:
        name: of the task.
        number: of the test input, from 1.
        given: (H, W) uint8 colours.
        answer: (H, W) uint8 colours.
        place: number of its data set among those that are known.
    """

    name: str
    number: int
    given: np.ndarray
    answer: np.ndarray
    place: int


class KnownTasks:
    """The test inputs of data sets, by the names of their tasks and by their grids."""

    def __init__(self, tasks: Iterable[KnownSet], problem: str = "") -> None:
        """Index the test inputs.

        Args:
            tasks: of each data set; where two have the same name or grid, the first one's counts.
            problem: why there are none.
        """
        self.problem = problem
        self.by_name: Dict[str, List[KnownInput]] = {}
        self.by_grid: Dict[bytes, KnownInput] = {}
        self._row_numbers: List[RowNumbers] = []
        self._demonstrations: List[Demonstrations] = []
        for place, (pairs_of, row_numbers, demonstrations) in enumerate(tasks):
            self._row_numbers.append(lru_cache(maxsize=None)(row_numbers))
            self._demonstrations.append(lru_cache(maxsize=None)(demonstrations))
            for name, pairs in pairs_of.items():
                known = [
                    KnownInput(name, number, given, answer, place)
                    for number, (given, answer) in enumerate(pairs, 1)
                ]
                self.by_name.setdefault(name, known)
                for each in known:
                    self.by_grid.setdefault(pack(each.given), each)

    def identifier(self, known: KnownInput) -> int:
        """Return the row of the puzzle table that a test input's task has; 0: none.

        Raises:
            DataError: if the data that decide it cannot be read.
        """
        return self._row_numbers[known.place]().get(known.name, 0)

    def demonstrations(self, known: KnownInput) -> List[Pair]:
        """Return the pairs that show what a test input's task asks for, (H, W) uint8 colours.

        Raises:
            DataError: if they cannot be read.
        """
        return self._demonstrations[known.place]().get(known.name, [])

    def find_by_name(self, text: str) -> List[KnownInput]:
        """Find the test inputs of a task.

        Args:
            text: ``NAME`` for all of them, or ``NAME:NUMBER`` for one.

        Returns:
            None of them where no task has that name, or no such test input.
        """
        name, number = split_name(text)
        known = self.by_name.get(name, [])
        return [each for each in known if number in (None, each.number)]

    def explain_unknown(self, text: str) -> str:
        """Say why no test input is found by a name, as the end of a message."""
        name, number = split_name(text)
        if self.problem:
            return f"; no task is known by name: {self.problem}"
        if name in self.by_name:
            return f"; task {name} has {len(self.by_name[name])} test inputs, not {number}"
        return f"; no test task has this name{did_you_mean(name, list(self.by_name))}"

    def find_by_grid(self, grid: np.ndarray) -> Optional[KnownInput]:
        """Find the test input that equals an (H, W) grid of colours; None: there is none."""
        return self.by_grid.get(pack(grid))


def read_built(source: SetSource, size: int = CANVAS) -> KnownSet:
    """Read the test tasks of a built data set.

    Raises:
        DataError: if they cannot be read.
    """

    def row_numbers() -> Dict[str, int]:
        names = enumerate(load_names(source.folder)[1:], 1 + source.first_identifier)
        return {name: number for number, name in names}

    folder = source.folder
    return KnownSet(
        load_puzzles(folder, size), row_numbers, lambda: load_puzzles(folder, size, "train")
    )


def read_raw(subset: Subset, size: int, complete: bool, row_numbers: RowNumbers) -> KnownSet:
    """Read the test tasks out of the raw files.

    Args:
        subset: the one for testing.
        size: of the canvas.
        complete: refuse test inputs without an answer.
        row_numbers: see :class:`KnownSet`.

    Raises:
        DataError: if they cannot be read.
    """
    tasks = read_subset(subset, size, complete)
    tests, shown = ({task.name: task.pairs[part] for task in tasks} for part in ("test", "train"))
    return KnownSet(tests, row_numbers, lambda: shown)


def split_name(text: str) -> Tuple[str, Optional[int]]:
    """Split ``NAME:NUMBER``; without a number all test inputs are meant."""
    match = re.fullmatch(r"(.+):(\d{1,9})", text.strip())
    return (match.group(1), int(match.group(2))) if match else (text.strip(), None)


def looks_like_name(text: str) -> bool:
    """Whether a text may be a task's name rather than a grid."""
    text = text.strip()
    return bool(text) and not text.startswith("[") and not set(text) & set("/\n")


def split_grids(
    lines: Sequence[str], known: Optional[KnownTasks] = None
) -> Iterator[Tuple[int, str]]:
    """Find grids in the lines of a file.

    Args:
        lines: JSON of a task or of several by name, of which the test inputs are taken; JSON of one
            grid; or rows of digits, with a blank line between grids.
        known: tasks of a data set; those among them are given by name.

    Returns:
        Pairs of a line's number, from 1, and a grid as text or a name.

    Raises:
        DataError: if it looks like JSON and is not.
    """
    text = "\n".join(lines).strip()
    if text.startswith("{"):
        try:
            content = parse_json(text)
        except ValueError as error:
            raise DataError(f"the file is not JSON: {error}") from error
        alone = isinstance(content.get("test"), list)
        for name, task in [("", content)] if alone else content.items():
            here = known.by_name.get(name, []) if known is not None else []
            for number, pair in enumerate(task.get("test", []) if isinstance(task, dict) else []):
                if not isinstance(pair, dict) or "input" not in pair:
                    continue
                same = number < len(here) and here[number].given.tolist() == pair["input"]
                yield 1, f"{name}:{number + 1}" if same else json.dumps(pair["input"])
        return
    if text.startswith("["):
        yield 1, text
        return
    start = 1
    rows: List[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            start = start if rows else number
            rows.append(line.rstrip())
        elif rows:
            yield start, "\n".join(rows)
            rows = []
