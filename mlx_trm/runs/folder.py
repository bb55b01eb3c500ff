"""Run folders: where a run's files go, and the log of its metrics."""

import json
import logging
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

import mlx.core as mx

from mlx_trm.config.loading import ExperimentConfig, save_config, write_bytes, write_text
from mlx_trm.errors import CheckpointError, ConfigError
from mlx_trm.models.losses import Metrics, metric_values
from mlx_trm.runs.checkpoint import CONFIG, list_checkpoints
from mlx_trm.runs.reporters import Reporter

LOG = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


@dataclass
class StepReport:
    """Progress of training, averaged over the steps since the report before.

    Attributes:
        step: supervision steps done.
        total: supervision steps of the run.
        metrics: ``lm_loss``, ``q_halt_loss`` per row; ``accuracy``, ``exact_accuracy``,
            ``q_halt_accuracy`` and ``steps`` per puzzle that halted; ``count`` of those.
        lr: learning rate of the last step.
        steps_per_second: over the same steps.
        peak_memory: bytes, since the process started.
    """

    step: int
    total: int
    metrics: Dict[str, float]
    lr: float
    steps_per_second: float
    peak_memory: int


class MetricsLog:
    """Averages step metrics, writes them to ``metrics.jsonl`` and reports progress.

    Attributes:
        path: the file; one JSON object a line, ``kind`` is ``train`` or ``eval``.
        reporters: services that get every line too.
        lines: written so far.
    """

    def __init__(
        self,
        path: Optional[Path],
        batch_size: int,
        interval: int,
        total: int,
        on_step: Optional[Callable[[StepReport], None]] = None,
    ) -> None:
        """Prepare a log; the file is appended to.

        Args:
            path: of the file; None: nothing is written.
            batch_size: B, by which summed losses are divided.
            interval: steps averaged in one line.
            total: steps of the run, for the reports.
            on_step: called with each line's report.
        """
        self.path = path
        self._batch_size = batch_size
        self._interval = interval
        self._total = total
        self._on_step = on_step
        self._sums: Dict[str, float] = {}
        self._steps = 0
        self._lr = 0.0
        self._step = 0
        self.reporters: List[Reporter] = []
        self.lines = 0
        self._seconds = 0.0
        self._resumed = time.monotonic()

    def resume_clock(self) -> None:
        """Leave what was done since the last step (evaluating, saving) out of the speed."""
        self._resumed = time.monotonic()

    def state(self) -> Dict[str, Any]:
        """Give what has been added since the last line, as JSON has it; see :meth:`restore`."""
        return {
            "sums": self._sums,
            "steps": self._steps,
            "seconds": self._seconds,
            "step": self._step,
            "lr": self._lr,
            "lines": self.lines,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a log's :meth:`state`."""
        self._sums = {name: float(value) for name, value in state["sums"].items()}
        self._steps, self._seconds = int(state["steps"]), float(state["seconds"])
        self._step, self._lr = int(state["step"]), float(state["lr"])
        self.lines = int(state["lines"])
        self.resume_clock()

    def add(self, step: int, metrics: Metrics, lr: float) -> None:
        """Take the metric sums of a step; report when ``interval`` of them are there."""
        for name, value in metric_values(metrics).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        now = time.monotonic()
        self._seconds += now - self._resumed
        self._resumed = now
        self._steps += 1
        self._step, self._lr = step, lr
        if step % self._interval == 0:
            self.report()

    def report(self) -> None:
        """Write and report the average since the last report, where there is any."""
        if not self._steps:
            return
        rows = self._steps * self._batch_size
        count = self._sums["count"]
        means = {
            name: value / (rows if name.endswith("loss") else max(count, 1.0))
            for name, value in self._sums.items()
            if name != "count"
        }
        report = StepReport(
            step=self._step,
            total=self._total,
            metrics={"count": count, **means},
            lr=self._lr,
            steps_per_second=self._steps / max(self._seconds, 1e-9),
            peak_memory=mx.get_peak_memory(),
        )
        self._sums, self._steps, self._seconds = {}, 0, 0.0
        flat = asdict(report)
        self.write({"kind": "train", **flat.pop("metrics"), **flat})
        if self._on_step is not None:
            self._on_step(report)

    def flush(self) -> None:
        """Bring what has been written to the disk."""
        if self.path is None or not self.path.exists():
            return
        try:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror})") from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, and give it to the reporters.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        self.lines += 1
        for reporter in self.reporters:
            reporter.report(line)
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror})") from error


def rewind_metrics(path: Path, lines: int) -> None:
    """Take all but the first ``lines`` lines out of a log; they are about to be written again.

    Args:
        path: of the log; it need not be there.
        lines: that were there when the checkpoint was saved.

    Raises:
        CheckpointError: if the log cannot be read or written.
    """
    try:
        if path.exists():
            content = path.read_bytes().split(b"\n")
            kept = content[: min(lines, len(content) - 1)]  # what follows the last newline is cut
            write_bytes(path, b"".join(line + b"\n" for line in kept))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be rewound ({error})") from error


class RunLock:
    """Keeps a second process out of a run folder; the system frees it when the process ends."""

    def __init__(self, run: Path) -> None:
        """Take the lock.

        Raises:
            ConfigError: if another process has it.
            CheckpointError: if the file cannot be written.
        """
        self._file: Optional[IO[str]] = None
        path = run / ".lock"
        try:
            import fcntl
        except ImportError:  # not a Unix
            return
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ConfigError(
                f"run_dir: {run} is in use by {holder}; wait for it, or name another run_dir"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let others use the run folder."""
        if self._file is not None:
            self._file.close()
            self._file = None


def free_run_dir(stem: str, root: Union[str, Path] = "runs") -> Path:
    """Give ``root/stem``, or ``root/stem-2``, ``-3``, ... where that is taken.

    Args:
        stem: usually the configuration file's name without suffix.
        root: the folder of runs.
    """
    path, number = Path(root) / stem, 2
    while path.exists() or path.is_symlink():
        path = Path(root) / f"{stem}-{number}"
        number += 1
    return path


def check_run_dir(config: ExperimentConfig, unsaved: bool = False) -> Path:
    """Choose the run folder and see, before the work begins, that it can be used.

    Args:
        config: where its ``run_dir`` is open the folder is chosen by its name.
        unsaved: take the folder of a run that was stopped before its first checkpoint.

    Returns:
        The folder, which need not be there yet.

    Raises:
        ConfigError: if it is a file, holds a run already, or could not be made.
    """
    run = free_run_dir(config.stem) if config.run_dir is None else Path(config.run_dir)
    try:
        if run.exists() and not run.is_dir():
            raise ConfigError(f"run_dir: {run} is a file; name a folder")
        if list_checkpoints(run):
            raise ConfigError(
                f"run_dir: {run} holds a run already; name another run_dir, or go on with it by "
                f"--resume {run}"
            )
        if unsaved and list(run.glob("step_*")):
            raise ConfigError(
                f"run_dir: {run} holds checkpoints, and none of them is whole; name another run_dir"
            )
        if (run / CONFIG).exists() and not unsaved:
            raise ConfigError(
                f"run_dir: {run} holds a run that has saved nothing yet; name another run_dir, or "
                "begin it anew by --resume auto"
            )
        above = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    except OSError as error:  # a name that is too long, say
        raise ConfigError(
            f"run_dir: {run} cannot be made ({error.strerror}); name another folder"
        ) from error
    if not above.is_dir():
        raise ConfigError(f"run_dir: {run} cannot be made, {above} is a file; name another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run_dir: {run} cannot be made, {above} is not writable; name another folder"
        )
    return run


def prepare_run_dir(config: ExperimentConfig, unsaved: bool = False) -> Tuple[Path, RunLock]:
    """Make the run folder, lock it, and write the resolved configuration into it.

    Args:
        config: written as it is; where ``run_dir`` is open the folder is chosen by its name.
        unsaved: take the folder of a run that was stopped before its first checkpoint.

    Returns:
        The folder, and its lock.

    Raises:
        ConfigError: if it is a file, holds a run already, is in use, or cannot be made.
    """
    while True:
        run = check_run_dir(config, unsaved)
        lock: Optional[RunLock] = None
        try:
            try:
                run.mkdir(parents=True, exist_ok=config.run_dir is not None)
            except FileExistsError:  # another process has just chosen this name
                if config.run_dir is None:
                    continue
                raise
            lock = RunLock(run)
            if unsaved and (run / METRICS).exists():
                os.replace(run / METRICS, run / f"aside_{METRICS}")
                LOG.warning(
                    "%s: begun anew, no checkpoint was saved; its log is aside_%s", run, METRICS
                )
            save_config(config, run / CONFIG)
            return run, lock
        except OSError as error:
            if lock is not None:
                lock.release()
            raise ConfigError(
                f"run_dir: {run} cannot be made ({error.strerror}); name another folder"
            ) from error
        except BaseException:  # Ctrl-C, say
            if lock is not None:
                lock.release()
            raise


def save_evaluation_files(folder: Path, files: Mapping[str, Mapping[str, str]]) -> List[Path]:
    """Write what an evaluation has to keep, each file whole or not at all.

    Args:
        folder: made where there is anything to write.
        files: texts by set and file name; with several sets each gets a folder of its own.

    Returns:
        The files.

    Raises:
        CheckpointError: if one cannot be written.
    """
    written = []
    for name, texts in files.items():
        place = folder / name.replace("/", "_") if len(files) > 1 else folder
        for file, text in texts.items():
            try:
                place.mkdir(parents=True, exist_ok=True)
                write_text(place / file, text)
            except OSError as error:
                raise CheckpointError(
                    f"{place / file}: cannot be written ({error.strerror or error})"
                ) from error
            written.append(place / file)
    return written


def save_interval(every: Optional[Union[int, str]]) -> Tuple[Optional[int], Optional[float]]:
    """Split ``checkpoint.every`` into steps and seconds; at most one is set.

    Args:
        every: a number of steps, or minutes such as ``10min``, or None.
    """
    if every is None:
        return None, None
    if isinstance(every, int):
        return every, None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)min", every)
    if match is None:
        raise ConfigError(f"checkpoint.every: {every!r} is neither a number of steps nor '10min'")
    return None, 60.0 * float(match.group(1))
