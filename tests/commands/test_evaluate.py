"""``python -m mlx_trm.evaluate``: plainly, by a search, on files, against other runs."""

import csv
import json
import re
from pathlib import Path
from typing import Any, List, NamedTuple, Tuple

import numpy as np
import pytest
from gambling import Gambler, GamblerConfig
from scripted import experiment, tiny_config

from mlx_trm.evaluate import count_positions, main
from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.models import TRM
from mlx_trm.runs.checkpoint import load_checkpoint, save_checkpoint
from mlx_trm.tasks import PuzzleDataset, build_task
from mlx_trm.tasks.base import ShareScorer

TINY = tiny_config(H_cycles=1, L_cycles=1, halt_max_steps=3)


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture(name="runs", scope="module")
def fixture_runs(tmp_path_factory: Any) -> Tuple[str, str]:
    """A run of a tiny model and one of the gambler, on a hundred puzzles."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model in (("tiny", TINY), ("gambler", GamblerConfig())):
        config = experiment(model)
        config.task.test_puzzles = 100
        config.eval.batch_size = 16
        task = build_task(config.task)
        kind = TRM if name == "tiny" else Gambler
        save_checkpoint(folder / name, kind(model, task.spec), config, 5)
    return str(folder / "tiny"), str(folder / "gambler")


@pytest.fixture(name="evaluate")
def fixture_evaluate(capsys: Any, monkeypatch: Any) -> Any:
    """Run the command in this process; the gambler knows the test puzzles."""
    config = experiment()
    config.task.test_puzzles = 100
    arrays = next(build_task(config.task).dataset("test").eval_batches(100))[1]
    reason = Gambler.reason

    def knowing(self: Gambler, carry: Any, rows: Any) -> Any:
        self.learn(arrays["inputs"], arrays["labels"])
        return reason(self, carry, rows)

    monkeypatch.setattr(Gambler, "reason", knowing)

    def call(*words: str) -> Done:
        code = main(list(words))
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def rows_of(text: str) -> List[List[str]]:
    """The cells of every line of a command's tables."""
    return [re.split(r" {2,}", line) for line in text.splitlines()]


def test_without_new_options_it_is_the_evaluator(evaluate: Any, runs: Any) -> None:
    """The figures of ``Evaluator.run``, all of them and nothing else."""
    done = evaluate(runs[0])
    config = experiment(TINY)
    config.task.test_puzzles = 100
    config.eval.batch_size = 16
    metrics = Evaluator(load_checkpoint(runs[0]).model, config).run("test")["all"]
    shown = {row[1]: row[2] for row in rows_of(done.out) if row[0] == "all"}
    assert list(shown) == [n for n in metrics if not n.startswith("exact_accuracy_")]
    assert shown["lm_loss"] == f"{metrics['lm_loss']:.4f}" and shown["count"] == "100"


def test_a_search_reports_what_it_reached_and_cost(
    evaluate: Any, runs: Any, tmp_path: Path
) -> None:
    """Tables by steps and by choice; the same numbers as JSON."""
    path = tmp_path / "m.json"
    done = evaluate(runs[1], "--halt", "rules", "--rollouts", "8", "--json", str(path))
    assert done.code == 0 and "at most 6 steps, halt rules, 8 rollouts, start random" in done.out
    found = json.loads(path.read_text())
    table = {row[0]: row for row in rows_of(done.out) if len(row) == 6}
    for part in ("by_steps", "by_choice"):
        for name, values in found[part].items():
            assert table[name][2] == f"{values['exact_accuracy']:.4f}"
            assert table[name][4] == f"{values['steps']:.2f}"
    assert list(found["by_choice"]) == ["single", "pass@2", "pass@4", "pass@8", "rules"]
    assert found["answers"]["exact_accuracy"] > 0.9 > found["by_choice"]["single"]["exact_accuracy"]
    assert found["accepted"]["exact_accuracy"] == 1
    assert found["settings"]["rollouts"] == 8 and found["settings"]["batch_size"] == 16


def test_a_file_with_ratings_and_sources(evaluate: Any, runs: Any, tmp_path: Path) -> None:
    """The puzzles of a CSV, by rating and by source; a sample does not depend on their order."""
    config = experiment()
    config.task.test_puzzles = 100
    task = build_task(config.task)
    arrays = next(task.dataset("test").eval_batches(100))[1]
    lines = [
        f"{'ab'[n % 2]},{task.format(puzzle)},{task.format(label)},{n % 3}"
        for n, (puzzle, label) in enumerate(zip(arrays["inputs"], arrays["labels"]))
    ]
    files = []
    for name, order in (("a", lines), ("b", lines[::-1])):
        files.append(tmp_path / f"{name}.csv")
        files[-1].write_text("\n".join(["source,question,answer,rating", *order]) + "\n")
    sums = []
    for file in files:
        path = tmp_path / "m.json"
        words = ["--data", str(file), "--max-examples", "40", "--json", str(path)]
        assert evaluate(runs[1], *words, "--rollouts", "3").code == 0
        sums.append(json.loads(path.read_text()))
    assert sums[0] == sums[1]
    assert set(sums[0]["by_rating"]) == {"0", "1", "2"} and set(sums[0]["by_source"]) == {"a", "b"}
    assert sum(each["count"] for each in sums[0]["by_rating"].values()) == 40
    whole = evaluate(runs[1], "--data", str(files[0]), "--halt", "q").out
    single = [row for row in rows_of(whole) if row[0] == "answers"][0]
    assert single[1] == "100" and single[2] == f"{np.mean(arrays['inputs'][:, 0] > 1):.4f}"


def test_predictions_and_a_comparison(evaluate: Any, runs: Any, tmp_path: Path) -> None:
    """What one evaluation writes another is compared with."""
    path = tmp_path / "one.csv"
    assert evaluate(runs[1], "--predictions", str(path)).code == 0
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 100 and {row["rollouts"] for row in rows} == {"1"}
    right = sum(row["correct"] == "true" for row in rows)
    done = evaluate(runs[1], "--rollouts", "6", "--halt", "rules", "--against", str(path))
    found = re.search(r"both right (\d+), only here (\d+), only there 0, neither (\d+)", done.out)
    assert found and int(found[1]) == right and int(found[2]) > 30
    assert sum(map(int, found.groups())) == 100
    chance = re.search(r"p = (\S+)", done.out)
    assert chance and float(chance[1]) < 1e-6


@pytest.mark.parametrize(
    "words, message",
    [
        (["--halt", "maybe"], "invalid choice: 'maybe'"),
        (["--noise", "-1"], "not a number above 0"),
        (["--rollouts", "2", "--start", "fixed"], "2 runs would all be the same"),
        (["--predictions", "p.txt"], "the name must end in .csv or .jsonl"),
        (["--against", "nothing.csv"], "nothing.csv: cannot be read"),
        (["--data", "nothing.csv"], "nothing.csv: cannot be read"),
        (["--halt", "q", "--output", "out"], "--output: is written by a plain evaluation"),
    ],
)
def test_what_it_refuses(
    evaluate: Any, runs: Any, words: List[str], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """In one line, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    done = evaluate(runs[0], *words)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_set_without_a_scored_cell_has_no_accuracy(
    evaluate: Any, runs: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Nothing was measured: that is said, null in the file, and never 0.0000."""
    batches = PuzzleDataset.eval_batches

    def unlabelled(self: Any, *args: Any, **options: Any) -> Any:
        for name, arrays, size in batches(self, *args, **options):
            yield name, {**arrays, "labels": np.full_like(arrays["labels"], -100)}, size

    monkeypatch.setattr(PuzzleDataset, "eval_batches", unlabelled)
    monkeypatch.setattr(ShareScorer, "update", lambda self, rows: None)
    done = evaluate(runs[0], "--json", str(tmp_path / "m.json"))
    assert done.code == 0 and "0.0000" not in done.out
    assert "no solutions" in done.out
    shown = {row[1]: row[2] for row in rows_of(done.out) if row[0] == "all"}
    assert shown["count"] == "0" and shown["valid_grids"] == "no solutions"
    written = json.loads((tmp_path / "m.json").read_text(), parse_constant=pytest.fail)
    assert written["all"] == {"count": 0, "valid_grids": None}


def test_json_files_have_null_for_what_is_no_number(
    evaluate: Any, runs: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """A model whose numbers are not finite: no NaN, which no reader of JSON has to take."""
    checkpoint = load_checkpoint(runs[0])
    checkpoint.model.q_head.bias = checkpoint.model.q_head.bias * float("nan")
    save = tmp_path / "nan"
    monkeypatch.setattr(
        "mlx_trm.cli.checkpoints.load_checkpoint", lambda *args, **options: checkpoint
    )
    save.mkdir()
    done = evaluate(str(save), "--json", str(tmp_path / "m.json"))
    assert done.code == 0
    written = json.loads((tmp_path / "m.json").read_text(), parse_constant=pytest.fail)
    assert written["all"]["q_halt_loss"] is None and written["all"]["count"] == 100
    names = ["--rollouts", "2", "--predictions", str(tmp_path / "p.jsonl")]
    assert evaluate(str(save), *names, "--json", str(tmp_path / "s.json")).code == 0
    for text in [(tmp_path / "s.json").read_text(), *(tmp_path / "p.jsonl").open()]:
        json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "overrides, positions",
    [
        ([], 16 * 16),
        (["eval.batch_size=2000"], 2000 * 16),
        (["eval.batch_size=2000", "eval.max_examples=100", "plugins=nowhere.py"], 100 * 16),
        (["eval.batch_size=nonsense"], 0),
        (["eval.batch_size=[1,"], 0),
    ],
)
def test_large_batches_are_known_before_anything_is_loaded(
    runs: Any, overrides: List[str], positions: int
) -> None:
    """Of a run that cannot be read nothing is known, and loading it says what is wrong."""
    assert count_positions(runs[0], overrides) == positions
    assert count_positions("no/such/run", overrides) == 0
