"""Whose code runs: plugins of the user's own, and those that a checkpoint brings along."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from mlx_trm.__main__ import main
from mlx_trm.config import plugins as module
from mlx_trm.config.loading import load_config
from mlx_trm.config.registry import TASKS
from mlx_trm.errors import CheckpointError, ConfigError
from mlx_trm.inference.solver import Solver
from mlx_trm.runs.checkpoint import load_checkpoint
from mlx_trm.training.trainer import Trainer

# It leaves a mark when its code runs.
PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
from mlx_trm.config.registry import TASKS
from mlx_trm.tasks.sudoku.task import Sudoku, SudokuConfig

Path(__file__).resolve().parent.joinpath("ran").touch()
Path({mark!r}).touch()

@dataclass
class OwnConfig(SudokuConfig):
    bonus: int = 1

@TASKS.register("own", OwnConfig)
class Own(Sudoku):
    def groups(self, split, rng):
        {body}
"""
BODY = "return super().groups(split, rng)"
YAML = """
plugins: [{name}]
task: {{name: own, size: 4, train_puzzles: 16, test_puzzles: 8}}
model: {{name: trm, hidden_size: 16, num_heads: 2, swiglu_multiple: 8, L_layers: 1, H_cycles: 1,
        L_cycles: 1, halt_max_steps: 2}}
train: {{batch_size: 8, epochs: 4, max_steps: 2}}
eval: {{interval: 4}}
run_dir: run
"""
PUZZLE = "12.. 34.. .143 .321"


@pytest.fixture(name="forget")
def fixture_forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Give what makes this process as it was before any plugin was imported."""
    modules, entries = set(sys.modules), dict(TASKS._entries)
    monkeypatch.setattr(module, "_LOADED", {})

    def forget() -> None:
        for name in set(sys.modules) - modules:
            if "own" in name:
                del sys.modules[name]
        TASKS._entries = dict(entries)
        module._LOADED.clear()

    yield forget
    forget()


@pytest.fixture(name="run")
def fixture_run(tmp_path: Path, monkeypatch: Any, forget: Callable[[], None]) -> Path:
    """A run with a plugin that was named as a file of the folder ``home``; as a stranger's."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    (home / "own.py").write_text(PLUGIN.format(mark=str(tmp_path / "mark"), body=BODY))
    (home / "c.yaml").write_text(YAML.format(name="own.py"))
    assert main("train --config c.yaml -q".split()) == 0
    assert (tmp_path / "mark").exists()
    (tmp_path / "mark").unlink()
    forget()
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    return home / "run"


def ran(run: Path) -> bool:
    """Whether the plugin's code ran since the run was made."""
    return (run.parent.parent / "mark").exists()


COMMANDS = {
    "evaluate": "evaluate {run}",
    "evaluate a checkpoint": "evaluate {run}/step_2",
    "evaluate by a search": "evaluate {run} --halt rules",
    "solve": f"solve {{run}} '{PUZZLE}'",
    "export": "export {run} --output m.mlxfn",
    "serve": "serve {run} --port 0",
    "serve, following": "serve {run}/step_2 --port 0 --runs {run}",
    "convert": "convert {run} --to-upstream m.safetensors",
    "resume": "train --resume {run} train.max_steps=3",
    "resume auto": "train --resume auto --config {run}/config.yaml",
    "resume, print": "train --resume {run} --print-config",
    "train by its configuration": "train --config {run}/config.yaml run_dir=new",
    "train by a checkpoint's": "train --config {run}/step_2/config.yaml run_dir=new",
    "print its configuration": "train --config {run}/config.yaml --print-config",
    "data": "data show --config {run}/config.yaml",
    "data build": "data build --config {run}/config.yaml",
    "convert into": "convert x.safetensors --output new --config {run}/config.yaml",
}


@pytest.mark.parametrize("line", COMMANDS.values(), ids=list(COMMANDS))
def test_no_command_runs_what_a_checkpoint_names(line: str, run: Path, capsys: Any) -> None:
    """One line that names the plugin and says what allows it; exit code 2."""
    import shlex

    (Path("own.py")).write_text("raise SystemExit('a file of that name here')")
    capsys.readouterr()
    assert main(shlex.split(line.format(run=run))) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "own.py" in error and "--allow-plugins" in error
    assert not ran(run)
    assert not Path("new").exists() and not Path("m.mlxfn").exists()


@pytest.mark.parametrize("line", ["evaluate {run}", "solve {run} '12.. 34.. .143 .321'"])
def test_a_plugin_is_found_from_everywhere_where_it_is_allowed(
    line: str, run: Path, capsys: Any
) -> None:
    """Its own file is gone, and another one of its name is in the working directory."""
    import shlex

    (run.parent / "own.py").unlink()
    Path("own.py").write_text("raise SystemExit('a file of that name here')")
    assert main([*shlex.split(line.format(run=run)), "--allow-plugins"]) == 0, capsys.readouterr()
    assert ran(run)


def test_in_python_it_takes_an_argument(run: Path, forget: Callable[[], None]) -> None:
    """Each way to read a checkpoint, without and with it."""
    ways: Any = {
        load_checkpoint: CheckpointError,
        Solver.from_checkpoint: CheckpointError,
        Trainer.resume: ConfigError,
    }
    for read, kind in ways.items():
        with pytest.raises(kind, match="own.py.*allow_plugins=True"):
            read(run)
        assert not ran(run)
        read(run, allow_plugins=True)
        assert ran(run)
        (run.parent.parent / "mark").unlink()
        forget()
    with pytest.raises(ConfigError, match="own.py"):
        load_config(run / "config.yaml")
    assert load_config(run / "config.yaml", allow_plugins=True).task.name == "own"


def test_what_the_user_names_needs_no_allowance(run: Path, forget: Callable[[], None]) -> None:
    """On the command line, in the user's own configuration, or imported before."""
    own = run.parent / "own.py"
    assert main(["evaluate", str(run), f"plugins=[{own}]"]) == 0
    forget()
    assert main(["solve", str(run), PUZZLE, f"plugins=[{own}]"]) == 0
    forget()
    assert main(["export", f"plugins=[{own}]", str(run), "--output", "m.mlxfn"]) == 0
    forget()
    words = ["--resume", str(run), "train.max_steps=3", f"plugins=[{own}]"]
    assert main(["train", *words]) == 0
    forget()
    text = YAML.format(name=str(own)).replace("4, max_steps: 2", "4, max_steps: 4")
    Path("mine.yaml").write_text(text.replace("run_dir: run", f"run_dir: {run}"))
    assert main(["train", "--resume", str(run), "--config", "mine.yaml"]) == 0
    assert (run / "step_4").is_dir()
    forget()
    load_config("mine.yaml")
    assert load_checkpoint(run).config.plugins == ["own.py"]  # as the run called it


def test_what_the_user_names_is_the_users_file(run: Path, caplog: Any) -> None:
    """Not the text that lies beside the checkpoint, and it says so where the two differ."""
    own = run.parent / "own.py"
    own.write_text(own.read_text() + "\nEDITED = True\n")
    assert main(["evaluate", str(run), f"plugins=[{own}]"]) == 0
    loaded = [sys.modules[each.module] for each in module._LOADED.values()]
    assert [vars(each)["EDITED"] for each in loaded] == [True]
    assert "has changed since the run kept its text; yours is used" in caplog.text


def test_a_resumed_run_keeps_both_texts(run: Path) -> None:
    """The newest is the one that its name stands for."""
    before = json.loads((run / "plugins/index.json").read_text())["own.py"]
    own = run.parent / "own.py"
    own.write_text(own.read_text() + "\nEDITED = True\n")
    words = ["--resume", str(run), "train.max_steps=3", f"plugins=[{own}]"]
    assert main(["train", *words]) == 0
    after = json.loads((run / "plugins/index.json").read_text())["own.py"]
    assert (run / "plugins" / before).is_file() and before != after
    assert (run / "plugins" / after).read_text() == own.read_text()


def test_what_was_read_is_what_runs(run: Path, monkeypatch: Any) -> None:
    """A compiled file beside the text is not looked at, and none is left there."""
    import importlib.util
    import py_compile

    place = run / "plugins" / json.loads((run / "plugins/index.json").read_text())["own.py"]
    times = place.stat()
    text = place.read_text()
    evil = f"raise SystemExit({str(place)!r})".ljust(len(text) - 1) + "\n"
    place.write_text(evil)
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    py_compile.compile(str(place))
    compiled = Path(importlib.util.cache_from_source(str(place)))
    assert compiled.is_file()
    place.write_text(text)
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_checkpoint(run, allow_plugins=True).config.task.name == "own"
    shutil.rmtree(compiled.parent)
    assert ran(run)


@pytest.mark.parametrize(
    "index",
    [
        '{"own.py": "../../../own.py"}',
        '{"own.py": "/etc/own.py"}',
        '{"own.py": ["a"]}',
        '{"own.py": "0123456789abcdef/own.py"}',
        "[1",
        "[" * 10_000,
        '{"own.py": "' + "x" * 70_000 + '"}',
    ],
)
def test_an_index_that_is_damaged_is_one_line(index: str, run: Path, capsys: Any) -> None:
    """It leads nowhere but into its own folder."""
    (run / "plugins/index.json").write_text(index)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--allow-plugins"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 700
    assert not ran(run)


def test_a_changed_text_is_refused(run: Path, capsys: Any) -> None:
    """It is not the one that the run was trained with."""
    place = json.loads((run / "plugins/index.json").read_text())["own.py"]
    (run / "plugins" / place).write_text("raise SystemExit")
    assert main(["evaluate", str(run), "--allow-plugins"]) == 2
    assert "is not the text that was kept" in capsys.readouterr().err


def test_names_of_plugins_cannot_write_to_the_terminal(run: Path, capsys: Any) -> None:
    """Nor make the line longer than a terminal takes."""
    for config in run.glob("**/config.yaml"):
        config.write_text(
            config.read_text().replace("- own.py", '- "\\e]0;own\\a.py"\n  - "b\\nc"')
        )
    with pytest.raises(ConfigError) as error:
        load_config(run / "config.yaml")
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
    assert r"\x1b]0;own\x07.py, b\nc" in str(error.value)


def test_an_error_in_a_plugin_names_its_line(run: Path, capsys: Any) -> None:
    """It is the user's to mend, and no bug of ours."""
    own = run.parent / "own.py"
    text = PLUGIN.format(mark=str(run.parent.parent / "mark"), body="return 1 / 0")
    own.write_text(text)
    line = 1 + text.splitlines().index("        return 1 / 0")
    capsys.readouterr()
    assert main(["evaluate", str(run), f"plugins=[{own}]"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("a plugin failed: ZeroDivisionError: division by zero")
    assert f"(own.py, line {line})" in error and "bug" not in error


def test_two_runs_with_texts_of_one_name_do_not_mix(run: Path, forget: Callable[[], None]) -> None:
    """The second is refused rather than read with the first one's code."""
    other = run.parent / "other"
    own = run.parent / "own.py"
    own.write_text(own.read_text() + "\nOTHER = True\n")
    words = f"train --config {run.parent / 'c.yaml'} plugins=[{own}] run_dir={other} -q"
    assert main(words.split()) == 0
    forget()
    load_checkpoint(run, allow_plugins=True)
    with pytest.raises(CheckpointError, match="another text of that name"):
        load_checkpoint(other, allow_plugins=True)
