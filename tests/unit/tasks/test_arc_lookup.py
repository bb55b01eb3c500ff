"""ARC puzzles at the command line: by a name, as a grid, from files; and pictures of them."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, List

import mlx.core as mx
import numpy as np
import pytest
from toy_arc import TASKS, pair, write_tasks

import mlx_trm as trm
from mlx_trm.__main__ import main
from mlx_trm.errors import DataError
from mlx_trm.runs.layout import find_checkpoint
from mlx_trm.runs.puzzle_rows import read_row_names
from mlx_trm.tasks import ARC, ARCConfig


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: the tasks' files and a configuration."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_tasks()
    return tmp_path


@pytest.fixture(name="task")
def make_task(folder: Path) -> ARC:
    """The task itself."""
    del folder
    task = trm.build_task(trm.load_config("c.yaml").task, 42)
    assert isinstance(task, ARC)
    return task


def names(task: ARC) -> List[str]:
    """Names of the identifiers."""
    found: List[str] = json.loads(
        (task.dataset("test").path.parent / "identifiers.json").read_text()
    )
    return found


def test_a_task_by_its_name(task: ARC) -> None:
    """All its test inputs, or one of them; identifier and answer are known."""
    assert task.expand_puzzle("e1") == ["e1:1", "e1:2"] and task.expand_puzzle("e1:2") == ["e1:2"]
    assert task.expand_puzzle("012") == ["012"] and task.expand_puzzle("t1") == ["t1"]
    grid = TASKS["b"]["e1"]["test"][1]
    assert task.format(task.parse("e1:2")) == "/".join("".join(map(str, r)) for r in grid["input"])
    assert task.identifier("e1:2") == names(task).index("e1")
    answer = task.known_answer("e1:2")
    assert answer is not None
    assert task.format(answer) == "/".join("".join(map(str, r)) for r in grid["output"])


def test_a_grid_that_is_a_test_input_is_known(task: ARC, caplog: Any) -> None:
    """Any other has the blank row and no answer, and that is said."""
    given = json.dumps(TASKS["b"]["e2"]["test"][0]["input"])
    assert task.identifier(given) == names(task).index("e2")
    assert not caplog.records
    assert task.identifier("01/23") == 0 and task.known_answer("01/23") is None
    assert "01/23: is no test input of the data set" in caplog.text


def test_a_name_that_is_none(task: ARC) -> None:
    """With what it may have been meant to be."""
    with pytest.raises(DataError, match="rows of digits.*no test task has this name.*'e1'"):
        task.parse("e1x")


def test_without_data_grids_can_still_be_read(caplog: Any) -> None:
    """Nothing is known by name then, and it is said why."""
    task = ARC(ARCConfig("arc", input_file_prefix="none/x"))
    assert task.identifier("012") == 0 and task.format(task.parse("012")) == "012"
    assert "012: is no test input of the data set (task.subsets: 'evaluation'" in caplog.text


@pytest.mark.parametrize(
    "text, want",
    [
        ("012\n345\n\n\n6\n", [(1, "012\n345"), (5, "6")]),
        ("[[1, 2]]\n", [(1, "[[1, 2]]")]),
        (json.dumps(TASKS["b"]), [(1, "e1:1"), (1, "e1:2"), (1, "e2:1")]),
        (json.dumps({"e2": TASKS["b"]["e1"]}), [(1, json.dumps(pair(n)["input"])) for n in (5, 6)]),
        (json.dumps(TASKS["b"]["e2"]), [(1, json.dumps(pair(8)["input"]))]),
        ('{"x": 3}', []),
    ],
)
def test_grids_of_a_file(task: ARC, text: str, want: Any) -> None:
    """Digits with blank lines between, JSON of a grid, of a task, of several."""
    assert list(task.split_puzzles(text.splitlines())) == want


def test_a_file_that_looks_like_json_and_is_not(task: ARC) -> None:
    """Refused."""
    with pytest.raises(DataError, match="the file is not JSON"):
        list(task.split_puzzles(['{"train": [']))


def test_the_solver_uses_the_puzzles_row(folder: Path, task: ARC) -> None:
    """Another row gives other logits; the answer is judged by the data."""
    del folder
    config = trm.load_config("c.yaml")
    dataset = task.dataset("train")
    model = trm.build_model(config.model, dataset.spec, seed=0)
    believe_by_row(model)
    solver = trm.Solver(model, config, task)
    own = solver.solve("e1:1")
    number = names(task).index("e1")
    again = list(solver.steps(task.format(task.parse("e1:1")), identifier=number))[-1]
    other = list(solver.steps("e1:1", identifier=number + 1))[-1]
    assert own.halt_probability == again.halt_probability != other.halt_probability
    assert own.correct is False and solver.solve("01/23").correct is None
    many = solver.solve_many(["e1:1", "e2", "01/23"], batch_size=2)
    assert many[0].halt_probability == pytest.approx(own.halt_probability, rel=1e-5)
    assert [step.correct for step in many] == [False, False, None]


def test_commands(folder: Path, capsys: Any) -> None:
    """Train, evaluate with a submission, solve by name and from a file, show, and draw."""
    pytest.importorskip("matplotlib")
    assert main("train --config c.yaml -q run_dir=run eval.max_examples=99".split()) == 0
    saved = json.loads((folder / "run" / "evaluations" / "step_2" / "submission.json").read_text())
    assert {name: len(answers) for name, answers in saved.items()} == {"e1": 2, "e2": 1}
    assert main("evaluate run --output out -q".split()) == 0
    assert json.loads((folder / "out" / "submission.json").read_text()) == saved
    assert "ARC/pass@2" in capsys.readouterr().out
    assert main("solve run e1 --show steps --png a.png --json a.json".split()) == 0
    out = capsys.readouterr().out
    assert "puzzle 2 of 2" in out and "2 puzzles: 0 right" in out and "halt probability" in out
    record = json.loads((folder / "a.json").read_text())
    assert [len(r["steps"]) for r in record] == [2, 2] and record[0]["solution"] is not None
    (folder / "b.json").write_text(json.dumps(TASKS["b"]))
    assert main("solve run b.json --png b.png -q".split()) == 0
    assert "b.json:1" not in capsys.readouterr().err
    assert main("data show --config c.yaml --count 2 --png c.png".split()) == 0
    for name in "abc":
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(folder.glob(".*")) == []


def believe_by_row(model: Any) -> None:
    """Let the halt probability depend on the row of the puzzle table, as after longer training."""
    table = model.puzzle_emb.weights
    model.puzzle_emb.weights = mx.random.normal(table.shape, key=mx.random.key(0))
    model.q_head.weight = mx.random.normal(model.q_head.weight.shape, key=mx.random.key(1))


@pytest.fixture(name="run")
def fixture_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained run whose data set is no longer in the cache, and cannot be built again."""
    assert main("train --config c.yaml -q run_dir=run train.puzzle_emb_lr=1".split()) == 0
    shutil.rmtree(folder / "cache")

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise AssertionError("a whole data set is built for one answer")

    monkeypatch.setattr(ARC, "build", refuse)
    return folder / "run"


def test_one_answer_takes_no_data_set(run: Path, task: ARC, capsys: Any) -> None:
    """A task's name is looked up in the raw files, its row in the checkpoint or by the draws."""
    assert main(["solve", str(run), "e1", "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    loaded = trm.Solver.from_checkpoint(run)
    believe_by_row(loaded.model)
    own = [loaded.solve(name) for name in ("e1:2", "e2")]
    assert [step.correct for step in own] == [False, False]
    alone = trm.Solver(loaded.model, loaded.config)
    stored = read_row_names(find_checkpoint(run))
    assert stored is not None
    for name, step in zip(("e1:2", "e2"), own):
        assert alone.solve(name) == step
        number = stored.index(name[:2])
        assert alone.task.identifier(name) == number == task.identifier(name)
        *_, last = alone.steps(name, identifier=number)
        assert last == step
        *_, other = alone.steps(name, identifier=0)
        assert other.halt_probability != step.halt_probability


def test_an_unknown_name_is_one_line(run: Path, capsys: Any) -> None:
    """With a suggestion, and without a data set."""
    assert main(["solve", str(run), "e11"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "no test task has this name; did you mean 'e1'?" in captured.err


def test_the_checkpoint_says_whose_rows_it_has(run: Path, caplog: Any) -> None:
    """Rows go to the puzzles of the same names, as in an evaluation, whatever the data say now."""
    loaded = trm.load_checkpoint(run)
    believe_by_row(loaded.model)
    number = loaded.spec.num_puzzle_identifiers - 1
    names = [f"other {place}" for place in range(number)] + ["e2"]
    solver = trm.Solver(loaded.model, loaded.config, row_names=names)
    *_, last = trm.Solver(loaded.model, loaded.config).steps("e2", identifier=number)
    assert solver.solve("e2") == last and not caplog.records
    *_, blank = trm.Solver(loaded.model, loaded.config).steps("e1:1", identifier=0)
    assert solver.solve("e1:1") == blank != trm.Solver(loaded.model, loaded.config).solve("e1:1")
    assert "e1: the model's puzzle table has no row of this name" in caplog.text


def test_rows_of_a_folder_that_is_built(folder: Path, task: ARC, monkeypatch: Any) -> None:
    """In the cache, or ``data_dir``: its own numbers count, and nothing is drawn."""
    rows = names(task)
    task.build(folder / "mine")
    monkeypatch.setattr(ARC, "plans", None)
    again = ARC(task.config, 42)
    assert again.identifier("e2") == rows.index("e2")
    path = next((folder / "cache").glob("arc-*/identifiers.json"))
    path.write_text(json.dumps(["<blank>", "e2"]))
    assert ARC(task.config, 42).identifier("e2") == 1
    own = ARC(dataclasses.replace(task.config, data_dir=str(folder / "mine")), 42)
    assert [own.identifier(name) for name in ("e2", "e1:2")] == [
        rows.index(name) for name in ("e2", "e1")
    ]
    shown = task.demonstrations("e1:2")  # of the raw files
    assert shown and np.array_equal(shown, own.demonstrations("e1:2"))


def test_demonstrations_are_those_of_the_file(folder: Path, task: ARC) -> None:
    """In order, by a name or by the grid itself, and none for a grid that is in no task."""
    del folder
    shown = task.demonstrations("e1")
    assert np.array_equal(shown, task.demonstrations(task.format(task.parse("e1"))))
    given, answer = shown[0]
    assert not np.array_equal(given, answer) and given.dtype == np.uint8
    assert task.demonstrations("987/654") == []


def test_answers_that_are_not_known(task: ARC) -> None:
    """Where solutions may be missing, the black cell that stands for one is no answer."""
    task.config.require_solutions = False
    known = task.known_tasks().by_name["e1"]
    known[0] = known[0]._replace(answer=np.zeros((1, 1), np.uint8))
    assert task.known_answer("e1:1") is None and task.known_answer("e1:2") is not None


def test_a_test_input_that_a_task_has_not(task: ARC) -> None:
    """How many there are."""
    with pytest.raises(DataError, match="task e1 has 2 test inputs, not 9"):
        task.parse("e1:9")


def test_every_set_is_checked_before_the_first_step(folder: Path, task: ARC) -> None:
    """What votes need of the second set too; and the names of all identifiers."""
    for name in ("one", "two"):
        task.build(folder / name)
    both = ["task.data_dir=[one, two]", "run_dir=run"]
    trm.Trainer(trm.load_config("c.yaml", both))
    (folder / "two" / "build.json").unlink()  # with its checksums
    (folder / "two" / "identifiers.json").write_text(json.dumps(["<blank>", "e1"]))
    with pytest.raises(DataError, match="two/identifiers.json: has 2 names, the dataset has 10"):
        trm.Trainer(trm.load_config("c.yaml", both))
    (folder / "two" / "test_puzzles.json").unlink()
    with pytest.raises(DataError, match="two/(identifiers|test_puzzles).json"):
        trm.Trainer(trm.load_config("c.yaml", both))


def test_two_sets_have_their_own_votes(folder: Path, task: ARC, capsys: Any) -> None:
    """A submission each, and figures under their own names."""
    for name in ("one", "two"):
        task.build(folder / name)
    words = "train --config c.yaml task.data_dir=[one,two] eval.max_examples=99 run_dir=run -q"
    assert main(words.split()) == 0
    for name in ("one", "two"):
        path = folder / "run" / "evaluations" / "step_2" / name / "submission.json"
        assert set(json.loads(path.read_text())) == {"e1", "e2"}
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    evaluations = {line["set"]: line for line in lines if line["kind"] == "eval"}
    assert set(evaluations) == {"one", "two"} and evaluations["one"]["count"] == 9
    capsys.readouterr()


def test_a_sample_is_no_submission(folder: Path) -> None:
    """Nothing is written that leaves test inputs out."""
    assert main("train --config c.yaml -q run_dir=run".split()) == 0
    assert not (folder / "run" / "evaluations").exists()
