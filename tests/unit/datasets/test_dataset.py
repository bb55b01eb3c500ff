"""The on-disk format, the reference's batch order, and what a damaged dataset says."""

import json
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REFERENCE

from mlx_trm.config.sections import TaskConfig, TaskSpec
from mlx_trm.datasets import reading
from mlx_trm.datasets.dataset import IGNORE_LABEL_ID, SetArrays
from mlx_trm.datasets.writing import write_dataset
from mlx_trm.errors import DataError
from mlx_trm.tasks import Puzzle, PuzzleDataset, Task

SAMPLER = REFERENCE / "arc_toy" / "sampler"
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


# The reference's order -------------------------------------------------------------------------


@pytest.mark.parametrize("iteration", [0, 1])
def test_the_order_is_the_references(iteration: int) -> None:
    """Every array of every batch equals the recording, and there are as many batches."""
    with np.load(SAMPLER / "expected_batches.npz") as recorded:
        expected = {key: recorded[key] for key in recorded.files}
    dataset = PuzzleDataset.load(SAMPLER, "train")
    batches = list(dataset.train_batches(5, 3, 4, iteration=iteration + 1))
    keys = [key for key in expected if key.startswith(f"iter{iteration}.")]
    assert len(keys) == 3 * len(batches) > 0
    for number, batch in enumerate(batches):
        for name, array in batch.items():
            assert array.dtype == np.int32
            wanted = expected[f"iter{iteration}.batch{number}.{name}"]
            assert array.tolist() == wanted.tolist(), (number, name)


def test_one_draw_for_a_batch_equals_one_by_one() -> None:
    """The recording is small; this compares thousands of draws with the reference's loop."""
    dataset = PuzzleDataset.load(SAMPLER, "train")
    arrays = SetArrays(*(np.load(SAMPLER / "train" / f"all__{f}.npy") for f in SetArrays._fields))
    rng = np.random.Generator(np.random.Philox(11 + 2))
    groups = np.concatenate([rng.permutation(8) for _ in range(500)])
    drawn = [
        int(rng.integers(arrays.group_indices[g], arrays.group_indices[g + 1])) for g in groups
    ]
    got = [batch["puzzle_identifiers"] for batch in dataset.train_batches(7, 11, 500, iteration=2)]
    assert (
        np.concatenate(got).tolist() == arrays.puzzle_identifiers[drawn][: 4000 // 7 * 7].tolist()
    )


def test_the_reference_could_read_what_is_written(tmp_path: Path) -> None:
    """Its metadata keys and file names, and arrays NumPy opens."""
    write_dataset([[puzzle(1), puzzle(2)], [puzzle(3)]], tmp_path / "train", SPEC)
    about = json.loads((tmp_path / "train" / "dataset.json").read_text())
    recorded = json.loads((SAMPLER / "train" / "dataset.json").read_text())
    assert set(about) == set(recorded)
    assert about["total_groups"] == 2 and about["total_puzzles"] == 3
    assert about["mean_puzzle_examples"] == 1.0 and about["sets"] == ["all"]
    names = {path.name for path in (tmp_path / "train").iterdir()}
    assert names == {path.name for path in (SAMPLER / "train").iterdir()}
    inputs = np.load(tmp_path / "train" / "all__inputs.npy")
    assert inputs.tolist() == [[1, 1, 2], [2, 1, 2], [3, 1, 2]] and inputs.dtype == np.uint8
    assert np.load(tmp_path / "train" / "all__puzzle_indices.npy").tolist() == [0, 1, 2, 3]
    assert np.load(tmp_path / "train" / "all__group_indices.npy").tolist() == [0, 2, 3]


# Laws ------------------------------------------------------------------------------------------

GROUPS = st.lists(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=9
)  # examples of each puzzle of each group


@settings(deadline=None, max_examples=40)
@given(sizes=GROUPS, batch_size=st.integers(1, 7))
def test_what_is_written_is_read(tmp_path_factory: Any, sizes: Any, batch_size: int) -> None:
    """All examples, in order, with the identifiers of their puzzles; the rest is padding."""
    count = iter(range(10**6))
    groups = [[puzzle(next(count), n, f"p{next(count)}") for n in group] for group in sizes]
    flat = [p for group in groups for p in group]
    folder = tmp_path_factory.mktemp("written")
    dataset = written(folder, iter(groups))
    assert len(dataset) == sum(map(sum, sizes))
    assert dataset.total_puzzles == len(flat) and dataset.total_groups == len(groups)
    assert dataset.mean_puzzle_examples == pytest.approx(len(dataset) / len(flat))
    assert dataset.spec == TaskSpec(9, 3, num_puzzle_identifiers=len(flat) + 1)
    rows = all_rows(dataset, batch_size)
    assert (rows["inputs"] == np.concatenate([p.inputs for p in flat])).all()
    labels = np.concatenate([p.labels for p in flat]).astype(int)
    labels[labels == 0] = IGNORE_LABEL_ID
    assert (rows["labels"] == labels).all()
    numbers = [i + 1 for i, p in enumerate(flat) for _ in p.inputs]
    assert rows["puzzle_identifiers"].tolist() == numbers
    shutil.rmtree(folder)


@settings(deadline=None, max_examples=40)
@given(groups=st.integers(1, 12), copies=st.integers(1, 3), epochs=st.integers(1, 4),
       batch_size=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_each_epoch_takes_each_group_once(
    groups: int, copies: int, epochs: int, batch_size: int, seed: int
) -> None:
    """Full batches only; within each epoch no group twice; a puzzle always of its own group."""
    total = groups * copies
    inputs = np.arange(total)[:, None].repeat(3, axis=1)
    arrays = SetArrays(inputs, inputs, np.zeros(total, int), np.arange(total + 1),
                       np.arange(0, total + 1, copies))  # fmt: skip
    spec = TaskSpec(vocab_size=36, seq_len=3)
    dataset = PuzzleDataset(Path("memory"), spec, {"all": arrays})
    batches = list(dataset.train_batches(batch_size, seed, epochs))
    assert len(batches) == groups * epochs // batch_size
    assert all(b["inputs"].shape == (batch_size, 3) for b in batches)
    if batches:
        taken = np.concatenate([b["inputs"][:, 0] for b in batches]) // copies
        for start in range(0, len(taken), groups):
            epoch = taken[start : start + groups].tolist()
            assert max(Counter(epoch).values()) == 1
            assert len(epoch) < groups or sorted(epoch) == list(range(groups))


def test_a_large_puzzle_gives_different_examples() -> None:
    """They are drawn without replacement, from the same generator, and cut to the room left."""
    sizes = [3, 10, 1, 4]
    edges = np.cumsum([0] + sizes)
    inputs = np.arange(18)[:, None].repeat(3, axis=1)
    arrays = SetArrays(inputs, inputs, np.arange(4), edges, np.arange(5))
    spec = TaskSpec(99, 3, num_puzzle_identifiers=4, ignore_label_id=None)
    dataset = PuzzleDataset(Path("memory"), spec, {"all": arrays})
    rng = np.random.Generator(np.random.Philox(5 + 1))
    groups = np.concatenate([rng.permutation(4) for _ in range(30)])
    taken = 0
    batches = list(dataset.train_batches(6, 5, 30))
    assert len(batches) > 20
    for batch in batches:
        rows: List[int] = []
        while len(rows) < 6:
            group, taken = groups[taken], taken + 1
            take = min(sizes[group], 6 - len(rows))
            assert rng.integers(group, group + 1) == group
            picked = rng.choice(sizes[group], take, replace=False) if sizes[group] > 1 else [0]
            assert len(set(np.asarray(picked).tolist())) == take
            rows += [int(edges[group] + i) for i in picked]
        assert batch["inputs"][:, 0].tolist() == rows
        owner = np.searchsorted(edges, rows, side="right") - 1
        assert batch["puzzle_identifiers"].tolist() == owner.tolist()


def in_groups(count: int, puzzles: int) -> PuzzleDataset:
    """Groups of so many puzzles of one example each."""
    total = count * puzzles
    inputs = np.zeros((total, 1), np.uint8)
    edges = np.arange(total + 1)
    arrays = SetArrays(inputs, inputs, edges[:-1], edges, edges[::puzzles])
    spec = TaskSpec(2, 1, num_puzzle_identifiers=total, ignore_label_id=None)
    return PuzzleDataset(Path("memory"), spec, {"all": arrays})


@pytest.mark.parametrize("puzzles", [1, 3])
@pytest.mark.parametrize("size", [1, 5, 7, 50, 217])
def test_batches_go_on_from_pass_to_pass(size: int, puzzles: int) -> None:
    """All passes are one order, whatever it is cut into: the reference's, drawn all at once."""
    rng = np.random.Generator(np.random.Philox(4 + 1))
    groups = np.concatenate([rng.permutation(31) for _ in range(7)])
    wanted = [int(rng.integers(group * puzzles, (group + 1) * puzzles)) for group in groups]
    batches = in_groups(31, puzzles).train_batches(size, 4, 7)
    found = [int(number) for batch in batches for number in batch["puzzle_identifiers"]]
    assert found == wanted[: len(wanted) // size * size]


@pytest.mark.parametrize("puzzles", [1, 2])
def test_the_orders_of_all_passes_are_never_in_memory(puzzles: int) -> None:
    """Passes between two evaluations may be ten thousands, over 200,000 puzzles."""
    dataset = in_groups(1000, puzzles)
    tracemalloc.start()
    try:
        batch = next(dataset.train_batches(8, 0, 1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batch["inputs"].shape == (8, 1)
    assert peak < 1000 * 1000 * 8 / 10


def test_skipping_batches_changes_nothing_else() -> None:
    """The order and the augmentation of later batches do not depend on earlier ones being made."""
    dataset = PuzzleDataset.load(SAMPLER, "train")

    def noise(inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Any:
        return inputs, labels + rng.integers(0, 9, labels.shape).astype(np.uint8)

    whole = list(dataset.train_batches(5, 3, 4, 1, noise))
    rest = list(dataset.train_batches(5, 3, 4, 1, noise, first=3))
    assert len(rest) == len(whole) - 3
    for a, b in zip(whole[3:], rest):
        assert all((a[key] == b[key]).all() for key in a)
    plain = list(dataset.train_batches(5, 3, 4, 1))
    assert all((a["inputs"] == b["inputs"]).all() for a, b in zip(whole, plain))
    assert any((a["labels"] != b["labels"]).any() for a, b in zip(whole, plain))
    assert (
        whole[0]["labels"] - plain[0]["labels"] != whole[1]["labels"] - plain[1]["labels"]
    ).any()


def test_seeds_and_iterations_give_other_orders() -> None:
    """Iteration i of seed s is iteration 1 of seed s + i - 1, as in the reference."""
    dataset = PuzzleDataset.load(SAMPLER, "train")

    def order(seed: int, iteration: int) -> List[List[int]]:
        return [
            b["puzzle_identifiers"].tolist() for b in dataset.train_batches(5, seed, 4, iteration)
        ]

    assert order(3, 1) == order(3, 1)
    assert order(3, 2) == order(4, 1)
    assert order(3, 1) != order(3, 2)


def test_evaluation_pads_the_last_batch(tmp_path: Path) -> None:
    """Padding rows hold pad_id, IGNORE_LABEL_ID and the blank identifier."""
    spec = TaskSpec(9, 3, pad_id=8, blank_identifier_id=0)
    dataset = written(tmp_path, [[puzzle(5, 3, "a")]], spec)
    batches = list(dataset.eval_batches(2))
    assert [(name, size) for name, _, size in batches] == [("all", 2), ("all", 1)]
    last = batches[1][1]
    assert last["inputs"].tolist() == [[5, 3, 2], [8, 8, 8]]
    assert last["labels"].tolist() == [[3, -100, 7], [-100, -100, -100]]
    assert last["puzzle_identifiers"].tolist() == [1, 0]


def test_a_sample_is_seeded_and_in_order() -> None:
    """max_examples: without replacement, ascending, the same for a seed; all if there are less."""
    inputs = np.arange(50)[:, None].repeat(3, axis=1)
    arrays = SetArrays(inputs, inputs, np.zeros(50, int), np.arange(51), np.arange(51))
    dataset = PuzzleDataset(Path("memory"), TaskSpec(50, 3), {"all": arrays})

    def sample(count: int, seed: int) -> List[int]:
        batches = dataset.eval_batches(4, count, seed)
        return [int(i) for _, b, n in batches for i in b["inputs"][:n, 0]]

    assert len(sample(10, 0)) == len(set(sample(10, 0))) == 10
    assert sample(10, 0) == sorted(sample(10, 0)) == sample(10, 0)
    assert sample(10, 0) != sample(10, 1)
    assert sample(80, 0) == list(range(50))


def test_labels_that_all_count() -> None:
    """With ignore_label_id null no label is turned into -100."""
    inputs = np.zeros((2, 3), dtype=np.uint8)
    arrays = SetArrays(inputs, inputs, np.zeros(2, int), np.arange(3), np.arange(3))
    for ignore, expected in ((None, 0), (0, IGNORE_LABEL_ID)):
        spec = TaskSpec(9, 3, ignore_label_id=ignore)
        dataset = PuzzleDataset(Path("memory"), spec, {"all": arrays})
        (batch,) = dataset.train_batches(2, 0, 1)
        assert (batch["labels"] == expected).all()


def test_several_sets_mix_in_training_and_stay_apart_in_evaluation() -> None:
    """Rows of both sets stand in one batch; evaluation names the set."""
    sets = {}
    for name, start, count in (("a", 0, 6), ("b", 6, 4)):
        inputs = np.arange(start, start + count)[:, None].repeat(3, axis=1)
        sets[name] = SetArrays(inputs, inputs, np.arange(start, start + count),
                               np.arange(count + 1), np.arange(count + 1))  # fmt: skip
    dataset = PuzzleDataset(Path("memory"), TaskSpec(20, 3, 10, ignore_label_id=None), sets)
    (batch,) = dataset.train_batches(10, 0, 1)
    assert sorted(batch["inputs"][:, 0].tolist()) == list(range(10))
    assert (batch["inputs"][:, 0] == batch["puzzle_identifiers"]).all()
    assert (batch["inputs"] == batch["labels"]).all()
    names = [(name, b["inputs"][:n, 0].tolist()) for name, b, n in dataset.eval_batches(4)]
    assert names == [("a", [0, 1, 2, 3]), ("a", [4, 5]), ("b", [6, 7, 8, 9])]
    assert dataset.example(7)[0].tolist() == [7, 7, 7]
    with pytest.raises(IndexError):
        dataset.example(10)


@pytest.mark.parametrize("arguments", [(0, 0, 1), (4, 0, 0), (4, 0, 1, 0)])
def test_batch_arguments_are_checked(arguments: Any) -> None:
    """Numbers below 1 are a mistake of the caller."""
    dataset = PuzzleDataset.load(SAMPLER, "train")
    with pytest.raises(ValueError, match="at least 1"):
        next(dataset.train_batches(*arguments))


# Damaged datasets ------------------------------------------------------------------------------


def edit_json(folder: Path, **changes: Any) -> None:
    """Change keys of dataset.json."""
    path = folder / "train" / "dataset.json"
    about = json.loads(path.read_text())
    about.update(changes)
    path.write_text(json.dumps(about))


def drop_key(folder: Path, key: str) -> None:
    """Take a key out of dataset.json."""
    path = folder / "train" / "dataset.json"
    about = json.loads(path.read_text())
    del about[key]
    path.write_text(json.dumps(about))


def edit_array(folder: Path, name: str, index: Any, value: int) -> None:
    """Change a number of an array."""
    path = folder / "train" / f"all__{name}.npy"
    array = np.load(path)
    array[index] = value
    np.save(path, array)


def replace_array(folder: Path, name: str, array: Any) -> None:
    """Put another array in a file's place."""
    np.save(folder / "train" / f"all__{name}.npy", array, allow_pickle=True)


def truncate(folder: Path, name: str) -> None:
    """Cut the end off a file."""
    path = folder / "train" / name
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "no metadata": (lambda f: (f / "train/dataset.json").unlink(), "dataset.json: cannot be read"),
    "not JSON": (
        lambda f: (f / "train/dataset.json").write_text('{"sets": ["all"'),
        "dataset.json: is not JSON",
    ),
    "not UTF-8": (
        lambda f: (f / "train/dataset.json").write_bytes(b'{"sets": "\xff"}'),
        "dataset.json: is not JSON",
    ),
    "a list": (lambda f: (f / "train/dataset.json").write_text("[]"), "is not a JSON object"),
    "no length": (lambda f: drop_key(f, "seq_len"), "dataset.json: seq_len is missing; build"),
    "no vocab": (lambda f: edit_json(f, vocab_size=None), "vocab_size must be a whole number"),
    "true": (lambda f: edit_json(f, seq_len=True), "seq_len must be a whole number from 1 up"),
    "negative": (lambda f: edit_json(f, pad_id=-1), "pad_id must be a whole number from 0 up"),
    "path as set": (lambda f: edit_json(f, sets=["../../x"]), "sets must be a list"),
    "no set": (lambda f: edit_json(f, sets=[]), "sets must be a list"),
    "other set": (lambda f: edit_json(f, sets=["b"]), "b__inputs.npy: no such file"),
    "other groups": (lambda f: edit_json(f, total_groups=7), "total_groups is 7"),
    "other length": (
        lambda f: edit_json(f, seq_len=4),
        "inputs.npy: rows of 3 cells, seq_len is 4",
    ),
    "missing": (lambda f: (f / "train/all__labels.npy").unlink(), "all__labels.npy: no such file"),
    "truncated": (lambda f: truncate(f, "all__inputs.npy"), "all__inputs.npy: is damaged"),
    "truncated index": (
        lambda f: truncate(f, "all__group_indices.npy"),
        "all__group_indices.npy: is damaged",
    ),
    "empty file": (
        lambda f: (f / "train/all__inputs.npy").write_bytes(b""),
        "all__inputs.npy: is damaged",
    ),
    "no npy": (
        lambda f: (f / "train/all__labels.npy").write_text("hello, this is text, not an array"),
        "all__labels.npy: is damaged",
    ),
    "pickle": (
        lambda f: replace_array(f, "labels", np.array([{}], dtype=object)),
        "all__labels.npy: is damaged",
    ),
    "floats": (
        lambda f: replace_array(f, "inputs", np.zeros((3, 3))),
        "is not an array of whole numbers but of '<f8'; build",
    ),
    "one dimension": (
        lambda f: replace_array(f, "inputs", np.zeros(9, np.uint8)),
        "with 2 dimensions",
    ),
    "no rows": (lambda f: replace_array(f, "inputs", np.zeros((0, 3), np.uint8)), "labels.npy"),
    "short labels": (
        lambda f: replace_array(f, "labels", np.zeros((2, 3), np.uint8)),
        "labels.npy: shape (2, 3), the inputs have (3, 3)",
    ),
    "token": (lambda f: edit_array(f, "inputs", (1, 1), 9), "inputs.npy: token 9 is not in 0..8"),
    "label": (lambda f: edit_array(f, "labels", (1, 1), 99), "labels.npy: token 99"),
    "identifier": (
        lambda f: edit_array(f, "puzzle_identifiers", 0, 3),
        "puzzle_identifiers.npy: identifier 3 is not in 0..2",
    ),
    "falling": (
        lambda f: edit_array(f, "puzzle_indices", 1, 3),
        "puzzle_indices.npy: must rise from 0 to 3",
    ),
    "beyond": (
        lambda f: edit_array(f, "group_indices", -1, 9),
        "group_indices.npy: must rise from 0 to 2",
    ),
    "counts": (
        lambda f: replace_array(f, "puzzle_indices", np.array([0, 3], np.int32)),
        "has 1 puzzles, 2 have an identifier",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    """One line that names the file."""
    break_it, message = DAMAGE[kind]
    written(tmp_path, [[puzzle(1, 2, "a")], [puzzle(2, 1, "b")]])
    break_it(tmp_path)
    with pytest.raises(DataError) as caught:
        PuzzleDataset.load(tmp_path, "train")
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    """No folder, a file in its place, no such split."""
    with pytest.raises(DataError, match="nowhere: no such folder"):
        PuzzleDataset.load(tmp_path / "nowhere", "train")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file: is not a folder"):
        PuzzleDataset.load(tmp_path / "file", "train")
    written(tmp_path, [[puzzle(1)]])
    with pytest.raises(DataError, match="no split 'test'; build"):
        PuzzleDataset.load(tmp_path, "test")


# Several folders as one ------------------------------------------------------------------------


class Named(Task):
    """Puzzles with names and two examples each."""

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(vocab_size=20, seq_len=4, num_puzzle_identifiers=2)

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[List[Puzzle]]:
        for number in range(3):
            rows = rng.integers(1, 20, (2, 4)).astype(np.uint8)
            yield [Puzzle(f"{self.seed}-{number}", rows, rows)]


def named(folder: Path, seed: int) -> Path:
    """Build one."""
    Named(TaskConfig(name="named"), seed).build(folder)
    return folder


def test_several_folders_are_numbered_on(tmp_path: Path) -> None:
    """Identifiers do not collide, sets keep their folders' names, the blank one stays 0."""
    folders = [str(named(tmp_path / name, seed)) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    dataset = PuzzleDataset.load(folders, "test")
    assert dataset.sets == ["a", "b", "c"] and len(dataset) == 18
    assert dataset.spec.num_puzzle_identifiers == 10 and dataset.total_groups == 9
    found = {}
    for name, batch, size in dataset.eval_batches(4):
        found.setdefault(name, []).append(
            (batch["puzzle_identifiers"][:size], batch["inputs"][:size], batch["places"][:size])
        )
        assert (batch["puzzle_identifiers"][size:] == 0).all()
    for number, (name, parts) in enumerate(found.items()):
        identifiers, inputs, places = map(np.concatenate, zip(*parts))
        alone = PuzzleDataset.load(folders[number], "test")
        assert list(identifiers) == [3 * number + i for i in (1, 1, 2, 2, 3, 3)]
        assert (inputs == [alone.example(i)[0] for i in range(6)]).all()
        assert list(places) == list(range(6))
        source = dataset.source(name)
        assert source.folder == tmp_path / "abc"[number] and source.first_identifier == 3 * number
    assert PuzzleDataset.load(folders[:1], "train").sets == ["a"]


def test_training_mixes_the_groups_of_several_folders(tmp_path: Path) -> None:
    """A batch has puzzles of both; an epoch takes each group once."""
    folders = [str(named(tmp_path / "x" / "d", 1)), str(named(tmp_path / "y" / "d", 2))]
    dataset = PuzzleDataset.load(folders, "train")
    assert dataset.sets == ["x/d", "y/d"]
    batches = list(dataset.train_batches(4, seed=5, epochs_per_iter=20))
    counts = np.bincount(np.concatenate([b["puzzle_identifiers"] for b in batches]), minlength=7)
    assert len(batches) == 60 and list(counts) == [0] + [40] * 6
    mixed = [len({int(i) > 3 for i in b["puzzle_identifiers"]}) == 2 for b in batches]
    assert 15 < sum(mixed) < 50
    for batch in batches[:5]:
        for row, number in zip(batch["inputs"], batch["puzzle_identifiers"]):
            alone = PuzzleDataset.load(folders[(number - 1) // 3], "train")
            first = 2 * ((number - 1) % 3)
            assert any((row == alone.example(first + i)[0]).all() for i in (0, 1))


def change_metadata(path: Path, **values: Any) -> None:
    about = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**about, **values}), encoding="utf-8")


@pytest.mark.parametrize(
    "values, says",
    [
        ({"vocab_size": 21}, "vocab_size is 21, in .* it is 20"),
        ({"ignore_label_id": None}, "ignore_label_id is None"),
        ({"num_puzzle_identifiers": 9}, "num_puzzle_identifiers is 9, in train it is 4"),
    ],
)
def test_folders_that_do_not_fit_together(
    tmp_path: Path, values: Dict[str, Any], says: str
) -> None:
    """Refused, with the file and what differs."""
    folders = [named(tmp_path / "a", 1), named(tmp_path / "b", 2)]
    change_metadata(folders[1] / "test" / "dataset.json", **values)
    (folders[1] / "build.json").unlink()  # it says what the file was
    with pytest.raises(DataError, match=f"b.test: {says}"):
        PuzzleDataset.load([str(folder) for folder in folders], "test")


def test_a_large_file_is_checked_as_it_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    """Opening looks at a sample only; a batch with a wrong token is refused."""
    monkeypatch.setattr(reading, "SCANNED_BYTES", 16)
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 8)
    folder = named(tmp_path / "a", 1)
    (folder / "build.json").unlink()  # it says what the files were
    path = folder / "train" / "all__inputs.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10] + b"\x63" + whole[-9:])
    dataset = PuzzleDataset.load(folder, "train")
    with pytest.raises(DataError, match="train: token 99 is not in 0..19; build"):
        list(dataset.eval_batches(2))
    with pytest.raises(DataError, match="token 99"):
        list(dataset.train_batches(2, seed=0, epochs_per_iter=4))
    path.write_bytes(whole[:-1] + b"\x63")
    with pytest.raises(DataError, match="all__inputs.npy: token 99"):
        PuzzleDataset.load(folder, "train")


def test_another_version_of_the_format(tmp_path: Path) -> None:
    """Refused by name; a folder without build.json is the reference's own format."""
    folder = named(tmp_path / "a", 1)
    change_metadata(folder / "build.json", format=99)
    with pytest.raises(DataError, match="build.json: was built by another version .*format 99"):
        PuzzleDataset.load(folder, "test")
    (folder / "build.json").write_text("[]")
    with pytest.raises(
        DataError, match="build.json: is not a JSON object; build the dataset again"
    ):
        PuzzleDataset.load(folder, "test")
    (folder / "build.json").unlink()
    assert len(PuzzleDataset.load(folder, "test")) == 6
