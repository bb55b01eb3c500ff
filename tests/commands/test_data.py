"""``python -m mlx_trm.data``: what it prints, makes, refuses and leaves behind."""

import json
import os
import sys
from pathlib import Path
from typing import Any, List, Tuple

import numpy as np
import pytest
from PIL import Image

from mlx_trm.cli import generating
from mlx_trm.data import main
from mlx_trm.tasks import PuzzleDataset
from mlx_trm.tasks.sudoku.files import read_puzzles
from mlx_trm.tasks.sudoku.generator import generate_sets
from mlx_trm.tasks.sudoku.keys import puzzle_keys
from mlx_trm.tasks.sudoku.solver import solve_puzzles

SMALL = ["task.size=4", "task.train_puzzles=40", "task.test_puzzles=10", "task.symmetries=[digits]"]
BUILD = ["build", "--config", "sudoku.yaml", *SMALL]


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache or the current folder."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(capsys: Any, *words: str) -> Tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def content(folder: Path) -> List[Tuple[str, bytes]]:
    """Every file below a folder."""
    return [(str(p.relative_to(folder)), p.read_bytes())
            for p in sorted(folder.rglob("*")) if p.is_file()]  # fmt: skip


def test_list(capsys: Any) -> None:
    """Tasks, the bundled sample, and what has been built."""
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "Tasks: " in out and "sudoku" in out.split("\n")[0]
    (line,) = [line for line in out.split("\n") if line.startswith("sudoku_hard_train ")]
    assert "1,000" in line and line.endswith("sudoku_hard_train.csv")
    assert "none yet" in out
    run(capsys, *BUILD)
    code, out, _ = run(capsys, "list")
    built = [line.split() for line in out.split("\n") if line.startswith("sudoku-")]
    assert code == 0 and "none yet" not in out and len(built) == 2
    assert sorted(line[2].strip(",") for line in built) == ["test", "train"]
    assert ["40" in line for line in built] == [line[2].startswith("train") for line in built]


def test_list_survives_a_damaged_cache(capsys: Any, tmp_path: Path) -> None:
    """A broken dataset is listed as such."""
    run(capsys, *BUILD)
    for path in (tmp_path / "cache").glob("*/train/all__inputs.npy"):
        path.write_bytes(b"x")
    for path in (tmp_path / "cache").glob("*train*/build.json"):
        path.write_text("{")
    code, out, _ = run(capsys, "list")
    assert code == 0 and sum("  damaged  " in line for line in out.split("\n")) == 1


def test_build_into_a_folder(capsys: Any, tmp_path: Path) -> None:
    """Both splits, the counts on standard output, the same bytes again; ready for task.data_dir."""
    code, out, err = run(capsys, *BUILD, "--output", "made")
    assert code == 0
    rows = [line.split() for line in out.strip().split("\n")]
    assert rows[0] == ["split", "examples", "puzzles", "groups", "folder"]
    assert [row[:4] for row in rows[2:]] == [["train"] + ["40"] * 3, ["test"] + ["10"] * 3]
    assert "use it: task.data_dir=made" in err
    assert len(PuzzleDataset.load(tmp_path / "made", "train")) == 40
    assert json.loads((tmp_path / "made" / "identifiers.json").read_text()) == ["<blank>"]
    first = content(tmp_path / "made")
    assert run(capsys, *BUILD, "--output", "made")[0] == 0
    assert content(tmp_path / "made") == first
    assert run(capsys, *BUILD, "--output", "other", "seed=1")[0] == 0
    assert content(tmp_path / "other") != first
    assert not (tmp_path / "cache").exists()
    code, out, _ = run(capsys, "show", "--config", "sudoku.yaml", "task.size=4",
                       "task.data_dir=made", "--split", "train", "--index", "39")  # fmt: skip
    assert code == 0 and "puzzle 39 of 40" in out


def test_build_into_the_cache(capsys: Any, tmp_path: Path) -> None:
    """Where training finds it: the folders printed hold the splits."""
    code, out, _ = run(capsys, *BUILD)
    assert code == 0
    folders = [line.split()[-1] for line in out.strip().split("\n")[2:]]
    assert [Path(f).name for f in folders] == ["train", "test"]
    assert all((tmp_path / "cache") in Path(f).parents for f in folders)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert run(capsys, *BUILD)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_show(capsys: Any) -> None:
    """The puzzle and its answer side by side, and the line that solve takes."""
    code, out, _ = run(capsys, "show", "--config", "sudoku.yaml", "--index", "3", "--count", "2")
    assert code == 0
    blocks = out.strip().split("\n\n")
    assert len(blocks) == 2
    for number, block in enumerate(blocks, 3):
        lines = block.split("\n")
        assert lines[0].startswith(f"sudoku test puzzle {number} of 1,000")
        assert lines[1] == "   ".join(["┌───────┬───────┬───────┐"] * 2)
        cells = [[c for c in line if c in ".123456789"] for line in lines[1:14]]
        grid = [row for row in cells if row]
        assert [len(row) for row in grid] == [18] * 9
        puzzle = "".join("".join(row[:9]) for row in grid)
        answer = [int(c) for row in grid for c in row[9:]]
        assert lines[14] == puzzle
        solved = solve_puzzles(np.array([[int(c.replace(".", "0")) for c in puzzle]]), 9)
        assert solved.counts[0] == 1 and solved.solutions[0, 0].tolist() == answer
    assert "\033" not in out


def test_show_draws_a_picture(capsys: Any, tmp_path: Path) -> None:
    """Of Sudoku too: a puzzle and its answer in a row."""
    words = ["show", "--config", "sudoku.yaml", "--count", "2", "--png", str(tmp_path / "a.png")]
    assert run(capsys, *words)[0] == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.width < picture.height  # two puzzles


def test_show_in_color(capsys: Any, monkeypatch: Any) -> None:
    """Givens are bold in a terminal, unless NO_COLOR is set."""
    words = ["show", "--config", "sudoku.yaml", *SMALL]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, out, _ = run(capsys, *words)
    puzzle = out.strip().split("\n")[-1]
    assert out.count("\033[1m") == 2 * sum(c != "." for c in puzzle)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in run(capsys, *words)[1]


def test_generate(capsys: Any, tmp_path: Path) -> None:
    """A CSV that reads back; a seed decides it; --exclude keeps puzzles out."""
    words = ["generate", "--size", "4", "--count", "300", "--seed", "7"]
    code, out, err = run(capsys, *words)
    assert code == 0 and "300 puzzles: givens 6 to 8" in err and "rating 0 to 0" in err
    assert out.startswith("source,question,answer,rating\ngenerated_4x4,")
    assert run(capsys, *words, "--output", "a.csv")[:2] == (0, "")
    assert (tmp_path / "a.csv").read_text() == out
    assert run(capsys, "generate", "--size", "4", "--seed", "8", "--count", "300")[1] != out
    code, _, _ = run(capsys, "generate", "--size", "4", "--count", "2000", "--exclude", "a.csv",
                     "--output", "b.csv")  # fmt: skip
    assert code == 0
    a, b = (np.concatenate([r.puzzles for r in read_puzzles(tmp_path / f"{n}.csv", 4)])
            for n in "ab")  # fmt: skip
    assert len(a) == 300 and len(b) == 2000
    assert not np.isin(puzzle_keys(b, 4, ["digits"]), puzzle_keys(a, 4, ["digits"])).any()


def test_generate_hard_uses_the_search(capsys: Any, monkeypatch: Any) -> None:
    """--hard, --effort and the seed reach it; the source says what they are."""
    seen = []

    def search(count: int, rng: Any, effort: float, exclude: Any) -> Any:
        seen.append((count, rng.integers(1000), effort, exclude))
        return generate_sets([count], 9, rng)[0]

    monkeypatch.setattr(generating, "generate_hard", search)
    code, out, _ = run(capsys, "generate", "--hard", "--count", "2", "--seed", "5")
    assert code == 0 and out.count("\ngenerated_hard,") == 2
    run(capsys, "generate", "--hard", "--count", "2", "--seed", "5", "--effort", "0.5")
    assert seen[0] == (2, np.random.default_rng(5).integers(1000), 1.0, None)
    assert [call[2] for call in seen] == [1.0, 0.5]


WRONG = [
    ([], "the following arguments are required: ACTION"),
    (["bulid"], "invalid choice: 'bulid'"),
    (["build"], "--config FILE is missing"),
    (["build", "--config", "sudoko.yaml"], "sudoko.yaml"),
    ([*BUILD, "task.sise=4"], "unknown key 'task.sise'; did you mean 'task.size'"),
    ([*BUILD, "task.size=5"], "task.size"),
    ([*BUILD, "task.size=6", "task.symmetries=[transpose]"], "a 6x6 Sudoku has no 'transpose'"),
    ([*BUILD, "task.symmetries=[mirror]"], "task.symmetries"),
    ([*BUILD, "task.num_aug=-1"], "task.num_aug"),
    (
        [*BUILD, "task.min_givens=9", "task.max_givens=8"],
        "task.min_givens: 9 is more than max_givens 8",
    ),
    ([*BUILD, "task.max_givens=16"], "task.max_givens: 16 leaves no blank"),
    ([*BUILD, "task.data_dir=made"], "task.data_dir: made is built already"),
    ([*BUILD, "task.train_file=no.csv"], "no.csv: cannot be read: No such file or directory"),
    ([*BUILD, "task.train_file=folder"], "folder: is a folder, not a CSV or text file"),
    ([*BUILD, "task.train_file=empty.csv"], "empty.csv:1: the columns must be"),
    ([*BUILD, "task.train_file=letter.txt"], "letter.txt:2: the question has 'x' in row 1"),
    ([*BUILD, "task.train_file=many.txt"], "many.txt:1: the puzzle has more than one solution"),
    ([*BUILD, "task.train_file=none.txt"], "none.txt:1: the puzzle has no solution"),
    ([*BUILD, "task.train_file=latin.txt"], "latin.txt:1: is not UTF-8 text"),
    ([*BUILD, "--output", "folder"], "folder: is not empty and was not made by data build"),
    ([*BUILD, "--output", "empty.csv"], "empty.csv: is not a folder"),
    ([*BUILD, "--output", "empty.csv/below"], "cannot be written"),
    (["show", "--config", "sudoku.yaml", *SMALL, "--index", "10"], "has 10 puzzles, 0 to 9"),
    (["show", "--config", "sudoku.yaml", "--index", "-1"], "is not a whole number of at least 0"),
    (["show", "--config", "sudoku.yaml", "--count", "0"], "is not a whole number of at least 1"),
    (["show", "--config", "sudoku.yaml", "--split", "val"], "invalid choice: 'val'"),
    (["show", "--config", "sudoku.yaml", "task.data_dir=no"], "no: no such folder"),
    (["show", "--config", "sudoku.yaml", "task.data_dir=folder"], "has no split 'test'"),
    (["generate", "--size", "5"], "invalid choice: 5"),
    (["generate", "--hard", "--size", "4"], "--hard: makes 9x9 puzzles"),
    (["generate", "--effort", "2"], "--effort: goes with --hard"),
    (["generate", "--hard", "--effort", "0"], "'0' is not a number above 0"),
    (["generate", "--size", "4", "--output", "empty.csv"], "is there already; --force replaces it"),
    (["generate", "--min-givens", "50", "--max-givens", "40"], "min_givens: 50 is more than"),
    (["generate", "--size", "4", "--exclude", "no.csv"], "no.csv: cannot be read"),
    (["generate", "--size", "4", "--min-givens", "16"], "leaves no blank"),
    (["list", "sudoku"], "unexpected 'sudoku'"),
]


@pytest.mark.parametrize("words, message", WRONG, ids=[" ".join(w[-2:]) for w, _ in WRONG])
def test_mistakes_are_one_line(capsys: Any, tmp_path: Path, words: List[str], message: str) -> None:
    """Exit code 2, one line that says what and where, no traceback, nothing damaged or made."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "letter.txt").write_text("# mine\nx...............\n")
    (tmp_path / "many.txt").write_text("1...............\n")
    (tmp_path / "none.txt").write_text("123....4........\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9\n")
    before = content(tmp_path)
    code, out, err = run(capsys, *words)
    assert code == 2 and out == ""
    assert message in err and "Traceback" not in err
    assert len([line for line in err.strip().split("\n") if not line.startswith("building")]) == 1
    made = [item for item in content(tmp_path) if not item[0].startswith("cache")]
    assert made == before
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("cache/.*"))


def test_force_replaces_a_file(capsys: Any, tmp_path: Path) -> None:
    """Only then."""
    (tmp_path / "a.csv").write_text("mine")
    words = ["generate", "--size", "4", "--count", "2", "--output", "a.csv"]
    assert run(capsys, *words)[0] == 2 and (tmp_path / "a.csv").read_text() == "mine"
    assert run(capsys, *words, "--force")[0] == 0
    assert (tmp_path / "a.csv").read_text().count("\n") == 3


def test_a_file_that_cannot_hold_the_dataset(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A full disk in the middle: one line, and what was there before is untouched."""
    assert run(capsys, *BUILD, "--output", "made")[0] == 0
    before = content(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlx_trm.datasets.writing.write_json", full)
    code, _, err = run(capsys, *BUILD, "--output", "made", "seed=3")
    assert code == 2 and "made: cannot be written: No space left on device" in err
    assert content(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["made"]
