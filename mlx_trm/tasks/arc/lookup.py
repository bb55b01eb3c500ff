"""Finds a test task of a data set by its name or by one of its test inputs, for ``solve``."""

import json
import re
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.datasets.dataset import SetSource
from mlx_trm.datasets.names import load_names
from mlx_trm.errors import DataError, did_you_mean
from mlx_trm.tasks.arc.grids import CANVAS
from mlx_trm.tasks.arc.voting import load_puzzles, pack


class KnownInput(NamedTuple):
    """A test input of a task.

    Attributes:
        name: of the task.
        number: of the test input, from 1.
        given: (H, W) uint8 colours.
        answer: (H, W) uint8 colours.
        identifier: row of the puzzle table.
    """

    name: str
    number: int
    given: np.ndarray
    answer: np.ndarray
    identifier: int


class KnownTasks:
    """The test tasks of built data sets."""

    def __init__(self, sources: Sequence[SetSource], size: int = CANVAS, problem: str = "") -> None:
        """Read the tasks and their identifiers.

        Args:
            sources: of the test sets.
            size: of the canvas.
            problem: why there are none.

        Raises:
            DataError: if a data set lacks what is needed.
        """
        self.problem = problem
        self.by_name: Dict[str, List[KnownInput]] = {}
        self.by_grid: Dict[bytes, KnownInput] = {}
        for source in sources:
            puzzles = load_puzzles(source.folder, size)
            numbers = {name: number for number, name in enumerate(load_names(source.folder))}
            for name, pairs in puzzles.items():
                identifier = numbers.get(name, 0)
                identifier += source.first_identifier if identifier else 0
                known = [
                    KnownInput(name, at, given, answer, identifier)
                    for at, (given, answer) in enumerate(pairs, 1)
                ]
                self.by_name.setdefault(name, known)
                for each in known:
                    self.by_grid.setdefault(pack(each.given), each)

    def named(self, text: str) -> List[KnownInput]:
        """Return the test inputs that ``NAME`` or ``NAME:NUMBER`` means; none if it is no name."""
        name, number = split_name(text)
        known = self.by_name.get(name, [])
        return [each for each in known if number in (None, each.number)]

    def hint(self, text: str) -> str:
        """Say why a text is no test input by its name."""
        name, number = split_name(text)
        if self.problem:
            return f"; no task is known by name: {self.problem}"
        if name in self.by_name:
            return f"; task {name} has {len(self.by_name[name])} test inputs, not {number}"
        return f"; no test task has this name{did_you_mean(name, list(self.by_name))}"

    def like(self, grid: np.ndarray) -> Optional[KnownInput]:
        """Return the test input that is this grid."""
        return self.by_grid.get(pack(grid))


def split_name(text: str) -> Tuple[str, Optional[int]]:
    """Split ``NAME:NUMBER``; without a number all test inputs are meant."""
    match = re.fullmatch(r"(.+):(\d+)", text.strip())
    return (match.group(1), int(match.group(2))) if match else (text.strip(), None)


def looks_like_name(text: str) -> bool:
    """Whether a text may be a task's name rather than a grid."""
    text = text.strip()
    return bool(text) and not text.startswith("[") and not set(text) & set("/\n")


def shorten(text: str, length: int = 60) -> str:
    """Write a text on one line, cut where it is long."""
    line = "/".join(text.split("\n"))
    return line if len(line) <= length else line[: length - 3] + "..."


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
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
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
            rows.append(line.strip())
        elif rows:
            yield start, "\n".join(rows)
            rows = []
