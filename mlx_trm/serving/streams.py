"""Server-sent events: from the worker's thread to a client, who may leave at any time."""

import asyncio
import threading
from collections import deque
from typing import Any, AsyncIterator, Callable, Deque, Dict, Optional, Protocol, Tuple, TypeVar

import anyio
import anyio.to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mlx_trm.serving.worker import Busy, explain
from mlx_trm.system.files import json_text
from mlx_trm.system.patience import limit_patience

MOST_STREAMS = 64  # clients that follow runs at a time
READERS, MOST_READING = 4, 64  # puzzles that are read at a time, and those that wait for it
QUIET_SECONDS = 10.0  # after which a stream says that it is still there

T = TypeVar("T")
Event = Tuple[str, Dict[str, Any]]


class Source(Protocol):
    """Where events come from."""

    async def next(self, seconds: float) -> Optional[Event]:
        """Give the next event, or None where none has come for about so long."""


class Events:
    """Events that another thread tells, in their order."""

    def __init__(self) -> None:
        """Begin with none; called in the server's loop."""
        self._loop = asyncio.get_running_loop()
        self._told: Deque[Event] = deque()
        self._arrived = asyncio.Event()

    def emit(self, name: str, content: Dict[str, Any]) -> None:
        """Tell an event, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._keep, (name, content))
        except RuntimeError:  # the server has ended meanwhile
            pass

    def _keep(self, event: Event) -> None:
        self._told.append(event)
        self._arrived.set()

    async def next(self, seconds: float) -> Optional[Event]:
        """Give the next event; None where none has come for so long."""
        if not self._told:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), seconds)
            except asyncio.TimeoutError:
                return None
        return self._told.popleft()


class Doorman:
    """Counts clients that stay, and lets puzzles be read by a few threads."""

    def __init__(self, most_seconds: float = 120.0) -> None:
        """Begin with nobody.

        Args:
            most_seconds: that a puzzle is read, at most.
        """
        self._most_seconds = most_seconds
        self._closed = threading.Event()
        self._inside, self._reading = 0, 0
        self._readers: Optional[anyio.CapacityLimiter] = None

    def enter(self) -> None:
        """Let a client in.

        Raises:
            Busy: if there are too many.
        """
        if self._inside >= MOST_STREAMS:
            raise Busy(self._inside, 30, "pages follow runs")
        self._inside += 1

    def leave(self) -> None:
        """Give a client's place back."""
        self._inside -= 1

    def close(self) -> None:
        """Give up what is being read: the server ends."""
        self._closed.set()

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Read a puzzle in one of a few threads; some keep the rules busy for seconds.

        Args:
            function: reads it.
            arguments: of the function.

        Returns:
            What the function gives.

        Raises:
            Busy: if too many wait to be read.
            GivenUp: if it takes too long, or the server ends.
        """

        def patiently() -> T:
            with limit_patience(self._most_seconds, self._closed.is_set):
                return function(*arguments)

        if self._reading >= MOST_READING:
            raise Busy(self._reading, 5, "puzzles are being read")
        if self._readers is None:  # made in the loop to which it belongs
            self._readers = anyio.CapacityLimiter(READERS)
        self._reading += 1
        try:
            return await anyio.to_thread.run_sync(patiently, limiter=self._readers)
        finally:
            self._reading -= 1


async def written(source: Source) -> AsyncIterator[bytes]:
    """Write events until ``done`` or ``error``, and now and then that nothing has happened."""
    while True:
        try:
            found = await source.next(QUIET_SECONDS)
        except Exception as error:  # pylint: disable=broad-exception-caught
            found = "error", {"error": explain(error)}  # the status is sent already
        if found is None:
            yield b": still here\n\n"
            continue
        name, content = found
        yield f"event: {name}\ndata: {json_text(content)}\n\n".encode()
        if name in ("done", "error"):
            return


class EventStream(StreamingResponse):
    """A response of events that gives its place back, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, source: Source, leave: Callable[[], None]) -> None:
        """Prepare a response.

        Args:
            source: of the events.
            leave: called once, when nobody listens any more.
        """
        super().__init__(written(source), headers={"x-accel-buffering": "no"})
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()
