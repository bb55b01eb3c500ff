"""The application, and the server around it, by starlette and uvicorn (extra ``serve``)."""

import os
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, Awaitable, Callable, Collection, Optional

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_trm.errors import TRMError
from mlx_trm.serving import handlers
from mlx_trm.serving.description import ROUTES
from mlx_trm.serving.guard import Guard
from mlx_trm.serving.handlers import Answer, Server
from mlx_trm.serving.worker import Busy, explain

Handler = Callable[[Request], Awaitable[Response]]
MOST_CONNECTIONS = 256
END_SECONDS = 1  # in which clients take what is being sent; then they are left
STEP_SECONDS = 3.0  # in which the worker ends a step; then the process ends all the same
INTERRUPTED = 130  # the exit code of every command that Ctrl-C has ended


def make_app(server: Server, names: Collection[str] = ()) -> Guard:
    """Make the application.

    Args:
        server: what it has; its worker runs.
        names: by which clients may call it, besides addresses and ``localhost``.
    """
    routes = [
        Route(route.path, _explained(getattr(handlers, route.name)), methods=[route.method])
        for route in ROUTES
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _refuse_request,
            TRMError: _refuse_content,
            Busy: _refuse_place,
        },
    )
    app.state.server = server
    return Guard(app, names)


async def _refuse_request(_: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 400)
    text = {404: "there is nothing here", 405: "this method is not for this route"}
    detail = str(getattr(error, "detail", ""))
    standard = detail in ("Not Found", "Method Not Allowed")
    return Answer({"error": text.get(status, detail) if standard else detail}, status_code=status)


async def _refuse_content(_: Request, error: Exception) -> Response:
    return Answer({"error": explain(error)}, status_code=422)


async def _refuse_place(_: Request, error: Exception) -> Response:
    wait = {"Retry-After": str(getattr(error, "seconds", 1))}
    return Answer({"error": str(error)}, status_code=503, headers=wait)


def _explained(handler: Handler) -> Handler:
    """Answer what nobody expected in a line too; starlette would print a traceback."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except (HTTPException, TRMError, Busy, ClientDisconnect):
            raise
        except Exception as error:  # pylint: disable=broad-exception-caught
            return Answer({"error": explain(error)}, status_code=500)

    return answer


class _Uvicorn(uvicorn.Server):
    """Says when it listens and when it is told to end."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], closing: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._ready, self._closing = ready, closing

    def handle_exit(self, sig: int, frame: Optional[FrameType]) -> None:
        """Begin to end at the first signal, and end at the second."""
        if self.should_exit:
            leave_at_once()
        self._closing()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: Optional[Any] = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._ready()


def leave_at_once() -> None:
    """End the process without waiting for threads that cannot be interrupted."""
    with suppress(OSError, ValueError):
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
    os._exit(INTERRUPTED)  # pylint: disable=protected-access


def run_server(
    server: Server, bound: socket.socket, names: Collection[str], ready: Callable[[], None]
) -> None:
    """Answer requests until the process is interrupted.

    Args:
        server: what it has; its worker runs, and is stopped in the end.
        bound: where it listens.
        names: as of :func:`make_app`.
        ready: called when it listens.

    Raises:
        KeyboardInterrupt: when Ctrl-C has ended it. Where the worker is not done with a step some
            seconds later, or at a second Ctrl-C, the process ends here.
    """
    config = uvicorn.Config(
        make_app(server, names),
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    try:
        _Uvicorn(config, ready, server.doorman.close).run(sockets=[bound])
    finally:
        server.doorman.close()
        try:
            ended = server.worker.stop(STEP_SECONDS)
        except KeyboardInterrupt:
            ended = False
        if not ended:
            leave_at_once()
