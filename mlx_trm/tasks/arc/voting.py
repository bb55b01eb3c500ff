"""Scores ARC by votes: every augmentation of a test input has one, and the most frequent win.

Each prediction is cropped, its augmentation undone, and counted for the test input that the row's
own input turns out to be. Answers are ranked by votes, then by the model's mean belief.

Reference: evaluators/arc.py ``ARC``.
"""

import json
import logging
from array import array
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.datasets.dataset import SetSource
from mlx_trm.datasets.names import NAMES_ADVICE, load_all_names
from mlx_trm.datasets.writing import TEST_PUZZLES
from mlx_trm.errors import DamagedError, shown
from mlx_trm.system.files import read_json
from mlx_trm.tasks.arc.files import Pair
from mlx_trm.tasks.arc.grids import CANVAS, check_grid, crop_sizes, cut_shape, parse_name
from mlx_trm.tasks.base import ScoredRows, Scorer

LOG = logging.getLogger(__name__)

PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2

# An answer where there is none: one black cell. Kaggle takes no empty grid.
NO_ANSWER = np.zeros((1, 1), dtype=np.uint8)

_ROUND = 1 << 40


class Votes:
    """The votes for one test input; grids are kept once, at two cells a byte.

    Attributes:
        grids: number of each different answer, by its packed bytes, in the order of arrival.
        order: of each vote, its place in the evaluation.
        grid: of each vote, the number of its answer.
        belief: of each vote, sigmoid(q_halt).
    """

    def __init__(self) -> None:
        """Start without votes."""
        self.grids: Dict[bytes, int] = {}
        self.order = array("q")
        self.grid = array("q")
        self.belief = array("d")

    def add(self, order: int, packed: bytes, belief: float) -> None:
        """Count a vote."""
        self.order.append(order)
        self.grid.append(self.grids.setdefault(packed, len(self.grids)))
        self.belief.append(belief)

    def ranking(self) -> List[bytes]:
        """Return the answers, the best first: most votes, then highest mean belief.

        Of equal ones the first that was seen comes first. Votes are summed in the order of the
        evaluation, however they arrived, so that sums round alike.
        """
        packed = list(self.grids)
        standing: Dict[int, List[float]] = {}
        for at in np.argsort(np.asarray(self.order), kind="stable").tolist():
            held = standing.setdefault(self.grid[at], [0, 0.0])
            held[0] += 1
            held[1] += self.belief[at]
        ranked = sorted(
            standing.items(), key=lambda item: (item[1][0], item[1][1] / item[1][0]), reverse=True
        )
        return [packed[number] for number, _ in ranked]


class ArcScorer(Scorer):
    """pass@K over the test inputs of each task, and a submission in Kaggle's format."""

    def __init__(
        self,
        names: Sequence[str],
        puzzles: Dict[str, List[Pair]],
        first_identifier: int = 0,
        size: int = CANVAS,
        complete: bool = True,
    ) -> None:
        """Start without votes.

        Args:
            names: of the identifiers; number 0 is the blank one, whose rows are not counted.
            puzzles: the test pairs of the test tasks, (H, W) uint8 grids, by name.
            first_identifier: what was added to the identifiers of this set.
            size: of the canvas.
            complete: whether every test input has its answer; otherwise one black cell stands for
                an answer that is not known, and such test inputs are not scored.
        """
        self.names = names
        self.first_identifier = first_identifier
        self.size = size
        self.inputs = {name: [pack(given) for given, _ in pairs] for name, pairs in puzzles.items()}
        nothing = None if complete else pack(NO_ANSWER)
        self.outputs: Dict[str, List[Optional[bytes]]] = {
            name: [None if pack(right) == nothing else pack(right) for _, right in pairs]
            for name, pairs in puzzles.items()
        }
        self._votes: Dict[Tuple[str, bytes], Votes] = {
            (name, given): Votes() for name, inputs in self.inputs.items() for given in inputs
        }
        self._round = 0

    def next_round(self) -> None:
        """Begin another evaluation: its votes count after those of earlier ones, which are kept."""
        self._round += 1

    def update(self, rows: ScoredRows) -> None:
        """Count the votes of some rows."""
        inputs, answers = np.asarray(rows.inputs), np.asarray(rows.predictions)
        input_sizes = crop_sizes(inputs, self.size).tolist()
        answer_sizes = crop_sizes(answers, self.size).tolist()
        with np.errstate(over="ignore"):
            beliefs = 1.0 / (1.0 + np.exp(-np.asarray(rows.q_halt, dtype=np.float64)))
        for at, identifier in enumerate(np.asarray(rows.puzzle_identifiers).tolist()):
            if not identifier:
                continue
            change = parse_name(self.names[identifier - self.first_identifier])
            given = change.undo(cut_shape(inputs[at], input_sizes[at], self.size))
            votes = self._votes.get((change.original, pack(given)))
            if votes is not None:
                answer = change.undo(cut_shape(answers[at], answer_sizes[at], self.size))
                order = self._round * _ROUND + int(rows.places[at])
                votes.add(order, pack(answer), float(beliefs[at]))

    def result(self) -> Dict[str, float]:
        """Return pass@K: a task scores the share of its test inputs that K answers solve.

        What has no known answer is left out; NaN where that leaves nothing.
        """
        solved = np.zeros(len(PASS_AT))
        silent = tasks = unknown = 0
        for name, inputs in self.inputs.items():
            right = np.zeros(len(PASS_AT))
            known = [pair for pair in zip(inputs, self.outputs[name]) if pair[1] is not None]
            unknown += len(inputs) - len(known)
            if not known:
                continue
            tasks += 1
            for given, output in known:
                ranking = self._votes[name, given].ranking()
                silent += not ranking
                place = ranking.index(output) if output in ranking else max(PASS_AT)
                right += [place < k for k in PASS_AT]
            solved += right / len(known)
        if 0 < unknown < len(self._votes):
            LOG.info("%d test inputs have no solution and are not scored", unknown)
        if 0 < silent < len(self._votes):
            LOG.info("%d test inputs have no prediction and count as unsolved", silent)
        means = solved / (tasks or np.nan)
        return {f"ARC/pass@{k}": float(mean) for k, mean in zip(PASS_AT, means)}

    # Differs from reference: it stops or leaves a gap where a test input has no prediction, and
    # may submit an empty grid; here every test input gets two grids.
    def submission(self) -> Dict[str, List[Dict[str, List[List[int]]]]]:
        """Return two attempts for every test input of every task, as Kaggle wants them."""
        found: Dict[str, List[Dict[str, List[List[int]]]]] = {}
        for name, inputs in self.inputs.items():
            found[name] = []
            for given in inputs:
                grids = [unpack(packed) for packed in self._votes[name, given].ranking()[:ATTEMPTS]]
                grids += [grids[0] if grids else NO_ANSWER] * (ATTEMPTS - len(grids))
                found[name].append(
                    {
                        f"attempt_{number}": (grid if grid.size else NO_ANSWER).tolist()
                        for number, grid in enumerate(grids, 1)
                    }
                )
        return found

    def files(self) -> Dict[str, str]:
        """Return ``submission.json``."""
        return {"submission.json": json.dumps(self.submission())}

    def state(self) -> Dict[str, np.ndarray]:
        """Return the votes of this round as arrays; every process has those of earlier ones."""
        first_of_round = self._round * _ROUND
        slots, grids, orders, beliefs = [], [], [], []
        sizes: List[int] = []
        blob = bytearray()
        for slot, votes in enumerate(self._votes.values()):
            packed = list(votes.grids)
            first = len(sizes)
            sizes += [len(grid) for grid in packed]
            blob += b"".join(packed)
            order = np.asarray(votes.order, dtype=np.int64)
            new = order >= first_of_round
            slots.append(np.full(int(new.sum()), slot, dtype=np.int64))
            grids.append(np.asarray(votes.grid, dtype=np.int64)[new] + first)
            orders.append(order[new])
            beliefs.append(np.asarray(votes.belief, dtype=np.float64)[new])
        none = np.zeros(0, dtype=np.int64)
        return {
            "slot": np.concatenate([none, *slots]),
            "grid": np.concatenate([none, *grids]),
            "order": np.concatenate([none, *orders]),
            "belief": np.concatenate([none.astype(np.float64), *beliefs]),
            "sizes": np.array(sizes, dtype=np.int64),
            "packed": np.frombuffer(bytes(blob), dtype=np.uint8),
        }

    def merge(self, state: Dict[str, np.ndarray]) -> None:
        """Add another scorer's votes."""
        blob = state["packed"].tobytes()
        ends = np.cumsum(state["sizes"]).tolist()
        packed = [blob[start:end] for start, end in zip([0, *ends], ends)]
        slots = list(self._votes.values())
        columns = (state[name].tolist() for name in ("slot", "order", "grid", "belief"))
        for slot, order, grid, belief in zip(*columns):
            slots[slot].add(order, packed[grid], belief)


def pack(grid: np.ndarray) -> bytes:
    """Write an (H, W) grid of colours as its shape and two cells a byte."""
    cells = np.append(grid.ravel(), np.zeros(grid.size % 2, dtype=np.uint8)).astype(np.uint8)
    return bytes(grid.shape) + (cells[0::2] << 4 | cells[1::2]).tobytes()


def unpack(packed: bytes) -> np.ndarray:
    """Read what :func:`pack` wrote, (H, W) uint8."""
    height, width = packed[:2]
    pairs = np.frombuffer(packed, dtype=np.uint8, offset=2)
    cells = np.column_stack([pairs >> 4, pairs & 15]).ravel()
    return cells[: height * width].reshape(height, width)


def load_scorer(source: SetSource, size: int = CANVAS, complete: bool = True) -> ArcScorer:
    """Make the scorer of a built dataset's test split; the arguments are those of the scorer.

    Raises:
        DataError: if its ``identifiers.json`` or ``test_puzzles.json`` cannot be used.
    """
    puzzles = load_puzzles(source.folder, size)
    names = load_all_names(source.folder, source.split)
    path = source.folder / TEST_PUZZLES
    unknown = sorted(set(puzzles) - set(names))
    if unknown or not puzzles:
        what = f"{shown(unknown[0])} has no identifier" if unknown else "is empty"
        raise DamagedError(f"{path}: {what}{NAMES_ADVICE}")
    return ArcScorer(names, puzzles, source.first_identifier, size, complete)


def load_puzzles(folder: Path, size: int = CANVAS, part: str = "test") -> Dict[str, List[Pair]]:
    """Read the pairs of the test tasks of a built dataset.

    Args:
        folder: of the data set.
        size: of the canvas.
        part: ``test``, or ``train`` for the pairs that show what a task asks for.

    Raises:
        DataError: if they cannot be read.
    """
    path = folder / TEST_PUZZLES
    try:
        return {
            name: [_pair(pair, f"{path}: {shown(name)}: {part} pair {i}", size) for i, pair in
                   enumerate(puzzle[part], 1)]
            for name, puzzle in read_json(path, dict, NAMES_ADVICE).items()
        }  # fmt: skip
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path}: is damaged; build the dataset again") from error


def _pair(pair: Any, where: str, size: int) -> Pair:
    given, answer = (
        check_grid(pair[side], f"{where} {side}", size) for side in ("input", "output")
    )
    return given, answer
