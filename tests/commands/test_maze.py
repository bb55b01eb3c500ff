"""Mazes at the command line: solve, data show, data generate, evaluate."""

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Tuple

import mlx.core as mx
import numpy as np
import pytest
from command_calls import in_empty_folder

from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import EvalConfig, ExperimentConfig
from mlx_trm.inference.evaluator import Evaluator
from mlx_trm.models import RecursiveModel, TRMConfig, register_model
from mlx_trm.models.carry import Outputs
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.tasks import MazeConfig, build_task
from mlx_trm.tasks.maze.files import parse_maze, read_mazes
from mlx_trm.tasks.maze.generator import maze_keys
from mlx_trm.tasks.maze.paths import judge, mark_all_shortest_paths

PUZZLE = "S#..G/..#../#...#/...../....."
LONG = "S#..G/oo#oo/#o.o#/.ooo./....."
BEST = "S#.oG/oo#o./#ooo#/...../....."
# Nothing blocks this one; the model's marks are stray in it.
OTHER = "S..../...../...../...../....G"


HEADER = "source,question,answer,rating"


@dataclass
class MarkerConfig(TRMConfig):
    """Settings of the marking model."""

    name: str = "marker"
    hidden_size: int = 4
    num_heads: int = 1
    puzzle_emb_ndim: int = 0
    puzzle_emb_len: int = 0
    halt_max_steps: int = 3


@register_model("marker", MarkerConfig)
class Marker(RecursiveModel):
    """Copies the maze in step 1, marks a detour of PUZZLE in step 2, its shortest path later."""

    initial_names = ("start",)

    def __init__(self, config: Any, spec: Any, seed: int = 0) -> None:
        """Learn the marks by heart; the seed decides nothing."""
        del seed
        super().__init__(config, spec, positions=0)
        self.start = mx.zeros((config.hidden_size,))
        marks = [parse_maze(text, 5) == 5 for text in (PUZZLE, LONG, BEST)]
        self._marks = mx.array(np.stack(marks))

    def reason(self, carry: Any, rows: Any) -> Any:
        """Count the step, and mark."""
        assert rows is None
        latent = carry.latents[0] + 1
        step = latent[:, 0, 0].astype(mx.int32)
        tokens = mx.where(self._marks[mx.minimum(step, 3) - 1], 5, carry.current.inputs)
        q_halt = latent[:, 0, 0] - 2
        return (latent,), Outputs(mx.eye(6)[tokens], q_halt, mx.zeros_like(q_halt))


def experiment(**task: Any) -> ExperimentConfig:
    """An experiment with 5x5 mazes and the marking model."""
    return ExperimentConfig(
        task=MazeConfig(name="maze", size=5, **task),
        model=MarkerConfig(),
        train=TrainConfig(compile="never"),
        eval=EvalConfig(),
    )


def marker() -> Marker:
    """The model."""
    return Marker(MarkerConfig(), build_task(experiment().task).spec)


@pytest.fixture(name="run", autouse=True)
def fixture_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """Run a command in an empty folder with a run named ``marker`` beside it."""
    call = in_empty_folder(tmp_path, monkeypatch, capsys)
    save_checkpoint(tmp_path / "marker", marker(), experiment(), 1)
    return call


def test_each_step_of_a_maze(run: Any) -> None:
    """Copied, a detour, the shortest path; drawn, judged and remarked."""
    done = run("solve", "../marker", PUZZLE, "--show", "steps")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"puzzle: {PUZZLE}\n┌──────────┐\n│S ██    G │\n")
    parts = done.out.split("\nstep ")[1:]
    assert parts[0].startswith(
        "1: 0 cells changed, wrong (18 of 25 cells right), no clean path from S to G, halt probab"
    )
    assert parts[1].startswith(
        "2: 9 cells changed, wrong (19 of 25 cells right), a path of 10 steps, 8 are enough, halt"
    )
    assert "│•+•+██•+•*│" in parts[1] and not set("!*") & set(parts[2])
    assert parts[2].startswith("3: 6 cells changed, right, a shortest path, 8 steps, halt")
    assert "│S ██  •+G │" in parts[2]
    assert done.out.endswith(
        "after 3 steps: right, a shortest path, 8 steps, halt probability 0.731\n"
    )


def test_the_other_shortest_path_is_right_too(run: Any) -> None:
    """Several shortest paths: the rules decide, not the label."""
    puzzle = "G.#.S/..#../#...#/...../....."
    done = run("solve", "../marker", puzzle, "--json", "x.json")
    assert done.out.endswith("right, a shortest path, 8 steps, halt probability 0.731\n")
    assert "!" not in done.out and "│• • ██•   │" in done.out
    (entry,) = json.loads(Path("x.json").read_text(encoding="utf-8"))
    assert entry["solution"] == "Go#oS/.o#o./#ooo#/...../....." != entry["steps"][2]["answer"]


BLOCK = PUZZLE.replace("/", "\n") + "\n"
FILES = {
    "m.txt": BLOCK + "\n\n" + OTHER.replace(".", " ").replace("/", "\n"),
    "lines.txt": PUZZLE + "\n\n" + OTHER + "\n",
    "m.csv": "source,question,answer,rating\n"
    + "".join(f"a,{text.replace('/', '').replace('.', ' ')},,1\n" for text in (PUZZLE, OTHER)),
    "quoted.csv": 'answer,question\n"x,y","' + PUZZLE.replace("/", "") + '"\n,' + OTHER + "\n",
}
LINES = {"m.txt": (1, 8), "lines.txt": (1, 3), "m.csv": (2, 3), "quoted.csv": (2, 3)}


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_of_mazes(run: Any, name: str) -> None:
    """Blocks of lines, a maze a line, a CSV with or without quotes."""
    Path(name).write_text(FILES[name], encoding="utf-8")
    done = run("solve", "../marker", name)
    assert done.code == 0
    first, second = LINES[name]
    assert f"puzzle 1 of 2 ({name}:{first}): {PUZZLE}\n" in done.out
    assert f"puzzle 2 of 2 ({name}:{second}): {OTHER}\n" in done.out
    assert done.out.endswith(
        "2 puzzles: 1 right (50.0 %), 3.0 steps and halt probability 0.731 on average\n"
    )
    quiet = run("solve", "../marker", name, "-q").out.splitlines()
    assert (
        quiet[0]
        == f"{BEST}  after 3 steps: right, a shortest path, 8 steps, halt probability 0.731"
    )
    assert " wrong (" in quiet[1] and ", no clean path from S to G, " in quiet[1]


def test_a_maze_from_standard_input(run: Any, monkeypatch: Any) -> None:
    """``-``; and --json holds the label as text."""
    text = io.TextIOWrapper(io.BytesIO(BLOCK.encode()), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", text)
    done = run("solve", "../marker", "-", "--json", "x.json")
    assert f"puzzle (standard input:1): {PUZZLE}\n" in done.out
    (entry,) = json.loads(Path("x.json").read_text(encoding="utf-8"))
    assert entry["puzzle"] == PUZZLE and entry["solution"] == BEST
    assert [step["correct"] for step in entry["steps"]] == [False, False, True]


BAD = {
    "empty": ("", "the maze has 0 cells, 5x5 needs 25"),
    "no goal": (PUZZLE.replace("G", "."), "the maze has no goal G"),
    "two starts": (PUZZLE.replace("G", "S"), "the maze has 2 times S"),
    "answer": (BEST, "the maze has 'o' in row"),
    "rows": ("S.../...G", "the maze has 2 rows, 5x5 needs 5"),
    "ragged": (PUZZLE.replace("..#..", "..#."), "row 2 of the maze has 4 cells"),
    "letter": (PUZZLE.replace("/#...#", "/#.x.#"), "'x' in row 3 column 3"),
    "path": ("some/where", "some/where: no such file, and not a puzzle either"),
    "file": ("maze.txt", "maze.txt: no such file, and not a puzzle either"),
    "short": ("S.G", "the maze has 3 cells"),
    "unsolvable": ("S#..G/##.../...../...../.....", "no way leads from S in row 1 column 1 to G"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_mazes_that_are_refused(run: Any, case: str) -> None:
    """One line, exit code 2, and nothing is solved."""
    puzzle, message = BAD[case]
    done = run("solve", "../marker", puzzle)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and len(done.err.splitlines()) == 1


BAD_FILES = {
    "empty": ("\n \n", "bad: holds no puzzle"),
    "second": (BLOCK + "\n" + BLOCK.replace("G", "."), "bad:7: the maze has no goal G"),
    "long": (BLOCK + BLOCK, "bad:1: the maze has 10 rows, 5x5 needs 5"),
    "csv": ("question\nS.G\n", "bad:2: the maze has 3 cells"),
    "csv row": ("source,question\nx\n", "bad:2: 1 columns, the header has 2"),
    "csv quote": ('source,question\nx,"S\n', "bad:2: unexpected end of data"),
}


@pytest.mark.parametrize("case", sorted(BAD_FILES))
def test_files_that_are_refused(run: Any, case: str) -> None:
    """File, line, what is wrong."""
    content, message = BAD_FILES[case]
    Path("bad").write_text(content, encoding="utf-8")
    done = run("solve", "../marker", "bad")
    assert (done.code, done.out) == (2, "")
    assert message in done.err and len(done.err.splitlines()) == 1


def test_show(run: Any) -> None:
    """The maze and its path side by side, and the line that solve takes."""
    words = ["--config", "maze.yaml", "task.size=7", "task.train_puzzles=4", "task.test_puzzles=3"]
    done = run("data", "show", *words, "--index", "1", "--count", "2")
    assert done.code == 0
    blocks = done.out.strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [
        "maze test puzzle 1 of 3",
        "maze test puzzle 2 of 3",
    ]
    task = build_task(MazeConfig(name="maze", size=7))
    for block in blocks:
        lines = block.split("\n")
        assert {len(line) for line in lines[1:10]} == {2 * 16 + 3}
        inputs = task.parse(lines[10])
        labels = task.answers(inputs[None])[0]
        assert labels is not None
        pairs = zip(task.render(inputs).split("\n"), task.render(labels[0]).split("\n"))
        assert lines[1:10] == ["   ".join(pair) for pair in pairs]


def test_generate(run: Any) -> None:
    """A CSV that reads back, as asked for; a seed decides it; --exclude keeps mazes out."""
    words = ["data", "generate", "--task", "maze", "--size", "6", "--count", "50", "--style"]
    done = run(*words, "walls", "--min-path", "8", "--unique", "--output", "a.csv")
    assert (done.code, done.out) == (0, "") and "50 mazes: paths of 8 to " in done.err
    assert "50 with one shortest path" in done.err
    first = read_mazes("a.csv", 6)
    assert len(first.inputs) == 50 and first.lengths.min() == 8
    assert (mark_all_shortest_paths(first.inputs).sum(axis=1) == first.lengths + 1).all()
    rows = Path("a.csv").read_text(encoding="utf-8").split("\n")[1:-1]
    assert [int(row.split(",")[3]) for row in rows] == first.lengths.tolist()
    assert rows[0].startswith("generated_maze_6x6_walls,")
    out = run(*words, "walls", "--min-path", "8", "--unique").out
    assert out == Path("a.csv").read_text(encoding="utf-8")
    assert run(*words, "walls", "--min-path", "8", "--unique", "--seed", "1").out != out
    assert (
        run(*words, "walls", "--min-path", "8", "--output", "b.csv", "--exclude", "a.csv")[0] == 0
    )
    assert not set(maze_keys(first.inputs)) & set(maze_keys(read_mazes("b.csv", 6).inputs))
    out = run("data", "generate", "--task", "maze", "--count", "1", "--style", "loops").out
    assert out.startswith(HEADER + "\ngenerated_maze_30x30_loops,") and len(out) > 1800


GENERATE: List[Tuple[List[str], str]] = [
    (["--size", "2"], "--size: invalid choice: 2 (choose from 3 to 1000)"),
    (["--size", "x"], "'x' is not a whole number of at least 1"),
    (["--size", "5", "--min-path", "19"], "min_path: a 5x5 maze has no shortest path of 19 steps"),
    (["--size", "5", "--min-path", "18", "--count", "2"], "of at least 18 steps: only 0 different"),
    (["--size", "5", "--min-path", "0"], "--min-path: '0' is not a whole number of at least 1"),
    (["--size", "3", "--count", "5000"], "different ones found, 2500 wanted; ask for fewer"),
    (["--style", "round"], "invalid choice: 'round'"),
    (["--hard"], "--hard: goes with --task sudoku, not with maze"),
    (["--min-givens", "5"], "--min-givens: goes with --task sudoku, not with maze"),
    (["--output", "there.csv"], "there.csv: is there already; --force replaces it"),
    (["--exclude", "none.csv"], "none.csv: cannot be read"),
    (["--task", "sudoku", "--unique"], "--unique: goes with --task maze or chess, not with sudoku"),
    (["--task", "sudoku", "--min-path", "3"], "--min-path: goes with --task maze"),
    (["--task", "draughts"], "invalid choice: 'draughts'"),
]


@pytest.mark.parametrize("words, message", GENERATE, ids=[" ".join(w) for w, _ in GENERATE])
def test_what_generate_refuses(run: Any, words: List[str], message: str) -> None:
    """One line, exit code 2, no file made or changed."""
    Path("there.csv").write_text("mine", encoding="utf-8")
    done = run("data", "generate", "--task", "maze", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and len(done.err.splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["there.csv"]
    assert Path("there.csv").read_text(encoding="utf-8") == "mine"


def test_evaluate_reports_paths(run: Any) -> None:
    """Shares of valid and of shortest paths beside exact accuracy."""
    row = PUZZLE.replace("/", "").replace(".", " ")
    rows = f"a,{row},{LONG.replace('/', '').replace('.', ' ')},10\n"
    Path("m.csv").write_text(f"source,question,answer,rating\n{rows}", encoding="utf-8")
    done = run("evaluate", "../marker", "task.test_file=m.csv", "--json", "x.json")
    assert done.code == 0
    assert "valid_path" in done.out and "optimal_path" in done.out
    metrics = Evaluator(marker(), experiment(test_file="m.csv")).run(split="test")["all"]
    assert (metrics["valid_path"], metrics["optimal_path"]) == (1.0, 1.0)
    assert metrics["exact_accuracy"] == 0.0  # the file's answer is the detour
    steps = Evaluator(marker(), experiment(test_file="m.csv")).run(split="test", steps=2)["all"]
    assert (steps["valid_path"], steps["optimal_path"], steps["exact_accuracy"]) == (1, 0, 1)
    first = Evaluator(marker(), experiment(test_file="m.csv")).run(split="test", steps=1)["all"]
    assert (first["valid_path"], judge(*[parse_maze(BEST, 5)[None]] * 2).valid[0]) == (0, False)


@pytest.mark.parametrize(
    "maze, says",
    [("S..../...../...../...../....G", 1), ("S#.../.#.#./.#.#./.#.#./...#G", 0)],
)
def test_why_the_rules_may_accept_nothing(run: Any, maze: str, says: int) -> None:
    """A line where there are several shortest paths and no run's answer was accepted."""
    search = "--halt rules --rollouts 1 --steps 1".split()
    lines = run("solve", "../marker", maze, *search).out.splitlines()
    said = [line for line in lines if line.startswith("the maze has several shortest paths")]
    assert any("not accepted by the rules" in line for line in lines) and len(said) == says
