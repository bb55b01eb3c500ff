"""What ``train`` shows at its end: the model that it has in hand solves a test puzzle."""

import re
from pathlib import Path
from typing import Any, List

import pytest

import mlx_trm as trm
from mlx_trm import train
from mlx_trm.__main__ import main
from mlx_trm.models.carry import IGNORE_LABEL_ID
from mlx_trm.runs import checkpoint
from mlx_trm.tasks.arc.task import ARC
from mlx_trm.training import report

SMALL = """
model: {name: trm, hidden_size: 16, num_heads: 2, swiglu_multiple: 16, L_layers: 1, H_cycles: 1,
        L_cycles: 1, puzzle_emb_len: 1, halt_max_steps: 3}
train: {batch_size: 4, epochs: 4, max_steps: 3, ema_rate: 0.5, lr: 1e-2, lr_warmup_steps: 0}
eval: {max_examples: 4}
"""
TASKS = {
    "sudoku": "task: {name: sudoku, size: 4, train_puzzles: 20, test_puzzles: 5}\n",
    "maze": "task: {name: maze, size: 5, train_puzzles: 20, test_puzzles: 5}\n",
    "arc": "task: {name: arc, input_file_prefix: arc_tiny, subsets: [training, evaluation],\n"
    "       num_aug: 2, max_grid_size: 12}\n",
}


@pytest.fixture(name="folder")
def make_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a cache of its own."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown_steps(text: str) -> List[str]:
    """The lines of the demonstration's supervision steps."""
    _, found, demonstration = text.partition("\nA test puzzle being solved")
    assert found
    return re.findall(r"^  step .*$", demonstration, flags=re.MULTILINE)


@pytest.mark.parametrize("name", TASKS)
def test_the_demonstration_reads_nothing(
    folder: Path, capsys: Any, monkeypatch: Any, name: str
) -> None:
    """No checkpoint and no raw file; and yet it shows what the saved average answers."""
    (folder / "c.yaml").write_text(TASKS[name] + SMALL)
    with monkeypatch.context() as patch:
        for owner, method in (
            (checkpoint, "verify_checkpoint"),
            (ARC, "known_tasks"),
            (trm.Solver, "from_checkpoint"),
        ):

            def refuse(*_arguments: Any) -> None:
                raise AssertionError("is read from the disk again")

            patch.setattr(owner, method, refuse)
        assert main(["train", "--config", "c.yaml", "run_dir=run"]) == 0
    lines = shown_steps(capsys.readouterr().out)
    solver = trm.Solver.from_checkpoint(folder / "run")
    data = solver.task.dataset("test")
    _, arrays, _ = next(iter(data.eval_batches(1, 1, seed=solver.config.seed)))
    row = {key: values[0] for key, values in arrays.items()}
    text = solver.task.format(row["inputs"])
    number = int(row["puzzle_identifiers"])
    steps = list(solver.steps(text, identifier=number))
    assert len(lines) == len(steps) == 3
    for line, step in zip(lines, steps):
        words = f"halt {step.halt_probability:.3f}  {step.changed} cells changed"
        assert words in line
        if name != "arc":  # an augmented puzzle, which the data do not know by its grid
            assert line.endswith("right") == bool(step.correct)
    if name == "arc":
        labelled = row["labels"] != IGNORE_LABEL_ID
        assert labelled.any() and all(line.endswith("not right yet") for line in lines)


def test_a_long_run_says_so_before_its_first_step(
    folder: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Where a step is going to be long, as a few rows tell; the model is left as it was."""
    (folder / "c.yaml").write_text(TASKS["sudoku"] + SMALL)
    monkeypatch.setattr("mlx_trm.train.probe_step", lambda model, rows: 1e6 * rows)
    assert main(["train", "--config", "c.yaml"]) == 0
    error = capsys.readouterr().err
    assert error.index("the run takes about 139 days") < error.index("step 3/3")
    assert error.count("the run takes") == 1 and "; try train.max_hours=1" in error
    assert main(["train", "--config", "c.yaml", "-q", "run_dir=quiet"]) == 0
    assert "the run takes" not in capsys.readouterr().err


@pytest.mark.parametrize("steps, said", [(10**6, True), (1, False)])
def test_a_run_says_where_its_epochs_end(folder: Path, steps: int, said: bool) -> None:
    """Who asks for more steps than the epochs hold is told why there are fewer."""
    (folder / "c.yaml").write_text(TASKS["sudoku"] + SMALL)
    given = [f"train.max_steps={steps}", "run_dir=run"]
    config = trm.load_config("c.yaml", given)
    shown = dict(train.describe(trm.Trainer(config)))["steps"]
    assert (f"train.epochs={config.train.epochs} has no more, though" in shown) == said


def test_a_look_at_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows are looked at until that takes its time, or there are no more in a batch."""
    config = trm.TRMConfig("trm", hidden_size=16, num_heads=2, swiglu_multiple=16, L_layers=1)
    model = trm.TRM(config, trm.TaskSpec(vocab_size=6, seq_len=16)).train()
    seen: List[int] = []
    made = report.random_batch
    monkeypatch.setattr(report, "random_batch", lambda spec, n: seen.append(n) or made(spec, n))
    monkeypatch.setattr(report, "on_gpu", lambda: False)
    pace = report.probe_step(model, 6)
    assert pace is not None and 0 < pace < report.LONG_STEP and seen == [1] and model.training
    monkeypatch.setattr(report, "LONG_STEP", 0.0)
    report.probe_step(model, 6)
    assert seen == [1, 1, 2, 4]
    monkeypatch.setattr(report, "on_gpu", lambda: True)
    assert report.probe_step(model, 6) is None
