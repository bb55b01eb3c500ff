"""Processes that tests start. Each is ended with its own children, whatever happens in the test."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence

from paths import HELPERS, ROOT

# Seconds. No test asks whether something is fast: this only ends what would wait for ever, on the
# busiest machine too.
LIMIT = 600.0


def environment(changes: Optional[Mapping[str, Optional[str]]] = None) -> Dict[str, str]:
    """This process's environment for a child that finds this checkout, wherever it starts.

    Where the tests compute on a device that MLX_TRM_TEST_DEVICE names, so does the child: see
    ``device/sitecustomize.py``.

    Args:
        changes: variables to set; None removes one.

    Returns:
        The environment.
    """
    found = str(ROOT)
    if os.environ.get("MLX_TRM_TEST_DEVICE"):
        found = os.pathsep.join([str(HELPERS / "device"), found])
    new: Dict[str, Optional[str]] = {**os.environ, "PYTHONPATH": found, **(changes or {})}
    return {name: value for name, value in new.items() if value is not None}


@contextmanager
def started(
    command: Sequence[object], env: Optional[Mapping[str, Optional[str]]] = None, **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """Start a process whose output can be read as text; end it when the block is left.

    Args:
        command: the program and its arguments.
        env: changes to :func:`environment`.
        options: more for ``subprocess.Popen``.

    Yields:
        The process.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    process: "subprocess.Popen[str]" = subprocess.Popen(  # pylint: disable=R1732,W1509
        [str(word) for word in command],
        env=environment(env),
        # A group of its own, so that its children can be ended with it.
        start_new_session=True,
        preexec_fn=_heed_signals,
        **{**pipes, **options},
    )
    try:
        yield process
    finally:
        _end(process)


def _heed_signals() -> None:
    """In the background of a shell Ctrl-C is ignored, under nohup a closed terminal; by children
    too."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a process and its group, wait for it, close its pipes."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS says the second of a group that is gone
        pass
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def run(
    command: Sequence[object],
    env: Optional[Mapping[str, Optional[str]]] = None,
    given: Optional[str] = None,
    **options: Any,
) -> "subprocess.CompletedProcess[str]":
    """Run a process to its end.

    Args:
        command: the program and its arguments.
        env: changes to :func:`environment`.
        given: what its standard input holds; without, that is empty.
        options: more for ``subprocess.Popen``.

    Returns:
        Its exit code and what it wrote.
    """
    with started(command, env, stdin=subprocess.PIPE, **options) as process:
        out, err = process.communicate(given, timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_python(*words: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run this Python with these arguments to its end; options as of :func:`run`."""
    return run([sys.executable, *words], **options)


def wait_until(condition: Callable[[], object], *working: "subprocess.Popen[str]") -> None:
    """Wait until something holds.

    Args:
        condition: asked again and again.
        working: processes that have to be alive until then.

    Raises:
        AssertionError: if one of them ended first, with what it wrote.
    """
    until = time.monotonic() + LIMIT
    while not condition():
        for process in working:
            if process.poll() is not None and not condition():
                raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < until, "waited for nothing"
        time.sleep(0.01)
