"""Hands the lines of ``metrics.jsonl`` on to TensorBoard and Weights & Biases.

A reporter gets the very dicts that the log gets. Both packages are extras, imported here only when
they are asked for; neither needs torch or TensorFlow. What fails once training runs is left behind
with one warning: no service may stop a run.

Differs from reference: it always reports to Weights & Biases; here ``metrics.jsonl`` is always
written and services are a choice.
"""

import io
import json
import logging
import math
import os
import re
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from mlx_trm.errors import ConfigError, did_you_mean
from mlx_trm.system.files import write_text

LOGGER = logging.getLogger(__name__)
PROJECT = "mlx_trm"
FIELD = "train.report_to"
# Entries of a line that say what it is about and are not measured.
ABOUT = ("kind", "step", "set", "total")
# Seconds that Weights & Biases may take to start, and to send what is left at the end.
START_SECONDS, FINISH_SECONDS = 30.0, 60.0


class Reporter:
    """Gets every line of a run's log; this one does nothing with it."""

    def report(self, line: Mapping[str, Any]) -> None:
        """Take a line.

        Args:
            line: as ``metrics.jsonl`` has it: ``kind``, ``step``, with ``set`` for evaluations,
                and metrics. What is no finite number is left out.
        """

    def close(self) -> None:
        """Finish; no line comes after this."""


def make_reporters(names: Sequence[str], run: Path, config: Mapping[str, Any]) -> List[Reporter]:
    """Start the reporters of a run.

    Args:
        names: among ``tensorboard`` and ``wandb``.
        run: the run folder, which is there.
        config: the resolved configuration as nested dicts; the services show it as hyperparameters.

    Returns:
        One for each name; they do not raise any more.

    Raises:
        ConfigError: for an unknown name, a missing package, or files that cannot be written.
    """
    check_reporters(names)
    started: List[Reporter] = []
    for name in dict.fromkeys(names):
        try:
            started.append(_Guarded(name, REPORTERS[name](run, config)))
        except Exception as error:  # pylint: disable=broad-exception-caught
            for reporter in started:
                reporter.close()
            raise ConfigError(
                f"{FIELD}: {name} cannot be started ({_reason(error)}); mend that, or leave it out"
            ) from error
    return started


def check_reporters(names: Sequence[str]) -> None:
    """See that the packages are there, before anything is written.

    Raises:
        ConfigError: for an unknown name, or a package that is missing or broken.
    """
    for name in names:
        if name not in REPORTERS:
            known = ", ".join(REPORTERS)
            raise ConfigError(
                f"{FIELD}: unknown {name!r}{did_you_mean(name, REPORTERS)} (known: {known})"
            )
        install = f'pip install --upgrade "mlx_trm[{name}]"'
        try:
            found = [hasattr(import_module(module), needed) for module, needed in MODULES[name]]
        except ImportError as error:
            raise ConfigError(
                f"{FIELD}: {name} needs a package that is missing ({_reason(error)}); {install}"
            ) from error
        except Exception as error:  # pylint: disable=broad-exception-caught
            raise ConfigError(
                f"{FIELD}: {name} cannot be imported ({_reason(error)}); {install}"
            ) from error
        if not all(found):  # an empty folder of that name in the working folder, say
            raise ConfigError(f"{FIELD}: {name} needs a package that is missing; {install}")


def scalars(line: Mapping[str, Any]) -> Dict[str, float]:
    """Give the finite numbers of a line by tag: ``train/lm_loss``, ``eval/SET/exact_accuracy``."""
    where = str(line.get("kind", "train"))
    if "set" in line:
        where += f"/{line['set']}"
    found = {}
    for name, value in line.items():
        if name in ABOUT or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if math.isfinite(value):
            found[f"{where}/{name}"] = float(value)
    return found


class _Guarded(Reporter):
    """A reporter that is given up, with one warning, when it fails."""

    def __init__(self, name: str, inner: Reporter) -> None:
        self._name = name
        self._inner: Optional[Reporter] = inner

    def report(self, line: Mapping[str, Any]) -> None:
        if self._inner is None:
            return
        try:
            self._inner.report(line)
        except Exception as error:  # pylint: disable=broad-exception-caught
            failed, self._inner = self._inner, None
            self._warn(error, "training goes on without it")
            try:
                failed.close()
            except Exception as again:  # pylint: disable=broad-exception-caught
                LOGGER.debug("%s: closing: %s", self._name, _reason(again))

    def close(self) -> None:
        inner, self._inner = self._inner, None
        if inner is None:
            return
        try:
            inner.close()
        except Exception as error:  # pylint: disable=broad-exception-caught
            self._warn(error, "its last lines may be missing")

    def _warn(self, error: Exception, then: str) -> None:
        LOGGER.warning("%s failed (%s); %s", self._name, _reason(error), then)


def _reason(error: BaseException) -> str:
    """Say in a line what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


# TensorBoard ------------------------------------------------------------------------------------


class TensorBoard(Reporter):
    """Writes event files to ``RUN/tensorboard``; the step is the supervision step.

    The records are written here and now rather than by the package's own thread, so that a killed
    run has lost nothing and a full disk is noticed by the line that fills it.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        """Open a file of this process; those of earlier ones stay."""
        self._proto = import_module("tensorboard.compat.proto.event_pb2")
        self._summary = import_module("tensorboard.compat.proto.summary_pb2").Summary
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        file = _new_event_file(folder)
        self._records = import_module("tensorboard.summary.writer.record_writer").RecordWriter(file)
        self._begun = False
        self._write(file_version="brain.Event:2")
        parameters = import_module("tensorboard.plugins.hparams.summary_v2").hparams_pb(
            dict(_flat(config)), trial_id=run.name
        )
        self._write(summary=parameters)

    def report(self, line: Mapping[str, Any]) -> None:
        """Write a line's numbers and flush them."""
        step = int(line["step"])
        values = [
            self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()
        ]
        if not self._begun:
            # What earlier files say of later steps is about to be written again; an evaluation that
            # comes first belongs to a step whose training has been reported.
            log, purged = self._proto.SessionLog, step + (line.get("kind") == "eval")
            self._write(step=purged, session_log=log(status=log.START))
            self._begun = True
        self._write(step=step, summary=self._summary(value=values))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, **content: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())
        self._records.flush()


def _new_event_file(folder: Path) -> io.BufferedWriter:
    """Open an event file whose name sorts behind those that are there."""
    name = f"events.out.tfevents.{int(time.time()):010d}.{os.uname().nodename}.{os.getpid()}"
    number = 0
    while True:
        try:
            return (folder / f"{name}.{number}").open("xb")
        except FileExistsError:
            number += 1


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Yield a configuration's values under dotted names, as numbers, bools and texts."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float, str)):
            yield prefix + name, value
        else:
            yield prefix + name, json.dumps(value, default=str)


# Weights & Biases -------------------------------------------------------------------------------


class WandB(Reporter):
    """Logs to Weights & Biases, or to ``RUN/wandb`` where it cannot be reached.

    The run keeps its identity in ``RUN/wandb_id.txt``: resumed, it goes on as the same one. Its
    x axis is the supervision step.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        """Start; ``WANDB_MODE`` and the other variables of the package are respected."""
        self._run = _start_wandb(
            {
                "project": PROJECT,
                "name": run.name,
                "dir": os.path.abspath(run),
                "id": _identity(run / "wandb_id.txt"),
                "resume": "allow",
                "config": dict(config),
            }
        )
        # Not the service's own counter: that one cannot go back to the step that is resumed from.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def report(self, line: Mapping[str, Any]) -> None:
        """Hand a line's numbers to the package, which sends them by itself."""
        self._run.log({"step": int(line["step"]), **scalars(line)})

    def close(self) -> None:
        """Wait until everything is sent, or for a minute."""
        self._run.finish()


def _start_wandb(arguments: Dict[str, Any]) -> Any:
    """Start online if that works without asking anything, and offline otherwise."""
    wandb = import_module("wandb")
    settings = {"init_timeout": START_SECONDS, "silent": True, "console": "off"}
    if "finish_timeout" in getattr(wandb.Settings, "__annotations__", ()):  # older ones always wait
        settings["finish_timeout"] = FINISH_SECONDS
    arguments["settings"] = wandb.Settings(**settings)
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "dryrun", "disabled"):
        run = wandb.init(**arguments)
        if mode != "disabled":
            LOGGER.info("Weights & Biases: offline; to send the run later: %s", _sync(run))
        return run
    try:
        with _no_terminal():
            run = wandb.init(**arguments)
    except Exception as error:  # pylint: disable=broad-exception-caught
        wandb.teardown()  # its process still holds the identity
        run = wandb.init(mode="offline", **arguments)
        LOGGER.warning(
            "Weights & Biases: offline (%s); to send the run later: wandb login, then %s",
            _reason(error),
            _sync(run),
        )
        return run
    LOGGER.info("Weights & Biases: %s", run.url)
    return run


def _sync(run: Any) -> str:
    """Give the command that sends a run that was kept offline."""
    return f"wandb sync {Path(run.dir).parent}"


@contextmanager
def _no_terminal() -> Iterator[None]:
    """Hide the terminal, so that a missing login is an error and not a question."""
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before


def _identity(path: Path) -> str:
    """Read the run's identity, or make one up and keep it."""
    if not path.exists():
        # Of the world, not of the seed: two runs with one seed are two runs.
        write_text(path, os.urandom(8).hex() + "\n")
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"[\w-]{1,64}", text, flags=re.ASCII):
        raise ConfigError(f"{path}: holds no identity of a run; remove it to start a new one")
    return text


REPORTERS: Dict[str, Callable[[Path, Mapping[str, Any]], Reporter]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}
# What has to be importable, and a name that it has to have.
MODULES = {
    "tensorboard": [
        ("tensorboard.compat.proto.event_pb2", "Event"),
        ("tensorboard.plugins.hparams.summary_v2", "hparams_pb"),
        ("tensorboard.summary.writer.record_writer", "RecordWriter"),
    ],
    "wandb": [("wandb", "init")],
}
