"""The examples of a split's sets as one, in the order in which training takes them.

Reference: puzzle_dataset.py ``_iter_train``, ``_sample_batch``.
"""

from typing import Iterator, List, Tuple

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
        rng = np.random.Generator(bits)
        groups = np.concatenate([rng.permutation(len(self.groups) - 1) for _ in range(epochs)])
        sizes = np.diff(self.puzzles)
        if (sizes == 1).all():
            for at in range(0, len(groups) - batch_size + 1, batch_size):
                group = groups[at : at + batch_size]
                # One call draws what the reference draws one by one.
                puzzle = rng.integers(self.groups[group], self.groups[group + 1])
                yield self.puzzles[puzzle], puzzle
            return
        at = 0
        while at < len(groups):
            rows: List[np.ndarray] = []
            chosen: List[np.ndarray] = []
            room = batch_size
            while at < len(groups) and room:
                puzzle = int(rng.integers(self.groups[groups[at]], self.groups[groups[at] + 1]))
                at += 1
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


def _joined(boundaries: List[np.ndarray]) -> np.ndarray:
    """Put the boundaries of several sets one after the other."""
    joined = [np.zeros(1, dtype=np.int64)]
    for part in boundaries:
        joined.append(joined[-1][-1] + part[1:].astype(np.int64))
    return np.concatenate(joined)
