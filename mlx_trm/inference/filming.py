"""Steps as pictures need them: of plain runs, and of every rollout of a search."""

from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np

from mlx_trm.drawing.notebook import LiveHTML, frame_html, in_notebook
from mlx_trm.drawing.scenes import Frame, Scene, Subject, Take
from mlx_trm.drawing.terminal import EXPLAINED, LiveText, use_color, with_beliefs
from mlx_trm.inference.answers import SolverStep
from mlx_trm.inference.search.engine import Result, judge_answer, sigmoid
from mlx_trm.tasks import Task


def film_steps(subject: Subject, steps: Iterable[SolverStep]) -> Take:
    """Turn the steps of a plain run into frames."""
    frames: List[Frame] = []
    before: Optional[np.ndarray] = None
    for step in steps:
        belief = step.halt_probability
        frames.append(
            subject.frame(step.step, step.tokens, before, belief, step.correct, step.confidence)
        )
        before = step.tokens
    return Take(0, tuple(frames))


class Seen(NamedTuple):
    """An answer of a rollout.

    Attributes:
        tokens: (S,) uint8.
        q_halt: the logit of the model's belief.
        confidence: (S,) float32, softmax probability of each cell's token.
    """

    tokens: np.ndarray
    q_halt: float
    confidence: np.ndarray


class Recorder:
    """Keeps every step of a search, until the puzzle's result is there."""

    def __init__(self, task: Task) -> None:
        """Begin with nothing.

        Args:
            task: draws and judges answers.
        """
        self._task = task
        self._seen: Dict[int, Dict[int, List[Seen]]] = {}

    def note(
        self, place: int, rollout: int, tokens: np.ndarray, q_halt: float, confidence: np.ndarray
    ) -> None:
        """Keep a step; give this to :meth:`mlx_trm.inference.solver.Solver.search`."""
        takes = self._seen.setdefault(place, {})
        takes.setdefault(rollout, []).append(Seen(tokens.copy(), q_halt, confidence.copy()))

    def scene(self, result: Result, title: str, labels: Optional[np.ndarray]) -> Scene:
        """Give a puzzle's rollouts, and forget them.

        Args:
            result: of the puzzle.
            title: of the scene.
            labels: (S,) the right answer; None where it is not known.
        """
        subject = Subject(self._task, result.problem.inputs, labels)
        counted = {candidate.rollout for candidate in result.candidates}
        kept = self._seen.pop(result.place, {})
        takes = [
            Take(number, self._frames(subject, result, seen), number == result.rollout)
            for number, seen in sorted(kept.items())
            if number in counted  # what was begun ahead and not needed is not counted either
        ]
        return subject.scene(title, tuple(takes))

    def _frames(self, subject: Subject, result: Result, seen: List[Seen]) -> Tuple[Frame, ...]:
        answers = np.stack([each.tokens for each in seen])
        accepted: List[Optional[bool]] = [None] * len(seen)
        if self._task.has_rules:
            inputs = np.repeat(subject.inputs[None], len(seen), axis=0)
            accepted = list(map(bool, self._task.check_many(inputs, answers)))
        found: List[Frame] = []
        before: Optional[np.ndarray] = None
        for number, (each, good) in enumerate(zip(seen, accepted), start=1):
            right = judge_answer(self._task, result.problem, each.tokens, good)
            belief = sigmoid(each.q_halt)
            found.append(subject.frame(number, each.tokens, before, belief, right, each.confidence))
            before = each.tokens
        return tuple(found)


def watch_steps(subject: Subject, steps: Iterable[SolverStep], live: LiveHTML) -> Take:
    """Show steps one after the other in the same place, in a notebook or in a terminal.

    Args:
        subject: the puzzle.
        steps: each is shown as soon as it is there.
        live: the place in a notebook.

    Returns:
        The frames that were shown.
    """
    notebook, text = in_notebook(), LiveText()
    frames: List[Frame] = []
    beliefs: List[float] = []
    before, puzzle = subject.inputs, subject.puzzle()
    for step in steps:
        belief, tokens = step.halt_probability, step.tokens
        frame = subject.frame(step.step, tokens, before, belief, step.correct, step.confidence)
        frames.append(frame)
        beliefs.append(belief)
        if notebook:
            live.show(frame_html(puzzle, frame))
        else:
            drawn = subject.task.render_step(
                tokens, before, subject.inputs, subject.labels, use_color()
            )
            verdict = f", {frame.verdict}" if frame.verdict else ""
            cells = "cell" if frame.changed == 1 else "cells"
            head = f"step {frame.step}: {frame.changed} {cells} changed{verdict}"
            text.show(f"{head}\n{with_beliefs(drawn, beliefs)}\n{EXPLAINED}")
        before = tokens
    return Take(0, tuple(frames))
