"""Weights that come with the package: whole, small, described, and good for something."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pack_weights
import pytest
from paths import ROOT
from scripted import FIRST, FIRST_SOLVED, experiment, scripted_model

import mlx_trm as trm
from mlx_trm.errors import CheckpointError, ConfigError
from mlx_trm.evaluate import main as evaluate
from mlx_trm.inference.packaged import CARD, FOLDER, INDEX, find_pretrained
from mlx_trm.models import named_arrays
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.tasks.maze.generator import generate_sets as generate_mazes
from mlx_trm.tasks.sudoku.generator import generate_sets

NAMES = [each.name for each in trm.pretrained()]
MOST_BYTES = 30_000_000


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_whole_and_described(name: str) -> None:
    """Their files are as packed, bfloat16, with a card; nothing of a machine is in them."""
    entry = find_pretrained(name)
    checkpoint = trm.load_pretrained(name)
    assert checkpoint.config.task.name == entry.task and not checkpoint.model.training
    arrays = dict(named_arrays(checkpoint.model.weights()))
    assert sum(array.size for array in arrays.values()) == entry.parameters
    assert {array.dtype for array in arrays.values()} == {mx.float32}
    stored = mx.load(str(entry.folder / "model.safetensors"))
    assert {array.dtype for array in stored.values()} == {mx.bfloat16}  # type: ignore[union-attr]
    assert entry.card.startswith(f"# {name}\n") and "cannot" in entry.card
    assert {path.name for path in entry.folder.iterdir()} == {
        *(CARD, "config.yaml", "model.safetensors", "state.json")
    }
    task = checkpoint.config.task
    assert checkpoint.config.run_dir is None
    assert (task.data_dir, task.train_file, task.test_file) == (None, None, None)


def test_the_wheel_has_them_all_and_stays_small() -> None:
    """Each file matches a pattern of the package's data."""
    patterns = ("weights/*.json", "weights/*/*")
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{pattern}"' in text for pattern in patterns)
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    for path in files:
        place = str(path.relative_to(FOLDER.parent))
        assert any(fnmatch(place, pattern) for pattern in patterns), place
    assert {path.name for path in FOLDER.iterdir()} == {INDEX, *NAMES}
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


def test_the_small_weights_solve() -> None:
    """Unseen puzzles, from a generator with another seed; the card says 99 in 100."""
    rng = np.random.default_rng(99)
    solver = trm.Solver.from_pretrained("sudoku-4x4")
    (puzzles,) = generate_sets([40], 4, rng, (6, 8))
    found = solver.solve_many(["".join(map(str, cells)) for cells in puzzles.puzzles])
    assert sum(bool(step.correct) for step in found) >= 36


def test_a_solver_of_the_package_searches_as_its_weights_say() -> None:
    """Where nothing is asked for; any setting, and a checkpoint's folder, begin with plain runs."""
    solver = trm.Solver.from_pretrained("sudoku-4x4")
    (own,) = solver.search(["4.21 1... 3.4. ..1."])
    assert own.accepted and own.steps < solver.model.config.halt_max_steps
    (plain,) = solver.search(["4.21 1... 3.4. ..1."], seed=1)
    assert plain.steps == solver.model.config.halt_max_steps
    page = solver.film("4.21 1... 3.4. ..1.").scenes[0].takes
    assert [len(take.frames) for take in page] == [own.steps]
    folder = trm.Solver.from_checkpoint(str(FOLDER / "sudoku-4x4"))
    assert folder.own_search is None


def test_the_small_maze_weights_find_ways() -> None:
    """Unseen mazes; the card says 99.5 in 100 after four steps."""
    rng = np.random.default_rng(99)
    solver = trm.Solver.from_pretrained("maze-7x7")
    (mazes,) = generate_mazes([40], 7, rng, "walls", 5, unique=True)
    found = list(solver.search(list(mazes.inputs), steps=4))
    right = [np.array_equal(each.tokens, label) for each, label in zip(found, mazes.labels)]
    assert sum(right) >= 38


def test_a_wrong_name_is_one_line() -> None:
    """With the closest one, and all there are."""
    with pytest.raises(ConfigError) as caught:
        trm.load_pretrained("sudoku4x4")
    assert "did you mean 'sudoku-4x4'?" in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "config.yaml", INDEX])
def test_a_damaged_package_is_one_line(file: str, tmp_path: Path) -> None:
    """Weights, configuration and list: named, with what to do."""
    folder = tmp_path / "weights"
    shutil.copytree(FOLDER, folder)
    path = folder / file if file == INDEX else folder / "sudoku-4x4" / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError) as caught:
        trm.Solver(trm.load_pretrained("sudoku-4x4", folder).model, experiment())
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def pack(tmp_path: Path, **settings: Any) -> Path:
    """Pack a run of the scripted model, whose configuration names files."""
    config = experiment()
    config.task.train_file = str(tmp_path / "mine.csv")
    config.init.run = str(tmp_path / "first")
    config.run_dir = str(tmp_path / "run")
    save_checkpoint(tmp_path / "run", scripted_model(), config, 7)
    (tmp_path / "card.md").write_text("# mine\n")
    words = [str(tmp_path / "run"), "--name", "mine", "--summary", "a test", "--card"]
    words += [str(tmp_path / "card.md"), "--folder", str(tmp_path / "weights")]
    assert pack_weights.main([*words, *(f"--{k}={v}" for k, v in settings.items())]) == 0
    return tmp_path / "weights"


def test_packing(tmp_path: Path) -> None:
    """What is packed solves as the run did, and twice is once."""
    pack(tmp_path)
    folder = pack(tmp_path, search='{"rollouts": 4}')
    entry = find_pretrained("mine", folder)
    assert (entry.task, entry.summary, entry.search) == ("sudoku", "a test", {"rollouts": 4})
    checkpoint = trm.load_pretrained("mine", folder)
    assert checkpoint.step == 7
    solver = trm.Solver(checkpoint.model, checkpoint.config)
    assert solver.solve(FIRST).answer == FIRST_SOLVED
    for path in folder.rglob("*.*"):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    assert json.loads((folder / INDEX).read_text())["mine"]["default"] is False


def test_a_command_takes_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Where RUN stands; with --quiet, the table alone."""
    assert evaluate(["sudoku-4x4", "--max-examples", "40", "-q"]) == 0
    assert "exact_accuracy" in capsys.readouterr().out
    assert evaluate(["sudoku-5x5"]) == 2
    assert "sudoku-5x5: no such run or checkpoint folder" in capsys.readouterr().err


def test_a_folder_of_ones_own_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run folder that is called as weights of the package are."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("sudoku-4x4", scripted_model(), experiment(), 3)
    assert evaluate(["sudoku-4x4", "--max-examples", "8", "-q"]) == 0
    assert "step_3: step 3" in capsys.readouterr().out
