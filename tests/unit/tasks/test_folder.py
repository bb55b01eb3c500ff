"""The task ``folder``: its dimensions are those of a data set in the reference's format."""

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np
import pytest

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict
from mlx_trm.data import main as data
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.evaluate import main as evaluate
from mlx_trm.inference.solver import Solver
from mlx_trm.models import build_model
from mlx_trm.models.carry import IGNORE_LABEL_ID
from mlx_trm.solve import main as solve
from mlx_trm.tasks.folder import Folder, FolderConfig
from mlx_trm.train import main as train

WIDTH, TOKENS = 6, 5
MODEL = "name=trm hidden_size=16 num_heads=2 expansion=1 swiglu_multiple=8 L_layers=1 H_cycles=1 "
MODEL += "L_cycles=1 halt_max_steps=2 puzzle_emb_len=1"
RECIPE = "train.batch_size=4 train.epochs=2 train.lr_warmup_steps=1 train.max_steps=2"


def write_data(folder: Path, splits: str = "train test", names: int = 3, **changes: Any) -> Path:
    """Write rows and their mirror images; each of ``names`` puzzles has two examples."""
    rng = np.random.default_rng(0)
    for split in splits.split():
        (folder / split).mkdir(parents=True)
        count = 2 * (names - 1)
        inputs = rng.integers(1, TOKENS, (count, WIDTH)).astype(np.uint8)
        labels = inputs[:, ::-1].copy()
        labels[:, 0] = 0  # not scored
        arrays: Dict[str, Any] = {
            "inputs": inputs,
            "labels": labels,
            "puzzle_identifiers": np.arange(1, names),
            "puzzle_indices": np.arange(0, count + 1, 2),
            "group_indices": np.arange(names),
        }
        for name, array in arrays.items():
            np.save(folder / split / f"all__{name}.npy", array)
        about = {"vocab_size": TOKENS, "seq_len": WIDTH, "num_puzzle_identifiers": names}
        about.update(pad_id=0, ignore_label_id=0, blank_identifier_id=0, sets=["all"])
        about.update(total_groups=names - 1, total_puzzles=names - 1, mean_puzzle_examples=2.0)
        about.update(changes)
        (folder / split / "dataset.json").write_text(json.dumps(about))
    (folder / "identifiers.json").write_text(json.dumps(["<blank>", "one", "two"][:names]))
    return folder


def folder_task(path: Optional[Path], **settings: Any) -> Folder:
    """The task on a folder."""
    return Folder(FolderConfig("folder", None if path is None else str(path), **settings))


def test_the_dimensions_are_those_of_the_data(tmp_path: Path) -> None:
    """Nothing of them is in the configuration; a folder without one of the splits will do."""
    spec = folder_task(write_data(tmp_path / "a")).spec
    assert (spec.vocab_size, spec.seq_len, spec.num_puzzle_identifiers) == (TOKENS, WIDTH, 3)
    assert folder_task(write_data(tmp_path / "b", "test")).spec == spec
    task = folder_task(tmp_path / "a")
    assert len(task.dataset("train")) == 4 and task.names_puzzles
    both = FolderConfig("folder", [str(tmp_path / "a"), str(write_data(tmp_path / "c"))])
    assert Folder(both).dataset("test").spec.num_puzzle_identifiers == 5


def test_a_puzzle_is_numbers_symbols_or_an_example(tmp_path: Path) -> None:
    """All are read alike; an example brings its row, its name and its answer."""
    path = write_data(tmp_path / "a")
    task = folder_task(path)
    tokens = [1, 2, 3, 4, 1, 2]
    for text in (
        "1 2 3 4 1 2",
        "1,2,3,4,1,2",
        "[1, 2, 3, 4, 1, 2]",
        "1 2 3\n4 1 2",
        "│1│2+3!4 1 2│",
    ):
        assert task.parse(text).tolist() == tokens, text
    letters = folder_task(path, symbols="_abcd")
    assert letters.parse("ab c,d\nab").tolist() == tokens
    assert letters.format(np.array([*tokens[:5], 9])) == "abcda?"
    inputs, labels = task.dataset("test").example(2)
    assert task.parse("test:2").tolist() == inputs.tolist()
    assert (task.identifier("test:2"), task.row_name("test:2")) == (2, "two")
    assert (task.identifier("1 2 3 4 1 2"), task.row_name("1 2 3 4 1 2")) == (0, None)
    answer = task.known_answer("test:2")
    assert answer is not None and answer.tolist() == [IGNORE_LABEL_ID, *labels[1:].tolist()]
    assert task.equal(np.array([3, *labels[1:]]), answer)
    assert not task.equal(np.array([3, *(labels[1:] + 1)]), answer)
    assert task.known_answer("1 2 3 4 1 2") is None


def test_drawn_in_rows_and_read_again(tmp_path: Path) -> None:
    """``task.width`` cells a row; marks beside the cells; what is not scored is never wrong."""
    task = folder_task(write_data(tmp_path / "a"), width=4)
    tokens, before = np.array([1, 2, 3, 4, 1, 2]), np.array([1, 2, 3, 4, 1, 1])
    labels = np.array([IGNORE_LABEL_ID, 2, 3, 3, 1, 2])
    drawn = task.render_step(tokens, before, None, labels)
    assert drawn.splitlines() == [" 1 2 3!4", " 1+2    "]
    assert task.parse(drawn).tolist() == tokens.tolist()
    assert "\033[31m" in task.render_step(tokens, before, None, labels, color=True)
    board = task.board(tokens, None, labels, before)
    assert board.shape == (2, 4) and board.wrong.sum() == 1 and board.changed.sum() == 1
    found = list(task.split_puzzles(["1 2 3 4 1 2", "", "1 2 3", "4 1 2", "1 2", "", "test:0"]))
    assert [number for number, _ in found] == [1, 3, 5, 7]


def test_a_symbol_may_be_what_begins_comments_elsewhere(tmp_path: Path) -> None:
    """A wall is # in mazes; rows that begin with it are kept."""
    folder = write_data(tmp_path / "a")
    walls = folder_task(folder, symbols="?#.SG")
    assert list(walls.split_puzzles(["#.SG#.", "", "..#SG#"])) == [(1, "#.SG#."), (3, "..#SG#")]
    plain = folder_task(folder, symbols="?a.SG")
    assert list(plain.split_puzzles(["a.SGa. # a note"])) == [(1, "a.SGa.")]


REFUSED: List[Any] = [
    ("1 2 3", "has 3 tokens, it needs 6"),
    ("1 2 3 4 1 5", "token 6 of the puzzle is '5'; allowed are 0 to 4"),
    ("test:4", "the split has puzzles 0 to 3"),
]


@pytest.mark.parametrize("text,problem", REFUSED)
def test_a_wrong_puzzle_is_named(tmp_path: Path, text: str, problem: str) -> None:
    """One line says what and where."""
    with pytest.raises(DataError, match=problem):
        folder_task(write_data(tmp_path / "a")).parse(text)


@pytest.mark.parametrize(
    "make,settings,problem",
    [
        (lambda path: path, {}, "holds neither train/dataset.json nor test/dataset.json"),
        (lambda p: write_data(p) / "train", {}, "is one split; name the folder that holds"),
        (lambda p: write_data(p, "test"), {}, "the dataset has no split 'train'"),
        (write_data, {"symbols": "abc"}, "task.symbols: has 3 characters, the data have 5"),
        (lambda p: write_data(p, vocab_size=300), {}, "vocab_size is 300; at most 256"),
        (lambda p: write_data(p, seq_len=7), {}, "rows of 6 cells, seq_len is 7"),
    ],
)
def test_a_folder_that_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], Path], settings: Dict[str, Any], problem: str
) -> None:
    """What is wrong is said with where it is."""
    with pytest.raises(DataError, match=problem):
        folder_task(make(tmp_path / "a"), **settings).dataset("train")


def test_settings_that_do_not_fit() -> None:
    """Without a folder there is no task; raw files are not read."""
    values = {
        "task": {"name": "folder", "train_file": "a", "symbols": "a+"},
        "model": {"name": "trm"},
    }
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    for part in ("data_dir: is missing", "train_file: is not read", "symbols: no white space"):
        assert part in str(caught.value)
    assert FolderConfig("folder", []).problems() == ["data_dir: is an empty list"]


def test_every_command_works_on_a_folder(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Train, evaluate, solve and data show; a model is asked where its data are not."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "own")
    lines = ["task: {name: folder, data_dir: own}", "model:"]
    lines += [f"  {pair.replace('=', ': ')}" for pair in MODEL.split()]
    Path("own.yaml").write_text("\n".join(lines) + "\n")
    assert train(["--config", "own.yaml", *RECIPE.split()]) == 0
    assert evaluate(["runs/own"]) == 0
    assert solve(["runs/own", "test:1"]) == 0
    assert data(["show", "--config", "own.yaml", "--index", "1"]) == 0
    output = capsys.readouterr()
    assert "folder, 4 training examples" in output.out and "right)" in output.out
    assert "folder test puzzle 1 of 4" in output.out
    Path("own").rename("elsewhere")
    assert solve(["runs/own", "1 2 3 4 1 2", "--quiet"]) == 0
    assert solve(["runs/own", "test:1"]) == 2
    assert "holds neither" in capsys.readouterr().err
    assert data(["build", "--config", "own.yaml"]) == 2
    assert "is built already" in capsys.readouterr().err


def test_other_dimensions_than_the_model_are_refused(tmp_path: Path) -> None:
    """The folder's are compared with the model's, not taken from it."""
    pairs = [pair.split("=") for pair in MODEL.split()]
    config = config_from_dict(
        {
            "task": {"name": "folder", "data_dir": str(write_data(tmp_path / "a"))},
            "model": {k: v if k == "name" else int(v) for k, v in pairs},
        }
    )
    model = build_model(config.model, trm.TaskSpec(vocab_size=TOKENS, seq_len=9), seed=0)
    with pytest.raises(ConfigError, match="seq_len is 6, the model was made for 9"):
        Solver(model, config)


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda file: file.write_text("{"), "dataset.json"),
        (lambda file: file.write_text('{"vocab_size": 5}'), "dataset.json"),
        (lambda file: None, "task.symbols: has 2 characters"),
        (lambda file: file.parent.rename(file.parents[1] / "x"), "task.symbols: has 2 characters"),
    ],
)
def test_a_model_does_not_hide_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    """Its dimensions stand in for a folder that is gone, not for one that cannot be read."""
    folder = write_data(tmp_path / "a", splits="train")
    task = folder_task(folder, symbols="ab")
    task.assumed = trm.TaskSpec(vocab_size=TOKENS, seq_len=6)
    damage(folder / "train" / "dataset.json")
    with pytest.raises(DataError, match=says):
        _ = task.spec
