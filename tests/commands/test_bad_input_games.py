"""Chess and Go that cannot be: each is one line and exit code 2, whatever reads it."""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Tuple, Union

import pytest
from command_calls import in_empty_folder
from scripted import tiny_config

from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import EvalConfig, ExperimentConfig
from mlx_trm.models import build_model
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.tasks import ChessConfig, GoConfig, build_task

CHESS = pytest.mark.skipif(
    find_spec("chess") is None, reason="python-chess is not installed (extra chess)"
)
KINGS = "4k3/8/8/8/8/8/8/4K3"
LADDER = "......./..XX.../.XW..../......./......./......./......."
HEADER = "PuzzleId,FEN,Moves,Rating,RatingDeviation,Popularity,NbPlays,Themes,GameUrl,OpeningTags"
ROW = "a,6k1/p4ppp/8/8/8/8/8/3RK3 b - - 0 1,a7a6 d1d8,600,80,90,1,mateIn1 short,u,"
GOOD = f"{HEADER}\n{ROW}\n"
SETTINGS = {
    "mate1": ("chess_moves_tiny.yaml", "task.kind=mate1"),
    "capture": ("go_tiny.yaml", "task.kind=capture"),
}


@pytest.fixture(name="run")
def fixture_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """Run a command in an empty folder with untrained runs beside it."""
    call = in_empty_folder(tmp_path, monkeypatch, capsys)
    tasks = [GoConfig("go", kind="capture")]
    if find_spec("chess") is not None:
        tasks += [ChessConfig("chess", kind=kind) for kind in ("mate1", "moves")]
    for task in tasks:
        config = ExperimentConfig(
            task=task, model=tiny_config(), train=TrainConfig(compile="never"), eval=EvalConfig()
        )
        model = build_model(config.model, build_task(task).spec, seed=0)
        save_checkpoint(tmp_path / task.kind, model, config, 1)
    return call


def refused(done: Any, said: str) -> None:
    """One line that says it, no other output, exit code 2."""
    assert done.code == 2 and done.out == "", done
    lines = [line for line in done.err.splitlines() if not line.startswith("building ")]
    assert len(lines) == 1 and said in lines[0] and len(lines[0]) < 500, done.err


POSITIONS: Dict[str, Tuple[str, str]] = {
    "two kings": ("kk6/8/8/8/8/8/8/K7 w - - 0 1", "more than one king"),
    "no white king": ("k7/8/8/8/8/8/8/8 w - - 0 1", "White has no king"),
    "no black king": ("8/8/8/8/8/8/8/K7 w - - 0 1", "Black has no king"),
    "empty board": ("8/8/8/8/8/8/8/8 w - - 0 1", "the board is empty"),
    "in check": ("k6R/8/8/8/8/8/8/K7 w - - 0 1", "not to move is in check"),
    "nine ranks": (KINGS + "/8 w - - 0 1", "8 rows"),
    "seven ranks": ("4k3/8/8/8/8/8/4K3 w - - 0 1", "8 rows"),
    "long rank": ("4k4/8/8/8/8/8/8/4K3 w", "8 columns"),
    "short rank": ("4k2/8/8/8/8/8/8/4K3 w", "8 columns"),
    "castling": (KINGS + " w KQ - 0 1", "castling rights"),
    "castling letters": (KINGS + " w XY - 0 1", "castling"),
    "en passant": (KINGS + " w - e6 0 1", "en passant"),
    "no square": (KINGS + " w - e9 0 1", "en passant"),
    "letters": ("4x3/8/8/8/8/8/8/4K3", "cannot be read"),
    "pawn on the last rank": ("P3k3/8/8/8/8/8/8/4K3", "a pawn stands"),
    "nine pawns": ("4k3/pppppppp/p7/8/8/8/8/4K3", "more than 8 pawns"),
    "seventeen pieces": ("4k3/8/8/8/NNNN4/NNNNNNNN/NNNN4/4K2N", "more than 16"),
    "side": (KINGS + " x - - 0 1", "turn"),
    "counters": (KINGS + " w - - x y", "not what follows"),
    "too many fields": (KINGS + " w - - 0 1 2", "not what follows"),
    "nothing": ("", "0 squares"),
    "blanks": ("  \n ", "0 squares"),
    "no mate": (KINGS, "no mate in one"),
    "mated": ("R5k1/5ppp/8/8/8/8/8/4K3 b - - 0 1", "no mate in one"),
    "long": ("k" * 15000, "15000"),
    "emoji": ("😀/8/8/8/8/8/8/8", "cannot be read"),
    "null": ("k7/8\0/8", "cannot be read"),
    "other digits": ("٣k4/8/8/8/8/8/8/4K3", "cannot be read"),
    "PGN": ('[Event "x"]\n\n1. e4 *', "game in PGN"),
    "two boards": ("\n".join(["........"] * 16), "not what follows"),
}


@CHESS
@pytest.mark.parametrize("name", POSITIONS)
def test_positions(run: Any, name: str) -> None:
    """As an argument, and, where it is a line, in a file with its number."""
    text, said = POSITIONS[name]
    refused(run("solve", "../mate1", text), said)
    if text.strip() and "\n" not in text and "\0" not in text:
        Path("p.txt").write_text(f"\n{text}\n", encoding="utf-8")
        for words in (("solve", "../mate1", "p.txt"), ("evaluate", "../mate1", "--data", "p.txt")):
            refused(run(*words), said)
            assert "p.txt:2: " in run(*words).err


@CHESS
@pytest.mark.parametrize(
    "text, said",
    [
        (KINGS, "is missing"),
        (KINGS + " e5", "no piece of the side to move"),
        (KINGS + " e8", "no piece of the side to move"),
        (KINGS + " b - - 0 1 e1", "no piece of the side to move"),
        (KINGS + " e9", "is missing"),
        (KINGS + " w - - 0 1 e1 e1", "not what follows"),
    ],
)
def test_the_piece_that_is_asked_about(run: Any, text: str, said: str) -> None:
    refused(run("solve", "../moves", text), said)


BOARDS: Dict[str, Tuple[str, str]] = {
    "no group": (LADDER.replace("W", "O"), "no group is marked"),
    "two groups": (LADDER[:-1] + "B", "more than one group"),
    "both colours": (LADDER.replace("XX", "BX"), "more than one group"),
    "no liberty": ("WX" + LADDER[2:8] + "X" + LADDER[9:], "no liberty"),
    "nothing": ("", "0 rows"),
    "short": (LADDER[:-4], "row 7"),
    "wide": (LADDER + ".", "row 7"),
    "letters": (LADDER.replace("W", "Q"), "'Q'"),
    "19x19": ("/".join(["." * 19] * 19), "19 rows"),
    "an answer": (LADDER.replace("..../", "1.../", 1), "answers only"),
    "pictures": ("●" * 49, "no liberty"),
    "null": ("\0", "1 row"),
    "SGF of 19": ("(;SZ[19]AB[aa])", "SZ[19]"),
    "SGF without size": ("(;AB[aa])", "no SZ"),
    "SGF of two sizes": ("(;SZ[7:9]AB[aa])", "SZ[7:9]"),
    "SGF of another game": ("(;GM[2]SZ[7])", "GM[2]"),
    "SGF without end": ("(;SZ[7]AB[aa]", "no end"),
    "SGF that is deep": ("(;SZ[7]" + "(" * 1500 + ")" * 1501, "deep"),
    "SGF that is deep, with nodes": ("(;SZ[7]" * 6000, "deep"),
    "SGF off the board": ("(;SZ[7]AB[ss])", "AB[ss]"),
    "SGF with half a point": ("(;SZ[7]AB[a])", "AB[a]"),
    "SGF with a list off the board": ("(;SZ[7]AB[aa:zz])", "AB[aa:zz]"),
    "SGF without a value": ("(;SZ[7]AB)", "where a property"),
    "SGF without nodes": ("(;)", "no SZ"),
    "SGF that is long": ("(;SZ[7]C[" + "x" * (1 << 20) + "])", "characters"),
    "SGF of no colour": ("(;SZ[7]AB[aa]AW[ba]PL[green])", "PL[green]"),
    "SGF with a mark on nothing": ("(;SZ[7]AB[aa]AW[cc]TR[ee])", "where no stone is; mark a stone"),
}


@pytest.mark.parametrize("name", BOARDS)
def test_boards(run: Any, name: str) -> None:
    """As an argument, and in a file."""
    text, said = BOARDS[name]
    refused(run("solve", "../capture", text), said)
    if text and "\0" not in text and len(text) < 1 << 20:
        Path("p.sgf").write_text(text, encoding="utf-8")
        for words in (
            ("solve", "../capture", "p.sgf"),
            ("evaluate", "../capture", "--data", "p.sgf"),
            ("data", "build", "--config", *SETTINGS["capture"], "task.train_file=p.sgf"),
        ):
            refused(run(*words), said)
            assert "p.sgf" in run(*words).err


FILES: Dict[str, Tuple[str, Union[str, bytes], str]] = {
    "empty CSV": ("mate1", "", "p.csv"),
    "random bytes": ("mate1", bytes(range(256)) * 9, "p.csv"),
    "UTF-16": ("mate1", GOOD.encode("utf-16"), "UTF-8"),
    "another encoding": ("mate1", GOOD.encode() + b"\xff\n", "UTF-8"),
    "no FEN": ("mate1", "PuzzleId,Moves\n1,e2e4\n", "FEN"),
    "no moves": ("mate1", f"PuzzleId,FEN\n1,{KINGS}\n", "Moves"),
    "FEN twice": ("mate1", GOOD.replace("Moves", "FEN"), "Moves"),
    "header alone": ("mate1", HEADER + "\n", "no puzzle"),
    "other themes alone": ("mate1", GOOD.replace("mateIn1", "fork"), "no puzzle"),
    "broken FEN": ("mate1", GOOD.replace("6k1/", "6k1"), "p.csv:2: "),
    "two kings": ("mate1", GOOD.replace("6k1/", "5kk1/"), "p.csv:2: no legal position"),
    "illegal first move": ("mate1", GOOD.replace("a7a6", "a7a1"), "p.csv:2: the move a7a1"),
    "illegal answer": ("mate1", GOOD.replace("d1d8", "d1e8"), "p.csv:2: the move d1e8"),
    "null move": ("mate1", GOOD.replace("d1d8", "0000"), "p.csv:2: the move 0000"),
    "dropped piece": ("mate1", GOOD.replace("d1d8", "Q@d8"), "p.csv:2: the move Q@d8"),
    "no mate": ("mate1", GOOD.replace("d1d8", "d1d7"), "p.csv:2: the moves end without mate"),
    "one move": ("mate1", GOOD.replace("a7a6 ", ""), "p.csv:2: has 1 moves"),
    "cut off": ("mate1", (GOOD + ROW)[:-60], "p.csv:3: "),
    "open quote": ("mate1", f'{HEADER}\n"{ROW}\n', "p.csv:2: "),
    "cut gzip": ("mate1", gzip.compress((GOOD * 99).encode())[:-9], "p.csv"),
    "no zstd": ("mate1", b"\x28\xb5\x2f\xfd" + b"x" * 99, "p.csv"),
    "zeros": ("mate1", b"\0" * 999, "p.csv"),
    "empty SGF": ("capture", "", "p.csv"),
    "wrong answer": ("capture", f"question,answer\n{LADDER},{LADDER}\n", "p.csv:2: the answer"),
    "no question": ("capture", f"board,answer\n{LADDER},{LADDER}\n", "question"),
    "no boards": ("capture", "question,answer\nabc,def\n", "p.csv:2: "),
    "cut SGF": ("capture", "(;SZ[7]AB[cb][db][bc]AW[cc]TR[cc])(;SZ[7]AB[", "p.csv"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=CHESS if FILES[n][0] == "mate1" else ()) for n in FILES]
)
def test_files(run: Any, name: str) -> None:
    """Solved, evaluated, built and shown; nothing is written."""
    kind, content, said = FILES[name]
    path = Path("p.csv")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    config = SETTINGS[kind]
    refused(run("evaluate", f"../{kind}", "--data", "p.csv"), said)
    build = ("data", "build", "--config", *config, "task.train_file=p.csv", "--output", "out")
    refused(run(*build), said)
    refused(run("data", "show", "--config", *config, "task.test_file=p.csv"), said)
    if name not in ("wrong answer",):  # whose puzzle is solved all the same
        refused(run("solve", f"../{kind}", "p.csv"), "p.csv")
    assert [each.name for each in Path().iterdir()] == ["p.csv"]


@CHESS
def test_a_wrong_rating(run: Any) -> None:
    """Is refused by what reads ratings."""
    Path("p.csv").write_text(GOOD.replace("600", "high"), encoding="utf-8")
    refused(run("evaluate", "../mate1", "--data", "p.csv"), "p.csv:2: the rating 'high'")
