"""The maze task: tokens, rules, drawing, datasets, augmentation, scores, settings."""

from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from counting import count_calls
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets.writing import write_whole_text
from mlx_trm.errors import DataError
from mlx_trm.tasks import Maze, MazeConfig, PuzzleDataset, ScoredRows
from mlx_trm.tasks.maze.files import csv_text, read_mazes
from mlx_trm.tasks.maze.generator import MazeSet, generate_sets, maze_keys

# Two shortest paths of 4 steps.
INPUTS = "S../.#./..G"
LABELS = "S../o#./ooG"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def maze(seed: int = 0, **settings_: Any) -> Maze:
    """A task with these settings."""
    return Maze(MazeConfig(name="maze", **settings_), seed)


def made(count: int, size: int, seed: int = 0, **more: Any) -> MazeSet:
    """Generated mazes."""
    return generate_sets([count], size, np.random.default_rng(seed), **more)[0]


def stored(dataset: PuzzleDataset, name: str = "inputs") -> np.ndarray:
    """An array as it lies on disk."""
    array: np.ndarray = np.load(dataset.path / f"all__{name}.npy")
    return array


def test_the_spec() -> None:
    """Six tokens; padding and blank are tokens too, nobody has a name."""
    assert maze().spec == TaskSpec(6, 900)
    assert maze(size=3).spec == TaskSpec(6, 9) and maze(size=41).spec.seq_len == 1681
    assert maze().spec.ignore_label_id == 0 and maze().spec.num_puzzle_identifiers == 1


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 8), st.integers(0, 2**32 - 1))
def test_format_and_parse_are_inverse(size: int, seed: int) -> None:
    """For mazes, answers, and whatever else a model may predict."""
    task = maze(size=size)
    tokens = np.random.default_rng(seed).integers(6, size=size * size).astype(np.uint8)
    text = task.format(tokens)
    assert len(text) == size * size + size - 1 and " " not in text
    again = task.parse(text)
    assert again.dtype == np.uint8 and (again == tokens).all()
    assert list(task.split_puzzles([text, "", text])) == [(1, text), (3, text)]


def test_format() -> None:
    """A token that is none at all is a question mark too."""
    task = maze(size=3)
    assert task.format(np.array([3, 2, 1, 5, 5, 0, 77, 6, 4])) == "S.#/oo?/??G"


def test_render() -> None:
    """Two characters a cell; what is wrong is marked, unless the answer is right as well."""
    task = maze(size=3)
    inputs, labels = task.parse(INPUTS), task.parse(LABELS)
    assert task.render(inputs) == "┌──────┐\n│S     │\n│  ██  │\n│    G │\n└──────┘"
    drawn = "┌──────┐\n│S     │\n│• ██  │\n│• • G │\n└──────┘"
    assert task.render(labels) == task.render(labels, inputs, labels) == drawn
    other = task.parse("Soo/.#o/..G")
    assert "!" not in task.render(other, inputs, labels) + task.render(inputs, inputs, labels)
    wrong = task.parse("S.#/o.o/.oG")
    marked = "┌──────┐\n│S   █!│\n│•  !•!│\n│ !• G │\n└──────┘"
    assert task.render(wrong, inputs, labels) == task.render(wrong, labels=labels) == marked
    colored = task.render(wrong, inputs, labels, color=True)
    assert "\033[1mS \033[0m" in colored and "\033[32m• \033[0m" in colored
    assert "\033[31m█!\033[0m" in colored and "\033[31m !\033[0m" in colored
    assert task.render(np.zeros(9, np.uint8)).count("? ") == 9


def test_image() -> None:
    """A pixel a cell; six colours that differ."""
    task = maze(size=3)
    picture = task.image(task.parse("S.#/oo?/..G"))
    assert picture.shape == (3, 3, 3) and picture.dtype == np.uint8
    pixels = picture.reshape(9, 3)
    assert len(np.unique(pixels, axis=0)) == 6
    assert (pixels[1] == 255).all() and (pixels[3] == pixels[4]).all() and pixels[2].max() < 64
    assert (task.image(np.full(9, 9)) == task.image(np.zeros(9, int))).all()


def scored(inputs: np.ndarray, predictions: np.ndarray) -> ScoredRows:
    """Rows for a scorer that looks at nothing else."""
    rows = np.arange(len(inputs))
    return ScoredRows(inputs, inputs, predictions, rows * 0, rows * 0.0, rows)


@pytest.mark.parametrize(
    "text, several",
    [("S.#/..#/..G", True), ("S../##./..G", False), ("S#./.#./..G", False), ("SG./.../...", False)],
)
def test_several_shortest_paths_are_said(text: str, several: bool) -> None:
    """Whatever other ways there are, as long as they are longer."""
    task = maze(size=3)
    assert ("several shortest paths" in task.describe_difficulty(task.parse(text))) is several


def test_check_remark_and_score() -> None:
    """Valid and optimal paths are counted apart; equality with the label is not asked for."""
    task = maze(size=5)
    inputs = task.parse("S#..G/..#../#...#/...../.....")
    best = task.parse("S#.oG/oo#o./#ooo#/...../.....")
    other = task.parse("S#..G/oo#oo/#o.o#/.ooo./.....")
    stray = task.parse("S#.oG/oo#o./#ooo#/...../....o")
    assert task.check(inputs, best) and not task.check(inputs, other)
    assert not task.check(inputs, inputs) and not task.check(best, best)
    assert task.describe_answer(inputs, best) == "a shortest path, 8 steps"
    assert task.describe_answer(inputs, other) == "a path of 10 steps, 8 are enough"
    assert task.describe_answer(inputs, stray) == "no clean path from S to G"
    scorer = task.scorer()
    assert list(scorer.result()) == ["valid_path", "optimal_path"]
    assert np.isnan(list(scorer.result().values())).all()  # nothing was measured
    scorer.update(scored(np.stack([inputs] * 3), np.stack([best, other, stray]).astype(np.int32)))
    assert scorer.result() == {"valid_path": 2 / 3, "optimal_path": 1 / 3}
    elsewhere = task.scorer()
    elsewhere.update(scored(inputs[None], best[None]))
    elsewhere.update(scored(inputs[None], np.zeros((1, 25), np.int64)))
    scorer.merge(elsewhere.state())
    assert scorer.result() == {"valid_path": 3 / 5, "optimal_path": 2 / 5} and not scorer.files()


def test_answers() -> None:
    """What solve asks for: labels, and what is wrong with the rest."""
    task = maze(size=3)
    rows = np.stack([task.parse(INPUTS), task.parse("S#./##./..G")])
    labels, problems = task.answers(rows)
    assert task.check(rows[0], labels[0])
    assert problems == {1: "no way leads from S in row 1 column 1 to G in row 3 column 3"}


def test_mazes_are_scored_together() -> None:
    """A hundred mazes take as many calls as one: no more than the longest path has steps."""
    mazes = made(100, 30, style="loops")
    scorer = maze().scorer()
    scorer.update(scored(mazes.inputs, mazes.labels))
    assert scorer.result() == {"valid_path": 1.0, "optimal_path": 1.0}
    longest = mazes.take(mazes.lengths.argmax()[None])
    few, many = (
        count_calls(lambda s=s: maze().scorer().update(scored(s.inputs, s.labels)))
        for s in (longest, mazes)
    )
    assert many < 1.5 * few


def rows_of(text: str) -> List[List[str]]:
    """A square text as a list of its rows."""
    size = int(len(text) ** 0.5)
    return [list(text[at : at + size]) for at in range(0, len(text), size)]


def eight_forms(rows: List[List[str]]) -> List[List[List[str]]]:
    """The transforms of a square in the reference's order, one cell at a time."""
    n = len(rows)
    places = [
        lambda r, c: (r, c),
        lambda r, c: (c, n - 1 - r),  # a quarter turn to the left
        lambda r, c: (n - 1 - r, n - 1 - c),
        lambda r, c: (n - 1 - c, r),
        lambda r, c: (r, n - 1 - c),  # left and right exchanged
        lambda r, c: (n - 1 - r, c),
        lambda r, c: (c, r),
        lambda r, c: (n - 1 - c, n - 1 - r),  # turned to the left, then left and right exchanged
    ]
    return [
        [[rows[place(r, c)[0]][place(r, c)[1]] for c in range(n)] for r in range(n)]
        for place in places
    ]


def test_a_build_is_the_references(tmp_path: Path) -> None:
    """With aug: each maze in its eight forms, in order, a group; every array as it should be."""
    text = csv_text(made(5, 6), "x")
    (tmp_path / "m.csv").write_text(text)
    file = str(tmp_path / "m.csv")
    task = maze(size=6, train_file=file, test_file=file, aug=True)
    about = task.build(tmp_path / "built")
    lines = [line.split(",") for line in text.split("\n")[1:-1]]
    for split, number in (("train", 8), ("test", 1)):
        expected = {
            name: [
                ["# SGo".index(char) + 1 for row in form for char in row]
                for line in lines
                for form in eight_forms(rows_of(line[column]))[:number]
            ]
            for name, column in (("inputs", 1), ("labels", 2))
        }
        dataset = PuzzleDataset.load(tmp_path / "built", split)
        for name, values in expected.items():
            array = stored(dataset, name)
            assert array.dtype == np.uint8 and array.tolist() == values
        count = 5 * number
        assert stored(dataset, "puzzle_identifiers").tolist() == [0] * count
        assert stored(dataset, "puzzle_indices").tolist() == list(range(count + 1))
        assert stored(dataset, "group_indices").tolist() == list(range(0, count + 1, number))
        assert (about[split]["total_groups"], about[split]["vocab_size"]) == (5, 6)
        assert about[split]["seq_len"] == 36 and about[split]["pad_id"] == 0
    for batch in PuzzleDataset.load(tmp_path / "built", "train").train_batches(5, 0, 1):
        keys = maze_keys(batch["inputs"].astype(np.uint8))
        assert sorted(keys) == sorted(maze_keys(read_mazes(file, 6).inputs))


def test_subsample(tmp_path: Path) -> None:
    """Of training only; order and seed are kept; more than there are is all of them."""
    mazes = made(40, 5)
    write_whole_text(tmp_path / "m.csv", csv_text(mazes, "x"))
    file = str(tmp_path / "m.csv")
    train = stored(maze(size=5, train_file=file, subsample_size=15).dataset("train"))
    places = [int(np.flatnonzero((mazes.inputs == row).all(axis=1))[0]) for row in train]
    assert len(places) == 15 and places == sorted(set(places)) != list(range(15))
    other = maze(1, size=5, train_file=file, subsample_size=15).dataset("train")
    assert (stored(other) != train).any()
    assert len(maze(size=5, train_file=file, subsample_size=99).dataset("train")) == 40
    assert len(maze(size=5, test_file=file, subsample_size=15).dataset("test")) == 40


def test_generated_splits_share_nothing() -> None:
    """Neither with each other, whichever is asked for first, nor with a file."""
    config = {"size": 5, "train_puzzles": 300, "test_puzzles": 200}
    task = maze(3, **config)
    train, test = (stored(task.dataset(split)) for split in ("train", "test"))
    assert (len(train), len(test)) == (300, 200)
    assert len(set(maze_keys(np.concatenate([train, test])))) == 500
    assert (stored(maze(3, **config).dataset("test")) == test).all()
    again = maze(3, **config)
    rng = np.random.default_rng(0)
    blocks = [np.concatenate([b.inputs for b in again.groups(s, rng)]) for s in ("test", "train")]
    assert (blocks[0] == test).all() and (blocks[1] == train).all()
    assert (stored(maze(4, **config).dataset("test")) != test).any()


@pytest.mark.parametrize("split, other", [("train", "test"), ("test", "train")])
def test_generated_mazes_stay_clear_of_a_file(tmp_path: Path, split: str, other: str) -> None:
    """The file of the other split, under all its turns and flips."""
    config = {"size": 4, "min_path": 4, "style": "walls", f"{split}_puzzles": 400}
    plain = stored(maze(7, **config).dataset(split))
    turned = np.rot90(plain.reshape(-1, 4, 4), axes=(1, 2)).reshape(-1, 16)
    task = maze(7, **config)
    labels, problems = task.answers(turned)
    assert not problems
    write_whole_text(tmp_path / "m.csv", csv_text(MazeSet(turned, labels, np.ones(400)), "x"))
    clear = stored(maze(7, **config, **{f"{other}_file": str(tmp_path / "m.csv")}).dataset(split))
    assert len(clear) == 400 and not set(maze_keys(clear)) & set(maze_keys(plain))


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 9), st.integers(0, 2**32 - 1))
def test_online_augmentation_keeps_paths_optimal(size: int, seed: int) -> None:
    """Each row in a form of its own, answer and maze alike; uint8 all the way."""
    mazes = made(12, size, seed, min_path=3)
    before = mazes.inputs.copy(), mazes.labels.copy()
    inputs, labels = maze(size=size).augment(*mazes[:2], np.random.default_rng(seed))
    assert inputs.dtype == labels.dtype == np.uint8
    judged = maze(size=size).judge(inputs, labels)
    assert judged.optimal.all() and (judged.steps == mazes.lengths).all()
    assert maze_keys(inputs) == maze_keys(mazes.inputs)
    assert (mazes.inputs == before[0]).all() and (mazes.labels == before[1]).all()


def test_every_form_comes_up() -> None:
    """About equally often."""
    mazes = made(1, 6)
    rows = np.repeat(mazes.inputs, 8000, axis=0)
    inputs, _ = maze(size=6).augment(rows, rows, np.random.default_rng(0))
    forms, times = np.unique(inputs, axis=0, return_counts=True)
    assert len(forms) == 8 and times.min() > 880


def test_a_batch_is_augmented_at_once() -> None:
    """768 mazes of 30x30 take as many calls as 96."""
    rows = np.tile(made(8, 30, style="loops").inputs, (96, 1))
    few, many = (
        count_calls(lambda n=n: maze().augment(rows[:n], rows[:n], np.random.default_rng(0)))
        for n in (96, 768)
    )
    assert many == few


def test_what_decides_the_cached_files(tmp_path: Path) -> None:
    """Settings that change nothing on disk rebuild nothing, the others do."""
    file = str(tmp_path / "m.csv")
    write_whole_text(file, csv_text(made(3, 30, style="loops"), "x"))

    def key(split: str = "train", seed: int = 0, **changes: Any) -> str:
        return maze(seed, **changes).cache_key([split])

    assert key() == key(augment="none") == key(min_path=111) == key(subsample_size=5)
    assert key("test") == key("test", aug=True) == key("test", subsample_size=5)
    assert key(train_file=file) == key(seed=1, train_file=file) == key(train_file=file, min_path=9)
    keys = [key(), key("test"), key(aug=True), key(seed=1), key(min_path=112), key(style="walls"),
            key(unique_path=True), key(train_puzzles=5), key(test_puzzles=5), key(size=29),
            key(train_file=file), key(train_file=file, aug=True), key("test", train_file=file),
            key("test", test_file=file), key(test_file=file),
            key(train_file=file, subsample_size=2),
            key(seed=1, train_file=file, subsample_size=2)]  # fmt: skip
    assert len(set(keys)) == len(keys)
    with pytest.raises(DataError, match="is a folder"):
        key(train_file=str(tmp_path))


@pytest.mark.parametrize("size, steps", [(3, 6), (10, 72), (30, 618)])
def test_settings_that_do_not_fit(size: int, steps: int) -> None:
    """One line that begins with the setting's name."""
    assert not MazeConfig(name="maze", size=size, min_path=steps).problems()
    (problem,) = MazeConfig(name="maze", size=size, min_path=steps + 1).problems()
    assert problem.startswith(f"min_path: a {size}x{size} maze has no shortest path of {steps + 1}")
