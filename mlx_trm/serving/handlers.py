"""What answers each route: a function of the request and of what the server has."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any, AsyncIterator, Dict, List, Optional, Tuple

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlx_trm.drawing.page import board_data
from mlx_trm.errors import DataError
from mlx_trm.serving.description import describe
from mlx_trm.serving.following import Follower, Mark, Runs, compare
from mlx_trm.serving.pages import Pages
from mlx_trm.serving.schemas import SCHEMAS, check
from mlx_trm.serving.shelf import Served, Shelf
from mlx_trm.serving.solving import prepare_work
from mlx_trm.serving.streams import Doorman, Events, EventStream
from mlx_trm.serving.worker import Job, Worker
from mlx_trm.system.bounded import parse_json
from mlx_trm.system.files import json_text

MOST_BODY = 1 << 16  # bytes of a request
MOST_RUNS = 12  # that are followed or compared at a time
BODY_SECONDS = 10.0  # in which a request has to come
LOOK_SECONDS = 1.0  # between two looks at a log, or at whether a client is still there


@dataclass
class Server:
    """What a server has.

    Attributes:
        shelf: its models.
        worker: computes.
        runs: that can be followed.
        pages: and their parts.
        doorman: counts those who stay, and those whose puzzles are being read.
    """

    shelf: Shelf
    worker: Worker
    runs: Runs
    pages: Pages
    doorman: Doorman


def server_of(request: Request) -> Server:
    """Give the server that a request has come to."""
    found: Server = request.app.state.server
    return found


class Answer(JSONResponse):
    """JSON, in which what is no finite number is null."""

    def render(self, content: Any) -> bytes:
        """Write it."""
        return json_text(content).encode("utf-8")


# Pages ------------------------------------------------------------------------------------------


async def show_solving(request: Request) -> Response:
    """Give the page that solves puzzles."""
    return Response(server_of(request).pages.solving, media_type="text/html")


async def show_runs(request: Request) -> Response:
    """Give the page that follows runs."""
    return Response(server_of(request).pages.runs, media_type="text/html")


async def send_asset(request: Request) -> Response:
    """Give a script or a style sheet, of a fixed few."""
    found = server_of(request).pages.assets.get(request.path_params["name"])
    if found is None:
        raise HTTPException(404, "there is no such file")
    media, text = found
    return Response(text, media_type=media)


async def describe_api(_: Request) -> Response:
    """Give the OpenAPI description."""
    return Answer(describe())


# Solving ----------------------------------------------------------------------------------------


async def list_models(request: Request) -> Response:
    """Say what models there are."""
    models = await run_in_threadpool(server_of(request).shelf.describe)
    return Answer({"models": models})


async def tell_load(request: Request) -> Response:
    """Say how many puzzles are being solved, and wait."""
    worker = server_of(request).worker
    return Answer({**worker.load(), "most_waiting": worker.most_waiting})


async def give_example(request: Request) -> Response:
    """Draw a puzzle."""
    server = server_of(request)
    task = server.shelf.find(request.query_params.get("model", "")).solver.task
    text = await server.doorman.read(task.draw_example, np.random.default_rng())
    return Answer({"puzzle": text})


async def read_puzzle(request: Request) -> Response:
    """Read a puzzle without solving it."""
    asked = await read_body(request, "Reading")
    server = server_of(request)
    served = server.shelf.find(asked["model"])
    return Answer(await server.doorman.read(_read, served, asked["puzzle"]))


def _read(served: Served, text: str) -> Dict[str, Any]:
    found = served.read(text)
    task, tokens = found.subject.task, found.subject.inputs
    drawing = board_data(found.subject.puzzle())
    return {
        "puzzle": task.format(tokens),
        "typed": task.write_for_editor(found.text),
        "problem": found.problem,
        "drawing": drawing,
        "demonstrations": [
            {"puzzle": board_data(task.board(given)), "answer": board_data(task.board(answer))}
            for given, answer in task.demonstrations(found.text)
        ],
    }


async def solve_puzzle(request: Request) -> Response:
    """Solve a puzzle, and tell every step where that is asked for."""
    asked = await read_body(request, "Request")
    server = server_of(request)
    served = server.shelf.find(asked["model"])
    work = await server.doorman.read(prepare_work, served, asked)
    events = Events()
    job = Job(work, events.emit)
    server.worker.submit(job)
    if wants_events(request):
        return EventStream(events, job.leave)
    try:
        return await _collect(request, events)
    finally:
        job.leave()


async def _collect(request: Request, events: Events) -> Response:
    """Wait for a puzzle's answer, and for whoever asks to leave."""
    history: List[Dict[str, Any]] = []
    looked = time.monotonic()
    while True:
        found = await events.next(LOOK_SECONDS)
        # By the clock: steps may follow one another so fast that it is never quiet for so long.
        if found is None or time.monotonic() - looked >= LOOK_SECONDS:
            if await request.is_disconnected():
                return Answer({"error": "nobody waits any more"}, status_code=503)
            looked = time.monotonic()
        if found is None:
            continue
        name, content = found
        if name == "step" and "frame" not in content:
            history.append({**content, "confidence": None})
        elif name == "done":
            return Answer({**content, "history": history})
        elif name == "error":
            return Answer(content, status_code=422)


# Runs -------------------------------------------------------------------------------------------


async def list_runs(request: Request) -> Response:
    """Say what runs there are."""
    return Answer({"runs": await run_in_threadpool(server_of(request).runs.list)})


async def give_logs(request: Request) -> Response:
    """Give what runs have logged, and what they log from now on where that is asked for."""
    followers = await _asked_runs(request)
    if wants_events(request):
        doorman = server_of(request).doorman
        doorman.enter()
        return EventStream(_Growing(followers), doorman.leave)
    return Answer({"logs": await run_in_threadpool(_look, followers)})


async def compare_runs(request: Request) -> Response:
    """Say in which settings runs differ."""
    followers = await _asked_runs(request)
    return Answer(await run_in_threadpool(compare, followers))


async def _asked_runs(request: Request) -> List[Follower]:
    names = request.query_params.getlist("run")
    if not names:
        raise DataError("no run is named; add ?run=NAME")
    if len(names) > MOST_RUNS:
        raise DataError(f"{len(names)} runs; name at most {MOST_RUNS}")
    return await run_in_threadpool(server_of(request).runs.find, names)


def _look(followers: List[Follower]) -> List[Dict[str, Any]]:
    for follower in followers:
        follower.poll()
    return [follower.describe() for follower in followers]


class _Growing:
    """The logs of runs as events: each at first, and again whenever it has grown."""

    def __init__(self, followers: List[Follower]) -> None:
        self._followers = followers
        self._seen: Dict[str, Mark] = {}
        self._ready: List[Dict[str, Any]] = []

    async def next(self, seconds: float) -> Optional[Tuple[str, Dict[str, Any]]]:
        """Give the next event; None where nothing has happened for so long."""
        quiet = 0.0
        while not self._ready:
            self._ready = await run_in_threadpool(self._changed)
            if not self._ready:
                if quiet >= seconds:
                    return None
                await asyncio.sleep(LOOK_SECONDS)
                quiet += LOOK_SECONDS
        return "log", self._ready.pop(0)

    def _changed(self) -> List[Dict[str, Any]]:
        found = []
        for follower in self._followers:
            follower.poll()
            mark = follower.mark()
            if self._seen.get(follower.name) != mark:
                self._seen[follower.name] = mark
                found.append(follower.describe())
        return found


# Requests ---------------------------------------------------------------------------------------


def wants_events(request: Request) -> bool:
    """Whether a client asks for server-sent events."""
    return "text/event-stream" in request.headers.get("accept", "")


async def read_body(request: Request, schema: str) -> Dict[str, Any]:
    """Read the JSON that a request brings, no more than it may be, and check its shape.

    Raises:
        HTTPException: if it is too large, too slow, or no JSON.
        DataError: if it has another shape.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":  # a form of another site cannot say that it is
        raise HTTPException(415, "send application/json")
    try:
        content = await asyncio.wait_for(_receive(request), BODY_SECONDS)
        found = parse_json(content)
    except asyncio.TimeoutError:
        raise HTTPException(408, "the request did not come in time") from None
    except (ValueError, json.JSONDecodeError):
        raise HTTPException(400, "the request is not JSON") from None
    check(found, SCHEMAS[schema])
    checked: Dict[str, Any] = found
    return checked


async def _receive(request: Request) -> bytes:
    parts: List[bytes] = []
    chunks: AsyncIterator[bytes] = request.stream()
    async for chunk in chunks:
        parts.append(chunk)
        if sum(map(len, parts)) > MOST_BODY:
            raise HTTPException(413, f"the request is larger than {MOST_BODY} bytes")
    return b"".join(parts)
