"""How one of several rollouts' answers is chosen."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Callable, Dict, Optional, Sequence

import numpy as np


@dataclass(frozen=True, eq=False)
class Candidate:
    """What one rollout found.

    Attributes:
        rollout: its number, from 0.
        tokens: (S,) uint8, its last answer, of the puzzle itself and not of a copy.
        steps: supervision steps that it took.
        halted: whether it ended because of what ``halt`` asks for, not for want of steps.
        q_halt: logit of the model's belief in the answer.
        residual: size of the last change of z_H relative to z_H; NaN where it was not measured.
        confidence: (S,) float32, softmax probability of each cell's token.
        accepted: whether the rules accept the answer; None without rules.
        correct: whether it is right; None where that is not known.
        marks: whether the answers after some steps were right, by step.
    """

    rollout: int
    tokens: np.ndarray
    steps: int
    halted: bool
    q_halt: float
    residual: float
    confidence: np.ndarray
    accepted: Optional[bool]
    correct: Optional[bool]
    marks: Dict[int, Optional[bool]] = field(default_factory=dict)


def choose(candidates: Sequence[Candidate], select: str) -> Candidate:
    """Choose one candidate; of equals the one of the lowest rollout.

    Args:
        candidates: at least one.
        select: of SELECTIONS in settings.py. Where ``rules`` accept none, or none halted for
            ``first_halt``, the highest q decides.
    """
    ordered = sorted(candidates, key=lambda each: each.rollout)
    return _CHOICES[select](ordered)


def _by_q(ordered: Sequence[Candidate]) -> Candidate:
    # A q that is no number believes nothing.
    return max(ordered, key=lambda each: -math.inf if math.isnan(each.q_halt) else each.q_halt)


def _by_vote(ordered: Sequence[Candidate]) -> Candidate:
    votes = Counter(each.tokens.tobytes() for each in ordered)
    most = max(votes.values())
    return _by_q([each for each in ordered if votes[each.tokens.tobytes()] == most])


def _by_rules(ordered: Sequence[Candidate]) -> Candidate:
    return next((each for each in ordered if each.accepted), _by_q(ordered))


def _by_residual(ordered: Sequence[Candidate]) -> Candidate:
    return min(ordered, key=lambda e: math.inf if math.isnan(e.residual) else e.residual)


def _by_first_halt(ordered: Sequence[Candidate]) -> Candidate:
    halted = [each for each in ordered if each.halted]
    return min(halted, key=lambda each: each.steps) if halted else _by_q(ordered)


_CHOICES: Dict[str, Callable[[Sequence[Candidate]], Candidate]] = {
    "q": _by_q,
    "vote": _by_vote,
    "rules": _by_rules,
    "residual": _by_residual,
    "first_halt": _by_first_halt,
}
