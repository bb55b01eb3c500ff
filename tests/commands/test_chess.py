"""Chess at the command line: solve by FEN and boards, pictures, files with ratings, data show."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from command_calls import in_empty_folder

from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import EvalConfig, ExperimentConfig
from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.inference.solver import Solver
from mlx_trm.models import RecursiveModel, TRMConfig, register_model
from mlx_trm.models.carry import Outputs
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.tasks import Chess, ChessConfig, build_task
from mlx_trm.tasks.chess.tokens import FROM, TO

pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")

FEN = "6k1/5ppp/8/8/8/8/8/3RK3 w - - 0 1"
BLACK = "3rk3/8/8/8/8/8/5PPP/6K1 b - - 0 1"
BOARD = "......k.\n.....ppp\n........\n........\n........\n........\n........\n...RK..."


@dataclass
class RookConfig(TRMConfig):
    """Settings of the model."""

    name: str = "rook"
    hidden_size: int = 4
    num_heads: int = 1
    puzzle_emb_ndim: int = 0
    puzzle_emb_len: int = 0
    halt_max_steps: int = 2


@register_model("rook", RookConfig)
class Rook(RecursiveModel):
    """Says d1d7 in step 1 and d1d8 later, whatever it is asked."""

    initial_names = ("start",)

    def __init__(self, config: Any, spec: Any, seed: int = 0) -> None:
        """Know two answers."""
        del seed
        super().__init__(config, spec, positions=0)
        self.start = mx.zeros((config.hidden_size,))
        answers = np.ones((2, 64), np.int32)
        answers[:, 59], answers[0, 11], answers[1, 3] = FROM, TO, TO
        self._answers = mx.array(answers)

    def reason(self, carry: Any, rows: Any) -> Any:
        """Count the step, and answer."""
        assert rows is None
        latent = carry.latents[0] + 1
        step = mx.minimum(latent[:, 0, 0].astype(mx.int32), 2) - 1
        q_halt = latent[:, 0, 0] - 1.5
        return (latent,), Outputs(mx.eye(30)[self._answers[step]], q_halt, mx.zeros_like(q_halt))


def experiment(**task: Any) -> ExperimentConfig:
    """An experiment with the model."""
    return ExperimentConfig(
        task=ChessConfig(name="chess", kind="mate1", style="endings", **task),
        model=RookConfig(),
        train=TrainConfig(compile="never", batch_size=8),
        eval=EvalConfig(),
    )


def rook() -> Rook:
    """The model."""
    return Rook(RookConfig(), build_task(experiment().task).spec)


@pytest.fixture(name="run", autouse=True)
def fixture_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """Run a command in an empty folder with a run named ``rook`` beside it."""
    call = in_empty_folder(tmp_path, monkeypatch, capsys)
    save_checkpoint(tmp_path / "rook", rook(), experiment(), 1)
    return call


ADDRESS = f"https://lichess.org/analysis/{FEN.replace(' ', '_')}"
SAID = f"White to play and mate in one: {FEN}"


@pytest.mark.parametrize("puzzle", [FEN, BLACK, FEN.split()[0], BOARD, ADDRESS, SAID])
def test_each_step_of_a_mate(run: Any, puzzle: str) -> None:
    """A FEN of either side, or a board: the move, judged by the rules, and drawn."""
    done = run("solve", "../rook", puzzle, "--show", "steps")
    assert (done.code, done.err) == (0, "")
    first, second = done.out.split("\nstep ")[1:]
    assert "wrong" in first and "Rd7, which is no mate" in first and "[·]*" in first
    assert "right, Rd8#, mate" in second and "(R)" in second and "[·]+" in second


def test_pictures_and_pages(run: Any) -> None:
    """The same board everywhere."""
    pytest.importorskip("PIL")
    done = run("solve", "../rook", FEN, "--png", "x.png", "--html", "x.html")
    assert (done.code, done.err) == (0, "written: x.png\nwritten: x.html\n")
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")
    assert "d1d8" in Path("x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "puzzle, said",
    [
        ("kk6/8/8/8/8/8/8/K7 w - - 0 1", "more than one king"),
        ("k7/8/8/8/8/8/8/K7 w - - 0 1", "no mate in one"),
        ("6k1/5ppp/8/8/8/8/8/3RK3 w - - 0 1 d1", "not what follows"),
        ("nothing.csv", "no such file"),
    ],
)
def test_bad_puzzles_are_one_line(run: Any, puzzle: str, said: str) -> None:
    """And exit code 2."""
    done = run("solve", "../rook", puzzle)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("words", [FEN.split(), [FEN, "d1"], [FEN.split()[0], "b"]])
def test_a_position_without_quotes_is_one_line(run: Any, words: Any) -> None:
    """The shell makes words of it; the line says what to do."""
    done = run("solve", "../rook", *words)
    assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1
    assert "put a puzzle of several words between quotes" in done.err


def test_a_file_is_scored_by_rating_and_rules(run: Any) -> None:
    """Any mating move counts, such as d1d8 where the file has b1b8."""
    rows = ["FEN,Moves,Rating,Themes"]
    rows += ["6k1/p4ppp/8/8/8/8/8/3RK3 b - - 0 1,a7a6 d1d8,600,mateIn1"] * 2
    rows += ["6k1/p4ppp/8/8/8/8/8/1R1RK3 b - - 0 1,a7a6 b1b8,1200,mateIn1"]
    rows += ["7k/8/6K1/8/8/8/8/R7 b - - 0 1,h8g8 a1a8,1400,mateIn1"]
    Path("p.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    done = run("evaluate", "../rook", "--data", "p.csv", "--json", "x.json", "-q")
    assert done.code == 0, done.err
    report = json.loads(Path("x.json").read_text(encoding="utf-8"))
    right = {name: each["exact_accuracy"] for name, each in report["by_rating"].items()}
    assert right == {"600": 1.0, "1200": 1.0, "1400": 0.0}
    Path("bad.csv").write_text(rows[0] + "\nx,y,1,mateIn1\n", encoding="utf-8")
    done = run("evaluate", "../rook", "--data", "bad.csv")
    assert done.code == 2 and "bad.csv:2: " in done.err and done.err.count("\n") == 1


def test_the_evaluator_counts_mates(tmp_path: Path) -> None:
    """Of the test split: legal moves and mates, by the rules."""
    path = tmp_path / "t.txt"
    path.write_text(f"{FEN}\n7k/8/6K1/8/8/8/8/R7 w - - 0 1\n{BLACK}\n", encoding="utf-8")
    found = Evaluator(rook(), experiment(test_file=str(path))).run("test")["all"]
    assert found["mate"] == found["legal_move"] == pytest.approx(2 / 3)
    assert found["exact_accuracy"] == pytest.approx(2 / 3)


def test_symmetries_leave_castling_alone() -> None:
    """A search on copies gives moves of the position that was asked about."""
    solver = Solver(rook(), experiment())
    for fen, said in (
        (FEN, {"d1d8", "e1e8"}),  # what the model says of a mirrored copy is mirrored back
        ("6k1/5ppp/8/8/8/8/8/3RK2R w K - 0 1", {"d1d8"}),
    ):
        (found,) = solver.search([fen], rollouts=8, symmetries=True, select="vote")
        assert {solver.task.format(each.tokens) for each in found.candidates} == said


def test_data_show(run: Any) -> None:
    """Positions and answers side by side."""
    done = run(
        *("data", "show", "--config", "chess_moves_tiny.yaml", "--count", "1"),
        *("task.train_puzzles=20", "task.test_puzzles=3"),
    )
    assert done.code == 0 and "chess test puzzle 0 of 3" in done.out and "<" in done.out


@pytest.mark.parametrize(
    "words",
    [["--kind", "moves"], ["--kind", "mate1", "--style", "endings"], ["--kind", "mate1"]],
    ids=" ".join,
)
def test_generate(run: Any, words: Any) -> None:
    """A CSV that is trained on and solved as it is; a seed decides it; --exclude keeps out."""
    call = ("data", "generate", "--task", "chess", *words, "--count", "12")
    done = run(*call, "--seed", "3")
    assert done.code == 0 and "12 puzzles: chess_" in done.err
    assert run(*call, "--seed", "3", "--output", "a.csv").out == ""
    assert Path("a.csv").read_text(encoding="utf-8") == done.out
    other = run(*call, "--seed", "3", "--exclude", "a.csv")
    lines = [set(text.splitlines()[1:]) for text in (done.out, other.out)]
    assert other.code == 0 and not lines[0] & lines[1]
    task = build_task(ChessConfig("chess", kind=words[1], train_file="a.csv"))
    rows = [row.split(",")[1:] for row in done.out.splitlines()[1:]]
    parts = list(task.groups("train", np.random.default_rng(0)))
    found = [pair for part in parts for pair in zip(part.inputs, part.labels)]  # type: ignore
    assert [[task.format(each) for each in pair] for pair in found] == rows
    if words[1] == "mate1":
        done = run("solve", "../rook", "a.csv", "--show", "final")
        assert done.code == 0 and "12 puzzles: 0 right" in done.out
        Path("b.csv").write_text(f"question,answer\n{FEN},d1d7\n", encoding="utf-8")
        done = run("evaluate", "../rook", "--data", "b.csv")
        assert done.code == 2 and "b.csv:2: the answer 'd1d7' is wrong by the rules" in done.err


def test_interrupted_generation_leaves_nothing(run: Any, monkeypatch: Any) -> None:
    """What was there stays; a file is written when all are made."""
    Path("a.csv").write_text("mine", encoding="utf-8")

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Chess, "format", interrupt)
    words = ("data", "generate", "--task", "chess", "--output")
    assert run(*words, "a.csv", "--force").code == 130
    assert run(*words, "b/c.csv").code == 130
    assert [path.name for path in Path().iterdir()] == ["a.csv"]
    assert Path("a.csv").read_text(encoding="utf-8") == "mine"


def test_a_file_of_lichess_is_solved(run: Any) -> None:
    """The opponent's move is played; rows of other themes, or without mate, are left out."""
    rows = ["PuzzleId,FEN,Moves,Rating,Themes"]
    rows += ["x,6k1/p4ppp/8/8/8/8/8/3RK3 b - - 0 1,a7a6 d1d8,600,mateIn1 short"]
    rows += ["y,6k1/p4ppp/8/8/8/8/8/3RK3 b - - 0 1,a7a6 e1e2,600,endgame"]
    rows += ["z,6k1/p4ppp/8/8/8/8/8/3RK3 b - - 0 1,a7a6 e1e2 a6a5 e2e3,600,endgame"]
    Path("p.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    plain = "\n".join(",".join(row.split(",")[1:3]) for row in rows)
    Path("q.csv").write_text(plain + "\n", encoding="utf-8")
    for name in ("p.csv", "q.csv"):
        done = run("solve", "../rook", name)
        assert done.code == 0 and done.out.count("Rd8#, mate") == 1, done.err
    Path("p.csv.gz").write_bytes(gzip.compress(Path("p.csv").read_bytes()))
    assert run("solve", "../rook", "p.csv.gz").out.count("Rd8#, mate") == 1
    Path("p.csv").write_text("\n".join(rows).replace("d1d8", "d1e8"), encoding="utf-8")
    done = run("solve", "../rook", "p.csv")
    assert done.code == 2 and "p.csv:2: the move d1e8 is not legal" in done.err
