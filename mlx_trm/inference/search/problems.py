"""Puzzles that are to be solved: read from text or tokens, with what is known of them."""

import heapq
import logging
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Union

import mlx.core as mx
import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets.names import number_rows
from mlx_trm.errors import DataError, shown
from mlx_trm.inference.search.draws import hashed_order
from mlx_trm.models import RecursiveModel
from mlx_trm.models.carry import IGNORE_LABEL_ID
from mlx_trm.tasks import PuzzleDataset, Task

_READ_ROWS = 1024
LOG = logging.getLogger(__name__)

# A puzzle: text as the task reads it, or its (S,) tokens, whole numbers of any kind.
Puzzle = Union[str, np.ndarray, mx.array, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Problem:
    """One puzzle of a search.

    Attributes:
        place: where it stands among those given, from 0.
        inputs: (S,) uint8 tokens.
        identifier: row of the puzzle table.
        labels: (S,) tokens of its answer, IGNORE_LABEL_ID where any will do; None: not known.
        rating: how hard it is, as its file says; None: not known.
        source: where it comes from, as its file says; empty: not known.
    """

    place: int
    inputs: np.ndarray
    identifier: int = 0
    labels: Optional[np.ndarray] = field(default=None, repr=False)
    rating: Optional[int] = None
    source: str = ""


def file_problems(task: Task, path: Union[str, Path]) -> Iterator[Problem]:
    """Read the puzzles of a file with their answers, ratings and sources, part by part.

    Raises:
        DataError: at the first thing wrong with the file.
    """
    places, blank = count(), task.spec.blank_identifier_id
    for part in task.read_file(path):
        labels = ignore_padding(part.labels, task.spec)
        for row, inputs in enumerate(part.inputs):
            rating = None if part.ratings is None else int(part.ratings[row])
            source = "" if part.sources is None else part.sources[row]
            # Copies, so that no puzzle keeps the whole part in memory.
            yield Problem(next(places), inputs.copy(), blank, labels[row].copy(), rating, source)


def dataset_problems(dataset: PuzzleDataset) -> Iterator[Problem]:
    """Give all examples of a built split; their source is their set, where there are several."""
    places, several = count(), len(dataset.sets) > 1
    for name, arrays, size in dataset.eval_batches(_READ_ROWS):
        for row in range(size):
            inputs = arrays["inputs"][row].astype(np.uint8)
            identifier = int(arrays["puzzle_identifiers"][row])
            labels = arrays["labels"][row].copy()
            yield Problem(next(places), inputs, identifier, labels, source=name if several else "")


def ignore_padding(labels: np.ndarray, spec: TaskSpec) -> np.ndarray:
    """Give labels as int32, IGNORE_LABEL_ID where the task's do not count."""
    found = labels.astype(np.int32)
    if spec.ignore_label_id is not None:
        found[found == spec.ignore_label_id] = IGNORE_LABEL_ID
    return found


def sample_problems(problems: Iterable[Problem], most: int, seed: int) -> List[Problem]:
    """Draw puzzles; each one's tokens and the seed alone decide whether it comes before others.

    The order of the puzzles makes no difference, and of those of a larger sample a smaller one has
    the first. No more than the sample is held.

    Args:
        problems: of any number.
        most: how many are drawn, where there are as many.
        seed: of the sample.

    Returns:
        The sample, in the order in which the puzzles came.
    """
    hashed = ((hashed_order(seed, each.inputs), each.place, each) for each in problems)
    drawn = heapq.nsmallest(most, hashed, key=lambda entry: entry[:2])
    return sorted((each for _, _, each in drawn), key=lambda each: each.place)


class Problems(NamedTuple):
    """Puzzles to solve: (n, S) uint8 inputs, (n,) int32 identifiers, answers where known."""

    inputs: np.ndarray
    identifiers: np.ndarray
    labels: List[Optional[np.ndarray]]

    def take(self, rows: Iterable[int]) -> "Problems":
        """Give some of the puzzles, perhaps more than once."""
        chosen = list(rows)
        return Problems(
            self.inputs[chosen], self.identifiers[chosen], [self.labels[i] for i in chosen]
        )


class PuzzleReader:
    """Reads puzzles, and looks up what the task and the model know of them."""

    def __init__(
        self, task: Task, model: RecursiveModel, row_names: Optional[Sequence[str]]
    ) -> None:
        """Prepare to read.

        Args:
            task: reads text and knows its data.
            model: has the dimensions that puzzles need.
            row_names: of the model's puzzle table, None where they are not known.
        """
        self.task = task
        self._model = model
        self._rows = None if row_names is None else number_rows(row_names)

    def stream(self, puzzles: Iterable[Puzzle]) -> Iterator[Problem]:
        """Read puzzles one by one, each when it is asked for.

        Raises:
            DataError: if one cannot be read, saying which.
        """
        for place, puzzle in enumerate(puzzles):
            try:
                found = self.read([puzzle])
            except DataError as error:
                raise DataError(f"puzzle {place + 1}: {error}") from error
            yield Problem(place, found.inputs[0], int(found.identifiers[0]), found.labels[0])

    def read(
        self,
        puzzles: Union[Sequence[Puzzle], np.ndarray, mx.array],
        identifier: Optional[int] = None,
        answer: Optional[np.ndarray] = None,
    ) -> Problems:
        """Read puzzles, and look up what the task's data know of them, unless it is given."""
        rows = np.zeros((len(puzzles), self._model.spec.seq_len), dtype=np.uint8)
        texts: List[str] = []
        for i, puzzle in enumerate(puzzles):
            try:
                if isinstance(puzzle, str):
                    rows[i] = self.task.parse(puzzle)
                else:
                    rows[i] = self.check_tokens(puzzle)
                    puzzle = self.task.format(rows[i])  # by which the task's data know it
                texts.append(puzzle)
            except DataError as error:
                if len(puzzles) == 1:
                    raise
                raise DataError(f"puzzle {i + 1}: {error}") from error
        numbers = [self._identifier(text) if identifier is None else identifier for text in texts]
        table = self._model.spec.num_puzzle_identifiers
        blank = self._model.spec.blank_identifier_id
        for text, number in zip(texts, numbers):
            if number >= table > 1 and self._model.config.puzzle_emb_ndim:
                LOG.warning(
                    "%s: has row %d by its data, and the model's puzzle table only %d; the model "
                    "knows no rule for it",
                    shown(text.replace("\n", "/"), 60),
                    number,
                    table,
                )
        numbers = [number if 0 < number < table else blank for number in numbers]
        labels = [self.task.known_answer(text) if answer is None else answer for text in texts]
        return Problems(rows, np.array(numbers, dtype=np.int32), labels)

    def check_tokens(self, values: Any, where: str = "", ignored: bool = False) -> np.ndarray:
        """Give tokens as an array of (S,) whole numbers.

        Args:
            values: what the caller says are tokens.
            where: put before the message.
            ignored: whether IGNORE_LABEL_ID may be among them.

        Raises:
            DataError: if they are anything else.
        """
        spec = self._model.spec
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
            LOG.warning("%s: the model's puzzle table has no row of this name", shown(name))
        return number
