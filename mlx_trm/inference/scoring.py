"""What a search reached: by steps, by way of choosing, by rating; each with what it cost."""

import math
from array import array
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.inference.search import Candidate, Problem, Result, SearchSettings
from mlx_trm.inference.search.selection import choose
from mlx_trm.models.carry import IGNORE_LABEL_ID

# Ratings that differ in more values than this are put into as many ranges of equal numbers.
MOST_RATINGS, RATING_RANGES = 8, 4
MOST_SOURCES = 20


def wilson_interval(right: float, count: float, z: float = 1.959964) -> Tuple[float, float]:
    """The Wilson score interval of a proportion.

    Args:
        right: successes.
        count: trials, more than 0.
        z: standard normal quantile; the default gives 95 %.

    Returns:
        Lower and upper end, in [0, 1].
    """
    share = right / count
    scale = 1.0 / (1.0 + z * z / count)
    middle = share + z * z / (2.0 * count)
    half = z * math.sqrt(share * (1.0 - share) / count + z * z / (4.0 * count * count))
    return max(0.0, scale * (middle - half)), min(1.0, scale * (middle + half))


def powers_of_two(most: int) -> List[int]:
    """Give 1, 2, 4, ... up to a number, and the number itself."""
    found = [1 << power for power in range(most.bit_length())]
    return found if found[-1] == most else [*found, most]


def judge_exactly(problem: Problem, tokens: np.ndarray, accepted: Optional[bool]) -> Optional[bool]:
    """Say whether an answer is the label, as exact accuracy counts it; without one, ask the rules.

    Args:
        problem: the puzzle.
        tokens: (S,) the answer.
        accepted: by the rules; None where there are none.
    """
    labels = problem.labels
    if labels is None or not (labels != IGNORE_LABEL_ID).any():
        return accepted
    return bool(((tokens == labels) | (labels == IGNORE_LABEL_ID)).all())


@dataclass
class Tally:
    """Right answers among counted ones, and what they cost."""

    right: int = 0
    count: int = 0
    steps: int = 0
    rollouts: int = 0

    def add(self, correct: Optional[bool], steps: int, rollouts: int = 1) -> None:
        """Count a puzzle, unless it is not known whether its answer is right."""
        if correct is None:
            return
        self.right += correct
        self.count += 1
        self.steps += steps
        self.rollouts += rollouts

    def summary(self, cost: bool = True) -> Dict[str, float]:
        """Give the share with its 95 % Wilson interval, and the mean cost of a puzzle."""
        found: Dict[str, float] = {"count": self.count}
        if self.count:
            low, high = wilson_interval(self.right, self.count)
            found.update(
                exact_accuracy=self.right / self.count,
                exact_accuracy_low=low,
                exact_accuracy_high=high,
            )
            if cost:
                found.update(
                    steps=self.steps / self.count,
                    rollouts=self.rollouts / self.count,
                )
        return found


class SearchScores:
    """Counts the results of a search in one pass.

    Attributes:
        everything: whether the search has to run every rollout, so that ways of choosing can be
            compared; where the rules may end a puzzle they are what decides.
        marks: the numbers of steps whose accuracy is counted.
    """

    def __init__(self, settings: SearchSettings, steps: int, has_rules: bool) -> None:
        """Begin with nothing counted.

        Args:
            settings: of the search.
            steps: of a rollout, at most.
            has_rules: whether the task has rules.
        """
        self._settings, self._steps, self._has_rules = settings, steps, has_rules
        self.everything = not settings.leaves_early
        self.marks = powers_of_two(steps)
        self._by_steps = {mark: Tally() for mark in self.marks}
        self._by_choice: Dict[str, Tally] = {}
        self._answers = Tally()
        self._accepted = Tally()
        self._ratings, self._rated_right = array("q"), array("b")
        self._sources: Dict[str, Tally] = {}

    def add(self, result: Result) -> None:
        """Count a puzzle."""
        self._answers.add(result.correct, result.steps, result.rollouts)
        if result.accepted:
            self._accepted.add(result.correct, result.steps, result.rollouts)
        problem = result.problem
        if problem.rating is not None and result.correct is not None:
            self._ratings.append(problem.rating)
            self._rated_right.append(result.correct)
        if problem.source:
            tally = self._sources.setdefault(problem.source, Tally())
            tally.add(result.correct, result.steps, result.rollouts)
        first = next((each for each in result.candidates if each.rollout == 0), None)
        if first is not None:
            for mark, tally in self._by_steps.items():
                correct = first.marks.get(mark) if mark < first.steps else first.correct
                tally.add(correct, min(mark, first.steps))
        if self._settings.rollouts > 1:
            for name, correct, cost, rollouts in self._choices(result):
                self._by_choice.setdefault(name, Tally()).add(correct, cost, rollouts)

    def _choices(self, result: Result) -> Iterator[Tuple[str, Optional[bool], int, int]]:
        """Give what each way of choosing finds: name, whether right, steps, rollouts."""
        found = list(result.candidates)
        yield "single", found[0].correct, found[0].steps, 1
        for count in powers_of_two(self._settings.rollouts)[1:]:
            part = found[:count]
            right = any(each.correct for each in part)
            known = any(each.correct is not None for each in part)
            yield f"pass@{count}", right if known else None, _steps_of(part), len(part)
        if not self.everything:
            yield "rules", result.correct, result.steps, result.rollouts
            return
        for select in ("q", "vote", "residual"):
            yield select, choose(found, select).correct, _steps_of(found), len(found)
        if self._settings.halt != "fixed":
            best = choose(found, "first_halt")
            # Side by side, the others are given up when the first halts.
            most = best.steps if best.halted else self._steps
            cost = sum(min(each.steps, most) for each in found)
            yield "first_halt", best.correct, cost, len(found)
        if self._has_rules:
            best = choose(found, "rules")
            tried = found[: best.rollout + 1] if best.accepted else found
            yield "rules", best.correct, _steps_of(tried), len(tried)

    def report(self) -> Dict[str, Any]:
        """Give everything counted, as JSON has it.

        Returns:
            ``answers``: of the settings as they are; ``accepted``, where there are rules: of the
            answers that they accept; ``by_steps``: of the first rollout; ``by_choice``, with
            several rollouts; ``by_rating`` and ``by_source``, where the data have them. Each is
            ``count``, ``exact_accuracy`` with ``_low`` and ``_high``, ``steps`` and ``rollouts``.
        """
        found: Dict[str, Any] = {"answers": self._answers.summary()}
        if self._has_rules:
            found["accepted"] = self._accepted.summary()
        found["by_steps"] = {str(m): tally.summary() for m, tally in self._by_steps.items()}
        if self._by_choice:
            found["by_choice"] = {name: each.summary() for name, each in self._by_choice.items()}
        if self._ratings:
            found["by_rating"] = rating_bins(np.array(self._ratings), np.array(self._rated_right))
        if 1 < len(self._sources) <= MOST_SOURCES:
            found["by_source"] = {n: each.summary() for n, each in sorted(self._sources.items())}
        return found


def rating_bins(ratings: np.ndarray, right: np.ndarray) -> Dict[str, Dict[str, float]]:
    """Give the accuracy by rating.

    Args:
        ratings: (n,) whole numbers, at least one.
        right: (n,) 1 where the answer is right.

    Returns:
        By rating where there are few, else by ranges of about equally many puzzles.
    """
    different = np.unique(ratings)
    if len(different) > MOST_RATINGS:
        places = [len(ratings) * number // RATING_RANGES for number in range(RATING_RANGES)]
        edges = np.unique(np.sort(ratings)[places])
    else:
        edges = different
    place = np.searchsorted(edges, ratings, side="right") - 1
    found = {}
    for number in range(len(edges)):
        mine = place == number
        low, high = int(ratings[mine].min()), int(ratings[mine].max())
        tally = Tally(int(right[mine].sum()), int(mine.sum()))
        found[str(low) if low == high else f"{low}-{high}"] = tally.summary(cost=False)
    return found


def _steps_of(candidates: Sequence[Candidate]) -> int:
    return sum(each.steps for each in candidates)
