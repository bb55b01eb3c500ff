"""Weights of 8 and 4 bits: what they stand for, what is left alone, what it changes."""

import re
from pathlib import Path
from typing import Any, Tuple

import mlx.core as mx
import numpy as np
import pytest

import mlx_trm as trm
from mlx_trm.config.loading import TrainConfig
from mlx_trm.config.sections import CheckpointConfig, EvalConfig, ExperimentConfig
from mlx_trm.evaluate import main as evaluate
from mlx_trm.inference.quantization import quantize_model, weight_bytes
from mlx_trm.models import named_arrays
from mlx_trm.nn import fused, layers, quantized
from mlx_trm.nn.init import KeySequence
from mlx_trm.nn.quantized import QuantizedCastedLinear
from mlx_trm.runs.checkpoint import save_checkpoint
from mlx_trm.solve import main as solve

SIZES = dict(hidden_size=64, num_heads=2, swiglu_multiple=32, halt_max_steps=2)
SPEC = trm.TaskSpec(vocab_size=6, seq_len=16, num_puzzle_identifiers=3)


def small(**changes: Any) -> trm.TRM:
    """A model with 20 positions, which no group size divides."""
    settings: Any = {**SIZES, "mlp_t": True, "puzzle_emb_len": 4, "forward_dtype": "float32"}
    settings.update(H_cycles=2, L_cycles=2)
    model = trm.TRM(trm.TRMConfig(**{**settings, **changes}), SPEC, seed=3)
    # A Q head that has learnt something; a new one is all zeros, which quantise exactly.
    model.q_head.weight = mx.random.normal(model.q_head.weight.shape, key=mx.random.key(1)) * 0.1
    model.eval()
    return model


def logits(model: trm.RecursiveModel) -> np.ndarray:
    """What one step says about fixed puzzles: (5, 16, 6)."""
    batch = trm.random_batch(SPEC, 5, seed=1)
    _, outputs = model(model.initial_carry(batch), batch)
    return np.array(outputs.logits.astype(mx.float32))


def linear(inputs: int, outputs: int, bias: bool) -> layers.CastedLinear:
    """A layer with a bias that matters."""
    layer = layers.CastedLinear(inputs, outputs, bias, KeySequence(5))
    if bias:
        layer.bias = mx.arange(outputs).astype(mx.float32)
    return layer


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_rounded_to_the_levels_of_their_group(bits: int) -> None:
    """Each is within a level of what it was; a group has at most 2^bits values, evenly spaced."""
    layer = linear(128, 24, bias=False)
    packed = layer.to_quantized(32, bits, mx.float32)
    before = np.array(layer.weight).reshape(24, 4, 32)
    after = np.array(packed.dequantize(mx.float32)).reshape(24, 4, 32)
    width = np.abs(np.array(packed.scales))[..., None]
    assert np.all(np.abs(after - before) <= width * 1.001)
    levels = (after - np.array(packed.biases)[..., None]) / np.array(packed.scales)[..., None]
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert levels.min() > -0.5 and levels.max() < 2**bits - 0.5
    assert packed.weight.nbytes == 24 * 128 * bits // 8


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_those_of_the_weights_meant(bits: int, dtype: mx.Dtype) -> None:
    """Packed or dense, from the right or from the left; in the dtype of the activations."""
    layer = linear(64, 24, bias=False).to_quantized(32, bits, dtype)
    assert layer.scales.dtype == layer.biases.dtype == dtype  # no more bytes than needed
    x = mx.random.normal((3, 7, 64), key=mx.random.key(2)).astype(dtype)
    wide = np.array(layer.dequantize(mx.float32)), np.array(x.astype(mx.float32))
    right = wide[1] @ wide[0].T
    tolerance = 1e-5 if dtype == mx.float32 else 3e-2
    for y in (layer(x), *(layer.multiply(x, packed) for packed in (True, False))):
        assert y.dtype == dtype
        np.testing.assert_allclose(np.array(y.astype(mx.float32)), right, tolerance, tolerance)
    left = layer.left(x.swapaxes(1, 2))
    assert left.dtype == dtype
    got = np.array(left.astype(mx.float32)).swapaxes(1, 2)
    np.testing.assert_allclose(got, right, tolerance, tolerance)


def test_left_products_agree_with_packed_weights_and_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that Metal takes gives what the other devices' does."""
    layer = linear(64, 24, bias=False).to_quantized(64, 8, mx.float32)
    x = mx.random.normal((3, 64, 7), key=mx.random.key(2))
    results = []
    for packed in (False, True):
        monkeypatch.setattr(quantized, "can_multiply_packed", lambda packed=packed: packed)
        results.append(np.array(layer.left(x)))
    np.testing.assert_allclose(results[0], results[1], 1e-5, 1e-5)


def test_a_bias_stays() -> None:
    """It is added once, unrounded."""
    layer = linear(64, 24, bias=True)
    zero = layer.to_quantized(64, 8, mx.float32)(mx.zeros((2, 64)))
    np.testing.assert_array_equal(np.array(zero), np.tile(np.arange(24, dtype=np.float32), (2, 1)))


def test_a_model_is_quantized_where_groups_divide() -> None:
    """The report says what was done; arrays that are not its own business keep every bit."""
    model = small(expansion=2.0)  # inner sizes 96 and 32
    before = {name: np.array(array) for name, array in named_arrays(model.parameters())}
    report = quantize_model(model, 8)
    after = dict(named_arrays(model.parameters()))
    block = ["mlp.down_proj", "mlp.gate_up_proj", "mlp_t.down_proj"]
    names = [f"L_level.layers.{i}.{name}" for i in (0, 1) for name in block]
    assert sorted(name for name, _ in report.layers) == [*names, "lm_head", "q_head"]
    packed = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantizedCastedLinear)]
    assert {name: (m.group_size, m.bits) for name, m in packed} == {
        name: (size, 8) for name, size in report.layers
    }
    assert dict(report.layers)["lm_head"] == 64 and dict(report.layers)[names[0]] == 32
    left = [(f"L_level.layers.{i}.mlp_t.gate_up_proj", (64, 20)) for i in (0, 1)]
    assert report.left == left
    done = {f"{name}.weight" for name, _ in report.layers}
    for name, array in before.items():
        if name in done:
            assert after[name].dtype == mx.uint32
        else:
            np.testing.assert_array_equal(np.array(after[name]), array)
    held = sum(v.nbytes for k, v in before.items() if not k.startswith("puzzle_emb"))
    assert (report.bytes_before, report.bytes_after) == (held, weight_bytes(model))
    assert report.bytes_after < 0.45 * report.bytes_before
    assert report.describe().startswith("8 of 10 linear layers have 8-bit weights: ")
    assert report.describe().endswith("layers.1.mlp_t.gate_up_proj 64x20")


def test_quantized_blocks_are_never_fused() -> None:
    """On a GPU blocks of float32 weights are functions of their own; one packed layer is enough."""
    model = small(swiglu_multiple=16, expansion=1.1)  # of a block, only mlp.gate_up_proj divides
    left = [name.partition("layers.0.")[2] for name, _ in quantize_model(model, 4).left]
    assert {"mlp.down_proj", "mlp_t.down_proj", "mlp_t.gate_up_proj"} <= set(left)
    plain = logits(model)
    with fused.use(True):
        np.testing.assert_array_equal(logits(model), plain)


def test_more_bits_are_nearer() -> None:
    """The answers of the first step move a little with 8 bits, and more with 4."""
    exact = logits(small())
    errors = []
    for bits in (8, 4):
        model = small()
        quantize_model(model, bits)
        errors.append(float(np.abs(logits(model) - exact).mean()))
    # Random weights amplify rounding; trained ones are measured in docs/export.md.
    assert 0 < errors[0] < 0.05 * np.abs(exact).mean()
    assert 4 * errors[0] < errors[1] < np.abs(exact).mean()


@pytest.mark.parametrize(
    "model_class, config_class",
    [
        (trm.HRM, trm.HRMConfig),
        (trm.TRMSingleZ, trm.TRMSingleZConfig),
        (trm.TRMHier6, trm.TRMHier6Config),
        (trm.TransformersBaseline, trm.TransformersBaselineConfig),
    ],
)
def test_every_model_is_quantized(model_class: Any, config_class: Any) -> None:
    """With attention every linear layer is, and the answers stay near."""
    config = config_class(forward_dtype="float32", **SIZES)
    config.H_cycles = 1
    model = model_class(config, SPEC, seed=1)
    model.eval()
    exact = logits(model)
    assert quantize_model(model).left == []
    assert 0 < np.abs(logits(model) - exact).mean() < 0.1 * np.abs(exact).mean()


def test_packed_weights_are_arguments_of_a_compiled_function() -> None:
    """As Solver and Evaluator pass them on a GPU. One product, so that little is compiled."""
    model = small()
    quantize_model(model, 4)
    layer, x = model.lm_head, mx.random.normal((2, 64), key=mx.random.key(1))

    def product(weights: Any, x: mx.array) -> mx.array:
        with model.using(weights):
            return layer(x)

    found = [np.array(f(model.weights(), x)) for f in (product, mx.compile(product))]
    np.testing.assert_allclose(found[0], found[1], 1e-5, 1e-5)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ((5, None), "bits must be 4 or 8, got 5"),
        ((8, 48), "group_size must be 32 or 64, got 48"),
    ],
)
def test_what_mlx_lacks_is_refused(arguments: Tuple, complaint: str) -> None:
    """Before anything is changed."""
    model = small()
    with pytest.raises(ValueError, match=complaint):
        quantize_model(model, *arguments)
    assert not any(isinstance(m, QuantizedCastedLinear) for m in model.modules())


def test_a_model_too_narrow_is_refused() -> None:
    """Nothing would be quantised."""
    model = small(hidden_size=16, swiglu_multiple=16, puzzle_emb_len=1)
    with pytest.raises(ValueError, match="no linear layer has a multiple of 64 inputs"):
        quantize_model(model, 8, group_size=64)


def run_of(folder: Path, size: int) -> str:
    """A run folder with an untrained 4x4 model of a hidden size."""
    task = trm.SudokuConfig(name="sudoku", size=4, train_puzzles=20, test_puzzles=10)
    model = trm.TRMConfig(
        **{**SIZES, "hidden_size": size, "swiglu_multiple": 16}, mlp_t=True, puzzle_emb_len=1
    )
    config = ExperimentConfig(task, model, TrainConfig(), EvalConfig(), CheckpointConfig())
    built = trm.build_model(model, trm.build_task(task).spec, seed=1)
    save_checkpoint(folder, built, config, 3)
    return str(folder)


def test_the_commands_say_what_they_quantize(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """evaluate and solve; the checkpoint stays as it is."""
    run = run_of(tmp_path / "run", 64)
    held = (tmp_path / "run" / "step_3" / "model.safetensors").read_bytes()
    assert evaluate([run, "--quantize", "8", "--steps", "1"]) == 0
    said = capsys.readouterr()
    assert "raw weights of 8 bits, test" in said.out
    assert re.search(r"^\d of 10 linear layers have 8-bit weights: [\d,]+ bytes became", said.err)
    assert solve([run, "1.....2..3.....4", "--quantize", "4", "--steps", "1"]) == 0
    assert "4-bit weights" in capsys.readouterr().err
    assert (tmp_path / "run" / "step_3" / "model.safetensors").read_bytes() == held


def test_the_commands_refuse_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A number of bits that there is not, and a model that cannot be quantised."""
    run = run_of(tmp_path / "run", 16)
    assert evaluate([run, "--quantize", "8"]) == 2
    assert re.fullmatch(
        r"--quantize 8: .*step_3: no linear layer has a multiple of 32 or 64 inputs; .*\n",
        capsys.readouterr().err,
    )
    assert evaluate([run, "--quantize", "3"]) == 2
    assert re.fullmatch(r".*--quantize.*invalid choice: 3.*\n", capsys.readouterr().err)
