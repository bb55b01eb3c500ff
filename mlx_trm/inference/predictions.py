"""Predictions of an evaluation in a file, one puzzle a line, and two such files compared."""

import csv
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, NamedTuple, Optional, TextIO

import numpy as np

from mlx_trm.errors import ConfigError, DataError, describe_error, shown
from mlx_trm.inference.search import Result
from mlx_trm.system.bounded import parse_json
from mlx_trm.system.files import json_text, replace_file
from mlx_trm.tasks import Task

COLUMNS = ("puzzle", "answer", "correct", "accepted", "steps", "rollouts", "probability")
SUFFIXES = (".csv", ".jsonl")
_WORDS: Dict[Optional[bool], str] = {True: "true", False: "false", None: ""}

Writer = Callable[[Result], None]


class McNemar(NamedTuple):
    """Two runs' answers to the same puzzles.

    Attributes:
        both: puzzles that both have right.
        only_here: right here and wrong there.
        only_there: wrong here and right there.
        neither: wrong in both.
        p: of McNemar's exact test, two-sided: how probable so unequal numbers of puzzles that only
            one has right would be, were the runs equally good.
    """

    both: int
    only_here: int
    only_there: int
    neither: int
    p: float


class Comparison:
    """Counts the answers of a run against those of a file."""

    def __init__(self, path: Path) -> None:
        """Read the other run's file.

        Raises:
            DataError: if it is no file of predictions.
        """
        self.path = path
        self._others = read_predictions(path)
        self._counts = {(here, there): 0 for here in (True, False) for there in (True, False)}

    def add(self, puzzle: str, correct: Optional[bool]) -> None:
        """Count an answer, where both runs have the puzzle and know whether theirs is right."""
        other = self._others.get(puzzle)
        if other is not None and correct is not None:
            self._counts[correct, other] += 1

    def result(self) -> McNemar:
        """Compare what was counted.

        Raises:
            DataError: if the runs share no puzzle.
        """
        here, there = self._counts[True, False], self._counts[False, True]
        if not any(self._counts.values()):
            raise DataError(f"{self.path}: shares no puzzle with those evaluated now")
        return McNemar(
            self._counts[True, True], here, there, self._counts[False, False], mcnemar(here, there)
        )


def mcnemar(only_here: int, only_there: int) -> float:
    """Give the two-sided p of McNemar's exact test, from the puzzles that one run alone has right.

    Each of them is as likely to be either run's, if the runs are equally good.
    """
    count, fewer = only_here + only_there, min(only_here, only_there)
    if not count:
        return 1.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(fewer + 1)
    ]
    tail = float(np.exp(np.array(logs) - count * math.log(2.0)).sum())
    return min(1.0, 2.0 * tail)


@contextmanager
def write_predictions(path: Path, task: Task) -> Iterator[Writer]:
    """Give a function that writes results to a file, which is there whole or not at all.

    Args:
        path: ending in ``.csv`` or ``.jsonl``.
        task: writes the puzzles.

    Raises:
        ConfigError: for another name, or if the file cannot be written.
    """
    check_name("--predictions", path)
    try:
        with replace_file(path) as temporary:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                yield _line_writer(file, path.suffix.lower(), task)
    except OSError as error:
        raise ConfigError(
            f"--predictions {path}: cannot be written ({error.strerror or error})"
        ) from error


def check_name(option: str, path: Path) -> None:
    """Refuse a file whose name does not say what it holds.

    Raises:
        ConfigError: naming what there is.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{option} {path}: the name must end in {' or '.join(SUFFIXES)}")


def _line_writer(file: TextIO, suffix: str, task: Task) -> Writer:
    table = csv.writer(file, lineterminator="\n")
    if suffix == ".csv":
        table.writerow(COLUMNS)

    def write(result: Result) -> None:
        row = result.record(task)
        if suffix == ".csv":
            row.update(correct=_WORDS[result.correct], accepted=_WORDS[result.accepted])
            table.writerow(row.values())
        else:
            file.write(json_text(row) + "\n")

    return write


def read_predictions(path: Path) -> Dict[str, Optional[bool]]:
    """Read whether the answers of a file are right, by puzzle.

    Raises:
        ConfigError: for another name.
        DataError: if it cannot be read, naming the line.
    """
    check_name("--against", path)
    found: Dict[str, Optional[bool]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            table = path.suffix.lower() == ".csv"
            rows: Iterable[Any] = csv.DictReader(file) if table else map(parse_json, file)
            for number, row in enumerate(rows, 1):
                problem = not isinstance(row, dict) or not {"puzzle", "correct"} <= set(row)
                if problem or not isinstance(row["puzzle"], str):
                    raise DataError(f"{path}: entry {number} has no puzzle and correct")
                found[row["puzzle"]] = _truth(row["correct"])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: is no file of predictions: {describe_error(error)}") from error
    return found


def _truth(value: Any) -> Optional[bool]:
    if value in (None, ""):
        return None
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError(f"correct is {shown(repr(value))}, not true or false")
