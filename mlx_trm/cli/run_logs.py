"""What runs have logged: ``metrics.jsonl`` read into arrays, smoothed, and thinned for drawing."""

import json
import math
from array import array
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.errors import DataError
from mlx_trm.runs.layout import METRICS

# Means over the puzzles that halted: meaningless in a line where none did.
PER_PUZZLE = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")
LARGEST = 1e100
ABOUT = ("kind", "step", "set", "total")


class Curves(NamedTuple):
    """Metrics along the supervision steps.

    Attributes:
        steps: (n,) float64, increasing.
        values: by metric; (n,) float64, NaN where there is none.
    """

    steps: np.ndarray
    values: Dict[str, np.ndarray]


class RunLog(NamedTuple):
    """The log of a run.

    Attributes:
        name: the run's; of several runs, what tells it from the others.
        path: of the file.
        train: averages over training steps.
        evals: evaluations by set, in order of appearance.
        cut: whether the last line was cut off and is left out.
    """

    name: str
    path: Path
    train: Curves
    evals: Dict[str, Curves]
    cut: bool

    def metrics(self) -> List[str]:
        """Give the names of everything measured, in order of appearance."""
        names = dict.fromkeys(self.train.values)
        for curves in self.evals.values():
            names.update(dict.fromkeys(curves.values))
        return list(names)


# Reading ----------------------------------------------------------------------------------------


def read_runs(words: Sequence[str]) -> List[RunLog]:
    """Read the logs of runs; one that is named twice is read once.

    Args:
        words: run folders, or ``metrics.jsonl`` files.

    Raises:
        DataError: naming the file, and the line, that cannot be used.
    """
    paths = list({path.resolve(): path for path in reversed([find_log(w) for w in words])}.values())
    paths.reverse()
    return [read_log(path, name) for path, name in zip(paths, _names(paths))]


def find_log(word: str) -> Path:
    """Find the log that is meant.

    Raises:
        DataError: if there is none.
    """
    path = Path(word)
    try:
        if path.is_dir():
            if (path / METRICS).is_file():
                return path / METRICS
            above = path.absolute().parent
            hint = f"; did you mean {path.parent}?" if (above / METRICS).is_file() else ""
            raise DataError(f"{word}: holds no {METRICS}{hint or '; name the folder of a run'}")
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
    train, evals, cut = _Columns(), {}, False  # type: ignore[var-annotated]
    try:
        with path.open("rb") as file:
            for line in _lines(file, path):
                if line is None:
                    cut = True
                elif line["kind"] == "train":
                    train.add(line)
                elif line["kind"] == "eval":
                    evals.setdefault(str(line.get("set", "all")), _Columns()).add(line)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    log = RunLog(
        name, path, train.curves(), {key: held.curves() for key, held in evals.items()}, cut
    )
    if not log.metrics():
        raise DataError(
            f"{path}: holds no metrics; a run writes them every train.log_interval steps"
        )
    return log


def _lines(file: BinaryIO, path: Path) -> Iterator[Optional[Dict[str, Any]]]:
    """Yield the lines of a log; None for a last one that was cut off."""
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        problem = ""
        try:
            line = json.loads(text.decode("utf-8"))
        except UnicodeDecodeError:
            problem = "is not UTF-8"
        except (ValueError, RecursionError):
            problem = "is not JSON"
        else:
            if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
                problem = "is no line of a log, which has a kind"
            elif line["kind"] in ("train", "eval") and not _number(line.get("step")) >= 0:
                problem = "has no step"
        if not problem:
            yield line
        elif not text.endswith(b"\n"):
            yield None
        else:
            raise DataError(f"{path}:{number}: {problem}; mend the line, or take it out")


def _number(value: Any) -> float:
    """Give a number that can be drawn, NaN for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < LARGEST else math.nan


class _Columns:
    """Collects lines column by column, which takes little memory."""

    def __init__(self) -> None:
        self._steps = array("d")
        self._columns: Dict[str, "array[float]"] = {}

    def add(self, line: Dict[str, Any]) -> None:
        """Take a line; entries that are no numbers are left out."""
        count = len(self._steps)
        self._steps.append(_number(line["step"]))
        nobody = line.get("count") == 0
        for name, value in line.items():
            number = _number(value)
            if name in ABOUT or math.isnan(number) or (nobody and name in PER_PUZZLE):
                continue
            column = self._columns.setdefault(name, array("d"))
            column.extend([math.nan] * (count - len(column)))
            column.append(number)

    def curves(self) -> Curves:
        """Give what was collected; a step that was done again replaces what it comes after."""
        count = len(self._steps)
        for column in self._columns.values():
            column.extend([math.nan] * (count - len(column)))
        steps = np.array(self._steps, dtype=np.float64)
        later = np.minimum.accumulate(steps[::-1])[::-1]
        kept = np.ones(count, dtype=bool)
        kept[:-1] = steps[:-1] < later[1:]
        values = {name: np.array(column)[kept] for name, column in self._columns.items()}
        return Curves(steps[kept], {name: v for name, v in values.items() if not np.isnan(v).all()})


def _names(paths: Sequence[Path]) -> List[str]:
    """Name runs by their folders, with as much of the way to them as tells them apart."""
    parts = [path.absolute().parent.parts for path in paths]
    if len({path.parent for path in paths}) < len(paths):  # two files of one folder
        parts = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return ["".join(char if char.isprintable() else "?" for char in name) for name in names]


# Fewer points -----------------------------------------------------------------------------------


def smooth(curves: Curves, lines: int) -> Curves:
    """Average each value with those of the lines before it.

    Args:
        curves: some.
        lines: averaged, fewer at the beginning; 1 changes nothing.
    """
    if lines <= 1:
        return curves
    return Curves(curves.steps, {k: _running_mean(v, lines) for k, v in curves.values.items()})


def _running_mean(values: np.ndarray, lines: int) -> np.ndarray:
    there = ~np.isnan(values)
    sums = np.cumsum(np.append(0.0, np.where(there, values, 0.0)))
    counts = np.cumsum(np.append(0, there))
    first = np.maximum(np.arange(len(values)) + 1 - lines, 0)
    total, count = sums[1:] - sums[first], counts[1:] - counts[first]
    return np.where(there, total / np.maximum(count, 1), np.nan)


def thin(steps: np.ndarray, values: np.ndarray, most: int) -> Tuple[np.ndarray, np.ndarray]:
    """Leave out what is missing, and average neighbours until few points are left.

    Args:
        steps: (n,) float64.
        values: (n,) float64 with NaN where there is none.
        most: points, at least 1.

    Returns:
        Steps and values, (m,) with m <= ``most``; a point stands at the mean of its steps.
    """
    there = ~np.isnan(values)
    steps, values = steps[there], values[there]
    size = math.ceil(len(values) / most)
    if size <= 1:
        return steps, values
    starts = np.arange(0, len(values), size)
    counts = np.diff(np.append(starts, len(values)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts
