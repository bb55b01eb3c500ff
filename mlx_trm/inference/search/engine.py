"""Solves one puzzle or a million: rows of a batch that end give way to waiting puzzles and runs.

The batch keeps its shape, so nothing is compiled twice; on the CPU, where a search is not compiled,
the last puzzles go on in a smaller one. What a row computes depends on its own puzzle, rollout and
step alone.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Sequence

import numpy as np

from mlx_trm.drawing.notebook import boards_html
from mlx_trm.drawing.scenes import find_labels
from mlx_trm.inference.search.problems import Problem
from mlx_trm.inference.search.rows import Judge, Parts, Rows, Watcher, choose_size
from mlx_trm.inference.search.scheduling import Schedule, Work
from mlx_trm.inference.search.selection import Candidate, choose
from mlx_trm.inference.search.settings import SearchSettings
from mlx_trm.inference.step import EvaluationStep, merge_weights
from mlx_trm.models import RecursiveModel
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import IGNORE_LABEL_ID
from mlx_trm.models.memory import cap_evaluation_rows
from mlx_trm.system.device import on_gpu
from mlx_trm.tasks import Task

# Puzzles held at a time, for each row of a batch. A hard puzzle keeps those behind it waiting to
# be given back, and they should not run out meanwhile.
WINDOW = 32


@dataclass(frozen=True, eq=False)
class Result:
    """What was found for a puzzle.

    Attributes:
        place: of the puzzle among those given, from 0.
        tokens: (S,) uint8, the answer.
        answer: the same on one line, as the task writes it.
        steps: supervision steps that its rollouts took, all of them together.
        rollouts: how many of them there were.
        probability: the model's belief that the answer is right, sigmoid(q_halt).
        accepted: whether the task's rules accept it; None: it has none. A puzzle that has several
            solutions has several answers that they accept.
        confidence: (S,) float32, softmax probability of each cell's token in its last step.
        correct: whether it is right, by the rules, else by the answer that the data have; None
            where neither can tell.
        rollout: which one gave the answer, from 0.
        problem: the puzzle as it was read.
        candidates: what each rollout found.
        task: of the puzzle, by which a notebook draws it.
    """

    place: int
    tokens: np.ndarray = field(repr=False)
    answer: str
    steps: int
    rollouts: int
    probability: float
    accepted: Optional[bool]
    confidence: np.ndarray = field(repr=False)
    correct: Optional[bool]
    rollout: int
    problem: Problem = field(repr=False)
    candidates: Sequence[Candidate] = field(repr=False)
    task: Optional[Task] = field(default=None, repr=False)

    def _repr_html_(self) -> Optional[str]:
        if self.task is None:
            return None
        inputs, labels = self.problem.inputs, self.problem.labels
        labels = find_labels(self.task, inputs) if labels is None else labels
        right = {True: "right", False: "wrong", None: ""}[self.correct]
        words = [right, f"Q {self.probability:.3f}"]
        words.append(f"{self.steps} steps in {self.rollouts} rollouts")
        boards = [
            ("puzzle", self.task.board(inputs, inputs)),
            ("answer", self.task.board(self.tokens, inputs, labels)),
        ]
        return boards_html(boards, ", ".join(word for word in words if word))

    def record(self, task: Task) -> Dict[str, Any]:
        """Give what a file of predictions says of it; a belief that is no number is None."""
        return {
            "puzzle": task.format(self.problem.inputs),
            "answer": self.answer,
            "correct": self.correct,
            "accepted": self.accepted,
            "steps": self.steps,
            "rollouts": self.rollouts,
            "probability": self.probability if math.isfinite(self.probability) else None,
        }


class Search:
    """Runs rollouts of puzzles and chooses among their answers."""

    def __init__(
        self,
        model: RecursiveModel,
        task: Task,
        settings: SearchSettings,
        steps: int,
        reason: EvaluationStep,
        weights: Optional[Tree] = None,
        judge: Optional[Judge] = None,
    ) -> None:
        """Prepare a search; nothing is computed yet.

        Args:
            model: a trained model.
            task: writes and checks answers.
            settings: what to do.
            steps: supervision steps of a rollout, where the settings name none.
            reason: the model's step.
            weights: used instead of the model's own.
            judge: says whether an answer is right, given a puzzle, (S,) tokens and whether the
                rules accept them; default :func:`judge_answer`.

        Raises:
            ConfigError: if the task or the model lacks what the settings need.
        """
        settings.check_usable(task, model)
        self.settings = settings
        self.steps = settings.steps or steps
        self._model, self._task, self._reason = model, task, reason
        self._weights = weights
        self._judge: Judge = judge or partial(judge_answer, task)

    def run(
        self,
        problems: Iterable[Problem],
        marks: Sequence[int] = (),
        everything: bool = False,
        on_done: Optional[Callable[[int], None]] = None,
        on_step: Optional[Callable[[], None]] = None,
        on_answer: Optional[Watcher] = None,
    ) -> Iterator[Result]:
        """Solve puzzles; each is given back as soon as it and all before it are done.

        Args:
            problems: read one at a time, never more than a window ahead.
            marks: steps after which the first rollout's answers are judged.
            everything: run every rollout, also where some cannot change the answer.
            on_done: called with the number of puzzles done so far after each step that ends one.
            on_step: called after each step of the batch.
            on_answer: called after each step of each rollout with the puzzle's place, the rollout,
                its (S,) uint8 answer, q_halt, and its (S,) float32 confidence.

        Returns:
            The results, in the order of the puzzles.
        """
        turns = self.run_in_turns(problems, marks, everything, on_done, on_step, on_answer)
        return chain.from_iterable(turns)

    def run_in_turns(
        self,
        problems: Iterable[Problem],
        marks: Sequence[int] = (),
        everything: bool = False,
        on_done: Optional[Callable[[int], None]] = None,
        on_step: Optional[Callable[[], None]] = None,
        on_answer: Optional[Watcher] = None,
    ) -> Iterator[Iterator[Result]]:
        """Solve puzzles as :meth:`run` does, and pause after each step of the batch.

        Returns:
            The results that each step has made ready, mostly none. Several searches of one model
            may take turns, in one thread.
        """
        settings, source = self.settings, iter(problems)
        most = cap_evaluation_rows(self._model, settings.batch_size, self._reason.memory_limit)
        first = list(islice(source, most))
        if not first:
            return
        early = settings.leaves_early and not everything
        # On the CPU a row costs as much as it computes: none is begun ahead, and none kept empty.
        rows_are_free = on_gpu()
        side_by_side = settings.rollouts if rows_are_free or not early else 1
        rows = choose_size(len(first) * side_by_side, most)
        schedule = Schedule(
            chain(first, source),
            settings.rollouts,
            WINDOW * settings.batch_size,
            early,
            settings.select == "first_halt" and not everything,
            ahead=rows_are_free,
        )
        tree = self._model.weights()
        if self._weights is not None:
            tree = merge_weights(tree, self._weights)
        parts = Parts(
            self._model,
            self._task,
            settings,
            self.steps,
            self._reason,
            tree,
            self._judge,
            on_answer,
        )
        batch = Rows(parts, rows, marks)
        done = 0
        while batch.fill(schedule):
            # Not with fixed steps, where rows end together and the numbers are the evaluator's.
            if schedule.exhausted and settings.halt != "fixed" and not rows_are_free:
                batch.shrink()
            for run, candidate in batch.step():
                schedule.end(run.work, run.rollout, run.steps, candidate)
            for run in batch.drop_pointless():
                schedule.end(run.work, run.rollout, run.steps, None)
            if on_step is not None:
                on_step()
            if on_done is not None and schedule.done_count > done:
                done = schedule.done_count
                on_done(done)
            yield (self._result(work, early) for work in schedule.finished())

    def _result(self, work: Work, early: bool) -> Result:
        found = work.found()
        accepted = early and work.accepted is not None
        best = found[-1] if accepted else choose(found, self.settings.select)
        return Result(
            place=work.problem.place,
            tokens=best.tokens,
            answer=self._task.format(best.tokens),
            # Of rollouts begun ahead and not needed nothing is counted: their rows were empty.
            steps=sum(each.steps for each in found) if early else work.steps,
            rollouts=len(found) if early else work.begun,
            probability=sigmoid(best.q_halt),
            accepted=best.accepted,
            confidence=best.confidence,
            correct=best.correct,
            rollout=best.rollout,
            problem=work.problem,
            candidates=found,
            task=self._task,
        )


def sigmoid(x: float) -> float:
    """Turn a logit into a probability, without overflow."""
    small = math.exp(-abs(x))
    return 1.0 / (1.0 + small) if x >= 0 else small / (1.0 + small)


def judge_answer(
    task: Task, problem: Problem, tokens: np.ndarray, accepted: Optional[bool]
) -> Optional[bool]:
    """Say whether an answer is right: by the rules where there are any, else by the label."""
    labels = problem.labels
    if accepted is not None or labels is None:
        return accepted
    return task.equal(tokens, np.where(labels == IGNORE_LABEL_ID, tokens, labels))
