"""Reads what runs have logged: ``metrics.jsonl`` as arrays, smoothed, and thinned for drawing."""

import math
from array import array
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.runs.layout import METRICS
from mlx_trm.runs.reporters import ABOUT
from mlx_trm.system.bounded import parse_json
from mlx_trm.system.files import distinct_names

TRAIN = "train"
# Means over the puzzles that halted: meaningless in a line where none did.
PER_PUZZLE = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")
LARGEST = 1e100  # what lies beyond cannot be drawn


class Series(NamedTuple):
    """One metric along the training steps at which it was measured.

    Attributes:
        steps: (n,) float64, increasing, n >= 1.
        values: (n,) float64, finite.
    """

    steps: np.ndarray
    values: np.ndarray


class RunLog(NamedTuple):
    """The log of a run.

    Attributes:
        name: the run's; of several runs, what tells it from the others.
        path: of the file.
        parts: by metric, for ``train`` (averages over training steps), then for ``eval NAME`` of
            each evaluation set in order of appearance. No part is empty.
        cut: whether the last line was cut off and is left out.
    """

    name: str
    path: Path
    parts: Dict[str, Dict[str, Series]]
    cut: bool

    def metrics(self) -> List[str]:
        """Give the names of everything measured, in order of appearance."""
        return list(dict.fromkeys(name for part in self.parts.values() for name in part))


# Reading ----------------------------------------------------------------------------------------


def read_runs(words: Sequence[str]) -> List[RunLog]:
    """Read the logs of runs; one that is named twice is read once.

    Args:
        words: run folders, or ``metrics.jsonl`` files.

    Raises:
        DataError: naming the file, and the line, that cannot be used.
    """
    found: Dict[Path, Path] = {}
    for word in words:
        path = find_log(word)
        found.setdefault(path.resolve(), path)
    paths = list(found.values())
    return [read_log(path, name) for path, name in zip(paths, _names(paths))]


def find_log(word: str) -> Path:
    """Find the log that a word on the command line means.

    Raises:
        DataError: if there is none.
    """
    path = Path(word)
    try:
        if path.is_dir():
            if (path / METRICS).is_file():
                return path / METRICS
            above = path.absolute().parent
            hint = f"did you mean {path.parent}?" if (above / METRICS).is_file() else ""
            raise DataError(f"{word}: holds no {METRICS}; {hint or 'name the folder of a run'}")
        if path.exists():
            return path
    except OSError as error:
        raise DataError(f"{word}: cannot be read ({error.strerror})") from error
    raise DataError(f"{word}: no such run; name a run folder, or a {METRICS} file")


def read_log(path: Path, name: str) -> RunLog:
    """Read a log.

    Args:
        path: of the file.
        name: of the run.

    Raises:
        DataError: if it cannot be read, has a line that is none of a log, or nothing is in it.
    """
    lines = LogLines()
    try:
        with path.open("rb") as file:
            for text in file:
                try:
                    lines.add(text)
                except ValueError as problem:
                    if text.endswith(b"\n"):
                        raise DataError(
                            f"{path}:{lines.count}: {problem}; mend the line, or take it out"
                        ) from None
                    lines.cut = True  # the run is writing it, or was killed there
                    break
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    log = lines.log(name, path)
    if not log.parts:
        raise DataError(
            f"{path}: holds no metrics; a run writes them every train.log_interval steps"
        )
    return log


class LogLines:
    """Collects the lines of a log, which may still be growing.

    Attributes:
        count: lines so far.
        total: steps of the run, as the last line of training says; None: none has.
        cut: whether the last line was cut off.
    """

    def __init__(self) -> None:
        """Begin with no line."""
        self.count, self.cut = 0, False
        self.total: Optional[int] = None
        self._parts = {TRAIN: _Part()}

    def add(self, text: bytes) -> None:
        """Take a line.

        Raises:
            ValueError: if it is no line of a log.
        """
        self.count += 1
        if not text.strip():
            return
        line = _parse(text)
        if line["kind"] == "train":
            self._parts[TRAIN].add(line)
            total = _number(line.get("total"))
            self.total = self.total if math.isnan(total) else int(total)
        elif line["kind"] == "eval":
            self._parts.setdefault(f"eval {line.get('set', 'all')}", _Part()).add(line)

    def log(self, name: str, path: Path) -> RunLog:
        """Give what there is so far.

        Args:
            name: of the run.
            path: of the file.
        """
        read = {part: columns.series() for part, columns in self._parts.items()}
        return RunLog(name, path, {part: found for part, found in read.items() if found}, self.cut)


def _parse(text: bytes) -> Dict[str, Any]:
    """Read a line of a log; a ValueError says what is wrong with it."""
    try:
        line = parse_json(text)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        raise ValueError("is no line of a log, which has a kind")
    if line["kind"] in ("train", "eval") and not _number(line.get("step")) >= 0:
        raise ValueError("has no step")
    return line


def _number(value: object) -> float:
    """Give a number that can be drawn, NaN for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < LARGEST else math.nan


class _Part:
    """Collects lines as arrays, 16 bytes a number; a log may have hundreds of thousands."""

    def __init__(self) -> None:
        self._last = -1.0
        self._columns: Dict[str, Tuple["array[float]", "array[float]"]] = {}

    def add(self, line: Dict[str, Any]) -> None:
        """Take the numbers of a line."""
        step = _number(line["step"])
        if step <= self._last:  # a run that went on from a checkpoint does steps again
            for steps, values in self._columns.values():
                while steps and steps[-1] >= step:
                    steps.pop()
                    values.pop()
        self._last = step
        nobody = line.get("count") == 0
        for name, value in line.items():
            number = _number(value)
            if name in ABOUT or math.isnan(number) or (nobody and name in PER_PUZZLE):
                continue
            steps, values = self._columns.setdefault(name, (array("d"), array("d")))
            steps.append(step)
            values.append(number)

    def series(self) -> Dict[str, Series]:
        """Give what was collected, by metric."""
        return {
            name: Series(np.array(steps), np.array(values))
            for name, (steps, values) in self._columns.items()
            if steps
        }


def _names(paths: Sequence[Path]) -> List[str]:
    """Name runs by their folders, or logs by their files where one folder holds two."""
    folders = [path.absolute().parent for path in paths]
    names = distinct_names(folders if len(set(folders)) == len(paths) else paths)
    return ["".join(char if char.isprintable() else "?" for char in name) for name in names]


# Fewer points -----------------------------------------------------------------------------------


def smooth(log: RunLog, lines: int) -> RunLog:
    """Average each value of training with those before it; evaluations stay as they are.

    Args:
        log: of a run.
        lines: averaged, fewer at the beginning; 1 changes nothing.
    """
    if lines <= 1 or TRAIN not in log.parts:
        return log
    train = {}
    for name, (steps, values) in log.parts[TRAIN].items():
        ends = np.arange(1, len(values) + 1)
        starts = np.maximum(ends - lines, 0)
        sums = np.append(0.0, np.cumsum(values))
        train[name] = Series(steps, (sums[ends] - sums[starts]) / (ends - starts))
    return log._replace(parts={**log.parts, TRAIN: train})


def thin(series: Series, most: int) -> Series:
    """Average neighbours until few points are left.

    Args:
        series: of n points.
        most: points, at least 1.

    Returns:
        At most ``most`` points; each stands at the mean of its steps.
    """
    size = math.ceil(len(series.steps) / most)
    if size <= 1:
        return series
    starts = np.arange(0, len(series.steps), size)
    counts = np.diff(np.append(starts, len(series.steps)))
    return Series(*(np.add.reduceat(numbers, starts) / counts for numbers in series))
