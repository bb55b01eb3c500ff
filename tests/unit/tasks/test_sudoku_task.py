"""The Sudoku task: tokens, rules, drawing, datasets, augmentation, settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import Calls, count_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT, SHARED_DATA

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets.writing import write_whole_text
from mlx_trm.errors import DataError
from mlx_trm.system.files import hash_file
from mlx_trm.tasks import PuzzleDataset, ScoredRows, Sudoku, SudokuConfig, puzzle_files
from mlx_trm.tasks.sudoku.files import csv_text, puzzle_text, read_puzzles
from mlx_trm.tasks.sudoku.generator import random_grids
from mlx_trm.tasks.sudoku.keys import puzzle_keys
from mlx_trm.tasks.sudoku.solver import PuzzleSet, solve_puzzles, valid_grids
from mlx_trm.tasks.sudoku.task import SAMPLES
from mlx_trm.tasks.sudoku.transforms import SYMMETRIES

TDOKU = SHARED_DATA / "sudoku_tdoku"

# An easy puzzle: singles solve it.
QUESTION = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
SIZES = st.sampled_from([4, 6, 9])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def sudoku(seed: int = 0, **settings_: Any) -> Sudoku:
    """A task with these settings."""
    return Sudoku(SudokuConfig(name="sudoku", **settings_), seed)


def read_all(path: Path, size: int = 9) -> PuzzleSet:
    """A whole file."""
    return PuzzleSet(*map(np.concatenate, zip(*read_puzzles(path, size))))


def stored(dataset: PuzzleDataset, name: str = "inputs") -> np.ndarray:
    """An array as it lies on disk."""
    array: np.ndarray = np.load(dataset.path / f"all__{name}.npy")
    return array


@settings(deadline=None, max_examples=40)
@given(SIZES, st.data())
def test_encode_decode(size: int, data: Any) -> None:
    """parse and format are inverse on puzzles without contradictions, whatever the white space."""
    seed = data.draw(st.integers(0, 50))
    rng = np.random.default_rng(seed)
    grid = random_grids(1, size, rng)[0]
    cells = np.where(rng.random(size * size) < 0.5, grid, 0)
    text = puzzle_text(cells)
    task = sudoku(size=size)
    tokens = task.parse(text)
    assert tokens.dtype == np.uint8 and (tokens == cells + 1).all()
    assert task.format(tokens) == text
    spaced = "\n".join(text[i : i + size].replace(".", "0") for i in range(0, len(text), size))
    assert (task.parse(f"  {spaced}\t\n") == tokens).all()


@pytest.mark.parametrize(
    "text, message",
    [
        (QUESTION[:-1], "the puzzle has 80 cells, 9x9 needs 81"),
        (QUESTION + ".", "the puzzle has 82 cells, 9x9 needs 81"),
        ("", "the puzzle has 0 cells"),
        ("x" + QUESTION[1:], "'x' in row 1 column 1; allowed are 1-9, . and 0"),
        (QUESTION[:-1] + "\u0663", "in row 9 column 9; allowed"),
        ("55" + QUESTION[2:], "contradictory givens: 5 stands twice in row 1"),
        ("5" + "." * 8 + "5" + "." * 71, "5 stands twice in column 1"),
        ("5" + "." * 9 + "5" + "." * 70, "5 stands twice in box 1"),
    ],
)
def test_malformed_puzzles(text: str, message: str) -> None:
    """One line that says what and where."""
    with pytest.raises(DataError) as caught:
        sudoku().parse(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_spec() -> None:
    """V and S of each size; padding and blank are tokens too, nobody has a name."""
    assert sudoku().spec == TaskSpec(11, 81)
    assert sudoku(size=4).spec == TaskSpec(6, 16)
    assert sudoku(size=6).spec == TaskSpec(8, 36)
    assert sudoku().spec.ignore_label_id == 0 and sudoku().spec.num_puzzle_identifiers == 1


def test_format_shows_what_is_no_digit() -> None:
    """A model may predict padding or the blank."""
    assert sudoku(size=4).format(np.array([0, 1, 2, 5, 6, 77])) == "?.14??"


def test_render() -> None:
    """Boxes; what is wrong is marked; givens bold and wrong digits red in colour."""
    task = sudoku(size=6)
    grid = task.parse("." * 30 + "123456")
    expected = """\
┌───────┬───────┐
│ . . . │ . . . │
│ . . . │ . . . │
├───────┼───────┤
│ . . . │ . . . │
│ . . . │ . . . │
├───────┼───────┤
│ . . . │ . . . │
│ 1 2 3 │ 4 5 6 │
└───────┴───────┘"""
    assert task.render(grid) == expected
    labels = grid.copy()
    labels[-1] = 2
    marked = expected.replace("5 6", "5!6")
    assert task.render(grid, labels=labels) == marked
    colored = task.render(
        grid, inputs=np.where(np.arange(36) == 30, grid, 1), labels=labels, color=True
    )
    assert "\033[1m1\033[0m 2 3" in colored and "5!\033[31m6\033[0m" in colored
    assert colored.count("\033[0m") == 2
    lines = sudoku().render(sudoku().parse(QUESTION)).split("\n")
    assert lines[1] == "│ 5 3 . │ . 7 . │ . . . │" and len(lines) == 13
    assert {len(line) for line in lines} == {25}


def scored(inputs: np.ndarray, predictions: np.ndarray) -> ScoredRows:
    """Rows for a scorer that looks at nothing else."""
    rows = np.arange(len(inputs))
    return ScoredRows(inputs, inputs, predictions, rows * 0, rows * 0.0, rows)


def test_check_and_score() -> None:
    """Complete, valid, and the givens kept."""
    task = sudoku()
    puzzle, answer = task.parse(QUESTION), task.parse(ANSWER)
    assert task.check(puzzle, answer)
    assert not task.check(puzzle, puzzle)
    other = np.roll(answer.reshape(9, 9), 3, axis=1).ravel()  # valid, but not this puzzle's
    assert valid_grids(other[None].astype(int) - 1, 9)[0] and not task.check(puzzle, other)
    assert task.check(np.ones(81, np.uint8), other)
    scorer = task.scorer()
    assert list(scorer.result()) == ["valid_grids"]
    assert np.isnan(scorer.result()["valid_grids"])  # nothing was measured
    scorer.update(scored(np.array([puzzle, puzzle]), np.array([answer, puzzle])))
    scorer.update(scored(puzzle[None], answer[None].astype(np.int64)))
    scorer.update(scored(puzzle[None], np.zeros((1, 81), np.int32)))
    assert scorer.result() == {"valid_grids": 0.5}
    other_process = task.scorer()
    other_process.update(scored(puzzle[None], answer[None]))
    scorer.merge(other_process.state())
    assert scorer.result() == {"valid_grids": 3 / 5} and scorer.files() == {}


def test_the_bundled_sample() -> None:
    """Used without a file: 1,000 and 1,000; valid, one solution, rated, train and test apart."""
    sets = {}
    for split in ("train", "test"):
        rows = read_all(SAMPLES / f"sudoku_hard_{split}.csv")
        assert len(rows.puzzles) == 1000
        assert rows.ratings.mean() > 400 and rows.ratings.min() > 100
        dataset = sudoku().dataset(split)
        assert (stored(dataset) == rows.puzzles + 1).all()
        assert (stored(dataset, "labels") == rows.solutions + 1).all()
        sets[split] = rows
    keys = [puzzle_keys(rows.puzzles, 9, SYMMETRIES) for rows in sets.values()]
    assert len(np.unique(np.concatenate(keys))) == 2000
    grids = [puzzle_keys(rows.solutions, 9, ["digits"]) for rows in sets.values()]
    assert len(np.unique(np.concatenate(grids))) == 2000  # nor are their solutions relabelled
    some = sets["test"].take(np.arange(0, 1000, 10))
    found = solve_puzzles(some.puzzles, 9)
    assert (found.counts == 1).all() and (found.solutions[:, 0] == some.solutions).all()
    assert found.guesses.tolist() == some.ratings.tolist()


def test_the_readme_has_the_samples_checksums() -> None:
    """data/README.md says what is in the package."""
    text = (ROOT / "data" / "README.md").read_text("utf-8")
    samples = sorted(SAMPLES.glob("*.csv"))
    assert [path.name for path in samples] == ["sudoku_hard_test.csv", "sudoku_hard_train.csv"]
    for path in samples:
        row = f"| `{path.name}` | 1,000 | {path.stat().st_size:,} | `{hash_file(path)}` |"
        assert row in text


@pytest.mark.slow
def test_every_bundled_puzzle_has_one_solution() -> None:
    """All 2,000, with their ratings."""
    for path in SAMPLES.glob("sudoku_*.csv"):
        rows = read_all(path)
        found = solve_puzzles(rows.puzzles, 9)
        assert (found.counts == 1).all() and (found.solutions[:, 0] == rows.solutions).all()
        assert found.guesses.tolist() == rows.ratings.tolist()


@pytest.mark.skipif(not TDOKU.is_dir(), reason="the collection is not here")
@pytest.mark.parametrize("split, number", [("train", 1000), ("test", 4000)])
def test_another_collection_agrees(split: str, number: int) -> None:
    """Somebody else's answers and ratings: ours are the same, for every puzzle."""
    rows = read_all(TDOKU / f"{split}.csv")
    some = rows.take(np.arange(0, number, number // 500))
    found = solve_puzzles(some.puzzles, 9)
    assert (found.counts == 1).all() and (found.solutions[:, 0] == some.solutions).all()
    assert found.guesses.tolist() == some.ratings.tolist()
    dataset = sudoku(train_file=str(TDOKU / "train.csv"), test_file=str(TDOKU / "test.csv"))
    assert len(dataset.dataset(split)) == number


def test_min_difficulty_and_subsample() -> None:
    """The rating filters both splits, the sample only training; order and seed are kept."""
    rows = read_all(SAMPLES / "sudoku_hard_train.csv")
    path = str(SAMPLES / "sudoku_hard_train.csv")
    hard = sudoku(train_file=path, test_file=path, min_difficulty=500, subsample_size=50)
    expected = rows.puzzles[rows.ratings >= 500] + 1
    assert (stored(hard.dataset("test")) == expected).all()
    train = stored(hard.dataset("train"))
    places = [int(np.flatnonzero((expected == row).all(axis=1))[0]) for row in train]
    assert len(places) == 50 and places == sorted(set(places))
    other = sudoku(1, train_file=path, min_difficulty=500, subsample_size=50).dataset("train")
    assert (stored(other) != train).any()
    many = sudoku(train_file=path, subsample_size=5000).dataset("train")
    assert len(many) == 1000
    with pytest.raises(DataError, match=r"the highest rating is \d+; min_difficulty is 99999"):
        sudoku(train_file=path, min_difficulty=99999).dataset("train")


def test_a_sample_does_not_depend_on_the_blocks(monkeypatch: Any) -> None:
    """Lots are drawn row by row."""
    path = str(SAMPLES / "sudoku_hard_train.csv")
    one = sudoku(train_file=path, subsample_size=30).groups("train", np.random.default_rng(5))
    first = np.concatenate([block.inputs for block in one])
    monkeypatch.setattr(puzzle_files, "_BLOCK_BYTES", 5000)
    two = sudoku(train_file=path, subsample_size=30).groups("train", np.random.default_rng(5))
    assert (np.concatenate([block.inputs for block in two]) == first).all()


def test_num_aug_on_disk() -> None:
    """The puzzle first, then its copies, one group; each a valid puzzle of the same rating."""
    path = str(SAMPLES / "sudoku_hard_train.csv")
    task = sudoku(train_file=path, test_file=path, num_aug=4, subsample_size=20)
    train = task.dataset("train")
    assert (len(train), train.total_puzzles, train.total_groups) == (100, 100, 20)
    inputs, labels = stored(train).astype(int), stored(train, "labels").astype(int)
    assert valid_grids(labels - 1, 9).all()
    assert ((inputs == 1) | (inputs == labels)).all()
    keys = puzzle_keys(inputs - 1, 9, SYMMETRIES).reshape(20, 5)
    assert (keys == keys[:, :1]).all() and len(np.unique(keys)) == 20
    assert len(np.unique(inputs, axis=0)) == 100
    originals = read_all(Path(path)).puzzles + 1
    assert all((originals == row).all(axis=1).any() for row in inputs[::5])
    assert stored(train, "group_indices").tolist() == list(range(0, 101, 5))
    assert len(task.dataset("test")) == 1000
    for batch in train.train_batches(20, 0, 1):
        groups = {
            int(np.flatnonzero((inputs == row).all(axis=1))[0]) // 5 for row in batch["inputs"]
        }
        assert groups == set(range(20))


def test_puzzles_are_augmented_many_at_a_time(tmp_path: Path) -> None:
    """1,000 puzzles with 100 augmentations each take few calls more than with 10."""

    def calls(num_aug: int) -> int:
        task = sudoku(num_aug=num_aug)
        with Calls() as counted:
            about = task.build(tmp_path / str(num_aug), ("train",))
        assert about["train"]["total_puzzles"] == 1000 * (1 + num_aug)
        return counted.count

    calls(1)  # what is done once only
    assert calls(100) - calls(10) < 90_000 / 10


@settings(deadline=None, max_examples=20)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_online_augmentation_keeps_the_rules(size: int, seed: int) -> None:
    """An augmented puzzle stays valid and its transformed answer solves it; uint8 all the way."""
    rng = np.random.default_rng(seed)
    task = sudoku(size=size)
    labels = random_grids(10, size, rng) + np.uint8(1)
    inputs = np.where(rng.random(labels.shape) < 0.5, labels, 1).astype(np.uint8)
    before = inputs.copy(), labels.copy()
    new_inputs, new_labels = task.augment(inputs, labels, rng)
    assert new_inputs.dtype == new_labels.dtype == np.uint8
    assert task.check_many(new_inputs, new_labels).all()
    assert (new_labels != labels).any()
    assert (inputs == before[0]).all() and (labels == before[1]).all()


def test_only_the_symmetries_asked_for() -> None:
    """Digits alone: blanks stay where they are."""
    task = sudoku(symmetries=["digits"])
    dataset = task.dataset("train")
    batch = next(dataset.train_batches(64, 0, 1, augment=task.augment))
    plain = next(dataset.train_batches(64, 0, 1))
    assert ((batch["inputs"] == 1) == (plain["inputs"] == 1)).all()
    assert (batch["inputs"] != plain["inputs"]).any(axis=1).all()
    first = next(dataset.train_batches(64, 0, 1, augment=task.augment))
    second = next(dataset.train_batches(64, 0, 1, iteration=2, augment=task.augment))
    assert (first["inputs"] == batch["inputs"]).all() and (
        second["inputs"] != batch["inputs"]
    ).any()


def test_a_batch_is_augmented_at_once() -> None:
    """768 puzzles take as many calls as 8."""
    task = sudoku()
    rows = read_all(SAMPLES / "sudoku_hard_train.csv").puzzles[:768] + np.uint8(1)
    few, many = (
        count_calls(lambda n=n: task.augment(rows[:n], rows[:n], np.random.default_rng(0)))
        for n in (8, 768)
    )
    assert many == few


def test_generated_splits_share_nothing() -> None:
    """4x4: no test puzzle is a relabelling of a training puzzle; both are what was asked for."""
    task = sudoku(size=4, train_puzzles=800, test_puzzles=200, symmetries=["digits"])
    train, test = (stored(task.dataset(split)).astype(int) - 1 for split in ("train", "test"))
    assert len(train) == 800 and len(test) == 200
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == 1000
    keys = [puzzle_keys(part, 4, ["digits"]) for part in (train, test)]
    assert not np.isin(*keys).any()
    for part in (train, test):
        given = (part > 0).sum(axis=1)
        assert given.min() == 6 and given.max() == 8
        assert (solve_puzzles(part, 4).counts == 1).all()
    # With rows and columns permuted in training too, equivalents of those are kept out as well.
    task = sudoku(size=4, train_puzzles=800, test_puzzles=200)
    train, test = (stored(task.dataset(split)).astype(int) - 1 for split in ("train", "test"))
    assert not np.isin(*[puzzle_keys(p, 4, SYMMETRIES) for p in (train, test)]).any()


@pytest.mark.parametrize("split, other", [("train", "test"), ("test", "train")])
def test_generated_puzzles_stay_clear_of_a_file(tmp_path: Path, split: str, other: str) -> None:
    """That of the other split: they are no relabellings of its puzzles."""
    made = sudoku(size=4, train_puzzles=3000, test_puzzles=10, symmetries=["digits"])
    rows = stored(made.dataset("train")) - 1
    solved = solve_puzzles(rows, 4)
    write_whole_text(
        tmp_path / "p.csv", csv_text(PuzzleSet(rows, solved.solutions[:, 0], solved.guesses), "x")
    )
    config = {"size": 4, "symmetries": ["digits"], f"{split}_puzzles": 1500}
    task = sudoku(9, **config, **{f"{other}_file": str(tmp_path / "p.csv")})
    clear = stored(task.dataset(split)) - 1
    assert len(clear) == 1500
    keys = puzzle_keys(rows, 4, ["digits"])
    assert not np.isin(puzzle_keys(clear, 4, ["digits"]), keys).any()
    plain = sudoku(9, **config)
    assert np.isin(puzzle_keys(stored(plain.dataset(split)) - 1, 4, ["digits"]), keys).any()


def test_what_decides_the_cached_files() -> None:
    """Settings that change nothing on disk rebuild nothing, the others do."""

    def key(split: str = "train", seed: int = 0, **changes: Any) -> str:
        return sudoku(seed, **changes).cache_key([split])

    copy = str(SAMPLES / "sudoku_hard_train.csv")
    assert key() == key(seed=1) == key(augment="none") == key(symmetries=["rows"])
    assert key() == key(train_file=copy) == key(test_file=copy)
    assert key("test") == key("test", num_aug=5) == key("test", subsample_size=5)
    keys = [key(), key("test"), key(num_aug=1), key(num_aug=1, seed=1), key(subsample_size=9),
            key(num_aug=1, symmetries=["rows"]), key(min_difficulty=1), key(train_puzzles=50),
            key(subsample_size=9, seed=1), key("test", min_difficulty=1), key(size=4),
            key(size=4, seed=1), key(size=4, max_givens=9), key(size=6),
            key(size=4, symmetries=["digits"])]  # fmt: skip
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 6, "symmetries": ["digits", "transpose"]}, "symmetries: a 6x6 Sudoku has no"),
        ({"symmetries": []}, "symmetries: is empty; use augment: none"),
        ({"size": 4, "min_givens": 9, "max_givens": 8}, "min_givens: 9 is more than max_givens 8"),
        ({"size": 4, "max_givens": 16}, "max_givens: 16 leaves no blank in 16 cells"),
        ({"size": 9, "max_givens": 16}, "max_givens: 9x9 needs at least 17 givens"),
    ],
)
def test_settings_that_do_not_fit(changes: Any, message: str) -> None:
    """One line each, beginning with the setting's name."""
    (problem,) = SudokuConfig(name="sudoku", **changes).problems()
    assert problem.startswith(message)


def test_default_givens() -> None:
    """One bound alone moves the other out of its way."""
    assert SudokuConfig(name="sudoku", size=4).givens == (6, 8)
    assert SudokuConfig(name="sudoku", size=4, min_givens=10).givens == (10, 10)
    assert SudokuConfig(name="sudoku", size=4, max_givens=5).givens == (5, 5)
    assert SudokuConfig(name="sudoku", size=4, min_givens=5, max_givens=9).givens == (5, 9)
    assert SudokuConfig(name="sudoku").problems() == []
