"""Solves puzzles one supervision step at a time, so that an answer can be watched as it evolves."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import mlx.core as mx
import numpy as np

from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.drawing.film import Film
from mlx_trm.drawing.notebook import LiveHTML, in_notebook
from mlx_trm.drawing.scenes import Subject, find_labels
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.inference.answers import SolverStep
from mlx_trm.inference.filming import Recorder, film_steps, watch_steps
from mlx_trm.inference.packaged import find_pretrained, load_pretrained
from mlx_trm.inference.search.draws import plain_starts
from mlx_trm.inference.search.engine import Result, Search, sigmoid
from mlx_trm.inference.search.problems import Problems, Puzzle, PuzzleReader
from mlx_trm.inference.search.rows import Watcher
from mlx_trm.inference.search.settings import SearchSettings, make_settings
from mlx_trm.inference.step import EvaluationStep, cell_confidence, merge_weights, read_answers
from mlx_trm.models import RecursiveModel
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import IGNORE_LABEL_ID, Batch
from mlx_trm.models.memory import cap_evaluation_rows
from mlx_trm.runs.checkpoint import load_checkpoint
from mlx_trm.runs.puzzle_rows import read_row_names
from mlx_trm.system.streams import give_back_cores
from mlx_trm.tasks import Task, build_task

__all__ = ["Solver", "SolverStep"]


class Solver:
    """Solves puzzles of a task with a model.

    Attributes:
        model: its own weights are used, unless others are given.
        config: the experiment it belongs to.
        task: reads puzzles, writes answers and checks them.
        own_search: settings of :meth:`search` and :meth:`film` where none are given.
    """

    own_search: Optional[SearchSettings] = None

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
            row_names: of the model's puzzle table, as its checkpoint has them; default the data's.
            weights: used instead of the model's own trained weights, such as those of a trainer's
                average; the rest is the model's.

        Raises:
            ConfigError: if the task's puzzles have other dimensions than the model's.
        """
        self.model = model
        self.config = config
        self.task = task or build_task(config.task, config.task_seed)
        self.task.assumed = model.spec
        for name in ("vocab_size", "seq_len"):
            have, want = getattr(self.task.spec, name), getattr(model.spec, name)
            if have != want:
                raise ConfigError(
                    f"task {config.task.name}: {name} is {have}, the model was made for {want}; "
                    "use the configuration that the model was trained with"
                )
        self._reader = PuzzleReader(self.task, model, row_names)
        self._weights = weights
        self._reason = EvaluationStep.configured(model, config, short=True)

    def __getstate__(self) -> Dict[str, Any]:
        """Give what ``copy.deepcopy`` and ``pickle`` keep: all but the compiled step."""
        return {name: value for name, value in vars(self).items() if name != "_reason"}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """Take it, and make the step anew."""
        vars(self).update(state)
        self._reason = EvaluationStep.configured(self.model, self.config, short=True)

    @classmethod
    def from_checkpoint(
        cls, path: Union[str, Path], weights: str = "ema", allow_plugins: bool = False
    ) -> "Solver":
        """Make a solver from a run folder or a checkpoint folder.

        Args:
            path: of the folder.
            weights: which, as for :func:`mlx_trm.runs.checkpoint.load_checkpoint`.
            allow_plugins: as for the same.

        Raises:
            CheckpointError: if there is no checkpoint, or it cannot be used.
        """
        checkpoint = load_checkpoint(path, weights, allow_plugins)
        names = read_row_names(checkpoint.path)
        return cls(checkpoint.model, checkpoint.config, row_names=names)

    @classmethod
    def from_pretrained(cls, name: str) -> "Solver":
        """Make a solver from weights that come with the package.

        As in the command ``solve``, settings that suit them are ``own_search``.

        Args:
            name: such as ``sudoku``; :func:`mlx_trm.pretrained` lists them.

        Raises:
            ConfigError: if there are none of that name.
            CheckpointError: if the package is damaged.
        """
        checkpoint = load_pretrained(name)
        solver = cls(checkpoint.model, checkpoint.config)
        solver.own_search = SearchSettings(**find_pretrained(name).search)
        return solver

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
        answer = (
            None if labels is None else self._reader.check_tokens(labels, "labels: ", ignored=True)
        )
        problems = self._reader.read([puzzle], identifier, answer)
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
            batch_size: B, puzzles computed at a time, fewer where memory is short.
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
        problems = self._reader.read(puzzles)
        results: List[SolverStep] = []
        batch_size = cap_evaluation_rows(self.model, batch_size, self._reason.memory_limit)
        for start in range(0, len(puzzles), batch_size):
            part = problems.take(range(start, min(start + batch_size, len(puzzles))))
            size = len(part.inputs)
            if start:  # every batch has the shape of the first, so that it is compiled once
                part = part.take([*range(size), *[0] * (batch_size - size)])
            results += self._run_batch(part, size, count, stop_when_halted)
        return results

    def search(
        self,
        puzzles: Iterable[Puzzle],
        settings: Optional[SearchSettings] = None,
        on_step: Optional[Callable[[], None]] = None,
        on_answer: Optional[Watcher] = None,
        **changes: Any,
    ) -> Iterator[Result]:
        """Solve one puzzle or a million, with several runs of each if that is asked for.

        Args:
            puzzles: each as for :meth:`steps`. They are read when they are needed, never more than
                a window of some thousands ahead of the results.
            settings: how to solve them; without these and any changes, ``own_search``.
            on_step: called after each step of the batch, to show that it goes on.
            on_answer: called after each step of each rollout with the puzzle's place, the rollout,
                its (S,) uint8 answer, q_halt, and its (S,) float32 confidence.
            changes: settings by name, such as ``halt="rules", rollouts=8``.

        Returns:
            An iterator over the results, in the order of the puzzles.

        Raises:
            ConfigError: at once, for settings that cannot be used.
            DataError: from the iterator, for a puzzle that cannot be read, saying which.
        """
        chosen = make_settings(settings if settings or changes else self.own_search, changes)
        search = Search(
            self.model, self.task, chosen, self._count(chosen.steps), self._reason, self._weights
        )
        return search.run(self._reader.stream(puzzles), on_step=on_step, on_answer=on_answer)

    def film(
        self,
        puzzle: Puzzle,
        steps: Optional[int] = None,
        settings: Optional[SearchSettings] = None,
        **changes: Any,
    ) -> Film:
        """Solve a puzzle and keep every step, for a notebook, a picture, a page or an animation.

        Args:
            puzzle: as for :meth:`steps`.
            steps: as for :meth:`steps`.
            settings: as for :meth:`search`; where only ``steps`` is given, one plain run is filmed.
            changes: settings by name, such as ``rollouts=8``.

        Returns:
            The film; its ``save`` writes .png, .gif and .html files.

        Raises:
            ConfigError: for settings that cannot be used.
            DataError: if the puzzle cannot be read.
        """
        subject, title = self._subject(puzzle)
        if settings is None and not changes and (steps is not None or self.own_search is None):
            take = film_steps(subject, self.steps(puzzle, steps))
            return Film([subject.scene(title, (take,))])
        if steps is not None:
            changes["steps"] = steps
        recorder = Recorder(self.task)
        (result,) = self.search([puzzle], settings, on_answer=recorder.note, **changes)
        return Film([recorder.scene(result, title, subject.labels)])

    def watch(self, puzzle: Puzzle, steps: Optional[int] = None) -> None:
        """Show a puzzle being solved, each step in the place of the one before.

        A notebook shows pictures, and in the end a slider over all steps, by HTML alone; a
        terminal writes over its lines, and what is neither gets one step below the other.

        Args:
            puzzle: as for :meth:`steps`.
            steps: as for :meth:`steps`.

        Raises:
            DataError: if the puzzle cannot be read.
        """
        subject, title = self._subject(puzzle)
        live = LiveHTML()
        take = watch_steps(subject, self.steps(puzzle, steps), live)
        if in_notebook():
            live.show(Film([subject.scene(title, (take,))]).html())

    def _subject(self, puzzle: Puzzle) -> Tuple[Subject, str]:
        """Give a puzzle with its answer, where the data or the rules know it, and its title."""
        problems = self._reader.read([puzzle])
        inputs, labels = problems.inputs[0], self._known(problems.labels[0])
        if labels is None:
            labels = find_labels(self.task, inputs)
        return Subject(self.task, inputs, labels), self.task.format(inputs)

    # Below: arrays of tokens, (n, S) uint8 -----------------------------------------------------

    def _watch(
        self, problems: Problems, steps: int, stop_when_halted: bool
    ) -> Iterator[SolverStep]:
        before = problems.inputs
        for number, (answers, q_halt, halts, sure) in enumerate(self._advance(problems, steps), 1):
            step = self._describe(problems, 0, before[0], answers[0], q_halt[0], number)
            yield replace(step, confidence=np.array(sure[0]))
            before = answers
            if stop_when_halted and halts[0]:
                return

    def _run_batch(
        self, problems: Problems, size: int, steps: int, stop_when_halted: bool
    ) -> List[SolverStep]:
        found: List[Optional[SolverStep]] = [None] * size
        before = problems.inputs
        for number, (answers, q_halt, halts, _) in enumerate(self._advance(problems, steps), 1):
            for i in range(size):
                ends = number == steps or (stop_when_halted and halts[i])
                if found[i] is None and ends:
                    found[i] = self._describe(problems, i, before[i], answers[i], q_halt[i], number)
            if all(step is not None for step in found):
                break
            before = answers
        return [step for step in found if step is not None]

    def _advance(
        self, problems: Problems, steps: int
    ) -> Iterator[Tuple[np.ndarray, np.ndarray, np.ndarray, mx.array]]:
        """Yield what each step says of the n puzzles.

        That is (n, S) uint8 answers, (n,) float32 q_halt, (n,) if it halts, and (n, S) float32
        confidence, which is not computed yet.
        """
        model = self.model
        tokens = mx.array(problems.inputs.astype(np.int32))
        identifiers = mx.array(problems.identifiers)
        batch = Batch(tokens, mx.full(tokens.shape, IGNORE_LABEL_ID, dtype=mx.int32), identifiers)
        starts = plain_starts(model, problems.inputs)
        carry = model.begin(model.initial_carry(batch), batch, starts)
        rows = model.puzzle_rows(carry)
        weights = model.weights()
        if self._weights is not None:
            weights = merge_weights(weights, self._weights)
        for _ in range(steps):
            was_training = model.training
            model.eval()
            try:
                with self._reason.limit_memory(tokens.shape[0]):
                    carry, outputs = self._reason(weights, carry, rows)
                    answers = read_answers(self.task, outputs.logits)
                    mx.eval(carry.pack(), answers, outputs.q_halt)
            finally:
                model.train(was_training)
                give_back_cores()
            threshold = outputs.q_continue if model.compares_continue else mx.zeros(())
            halts = np.array(outputs.q_halt > threshold)
            sure = cell_confidence(outputs.logits)
            yield np.array(answers).astype(np.uint8), np.array(outputs.q_halt), halts, sure

    def _describe(
        self,
        problems: Problems,
        row: int,
        before: np.ndarray,
        tokens: np.ndarray,
        q_halt: float,
        number: int,
    ) -> SolverStep:
        return SolverStep(
            step=number,
            answer=self.task.format(tokens),
            halt_probability=sigmoid(float(q_halt)),
            correct=self._check(problems.inputs[row], problems.labels[row], tokens),
            changed=int(np.count_nonzero(tokens != before)),
            tokens=tokens,
            subject=Subject(self.task, problems.inputs[row], self._known(problems.labels[row])),
            before=before,
        )

    def _known(self, labels: Optional[np.ndarray]) -> Optional[np.ndarray]:
        """Give labels that say of every cell what belongs there."""
        unsure = labels is None or bool((labels == IGNORE_LABEL_ID).any())
        return None if unsure else labels

    def _check(
        self, inputs: np.ndarray, labels: Optional[np.ndarray], tokens: np.ndarray
    ) -> Optional[bool]:
        try:
            return bool(self.task.check(inputs, tokens))
        except DataError:  # the base class's: this task has no rules
            if labels is None:
                return None
            return self.task.equal(tokens, np.where(labels == IGNORE_LABEL_ID, tokens, labels))

    def _count(self, steps: Optional[int]) -> int:
        count = steps if steps is not None else self.config.eval.steps
        count = count if count is not None else int(self.model.config.halt_max_steps)
        if count < 1:
            raise ValueError(f"steps must be at least 1, got {count}")
        return count
