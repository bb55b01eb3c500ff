"""``mlx-trm completion``: what bash and zsh complete, and that it is what the parsers take."""

import shutil
from pathlib import Path
from typing import List, Tuple

import pytest
from child_processes import run, run_python

from mlx_trm.__main__ import main
from mlx_trm.cli.commands import COMMANDS
from mlx_trm.cli.completion import SHELLS, all_words

BASH = shutil.which("bash")
ASKED: List[Tuple[List[str], List[str]]] = [
    (["tr"], ["train"]),
    (["train", "--de"], ["--device"]),
    (["train", "--device", ""], ["cpu", "gpu"]),
    (["train", "--config", "maze"], ["maze.yaml", "maze_grid.yaml", "maze_tiny.yaml"]),
    (["train", "-q", "train.lr_w"], ["train.lr_warmup_steps="]),
    (["data", "ver"], ["verify"]),
    (["data", "-q", "show", "--spl"], ["--split"]),
    (["data", "show", "--split", "t"], ["train", "test"]),
    (["data", "show", "task.siz"], ["task.size="]),
    (["data", "list", "--split"], []),
    (["solve", "runs/x", "--halt", "s"], ["stable"]),
    (["solve", "p"], ["plugins="]),
    (["export", "train.lr"], []),
    (["completion", "z"], ["zsh"]),
    (["nonsense", "--d"], []),
    (["train", "--log-file", "x"], []),  # bash offers files then
]


@pytest.fixture(name="script", scope="module")
def fixture_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that asks bash for the completion of its arguments, the last one being written."""
    folder = tmp_path_factory.mktemp("completion")
    done = run_python("-m", "mlx_trm", "completion", "bash")
    assert done.returncode == 0 and done.stderr == ""
    asks = 'COMP_WORDS=(mlx-trm "$@"); COMP_CWORD=$#; _mlx_trm; printf "%s\\n" "${COMPREPLY[@]}"\n'
    (folder / "asks.bash").write_text(done.stdout + asks, encoding="utf-8")
    return folder / "asks.bash"


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
@pytest.mark.parametrize("words, offered", ASKED, ids=[" ".join(words) for words, _ in ASKED])
def test_bash_completes(script: Path, words: List[str], offered: List[str]) -> None:
    """Commands, sub-commands, their options, values and settings."""
    done = run(["bash", "--norc", script, *words])
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_of_that_shell(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shell parses it, where it is there; every command and sub-command is in it."""
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for command, action, words in all_words():
        assert f"{command}:{action})" in text
        assert all(option in text for option in words.options)
    (tmp_path / "script").write_text(text, encoding="utf-8")
    if shutil.which(shell):
        done = run([shell, "-n", tmp_path / "script"])
        assert (done.returncode, done.stderr) == (0, "")


def test_words_are_those_of_the_parsers() -> None:
    """Each command is there with its options; settings only where they are taken."""
    found = {(command, action): words for command, action, words in all_words()}
    assert {command for command, _ in found} == set(COMMANDS)
    train = found["train", ""]
    assert train.options["--quiet"] is None and train.options["--device"] == ("cpu", "gpu")
    assert {"train.lr=", "task.size=", "model.hidden_size=", "seed="} <= set(train.settings)
    assert found["data", "list"].settings == ()
    assert found["solve", ""].settings == ("plugins=",)
    assert "data" not in train.actions and "build" in found["data", ""].actions


@pytest.mark.parametrize("words", [[], ["fish"], ["bash", "zsh"]])
def test_a_shell_has_to_be_named(words: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and exit code 2."""
    assert main(["completion", *words]) == 2
    assert capsys.readouterr() == ("", "completion: name one shell: bash or zsh\n")
    assert main(["completion", "--help"]) == 0
    assert "in .zshrc" in capsys.readouterr().out
