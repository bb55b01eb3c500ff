"""Scores a model on a task's puzzles: every row runs the same number of supervision steps.

Reference: ``evaluate`` in pretrain.py.
"""

from typing import Any, Callable, Dict, Iterable, Optional, Tuple, Union

import mlx.core as mx
import numpy as np

from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import ConfigError, did_you_mean
from mlx_trm.inference.scoring import SearchScores, judge_exactly, wilson_interval
from mlx_trm.inference.search import Problem, Result, Search, SearchSettings
from mlx_trm.inference.search.draws import plain_starts
from mlx_trm.inference.step import EvaluationStep, merge_weights, read_answers
from mlx_trm.models import RecursiveModel
from mlx_trm.models.base import Tree
from mlx_trm.models.carry import IGNORE_LABEL_ID, Batch
from mlx_trm.models.losses import act_loss, metric_values
from mlx_trm.models.memory import cap_evaluation_rows
from mlx_trm.system.processes import Processes
from mlx_trm.system.streams import give_back_cores
from mlx_trm.tasks import PuzzleDataset, ScoredRows, Task, build_task

Metrics = Dict[str, float]

# What every evaluation has; a task's scorer adds its own.
SUMMED = "count accuracy exact_accuracy q_halt_accuracy steps lm_loss q_halt_loss".split()
METRIC_NAMES = ["exact_accuracy", "accuracy", "lm_loss", "q_halt_loss", "q_halt_accuracy", "steps"]
Progress = Callable[[int, int], None]


class Evaluator:
    """Evaluates a model on the splits of its task.

    Attributes:
        model: the model; its own weights are used unless :meth:`run` is given others.
        config: the experiment it belongs to.
        task: built from the configuration, or the one given.
        files: what the last run's scorers have to keep, by set and file name: ARC's submission.
    """

    def __init__(
        self,
        model: RecursiveModel,
        config: ExperimentConfig,
        task: Optional[Task] = None,
        processes: Optional[Processes] = None,
    ) -> None:
        """Prepare an evaluation; nothing is read or computed yet.

        Args:
            model: its own weights are used unless :meth:`run` is given others.
            config: the experiment it belongs to.
            task: default the one that the configuration names.
            processes: that share the batches; default this one alone.
        """
        self.processes = processes or Processes()
        self.model = model
        self.config = config
        self.task = task or build_task(config.task, config.task_seed)
        self.files: Dict[str, Dict[str, str]] = {}
        self._reason = EvaluationStep.configured(model, config, short=False)

    def run(
        self,
        split: str = "test",
        max_examples: Optional[int] = None,
        steps: Optional[int] = None,
        weights: Optional[Tree] = None,
        on_progress: Optional[Progress] = None,
        rows_of: Optional[np.ndarray] = None,
    ) -> Dict[str, Metrics]:
        """Evaluate a split.

        Args:
            split: ``train`` or ``test``.
            max_examples: a seeded sample of so many puzzles; default ``eval.max_examples``.
            steps: supervision steps; default ``eval.steps``, else the model's halt_max_steps.
            weights: a tree to use instead of the model's own, such as an EMA.
            on_progress: called with (puzzles done, puzzles in all) after each batch.
            rows_of: (N,) rows of the puzzle table that puzzles get instead of row 0, 1, ...; see
                :func:`ablated_rows`. What is scored, and how, stays.

        Returns:
            Metrics of each set by name: ``count``; shares ``exact_accuracy`` (with its 95 % Wilson
            interval ``exact_accuracy_low`` and ``_high``), ``accuracy`` of cells and
            ``q_halt_accuracy``; means ``lm_loss`` and ``q_halt_loss``; ``steps``; and what the
            task's own scorer adds.

        Raises:
            ConfigError: if the data do not fit the model, or a row not into the memory limit.
            DataError: if the data cannot be read.
        """
        dataset = self.task.dataset(split)
        check_dimensions(self.model, dataset)
        self.files = {}
        if max_examples is None:
            max_examples = self.config.eval.max_examples
        total = min(len(dataset), max_examples or len(dataset))
        rows = self._rows(max(1, total))
        sums: Dict[str, Metrics] = {}
        scorers: Dict[str, Any] = {}
        done = 0
        was_training = self.model.training
        self.model.eval()
        try:
            batches = dataset.eval_batches(rows, max_examples, seed=self.config.seed)
            for number, (name, arrays, size) in enumerate(batches):
                done += size
                if name not in scorers:
                    scorers[name] = self.task.scorer(dataset.source(name))
                    sums[name] = dict.fromkeys(SUMMED, 0.0)
                if number % self.processes.size != self.processes.rank:
                    continue
                predictions, q_halt, metrics = self._batch(arrays, steps, weights, rows_of)
                for key, value in metrics.items():
                    sums[name][key] = sums[name].get(key, 0.0) + value
                if scorers[name] is not None:
                    scorers[name].update(
                        ScoredRows(
                            arrays["inputs"][:size],
                            arrays["labels"][:size],
                            predictions[:size],
                            arrays["puzzle_identifiers"][:size],
                            q_halt[:size],
                            arrays["places"][:size],
                        )
                    )
                if on_progress is not None:
                    on_progress(done, total)
        finally:
            self.model.train(was_training)
        for name, held in sums.items():
            sums[name], scorers[name] = self._of_all(held, scorers[name])
        self.files = {
            name: files
            for name, files in ((n, s.files()) for n, s in scorers.items() if s is not None)
            if files
        }
        return {name: _means(held, scorers[name]) for name, held in sums.items()}

    def _rows(self, most: int) -> int:
        """Give the rows of a batch: as many in every process, so that all cut the same batches."""
        rows = min(self.config.eval.batch_size or self.config.train.batch_size, most)
        fitting = mx.array([cap_evaluation_rows(self.model, rows, self._reason.memory_limit)])
        return int(np.array(self.processes.gather(fitting)).min())

    def _count(self, steps: Optional[int]) -> int:
        """Give the supervision steps of an evaluation."""
        return int(steps or self.config.eval.steps or self.model.config.halt_max_steps)

    def search(
        self,
        problems: Iterable[Problem],
        settings: SearchSettings,
        on_result: Optional[Callable[[Result], None]] = None,
        on_done: Optional[Callable[[int], None]] = None,
    ) -> Dict[str, Any]:
        """Solve puzzles by a search, and count in one pass what it reached and cost.

        Args:
            problems: with their labels; read when they are needed.
            settings: how to solve them; steps by default as for :meth:`run`.
            on_result: called with each result, in order.
            on_done: called with the number of puzzles done so far.

        Returns:
            What :meth:`SearchScores.report` says.

        Raises:
            ConfigError: if the task or the model lacks what the settings need.
            DataError: if a puzzle cannot be read.
        """
        check_dimensions(self.model, self.task)
        steps = self._count(settings.steps)
        search = Search(self.model, self.task, settings, steps, self._reason, judge=judge_exactly)
        scores = SearchScores(settings, steps, self.task.has_rules)
        for result in search.run(problems, scores.marks, scores.everything, on_done):
            scores.add(result)
            if on_result is not None:
                on_result(result)
        return scores.report()

    def _of_all(self, sums: Metrics, scorer: Any) -> Tuple[Metrics, Any]:
        """Add up what the processes have counted; each gets everything."""
        if self.processes.size == 1:
            return sums, scorer
        state = {} if scorer is None else scorer.state()
        mine = {f"sum.{name}": np.array(value) for name, value in sums.items()}
        mine.update({f"state.{name}": value for name, value in state.items()})
        total: Metrics = {}
        for rank, found in enumerate(self.processes.gather_arrays(mine)):
            for name in (key[len("sum.") :] for key in found if key.startswith("sum.")):
                total[name] = total.get(name, 0.0) + float(found[f"sum.{name}"])
            if scorer is not None and rank != self.processes.rank:
                scorer.merge({k[6:]: v for k, v in found.items() if k.startswith("state.")})
        return total, scorer

    def check_metric(self, setting: str, name: str) -> None:
        """Refuse the name of a metric that no evaluation of the test split has.

        Raises:
            ConfigError: naming the setting and what there is.
        """
        dataset = self.task.dataset("test")
        # All of them, so that what a scorer lacks is found before the first step.
        scorers = [self.task.scorer(dataset.source(each)) for each in dataset.sets]
        known = METRIC_NAMES + (list(scorers[0].result()) if scorers[0] is not None else [])
        if name not in known:
            raise ConfigError(
                f"{setting}: no metric {name!r}{did_you_mean(name, known)} "
                f"(there are {', '.join(known)})"
            )

    def _batch(
        self,
        arrays: Dict[str, np.ndarray],
        asked: Optional[int],
        weights: Optional[Tree],
        rows_of: Optional[np.ndarray],
    ) -> Tuple[np.ndarray, np.ndarray, Metrics]:
        """Run one batch; give (n, S) predictions, (n,) q_halt and sums over the labelled rows."""
        steps = self._count(asked)
        if rows_of is not None:
            arrays = {**arrays, "puzzle_identifiers": rows_of[arrays["puzzle_identifiers"]]}
        batch = Batch(*(mx.array(arrays[name]) for name in Batch._fields))
        tree = self.model.weights()
        starts = plain_starts(self.model, arrays["inputs"])
        carry = self.model.begin(self.model.initial_carry(batch), batch, starts)
        rows = self.model.puzzle_rows(carry)
        if weights is not None:
            tree = merge_weights(tree, weights)
        with self._reason.limit_memory(batch.inputs.shape[0]):
            for _ in range(steps):
                carry, outputs = self._reason(tree, carry, rows)
                # Python makes the next step's graph while this step is computed.
                mx.async_eval(carry.pack(), outputs.logits, outputs.q_halt)
            mx.eval(outputs.logits)
        give_back_cores()
        count = mx.full(carry.steps.shape, steps, dtype=mx.int32)
        _, metrics = act_loss(
            outputs,
            carry.current.labels,
            mx.ones_like(carry.halted),
            count,
            self.config.train.loss,
            skip_unlabelled=True,
        )
        mx.eval(metrics)
        predictions = np.array(read_answers(self.task, outputs.logits)).astype(np.uint8)
        values, q_halt = metric_values(metrics), np.array(outputs.q_halt)
        if self.task.decoder is not None:  # the loss counts each cell's most probable token
            values.update(_count_right(predictions, arrays["labels"], q_halt))
        return predictions, q_halt, values


def ablated_rows(model: RecursiveModel, kind: str, seed: int = 0) -> Optional[np.ndarray]:
    """Give the row of the puzzle table that stands for each, to see what the rows are worth.

    Args:
        model: with a puzzle table.
        kind: ``own``: as in training; ``blank``: the blank one for all, which no training has
            touched; ``random``: each puzzle gets another one's.
        seed: decides whose.

    Returns:
        (N,) int32; None for ``own``.

    Raises:
        ConfigError: if there is no table, or there are no other rows in it.
    """
    if kind == "own":
        return None
    count, blank = model.spec.num_puzzle_identifiers, model.spec.blank_identifier_id
    named = np.delete(np.arange(count, dtype=np.int32), blank)
    if not model.config.puzzle_emb_ndim or len(named) < 2:
        raise ConfigError(
            f"identifiers {kind}: the model's puzzle table has no rows of several puzzles"
        )
    rows = np.full(count, blank, dtype=np.int32)
    if kind == "random":
        order = np.random.default_rng(seed).permutation(named)
        rows[order] = np.roll(order, 1)  # one circle, so that nobody keeps a row
    return rows


def check_dimensions(model: RecursiveModel, dataset: Union[PuzzleDataset, Task]) -> None:
    """Refuse data that a model was not made for; a task's, as far as it knows their number.

    Raises:
        ConfigError: naming each dimension that differs.
    """
    have, want = dataset.spec, model.spec
    problems = [
        f"{name} is {getattr(have, name)}, the model was made for {getattr(want, name)}"
        for name in ("vocab_size", "seq_len")
        if getattr(have, name) != getattr(want, name)
    ]
    # Without a table the identifiers are never looked up.
    known = isinstance(dataset, PuzzleDataset) and model.config.puzzle_emb_ndim
    if known and have.num_puzzle_identifiers > want.num_puzzle_identifiers:
        problems.append(
            f"num_puzzle_identifiers is {have.num_puzzle_identifiers}, the model's puzzle table "
            f"has {want.num_puzzle_identifiers} rows"
        )
    if problems:
        raise ConfigError(f"the data do not fit the model: {'; '.join(problems)}; name other data")


def _count_right(predictions: np.ndarray, labels: np.ndarray, q_halt: np.ndarray) -> Metrics:
    """Sum what :func:`act_loss` does of right cells and answers, for answers read otherwise."""
    valid = labels != IGNORE_LABEL_ID
    counts = valid.sum(axis=1)
    right = (valid & (predictions == labels)).sum(axis=1)
    exact, counted = right == counts, counts > 0
    return {
        "accuracy": float((right / np.maximum(counts, 1))[counted].sum()),
        "exact_accuracy": float(exact[counted].sum()),
        "q_halt_accuracy": float(((q_halt >= 0) == exact)[counted].sum()),
    }


def _means(sums: Metrics, scorer: Any) -> Metrics:
    count = sums["count"]
    result = {"count": count}
    if count:
        low, high = wilson_interval(sums["exact_accuracy"], count)
        for name, value in sums.items():
            result[name] = value / count if name != "count" else value
        result.update(exact_accuracy_low=low, exact_accuracy_high=high)
    if scorer is not None:
        result.update(scorer.result())
    return result
