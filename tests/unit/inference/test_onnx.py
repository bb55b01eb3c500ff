"""Models as ONNX graphs: onnxruntime computes what MLX does, for every setting that has a graph."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict

import mlx.core as mx
import numpy as np
import pytest

import mlx_trm as trm
from mlx_trm.errors import ConfigError
from mlx_trm.export import main
from mlx_trm.inference.exporting import export_onnx
from mlx_trm.inference.exporting.onnx_check import compare_onnx
from mlx_trm.inference.exporting.onnx_models import build_graph
from mlx_trm.inference.packaged import FOLDER
from mlx_trm.models import TRMGridConfig, TRMSymbolsConfig
from mlx_trm.models.carry import random_batch
from mlx_trm.nn.layers import CastedLinear

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

SPEC = trm.TaskSpec(vocab_size=6, seq_len=16, num_puzzle_identifiers=5)
CYCLES: Dict[str, Any] = {"H_cycles": 2, "L_cycles": 2, "forward_dtype": "float32"}
TRM: Dict[str, Any] = {"hidden_size": 24, "num_heads": 2, "swiglu_multiple": 8, **CYCLES}
SYMBOLS: Dict[str, Any] = {"symbol_size": 8, "token_inner": 12, "inner": 10, **CYCLES}
MODELS = {
    "attention, rope": trm.TRMConfig(**TRM),
    "attention, learned positions, part of a position": trm.TRMConfig(
        pos_encodings="learned", puzzle_emb_ndim=30, puzzle_emb_len=2, **TRM
    ),
    "attention, no positions, damped": trm.TRMConfig(pos_encodings="none", damping=0.3, **TRM),
    "mlp_t, q_continue": trm.TRMConfig(mlp_t=True, no_ACT_continue=False, **TRM),
    "mlp_t, gate norm, registers, bias": trm.TRMConfig(
        mlp_t=True, gate_norm=True, head_bias=True, puzzle_emb_ndim=0, puzzle_emb_len=0,
        register_tokens=3, **TRM,
    ),
    "symbols": TRMSymbolsConfig(**SYMBOLS),
    "symbols, three of six": TRMSymbolsConfig(symbols=3, register_tokens=2, **SYMBOLS),
    "grid": TRMGridConfig(hidden_size=12, inner=20, **CYCLES),
    "grid, 2 rows of 8": TRMGridConfig(hidden_size=12, inner=20, columns=8, **CYCLES),
}  # fmt: skip


def build(config: Any, seed: int = 3) -> trm.RecursiveModel:
    """A model whose biases, Q head and puzzle table are no zeros."""
    model = trm.build_model(config, SPEC, seed)
    for number, (name, layer) in enumerate(model.named_modules()):
        if isinstance(layer, CastedLinear) and name.endswith("head"):
            layer.weight = mx.random.normal(layer.weight.shape, key=mx.random.key(number))
            if "bias" in layer:
                layer.bias = mx.random.normal(layer.bias.shape, key=mx.random.key(number + 99))
    if "puzzle_emb" in model:
        shape = model.puzzle_emb.weights.shape
        model.puzzle_emb.weights = mx.random.normal(shape, key=mx.random.key(7))
    return model.eval()


def write(model: trm.RecursiveModel, path: Path) -> Path:
    """Write a model's graph without a checkpoint."""
    path.write_bytes(build_graph(model).build("test", {}).SerializeToString())
    return path


def numbers(array: mx.array) -> np.ndarray:
    """An array of MLX as one of NumPy."""
    return np.array(array)


@pytest.mark.parametrize("name", MODELS)
def test_a_graph_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    """Each step, each output, for three puzzles at once: but for rounding the same."""
    model = build(MODELS[name])
    path = write(model, tmp_path / "model.onnx")
    batch = random_batch(SPEC, 3, seed=5)
    rows = np.array([0, 4, 2], np.int32)
    found = compare_onnx(model, path, numbers(batch.inputs), 2, rows)
    assert len(found) == 2 * 4
    assert not [each for each in found if not each.passed]


def test_the_check_sees_another_model(tmp_path: Path) -> None:
    """A graph of other weights, or of one that is a thousandth larger, does not pass."""
    config = MODELS["symbols"]
    tokens = numbers(random_batch(SPEC, 2, seed=5).inputs)
    path = write(build(config), tmp_path / "model.onnx")
    model = build(config)
    layer = model.L_level.layers[1].mix_proj
    layer.weight = layer.weight * 1.001
    found = compare_onnx(model, path, tokens, 2)
    assert not any(each.passed for each in found if each.quantity == "logits")


def test_rows_begin_one_by_one_and_what_is_out_of_range_counts_as_the_nearest(
    tmp_path: Path,
) -> None:
    """A row that begins reads no latent, and the other goes on; no look-up leaves a table."""
    model = build(MODELS["attention, rope"])
    session = onnxruntime.InferenceSession(str(write(model, tmp_path / "model.onnx")))
    tokens = numbers(random_batch(SPEC, 2, seed=5).inputs)
    zeros = np.zeros((2, model.positions + 16, 24), np.float32)
    feed = {"tokens": tokens, "identifiers": np.zeros(2, np.int32), "z_H": zeros, "z_L": zeros}
    first = session.run(None, {**feed, "begin": np.array([True, True])})
    states = {"z_H": first[0], "z_L": first[1]}
    mixed = session.run(None, {**feed, **states, "begin": np.array([True, False])})
    onward = session.run(None, {**feed, **states, "begin": np.array([False, False])})
    np.testing.assert_allclose(mixed[2][0], first[2][0], atol=1e-5)
    np.testing.assert_allclose(mixed[2][1], onward[2][1], atol=1e-5)
    assert np.abs(first[2] - onward[2]).max() > 0.01

    outside = {**feed, "begin": np.array([True, True])}
    outside["tokens"] = np.where(tokens == 5, 100, np.where(tokens == 0, -3, tokens))
    outside["identifiers"] = np.array([-1, 77], np.int32)
    inside = {**outside, "tokens": tokens, "identifiers": np.array([0, 4], np.int32)}
    for ours, theirs in zip(session.run(None, outside), session.run(None, inside)):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_in_the_file_once(tmp_path: Path) -> None:
    """More cycles make more operations and no more weights."""
    few = build(MODELS["symbols"])
    more = build(replace(MODELS["symbols"], H_cycles=4))
    sizes = []
    for model in (few, more):
        graph = onnx.load(write(model, tmp_path / "model.onnx")).graph
        sizes.append((sum(np.prod(each.dims) for each in graph.initializer), len(graph.node)))
    assert sizes[0][0] == sizes[1][0] and sizes[0][1] < sizes[1][1]


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    """Packaged weights: task, tokens, halting, licence, search, in the file and in the JSON."""
    path = tmp_path / "model.onnx"
    beside = export_onnx(trm.load_pretrained("sudoku-4x4"), path)
    assert beside == tmp_path / "model.onnx.json"
    about = json.loads(beside.read_text(encoding="utf-8"))
    properties = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert about["task"]["seq_len"] == 16 and len(about["task"]["tokens"]) == 6
    assert properties["licence"] == about["licence"] == "MIT"
    assert properties["halt"] == about["halt"]
    assert json.loads(properties["task"]) == about["task"]
    assert json.loads(properties["search"]) == about["search"]
    session = onnxruntime.InferenceSession(str(path))
    for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert {each.name: each.shape for each in values} == {
            name: each["shape"] for name, each in about[kind].items()
        }


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It says how far the two are from each other; 0 for equal."""
    path = tmp_path / "model.onnx"
    assert main(["sudoku-4x4", "--format", "onnx", "--output", str(path), "--check"]) == 0
    output = capsys.readouterr().out
    assert "equal to MLX but for rounding: 3 puzzles, 3 steps" in output
    assert path.is_file() and (tmp_path / "model.onnx.json").is_file()


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ["--format", "onnx", "--quantize", "8"],
            "--quantize, --batch-size: not for --format onnx",
        ),
        (["--format", "onnx", "--batch-size", "2"], "leave them out"),
        (["--check"], "--check: for --format onnx only"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    words: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Exit code 2, one line, no file."""
    assert main(["sudoku-4x4", "--output", str(tmp_path / "model"), *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--format", "onnx"], ["--check"]])
def test_a_pack_has_no_format(words: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """They are about --output alone."""
    assert main(["sudoku-4x4", "--pack", str(tmp_path / "pack"), *words]) == 2
    assert "for --output only" in capsys.readouterr().err


def test_models_without_a_graph_are_told() -> None:
    """The reference's others, and a class of somebody's own that computes who knows what."""

    class Own(trm.TRM):
        """It may have another reason()."""

    for model in (
        build(trm.HRMConfig(hidden_size=24, num_heads=2, swiglu_multiple=8)),
        Own(MODELS["attention, rope"], SPEC),
    ):
        with pytest.raises(ConfigError, match="has no ONNX graph .*leave --format out"):
            build_graph(model)


def test_a_layer_that_was_changed_is_told() -> None:
    """A quantised layer is not written as if it were plain."""
    model = build(trm.TRMConfig(**{**TRM, "hidden_size": 32}))
    trm.quantize_model(model, 8)
    with pytest.raises(ConfigError, match="plain layers alone"):
        build_graph(model)


def test_too_many_weights_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A puzzle table of a million rows does not fit into an ONNX file."""
    monkeypatch.setattr("mlx_trm.inference.exporting.graph.MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="bytes, and an ONNX file takes 1,000"):
        build_graph(build(MODELS["grid"])).build("test", {})


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It names the extra."""
    monkeypatch.setitem(sys.modules, package, None)
    path = str(tmp_path / "model.onnx")
    assert main(["sudoku-4x4", "--format", "onnx", "--output", path, "--check"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'mlx-trm[onnx]'" in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))
def test_packaged_weights(name: str, tmp_path: Path) -> None:
    """Those that come with the package, at their size."""
    checkpoint = trm.load_pretrained(name)
    export_onnx(checkpoint, tmp_path / "model.onnx")
    batch = random_batch(checkpoint.model.spec, 1, seed=1)
    found = compare_onnx(checkpoint.model, tmp_path / "model.onnx", numbers(batch.inputs), 2)
    assert not [each for each in found if not each.passed]
