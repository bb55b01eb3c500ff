"""The examples of a split's sets as one, in the order in which training takes them.

Reference: puzzle_dataset.py ``_iter_train``, ``_sample_batch``.
"""

from copy import deepcopy
from itertools import chain
from typing import Iterable, Iterator, List, Tuple

import numpy as np

from mlx_trm.datasets.reading import SetArrays


class Pool:
    """The sets of a split as one.

    Attributes:
        identifiers: (P,) rows of the puzzle table, of the puzzles of all sets.
        puzzles: (P + 1,) the examples of puzzle p are [p] to [p + 1] - 1.
        groups: (G + 1,) the puzzles of group g are [g] to [g + 1] - 1.
    """

    # Differs from reference: it trains the sets of a dataset one after the other; here they mix.

    def __init__(self, sets: List[SetArrays]) -> None:
        self.sets = sets
        self.starts = np.cumsum([0] + [len(s.inputs) for s in sets])
        self.identifiers = np.concatenate([s.puzzle_identifiers for s in sets])
        self.puzzles = _joined([s.puzzle_indices for s in sets])
        self.groups = _joined([s.group_indices for s in sets])

    def order(
        self, batch_size: int, bits: np.random.Philox, epochs: int
    ) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Yield (B,) examples and (B,) puzzles of each batch."""
        passes, rng = self._passes(bits, epochs)
        sizes = np.diff(self.puzzles)
        if (sizes == 1).all():
            for group in _cut(passes, batch_size):
                # One call draws what the reference draws one by one.
                puzzle = rng.integers(self.groups[group], self.groups[group + 1])
                yield self.puzzles[puzzle], puzzle
            return
        rows: List[np.ndarray] = []
        chosen: List[np.ndarray] = []
        room = batch_size
        for group in chain.from_iterable(passes):
            puzzle = int(rng.integers(self.groups[group], self.groups[group + 1]))
            take = min(int(sizes[puzzle]), room)
            # Differs from reference: it draws these from NumPy's global generator; here one
            # seed decides everything. A puzzle with one example draws nothing.
            picked = np.zeros(take, dtype=np.int64)
            if sizes[puzzle] > 1:
                picked = rng.choice(int(sizes[puzzle]), take, replace=False)
            rows.append(self.puzzles[puzzle] + picked)
            chosen.append(np.full(take, puzzle))
            room -= take
            if not room:
                yield np.concatenate(rows), np.concatenate(chosen)
                rows, chosen, room = [], [], batch_size

    def _passes(
        self, bits: np.random.Philox, epochs: int
    ) -> Tuple[Iterator[np.ndarray], np.random.Generator]:
        """Give the groups in the order of each pass, and the generator for what is drawn later.

        The reference draws the orders of all passes before anything else. Many passes would not
        fit into memory, so they are drawn one at a time, and twice: at once, to know where the
        generator is after them, and when they are used. Where each group is one example, nothing
        is drawn later.
        """
        count = len(self.groups) - 1
        first, later = np.random.Generator(bits), np.random.Generator(deepcopy(bits))
        if self.puzzles[-1] > count:
            for _ in range(epochs):
                later.permutation(count)
        return (first.permutation(count) for _ in range(epochs)), later

    def examples(self, rows: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Return the inputs and labels of examples, (B, S) each."""
        if len(self.sets) == 1:
            return self.sets[0].inputs[rows], self.sets[0].labels[rows]
        which = np.searchsorted(self.starts, rows, side="right") - 1
        inputs = np.empty((len(rows), self.sets[0].inputs.shape[1]), self.sets[0].inputs.dtype)
        labels = inputs.copy()
        for number, data in enumerate(self.sets):
            mine = which == number
            inputs[mine] = data.inputs[rows[mine] - self.starts[number]]
            labels[mine] = data.labels[rows[mine] - self.starts[number]]
        return inputs, labels


def _cut(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut arrays that follow one another into pieces of one size; a rest is dropped."""
    held = np.zeros(0, dtype=np.int64)
    for array in arrays:
        held = np.concatenate([held, array])
        whole = len(held) - len(held) % size
        yield from held[:whole].reshape(-1, size)
        held = held[whole:]


def _joined(boundaries: List[np.ndarray]) -> np.ndarray:
    """Put the boundaries of several sets one after the other."""
    joined = [np.zeros(1, dtype=np.int64)]
    for part in boundaries:
        joined.append(joined[-1][-1] + part[1:].astype(np.int64))
    return np.concatenate(joined)
