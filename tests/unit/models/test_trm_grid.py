"""The model of cells that see their neighbours: its symmetry, its formulas, and that it works."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import mlx.core as mx
import numpy as np
import pytest
from marks import flat
from mlx.utils import tree_flatten
from peaks import peak_bytes

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict
from mlx_trm.convert import main as convert
from mlx_trm.errors import ConfigError
from mlx_trm.inference.exporting import export_step
from mlx_trm.inference.step import EvaluationStep
from mlx_trm.models import TRMGrid, TRMGridConfig, build_model
from mlx_trm.models.carry import Batch, Carry, random_batch
from mlx_trm.models.losses import act_loss
from mlx_trm.models.memory import estimate_row_bytes
from mlx_trm.models.trm_grid import NeighbourLinear, neighbourhoods
from mlx_trm.nn import fused
from mlx_trm.nn.init import KeySequence

SPEC = trm.TaskSpec(vocab_size=6, seq_len=20)
SMALL = TRMGridConfig(
    columns=5, hidden_size=8, inner=12, H_cycles=2, L_cycles=2, halt_max_steps=4,
    forward_dtype="float32",
)  # fmt: skip


def small(spec: trm.TaskSpec = SPEC, seed: int = 0, **changes: Any) -> TRMGrid:
    """A tiny model whose Q head is random, so that it matters."""
    model = build_model(dataclasses.replace(SMALL, **changes), spec, seed)
    assert isinstance(model, TRMGrid)
    width = 2 * model.config.hidden_size
    model.q_head.weight = mx.random.normal((1, width), key=mx.random.key(1)) * 0.3
    return model


def begun(model: TRMGrid, batch: Batch) -> Carry:
    """The carry before the first step."""
    return model.begin(model.initial_carry(batch), batch)


def gradients(model: TRMGrid, batch: Batch) -> Dict[str, mx.array]:
    """Of a training step's loss, by the weights' names."""
    carry = begun(model, batch)

    def loss(weights: Any) -> mx.array:
        with model.using(weights):
            left, outputs = model.step(carry, None)
        return act_loss(outputs, carry.current.labels, left.halted, left.steps)[0]

    found: List[Tuple[str, mx.array]] = tree_flatten(mx.grad(loss)(model.trained_weights()))
    return dict(found)


def plain_reason(model: TRMGrid, inputs: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """One step in NumPy, float64, cell by cell, from the formulas."""
    config = model.config
    flat_weights: List[Tuple[str, mx.array]] = tree_flatten(model.parameters())
    weights = {name: np.array(value, np.float64) for name, value in flat_weights}
    columns, eps = config.columns, config.rms_norm_eps

    def norm(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)

    def around(z: np.ndarray) -> np.ndarray:
        count, cells, size = z.shape
        grid = z.reshape(count, -1, columns, size)
        found = np.zeros((*grid.shape[:3], 9, size))
        for row in range(grid.shape[1]):
            for column in range(columns):
                for place in range(9):
                    down, right = row + place // 3 - 1, column + place % 3 - 1
                    if 0 <= down < grid.shape[1] and 0 <= right < columns:
                        found[:, row, column, place] = grid[:, down, right]
        return found.reshape(count, cells, 9 * size)

    def level(z: np.ndarray) -> np.ndarray:
        for number in range(config.L_layers):
            gate, up, down = (
                weights[f"L_level.layers.{number}.{name}_proj.weight"]
                for name in ("gate", "up", "down")
            )
            seen = around(z)
            gated = norm((seen @ gate.T) * (seen @ up.T)) / (1 + np.exp(-(seen @ gate.T)))
            z = norm(z + gated @ down.T)
        return z

    x = weights["embed_tokens.embedding_weight"][inputs] * np.sqrt(config.hidden_size)
    z_H, z_L = (weights[name] + 0 * x for name in ("H_init", "L_init"))
    for _ in range(config.H_cycles):
        for _ in range(config.L_cycles):
            z_L = level(z_L + (z_H + x))
        z_H = level(z_H + z_L)
    logits = z_H @ weights["lm_head.weight"].T + weights["lm_head.bias"]
    seen = np.concatenate([z_H.mean(1), z_H.max(1)], -1)
    return logits, seen @ weights["q_head.weight"][0] + weights["q_head.bias"][0]


def test_a_step_is_its_formulas() -> None:
    """On a grid of four rows and five columns, so that neither is taken for the other."""
    model = small().eval()
    batch = random_batch(SPEC, 3)
    outputs = model.reason(begun(model, batch), None)[1]
    logits, q_halt = plain_reason(model, np.array(batch.inputs))
    assert np.abs(np.array(outputs.logits) - logits).max() < 1e-3 * np.abs(logits).max()
    assert np.abs(np.array(outputs.q_halt) - q_halt).max() < 1e-3
    assert outputs.q_halt.dtype == outputs.q_continue.dtype == mx.float32


def test_a_moved_pattern_has_its_answer_moved() -> None:
    """Far from the borders: a step of 2 blocks and 2 updates sees 4 cells around."""
    spec = trm.TaskSpec(vocab_size=6, seq_len=23 * 23)
    model = small(spec, columns=None, H_cycles=1, L_cycles=1).eval()
    pattern = np.random.default_rng(0).integers(1, 6, (4, 4))
    logits = []
    for place in (8, 10):
        grid = np.ones((23, 23), np.int32)
        grid[place : place + 4, place : place + 4] = pattern
        inputs = mx.array(grid.reshape(1, -1))
        batch = Batch(inputs, inputs, mx.zeros((1,), dtype=mx.int32))
        found = np.array(model.reason(begun(model, batch), None)[1].logits).reshape(23, 23, 6)
        logits.append(found[place - 3 : place + 7, place - 3 : place + 7])
    assert np.abs(logits[0] - logits[1]).max() < 1e-3
    assert np.abs(logits[0] - logits[0].mean((0, 1))).max() > 0.1, "the pattern changes something"


@pytest.mark.parametrize("dtype, least", [(mx.float32, 1e-4), (mx.bfloat16, 0.05)])
def test_a_neighbourhoods_gradient_is_that_of_the_plain_product(
    dtype: mx.Dtype, least: float
) -> None:
    """The layer convolves; its gradient is written out. Both are one product with neighbours."""
    layer = NeighbourLinear(6, 4, KeySequence(0))
    x = mx.random.normal((2, 5, 7, 6), key=mx.random.key(0)).astype(dtype)
    aim = mx.random.normal((2, 5, 7, 4), key=mx.random.key(1)).astype(dtype)

    def plain(x: mx.array, weight: mx.array) -> mx.array:
        return neighbourhoods(x) @ weight.astype(x.dtype).T

    def convolved(x: mx.array, weight: mx.array) -> mx.array:
        layer.weight = weight
        return layer(x)

    wide = [x.astype(mx.float32), mx.array(layer.weight)]
    (want,), slopes = mx.vjp(plain, wide, [aim.astype(mx.float32)])
    (have,), found = mx.vjp(convolved, [x, wide[1]], [aim])
    for one, other in zip([have, *found], [want, *slopes]):
        error = mx.max(mx.abs(one.astype(mx.float32) - other)).item()
        assert error <= least * mx.max(mx.abs(other)).item()


def test_every_weight_learns_and_rows_do_not_depend_on_each_other() -> None:
    """All but the initial states have a gradient; a row alone gives what it gives with others."""
    model = small()
    batch = random_batch(SPEC, 3)
    found = gradients(model, batch)
    for name, gradient in found.items():
        assert mx.max(mx.abs(gradient)).item() > 0, name
    assert not {"H_init", "L_init"} & set(found)
    assert set(found) - model.block_matrices() == {
        "embed_tokens.embedding_weight", "lm_head.weight", "lm_head.bias",
        "q_head.weight", "q_head.bias",
    }  # fmt: skip
    alone = Batch(*(part[1:2] for part in batch))
    together = model.reason(begun(model, batch), None)[1].logits[1:2]
    apart = model.reason(begun(model, alone), None)[1].logits
    assert mx.max(mx.abs(together - apart)).item() < 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_the_gpus_way_gives_the_same_answer_and_gradient(training: bool) -> None:
    """Norms with a gradient of their own."""
    found = []
    for choice in (False, True):
        model = small().train(training)
        batch = random_batch(SPEC, 3)
        with fused.use(choice):
            logits = model.reason(begun(model, batch), None)[1].logits
            found.append({"logits": logits, **gradients(model, batch)})
    for name, want in found[0].items():
        error = mx.max(mx.abs(found[1][name] - want)).item()
        assert error <= 1e-3 * mx.max(mx.abs(want)).item(), name


def test_cycles_recomputing_and_compiling_change_no_answer() -> None:
    """Fewer cycles by a stage are those of a smaller model."""
    batch = random_batch(SPEC, 2)
    model, fewer = small().eval(), small(H_cycles=1, L_cycles=1).eval()
    want = fewer.reason(begun(fewer, batch), None)[1].logits
    with model.with_cycles(1, 1):
        assert mx.array_equal(model.reason(begun(model, batch), None)[1].logits, want)
    fewer.recompute(True)
    assert mx.array_equal(fewer.reason(begun(fewer, batch), None)[1].logits, want)
    compiled = EvaluationStep(fewer, True)(fewer.weights(), begun(fewer, batch), None)[1].logits
    assert mx.max(mx.abs(compiled - want)).item() < 1e-3


def test_the_memory_estimate_is_within_a_factor_of_two() -> None:
    """Against the peak of a gradient."""
    spec = trm.TaskSpec(vocab_size=6, seq_len=144)
    config = TRMGridConfig(
        hidden_size=32, inner=64, H_cycles=1, L_cycles=4, forward_dtype="float32"
    )
    model = TRMGrid(config, spec)
    batch = random_batch(spec, 16)
    mx.eval(begun(model, batch).pack(), model.parameters())
    peak = peak_bytes(lambda: gradients(model, batch))
    assert 0.5 < 16 * estimate_row_bytes(model) / peak < 2.0


def test_a_step_is_exported_and_layers_are_quantised(tmp_path: Path) -> None:
    """Layers over neighbours stay as they are: they are a convolution."""
    model = small(hidden_size=32, inner=32).eval()
    batch = random_batch(SPEC, 1)
    want = model.reason(begun(model, batch), None)[1].logits
    export_step(model, tmp_path / "step.mlxfn")
    found = mx.import_function(str(tmp_path / "step.mlxfn"))(batch.inputs, batch.puzzle_identifiers)
    assert mx.max(mx.abs(found[4] - want)).item() < 1e-3
    report = trm.quantize_model(model, bits=8)
    assert len(report.layers) >= 2
    logits = model.reason(begun(model, batch), None)[1].logits
    assert mx.mean(mx.abs(logits - want)).item() < 0.2 * mx.mean(mx.abs(want)).item()


@pytest.mark.parametrize("columns, cells", [(None, 20), (3, 20), (21, 20), (None, 82), (7, 81)])
def test_cells_that_are_no_grid_are_refused_in_one_line(columns: Any, cells: int) -> None:
    """They do not fill rows of so many columns."""
    with pytest.raises(ConfigError, match=f"model.columns: the task's {cells} cells") as caught:
        small(trm.TaskSpec(vocab_size=6, seq_len=cells), columns=columns)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(name="config")
def fixture_config(tmp_path: Path, monkeypatch: Any) -> trm.ExperimentConfig:
    """A run on 5x5 mazes of a few seconds."""
    monkeypatch.chdir(tmp_path)
    return config_from_dict(
        {
            "task": {
                "name": "maze", "size": 5, "min_path": 3, "style": "walls", "unique_path": True,
                "train_puzzles": 32, "test_puzzles": 16,
            },
            "model": {
                "name": "trm_grid", "hidden_size": 16, "inner": 24, "H_cycles": 2, "L_cycles": 2,
                "halt_max_steps": 3, "start": "random",
            },
            "train": {"batch_size": 16, "epochs": 15, "optimizer": "muon", "lr": 3e-3},
            "run_dir": "run",
        },
        overrides=[
            "train.weight_decay=0.1", "train.ema_rate=0.9", "train.log_interval=5",
            "train.lr_warmup_steps=3", "train.compile=never",
        ],
    )  # fmt: skip


def test_it_trains_goes_on_to_the_bit_and_is_not_the_references(
    config: trm.ExperimentConfig, tmp_path: Path, capsys: Any
) -> None:
    """A run in two parts is the run in one; convert refuses it, since the reference has none."""
    whole = trm.Trainer(config)
    assert whole.fit().steps == 30
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").open(encoding="utf-8")]
    losses = [line["lm_loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    config.run_dir = "parts"
    parts = trm.Trainer(config)
    parts.fit(on_tick=lambda step: parts.stop() if step == 7 else None)
    resumed = trm.Trainer.resume("parts")
    resumed.fit()
    for name, value in flat(whole).items():
        assert mx.array_equal(value, flat(resumed)[name]), name
    assert convert(["run", "--to-upstream", str(tmp_path / "x.safetensors")]) == 2
    message = capsys.readouterr().err
    assert "no model 'trm_grid'" in message and len(message.splitlines()) == 1
