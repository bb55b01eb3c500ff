"""The benchmarks' floors and estimates: operations, bytes and rows, counted from shapes."""

import importlib
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from paths import ROOT

import mlx_trm as trm
from mlx_trm.nn.layers import CastedEmbedding

FOLDER = ROOT / "benchmarks"


@pytest.fixture(name="suite")
def _suite(monkeypatch):
    """The suite's modules that count."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = "roofline sizes cases".split()
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


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


# Macs --------------------------------------------------------------------------------------------


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
    for preset in script.RECIPES:
        assert f"| {' | '.join(script.run_row(preset))} |" in page


def test_a_run_is_counted_stage_by_stage(monkeypatch):
    """A curriculum's stages by their shares of the steps; without one all steps are alike."""
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("mac_estimates")
    whole = script.count_run("sudoku_symbols")
    step = 192 * script.count_operations("sudoku_symbols", True)
    assert 0.65 * 8000 * step < whole < 8000 * step
    monkeypatch.setattr(
        script, "load_config", lambda name: trm.load_config(name, ["train.curriculum=[]"])
    )
    assert script.count_run("sudoku_symbols") == 8000 * step
