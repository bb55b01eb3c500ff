"""Runs that are followed while they train: their logs, read as they grow, and their settings."""

import logging
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mlx_trm.config.loading import flat_settings
from mlx_trm.config.strict_yaml import parse_yaml
from mlx_trm.drawing.charts import FIRST, LAST, ON_REQUEST
from mlx_trm.drawing.run_logs import LogLines, RunLog, thin
from mlx_trm.errors import ConfigError, did_you_mean
from mlx_trm.runs.layout import CONFIG, METRICS
from mlx_trm.system.bounded import read_bytes
from mlx_trm.system.files import distinct_names

LOGGER = logging.getLogger(__name__)
Mark = Tuple[Tuple[int, int], int, str]
MOST_RUNS = 500  # that are listed
MOST_POINTS = 400  # of a curve; a page is a thousand pixels wide
MOST_CONFIG = 1 << 20
MOST_READ = 1 << 26  # bytes of a log that are read at a time


class Follower:
    """Reads a run's log, and each time only what is new."""

    def __init__(self, name: str, folder: Path) -> None:
        """Begin at the log's beginning; it need not be there yet.

        Args:
            name: of the run.
            folder: of the run.
        """
        self.name, self.path = name, folder / METRICS
        self.problem = ""
        self._lines = LogLines()
        self._offset, self._file = 0, (0, 0)
        self._lock = threading.Lock()
        self._described: Optional[Tuple[Mark, Dict[str, Any]]] = None

    def poll(self) -> None:
        """Read what is new.

        A run that goes on from a checkpoint puts another file in the place of its log; a file that
        is another one, or shorter, is read from its beginning.
        """
        with self._lock:
            try:
                self._read()
            except OSError as error:
                self.problem = f"{METRICS}: cannot be read ({error.strerror})"

    def _read(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._begin((0, 0))
            self.problem = f"no {METRICS} yet"
            return
        which = (status.st_dev, status.st_ino)
        if which != self._file or status.st_size < self._offset:
            self._begin(which)
        if status.st_size == self._offset:
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(MOST_READ)
        # What follows the last newline is still being written.
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            try:
                self._lines.add(line)
            except ValueError as problem:
                self.problem = f"{METRICS}:{self._lines.count}: {problem}; left out"
        self._offset += len(whole)

    def _begin(self, which: Tuple[int, int]) -> None:
        self._lines, self._offset, self._file, self.problem = LogLines(), 0, which, ""

    def mark(self) -> Mark:
        """Give what tells whether the log has changed since: its file, lines, and what is wrong."""
        with self._lock:
            return self._file, self._lines.count, self.problem

    def log(self) -> RunLog:
        """Give what has been read so far."""
        with self._lock:
            return self._lines.log(self.name, self.path)

    def describe(self) -> Dict[str, Any]:
        """Give the curves, with few enough points to be drawn, as JSON."""
        mark = self.mark()
        if self._described is None or self._described[0] != mark:
            self._described = mark, self._describe()
        return self._described[1]

    def _describe(self) -> Dict[str, Any]:
        log = self.log()
        parts = {
            part: {
                metric: {
                    "steps": [round(float(step), 1) for step in drawn.steps],
                    "values": [float(f"{value:.6g}") for value in drawn.values],
                    "last": float(series.values[-1]),
                }
                for metric, series in found.items()
                for drawn in [thin(series, MOST_POINTS)]
            }
            for part, found in log.parts.items()
        }
        return {**self.summary(), "parts": parts, "metrics": order_metrics(log)}

    def summary(self) -> Dict[str, Any]:
        """Say in a few numbers where the run is, as JSON."""
        log = self.log()
        steps = [series.steps[-1] for part in log.parts.values() for series in part.values()]
        step = int(max(steps)) if steps else None
        return {
            "name": self.name,
            "step": step,
            "total": self._lines.total,
            "problem": self.problem,
        }


def order_metrics(log: RunLog) -> List[str]:
    """Give the metrics of a log in the order in which ``plot`` draws them."""
    logged = log.metrics()
    others = [name for name in logged if name not in FIRST + LAST + ON_REQUEST]
    others = [name for name in others if not name.endswith(("_low", "_high"))]
    return [name for name in (*FIRST, *others, *LAST) if name in logged]


class Runs:
    """The runs in some folders, by names that are the server's own."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Keep the folders.

        Args:
            folders: run folders, or folders that hold some.
        """
        self._folders = folders
        self._followers: Dict[Path, Follower] = {}
        self._names: Dict[str, Follower] = {}
        self._lock = threading.Lock()

    def scan(self) -> Dict[str, Follower]:
        """Look for runs, new ones too; give them by name."""
        with self._lock:
            found = list(dict.fromkeys(path for top in self._folders for path in _runs_in(top)))
            names = distinct_names(found) if found else []
            shown = ["".join(c if c.isprintable() else "?" for c in name) for name in names]
            followers: Dict[str, Follower] = {}
            for name, path in list(zip(shown, found))[:MOST_RUNS]:
                follower = self._followers.setdefault(path, Follower(name, path))
                follower.name = name
                followers[name] = follower
            self._names = followers
            return dict(followers)

    def find(self, names: Sequence[str]) -> List[Follower]:
        """Give the runs of names, each once; what a name is not is a path.

        Raises:
            ConfigError: if there is none of a name.
        """
        known = self._names
        if any(name not in known for name in names):
            known = self.scan()
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"no run {name[:80]!r}{hint}; the list of runs has their names")
        return [known[name] for name in dict.fromkeys(names)]

    def list(self) -> List[Dict[str, Any]]:
        """Say what runs there are and where each is, as JSON."""
        followers = self.scan()
        for follower in followers.values():
            follower.poll()
        return [follower.summary() for follower in followers.values()]


def _runs_in(folder: Path) -> List[Path]:
    """Find a run, or the runs in a folder, by their logs and configurations."""
    try:
        if _is_run(folder):
            return [folder.resolve()]
        return sorted(path.resolve() for path in folder.iterdir() if _is_run(path))
    except OSError:
        return []


def _is_run(path: Path) -> bool:
    log, config = path / METRICS, path / CONFIG
    return log.is_file() or (config.is_file() and not (path / "state.json").exists())


def compare(followers: Sequence[Follower]) -> Dict[str, Any]:
    """Say in which settings runs differ, and where they are, as JSON.

    Args:
        followers: of the runs, at least one.
    """
    settings = [_settings(follower) for follower in followers]
    names = dict.fromkeys(name for each in settings if each is not None for name in each)
    known = [each if each is not None else {} for each in settings]
    differing: List[Dict[str, Any]] = []
    same: List[Dict[str, Any]] = []
    for name in names:
        values = [_text(each[name]) if name in each else None for each in known]
        row = {"name": name, "values": values}
        (differing if len(set(values)) > 1 else same).append(row)
    return {
        "runs": [follower.name for follower in followers],
        "unread": [f.name for f, each in zip(followers, settings) if each is None],
        "differing": differing,
        "same": same,
    }


def _settings(follower: Follower) -> Optional[Dict[str, Any]]:
    """Read a run's configuration as it stands there, and nothing else; None: it cannot be read."""
    path = follower.path.parent / CONFIG
    try:
        values, _ = parse_yaml(read_bytes(path, MOST_CONFIG).decode("utf-8-sig"))
    except (OSError, ValueError) as error:  # UnicodeDecodeError is one
        LOGGER.debug("%s: %s", path, error)
        return None
    return flat_settings(values) if isinstance(values, dict) else None


def _text(value: Any) -> str:
    """Write a setting as a configuration does."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)
