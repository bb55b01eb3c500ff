"""What cannot be read just now is not damaged: a good cache is not thrown away because of it."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import edit_json, snapshot

from mlx_trm.datasets import arrays, names, reading
from mlx_trm.datasets.dataset import PuzzleDataset
from mlx_trm.errors import DamagedError, DataError
from mlx_trm.system import files
from mlx_trm.tasks.sudoku.task import Sudoku, SudokuConfig


@pytest.fixture(name="task")
def make_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sudoku:
    """A task whose training split is in the cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    task = Sudoku(SudokuConfig(name="sudoku", size=4, train_puzzles=4, test_puzzles=4), 0)
    task.dataset("train")
    return task


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("module, name", [(arrays, "open"), (files, "read_bytes"),
                                          (reading, "open"), (np, "memmap")])  # fmt: skip
def test_a_good_cache_stays(
    task: Sudoku, tmp_path: Path, monkeypatch: Any, module: Any, name: str, number: int
) -> None:
    """One line, and every file as it was; afterwards it is read as before."""
    before = snapshot(tmp_path / "cache")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "something else")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail, raising=False)
        with pytest.raises(DataError, match="cannot be read: something else") as caught:
            task.dataset("train")
        assert not isinstance(caught.value, DamagedError)
    assert snapshot(tmp_path / "cache") == before
    assert len(task.dataset("train")) == 4


@pytest.mark.parametrize("name", ["all__inputs.npy", "all__group_indices.npy", "dataset.json"])
def test_a_damaged_cache_is_built_anew(task: Sudoku, name: str) -> None:
    """Garbage in any file: the same puzzles are there again."""
    dataset = task.dataset("train")
    before, path = np.array(dataset.arrays["all"].inputs), dataset.path / name
    path.write_bytes(b"\x93NUMPY\x01\x00\x08\x00{'descr'")
    assert np.array_equal(task.dataset("train").arrays["all"].inputs, before)
    path.unlink()
    assert np.array_equal(task.dataset("train").arrays["all"].inputs, before)


def test_boundaries_without_a_sign_that_fall(task: Sudoku, tmp_path: Path) -> None:
    """Their differences are huge numbers, not negative ones."""
    task.build(tmp_path / "built", ("train",))
    (tmp_path / "built" / "build.json").unlink()
    path = tmp_path / "built" / "train" / "all__puzzle_indices.npy"
    held = np.load(path).astype(np.uint64)
    held[1], held[2] = held[2], held[1]
    np.save(path, held)
    with pytest.raises(DamagedError, match="must rise from 0 to 4"):
        PuzzleDataset.load(tmp_path / "built", "train")


def test_identifiers_beyond_32_bits(task: Sudoku, tmp_path: Path) -> None:
    """They would become other rows."""
    task.build(tmp_path / "built", ("train",))
    (tmp_path / "built" / "build.json").unlink()
    path = tmp_path / "built" / "train" / "all__puzzle_identifiers.npy"
    np.save(path, np.load(path).astype(np.int64) + 2**32)
    with pytest.raises(DamagedError, match="identifier 4294967296 is not in 0..0"):
        PuzzleDataset.load(tmp_path / "built", "train")


def test_splits_that_disagree_and_labels_that_do_not_count(
    task: Sudoku, tmp_path: Path, caplog: Any
) -> None:
    """A model would be asked for rows that it does not have; nothing could be scored."""
    task.build(tmp_path / "built")
    (tmp_path / "built" / "build.json").unlink()
    about = tmp_path / "built" / "test" / "dataset.json"
    edit_json(str(about), num_puzzle_identifiers=7)()
    for split in ("train", "test"):
        with pytest.raises(DamagedError, match="num_puzzle_identifiers is . in|is ., in"):
            PuzzleDataset.load(tmp_path / "built", split)
    edit_json(str(about), num_puzzle_identifiers=1)()
    for split in ("train", "test"):
        path = tmp_path / "built" / split / "all__labels.npy"
        np.save(path, np.load(path) * 0)
    with pytest.raises(DamagedError, match="all__labels.npy: every label is 0, .* not scored"):
        PuzzleDataset.load(tmp_path / "built", "train")
    assert len(PuzzleDataset.load(tmp_path / "built", "test")) == 4  # a contest's
    assert "all__labels.npy: holds no answers, every label is 0; nothing is scored" in caplog.text


def test_names_that_are_too_few(tmp_path: Path, monkeypatch: Any) -> None:
    """Rows of a table would follow other puzzles; it was passed over, and numbers taken."""
    monkeypatch.setattr(names, "load_names", lambda folder: ["<blank>", "a"])
    spec = {
        "vocab_size": 3,
        "seq_len": 1,
        "num_puzzle_identifiers": 3,
        "pad_id": 0,
        "blank_identifier_id": 0,
        "ignore_label_id": 0,
        "sets": ["all"],
        "total_groups": 1,
    }
    (tmp_path / "train").mkdir()
    files.write_json(tmp_path / "train" / "dataset.json", spec)
    with pytest.raises(DamagedError, match="has 2 names, the dataset has 3 identifiers"):
        names.load_all_names(tmp_path, "train")
