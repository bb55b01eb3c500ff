"""The table of routes, from which the server is built, and its OpenAPI description."""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from mlx_trm.serving.schemas import MODEL, RUN_NAMES, SCHEMAS, Schema, named, said
from mlx_trm.version import __version__

JSON, EVENTS, HTML = "application/json", "text/event-stream", "text/html"


class Route(NamedTuple):
    """A route.

    Attributes:
        method: of HTTP.
        path: of the route.
        name: of the function in ``handlers`` that answers, and of the operation.
        summary: what it does, in a line.
        answer: the schema of its answer; None: a page or a file.
        body: the schema of what is sent; None: nothing is.
        query: schemas of its parameters; all are required.
        media: type of the answer.
        events: what its events say, by name, where it can stream.
        errors: status codes besides those that every route has.
    """

    method: str
    path: str
    name: str
    summary: str
    answer: Optional[str] = None
    body: Optional[str] = None
    query: Tuple[Tuple[str, Schema], ...] = ()
    media: str = JSON
    events: str = ""
    errors: Tuple[int, ...] = ()


ERRORS = {
    400: "the request cannot be read",
    403: "the Host header's name does not lead here, or another site asks",
    408: "the request did not come in time",
    413: "the request is too large",
    415: "the request is not application/json",
    422: "what is asked for cannot be done: the error says why",
    503: "so many are waiting that there is no place; Retry-After says when to try again",
}
BODY_ERRORS = (400, 408, 413, 415, 422)
RUN = ("run", RUN_NAMES)

ROUTES: List[Route] = [
    Route("GET", "/", "show_solving", "The page that solves puzzles and shows it.", media=HTML),
    Route("GET", "/runs", "show_runs", "The page that follows and compares runs.", media=HTML),
    Route("GET", "/assets/{name}", "send_asset", "A script or style sheet of the pages."),
    Route("GET", "/openapi.json", "describe_api", "This description."),
    Route("GET", "/api/models", "list_models", "The models that there are.", "Models"),
    Route("GET", "/api/load", "tell_load", "How many puzzles are being solved, and wait.", "Load"),
    Route(
        "GET",
        "/api/example",
        "give_example",
        "A puzzle to begin with, another one each time.",
        "Example",
        query=(("model", MODEL),),
        errors=(422,),
    ),
    Route(
        "POST",
        "/api/read",
        "read_puzzle",
        "Read a puzzle without solving it.",
        "Read",
        "Reading",
        errors=(*BODY_ERRORS, 503),
    ),
    Route(
        "POST",
        "/api/solve",
        "solve_puzzle",
        "Solve a puzzle; with `Accept: text/event-stream` every step is told as it is computed.",
        "Answer",
        "Request",
        events="waiting (ahead: puzzles before it), begin (model, puzzle; with draw also drawing), "
        "step (a Step; with draw rollout and frame), done (an Answer) or error (an Error)",
        errors=(*BODY_ERRORS, 503),
    ),
    Route("GET", "/api/runs", "list_runs", "The runs that can be followed.", "Runs"),
    Route(
        "GET",
        "/api/logs",
        "give_logs",
        "What runs have logged so far; with `Accept: text/event-stream` also what follows.",
        "Logs",
        query=(RUN,),
        events="log (a Log), for each run at first and whenever it has grown",
        errors=(422, 503),
    ),
    Route(
        "GET",
        "/api/compare",
        "compare_runs",
        "In which settings runs differ.",
        "Comparison",
        query=(RUN,),
        errors=(422,),
    ),
]


def describe() -> Dict[str, Any]:
    """Give the OpenAPI 3.1 document."""
    paths: Dict[str, Dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mlx_trm",
            "version": __version__,
            "summary": "Tiny Recursive Models that solve puzzles, and runs that train them.",
            "description": 'Errors are JSON of one line: {"error": ...}. There is no CORS.',
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(route: Route) -> Dict[str, Any]:
    content: Dict[str, Any] = {route.media: {}}
    if route.answer is not None:
        content = {JSON: {"schema": named(route.answer)}}
    elif route.path.startswith("/assets/"):
        content = {"text/css": {}, "text/javascript": {}}
    if route.events:
        content[EVENTS] = {"schema": said({"type": "string"}, f"Events: {route.events}.")}
    codes = sorted({403, *route.errors, *([404] if "{" in route.path else [])})
    failed = {JSON: {"schema": named("Error")}}
    responses: Dict[str, Any] = {"200": {"description": "as asked for", "content": content}}
    for code in codes:
        answer: Dict[str, Any] = {"description": ERRORS.get(code, "there is none of that name")}
        if code == 503:
            wait = said({"type": "integer"}, "seconds")
            answer["headers"] = {"Retry-After": {"schema": wait}}
        responses[str(code)] = {**answer, "content": failed}
    operation: Dict[str, Any] = {"operationId": route.name, "summary": route.summary}
    places = [("path", word[1:-1]) for word in route.path.split("/") if word.startswith("{")]
    parameters = [_parameter("path", name, {"type": "string"}) for _, name in places]
    parameters += [_parameter("query", name, schema) for name, schema in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        sent = {JSON: {"schema": named(route.body)}}
        operation["requestBody"] = {"required": True, "content": sent}
    return {**operation, "responses": responses}


def _parameter(place: str, name: str, schema: Schema) -> Dict[str, Any]:
    return {"name": name, "in": place, "required": True, "schema": schema}
