"""The answer after a supervision step, as everybody who watches gets it."""

from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from mlx_trm.drawing.notebook import frame_html
from mlx_trm.drawing.scenes import Subject, find_labels


@dataclass(frozen=True)
class SolverStep:
    """The answer after one supervision step.

    Attributes:
        step: from 1.
        answer: on one line, as the task writes it.
        halt_probability: the model's belief that the answer is right, sigmoid(q_halt).
        correct: whether the answer is right, by the task's rules alone or by the answer that its
            data have; None where neither can tell.
        changed: cells that differ from the step before, at step 1 from the puzzle itself.
        tokens: (S,) uint8, the answer.
        subject: the puzzle, by which a notebook draws the step.
        before: (S,) uint8, the answer of the step before.
        confidence: (S,) float32, softmax probability of each cell's token; None where nobody
            watches single steps, as in ``solve_many``.
    """

    step: int
    answer: str
    halt_probability: float
    correct: Optional[bool]
    changed: int
    tokens: np.ndarray = field(repr=False, compare=False)
    subject: Optional[Subject] = field(default=None, repr=False, compare=False)
    before: Optional[np.ndarray] = field(default=None, repr=False, compare=False)
    confidence: Optional[np.ndarray] = field(default=None, repr=False, compare=False)

    def _repr_html_(self) -> Optional[str]:
        if self.subject is None:
            return None
        subject = self.subject
        if subject.labels is None:
            subject = subject._replace(labels=find_labels(subject.task, subject.inputs))
        frame = subject.frame(
            self.step, self.tokens, self.before, self.halt_probability, self.correct
        )
        return frame_html(subject.puzzle(), frame)
