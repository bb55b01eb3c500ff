"""Every script in examples/ runs as its first lines say, and prints what it should."""

import json
import re
from pathlib import Path
from typing import List

import pytest
from child_processes import run_python
from paths import ROOT

EXAMPLES = ROOT / "examples"
SMALL = ["task.train_puzzles=200", "task.test_puzzles=40", "train.batch_size=16"]


def run(folder: Path, *command: str) -> str:
    """Run Python in a folder of its own, with a cache of its own; give what it prints."""
    done = run_python(*command, cwd=folder, env={"MLX_TRM_CACHE": str(folder / "cache")})
    assert done.returncode == 0, done.stderr
    return done.stdout


def example(folder: Path, name: str, *arguments: str) -> str:
    """Run one of the examples."""
    return run(folder, str(EXAMPLES / name), *arguments)


def test_every_example_is_tested_and_shown_in_its_docstring() -> None:
    """A new script gets a test here, and its first lines say how to start it."""
    here = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in here
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8")


def test_build_and_run(tmp_path: Path) -> None:
    """Four steps with the shapes promised, the same each time; the Q head starts at -5."""
    output = example(tmp_path, "01_build_and_run.py")
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2", "step 3", "step 4"]
    assert all("logits (4, 81, 11)" in line for line in lines)
    assert "halt probability 0.0067" in lines[0]
    assert output == example(tmp_path, "01_build_and_run.py")


def test_train_evaluate_and_watch(tmp_path: Path) -> None:
    """Three examples in a row, on a few puzzles and steps."""
    overrides: List[str] = [*SMALL, "train.max_steps=3", "run_dir=run"]
    trained = example(tmp_path, "02_train.py", *overrides)
    assert "step 3, all: exact accuracy 0." in trained
    assert "3 steps in" in trained and "run folder: run" in trained

    scores = example(tmp_path, "03_evaluate.py", "run").splitlines()
    assert [line.split(" steps")[0] for line in scores] == ["1", "2", "4", "8"]
    for line in scores:
        found = re.search(r"exact ([\d.]+) .* ([\d.]+) to ([\d.]+)\)", line)
        assert found is not None
        exact, low, high = map(float, found.groups())
        assert low <= exact <= high

    watched = example(tmp_path, "04_watch_the_answer.py", "run").splitlines()
    assert re.fullmatch(r"puzzle  [1-4.]{16}", watched[0])
    assert [line.split()[1] for line in watched[1:]] == ["1", "2", "3", "4"]
    given = example(tmp_path, "04_watch_the_answer.py", "run", "1....2....3....4")
    assert given.startswith("puzzle  1....2....3....4\nstep 1")


# The run's own configuration names the file.
ALLOW = "--allow-plugins"


def test_own_task_with_the_ordinary_commands(tmp_path: Path) -> None:
    """The run of a task from a file is evaluated and solved with by the commands."""
    example(tmp_path, "05_own_task.py", "train.max_steps=4", "run_dir=run")
    run(tmp_path, "-m", "mlx_trm.evaluate", "run", "--json", "metrics.json", "-q", ALLOW)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["all"]["count"] == 500
    assert run(tmp_path, "-m", "mlx_trm.solve", "run", "abcdeabcdeab", ALLOW)
    refused = run_python("-m", "mlx_trm.solve", "run", "abc", ALLOW, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "'abc': expected 12 letters from a to e\n"


@pytest.mark.slow
def test_own_task_is_learnt(tmp_path: Path) -> None:
    """The example ends with the right answer."""
    assert "abcdeabcdeab -> baedcbaedcba (right)" in example(tmp_path, "05_own_task.py")
