"""The one thread that computes, and the bounded queue before it.

MLX's arrays and streams belong to the thread that made them, so models are loaded and used in one
thread. Jobs take turns there, one supervision step each, so that a hard puzzle does not keep an
easy one waiting; what does not fit the queue is refused at once.
"""

import logging
import threading
import time
import traceback
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional

from mlx_trm.errors import TRMError, describe_device_problem

LOGGER = logging.getLogger(__name__)

# Takes the name of an event and what it says.
Emit = Callable[[str, Dict[str, Any]], None]
# Begins a job: gives an iterator whose every step is a turn.
Work = Callable[[Emit], Iterator[Any]]

AT_ONCE = 4  # jobs that take turns; the others wait until one of these is done
LONGEST_RETRY = 60  # seconds that a client is told to wait, at most


class Busy(Exception):
    """The queue is full.

    Attributes:
        seconds: after which it is worth trying again.
    """

    def __init__(self, inside: int, seconds: int, what: str = "puzzles are being solved") -> None:
        """Say how many are there already, and when there may be a place."""
        super().__init__(f"{inside} {what}, and there is no place; try again in {seconds} s")
        self.seconds = seconds


class Job:
    """A puzzle that somebody waits for.

    Attributes:
        emit: is told what happens, in the worker's thread; last of all ``done`` or ``error``.
        left: whether nobody waits any more.
        begun: when its first turn began, by the monotonic clock; None: it waits.
    """

    def __init__(self, work: Work, emit: Emit) -> None:
        """Keep what to do.

        Args:
            work: begins it, in the worker's thread.
            emit: as of the attributes.
        """
        self._work = work
        self._turns: Optional[Iterator[Any]] = None
        self.emit = emit
        self.left = False
        self.begun: Optional[float] = None

    def leave(self) -> None:
        """Give up the place; what is being computed is finished, and nothing more is."""
        self.left = True

    def take_turn(self, most_seconds: float) -> bool:
        """Do the next step; say whether there is more to do."""
        if self.left:
            return False
        try:
            if self._turns is None:
                self.begun = time.monotonic()
                self._turns = self._work(self.emit)
            elif self.begun is not None and time.monotonic() - self.begun > most_seconds:
                text = f"given up after {most_seconds:g} s; ask for fewer steps or rollouts"
                self.emit("error", {"error": text})
                return False
            next(self._turns)
            return True
        except StopIteration:
            return False
        except Exception as error:  # pylint: disable=broad-exception-caught
            self.emit("error", {"error": explain(error)})
            return False


def explain(error: BaseException) -> str:
    """Say to a client in one line what went wrong.

    What no user can mend is logged with its traceback, which a client is never shown: it tells
    of the server's files.
    """
    if isinstance(error, TRMError):
        return " ".join(str(error).split())
    advice = describe_device_problem(error)
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    LOGGER.error("a request failed: %s\n%s", advice or "a bug", "".join(lines).rstrip())
    return advice or "the server failed at this (a bug); where it was started it has said why"


class Worker:
    """A thread that does jobs, some of them by turns."""

    def __init__(self, waiting: int, most_seconds: float) -> None:
        """Prepare; :meth:`start` starts the thread.

        Args:
            waiting: jobs that may wait, besides those that take turns.
            most_seconds: that a job may take from its first turn.
        """
        self.most_waiting, self.most_seconds = waiting, most_seconds
        self._changed = threading.Condition()
        self._queue: Deque[Job] = deque()
        self._active: List[Job] = []
        self._stopping = False
        self._thread: Optional[threading.Thread] = None
        self._usual_seconds = 1.0  # that a job takes, of late

    def start(self, prepare: Callable[[], None]) -> None:
        """Start the thread and wait until it is prepared.

        Args:
            prepare: called in the thread, to load models.

        Raises:
            Exception: what ``prepare`` raises; the thread has ended then.
        """
        failed: List[BaseException] = []
        ready = threading.Event()

        def run() -> None:
            try:
                prepare()
            except BaseException as error:  # pylint: disable=broad-exception-caught
                failed.append(error)
                return
            finally:
                ready.set()
            self._loop()

        self._thread = threading.Thread(target=run, name="mlx_trm-worker", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            raise failed[0]

    def stop(self, most_seconds: Optional[float] = None) -> bool:
        """Drop all jobs and end the thread, after the step that it computes.

        Args:
            most_seconds: to wait for that, at most; None: as long as it takes.

        Returns:
            Whether it has ended.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(most_seconds)
        return not self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Put a job into the queue; it is told ``waiting`` and how many are before it.

        Raises:
            Busy: if so many wait that there is no place.
        """
        with self._changed:
            self._drop_left()
            waiting = len(self._queue)
            inside = waiting + len(self._active)
            if inside >= AT_ONCE + self.most_waiting:
                rounds = inside / AT_ONCE
                seconds = min(LONGEST_RETRY, max(1, round(rounds * self._usual_seconds)))
                raise Busy(inside, seconds)
            job.emit("waiting", {"ahead": waiting})
            self._queue.append(job)
            self._changed.notify_all()

    def load(self) -> Dict[str, int]:
        """Say how many jobs take turns, and how many wait."""
        with self._changed:
            self._drop_left()
            return {"working": len(self._active), "waiting": len(self._queue)}

    def _drop_left(self) -> None:
        self._queue = deque(job for job in self._queue if not job.left)

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._queue or self._active):
                    self._changed.wait()
                if self._stopping:
                    return
                self._drop_left()
                moved = 0
                while self._queue and len(self._active) < AT_ONCE:
                    self._active.append(self._queue.popleft())
                    moved += 1
                for place, job in enumerate(self._queue if moved else ()):
                    job.emit("waiting", {"ahead": place})
                active = list(self._active)
            done = [job for job in active if not job.take_turn(self.most_seconds)]
            with self._changed:
                self._active = [job for job in self._active if job not in done]
            for job in done:
                if job.begun is not None and not job.left:
                    seconds = time.monotonic() - job.begun
                    self._usual_seconds += 0.2 * (seconds - self._usual_seconds)
