"""Test pairs that are trained on, and tasks that would become too much."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_arc import TASKS, pair

from mlx_trm.errors import DataError
from mlx_trm.tasks.arc import builder
from mlx_trm.tasks.arc.builder import check_amount
from mlx_trm.tasks.arc.files import ArcTask
from mlx_trm.tasks.arc.task import ARC, ARCConfig


def task(tmp_path: Path, tasks: Any, **settings: Any) -> ARC:
    """An ARC task of the subsets ``a`` and ``b``, the latter for testing."""
    for subset, held in tasks.items():
        (tmp_path / f"p_{subset}_challenges.json").write_text(json.dumps(held))
    return ARC(ARCConfig(**{"name": "arc", "input_file_prefix": str(tmp_path / "p"), "num_aug": 2,
                            "subsets": ["a", "b"], "test_set_name": "b", "max_grid_size": 6,
                            **settings}), 0)  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datasets of these tests are their own."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def test_test_pairs_that_are_trained_on(tmp_path: Path, caplog: Any) -> None:
    """One of three, under another name: said when it is built, and when it is opened again."""
    shared = {"a": {"other": {"train": [pair(1)], "test": [pair(6)]}}, "b": TASKS["b"]}
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            task(tmp_path, shared).dataset("test")
        assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
            "1 of 3 test pairs are training examples too, such as e1:2; the model learns their "
            "answers by heart, so leave out a subset of task.subsets"
        ]


def test_nothing_is_said_where_none_is(tmp_path: Path, caplog: Any) -> None:
    """An input alone, with another answer, is no pair that is trained on."""
    alike = {**pair(6), "output": [[7]]}
    tasks = {"a": {"other": {"train": [pair(1)], "test": [alike]}}, "b": TASKS["b"]}
    with caplog.at_level(logging.WARNING):
        task(tmp_path, tasks).dataset("test")
    assert not caplog.records


def test_solutions_of_tasks_that_are_not_there(tmp_path: Path, caplog: Any) -> None:
    """They are counted and named, and the rest is read."""
    solutions = {"t1": [pair(3)["output"]], "gone": [[[1]]], "too": [[[1]]]}
    (tmp_path / "p_a_solutions.json").write_text(json.dumps(solutions))
    with caplog.at_level(logging.WARNING):
        assert list(task(tmp_path, TASKS).plans(np.random.RandomState(0)))
    assert "has solutions of 2 tasks that are not in" in caplog.text and "gone" in caplog.text


def test_more_puzzles_than_can_be_built(tmp_path: Path, monkeypatch: Any) -> None:
    """Tasks and augmentations, over all subsets; or the pairs of one task."""
    monkeypatch.setattr(builder, "MOST_PUZZLES", 8)
    with pytest.raises(DataError, match="with it there are 3 tasks with 2 augmentations each"):
        task(tmp_path, TASKS).dataset("train")
    assert task(tmp_path, TASKS, num_aug=1).dataset("train")
    grid = np.zeros((1, 1), np.uint8)
    large = ArcTask("big", {"train": [(grid, grid)] * 100_000}, {})
    monkeypatch.undo()
    with pytest.raises(DataError, match="x: task big: 100,000 pairs with 1,000 augmentations"):
        check_amount([large], 0, 1000, 30, "x")


def test_the_largest_there_is_can_be_built() -> None:
    """ARC-AGI-1 with ConceptARC: 960 tasks of up to 14 pairs, a thousand augmentations."""
    grid = np.zeros((30, 30), np.uint8)
    tasks = [ArcTask(str(n), {"train": [(grid, grid)] * 14}, {}) for n in range(960)]
    assert check_amount(tasks, 1120, 1000, 30, "x") == 2080
