"""Writing datasets, the cache, and what every task does with them."""

import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List

import numpy as np
import pytest

from mlx_trm.config.sections import TaskConfig, TaskSpec
from mlx_trm.datasets.writing import whole_folder, write_dataset
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.system.files import cache_folder
from mlx_trm.tasks import Puzzle, PuzzleBlock, PuzzleDataset, Task, build_task

SPEC = TaskSpec(vocab_size=9, seq_len=3, num_puzzle_identifiers=1)


def puzzle(number: int, examples: int = 1, name: Any = None) -> Puzzle:
    """A puzzle whose cells tell which it is."""
    rows = np.arange(examples)[:, None] % 8 + 1
    inputs = np.concatenate([np.full((examples, 1), number % 9), rows, rows * 0 + 2], axis=1)
    labels = np.concatenate([rows, rows * 0, rows * 0 + 7], axis=1)
    return Puzzle(name, inputs.astype(np.uint8), labels.astype(np.uint8))


def written(folder: Path, groups: Any, spec: TaskSpec = SPEC, names: Any = None) -> PuzzleDataset:
    """Write a split and open it."""
    write_dataset(groups, folder / "train", spec, names)
    return PuzzleDataset.load(folder, "train")


def all_rows(dataset: PuzzleDataset, batch_size: int = 4) -> Dict[str, np.ndarray]:
    """Every example as evaluation sees it, without padding."""
    parts = [
        {key: array[:size] for key, array in batch.items()}
        for _, batch, size in dataset.eval_batches(batch_size)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def test_blocks_equal_lists(tmp_path: Path) -> None:
    """A block of nameless puzzles writes the bytes that lists of puzzles write."""
    puzzles = [puzzle(n) for n in range(6)]
    lists = [puzzles[:2], puzzles[2:4], puzzles[4:]]
    block = PuzzleBlock(
        np.concatenate([p.inputs for p in puzzles]), np.concatenate([p.labels for p in puzzles]), 2
    )
    write_dataset(lists, tmp_path / "a", SPEC)
    write_dataset([block], tmp_path / "b", SPEC)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    "group",
    [
        [Puzzle(None, np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8))],
        [Puzzle(None, np.zeros((1, 3)), np.zeros((1, 3)))],
        [Puzzle(None, np.zeros((2, 3), np.uint8), np.zeros((1, 3), np.uint8))],
        PuzzleBlock(np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8), 2),
    ],
)
def test_a_task_that_yields_other_shapes_hears_of_it(tmp_path: Path, group: Any) -> None:
    """The wrong width, dtype, number of labels, or a group size that does not divide."""
    with pytest.raises(DataError, match=r"groups\(\)"):
        write_dataset([group], tmp_path / "train", SPEC)


def test_a_token_that_is_none_is_the_tasks_fault(tmp_path: Path) -> None:
    """Said before the file is there to be called damaged, with the setting that forbids it."""
    rows = np.array([[1, 9, 2]], np.uint8)
    words = r"train labels of the task's groups\(\): token 9 is not in 0..8; spec.vocab_size is 9"
    with pytest.raises(DataError, match=words):
        write_dataset([[Puzzle(None, rows % 9, rows)]], tmp_path / "train", SPEC)


class Counting(Task):
    """A task that counts, for the tests of Task itself."""

    built = 0
    broken: Any = None

    @property
    def spec(self) -> TaskSpec:
        """Named puzzles."""
        return TaskSpec(9, 3, num_puzzle_identifiers=2 if self.config.train_file == "named" else 1)

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[List[Puzzle]]:
        """Two puzzles, the second of a seeded number."""
        type(self).built += 1
        named = self.config.train_file == "named"
        yield [puzzle(1, 1, split if named else None)]
        if self.broken is not None:
            raise self.broken
        yield [puzzle(int(rng.integers(9)), 2, "both" if named else None)]

    def content(self, split: str) -> Dict[str, Any]:
        """No file behind it."""
        return {"split": split, "seed": self.seed, "file": self.config.train_file}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> Path:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    Counting.built = 0
    return tmp_path / "cache"


def files(folder: Path) -> Dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_dataset_is_built_once(own_cache: Path) -> None:
    """Afterwards it comes from the cache, until something that matters changes."""
    config = TaskConfig(name="counting")
    first = Counting(config, 1).dataset("train")
    assert len(first) == 3 and Counting.built == 1
    assert len(Counting(config, 1).dataset("train")) == 3 and Counting.built == 1
    assert len(list(own_cache.iterdir())) == 1
    Counting(config, 2).dataset("train")
    assert Counting.built == 2
    Counting(config, 1).dataset("test")  # nameless: the splits are independent
    assert Counting.built == 3


def test_a_damaged_cache_is_mended(own_cache: Path, caplog: Any) -> None:
    """A cached dataset that cannot be opened is built again, with a warning that says why."""
    task = Counting(TaskConfig(name="counting"), 1)
    before = all_rows(task.dataset("train"))
    (broken,) = own_cache.glob("*/train/all__labels.npy")
    broken.write_bytes(broken.read_bytes()[:-5])
    after = all_rows(task.dataset("train"))
    assert Counting.built == 2 and "all__labels.npy: is damaged" in caplog.text
    assert all((before[key] == after[key]).all() for key in before)
    assert len(list(own_cache.iterdir())) == 1


def test_named_puzzles_are_numbered_over_both_splits() -> None:
    """A name has one row of the puzzle table, whichever split it stands in."""
    task = Counting(TaskConfig(name="counting", train_file="named"), 1)
    train, test = task.dataset("train"), task.dataset("test")
    assert Counting.built == 2
    assert train.spec.num_puzzle_identifiers == test.spec.num_puzzle_identifiers == 4
    assert all_rows(train)["puzzle_identifiers"].tolist() == [1, 2, 2]
    assert all_rows(test)["puzzle_identifiers"].tolist() == [3, 2, 2]
    names = json.loads((train.path.parent / "identifiers.json").read_text())
    assert names == ["<blank>", "train", "both", "test"]


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    """Built twice it is the same; another seed is not."""
    config = TaskConfig(name="counting")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Counting(config, seed).build(tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a").keys() == files(tmp_path / "c").keys()
    assert files(tmp_path / "a") != files(tmp_path / "c")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), DataError("bad row")])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, own_cache: Path, error: Any) -> None:
    """Neither a half dataset nor a temporary folder, in a new place, the cache, or an old one."""
    task = Counting(TaskConfig(name="counting"), 1)
    task.build(tmp_path / "old")
    before = files(tmp_path)
    task.broken = error
    for folder in (tmp_path / "new", tmp_path / "old"):
        with pytest.raises(type(error)):
            task.build(folder)
    with pytest.raises(type(error)):
        task.dataset("train")
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists() and not list(own_cache.iterdir())


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    """An empty folder or an earlier build is replaced; anything else is refused."""
    task = Counting(TaskConfig(name="counting"), 1)
    (tmp_path / "empty").mkdir()
    task.build(tmp_path / "empty")
    task.build(tmp_path / "empty")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty" / "train" / "notes.txt").write_text("mine")
    for name, message in (
        ("notes", "notes: is not empty and was not made by data build"),
        ("file", "file: is not a folder"),
        ("empty", "train: holds files that are not the dataset's"),
    ):
        before = files(tmp_path)
        with pytest.raises(DataError, match=message):
            task.build(tmp_path / name)
        assert files(tmp_path) == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where a parent folder should be: one line, with the place."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written: (Not a directory|File exists)"):
        Counting(TaskConfig(name="counting"), 1).build(tmp_path / "file" / "below")


def test_leftovers_of_killed_builds_go(own_cache: Path) -> None:
    """In the cache, after a day; what is younger may be somebody's at work."""
    for name, age in ((".old.x1", 90000), (".young.x2", 60)):
        (own_cache / name / "new" / "train").mkdir(parents=True)
        os.utime(own_cache / name, (time.time() - age,) * 2)
    Counting(TaskConfig(name="counting"), 1).dataset("train")
    assert sorted(p.name for p in own_cache.iterdir() if p.name[0] == ".") == [".young.x2"]


def test_a_cache_that_cannot_be_written(own_cache: Path) -> None:
    """The message says how to choose another place."""
    own_cache.write_text("a file")
    with pytest.raises(DataError, match="cannot be written: .*; MLX_TRM_CACHE can name another"):
        Counting(TaskConfig(name="counting"), 1).dataset("train")


def test_two_builders_of_the_same_cache_entry(tmp_path: Path) -> None:
    """Whoever comes second keeps what the first has put there."""
    target = tmp_path / "entry"
    with whole_folder(target, keep_existing=True) as mine:
        (mine / "x").write_text("second")
        target.mkdir()
        (target / "x").write_text("first")
    assert (target / "x").read_text() == "first"
    assert os.listdir(tmp_path) == ["entry"]


def test_a_plugins_code_is_part_of_the_key(tmp_path: Path, monkeypatch: Any) -> None:
    """A task outside the package is rebuilt when its file changes."""
    import importlib
    import linecache

    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from mlx_trm.tasks import Task\nclass Mine(Task):\n    def content(self, split):\n"
    path = tmp_path / "plugin_of_mine.py"
    path.write_text(source + "        return {}\n")
    module = importlib.import_module("plugin_of_mine")
    before = module.Mine(TaskConfig(name="mine"), 0).cache_key()
    assert before == module.Mine(TaskConfig(name="mine"), 0).cache_key()
    path.write_text(source + "        return {}  # other puzzles now\n")
    linecache.clearcache()
    module = importlib.reload(module)
    assert before != module.Mine(TaskConfig(name="mine"), 0).cache_key()


def test_a_cells_code_is_part_of_the_key(monkeypatch: Any) -> None:
    """A task of a notebook has no file; its methods are in a cell, which IPython keeps."""
    import linecache

    source = "class Mine(Task):\n    def content(self, split):\n        return {}\n"

    def key(cell: str, code: str) -> str:
        lines = code.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, cell, (len(code), None, lines, cell))
        names: Dict[str, Any] = {"__name__": "__main__", "Task": Task}
        exec(compile(code, cell, "exec"), names)  # pylint: disable=exec-used
        return str(names["Mine"](TaskConfig(name="mine"), 0).cache_key())

    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    assert key("<cell 1>", source) == key("<cell 2>", source)
    assert key("<cell 3>", source) != key("<cell 4>", source[:-1] + "  # other puzzles now\n")


def test_the_caches_place(monkeypatch: Any, tmp_path: Path) -> None:
    """MLX_TRM_CACHE first, then the platform's habits."""
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MLX_TRM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "mlx_trm"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "mlx_trm"


def test_data_dir_must_fit_the_task(tmp_path: Path) -> None:
    """A built dataset is used as it is, if its dimensions are the task's."""
    written(tmp_path, [[puzzle(1)]])
    task = Counting(TaskConfig(name="counting", data_dir=str(tmp_path)), 0)
    assert len(task.dataset("train")) == 1 and Counting.built == 0
    other = tmp_path / "other"
    write_dataset([[Puzzle(None, *[np.ones((1, 5), np.uint8)] * 2)]], other / "train",
                  TaskSpec(9, 5))  # fmt: skip
    task = Counting(TaskConfig(name="counting", data_dir=str(other)), 0)
    with pytest.raises(DataError, match="seq_len is 5, this task needs 3"):
        task.dataset("train")


def test_unknown_splits_and_tasks() -> None:
    """Both say what there is."""
    task = Counting(TaskConfig(name="counting"), 0)
    with pytest.raises(DataError, match="no split 'val'; there are train and test"):
        task.dataset("val")
    with pytest.raises(ConfigError, match="unknown task 'sudoko'; did you mean 'sudoku'"):
        build_task(TaskConfig(name="sudoko"))


def test_what_a_task_need_not_have() -> None:
    """Defaults: plain text, no parser, no rules, no scorer."""
    task = Counting(TaskConfig(name="counting"), 0)
    tokens = np.array([1, 0, 7], dtype=np.uint8)
    assert task.format(tokens) == task.render(tokens) == "1 0 7"
    assert task.scorer() is None
    inputs, labels = task.augment(tokens[None], tokens[None], np.random.default_rng(0))
    assert inputs.tolist() == labels.tolist() == [[1, 0, 7]]
    with pytest.raises(DataError, match="'counting' does not read puzzles"):
        task.parse("1 0 7")
    with pytest.raises(DataError, match="'counting' cannot check"):
        task.check(tokens, tokens)
