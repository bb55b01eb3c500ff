"""``python -m mlx_trm.adapt``: new ARC tasks from a file to a submission."""

import json
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
from toy_arc import TASKS, pair, write_tasks

import mlx_trm as trm
from mlx_trm.adapt import main
from mlx_trm.data import main as data
from mlx_trm.evaluate import main as evaluate
from mlx_trm.inference.evaluator import ablated_rows
from mlx_trm.runs.checkpoint import load_checkpoint
from mlx_trm.solve import main as solve
from mlx_trm.train import main as train

# With which a few steps change rows.
RATES = [
    "train.puzzle_emb_lr=0.5",
    "train.lr_warmup_steps=0",
    "train.max_steps=20",
    "train.epochs=90",
]
FAST = ["train.epochs=2", "-q"]


@pytest.fixture(name="run", scope="module")
def fixture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the toy's tasks."""
    folder = tmp_path_factory.mktemp("arc")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
        write_tasks()
        assert (
            train(["--config", "c.yaml", "run_dir=toy", "model.puzzle_emb_ndim=16", *RATES, "-q"])
            == 0
        )
    return folder / "toy"


@pytest.fixture(name="here")
def fixture_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a cache of its own."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def open_task(seed: int = 20) -> Dict[str, Any]:
    """A task whose test input has no output."""
    return {"train": [pair(seed), pair(seed + 1)], "test": [{"input": pair(seed + 2)["input"]}]}


def test_one_task_without_solution(run: Path, here: Path, capsys: Any) -> None:
    """Rows are learnt, weights stay; answers are drawn and submitted; nothing is scored."""
    (here / "mine.json").write_text(json.dumps(open_task()))
    assert main([str(run), "mine.json", "train.epochs=2"]) == 0
    output = capsys.readouterr().out
    folder = Path("runs/toy-mine")
    submission = json.loads((folder / "submission.json").read_text())
    assert list(submission) == ["mine"] and sorted(submission["mine"][0]) == [
        "attempt_1",
        "attempt_2",
    ]
    assert "1 task, 3 rows to learn" in output and "mine:1, the input and the answers, no" in output
    assert "no solutions" in output and "0.0000" not in output
    new, old = (load_checkpoint(path) for path in (folder / "run", run))
    assert new.spec.num_puzzle_identifiers == 4 and new.config.train.freeze == "weights"
    assert np.array_equal(np.array(new.model.lm_head.weight), np.array(old.model.lm_head.weight))
    rows = np.array(new.model.puzzle_emb.weights)[1:]
    assert not np.array_equal(rows[0], rows[1])
    assert not list((here / "cache").glob("arc-*"))
    assert solve([str(folder / "run"), "mine"]) == 0
    assert "wrong" not in capsys.readouterr().out
    for words in ([], ["--halt", "q"]):
        assert evaluate([str(folder / "run"), *words]) == 0
        output = capsys.readouterr().out
        assert "no solutions" in output and "0.0000" not in output
    assert data(["show", "--config", str(folder / "run" / "config.yaml"), "--name", "mine"]) == 0
    output = capsys.readouterr().out
    assert "of 3, mine\n" in output and "demonstration 2:" in output
    assert "demonstration 3:" not in output and "no solution is known" in output


def test_what_is_known_is_scored(run: Path, here: Path, capsys: Any) -> None:
    """Of two tasks one has its answer: it alone counts."""
    tasks = {"known": TASKS["b"]["e2"], "open": open_task(30)}
    (here / "two.json").write_text(json.dumps(tasks))
    assert main([str(run), "two.json", "--output", "out", *FAST]) == 0
    output = capsys.readouterr().out
    assert "all  count            3\n" in output and "ARC/pass@2" in output  # with augmentations
    assert sorted(json.loads(Path("out/submission.json").read_text())) == ["known", "open"]
    config = trm.load_config("out/run/config.yaml")
    assert config.task.require_solutions is False  # type: ignore[attr-defined]


def test_a_folder_and_solutions_beside_a_file(run: Path, here: Path, capsys: Any) -> None:
    """Kaggle's two files, or a file for each task; all answers are known."""
    challenges = {"k": open_task(40)}
    (here / "k_challenges.json").write_text(json.dumps(challenges))
    (here / "k_solutions.json").write_text(json.dumps({"k": [pair(42)["output"]]}))
    (here / "many").mkdir()
    for name, task in TASKS["b"].items():
        (here / "many" / f"{name}.json").write_text(json.dumps(task))
    assert main([str(run / "step_20"), "k_challenges.json", "--num-aug", "0", *FAST]) == 0
    assert "count            1\n" in capsys.readouterr().out
    assert Path("runs/toy-k/submission.json").is_file()
    assert main([str(run), "many", "--num-aug", "1", *FAST]) == 0
    assert sorted(json.loads(Path("runs/toy-many/submission.json").read_text())) == ["e1", "e2"]
    assert load_checkpoint("runs/toy-many/run").spec.num_puzzle_identifiers == 5


def test_steps_follow_from_visits(run: Path, here: Path) -> None:
    """Each augmentation is learnt so often, and there are never too few steps."""
    from mlx_trm import adapt

    (here / "mine.json").write_text(json.dumps(open_task()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapt, "FEWEST_STEPS", 1)
        assert main([str(run), "mine.json", "--visits", "2", "-q"]) == 0
    config = trm.load_config("runs/toy-mine/run/config.yaml")
    assert config.train.epochs == 6 and config.train.lr_warmup_steps == 0


def test_rows_taken_away(run: Path, here: Path, capsys: Any) -> None:
    """``--identifiers``: the blank row for all, or another puzzle's, by the seed."""
    model = load_checkpoint(run).model
    count = model.spec.num_puzzle_identifiers
    assert ablated_rows(model, "own") is None
    assert ablated_rows(model, "blank").tolist() == [0] * count  # type: ignore[union-attr]
    rows = [ablated_rows(model, "random", seed) for seed in (0, 0, 1)]
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])
    for each in rows:
        assert each is not None and each[0] == 0 and sorted(each) == list(range(count))
        assert (each[1:] != np.arange(1, count)).all()
    found = {}
    for kind in ("own", "blank", "random"):
        for words in ([], ["--halt", "q"]):
            line = [str(run), "--identifiers", kind, "--json", "out.json", *words]
            assert evaluate([*line, f"task.input_file_prefix={run.parent / 'p'}"]) == 0
            title = capsys.readouterr().out.splitlines()[0]
            assert title.endswith("test" if kind == "own" else f"test, identifiers {kind}")
            found[kind, len(words)] = json.loads((here / "out.json").read_text())
    losses = {found[kind, 0]["all"]["lm_loss"] for kind in ("own", "blank", "random")}
    assert len(losses) == 3  # each row gives other logits
    assert found["own", 0]["all"]["count"] == found["blank", 0]["all"]["count"]
    assert evaluate(["sudoku-4x4", "--identifiers", "blank"]) == 2
    assert "no rows of several puzzles" in capsys.readouterr().err


def test_puzzles_are_shown_with_name_and_demonstrations(run: Path, here: Path, capsys: Any) -> None:
    """By number or by name; an augmentation's demonstrations are augmented likewise."""
    line = [
        "show",
        "--config",
        str(run.parent / "c.yaml"),
        f"task.input_file_prefix={run.parent / 'p'}",
    ]
    assert data([*line, "--name", "e1"]) == 0
    output = capsys.readouterr().out
    assert output.count("demonstration 1:") == 2 and "demonstration 2:" not in output
    assert output.count(", e1\n") == 2  # two test inputs
    shown = output.split("demonstration 1:\n")[1].splitlines()[0]
    rows = [TASKS["b"]["e1"]["train"][0][side][0] for side in ("input", "output")]
    assert shown.split() == [str(cell) for row in rows for cell in row]
    assert data([*line, "--name", "e3"]) == 2
    assert "no puzzle of this split has this name" in capsys.readouterr().err
    assert data([*line, "--split", "train", "--index", "1", "--png", "out.png"]) == 0
    assert "demonstration" not in capsys.readouterr().out and Path("out.png").is_file()
    assert data(["show", "--config", "sudoku_tiny.yaml", "--name", "x"]) == 2
    assert "have no names; use --index" in capsys.readouterr().err


REFUSED: List[Any] = [
    (["sudoku", "mine.json"], "was trained on sudoku, and adapt learns rows"),
    (["RUN", "none.json"], "none.json: cannot be read"),
    (["RUN", "bad.json"], "bad.json: 'test' is empty"),
    (["RUN", "large.json"], "large.json: train pair 1: input: "),
    (["RUN", "mine.json", "--output", "full"], "full: is there already; name a new folder"),
    (["RUN", "mine.json", "train.lrr=3"], "did you mean 'train.lr'"),
    (["RUN", "mine.json", "train.batch_size=1000", "train.epochs=1"], "no batch is ever full"),
    (["RUN", "empty"], "holds no JSON files"),
]


@pytest.mark.parametrize("words, says", REFUSED, ids=[says for _, says in REFUSED])
def test_refused_in_a_line(run: Path, here: Path, words: List[str], says: str, capsys: Any) -> None:
    """And nothing is left behind."""
    (here / "mine.json").write_text(json.dumps(open_task()))
    (here / "bad.json").write_text(json.dumps({"train": [pair(1)], "test": []}))
    large = {"input": [[0] * 7], "output": [[0]]}
    (here / "large.json").write_text(json.dumps({"train": [large], "test": [large]}))
    for folder in ("full", "empty"):
        (here / folder).mkdir()
    (here / "full" / "kept").write_text("mine")
    assert main([str(run) if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (here / "runs").exists() or not list((here / "runs").iterdir())
    assert (here / "full" / "kept").read_text() == "mine"
