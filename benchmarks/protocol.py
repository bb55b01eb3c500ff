"""How the suite talks to the processes that do the measured work: a line of JSON each way.

Every side of a comparison is a process of its own and does a block of work when told to: blocks of
both can alternate, and neither holds the other's memory. Needs NumPy only: the original's
interpreter imports this module too.

A request is ``{"do": "prepare" | "time" | "kernels" | "finish" | "ask", "job": {...}}``. Its reply
holds ``ok`` and what was asked for, or ``error``, a line.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import kernel_times
import numpy as np

MOST_UNITS = 64
# What a worker is told that stands for a command: that its only case is eval; that it trains.
EVALUATES, TRAINS = "--evaluates", "--trains"
# The import, and then the first public name, which brings all of them.
IMPORT = """
import time
started = time.perf_counter()
import mlx_trm
imported = time.perf_counter()
mlx_trm.TRM
print(imported - started, time.perf_counter() - started)
"""
Job = Dict[str, Any]


class WorkerError(Exception):
    """A worker could not do what it was told; the message is one line."""


class Work:
    """Something that can be measured.

    Attributes:
        run: does the work so many times and returns when it is finished, the device included.
        facts: what a result's line says about it besides the times; read when it is finished.
        least: units in a block, at least.
        close: frees what it holds.
    """

    def __init__(
        self,
        run: Callable[[int], None],
        facts: Optional[Callable[[], Dict[str, Any]]] = None,
        least: int = 1,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep them."""
        self.run, self.facts, self.least, self.close = run, facts or dict, least, close
        self.units = least

    def warm_up(self, runs: int, block_seconds: float) -> List[float]:
        """Run a few times, choose how many units make a block, and give each run's seconds."""
        seconds = []
        for _ in range(runs):
            started = time.perf_counter()
            self.run(1)
            seconds.append(time.perf_counter() - started)
            if len(seconds) > 1 and seconds[-1] > 10 * block_seconds:
                break  # slow enough to be steady
        wanted = int(block_seconds / max(seconds[-1], 1e-9))
        self.units = max(self.least, min(MOST_UNITS, wanted))
        return seconds


class Side:
    """What a worker needs to know of its library.

    Attributes:
        prepare: makes the work of a job.
        ask: answers questions, by name; each takes the job.
        reset_peak, peak: of the device's memory in bytes; ``peak`` gives None where not counted.
        empty_cache: gives memory that is not used back to the device.
    """

    def __init__(
        self,
        prepare: Callable[[Job], Work],
        ask: Dict[str, Callable[[Job], Any]],
        reset_peak: Callable[[], None],
        peak: Callable[[], Optional[int]],
        empty_cache: Callable[[], None],
    ) -> None:
        """Keep them."""
        self.prepare, self.ask, self.reset_peak, self.peak = prepare, ask, reset_peak, peak
        self.empty_cache = empty_cache


def serve(side: Side) -> None:
    """Answer requests on standard input until it ends; whatever prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    held: Dict[str, Work] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"ok": True, **_answer(side, held, request)}
        except Exception as error:  # pylint: disable=broad-exception-caught
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _answer(side: Side, held: Dict[str, Work], request: Dict[str, Any]) -> Dict[str, Any]:
    job = request.get("job", {})
    key = f"{job.get('case')} {job.get('size')} {job.get('batch')}"
    if request["do"] == "ask":
        return {"answer": side.ask[request["what"]](job)}
    if request["do"] == "prepare":
        work = side.prepare(job)
        seconds = work.warm_up(job["warm_up"], job["block_seconds"])
        held[key] = work
        side.empty_cache()  # others may be warmed up before this one is timed
        return {"first_seconds": seconds[0], "units": work.units}
    work = held[key]
    if request["do"] == "time":
        if request.get("first"):
            reset_resident_peak()
            side.reset_peak()
            work.run(1)  # memory is allocated again
        started = time.perf_counter()
        work.run(work.units)
        return {"seconds": (time.perf_counter() - started) / work.units}
    if request["do"] == "kernels":
        steps = work.facts().get("steps_in_unit", 1)
        try:
            gpus = request["gpus"]
            return {"kernels": kernel_times.record(work.run, work.units, steps, gpus)}
        finally:
            held.pop(key).close()
            side.empty_cache()  # others may still be timed
    if request["do"] == "finish":
        found = {
            "peak_memory": side.peak(),
            "resident_memory": resident_peak(),
            "facts": work.facts(),
        }
        if not request.get("keep"):  # else once its kernels are recorded
            held.pop(key).close()
        side.empty_cache()
        return found
    raise ValueError(f"unknown request {request['do']!r}")


class Worker:
    """A worker's process, seen from the suite."""

    def __init__(self, name: str, command: List[str], env: Optional[Dict[str, str]] = None) -> None:
        """Start it.

        Args:
            name: for messages.
            command: whose standard input and output speak the protocol.
            env: variables to add to this process's.
        """
        self.name = name
        # pylint: disable-next=consider-using-with
        self._messages = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            encoding="utf-8",
            env={**os.environ, **(env or {})},
        )

    def send(self, do: str, job: Optional[Job] = None, **more: Any) -> None:
        """Send a request; :meth:`receive` gets the reply."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, "job": job or {}, **more}) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # its end is reported by receive

    def receive(self) -> Dict[str, Any]:
        """Wait for the reply.

        Raises:
            WorkerError: if the worker could not do it, or has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._messages.seek(0)
            said = [text for text in self._messages.read().splitlines() if text.strip()]
            raise WorkerError(f"{self.name} ended with {code}: {said[-1] if said else 'no word'}")
        reply: Dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.name}: {reply['error']}")
        return reply

    def call(self, do: str, job: Optional[Job] = None, **more: Any) -> Dict[str, Any]:
        """Send a request and wait for the reply."""
        self.send(do, job, **more)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._messages.close()


def random_puzzles(job: Job, count: int) -> List[Dict[str, np.ndarray]]:
    """Draw batches of random tokens, the same ones for every side.

    Args:
        job: with ``batch`` (B), ``seq_len`` (S), ``vocab_size`` and ``num_puzzle_identifiers``.
        count: of batches.

    Returns:
        Dicts of ``inputs`` and ``labels``, (B, S), and ``puzzle_identifiers``, (B,), int32.
    """
    rng = np.random.default_rng(7)
    shape = (job["batch"], job["seq_len"])
    return [
        {
            "inputs": rng.integers(1, job["vocab_size"], shape, dtype=np.int32),
            "labels": rng.integers(1, job["vocab_size"], shape, dtype=np.int32),
            "puzzle_identifiers": rng.integers(
                0, job["num_puzzle_identifiers"], shape[:1], dtype=np.int32
            ),
        }
        for _ in range(count)
    ]


def resident_peak() -> Optional[int]:
    """Give the most memory this process has held, in bytes; since the reset on Linux."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    scale = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def reset_resident_peak() -> None:
    """Begin to count anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass


def import_seconds() -> Tuple[float, float]:
    """Import the package in a new process; give the seconds to its end, and to the first name.

    Python keeps what it compiles, as it does where a package was installed, whatever this process
    was told.

    Raises:
        WorkerError: if it does not import.
    """
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    if done.returncode:
        raise WorkerError((done.stderr.splitlines() or ["no word"])[-1])
    imported, named = (float(word) for word in done.stdout.split())
    return imported, named
