"""The rows of a batch that work on rollouts, whichever they are at a time."""

import math
from dataclasses import dataclass, field
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import mlx.core as mx
import numpy as np

from mlx_trm.inference.search.draws import START, RowDraws, add_noise, mixed_starts, stack_keys
from mlx_trm.inference.search.problems import Problem
from mlx_trm.inference.search.scheduling import Schedule, Work
from mlx_trm.inference.search.selection import Candidate
from mlx_trm.inference.search.settings import STABLE_STEPS, SearchSettings, draws_starts
from mlx_trm.inference.step import EvaluationStep, cell_confidence, read_answers
from mlx_trm.models import RecursiveModel
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import IGNORE_LABEL_ID, Batch, Carry, Outputs
from mlx_trm.system.streams import give_back_cores
from mlx_trm.tasks import Task
from mlx_trm.tasks.symmetries import Symmetry

# Rows of a batch where a whole one is not needed.
SMALL_BATCHES = (1, 4, 16)

Judge = Callable[[Problem, np.ndarray, Optional[bool]], Optional[bool]]
# Called with a puzzle's place, a rollout, its (S,) uint8 answer after a step, q_halt, and (S,)
# float32, the softmax probability of each cell's token.
Watcher = Callable[[int, int, np.ndarray, float, np.ndarray], None]


class Parts(NamedTuple):
    """What rows compute with, and how.

    Attributes:
        model: gives carries, starts and puzzle vectors.
        task: checks answers.
        settings: of the search.
        steps: of a rollout, at most.
        reason: the model's step.
        tree: its weights.
        judge: says whether an answer is right, given a puzzle, (S,) tokens and whether the rules
            accept them.
        watcher: is shown every step of every rollout; None: nobody looks.
    """

    model: RecursiveModel
    task: Task
    settings: SearchSettings
    steps: int
    reason: EvaluationStep
    tree: Tree
    judge: Judge
    watcher: Optional[Watcher] = None


class Seen(NamedTuple):
    """What a step says of each row.

    Attributes:
        answers: (B, S) uint8.
        q_halt: (B,) float32.
        believes: (B,) bool, whether the model would halt the row.
        confidence: (B, S) float32, not computed yet.
        residual: (B,) float32, not computed yet.
    """

    answers: np.ndarray
    q_halt: np.ndarray
    believes: np.ndarray
    confidence: mx.array
    residual: mx.array


@dataclass(eq=False)
class Run:
    """A rollout that has a row."""

    work: Work
    rollout: int
    draws: RowDraws
    symmetry: Optional[Symmetry]
    steps: int = 0
    unchanged: int = 0  # steps for which the answer has been the same
    accepted: Optional[bool] = None  # the last answer that was checked
    marks: Dict[int, Optional[bool]] = field(default_factory=dict)

    def own(self, tokens: np.ndarray) -> np.ndarray:
        """Give an answer as one of the puzzle itself."""
        return tokens if self.symmetry is None else self.symmetry.undo(tokens)

    def own_places(self, values: np.ndarray) -> np.ndarray:
        """Give (S,) values of cells in the order of the puzzle's own cells."""
        return values if self.symmetry is None else self.symmetry.undo_places(values)


def choose_size(needed: int, most: int) -> int:
    """Give the rows of a batch: the smallest of a few sizes that so many runs fit in."""
    return next((size for size in SMALL_BATCHES if needed <= size < most), most)


class Rows:
    """A batch whose rows are runs, each in the row where it began."""

    def __init__(self, parts: Parts, rows: int, marks: Sequence[int] = ()) -> None:
        """Begin with empty rows.

        Args:
            parts: what to compute with, and how.
            rows: B.
            marks: steps after which the first rollout's answers are judged.
        """
        self._parts, self._marks = parts, set(marks)
        self._settings, self._steps = parts.settings, parts.steps
        self._model, self._task = parts.model, parts.task
        self._has_rules = parts.task.has_rules
        spec = parts.model.spec
        self._runs: List[Optional[Run]] = [None] * rows
        self._inputs = np.zeros((rows, spec.seq_len), dtype=np.int32)
        self._identifiers = np.full(rows, spec.blank_identifier_id, dtype=np.int32)
        self._labels = mx.full((rows, spec.seq_len), IGNORE_LABEL_ID, dtype=mx.int32)
        self._before = np.zeros((rows, spec.seq_len), dtype=np.uint8)  # the last answers
        nothing = Batch(mx.array(self._inputs), self._labels, mx.array(self._identifiers))
        self._carry: Carry = parts.model.initial_carry(nothing)
        self._vectors: Optional[mx.array] = None

    def fill(self, schedule: Schedule) -> bool:
        """Give the empty rows to what is waiting; say whether any row has work."""
        new = np.zeros(len(self._runs), dtype=bool)
        for row, run in enumerate(self._runs):
            if run is None:
                taken = schedule.take()
                if taken is None:
                    break
                self._runs[row] = self._place(row, *taken)
                new[row] = True
        if new.any():
            self._refill(new)
        return any(run is not None for run in self._runs)

    def shrink(self) -> None:
        """Go on with fewer rows where a smaller batch holds all that have work.

        Nothing may be waiting. On the CPU an empty row costs as much as one with work, and the last
        few puzzles are the hard ones, with many steps before them.
        """
        busy = [row for row, run in enumerate(self._runs) if run is not None]
        size = choose_size(len(busy), len(self._runs))
        if size == len(self._runs):
            return
        empty = [row for row, run in enumerate(self._runs) if run is None]
        kept = busy + empty[: size - len(busy)]
        index, carry = mx.array(kept), self._carry
        self._runs = [self._runs[row] for row in kept]
        self._inputs, self._identifiers = self._inputs[kept], self._identifiers[kept]
        self._labels, self._before = self._labels[:size], self._before[kept]
        self._carry = Carry(
            latents=tuple(latent[index] for latent in carry.latents),
            steps=carry.steps[index],
            halted=carry.halted[index],
            current=Batch(*(part[index] for part in carry.current)),
        )
        if self._vectors is not None:
            self._vectors = self._vectors[index]

    def _place(self, row: int, work: Work, rollout: int) -> Run:
        """Begin a run in a row."""
        problem = work.problem
        draws = RowDraws(self._settings.seed, problem.inputs, rollout)
        symmetry = None
        if self._settings.symmetries and rollout > 0:
            symmetry = self._task.draw_symmetry(problem.inputs, draws.generator())
        inputs = problem.inputs if symmetry is None else symmetry.apply(problem.inputs)
        self._inputs[row], self._identifiers[row] = inputs, problem.identifier
        return Run(work, rollout, draws, symmetry)

    def _refill(self, new: np.ndarray) -> None:
        """Put the new rows' puzzles and starts into the carry; the other rows keep theirs."""
        model = self._model
        batch = Batch(mx.array(self._inputs), self._labels, mx.array(self._identifiers))
        random = [
            bool(new[row]) and run is not None and draws_starts(self._settings, model, run.rollout)
            for row, run in enumerate(self._runs)
        ]
        keys = mx.zeros((len(self._runs), 2), dtype=mx.uint32)
        if any(random):
            keys = self._keys([START] * len(random), random)
        halted = mx.array(new)
        starts = mixed_starts(model, keys, random)
        self._carry = model.begin(self._carry._replace(halted=halted), batch, starts)
        self._vectors = model.puzzle_rows(self._carry)

    def _keys(self, steps: Sequence[int], wanted: Sequence[bool]) -> mx.array:
        draws = [
            run.draws if run is not None and mine else None for run, mine in zip(self._runs, wanted)
        ]
        return stack_keys(draws, steps)

    def step(self) -> List[Tuple[Run, Candidate]]:
        """Take a supervision step; give the runs that it ended, whose rows are empty now."""
        active = [run for run in self._runs if run is not None]
        for run in active:
            run.steps += 1
        carry, residual, was_training = self._carry, None, self._model.training
        if self._settings.noise:
            steps = [run.steps if run is not None else 0 for run in self._runs]
            keys = self._keys(steps, [True] * len(steps))
            noisy = add_noise(carry.latents[0], keys, self._settings.noise)
            carry = carry._replace(latents=(noisy, *carry.latents[1:]))
        self._model.eval()
        try:
            with self._parts.reason.limit_memory(len(self._runs)):
                self._carry, outputs = self._parts.reason(self._parts.tree, carry, self._vectors)
                if self._settings.select == "residual" or self._settings.rollouts > 1:
                    residual = _relative_change(self._carry.latents[0], carry.latents[0])
                if not self._must_look(active):
                    # Python makes the next step's graph while this one is computed.
                    mx.async_eval(self._carry.pack(), outputs.logits, outputs.q_halt)
                    return []
                seen = self._look(outputs, residual)
        finally:
            self._model.train(was_training)
            give_back_cores()
        return self._end_runs(seen)

    def _must_look(self, active: Sequence[Run]) -> bool:
        """Whether anything depends on this step's answers."""
        if self._settings.halt != "fixed" or self._parts.watcher is not None:
            return True
        return any(
            run.steps >= self._steps or (run.rollout == 0 and run.steps in self._marks)
            for run in active
        )

    def _look(self, outputs: Outputs, residual: Optional[mx.array]) -> Seen:
        """Bring what a step says to NumPy."""
        answers = read_answers(self._parts.task, outputs.logits).astype(mx.uint8)
        threshold = outputs.q_continue if self._model.compares_continue else mx.zeros(())
        believes = outputs.q_halt > threshold
        sure = cell_confidence(outputs.logits)
        change = mx.full(outputs.q_halt.shape, math.nan) if residual is None else residual
        mx.eval(self._carry.pack(), answers, outputs.q_halt, believes)
        return Seen(np.array(answers), np.array(outputs.q_halt), np.array(believes), sure, change)

    def _end_runs(self, seen: Seen) -> List[Tuple[Run, Candidate]]:
        """Judge the rows' answers, and take the runs that are finished out of their rows."""
        changed = (seen.answers != self._before).any(axis=1)
        self._before = seen.answers
        rows = [(row, run) for row, run in enumerate(self._runs) if run is not None]
        if self._parts.watcher is not None:
            self._tell(self._parts.watcher, rows, seen)
        for row, run in rows:
            if changed[row] or run.steps == 1:
                run.unchanged, run.accepted = 0, None
            else:
                run.unchanged += 1
        if self._settings.halt == "rules":
            self._check(rows, seen)
        halts: Dict[str, Callable[[int, Run], bool]] = {
            "fixed": lambda row, run: run.steps >= self._steps,
            "q": lambda row, run: bool(seen.believes[row]),
            "rules": lambda row, run: bool(run.accepted),
            "stable": lambda row, run: run.unchanged >= STABLE_STEPS,
        }
        halted = {row: halts[self._settings.halt](row, run) for row, run in rows}
        ended = [(row, run) for row, run in rows if halted[row] or run.steps >= self._steps]
        if self._has_rules:
            self._check(ended, seen)
        for row, run in rows:
            if run.rollout == 0 and run.steps in self._marks:
                answer = run.own(seen.answers[row])
                run.marks[run.steps] = self._parts.judge(run.work.problem, answer, run.accepted)
        if not ended:  # most steps: confidences are computed for none
            return []
        confidence, residual = np.array(seen.confidence), np.array(seen.residual)
        found = []
        for row, run in ended:
            # Copies, so that a result does not keep the whole batch in memory.
            tokens, sure = run.own(seen.answers[row]).copy(), confidence[row].copy()
            candidate = Candidate(
                rollout=run.rollout,
                tokens=tokens,
                steps=run.steps,
                halted=halted[row],
                q_halt=float(seen.q_halt[row]),
                residual=float(residual[row]),
                confidence=run.own_places(sure),
                accepted=run.accepted,
                correct=self._parts.judge(run.work.problem, tokens, run.accepted),
                marks=run.marks,
            )
            found.append((run, candidate))
            self._runs[row] = None
        return found

    def _tell(self, watcher: Watcher, rows: Sequence[Tuple[int, Run]], seen: Seen) -> None:
        """Show somebody each row's step."""
        confidence = np.array(seen.confidence)
        for row, run in rows:
            answer, q_halt = run.own(seen.answers[row]), float(seen.q_halt[row])
            sure = run.own_places(confidence[row])
            watcher(run.work.problem.place, run.rollout, answer, q_halt, sure)

    def _check(self, rows: Sequence[Tuple[int, Run]], seen: Seen) -> None:
        """Ask the rules about answers that they have not seen."""
        unknown = [(row, run) for row, run in rows if run.accepted is None]
        if not unknown:
            return
        inputs = np.stack([run.work.problem.inputs for _, run in unknown])
        answers = np.stack([run.own(seen.answers[row]) for row, run in unknown])
        for (_, run), good in zip(unknown, self._task.check_many(inputs, answers)):
            run.accepted = bool(good)

    def drop_pointless(self) -> List[Run]:
        """Empty the rows of runs that cannot give the answer any more, and give those runs."""
        dropped = []
        for row, run in enumerate(self._runs):
            if run is not None and run.work.is_pointless(run.rollout, run.steps):
                self._runs[row] = None
                dropped.append(run)
        return dropped


def _relative_change(new: mx.array, old: mx.array) -> mx.array:
    """Give how far each row of a latent has moved relative to its size, (B,) float32."""
    new, old = new.astype(mx.float32), old.astype(mx.float32)
    moved = mx.sqrt(mx.sum(mx.square(new - old), axis=(1, 2)))
    return moved / mx.maximum(mx.sqrt(mx.sum(mx.square(new), axis=(1, 2))), 1e-12)
