"""A puzzle being solved, as events: what a client of the server is told."""

import math
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

import numpy as np

from mlx_trm.drawing.page import board_data, frame_data
from mlx_trm.drawing.scenes import Frame, Subject
from mlx_trm.errors import DataError
from mlx_trm.inference.search import SearchSettings
from mlx_trm.inference.search.engine import Result, judge_answer, sigmoid
from mlx_trm.inference.search.problems import Problem
from mlx_trm.serving.shelf import Reading, Served
from mlx_trm.serving.worker import Emit, Work

# Fields of a request that are settings of the search.
SETTINGS = ("steps", "halt", "rollouts", "noise", "start", "symmetries", "select", "seed")


def prepare_work(served: Served, request: Mapping[str, Any]) -> Work:
    """Check a request and give what the worker is to do.

    Args:
        served: the model that it asks for.
        request: of the shape that the API's description says.

    Raises:
        ConfigError: for settings that cannot be used.
        DataError: if the puzzle cannot be read, or has no answer.
    """
    settings = served.settings({name: request[name] for name in SETTINGS if name in request})
    puzzle = served.read(request["puzzle"])
    if puzzle.problem:
        raise DataError(puzzle.problem)
    draw = bool(request.get("draw", False))
    return lambda emit: solve_in_turns(served, puzzle, settings, draw, emit)


def solve_in_turns(
    served: Served, puzzle: Reading, settings: SearchSettings, draw: bool, emit: Emit
) -> Iterator[None]:
    """Solve a puzzle in turns, one after each supervision step.

    Args:
        served: the model.
        puzzle: that its task has read.
        settings: of the search.
        draw: whether events hold drawings, as the page shows them.
        emit: is told ``begin``, ``step`` for each, and ``done``.
    """
    begun = time.monotonic()
    subject = puzzle.subject
    title = subject.task.format(subject.inputs)
    about: Dict[str, Any] = {"model": served.name, "puzzle": title}
    if draw:
        solution = subject.solution()
        about["drawing"] = {
            "title": title,
            "puzzle": board_data(subject.puzzle()),
            "solution": None if solution is None else board_data(solution),
        }
    emit("begin", about)
    tell = _teller(subject, draw, emit)
    for results in served.solver.search_in_turns(puzzle.text, settings, tell):
        for result in results:
            done = describe_result(subject, result)
            emit("done", {"model": served.name, **done, "seconds": time.monotonic() - begun})
        yield


def _teller(subject: Subject, draw: bool, emit: Emit) -> Callable[..., None]:
    """Give what tells each step of each rollout."""
    problem = Problem(0, subject.inputs, labels=subject.labels)
    before: Dict[int, np.ndarray] = {}
    steps: Dict[int, int] = {}

    def tell(
        _: int, rollout: int, tokens: np.ndarray, q_halt: float, confidence: np.ndarray
    ) -> None:
        number = steps[rollout] = steps.get(rollout, 0) + 1
        accepted: Optional[bool] = None
        if subject.task.has_rules:
            accepted = bool(subject.task.check(subject.inputs, tokens))
        right = judge_answer(subject.task, problem, tokens, accepted)
        last, q = before.get(rollout), sigmoid(q_halt)
        frame = subject.frame(number, tokens, last, q, right, confidence)
        before[rollout] = tokens.copy()
        if draw:
            emit("step", {"rollout": rollout, "frame": frame_data(frame)})
        else:
            emit("step", {"rollout": rollout, **describe_frame(frame)})

    return tell


def describe_frame(frame: Frame) -> Dict[str, Any]:
    """Give a step as programs read it."""
    return {
        "step": frame.step,
        "answer": frame.board.text,
        "q": frame.belief,
        "correct": frame.correct,
        "changed": frame.changed,
        "confidence": _rows(frame.confidence),
    }


def describe_result(subject: Subject, result: Result) -> Dict[str, Any]:
    """Give what was found for a puzzle."""
    task = subject.task
    return {
        "puzzle": task.format(subject.inputs),
        "answer": result.answer,
        "accepted": result.accepted,
        "correct": result.correct,
        "q": result.probability if math.isfinite(result.probability) else None,
        "confidence": _rows(task.place_values(result.confidence, result.tokens)),
        "rollout": result.rollout,
        "rollouts": result.rollouts,
        "steps": result.steps,
        "remark": task.describe_answer(subject.inputs, result.tokens),
    }


def _rows(values: Optional[np.ndarray]) -> Optional[List[List[float]]]:
    """Give (H, W) values as rows of numbers that JSON has; None stays None."""
    if values is None:
        return None
    known = np.nan_to_num(np.asarray(values, np.float64))
    return [[round(float(value), 4) for value in row] for row in known]
