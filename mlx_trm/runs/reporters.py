"""Hands the lines of ``metrics.jsonl`` on to TensorBoard and Weights & Biases.

A reporter gets the very dicts that the log gets. Both services are extras, imported here only when
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
import shlex
import sys
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
)

from mlx_trm.config.loading import flat_settings
from mlx_trm.config.registry import Names
from mlx_trm.errors import ConfigError, describe_error, shown
from mlx_trm.system.files import write_text

LOGGER = logging.getLogger(__name__)
FIELD = "train.report_to"
# Entries of a line that say what it is about and are not measured.
ABOUT = ("kind", "step", "set", "total")
# Seconds that Weights & Biases may take to start, and to send what is left at the end.
START_SECONDS, FINISH_SECONDS = 30.0, 60.0


class Reporter:
    """Gets every line of a run's log; this one does nothing with it."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        """Start; what is raised here stops the run before its first step.

        Args:
            run: the run folder, which is there.
            config: the resolved configuration as nested dicts.
        """

    def report(self, line: Mapping[str, Any]) -> None:
        """Take a line.

        Args:
            line: as ``metrics.jsonl`` has it: ``kind``, ``step``, with ``set`` for evaluations,
                and metrics. What is no finite number is left out.
        """

    def close(self) -> None:
        """Finish; no line comes after this."""


class _Kind(NamedTuple):
    """A kind of reporter, and what it needs: a module, and a name that this has to have."""

    make: Callable[[Path, Mapping[str, Any]], Reporter]
    needs: Optional[Tuple[str, str]]


REPORTERS: Names[_Kind] = Names("reporter")
R = TypeVar("R", bound=Type[Reporter])


def register_reporter(name: str, needs: Optional[Tuple[str, str]] = None) -> Callable[[R], R]:
    """Register a reporter's class under a name of ``train.report_to``; use as a decorator.

    Args:
        name: what a configuration says.
        needs: a module that has to be importable, and a name that it has to have. The package's
            own reporters have an extra of the same name that installs it.

    Raises:
        ValueError: if the name belongs to another class.
    """

    def keep(cls: R) -> R:
        REPORTERS.add(name, _Kind(cls, needs), cls)
        return cls

    return keep


def make_reporters(names: Sequence[str], run: Path, config: Mapping[str, Any]) -> List[Reporter]:
    """Start the reporters of a run.

    Args:
        names: under which they are registered.
        run: the run folder, which is there.
        config: the resolved configuration as nested dicts; the services show it as hyperparameters.

    Returns:
        One for each name; they do not raise any more.

    Raises:
        ConfigError: for a missing package, or files that cannot be written.
    """
    check_reporters(names)
    started: List[Reporter] = []
    for name in dict.fromkeys(names):
        try:
            started.append(_Guarded(name, REPORTERS.get(name).make(run, config)))
        except Exception as error:  # pylint: disable=broad-exception-caught
            for reporter in started:
                reporter.close()
            raise ConfigError(
                f"{FIELD}: {name} cannot be started ({_reason(error)}); mend that, or leave it out"
            ) from error
    return started


def check_reporters(names: Sequence[str]) -> None:
    """See that the reporters and their packages are there, before anything is written.

    Raises:
        ConfigError: for an unknown name, or a package that is missing or broken.
    """
    for name in names:
        try:
            needs = REPORTERS.get(name).needs
        except ConfigError as error:
            raise ConfigError(f"{FIELD}: {error}") from error
        if needs is None:
            continue
        module, needed = needs
        try:  # an empty folder of that name in the working folder can be imported, too
            getattr(import_module(module), needed)
        except Exception as error:  # pylint: disable=broad-exception-caught
            raise ConfigError(
                f"{FIELD}: {name} needs a package that cannot be imported ({_reason(error)}); "
                f'pip install --upgrade "mlx_trm[{name}]"'
            ) from error


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

    def __init__(self, name: str, inner: Reporter) -> None:  # pylint: disable=super-init-not-called
        self._name = name
        self._inner: Optional[Reporter] = inner

    def report(self, line: Mapping[str, Any]) -> None:
        inner = self._inner
        if inner is not None and not self._survives(
            lambda: inner.report(line), "training goes on without it"
        ):
            self._inner = None
            with suppress(Exception):
                inner.close()

    def close(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            self._survives(inner.close, "its last lines may be missing")

    def _survives(self, call: Callable[[], None], otherwise: str) -> bool:
        try:
            call()
        except Exception as error:  # pylint: disable=broad-exception-caught
            LOGGER.warning("%s failed (%s); %s", self._name, _reason(error), otherwise)
            return False
        return True


def _reason(error: BaseException) -> str:
    """Say in a line what went wrong."""
    return shown(describe_error(error), 200)


@register_reporter("tensorboard", ("tensorboardX.event_file_writer", "EventsWriter"))
class TensorBoard(Reporter):
    """Writes event files to ``RUN/tensorboard``; the step is the supervision step.

    It writes as tensorboardX's ``SummaryWriter`` does, without that one's thread: a full disk ends
    the thread, and the next events then block the run for ever. Here the line that does not fit
    raises, and a killed run has lost no line.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        """Open a file of this process; those of earlier ones stay."""
        super().__init__(run, config)
        self._proto = import_module("tensorboardX.proto.event_pb2")
        self._summary = import_module("tensorboardX.proto.summary_pb2").Summary
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        # The package's names have whole seconds in them, and it would write over its own file.
        self._file = import_module("tensorboardX.event_file_writer").EventsWriter(
            str(folder / "events"), f".{time.time_ns()}"
        )
        self._begun = False
        settings = {
            name: (
                value
                if isinstance(value, (bool, int, float, str))
                else json.dumps(value, default=str)
            )
            for name, value in flat_settings(config).items()
        }
        _, session, _ = import_module("tensorboardX.summary").hparams(settings, {})
        self._write(summary=session)  # alone: with the experiment TensorBoard draws less

    def report(self, line: Mapping[str, Any]) -> None:
        """Write a line's numbers and flush them."""
        step = int(line["step"])
        if not self._begun:
            # What SummaryWriter's purge_step writes: earlier files' lines from that step on are
            # about to come again. An evaluation that comes first belongs to a step whose training
            # has been reported.
            log, purged = self._proto.SessionLog, step + (line.get("kind") == "eval")
            self._write(step=purged, session_log=log(status=log.START))
            self._begun = True
        values = [
            self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()
        ]
        self._write(step=step, summary=self._summary(value=values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **content: Any) -> None:
        self._file.write_event(self._proto.Event(wall_time=time.time(), **content))
        self._file.flush()


@register_reporter("wandb", ("wandb", "init"))
class WandB(Reporter):
    """Logs to Weights & Biases, or to ``RUN/wandb`` where it cannot be reached.

    The run keeps its identity in ``RUN/wandb_id.txt``: resumed, it goes on as the same one. Its
    x axis is the supervision step. ``WANDB_MODE`` and the package's other variables are respected.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        """Start online if that works without a question, and offline otherwise."""
        super().__init__(run, config)
        wandb = import_module("wandb")
        settings = {"init_timeout": START_SECONDS, "silent": True, "console": "off"}
        if "finish_timeout" in wandb.Settings.__annotations__:  # older ones always wait
            settings["finish_timeout"] = FINISH_SECONDS
        arguments = {
            "project": "mlx_trm",
            "name": run.name,
            "dir": os.path.abspath(run),
            "id": _identity(run / "wandb_id.txt"),
            "resume": "allow",
            "config": dict(config),
            "settings": wandb.Settings(**settings),
        }
        why, advice = "", "wandb sync"
        try:
            with _no_terminal():
                self._run = wandb.init(**arguments)
        except Exception as error:  # pylint: disable=broad-exception-caught
            wandb.teardown()  # its process still holds the identity
            self._run = wandb.init(mode="offline", **arguments)
            why, advice = f" ({_reason(error)})", "wandb login, then wandb sync"
        if os.environ.get("WANDB_MODE") != "disabled":
            kept = shlex.quote(str(Path(self._run.dir).parent))
            offline = f"offline{why}; to send the run later: {advice} {kept}"
            level = logging.WARNING if why else logging.INFO
            place = offline if self._run.offline else self._run.url
            LOGGER.log(level, "Weights & Biases: %s", place)
        # Not the service's own counter: that one cannot go back to the step that is resumed from.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def report(self, line: Mapping[str, Any]) -> None:
        """Hand a line's numbers to the package, which sends them by itself."""
        self._run.log({"step": int(line["step"]), **scalars(line)})

    def close(self) -> None:
        """Wait until everything is sent, or for a minute."""
        self._run.finish()


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
