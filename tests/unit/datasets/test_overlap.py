"""Test puzzles that are training examples too are counted, over several sets and folders."""

from pathlib import Path
from typing import Any

import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets import dataset as module
from mlx_trm.datasets.dataset import PuzzleDataset
from mlx_trm.datasets.reading import SetArrays

SPEC = TaskSpec(vocab_size=9, seq_len=5)


def dataset(*parts: np.ndarray) -> PuzzleDataset:
    """A split of sets with these inputs."""
    sets = {}
    for number, inputs in enumerate(parts):
        edges = np.arange(len(inputs) + 1)
        held = inputs.astype(np.uint8)
        sets[f"s{number}"] = SetArrays(held, held, np.zeros(len(inputs), int), edges, edges)
    return PuzzleDataset(Path("x"), SPEC, sets)


def test_shared_inputs(monkeypatch: Any) -> None:
    """Wherever they stand, each as often as it is tested; one cell makes another puzzle."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 3)
    rows = np.random.default_rng(0).permutation(9**5)[:40]
    cells = np.stack([rows // 9**power % 9 for power in range(5)], axis=1)
    train, test = cells[:30], cells[30:].copy()
    assert dataset(train[:11], train[11:]).count_shared(dataset(test)) == 0
    test[2], test[7], test[9] = train[29], train[0], train[0]
    assert dataset(train[:11], train[11:]).count_shared(dataset(test[:4], test[4:])) == 3
    test[2, 4] = (test[2, 4] + 1) % 9
    assert dataset(train).count_shared(dataset(test)) in (2, 3)  # it may be another one's
    monkeypatch.setattr(module, "_MOST_SEARCHED", 100)
    assert dataset(train).count_shared(dataset(test)) is None
