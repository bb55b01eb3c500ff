"""The benchmark suite: results, comparison, tables and pictures."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from child_processes import run_python
from paths import ROOT

import mlx_trm as trm
from mlx_trm.system import backend

FOLDER = ROOT / "benchmarks"
NAMES = "run plot results simple_rules protocol machine sizes upstream_worker".split()
CHECKOUT = "a checkout"
FAST = ["--device", "cpu", "--repeats", "2", "--block-seconds", "0.01"]

# Speaks the protocol as the original's worker does, without PyTorch. A unit of four steps takes
# 0.4 s of a clock that only this work moves.
FAKE = """#!{python}
import sys, time
sys.path.insert(0, {folder!r})
from protocol import Side, Work, serve

def prepare(job):
    facts = {{"torch": "0", "cuda": None, "substituted": ["everything"], "mode": "eager"}}
    facts["steps_in_unit"] = 4
    if job["case"] == "eval":
        raise MemoryError("out of memory: try less")
    return Work(work, lambda: facts)

now = 0.0
time.perf_counter = lambda: now

def work(count):
    global now
    now += 0.4 * count

versions = lambda job: {{"torch": "0", "substituted": []}}
serve(Side(prepare, {{"versions": versions}}, lambda: None, lambda: 5 << 30, list))
"""


@pytest.fixture(name="suite")
def _suite(monkeypatch):
    """The suite's modules."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})


def start(script, *words):
    """Run a script of the suite in a process of its own."""
    return run_python(FOLDER / script, *words)


@pytest.fixture(name="measured", scope="module")
def _measured(tmp_path_factory):
    """The results of a run beside a stand-in for the original."""
    folder = tmp_path_factory.mktemp("benchmarks")
    checkout = folder / "checkout" / "models" / "recursive_reasoning"
    checkout.mkdir(parents=True)
    (checkout / "trm.py").write_text("")
    fake = folder / "python"
    fake.write_text(FAKE.format(python=sys.executable, folder=str(FOLDER)))
    fake.chmod(0o755)
    done = start(
        "run.py", *FAST, "--cases", "train", "eval", "overhead", "import", "--output",
        str(folder / "results"), "--compare", str(folder / "checkout"), "--upstream-python",
        str(fake), "--upstream-commit", "e7b6871", "--eval-steps", "3",
    )  # fmt: skip
    lines = [
        json.loads(line)
        for file in (folder / "results").glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    return SimpleNamespace(done=done, lines=lines, folder=folder / "results")


def test_a_run_appends_whole_lines(measured):
    """A line for the machine, and one for each case and side, with everything a reader needs."""
    assert measured.lines[0]["kind"] == "machine"
    assert measured.lines[0]["report"]["versions"]["mlx_trm"] == trm.__version__
    results = [line for line in measured.lines if line["kind"] == "result"]
    done = [(line["case"], line["implementation"]) for line in results]
    assert done == [
        ("train", "mlx_trm"),
        ("train", "original"),
        ("eval", "mlx_trm"),
        ("overhead", "mlx_trm"),
        ("import", "mlx_trm"),
    ]
    for line in results:
        times = line["seconds"]
        assert 0 < times["min"] <= times["q1"] <= times["median"] <= times["q3"]
        assert {"run", "date", "commit", "dirty", "machine", "device", "versions"} <= set(line)
    train, original, evaluation, overhead, imported = results
    assert imported["facts"]["first_name_seconds"] > imported["seconds"]["median"]
    assert train["peak_memory"] > 0 and train["dtype"] == "float32" and not train["compiled"]
    assert evaluation["facts"]["steps_in_unit"] == 3
    assert 0 < overhead["facts"]["python_share"] < 1
    assert original["seconds"]["median"] == pytest.approx(0.1)
    assert original["peak_memory"] == 5 << 30
    assert original["original"]["commit"] == "e7b6871"


def test_both_sides_take_turns_and_a_failure_is_told(measured):
    """The order stands in the results; what failed on one side is measured on the other."""
    train = [line for line in measured.lines if line.get("case") == "train"]
    assert [line["order"] for line in train] == [["mlx_trm", "original"]] * 2
    assert {line["seconds"]["blocks"] for line in train} == {2}
    assert "times as fast as the original" in measured.done.stdout
    assert measured.done.returncode == 1
    told = [line for line in measured.done.stderr.splitlines() if "is busy" not in line]
    assert told == ["not measured: eval tiny 8: original: MemoryError: out of memory: try less"]


def test_tables_and_pictures(measured, tmp_path, suite):
    """plot.py writes a section a machine, and pictures of both formats."""
    assert suite.plot.main([str(measured.folder), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "tables.md").read_text()
    train, original = (line for line in measured.lines if line.get("case") == "train")
    ratio = original["seconds"]["median"] / train["seconds"]["median"]
    row = next(line for line in text.splitlines() if line.startswith("| train, tiny, batch 8 | fl"))
    assert f"| {ratio:.2f} |" in row
    assert "replaced: everything" in text and "`e7b6871`" in text
    assert "| import | import |" in text
    for name in ("times", "memory", "roofline"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "out" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_newest_result_counts(measured, suite):
    """A later line of the same thing replaces an earlier one; another batch size does not."""
    line = next(line for line in measured.lines if line.get("case") == "eval")
    later = {**line, "date": "later"}
    assert suite.plot.newest([line, later, {**line, "batch": 9}]) == [later, {**line, "batch": 9}]


def test_kernels_have_a_table_of_their_own(measured, suite, tmp_path, capsys):
    """The newest of each thing, in milliseconds; a dash for what is not there."""
    about = {key: measured.lines[1][key] for key in suite.plot.SAME if key != "implementation"}
    line = {"kind": "kernels", **about, "kinds": {"attention": 0.0, "products": 0.0125},
            "seconds": 0.0151, "waits": 0.002, "launches": 40.4, "watts": 690.2, "joules": 63.25,
            "commit": "0123456789"}  # fmt: skip
    old = {**line, "implementation": "mlx_trm", "seconds": 1.0}
    new, theirs = {**old, "seconds": 0.0151}, {**line, "implementation": "original", "watts": None}
    lines = [old, theirs, new]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [*measured.lines, *lines]))
    words = ["--output", str(tmp_path), "--no-pictures"]
    assert suite.plot.main([str(path), *words]) == 0
    text = (tmp_path / "tables.md").read_text()
    header = "| case | of | ms | attention | products | waits | launches | W | J | commit |"
    rows = text[text.index(header) :].split("\n\n")[0].splitlines()[2:]
    assert rows == [
        f"| train, tiny, batch 8 | {side} | 15.1 | - | 12.5 | 2 | 40 | {watts} | 63.2 | `0123456` |"
        for side, watts in (("mlx_trm", "690"), ("original", "-"))
    ]
    path.write_text(json.dumps(old) + "\n")
    assert suite.plot.main([str(path), *words]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_a_comparison_is_of_the_newest_run_with_both_sides(measured, suite, tmp_path):
    """Results of mlx_trm alone stand in a table of their own, and beside no original."""
    ours, theirs = (line for line in measured.lines if line.get("case") == "train")

    def timed(line, run, seconds):
        return {**line, "run": run, "seconds": {**line["seconds"], "median": seconds}}

    first = [timed(ours, "first", 0.07), timed(theirs, "first", 0.1)]
    second = [timed(ours, "second", 0.05), timed(theirs, "second", 0.1)]
    alone = timed(ours, "third", 0.02)
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*first, *second, alone]))
    assert suite.plot.main([str(path), "--output", str(tmp_path), "--no-pictures"]) == 0
    text = (tmp_path / "tables.md").read_text()
    start = "| train, tiny, batch 8 | "
    rows = [line for line in text.splitlines() if line.startswith(start)]
    for row, part in zip(rows, ("float32 | 50 (", "mlx_trm | float32 | 20 (", "original | flo")):
        assert row.startswith(start + part)
    assert len(rows) == 3 and "| 2.00 |" in rows[0]

    def bars(lines):
        return suite.plot.grouped(lines, lambda line: line["seconds"]["median"])

    for lines in ([*first, *second, alone], [*first, alone, *second]):
        assert bars(lines) == [("train, tiny, batch 8", {"mlx_trm": 0.05, "original": 0.1})]
    for lines in ([first[1], alone], [alone, first[1]]):
        assert bars(lines) == [("train, tiny, batch 8", {"mlx_trm": 0.02})]


@pytest.fixture(name="checkout")
def _checkout(tmp_path_factory):
    """What looks like a checkout of the original."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "models" / "recursive_reasoning").mkdir(parents=True)
    (folder / "models" / "recursive_reasoning" / "trm.py").write_text("")
    return str(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cases", "trian"], "did you mean 'train'"),
        (["--sizes", "tiny:0"], "'0' is not a whole number from 1"),
        (["--sizes", "huge"], "no size 'huge'"),
        (["--compare", "."], "no checkout of TinyRecursiveModels"),
        (
            ["--sizes", "sudoku_gate", "--compare", CHECKOUT],
            "the original knows no model.gate_norm",
        ),
        (["--sizes", "maze_grid", "--compare", CHECKOUT], "the original has no model trm_grid"),
        (["--checkpoint", "no_such_run"], "no_such_run"),
        (["--block-seconds", "nan"], "is not a number above 0"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_bad_arguments_are_one_line(words, said, suite, capsys, monkeypatch, tmp_path, checkout):
    """One line on standard error, exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    words = [checkout if word == CHECKOUT else word for word in words]
    try:
        code = suite.run.main(["--output", str(tmp_path / "out"), *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}\n", '{"kind": "result"\n'])
def test_a_broken_file_of_results_is_one_line(text, suite, capsys, tmp_path):
    """plot.py says which file, and makes nothing."""
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    assert suite.plot.main([str(path), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "broken.jsonl" in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


# What stands in for missing packages of the original, and the protocol ---------------------------


def test_stand_ins_do_what_the_model_asks_of_them(suite):
    """A permutation of named dimensions; annotated fields with defaults."""

    class Tensor:
        def __init__(self, array):
            self.array = array

        def permute(self, *order):
            return self.array.transpose(order)

    array = np.arange(24).reshape(1, 2, 3, 4)
    moved = suite.upstream_worker._rearrange(Tensor(array), "B S H D -> B H S D")
    assert (moved == array.swapaxes(1, 2)).all()

    class Config(suite.upstream_worker._BaseModel):
        size: int
        rate: float = 0.5

    config = Config(size=3, other=1)
    assert (config.size, config.rate) == (3, 0.5) and not hasattr(config, "other")
    with pytest.raises(TypeError, match="size"):
        Config(rate=1.0)


def test_the_end_of_a_worker_is_one_line(suite):
    """What it said last is told, and its exit code."""
    code = "import sys; sys.stderr.write('first\\nno such thing\\n'); sys.exit(3)"
    worker = suite.protocol.Worker("it", [sys.executable, "-c", code])
    with pytest.raises(suite.protocol.WorkerError, match="^it ended with 3: no such thing$"):
        worker.call("ask")
    worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the commands set nothing elsewhere")
@pytest.mark.parametrize(
    "works, batch, expected",
    [(["train", "eval"], 2, "6"), (["eval"], 256, "1"), (["eval"], 2, "4"), ([], 256, "4")],
)
def test_a_worker_is_set_up_as_the_command_it_stands_for(
    works, batch, expected, suite, monkeypatch
):
    """Memory is freed by what the command would compute; by a worker of many sizes as usual."""
    for name in ("MLX_USE_CUDA_GRAPHS", backend.OPERATIONS):
        monkeypatch.delenv(name, raising=False)
    case = {"case": (works or ["eval"])[0], "eval_steps": 1, "warm_up": 1, "block_seconds": 0.01}
    job = {**suite.sizes.describe("tiny", batch, "float32", False), **case}
    worker = suite.machine.our_worker("cpu", works)
    try:
        worker.call("prepare", job)
        said = worker.call("ask", what="report")["answer"]["environment"]
    finally:
        worker.close()
    assert (said["MLX_USE_CUDA_GRAPHS"], said[backend.OPERATIONS]) == ("0", expected)


def test_the_trainer_s_batches_are_taken_again_and_again(monkeypatch, tmp_path):
    """More of them than one way through the data has."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    cases = importlib.import_module("data_cases")
    job = {"case": "pipeline", "size": "tiny", "batch": 8, "dtype": "float32", "compiled": False}
    work = cases.pipeline(job)
    work.run(3)


def test_what_simple_rules_reach(suite, monkeypatch, tmp_path, capsys):
    """A group in atari is taken, a ladder is begun, and not where the group gets out of it."""
    rules = suite.simple_rules.rules_of(7)

    def begun(*rows):
        cells = np.array([list(row) for row in rows]).ravel()
        white, black = rules.to_bits(cells == "O"), rules.to_bits(cells == "X")
        moves = sum(suite.simple_rules.ladders_begun(rules, white, black, black))
        return np.flatnonzero(rules.to_flags(moves)).tolist()

    edge = (".......",) * 4
    assert begun("XO.....", ".......", ".......", *edge) == [7]
    assert begun("X......", "O......", ".......", *edge) == [1]
    assert begun(".OX....", "..O....", ".......", *edge) == [3]
    assert not begun("..O....", ".OX....", ".......", *edge)
    file = tmp_path / "mates.txt"
    file.write_text("6k1/5ppp/8/8/8/8/8/R3K3 w - - 0 1\n")
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path))
    settings = ["--config", "chess_mate1.yaml", f"task.test_file={file}"]
    monkeypatch.setattr(sys, "argv", ["simple_rules.py", *settings])
    pytest.importorskip("chess", reason="python-chess is not installed (extra chess)")
    suite.simple_rules.main()
    said = capsys.readouterr().out
    assert said == "1 puzzles: a random legal move 0.067, a random check 1.000\n"
    # A rook that is pinned, and a knight that is free.
    file.write_text("4r1k1/8/8/8/8/8/4R3/4K3 w - - e2\n4r1k1/8/8/8/8/8/3RR3/4K2N w - - h1\n")
    settings = ["--config", "chess_moves_tiny.yaml", f"task.test_file={file}"]
    monkeypatch.setattr(sys, "argv", ["simple_rules.py", *settings])
    suite.simple_rules.main()
    assert capsys.readouterr().out == "2 puzzles: as the piece moves 0.500, nowhere 0.000\n"
