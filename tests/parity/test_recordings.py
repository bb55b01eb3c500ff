"""Parity with the reference: every recording is replayed step by step on this machine's CPU.

What rounding reaches through the recursion is judged by ``mlx_trm.upstream.rounding``; all else is
equal, or within a few roundings. ``python -m mlx_trm.parity DIR`` prints the table.
"""

import json
import math
from pathlib import Path

import mlx.core as mx
import pytest
from paths import REFERENCE

from mlx_trm.errors import DataError
from mlx_trm.upstream.recording import FLOORS, Recording, read_recordings
from mlx_trm.upstream.replay import FROM_OUR_WEIGHTS, compare
from mlx_trm.upstream.rounding import TYPICAL

FOLDER = REFERENCE / "cuda"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))

OUTPUTS = {
    "eval.logits",
    "eval.q_halt_logits",
    "eval.q_continue_logits",
    "eval.carry",
    "eval.loss",
    "eval.loss_of_recorded",
}
STEPPED = OUTPUTS | {
    "eval.steps",
    "eval.halted",
    "eval.counts",
    "eval.preds",
    "eval.accuracy",
    "train.refill",
    "train.steps",
    "train.halted",
    "train.counts",
    "train.accuracy",
    "train.loss_of_recorded",
    "train.logits",
    "train.q_halt_logits",
    "train.q_continue_logits",
    "train.loss",
    "train.carry",
    "train.grad",
    "schedule",
    "optimizer.param",
    "ema",
}


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Hosted runners have no dependable GPU; the recordings are replayed on the CPU everywhere."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def test_every_recording_of_the_manifest_is_here_and_unchanged():
    from hashlib import sha256

    assert sorted(path.stem for path in FOLDER.glob("*.safetensors")) == sorted(MANIFEST)
    for case, entry in MANIFEST.items():
        digest = sha256((FOLDER / f"{case}.safetensors").read_bytes()).hexdigest()
        assert digest == entry["sha256"], case


# The paper's size in bfloat16 takes as long as ten others: 20 s with MLX's own products.
SLOW = {"full_sudoku_mlp_bf16"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case
        for case in sorted(MANIFEST)
    ],
)
def test_case(case):
    """Every quantity passes, and by far: on another machine it may be a few times as far."""
    recording = Recording(FOLDER / f"{case}.safetensors")
    comparisons = {entry.quantity: entry for entry in compare(recording)}
    misses = [entry for entry in comparisons.values() if not entry.passed]
    assert not misses
    half, full = case.endswith("_bf16"), case.startswith("full_")
    expected = OUTPUTS if full else STEPPED
    if "nopuzzle" not in case and not full:
        expected = expected | {"optimizer.puzzle_emb"}
    assert set(comparisons) == (expected | {"eval.weights"} if half else expected)
    for quantity, entry in comparisons.items():
        own = quantity.split(".")[-1] in FROM_OUR_WEIGHTS
        if own or quantity == "eval.weights":
            assert entry.error < entry.tolerance / 2, entry
        else:
            assert entry.tolerance == exact_limit(quantity), entry
        assert (entry.typical is not None) == (own and not quantity.endswith(".loss")), entry
        # A row has one Q value, so the median over rows is one of a few numbers.
        few = quantity.endswith(("q_halt_logits", "q_continue_logits"))
        assert entry.typical is None or entry.typical < (TYPICAL if few else 1.2), entry


def exact_limit(quantity: str) -> float:
    """The promise of what follows from recorded numbers alone, written down a second time."""
    equal = quantity.endswith((".steps", ".halted", ".counts", ".refill", ".preds"))
    return 0.0 if equal else 1e-6


def altered(tmp_path: Path, case: str, change) -> Recording:
    """Write a recording with arrays changed by ``change(arrays, metadata)`` and read it."""
    arrays, metadata = mx.load(str(FOLDER / f"{case}.safetensors"), return_metadata=True)
    change(arrays, metadata)
    path = tmp_path / f"{case}.safetensors"
    mx.save_safetensors(str(path), arrays, metadata)
    return Recording(path)


@pytest.mark.parametrize(
    "key, shift, quantity",
    [
        ("eval.step2.q_halt_logits", 1e-3, "eval.q_halt_logits"),
        ("eval.step1.loss", 1e-3, "eval.loss"),
        ("eval.step3.metric.count", 1.0, "eval.counts"),
        ("eval.step0.metric.lm_loss", 1e-2, "eval.loss_of_recorded"),
        ("train.step5.metric.q_halt_loss", 1e-2, "train.loss_of_recorded"),
        ("eval.step2.preds", 1, "eval.preds"),
        ("train.step3.lr", 1e-5, "schedule"),
        ("train.step2.loss", 1e-3, "train.loss"),
        ("train.step7.loss", 1e-3, "train.loss_of_recorded"),
        ("train.step2.carry.steps", 1, "train.steps"),
        ("train.step6.carry.current_data.labels", 1, "train.refill"),
        ("train.step2.param.inner.q_head.bias", 1e-5, "optimizer.param"),
        ("train.step1.param.inner.puzzle_emb.weights", 1e-4, "optimizer.puzzle_emb"),
        ("train.step3.ema.inner.lm_head.weight", 1e-5, "ema"),
        ("train.step2.grad.inner.embed_tokens.embedding_weight", 1e-3, "train.grad"),
        ("train.step1.grad.inner.puzzle_emb.local_weights", 1e-3, "train.grad"),
        ("train.step3.entering.z_H", 1e-3, "train.carry"),
    ],
)
def test_a_changed_number_is_noticed_where_it_belongs(tmp_path, key, shift, quantity):
    def move(arrays, _):
        arrays[key] = (arrays[key] + shift).astype(arrays[key].dtype)

    missed = {
        entry.quantity
        for entry in compare(altered(tmp_path, "trm_explore_f32", move))
        if not entry.passed
    }
    assert quantity in missed


@pytest.mark.parametrize(
    "case, key, shift, quantity",
    [
        ("hrm_f32", "train.step2.metric.q_continue_loss", 1e-2, "train.loss"),
        ("hrm_f32", "train.step6.metric.q_continue_loss", 1e-2, "train.loss_of_recorded"),
        ("hrm_f32", "eval.step1.carry.z_L", 1e-3, "eval.carry"),
        (
            "hrm_f32",
            "train.step1.grad.inner.H_level.layers.0.mlp.down_proj.weight",
            1,
            "train.grad",
        ),
        ("trm_singlez_f32", "train.step2.entering.z_L", 1e-3, "train.carry"),
        ("trm_hier6_f32", "eval.step2.carry.z_L6", 1e-3, "eval.carry"),
        ("trm_hier6_f32", "train.step4.entering.z_L3", 1e-3, "train.carry"),
        (
            "transformers_baseline_f32",
            "train.step3.q_continue_logits",
            1e-3,
            "train.q_continue_logits",
        ),
    ],
)
def test_a_changed_number_of_another_model_is_noticed(tmp_path, case, key, shift, quantity):
    def move(arrays, _):
        arrays[key] = (arrays[key] + shift).astype(arrays[key].dtype)

    entries = compare(altered(tmp_path, case, move))
    assert quantity in {entry.quantity for entry in entries if not entry.passed}


def test_a_continue_loss_that_only_one_side_has_is_a_miss(tmp_path):
    def drop(arrays, _):
        for step in range(1, 9):
            del arrays[f"train.step{step}.metric.q_continue_loss"]

    def add(arrays, _):
        arrays["train.step2.metric.q_continue_loss"] = mx.array(0.0)

    for case, change in (("hrm_f32", drop), ("trm_singlez_f32", add)):
        entries = {entry.quantity: entry for entry in compare(altered(tmp_path, case, change))}
        assert not entries["train.loss_of_recorded"].passed, case


def test_halting_is_replayed_with_the_recorded_draws(tmp_path):
    def explore_always(arrays, _):
        for step in range(1, 9):
            key = f"train.step{step}.explore."
            arrays[key + "uniform"] = mx.zeros_like(arrays[key + "uniform"])
            arrays[key + "randint"] = mx.full((6,), 4, dtype=mx.int32)

    recording = altered(tmp_path, "trm_explore_f32", explore_always)
    halted = next(entry for entry in compare(recording) if entry.quantity == "train.halted")
    assert halted.error > 0 and not halted.passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_a_miss_and_null(tmp_path, value):
    def spoil(arrays, _):
        arrays["eval.step1.logits"] = arrays["eval.step1.logits"] * 0 + value

    entries = compare(altered(tmp_path, "trm_nopuzzle_f32", spoil))
    logits = next(entry for entry in entries if entry.quantity == "eval.logits")
    assert logits.error is None and not logits.passed


def test_a_model_not_built_is_a_miss(tmp_path):
    def rename(_, metadata):
        metadata["model"] = "trm_hier6000"

    entries = compare(altered(tmp_path, "trm_nopuzzle_f32", rename))
    assert [(entry.quantity, entry.error, entry.passed) for entry in entries] == [
        ("not supported", None, False)
    ]


def test_half_precision_floors_scale_with_the_mantissa():
    for kind in ("values", "loss", "grad"):
        assert FLOORS["float16"][kind] == pytest.approx(FLOORS["bfloat16"][kind] / 8)


def test_unreadable_recordings_are_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_recordings(tmp_path / "none")
    with pytest.raises(DataError, match="holds no recording"):
        read_recordings(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(DataError, match=r"bad\.safetensors: cannot be read"):
        read_recordings(tmp_path)
    mx.save_safetensors(str(tmp_path / "bad.safetensors"), {"a": mx.zeros((1,))}, {"model": "trm"})
    with pytest.raises(DataError, match=r"bad\.safetensors: the metadata"):
        read_recordings(tmp_path)


@pytest.mark.parametrize(
    "key", ["train.step2.carry.halted", "eval.batch.labels", "init.inner.H_init"]
)
def test_a_missing_array_is_named(tmp_path, key):
    def drop(arrays, _):
        del arrays[key]

    with pytest.raises(DataError, match=r"trm_nopuzzle_f32\.safetensors"):
        compare(altered(tmp_path, "trm_nopuzzle_f32", drop))


@pytest.mark.parametrize(
    "prefix, missing",
    [
        ("eval.step", "eval.step0"),
        ("eval.step0.", "eval.step0"),
        ("eval.step2.", "eval.step2"),
        ("train.step", "train.step1"),
        ("train.step2.", "train.step2"),
        ("train.step4.logits", "train.step4.logits"),
        ("train.step1.grad.", "train.step1.grad"),
        ("train.step3.param.", "train.step3.param"),
        ("train.step2.ema.", "train.step2.ema"),
    ],
)
def test_a_recording_with_a_hole_is_no_pass(tmp_path, prefix, missing):
    def drop(arrays, _):
        for key in [key for key in arrays if key.startswith(prefix)]:
            del arrays[key]

    with pytest.raises(DataError, match=f"no array .*{missing}"):
        compare(altered(tmp_path, "trm_nopuzzle_f32", drop))


def test_an_average_that_only_one_side_has_is_a_miss(tmp_path):
    def drop(arrays, _):
        del arrays["train.step2.ema.inner.lm_head.weight"]

    entries = {entry.quantity: entry for entry in compare(altered(tmp_path, "trm_mlp_f32", drop))}
    assert entries["ema"].error is None and not entries["ema"].passed


def test_a_gradient_that_is_not_recorded_is_no_pass(tmp_path):
    def drop(arrays, _):
        del arrays["train.step2.grad.inner.lm_head.weight"]

    with pytest.raises(DataError, match="lm_head"):
        compare(altered(tmp_path, "trm_mlp_f32", drop))


def test_settings_that_are_not_taken_here_do_not_stop_the_others(tmp_path, caplog):
    def heads(_, metadata):
        metadata["config"] = metadata["config"].replace('"num_heads": 2', '"num_heads": 3')

    entries = compare(altered(tmp_path, "trm_nopuzzle_f32", heads))
    assert [(entry.quantity, entry.passed) for entry in entries] == [("not supported", False)]
    assert "num_heads: 3 does not divide hidden_size 16" in caplog.text


def test_only_keeps_the_cases_named():
    kept = read_recordings(FOLDER, ["trm_mlp_*", "full_sudoku_mlp_f32"])
    assert [recording.case for recording in kept] == [
        "full_sudoku_mlp_f32",
        "trm_mlp_bf16",
        "trm_mlp_f32",
    ]
