"""Server-sent events: from the worker's thread to a client, who may leave at any time."""

import asyncio
from collections import deque
from typing import Any, AsyncIterator, Callable, Deque, Dict, Optional, Protocol, Tuple, TypeVar

import anyio
import anyio.to_thread
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mlx_trm.serving.worker import Busy
from mlx_trm.system.files import json_text

MOST_STREAMS = 64  # clients that follow runs at a time
LAST_SECONDS = 1.0  # in which a client takes what is left when the server ends
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
    """Counts clients that stay, and sends them home when the server ends.

    Attributes:
        closing: whether the server ends.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        self.closing = False
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

    async def read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Read a puzzle in one of a few threads; some keep the rules busy for seconds.

        Args:
            function: reads it.
            arguments: of the function.

        Returns:
            What the function gives.

        Raises:
            Busy: if too many wait to be read.
        """
        if self._reading >= MOST_READING:
            raise Busy(self._reading, 5, "puzzles are being read")
        if self._readers is None:  # made in the loop to which it belongs
            self._readers = anyio.CapacityLimiter(READERS)
        self._reading += 1
        try:
            return await anyio.to_thread.run_sync(function, *arguments, limiter=self._readers)
        finally:
            self._reading -= 1

    async def until_the_end(self, source: Source) -> AsyncIterator[bytes]:
        """Write events until ``done`` or ``error``, or until the server ends."""
        quiet = 0.0
        while not self.closing:
            found = await source.next(0.5)
            if found is None:
                quiet += 0.5
                if quiet >= QUIET_SECONDS:
                    quiet = 0.0
                    yield b": still here\n\n"
                continue
            quiet = 0.0
            name, content = found
            yield f"event: {name}\ndata: {json_text(content)}\n\n".encode()
            if name in ("done", "error"):
                return


class EventStream(StreamingResponse):
    """A response of events that gives its place back, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, doorman: Doorman, source: Source, leave: Callable[[], None]) -> None:
        """Prepare a response.

        Args:
            doorman: says when the server ends.
            source: of the events.
            leave: called once, when nobody listens any more.
        """
        super().__init__(doorman.until_the_end(source), headers={"x-accel-buffering": "no"})
        self._doorman, self._leave = doorman, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a client who does not take them keeps no server from ending."""
        sending = asyncio.ensure_future(super().__call__(scope, receive, send))
        try:
            while not sending.done() and not self._doorman.closing:
                await asyncio.wait({sending}, timeout=0.5)
            await asyncio.wait_for(sending, None if sending.done() else LAST_SECONDS)
        except asyncio.TimeoutError:
            pass
        finally:
            sending.cancel()
            self._leave()
