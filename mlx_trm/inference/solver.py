"""Solves puzzles one supervision step at a time, so that an answer can be watched as it evolves."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import mlx.core as mx
import numpy as np

from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.datasets.names import number_rows
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.inference.packaged import load_pretrained
from mlx_trm.inference.step import compile_reason, merge_weights, should_compile
from mlx_trm.models import RecursiveModel
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import IGNORE_LABEL_ID, Batch
from mlx_trm.models.memory import limit_evaluation_memory
from mlx_trm.runs.checkpoint import load_checkpoint
from mlx_trm.runs.puzzle_rows import read_row_names
from mlx_trm.system.streams import give_back_cores
from mlx_trm.tasks import Task, build_task

LOG = logging.getLogger(__name__)

# A puzzle: text as the task reads it, or its (S,) tokens, whole numbers of any kind.
Puzzle = Union[str, np.ndarray, mx.array, Sequence[int]]


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
    """

    step: int
    answer: str
    halt_probability: float
    correct: Optional[bool]
    changed: int
    tokens: np.ndarray = field(repr=False, compare=False)


class Solver:
    """Solves puzzles of a task with a model.

    Attributes:
        model: its own weights are used, unless others are given.
        config: the experiment it belongs to.
        task: reads puzzles, writes answers and checks them.
    """

    def __init__(
        self,
        model: RecursiveModel,
        config: ExperimentConfig,
        task: Optional[Task] = None,
        row_names: Optional[Sequence[str]] = None,
        weights: Optional[Tree] = None,
    ) -> None:
        """Prepare a solver; nothing is computed yet.

        Args:
            model: a trained model.
            config: names the task and says whether to compile.
            task: used instead of making the one that ``config`` names.
            row_names: of the model's puzzle table, as its checkpoint has them; without them the
                task's data say which row a puzzle has.
            weights: used instead of the model's own trained weights, such as those of a trainer's
                average; the rest is the model's.

        Raises:
            ConfigError: if the task's puzzles have other dimensions than the model's.
        """
        self.model = model
        self.config = config
        self.task = task or build_task(config.task, config.task_seed)
        for name in ("vocab_size", "seq_len"):
            have, want = getattr(self.task.spec, name), getattr(model.spec, name)
            if have != want:
                raise ConfigError(
                    f"task {config.task.name}: {name} is {have}, the model was made for {want}; "
                    "use the configuration that the model was trained with"
                )
        self._rows = None if row_names is None else number_rows(row_names)
        self._weights = weights
        self._reason = compile_reason(model, should_compile(config.train.compile))

    @classmethod
    def from_checkpoint(cls, path: Union[str, Path], weights: str = "ema") -> "Solver":
        """Make a solver from a run folder or a checkpoint folder.

        Args:
            path: of the folder.
            weights: ``ema`` or ``raw``, see :func:`mlx_trm.runs.checkpoint.load_checkpoint`.

        Raises:
            CheckpointError: if there is no checkpoint, or it cannot be used.
        """
        checkpoint = load_checkpoint(path, weights)
        names = read_row_names(checkpoint.path)
        return cls(checkpoint.model, checkpoint.config, row_names=names)

    @classmethod
    def from_pretrained(cls, name: str) -> "Solver":
        """Make a solver from weights that come with the package.

        Args:
            name: such as ``sudoku``; :func:`mlx_trm.pretrained` lists them.

        Raises:
            ConfigError: if there are none of that name.
            CheckpointError: if the package is damaged.
        """
        checkpoint = load_pretrained(name)
        return cls(checkpoint.model, checkpoint.config)

    def steps(
        self,
        puzzle: Puzzle,
        steps: Optional[int] = None,
        stop_when_halted: bool = False,
        identifier: Optional[int] = None,
        labels: Optional[Union[np.ndarray, Sequence[int]]] = None,
    ) -> Iterator[SolverStep]:
        """Watch one puzzle being solved; each step is computed when it is asked for.

        Args:
            puzzle: text that ``task.parse`` reads, or (S,) tokens: an array or a list of whole
                numbers from 0 to V - 1. That it has a solution is not checked.
            steps: supervision steps; default ``eval.steps``, else the model's halt_max_steps.
            stop_when_halted: end after the first step after which training would halt the row:
                q_halt is more than 0, for some models more than q_continue.
            identifier: row of the puzzle table; default what the task knows of the puzzle.
            labels: (S,) tokens of the right answer, IGNORE_LABEL_ID where any will do, for tasks
                whose rules cannot tell; default what the task knows of the puzzle.

        Returns:
            An iterator over the steps.

        Raises:
            DataError: if the puzzle cannot be read.
            ValueError: if ``steps`` is less than 1.
        """
        answer = None if labels is None else self._check_tokens(labels, "labels: ", ignored=True)
        problems = self._read([puzzle], identifier, answer)
        return self._watch(problems, self._count(steps), stop_when_halted)

    def solve(
        self, puzzle: Puzzle, steps: Optional[int] = None, stop_when_halted: bool = False
    ) -> SolverStep:
        """Solve one puzzle and give the last step. Arguments and errors as for :meth:`steps`."""
        *_, last = self.steps(puzzle, steps, stop_when_halted)
        return last

    def solve_many(
        self,
        puzzles: Union[Sequence[Puzzle], np.ndarray, mx.array],
        steps: Optional[int] = None,
        batch_size: int = 64,
        stop_when_halted: bool = False,
    ) -> List[SolverStep]:
        """Solve several puzzles side by side.

        Args:
            puzzles: each as for :meth:`steps`, or (n, S) tokens; all are read before the first is
                solved.
            steps: as for :meth:`steps`.
            batch_size: B, puzzles computed at a time.
            stop_when_halted: give each puzzle's first step that would halt it, where there is one,
                and go on only while a puzzle needs it.

        Returns:
            The last step of each puzzle, in the order given.

        Raises:
            DataError: if a puzzle cannot be read; the message says which.
            ValueError: if ``steps`` or ``batch_size`` is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        count = self._count(steps)
        problems = self._read(puzzles)
        results: List[SolverStep] = []
        for start in range(0, len(puzzles), batch_size):
            part = problems.take(range(start, min(start + batch_size, len(puzzles))))
            size = len(part.inputs)
            if start:  # every batch has the shape of the first, so that it is compiled once
                part = part.take([*range(size), *[0] * (batch_size - size)])
            results += self._run_batch(part, size, count, stop_when_halted)
        return results

    # Below: arrays of tokens, (n, S) uint8 -----------------------------------------------------

    def _watch(
        self, problems: "_Problems", steps: int, stop_when_halted: bool
    ) -> Iterator[SolverStep]:
        before = problems.inputs
        for number, (answers, q_halt, halts) in enumerate(self._advance(problems, steps), start=1):
            yield self._describe(problems, 0, before[0], answers[0], q_halt[0], number)
            before = answers
            if stop_when_halted and halts[0]:
                return

    def _run_batch(
        self, problems: "_Problems", size: int, steps: int, stop_when_halted: bool
    ) -> List[SolverStep]:
        found: List[Optional[SolverStep]] = [None] * size
        before = problems.inputs
        for number, (answers, q_halt, halts) in enumerate(self._advance(problems, steps), start=1):
            for i in range(size):
                ends = number == steps or (stop_when_halted and halts[i])
                if found[i] is None and ends:
                    found[i] = self._describe(problems, i, before[i], answers[i], q_halt[i], number)
            if all(step is not None for step in found):
                break
            before = answers
        return [step for step in found if step is not None]

    def _advance(
        self, problems: "_Problems", steps: int
    ) -> Iterator[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield answers, (n, S) uint8, q_halt, (n,) float32, and (n,) if it halts, step by step."""
        model = self.model
        tokens = mx.array(problems.inputs.astype(np.int32))
        identifiers = mx.array(problems.identifiers)
        batch = Batch(tokens, mx.full(tokens.shape, IGNORE_LABEL_ID, dtype=mx.int32), identifiers)
        carry = model.begin(model.initial_carry(batch), batch)
        rows = model.puzzle_rows(carry)
        weights = model.weights()
        if self._weights is not None:
            weights = merge_weights(weights, self._weights)
        for _ in range(steps):
            was_training = model.training
            model.eval()
            try:
                with limit_evaluation_memory(model, tokens.shape[0]):
                    carry, outputs = self._reason(weights, carry, rows)
                    answers = mx.argmax(outputs.logits, axis=-1)
                    mx.eval(carry.pack(), answers, outputs.q_halt)
            finally:
                model.train(was_training)
                give_back_cores()
            threshold = outputs.q_continue if model.compares_continue else mx.zeros(())
            halts = np.array(outputs.q_halt > threshold)
            yield np.array(answers).astype(np.uint8), np.array(outputs.q_halt), halts

    def _describe(
        self,
        problems: "_Problems",
        row: int,
        before: np.ndarray,
        tokens: np.ndarray,
        q_halt: float,
        number: int,
    ) -> SolverStep:
        return SolverStep(
            step=number,
            answer=self.task.format(tokens),
            halt_probability=_sigmoid(float(q_halt)),
            correct=self._check(problems.inputs[row], problems.labels[row], tokens),
            changed=int(np.count_nonzero(tokens != before)),
            tokens=tokens,
        )

    def _check(
        self, inputs: np.ndarray, labels: Optional[np.ndarray], tokens: np.ndarray
    ) -> Optional[bool]:
        try:
            return bool(self.task.check(inputs, tokens))
        except DataError:  # the base class's: this task has no rules
            if labels is None:
                return None
            return self.task.equal(tokens, np.where(labels == IGNORE_LABEL_ID, tokens, labels))

    def _read(
        self,
        puzzles: Union[Sequence[Puzzle], np.ndarray, mx.array],
        identifier: Optional[int] = None,
        answer: Optional[np.ndarray] = None,
    ) -> "_Problems":
        """Read puzzles, and look up what the task's data know of them, unless it is given."""
        rows = np.zeros((len(puzzles), self.model.spec.seq_len), dtype=np.uint8)
        texts: List[str] = []
        for i, puzzle in enumerate(puzzles):
            try:
                if isinstance(puzzle, str):
                    rows[i] = self.task.parse(puzzle)
                else:
                    rows[i] = self._check_tokens(puzzle)
                    puzzle = self.task.format(rows[i])  # by which the task's data know it
                texts.append(puzzle)
            except DataError as error:
                if len(puzzles) == 1:
                    raise
                raise DataError(f"puzzle {i + 1}: {error}") from error
        numbers = [self._identifier(text) if identifier is None else identifier for text in texts]
        table = self.model.spec.num_puzzle_identifiers
        blank = self.model.spec.blank_identifier_id
        numbers = [number if 0 < number < table else blank for number in numbers]
        labels = [self.task.known_answer(text) if answer is None else answer for text in texts]
        return _Problems(rows, np.array(numbers, dtype=np.int32), labels)

    def _check_tokens(self, values: Any, where: str = "", ignored: bool = False) -> np.ndarray:
        """Give tokens as an array of (S,) whole numbers.

        Args:
            values: what the caller says are tokens.
            where: put before the message.
            ignored: whether IGNORE_LABEL_ID may be among them.

        Raises:
            DataError: if they are anything else.
        """
        spec = self.model.spec
        try:
            tokens = np.asarray(values)
        except (ValueError, RuntimeError):  # lists of different lengths, or an array of bfloat16
            tokens = np.asarray(None)
        given = f"{tokens.dtype} of shape {tokens.shape}"
        if tokens.dtype == object:
            given = type(values).__name__
        elif tokens.shape == (spec.seq_len,) and tokens.dtype.kind in "iu":
            outside = (tokens < 0) | (tokens >= spec.vocab_size)
            if ignored:
                outside &= tokens != IGNORE_LABEL_ID
            if not outside.any():
                return tokens
            place = int(np.argmax(outside))
            given = f"position {place} holds {tokens[place]}"
        raise DataError(
            f"{where}tokens are {spec.seq_len} whole numbers from 0 to {spec.vocab_size - 1}, "
            f"not {given}"
        )

    def _identifier(self, puzzle: str) -> int:
        """Look up the row of a puzzle: by its name among the model's rows, else as the data say."""
        name = None if self._rows is None else self.task.row_name(puzzle)
        if self._rows is None or name is None:
            return self.task.identifier(puzzle)
        number = self._rows.get(name, 0)
        if number is None:  # several rows have this name; the data know which one is meant
            return self.task.identifier(puzzle)
        if not number:
            LOG.warning("%s: the model's puzzle table has no row of this name", name)
        return number

    def _count(self, steps: Optional[int]) -> int:
        count = steps if steps is not None else self.config.eval.steps
        count = count if count is not None else int(self.model.config.halt_max_steps)
        if count < 1:
            raise ValueError(f"steps must be at least 1, got {count}")
        return count


class _Problems(NamedTuple):
    """Puzzles to solve: (n, S) uint8 inputs, (n,) int32 identifiers, answers where known."""

    inputs: np.ndarray
    identifiers: np.ndarray
    labels: List[Optional[np.ndarray]]

    def take(self, rows: Iterable[int]) -> "_Problems":
        """Give some of the puzzles, perhaps more than once."""
        chosen = list(rows)
        return _Problems(
            self.inputs[chosen], self.identifiers[chosen], [self.labels[i] for i in chosen]
        )


def _sigmoid(x: float) -> float:
    small = math.exp(-abs(x))
    return 1.0 / (1.0 + small) if x >= 0 else small / (1.0 + small)
