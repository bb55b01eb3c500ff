"""What pictures show of a puzzle: its steps as boards, rollout by rollout, and what is known."""

import math
from typing import NamedTuple, Optional, Tuple

import numpy as np

from mlx_trm.tasks import Task
from mlx_trm.tasks.board import Board


class Frame(NamedTuple):
    """The answer after one supervision step.

    Attributes:
        step: from 1.
        board: the answer, with its marks.
        belief: Q, the model's belief that the answer is right, 0 to 1; None: it is no number.
        correct: whether it is right; None where that is not known.
        changed: cells that differ from the step before, at step 1 from the puzzle.
        confidence: (H, W) float32, how sure the model is of each cell, 0 to 1; None: not known.
    """

    step: int
    board: Board
    belief: Optional[float]
    correct: Optional[bool]
    changed: int
    confidence: Optional[np.ndarray] = None

    @property
    def verdict(self) -> str:
        """Give ``right``, ``wrong``, or nothing where that is not known."""
        return {True: "right", False: "wrong", None: ""}[self.correct]


class Take(NamedTuple):
    """One rollout of a puzzle.

    Attributes:
        rollout: its number, from 0.
        frames: its steps, at least one.
        chosen: whether its answer is the one that was given.
    """

    rollout: int
    frames: Tuple[Frame, ...]
    chosen: bool = True


class Scene(NamedTuple):
    """A puzzle being solved.

    Attributes:
        title: what it is called, such as the puzzle on one line.
        puzzle: as it was given.
        takes: its rollouts, at least one.
        solution: the right answer; None where it is not known.
    """

    title: str
    puzzle: Board
    takes: Tuple[Take, ...]
    solution: Optional[Board] = None

    @property
    def chosen(self) -> Take:
        """The rollout whose answer was given."""
        return next((take for take in self.takes if take.chosen), self.takes[-1])


class Subject(NamedTuple):
    """A puzzle of a task, with what is known of it.

    Attributes:
        task: draws and checks it.
        inputs: (S,) uint8 tokens.
        labels: (S,) uint8 tokens of the right answer; None where it is not known.
    """

    task: Task
    inputs: np.ndarray
    labels: Optional[np.ndarray]

    def puzzle(self) -> Board:
        """Give the puzzle as it was given."""
        return self.task.board(self.inputs, self.inputs)

    def solution(self) -> Optional[Board]:
        """Give the right answer, where it is known."""
        return None if self.labels is None else self.task.board(self.labels, self.inputs)

    def frame(
        self,
        step: int,
        tokens: np.ndarray,
        before: Optional[np.ndarray],
        belief: float,
        correct: Optional[bool],
        confidence: Optional[np.ndarray] = None,
    ) -> Frame:
        """Give a step's answer.

        Args:
            step: from 1.
            tokens: (S,) the answer.
            before: (S,) the one before; None: the puzzle.
            belief: Q, 0 to 1.
            correct: whether it is right.
            confidence: (S,) float32, softmax probability of each cell's token; None: not known.
        """
        before = self.inputs if before is None else before
        board = self.task.board(tokens, self.inputs, self.labels, before)
        changed = int(np.count_nonzero(tokens != before))
        known = belief if math.isfinite(belief) else None
        placed = None if confidence is None else self.task.place_values(confidence, tokens)
        return Frame(step, board, known, correct, changed, placed)

    def scene(self, title: str, takes: Tuple[Take, ...]) -> Scene:
        """Put rollouts together."""
        return Scene(title, self.puzzle(), takes, self.solution())


def find_labels(task: Task, inputs: np.ndarray) -> Optional[np.ndarray]:
    """Give the (S,) answer of (S,) inputs by the task's rules; None: there is none, or several."""
    labels, problems = task.answers(np.asarray(inputs)[None])
    return None if labels is None or 0 in problems else labels[0]
