"""The symbol-equivariant model: its symmetry, its formulas, and that it works as models do."""

import dataclasses
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from marks import flat
from mlx.utils import tree_flatten
from peaks import peak_bytes

import mlx_trm as trm
from mlx_trm.config.loading import config_from_dict
from mlx_trm.config.sections import TaskConfig, TrainConfig
from mlx_trm.convert import main as convert
from mlx_trm.errors import ConfigError
from mlx_trm.inference.exporting import export_step
from mlx_trm.inference.step import EvaluationStep
from mlx_trm.models import TRMSymbols, TRMSymbolsConfig, build_model
from mlx_trm.models.carry import Batch, random_batch, row_keys
from mlx_trm.models.losses import act_loss
from mlx_trm.models.memory import estimate_row_bytes
from mlx_trm.nn import fused
from mlx_trm.training.step import TrainStep

SPEC = trm.TaskSpec(vocab_size=6, seq_len=16)
SMALL = TRMSymbolsConfig(
    symbol_size=8, token_inner=12, inner=10, register_tokens=2, H_cycles=2, L_cycles=2,
    halt_max_steps=4, forward_dtype="float32",
)  # fmt: skip


def small(spec=SPEC, seed=0, **changes) -> TRMSymbols:
    """A tiny model whose Q head and biases are random, so that they matter."""
    model = build_model(dataclasses.replace(SMALL, **changes), spec, seed)
    size = model.config.symbol_size
    model.q_head.weight = mx.random.normal((1, size), key=mx.random.key(1)) * 0.3
    model.symbol_head.bias = mx.array([0.3])
    model.other_head.bias = mx.random.normal(model.other_head.bias.shape, key=mx.random.key(2))
    return model


def begun(model, batch):
    return model.begin(model.initial_carry(batch), batch)


# The reference's tasks: 4x4 and 9x9 Sudoku, ARC, and mazes with a single "symbol".
@pytest.mark.parametrize(
    "vocabulary, symbols", [(6, None), (11, None), (12, None), (12, 10), (6, 1), (6, 5), (7, 3)]
)
def test_relabelling_the_symbols_relabels_the_answer(vocabulary, symbols):
    spec = trm.TaskSpec(vocab_size=vocabulary, seq_len=16)
    model = small(spec, symbols=symbols).eval()
    others = vocabulary - model.config.symbols
    order = np.arange(vocabulary)
    order[others:] = others + np.random.default_rng(0).permutation(vocabulary - others)
    batch = random_batch(spec, 3)
    renamed = Batch(mx.array(order)[batch.inputs].astype(mx.int32), *batch[1:])
    carries = [begun(model, batch), begun(model, renamed)]
    for _ in range(2):
        said = []
        for number, carry in enumerate(carries):
            latents, outputs = model.reason(carry, None)
            carries[number] = carry._replace(latents=latents)
            said.append(outputs)
        one, other = (np.array(outputs.logits) for outputs in said)
        assert one.shape == (3, 16, vocabulary)
        assert np.abs(other[..., order] - one).max() < 1e-3 * np.abs(one).max()
        assert np.abs(np.array(said[0].q_halt) - np.array(said[1].q_halt)).max() < 1e-3
    if vocabulary - others > 1:
        assert np.abs(other - one).max() > 1e-2, "the relabelling changed something"


def plain_reason(model, inputs):
    """One step in NumPy, float64, from the formulas."""
    config = model.config
    n, C, eps = config.symbols, config.symbol_size, config.rms_norm_eps
    weights = {k: np.array(v, np.float64) for k, v in tree_flatten(model.parameters())}

    def norm(x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)

    def gated(gate, up):
        shape = (*gate.shape[:2], -1)
        return (norm((gate * up).reshape(shape)) / (1 + np.exp(-gate.reshape(shape)))).reshape(
            gate.shape
        )

    def level(z):
        for number in range(config.L_layers):
            w = {
                key.split(".")[3]: value
                for key, value in weights.items()
                if key.startswith(f"L_level.layers.{number}.")
            }
            z = norm(
                z + w["token_down_proj"] @ gated(w["token_gate_proj"] @ z, w["token_up_proj"] @ z)
            )
            f = z.reshape(*z.shape[:2], n, C)
            f = f + f.mean(2, keepdims=True) @ w["mix_proj"].T
            inner = gated(f @ w["gate_proj"].T, f @ w["up_proj"].T)
            z = norm(z + (inner @ w["down_proj"].T).reshape(z.shape))
        return z

    others = model.others
    rows = weights["embed_kinds.embedding_weight"]
    x = np.zeros((*inputs.shape, n, C))
    for at, token in np.ndenumerate(inputs):
        for symbol in range(n):
            kind = token if token < others else others + (token != others + symbol)
            x[at][symbol] = rows[kind]
    x = x.reshape(*inputs.shape, n * C)
    registers = np.tile(weights["registers"], (len(x), 1, n))
    x = np.concatenate([registers, x], 1) * np.sqrt(C)
    z_H, z_L = (np.tile(weights[name], n) + 0 * x for name in ("H_init", "L_init"))
    for _ in range(config.H_cycles):
        for _ in range(config.L_cycles):
            z_L = level(z_L + (z_H + x))
        z_H = level(z_H + z_L)
    f = z_H.reshape(*z_H.shape[:2], n, C)
    own = (f[:, config.register_tokens :] @ weights["symbol_head.weight"].T)[..., 0]
    mean = f.mean(2)
    rest = mean[:, config.register_tokens :] @ weights["other_head.weight"].T
    logits = np.concatenate(
        [rest + weights["other_head.bias"], own + weights["symbol_head.bias"]], -1
    )
    return logits, mean[:, 0] @ weights["q_head.weight"][0] + weights["q_head.bias"][0]


def test_a_step_is_its_formulas():
    model = small().eval()
    batch = random_batch(SPEC, 3)
    outputs = model.reason(begun(model, batch), None)[1]
    logits, q = plain_reason(model, np.array(batch.inputs))
    assert np.abs(np.array(outputs.logits) - logits).max() < 1e-3 * np.abs(logits).max()
    assert np.abs(np.array(outputs.q_halt) - q).max() < 1e-3
    assert outputs.q_halt.dtype == outputs.q_continue.dtype == mx.float32


def test_every_weight_learns_and_rows_do_not_depend_on_each_other():
    model = small()
    batch = random_batch(SPEC, 3)
    carry = begun(model, batch)

    def loss(weights, carry=carry):
        with model.using(weights):
            left, outputs = model.step(carry, None)
        return act_loss(outputs, carry.current.labels, left.halted, left.steps)[0]

    gradients = dict(tree_flatten(mx.grad(loss)(model.trained_weights())))
    for name, gradient in gradients.items():
        assert mx.max(mx.abs(gradient)).item() > 0, name
    assert not {"H_init", "L_init"} & set(gradients)
    assert set(gradients) - model.block_matrices() == {
        "embed_kinds.embedding_weight", "registers", "symbol_head.weight", "symbol_head.bias",
        "other_head.weight", "other_head.bias", "q_head.weight", "q_head.bias",
    }  # fmt: skip
    alone = Batch(*(part[1:2] for part in batch))
    together = model.reason(carry, None)[1].logits[1:2]
    apart = model.reason(begun(model, alone), None)[1].logits
    assert mx.max(mx.abs(together - apart)).item() < 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(dtype):
    batch = random_batch(SPEC, 3)
    model, exact = small(forward_dtype=dtype).eval(), small().eval()
    latents, outputs = model.reason(begun(model, batch), None)
    want = exact.reason(begun(exact, batch), None)[1].logits
    assert {latent.dtype for latent in latents} == {outputs.logits.dtype} == {getattr(mx, dtype)}
    error = mx.mean(mx.abs(outputs.logits.astype(mx.float32) - want)).item()
    assert error < 0.2 * mx.mean(mx.abs(want)).item()


def test_starts_are_the_same_in_every_field_unless_drawn():
    model = small()
    fixed = model.starts()["L_init"].reshape(4, 8)
    assert all(mx.array_equal(each, model.L_init) for each in fixed)
    drawn = small(start="random").starts(row_keys(0, 1, 3))
    assert drawn["L_init"].shape == (3, 18, 32) and drawn["H_init"].shape == (32,)


def test_cycles_recomputing_and_compiling_change_no_answer():
    batch = random_batch(SPEC, 2)
    model, fewer = small().eval(), small(H_cycles=1, L_cycles=1).eval()
    want = fewer.reason(begun(fewer, batch), None)[1].logits
    with model.with_cycles(1, 1):
        assert mx.array_equal(model.reason(begun(model, batch), None)[1].logits, want)
    plain = fewer.reason(begun(fewer, batch), None)[1].logits
    fewer.recompute(True)
    assert mx.array_equal(fewer.reason(begun(fewer, batch), None)[1].logits, plain)
    compiled = EvaluationStep(fewer, True)(fewer.weights(), begun(fewer, batch), None)[1].logits
    assert mx.max(mx.abs(compiled - plain)).item() < 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_the_gpus_way_gives_the_same_answer_and_gradient(training):
    """One product for mean and mix, and norms with a gradient of their own."""
    model = small().train(training)
    carry = begun(model, random_batch(SPEC, 3))

    def loss(weights):
        with model.using(weights):
            outputs = model.reason(carry, None)[1]
        return mx.sum(outputs.logits * mx.arange(6)) + mx.sum(outputs.q_halt), outputs.logits

    found = []
    for choice in (False, True):
        with fused.use(choice):
            (_, logits), gradients = mx.value_and_grad(loss)(model.trained_weights())
            found.append({"logits": logits, **dict(tree_flatten(gradients))})
    for name, want in found[0].items():
        error = mx.max(mx.abs(found[1][name] - want)).item()
        assert error <= 1e-3 * mx.max(mx.abs(want)).item(), name


def test_the_memory_estimate_is_within_a_factor_of_two():
    spec = trm.TaskSpec(vocab_size=11, seq_len=81)
    config = TRMSymbolsConfig(
        symbol_size=16, token_inner=64, inner=48, H_cycles=1, L_cycles=2, forward_dtype="float32"
    )
    model = TRMSymbols(config, spec)
    batch = random_batch(spec, 16)
    carry = begun(model, batch)
    mx.eval(carry.pack(), model.parameters())

    def loss(weights):
        with model.using(weights):
            left, outputs = model.step(carry, None)
        return act_loss(outputs, carry.current.labels, left.halted, left.steps)[0]

    peak = peak_bytes(lambda: mx.grad(loss)(model.trained_weights()))
    assert 0.5 < 16 * estimate_row_bytes(model) / peak < 2.0


@pytest.mark.parametrize(
    "changes", [{"curriculum": ["0:1x1", "0.5:1x6"]}, {"curriculum": ["0:1x1"]}, {"chains": 24}]
)
def test_the_memory_estimate_knows_the_curriculum_and_the_chains(changes):
    """A stage of more cycles than the model's own, of fewer, and a race that takes most of all."""
    spec = trm.TaskSpec(vocab_size=11, seq_len=81)
    settings = {"symbol_size": 16, "token_inner": 64, "inner": 48, "H_cycles": 1, "L_cycles": 2}
    start = "random" if "chains" in changes else "fixed"
    model = TRMSymbols(TRMSymbolsConfig(forward_dtype="float32", start=start, **settings), spec)
    train = TrainConfig(batch_size=4, ema=False, compile="never", **changes)
    config = trm.ExperimentConfig(TaskConfig("sudoku"), model.config, train)
    step = TrainStep(config, model, 1)
    if len(train.curriculum) > 1:
        step.schedule.time_share = 0.6
    batch = random_batch(spec, 4)
    mx.eval(batch, model.parameters())
    # Not by peak_bytes: where MLX waits, it is chance which of two streams' arrays meet.
    start_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    step(batch)
    peak = mx.get_peak_memory() - start_bytes
    assert 0.6 < 4 * estimate_row_bytes(model, train) / peak < 1.6
    plain = estimate_row_bytes(model)
    assert not 0.8 < estimate_row_bytes(model, train) / plain < 1.25, "it would show nothing"


def test_layers_are_quantised_and_a_step_is_exported(tmp_path):
    model = small(symbol_size=32, inner=32, token_inner=32).eval()
    batch = random_batch(SPEC, 1)
    want = model.reason(begun(model, batch), None)[1].logits
    export_step(model, tmp_path / "step.mlxfn")
    found = mx.import_function(str(tmp_path / "step.mlxfn"))(batch.inputs, batch.puzzle_identifiers)
    assert mx.max(mx.abs(found[4] - want)).item() < 1e-3
    report = trm.quantize_model(model, bits=8)
    assert len(report.layers) >= 2 * 4
    logits = model.reason(begun(model, batch), None)[1].logits
    assert mx.mean(mx.abs(logits - want)).item() < 0.2 * mx.mean(mx.abs(want)).item()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"symbols": 0}, "model.symbols"),
        ({"register_tokens": 0}, "model.register_tokens"),
        ({"symbol_size": 0}, "model.symbol_size"),
        ({"start": "late"}, "model.start"),
        ({"hidden_size": 64}, "model.hidden_size"),
        ({"puzzle_emb_ndim": 64}, "model.puzzle_emb_ndim"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        config_from_dict({"task": {"name": "sudoku"}, "model": {"name": "trm_symbols", **settings}})


@pytest.mark.parametrize("symbols", [6, 7])
def test_more_symbols_than_tokens_are_refused_in_one_line(symbols):
    with pytest.raises(ConfigError, match="model.symbols: must be from 1 to 5") as caught:
        small(symbols=symbols)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(name="config")
def fixture_config(tmp_path, monkeypatch):
    """A run on 4x4 Sudoku of a few seconds."""
    monkeypatch.chdir(tmp_path)
    return config_from_dict(
        {
            "task": {"name": "sudoku", "size": 4, "train_puzzles": 64, "test_puzzles": 32},
            "model": {
                "name": "trm_symbols",
                **{"symbol_size": 8, "token_inner": 16, "inner": 16, "register_tokens": 1},
                **{"H_cycles": 2, "L_cycles": 2, "halt_max_steps": 3, "start": "random"},
            },
            "train": {"batch_size": 32, "epochs": 15, "lr": 3e-3, "lr_warmup_steps": 3},
            "run_dir": "run",
        },
        overrides=["train.weight_decay=0.1", "train.ema_rate=0.9", "train.log_interval=5"],
    )


def test_it_trains_goes_on_evaluates_solves_and_is_not_the_references(config, tmp_path, capsys):
    whole = trm.Trainer(config)
    report = whole.fit()
    assert report.steps == 30
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").open()]
    losses = [line["lm_loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    config.run_dir = "parts"
    parts = trm.Trainer(config)
    parts.fit(on_tick=lambda step: parts.stop() if step == 7 else None)
    resumed = trm.Trainer.resume("parts")
    assert resumed.fit().steps == 30
    assert all(np.array_equal(flat(resumed)[key], value) for key, value in flat(whole).items())
    loaded = trm.load_checkpoint("run")
    assert type(loaded.model) is TRMSymbols and loaded.config.model.symbols is None
    again = trm.Evaluator(loaded.model, loaded.config).run("test")["all"]
    assert again == pytest.approx(report.evaluations[-1][1]["all"])
    solver = trm.Solver.from_checkpoint("run")
    steps = list(solver.steps("1.....2..3.....4"))
    assert [step.step for step in steps] == [1, 2, 3] and len(steps[-1].answer) == 16
    assert convert(["run", "--to-upstream", str(tmp_path / "x.safetensors")]) == 2
    message = capsys.readouterr().err
    assert "no model 'trm_symbols'" in message and len(message.splitlines()) == 1


@pytest.mark.parametrize("task", [{"name": "maze", "size": 8}, {"name": "sudoku", "size": 6}])
def test_other_tasks_build_and_step(task):
    config = config_from_dict({"task": task, "model": {"name": "trm_symbols", "symbols": 1}})
    spec = trm.build_task(config.task, 0).spec
    model = build_model(dataclasses.replace(SMALL, symbols=1), spec).eval()
    batch = random_batch(spec, 2)
    assert model.reason(begun(model, batch), None)[1].logits.shape == batch.inputs.shape + (
        spec.vocab_size,
    )
