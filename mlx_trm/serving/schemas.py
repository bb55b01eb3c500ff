"""The shapes of what is sent and answered, as JSON Schema, and the check of what is sent."""

import math
from typing import Any, Dict, List, Optional

from mlx_trm.errors import DataError, did_you_mean
from mlx_trm.inference.search.settings import HALTS, SELECTIONS, STARTS
from mlx_trm.serving.shelf import MOST_TEXT

Schema = Dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "array", "items": TEXT}
PROBABILITY: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
PERHAPS: Schema = {"type": ["boolean", "null"]}


def said(schema: Schema, text: str) -> Schema:
    """Describe a schema."""
    return {**schema, "description": text}


def array(items: Schema) -> Schema:
    """Give the schema of an array."""
    return {"type": "array", "items": items}


def named(name: str) -> Schema:
    """Refer to one of :data:`SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def fields(properties: Dict[str, Schema], optional: Optional[List[str]] = None) -> Schema:
    """Give the schema of an object with these fields and no other ones."""
    required = [name for name in properties if name not in (optional or [])]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


MODEL = said({"type": "string", "maxLength": 200}, "name of a model, of /api/models")
PUZZLE = said(
    {"type": "string", "minLength": 1, "maxLength": MOST_TEXT},
    "as `solve` takes it: cells on one line or in rows, a maze, a grid, a task's name",
)
CONFIDENCE = said(
    {"type": ["array", "null"], "items": array(NUMBER)},
    "softmax probability of each cell's token, in rows as the puzzle has them; null where cells "
    "are not tokens",
)
DRAWING = said(
    {"type": "object"},
    "a grid: h rows, w columns, s the symbols, m the marks (1 given, 2 changed, 4 wrong, added "
    "up), b the rows and columns of a box, t the text; where cells are coloured, p the palette "
    "and c each cell's colour in it",
)
Q = said(PROBABILITY, "the model's belief that its answer is right; null: it is no number")
CORRECT = said(PERHAPS, "whether the answer is right; null where nobody knows")
RUN_NAMES = said(TEXTS, "names of runs, of /api/runs")

SCHEMAS: Dict[str, Schema] = {
    "Error": fields({"error": said(TEXT, "what is wrong and how to mend it, in one line")}),
    "Model": fields(
        {
            "name": TEXT,
            "summary": TEXT,
            "task": TEXT,
            "rules": said(FLAG, "whether the task can check answers by rules"),
            "symmetries": said(FLAG, "whether rollouts may work on symmetric copies"),
            "settings": said({"type": "object"}, "what a request begins with"),
            "editor": said({"type": "object"}, "how the page lets puzzles be typed"),
            "names": said(TEXTS, "puzzles that can be asked for by name"),
        }
    ),
    "Models": fields({"models": array(named("Model"))}),
    "Load": fields({"working": COUNT, "waiting": COUNT, "most_waiting": COUNT}),
    "Reading": fields({"model": MODEL, "puzzle": PUZZLE}),
    "Read": fields(
        {
            "puzzle": said(TEXT, "the puzzle on one line, as the task writes it"),
            "typed": said(TEXT, "the puzzle as the page's editor shows it"),
            "problem": said(TEXT, "why it cannot be solved; empty: it can, or nobody knows"),
            "drawing": DRAWING,
            "demonstrations": said(
                array(fields({"puzzle": DRAWING, "answer": DRAWING})),
                "pairs that show what the puzzle asks for; none where its task has no such",
            ),
        }
    ),
    "Example": fields({"puzzle": TEXT}),
    "Request": fields(
        {
            "model": MODEL,
            "puzzle": PUZZLE,
            "steps": said({"type": "integer", "minimum": 1}, "of a rollout, at most"),
            "halt": said({"type": "string", "enum": list(HALTS)}, "when a rollout ends"),
            "rollouts": said({"type": "integer", "minimum": 1}, "runs of the puzzle, at most"),
            "noise": said({"type": "number", "minimum": 0}, "added before each step"),
            "start": said({"type": "string", "enum": list(STARTS)}, "where rollouts start"),
            "symmetries": said(FLAG, "rollouts after the first work on symmetric copies"),
            "select": said({"type": "string", "enum": list(SELECTIONS)}, "whose answer is given"),
            "seed": said({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, "of chance"),
            "draw": said(FLAG, "whether events hold drawings in place of text"),
        },
        "steps halt rollouts noise start symmetries select seed draw".split(),
    ),
    "Step": fields(
        {
            "rollout": said(COUNT, "from 0"),
            "step": said(COUNT, "from 1"),
            "answer": TEXT,
            "q": Q,
            "correct": CORRECT,
            "changed": said(COUNT, "cells that differ from the step before"),
            "confidence": CONFIDENCE,
        }
    ),
    "Answer": fields(
        {
            "model": TEXT,
            "puzzle": TEXT,
            "answer": TEXT,
            "accepted": said(PERHAPS, "whether the rules accept it; null: there are none"),
            "correct": CORRECT,
            "q": Q,
            "confidence": CONFIDENCE,
            "rollout": said(COUNT, "which one gave the answer, from 0"),
            "rollouts": COUNT,
            "steps": said(COUNT, "of all rollouts together"),
            "remark": said(TEXT, "what the answer is, such as a path of 12 steps"),
            "seconds": NUMBER,
            "history": said(array(named("Step")), "every step; confidence is left out (null)"),
        },
        ["history"],
    ),
    "RunSummary": fields(
        {
            "name": TEXT,
            "step": said({"type": ["integer", "null"]}, "the last one that is logged"),
            "total": said({"type": ["integer", "null"]}, "steps of the whole run"),
            "problem": said(TEXT, "what is wrong with the log; empty: nothing"),
        }
    ),
    "Runs": fields({"runs": array(named("RunSummary"))}),
    "Log": fields(
        {
            "name": TEXT,
            "step": {"type": ["integer", "null"]},
            "total": {"type": ["integer", "null"]},
            "problem": TEXT,
            "metrics": said(TEXTS, "in the order in which they are drawn"),
            "parts": said(
                {"type": "object"},
                "by `train` and `eval SET`, by metric: steps, values (neighbours averaged where "
                "there are many) and the last value",
            ),
        }
    ),
    "Logs": fields({"logs": array(named("Log"))}),
    "Setting": fields(
        {
            "name": TEXT,
            "values": said(array({"type": ["string", "null"]}), "of each run; null: not there"),
        }
    ),
    "Comparison": fields(
        {
            "runs": TEXTS,
            "unread": said(TEXTS, "runs whose config.yaml cannot be read"),
            "differing": array(named("Setting")),
            "same": array(named("Setting")),
        }
    ),
}


def check(value: Any, schema: Schema) -> None:
    """Refuse a request that is not of a shape.

    Args:
        value: as JSON gives it.
        schema: one of those above, for requests.

    Raises:
        DataError: with the first thing wrong.
    """
    problem = find_problem(value, schema, "the request")
    if problem:
        raise DataError(problem)


_KINDS: Dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}


def find_problem(value: Any, schema: Schema, where: str) -> str:
    """Say what is wrong with a value; an empty string: nothing.

    Args:
        value: as JSON gives it.
        schema: of what it should be, of the few keywords that are used here.
        where: what the value is called.
    """
    if "$ref" in schema:
        return find_problem(value, SCHEMAS[schema["$ref"].rpartition("/")[2]], where)
    allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_is_kind(value, kind) for kind in allowed):
        return f"{where} must be of type {' or '.join(allowed)}"
    if isinstance(value, dict):
        return _object_problem(value, schema, where)
    if isinstance(value, list):
        problems = (find_problem(item, schema["items"], f"{where}[]") for item in value)
        return next(filter(None, problems), "")
    if isinstance(value, str):
        if "enum" in schema and value not in schema["enum"]:
            return f"{where} must be one of {', '.join(schema['enum'])}"
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
            most = schema.get("maxLength")
            return f"{where} is {'empty' if not value else f'longer than {most} characters'}"
    elif value is not None and not isinstance(value, bool):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if not low <= value <= high:
            limit = f"at most {high}" if value > high else f"at least {low}"
            return f"{where} must be {limit}, not {str(value)[:40]}"
    return ""


def _is_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS[kind])


def _object_problem(value: Dict[str, Any], schema: Schema, where: str) -> str:
    properties = schema.get("properties")
    if properties is None:
        return ""
    for name in value:
        if name not in properties:
            return f"{where} has no field {name[:40]!r}{did_you_mean(name, properties)}"
    for name in schema["required"]:
        if name not in value:
            return f"{where} lacks the field {name!r}"
    problems = (find_problem(each, properties[name], name) for name, each in value.items())
    return next(filter(None, problems), "")
