"""Go at the command line: SGF and boards are solved and drawn; bad ones are one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_calls import in_empty_folder
from scripted import tiny_config

from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import EvalConfig, ExperimentConfig
from mlx_trm.models import build_model
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.tasks import GoConfig, build_task

LADDER = "......./..XX.../.XW..../......./......./......./......."
SGF = "(;GM[1]FF[4]SZ[7]AB[cb][db][bc]AW[cc]PL[B];B[cd](;W[dc])(;W[]))"


@pytest.fixture(name="run", autouse=True)
def fixture_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """Run a command in an empty folder with untrained runs of both kinds beside it."""
    call = in_empty_folder(tmp_path, monkeypatch, capsys)
    for kind in ("capture", "territory"):
        config = ExperimentConfig(
            task=GoConfig(name="go", kind=kind, train_puzzles=4, test_puzzles=4),
            model=tiny_config(),
            train=TrainConfig(compile="never"),
            eval=EvalConfig(),
        )
        model = build_model(config.model, build_task(config.task).spec, seed=0)
        save_checkpoint(tmp_path / kind, model, config, 1)
    return call


def test_boards_and_sgf_are_the_same_puzzle(run: Any) -> None:
    """As an argument and as files; every picture is drawn."""
    Path("p.sgf").write_text(SGF + "\n" + SGF.replace("\n", ""), encoding="utf-8")
    Path("p.txt").write_text(LADDER.replace("/", "\n") + "\n", encoding="utf-8")
    answers = []
    for puzzle in (LADDER, SGF, "p.sgf", "p.txt"):
        done = run("solve", "../capture", puzzle, "--show", "steps")
        assert (done.code, done.err) == (0, "")
        assert "│. X W . . . . │" in done.out and "black" in done.out
        answers.append(done.out.split("\nstep ")[1:5])
    assert answers[0] == answers[1] == answers[3]
    done = run("solve", "../capture", SGF, "--png", "a.png", "--gif", "a.gif", "--html", "a.html")
    assert done.code == 0
    assert all(Path(name).stat().st_size > 500 for name in ("a.png", "a.gif", "a.html"))


def test_territory_is_told(run: Any) -> None:
    """A settled board, given as a game record."""
    done = run("solve", "../territory", "(;SZ[7];B[ba];W[gg];B[ab];W[ff])")
    assert done.code == 0 and "black " in done.out and "neutral " in done.out


@pytest.mark.parametrize(
    "puzzle, words",
    [
        (LADDER.replace("W", "O"), "no group is marked"),
        ("WX" + LADDER[2:8] + "X" + LADDER[9:], "no liberty"),
        (SGF.replace("[7]", "[9]"), "SZ[9]"),
        (SGF[:-1], "no end"),
        ("(;SZ[7]AB[aa]AW[aa]TR[aa]", "no end"),
        ("nowhere.sgf", "nowhere.sgf: no such file"),
        ("dead.sgf", "dead.sgf"),
        ("deep.sgf", "deep"),
        ("long.sgf", "characters"),
    ],
)
def test_bad_input_is_one_line(run: Any, puzzle: str, words: str) -> None:
    """Exit code 2, and what is wrong with it."""
    Path("dead.sgf").write_bytes(b"(;\xff\xfe\x00")
    Path("deep.sgf").write_text("(;SZ[7]" * 5000, encoding="utf-8")
    Path("long.sgf").write_text("(;SZ[7]C[" + "x" * (2 << 20) + "])", encoding="utf-8")
    done = run("solve", "../capture", puzzle)
    assert done.code == 2 and done.out == ""
    assert words in done.err and done.err.count("\n") == 1, done.err


def test_data_show_and_evaluate(run: Any) -> None:
    """Generated puzzles are drawn with their answers; scores come from the rules."""
    done = run("data", "show", "--config", "go_tiny.yaml", "task.test_puzzles=2")
    assert done.code == 0 and "┌──────────────┐" in done.out
    Path("p.sgf").write_text(SGF, encoding="utf-8")
    done = run("evaluate", "../capture", "--data", "p.sgf")
    assert done.code == 0 and "answers   1 " in done.out
    done = run("evaluate", "../capture", "--json", "m.json")
    scores = json.loads(Path("m.json").read_text(encoding="utf-8"))["all"]
    assert done.code == 0 and {"right_moves", "captured", "safe"} <= set(scores), scores


@pytest.mark.parametrize("kind, size", [("capture", "7"), ("territory", "9")])
def test_generate(run: Any, kind: str, size: str) -> None:
    """A CSV that is trained on as it is; a seed decides it; --exclude keeps puzzles out."""
    call = ("data", "generate", "--task", "go", "--kind", kind, "--size", size, "--count", "8")
    done = run(*call, "--seed", "3")
    assert done.code == 0 and f"8 puzzles: go_{kind}_{size}x{size}" in done.err
    assert run(*call, "--seed", "3", "--output", "a.csv").out == ""
    assert Path("a.csv").read_text(encoding="utf-8") == done.out
    other = run(*call, "--seed", "3", "--exclude", "a.csv")
    lines = [set(text.splitlines()[1:]) for text in (done.out, other.out)]
    assert other.code == 0 and not lines[0] & lines[1]
    task = build_task(GoConfig("go", kind=kind, size=int(size)))
    rows = [row.split(",")[1:] for row in done.out.splitlines()[1:]]
    found = [pair for part in task.read_file("a.csv") for pair in zip(part.inputs, part.labels)]
    assert [[task.format(each) for each in pair] for pair in found] == rows
    if kind == "capture":
        assert run("solve", "../capture", "a.csv").out.count(" of 8 (a.csv:") == 8


@pytest.mark.parametrize(
    "words, said",
    [
        ("--size 19", "--size: invalid choice: 19 (choose from 7, 9)"),
        ("--kind mate1", "--kind: invalid choice: 'mate1' (choose from capture, territory)"),
        ("--style games", "--style: goes with --task maze or chess, not with go"),
        ("--quiet-moves 3", "--quiet-moves"),
    ],
)
def test_what_generate_refuses(run: Any, words: str, said: str) -> None:
    done = run("data", "generate", "--task", "go", *words.split())
    assert (done.code, done.out) == (2, "") and said in done.err and done.err.count("\n") == 1
