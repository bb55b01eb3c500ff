"""The benchmark suite: results, comparison, floors, tables and pictures."""

import importlib
import json
import sys
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from child_processes import run_python
from mlx.utils import tree_flatten
from paths import ROOT

import mlx_trm as trm
from mlx_trm.nn.layers import CastedEmbedding

FOLDER = ROOT / "benchmarks"
NAMES = "run plot roofline results sizes cases protocol upstream_worker".split()
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
    train, original, evaluation, overhead, _ = results
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cases", "trian"], "did you mean 'train'"),
        (["--sizes", "tiny:0"], "'0' is not a whole number from 1"),
        (["--sizes", "huge"], "no size 'huge'"),
        (["--compare", "."], "no checkout of TinyRecursiveModels"),
        (["--checkpoint", "no_such_run"], "no_such_run"),
        (["--block-seconds", "nan"], "is not a number above 0"),
        (["--frobnicate"], "--frobnicate"),
    ],
)
def test_bad_arguments_are_one_line(words, said, suite, capsys, monkeypatch, tmp_path):
    """One line on standard error, exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)
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


# Floors ------------------------------------------------------------------------------------------


def products(job):
    """List the matrix products of a block on one row of the batch, as (rows, inner, columns)."""
    model = job["model"]
    D, T = model["hidden_size"], 97
    mlp = [(T, D, 2 * 1536), (T, 1536, D)]
    if model["mlp_t"]:  # on the transposed state
        return mlp + [(D, T, 2 * 512), (D, 512, T)]
    head = D // model["num_heads"]
    scores = [(T, head, T), (T, T, head)] * model["num_heads"]
    return mlp + [(T, D, 3 * D), (T, D, D)] + scores


@pytest.mark.parametrize("size", ["sudoku_mlp", "sudoku_att"])
def test_operations_are_those_of_a_hand_count(size, suite):
    """Two blocks, 3 H cycles of 6 + 1 calls, the last one with a gradient; 11 logits a cell."""
    job = suite.sizes.describe(size, 5, "bfloat16", True)
    block = sum(2 * m * k * n for m, k, n in products(job))
    heads = 2 * 81 * 512 * 11 + 2 * 512 * 2
    assert suite.roofline.step_flops(job, False) == 5 * (3 * 7 * 2 * block + heads)
    assert suite.roofline.step_flops(job, True) == 5 * ((21 + 2 * 7) * 2 * block + 3 * heads)


NO_VECTOR = ["model.puzzle_emb_ndim=0", "model.puzzle_emb_len=0"]
SYMBOLS = ["task.size=4", "model.symbol_size=8", "model.token_inner=16", "model.H_cycles=2"]
GRID = ["task.size=5", "task.min_path=3", "model.hidden_size=16", "model.inner=48"]
COUNTED = {
    "trm": ("sudoku_tiny.yaml", []),
    "attention": ("sudoku_tiny.yaml", ["model.mlp_t=false", "model.pos_encodings=rope"]),
    "registers": ("sudoku_tiny.yaml", ["model.register_tokens=3", *NO_VECTOR]),
    "symbols": ("sudoku_symbols.yaml", SYMBOLS),
    "three symbols": ("sudoku_symbols.yaml", [*SYMBOLS, "model.symbols=3", "model.inner=40"]),
    "grid": ("maze_grid.yaml", GRID),
    "one column": ("maze_grid.yaml", [*GRID, "model.columns=1", "model.L_layers=1"]),
}


class Products:
    """Counts the operations of MLX's matrix products and convolutions, as they are called.

    Attributes:
        total: of all calls, a multiplication and an addition being two.
    """

    def __init__(self, patch):
        self.total = 0
        product, add, fold = mx.array.__matmul__, mx.addmm, mx.conv2d
        attend = mx.fast.scaled_dot_product_attention

        def count(a, b):
            rows = max(a.size // a.shape[-1], 1)
            self.total += 2 * rows * a.shape[-1] * b.shape[-1]

        def matmul(a, b):
            result = product(a, b)
            self.total += 2 * result.size * a.shape[-1]
            return result

        def addmm(c, a, b, **more):
            count(a, b)
            return add(c, a, b, **more)

        def conv2d(x, weight, padding):
            rows, high, wide = x.shape[:3]
            near = sum(
                0 <= r + i < high and 0 <= c + j < wide
                for r in range(high)
                for c in range(wide)
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
            )
            self.total += 2 * rows * near * weight.shape[0] * weight.shape[3]
            return fold(x, weight, padding=padding)

        def attention(q, k, v, **more):
            self.total += 4 * q.size * k.shape[2]
            return attend(q, k, v, **more)

        patch.setattr(mx.array, "__matmul__", matmul)
        patch.setattr(mx, "addmm", addmm)
        patch.setattr(mx, "conv2d", conv2d)
        patch.setattr(mx.fast, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize("name", COUNTED)
def test_operations_are_those_that_a_step_calls(name, suite, monkeypatch):
    """Every product of a supervision step. An embedding is a look-up."""
    config, overrides = COUNTED[name]
    size = suite.sizes.Size(config, overrides, 1, 1, "of the test")
    monkeypatch.setitem(suite.sizes.SIZES, "own", size)
    job = suite.sizes.describe("own", 6, "float32", False)
    model = suite.cases.build(job)
    model.eval()
    batch = trm.random_batch(model.spec, 6)
    monkeypatch.setattr(
        CastedEmbedding, "__call__", lambda self, ids, dtype: self.embedding_weight[ids]
    )
    counted = Products(monkeypatch)
    model(model.initial_carry(batch), batch)
    assert counted.total == suite.roofline.step_flops(job, False)


def test_a_model_that_is_not_counted_is_one_line(suite):
    """It is named, and those that are counted."""
    job = suite.sizes.describe("tiny", 1, "float32", False)
    job["model"]["name"] = "hrm"
    with pytest.raises(trm.ConfigError, match="^model hrm: its operations are not counted; those"):
        suite.roofline.step_flops(job, True)


def test_operations_of_the_paper_s_step(suite):
    """33 TFLOP at batch 768, the MLP over the cells."""
    job = suite.sizes.describe("sudoku_mlp", 768, "bfloat16", True)
    assert suite.roofline.step_flops(job, True) == pytest.approx(32.8e12, rel=0.01)


@pytest.mark.parametrize("size", ["tiny", "sudoku_att", "sudoku_symbols", "maze_grid"])
def test_weights_are_those_of_the_model(size, suite):
    """The bytes are counted from as many weights as the level's blocks have."""
    job = suite.sizes.describe(size, 1, "float32", False)
    spec = trm.TaskSpec(vocab_size=job["vocab_size"], seq_len=job["seq_len"])
    model = trm.build_model(suite.sizes.experiment(job).model, spec)
    held = sum(array.size for _, array in tree_flatten(model.L_level.parameters()))
    assert job["model"]["L_layers"] * suite.roofline.block_weights(job) == held


def test_a_step_is_compared_with_the_higher_floor(suite):
    """Share of the floor, by hand: 1 s of products, 0.5 s of bytes, 4 s taken."""
    job = suite.sizes.describe("tiny", 8, "float32", False)
    flops, moved = (f(job, True) for f in (suite.roofline.step_flops, suite.roofline.step_bytes))
    note = suite.roofline.note(job, True, {"flops": flops, "bandwidth": 2 * moved}, 4.0)
    assert (note["bound"], note["share"]) == ("compute", 0.25)
    assert (note["compute_floor"], note["memory_floor"]) == (1.0, 0.5)
    note = suite.roofline.note(job, True, {"flops": flops, "bandwidth": moved / 2}, 4.0)
    assert (note["bound"], note["share"]) == ("memory", 0.5)


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


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_memory_of_a_mac_s_row_is_estimated(training, monkeypatch):
    """By stand-ins for MLX's own operations, which are there afterwards as before."""
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("metal_memory")
    monkeypatch.setitem(script.CASES, "tiny", ("sudoku_tiny.yaml", 16, 6))
    product, addmm = mx.array.__matmul__, mx.addmm
    with script.emulated_metal(), script.stand_ins(training):
        fewer, more = (script.peak("tiny", training, rows, 2) for rows in (64, 192))
    assert 20_000 < (more - fewer) / 128 < 2_000_000
    assert mx.array.__matmul__ is product and mx.addmm is addmm


def test_what_a_mac_is_estimated_to_do_is_what_its_page_says(monkeypatch):
    """Rows that fit, and times a step, by the script that docs/macs.md names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("mac_estimates")
    page = (ROOT / "docs" / "macs.md").read_text(encoding="utf-8")
    assert "python benchmarks/mac_estimates.py" in page
    rows = script.count_rows("sudoku", 16, True), script.count_rows("sudoku_att", 16, True)
    assert f"| 16 GB | {rows[0]:,} | {rows[1]:,} |" in page
    assert script.count_rows("maze", 64, False) == 1983 and "| 1,983 |" in page
    wanted = [(preset, True) for preset in script.CASES] + [("sudoku", False), ("maze", False)]
    counts = [script.count_operations(preset, training) for preset, training in wanted]
    for chip, trillions in script.CHIPS.items():
        rate = script.SHARE * trillions * 1e12
        seconds = " | ".join(f"{script.BATCH * count / rate:.1f} s" for count in counts)
        assert f"| {chip}, {trillions:g} | {seconds} |" in page


def test_the_trainer_s_batches_are_taken_again_and_again(monkeypatch, tmp_path):
    """More of them than one way through the data has."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    cases = importlib.import_module("data_cases")
    job = {"case": "pipeline", "size": "tiny", "batch": 8, "dtype": "float32", "compiled": False}
    work = cases.pipeline(job)
    work.run(3)
