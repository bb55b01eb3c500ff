"""Test puzzles that are training examples too: their answers are learnt by heart."""

from typing import Iterator, Optional

import numpy as np

from mlx_trm.datasets.dataset import PuzzleDataset

# Larger splits are not read through: it would take seconds. 1,000 Sudoku with 1,000 augmentations
# each have 81 MB.
MOST_BYTES = 1 << 28
_BLOCK_ROWS = 1 << 14


def count_shared(train: PuzzleDataset, test: PuzzleDataset) -> Optional[int]:
    """Count the test examples whose inputs are those of a training example.

    Args:
        train: the split for training.
        test: the split for testing, of the same length of puzzles.

    Returns:
        How many; None where a split is too large to be looked at.
    """
    sizes = [data.inputs.nbytes for part in (train, test) for data in part.arrays.values()]
    if sum(sizes) > MOST_BYTES or train.spec.seq_len != test.spec.seq_len:
        return None
    # Numbers without a sign overflow without harm; two rows that differ are alike once in 2^64.
    factors = np.random.Generator(np.random.Philox(0)).integers(
        0, 2**64, train.spec.seq_len, np.uint64, endpoint=False
    )
    trained, tested = (np.concatenate(list(_hashes(part, factors))) for part in (train, test))
    return int(np.isin(tested, trained).sum())


def _hashes(dataset: PuzzleDataset, factors: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a number for each example, (n,) uint64, in blocks."""
    for data in dataset.arrays.values():
        for at in range(0, len(data.inputs), _BLOCK_ROWS):
            yield data.inputs[at : at + _BLOCK_ROWS].astype(np.uint64) @ factors
