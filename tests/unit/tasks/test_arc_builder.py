"""The ARC builder: the reference's bytes, from recordings and against a plain restatement."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
from child_processes import LIMIT, started, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REFERENCE, SHARED_DATA

from mlx_trm.data import main
from mlx_trm.datasets.writing import PuzzleBlock
from mlx_trm.errors import DataError
from mlx_trm.tasks import ARC, ARCConfig, PuzzleDataset
from mlx_trm.tasks.arc import builder
from mlx_trm.tasks.arc.files import ArcTask
from mlx_trm.tasks.symmetries import dihedral_transform

TOY = REFERENCE / "arc_toy"
ARC_DATA = SHARED_DATA / "arc"


def toy(**changes: Any) -> ARCConfig:
    """The settings of the recorded build."""
    values: Dict[str, Any] = {
        "input_file_prefix": str(TOY / "raw" / "toy"),
        "subsets": ["training", "evaluation"],
        "test_set_name": "evaluation",
        "num_aug": 3,
    }
    return ARCConfig(name="arc", **{**values, **changes})


def read_json(path: Path) -> Any:
    """The content of a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_recorded_build(tmp_path: Path) -> None:
    """Every array and every JSON file of the recording."""
    ARC(toy(), 42).build(tmp_path / "made")
    files = [path for path in (TOY / "built").rglob("*") if path.is_file()]
    assert len(files) == 14
    for path in files:
        made = tmp_path / "made" / path.relative_to(TOY / "built")
        if path.suffix == ".npy":
            want, have = np.load(path), np.load(made)
            assert want.dtype == have.dtype and np.array_equal(want, have), path
        else:
            assert read_json(path) == read_json(made), path


@pytest.mark.skipif(not ARC_DATA.is_dir(), reason="the ARC files are not there")
def test_the_recorded_hashes(tmp_path: Path) -> None:
    """ARC-AGI-2 with ConceptARC, one augmentation: 1,280 tasks."""
    config = toy(
        input_file_prefix=str(ARC_DATA / "arc-agi"),
        subsets=["training2", "evaluation2", "concept"],
        test_set_name="evaluation2",
        num_aug=1,
    )
    ARC(config, 42).build(tmp_path / "made")
    recorded = read_json(REFERENCE / "arc2_aug1.sha256.json")
    assert len(recorded) == 14
    for name, want in recorded.items():
        path = tmp_path / "made" / name
        if path.suffix == ".npy":
            array = np.load(path)
            assert (str(array.dtype), list(array.shape)) == (want["dtype"], want["shape"]), name
            assert hashlib.sha256(array.tobytes()).hexdigest() == want["sha256"], name
        else:
            text = json.dumps(read_json(path), sort_keys=True)
            assert hashlib.sha256(text.encode()).hexdigest() == want["sha256_sorted_json"], name


# A plain restatement ---------------------------------------------------------------------------


def placed(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    """A grid on the canvas of 30 x 30, cell by cell."""
    canvas = np.zeros((30, 30), dtype=np.uint8)
    height, width = grid.shape
    for i in range(height):
        for j in range(width):
            canvas[row + i, column + j] = grid[i, j] + 2
    for i in range(height):
        if column + width < 30:
            canvas[row + i, column + width] = 1
    for j in range(width):
        if row + height < 30:
            canvas[row + height, column + j] = 1
    return canvas.reshape(-1)


def slowly(
    subsets: List[Tuple[Dict[str, Any], bool]], num_aug: int, seed: int
) -> Dict[str, List[Tuple[str, List[Tuple[np.ndarray, np.ndarray]]]]]:
    """All puzzles of both splits, drawn one number at a time and held in memory."""
    rng = np.random.RandomState(seed)
    splits: Dict[str, List[Any]] = {"train": [], "test": []}
    for tasks, to_test in subsets:
        items = list(tasks.items())
        rng.shuffle(items)  # type: ignore[arg-type]
        for name, task in items:
            versions = [(name, 0, np.arange(10))]
            pairs = {
                part: [(np.array(p["input"]), np.array(p["output"])) for p in task[part]]
                for part in task
            }
            everything = [pair for part in pairs.values() for pair in part]

            def looks(number: int, colors: np.ndarray, among: Any = everything) -> Any:
                return sorted(
                    tuple(
                        (grid.shape, dihedral_transform(colors[grid], number).tolist())
                        for grid in pair
                    )
                    for pair in among
                )

            seen = [looks(0, np.arange(10))]
            for _ in range(5 * num_aug):
                number = rng.randint(0, 8)
                colors = np.concatenate([[0], rng.permutation(np.arange(1, 10, dtype=np.uint8))])
                if looks(number, colors) not in seen:
                    seen.append(looks(number, colors))
                    digits = "".join(str(color) for color in colors)
                    versions.append((f"{name}|||t{number}|||{digits}", number, colors))
                if len(versions) == num_aug + 1:
                    break
            for split in ("train", "test"):
                parts = [p for p in pairs if (p == "test" and to_test) == (split == "test")]
                mine = [pair for part in parts for pair in pairs[part]]
                for label, number, colors in versions if mine else []:
                    grids = [
                        tuple(dihedral_transform(colors[g], number) for g in pair) for pair in mine
                    ]
                    splits[split].append((label, grids))
    for split, puzzles in splits.items():
        for at, (label, grids) in enumerate(puzzles):
            stays = rng.randint(0, len(grids))
            rows = []
            for number, (given_, answer) in enumerate(grids):
                offset = (0, 0)
                if split == "train" and number != stays:
                    sides = np.maximum(given_.shape, answer.shape)
                    offset = (rng.randint(0, 31 - sides[0]), rng.randint(0, 31 - sides[1]))
                rows.append((placed(given_, *offset), placed(answer, *offset)))
            puzzles[at] = (label, rows)
    return splits


SIDES = st.sampled_from([1, 2, 3, 5, 29, 30])


@st.composite
def task_sets(draw: Any, names: str) -> Dict[str, Any]:
    """A few tasks; some grids are all one colour, so that augmentations repeat."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def grid() -> List[List[int]]:
        shape = (draw(SIDES), draw(SIDES))
        if draw(st.booleans()):
            return np.full(shape, draw(st.integers(0, 2))).tolist()
        return rng.integers(0, 10, shape).tolist()

    tasks = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        order = draw(st.sampled_from([("train", "test"), ("test", "train")]))
        tasks[name] = {
            part: [{"input": grid(), "output": grid()} for _ in range(draw(st.integers(1, 3)))]
            for part in order
        }
    return tasks


@settings(max_examples=25, deadline=None)
@given(
    first=task_sets("abcd"),
    second=task_sets("cdefg"),
    num_aug=st.sampled_from([0, 1, 2, 9]),
    seed=st.integers(0, 2**32 - 1),
)
def test_against_a_plain_restatement(
    tmp_path_factory: Any, first: Any, second: Any, num_aug: int, seed: int
) -> None:
    """Any shapes, one example or several, repeated augmentations, names in two subsets."""
    folder = tmp_path_factory.mktemp("arc")
    for subset, tasks in (("one", first), ("two", second)):
        (folder / f"p_{subset}_challenges.json").write_text(json.dumps(tasks))
    config = toy(input_file_prefix=str(folder / "p"), subsets=["one", "two"],
                 test_set_name="two", num_aug=num_aug)  # fmt: skip
    ARC(config, seed).build(folder / "made")
    names = read_json(folder / "made" / "identifiers.json")
    known = ["<blank>"]
    for split, puzzles in slowly([(first, False), (second, True)], num_aug, seed).items():
        known += [label for label, _ in puzzles if label not in known]
        arrays = PuzzleDataset.load(folder / "made", split).arrays["all"]
        assert [names[i] for i in arrays.puzzle_identifiers] == [label for label, _ in puzzles]
        assert list(np.diff(arrays.puzzle_indices)) == [len(rows) for _, rows in puzzles]
        for side, have in enumerate((arrays.inputs, arrays.labels)):
            assert (have == np.stack([row[side] for _, rows in puzzles for row in rows])).all()
    assert list(dict.fromkeys(known)) == names


@settings(max_examples=60, deadline=None)
@given(highs=st.lists(st.integers(1, 31), min_size=1, max_size=12), seed=st.integers(0, 2**32 - 1))
def test_many_draws_are_many_single_draws(highs: List[int], seed: int) -> None:
    """NumPy's legacy generator draws an array as it draws its numbers one by one."""
    one, many = np.random.RandomState(seed), np.random.RandomState(seed)
    assert [one.randint(0, high) for high in highs] == many.randint(0, np.array(highs)).tolist()
    assert one.randint(0, 2**31) == many.randint(0, 2**31)


# Around the building ---------------------------------------------------------------------------


def test_blocks_are_cut_into_chunks_alike(tmp_path: Path, monkeypatch: Any) -> None:
    """How many augmentations are made at a time makes no difference."""
    config = toy(num_aug=9)

    def arrays(chunk: int) -> Iterator[np.ndarray]:
        monkeypatch.setattr(builder, "_CHUNK", chunk)
        ARC(config, 1).build(tmp_path / str(chunk))
        for split in ("train", "test"):
            yield from PuzzleDataset.load(tmp_path / str(chunk), split).arrays["all"]

    for one, other in zip(arrays(3), arrays(1000)):
        assert np.array_equal(one, other)


def test_groups_give_what_build_writes(tmp_path: Path) -> None:
    """Both splits, each on its own."""
    task = ARC(toy(), 5)
    task.build(tmp_path / "made")
    for split in ("train", "test"):
        dataset = PuzzleDataset.load(tmp_path / "made", split)
        blocks = list(task.groups(split, np.random.default_rng(0)))
        assert all(isinstance(block, PuzzleBlock) for block in blocks)
        assert (np.concatenate([b.inputs for b in blocks]) == dataset.arrays["all"].inputs).all()


def test_too_few_different_augmentations() -> None:
    """A puzzle of one colour looks alike whatever is permuted but its colour."""
    black = np.zeros((3, 3), dtype=np.uint8)
    task = ArcTask("x", {"train": [(black, black)], "test": [(black, black)]}, {})
    transforms, colors = builder.draw_augmentations(task, 10, np.random.RandomState(0))
    assert transforms.tolist() == [0] and colors.tolist() == [list(range(10))]
    gray = black + 5
    task = ArcTask("x", {"train": [(gray, gray)], "test": [(black, black)]}, {})
    transforms, colors = builder.draw_augmentations(task, 50, np.random.RandomState(0))
    assert sorted(colors[:, 5].tolist()) == list(range(1, 10))


def test_the_cache_is_used_and_follows_the_files(tmp_path: Path, monkeypatch: Any) -> None:
    """Built once; a changed raw file, seed or setting builds another one."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    for path in (TOY / "raw").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = toy(input_file_prefix=str(tmp_path / "toy"))
    first = ARC(config, 42).dataset("test")
    assert first.spec.num_puzzle_identifiers == 33 and len(first) == 24
    assert ARC(config, 42).dataset("train").path.parent == first.path.parent
    solutions = tmp_path / "toy_evaluation_solutions.json"
    changed = read_json(solutions)
    next(iter(changed.values()))[0][0][0] ^= 1
    solutions.write_text(json.dumps(changed))
    folders = {
        ARC(config, 42).dataset("test").path.parent,
        ARC(config, 43).dataset("test").path.parent,
        ARC(toy(input_file_prefix=str(tmp_path / "toy"), num_aug=2), 42)
        .dataset("test")
        .path.parent,
        first.path.parent,
    }
    assert len(folders) == 4


def test_folders_of_one_file_a_task(tmp_path: Path) -> None:
    """The same puzzles as from Kaggle's files in which they are sorted by name."""
    for subset in ("training", "evaluation"):
        tasks = read_json(TOY / "raw" / f"toy_{subset}_challenges.json")
        solutions = read_json(TOY / "raw" / f"toy_{subset}_solutions.json")
        for name, answers in solutions.items():
            for pair, answer in zip(tasks[name]["test"], answers):
                pair["output"] = answer
        for number, (name, task) in enumerate(tasks.items()):
            place = tmp_path / "data" / subset / f"part{number % 2}" / f"{name}.json"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(task))
        ordered = {name: tasks[name] for name in sorted(tasks)}
        (tmp_path / f"k_{subset}_challenges.json").write_text(json.dumps(ordered))
    ARC(toy(input_file_prefix=str(tmp_path / "data")), 42).build(tmp_path / "one")
    ARC(toy(input_file_prefix=str(tmp_path / "k")), 42).build(tmp_path / "two")
    files = [path for path in (tmp_path / "one").rglob("*.npy")]
    assert len(files) == 10
    for path in files:
        assert (
            path.read_bytes()
            == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        )
    assert read_json(tmp_path / "one" / "test_puzzles.json") == read_json(
        tmp_path / "two" / "test_puzzles.json"
    )


def test_missing_solutions_may_be_allowed(tmp_path: Path) -> None:
    """Refused by default; else the answer is one black cell, as in the reference."""
    for path in (TOY / "raw").glob("*"):
        if path.name != "toy_evaluation_solutions.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = toy(input_file_prefix=str(tmp_path / "toy"))
    with pytest.raises(DataError, match="toy_evaluation_solutions.json: no such file"):
        ARC(config, 42).build(tmp_path / "made")
    assert not (tmp_path / "made").exists()
    config.require_solutions = False
    ARC(config, 42).build(tmp_path / "made")
    labels = PuzzleDataset.load(tmp_path / "made", "test").arrays["all"].labels
    want = np.zeros((30, 30), dtype=np.uint8)
    want[0, 0], want[1, 0], want[0, 1] = 2, 1, 1
    assert (labels[0] == want.ravel()).all()
    puzzles = read_json(tmp_path / "made" / "test_puzzles.json")
    assert all(pair["output"] == [[0]] for task in puzzles.values() for pair in task["test"])


def test_a_killed_build_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """Killed at some moment: the folder is not there, and the next build makes it."""
    words = ["build", "--config", "arc1.yaml", "-q", "--output", str(tmp_path / "made"),
             f"task.input_file_prefix={TOY / 'raw' / 'toy'}",
             "task.subsets=[training, evaluation]"]  # fmt: skip
    with started([sys.executable, "-m", "mlx_trm.data", *words, "task.num_aug=20000"]) as process:
        wait_until(lambda: list(tmp_path.glob(".made.*/new/train/*.npy")), process)
        process.kill()
        process.communicate(timeout=LIMIT)
    assert process.returncode != 0 and not (tmp_path / "made").exists()
    assert main([*words, "task.num_aug=3"]) == 0
    assert len(PuzzleDataset.load(tmp_path / "made", "train")) == 128
