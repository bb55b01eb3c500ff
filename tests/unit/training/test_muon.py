"""AdamW and Muon against float64 definitions, and what a configuration makes of them."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from marks import batches, experiment, flat

import mlx_trm as trm
from mlx_trm.config.registry import LOSSES, OPTIMIZERS
from mlx_trm.errors import ConfigError
from mlx_trm.models import named_arrays
from mlx_trm.training.muon import Muon, orthogonalize
from mlx_trm.training.optim import make_optimizer
from mlx_trm.training.trainer import Trainer


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def np_adamw(parameter, gradients, lrs, betas, decay):
    """The update rule in float64."""
    p = parameter.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, lr) in enumerate(zip(gradients, lrs), start=1):
        g = g.astype(np.float64)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p * (1 - lr * decay)
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + 1e-8)
    return p


def np_newton_schulz(matrix, steps):
    """The polynomial a s + b s^3 + c s^5, applied to the singular values of matrix / its norm."""
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


def np_muon(parameter, gradients, rates, momentum, steps, decay):
    """The update rule in float64."""
    p, m = parameter.astype(np.float64), np.zeros(parameter.shape)
    for g, rate in zip(gradients, rates):
        m = momentum * m + (1 - momentum) * g
        u = momentum * m + (1 - momentum) * g
        scale = np.sqrt(max(1.0, p.shape[0] / p.shape[1]))
        p = p - rate * decay * p - rate * scale * np_newton_schulz(u, steps)
    return p


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)])
@pytest.mark.parametrize("size", [1.0, 1e-12])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape, size):
    matrix = normal(*shape)
    found = np.array(orthogonalize(mx.array(matrix * np.float32(size)), 3))
    np.testing.assert_allclose(found, np_newton_schulz(matrix, 3), atol=2e-5)
    values = np.linalg.svd(np.array(orthogonalize(mx.array(matrix), 5)), compute_uv=False)
    assert 0.5 < values.min() and values.max() < 1.3
    assert not np.array(orthogonalize(mx.zeros(shape), 3)).any()


def test_muon_moves_its_matrices_and_adamw_the_rest():
    start = {
        "a": normal(3, 4),
        "layers": [{"w": normal(8, 5, seed=1)}, {"w": normal(5, 8, seed=2)}],
    }
    parameters = {
        "a": mx.array(start["a"]),
        "layers": [{"w": mx.array(w["w"])} for w in start["layers"]],
    }
    optimizer = Muon({"layers.0.w", "layers.1.w"}, 0.02, 0.6, 3, 0.05, (0.9, 0.95), 0.3)
    optimizer.init(parameters)
    rates, gradients = [0.02, 0.01, 0.015], []
    for t, rate in enumerate(rates):
        gradient = [
            normal(*shape, seed=10 * t + n) for n, shape in enumerate([(3, 4), (8, 5), (5, 8)])
        ]
        gradients.append(gradient)
        optimizer.learning_rate = rate / 2
        optimizer.state["matrix_rate"] = mx.array(rate)
        tree = {"a": mx.array(gradient[0]), "layers": [{"w": mx.array(g)} for g in gradient[1:]]}
        parameters = optimizer.apply_gradients(tree, parameters)
    halves = [rate / 2 for rate in rates]
    expected = np_adamw(start["a"], [g[0] for g in gradients], halves, (0.9, 0.95), 0.3)
    np.testing.assert_allclose(np.array(parameters["a"]), expected, atol=1e-6)
    for n in (0, 1):
        expected = np_muon(
            start["layers"][n]["w"], [g[n + 1] for g in gradients], rates, 0.6, 3, 0.05
        )
        found = np.array(parameters["layers"][n]["w"])
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert np.abs(found - start["layers"][n]["w"]).max() > 5e-3
    names = {name for name, _ in named_arrays(optimizer.state)}
    assert names == {
        "step", "learning_rate", "matrix_rate", "a.m", "a.v", "layers.0.w.m", "layers.1.w.m",
    }  # fmt: skip


def test_adamw_follows_its_definition():
    config = experiment(train__optimizer="adamw", train__beta2=0.9)
    model = Trainer(config).model
    optimizer = make_optimizer(config.train, model)
    gradients = [normal(6, 16, seed=t) for t in range(3)]
    weights = {"lm_head": {"weight": model.lm_head.weight}}
    for gradient, lr in zip(gradients, (0.01, 0.02, 0.005)):
        optimizer.learning_rate = lr
        weights = optimizer.apply_gradients({"lm_head": {"weight": mx.array(gradient)}}, weights)
    start = np.array(model.lm_head.weight)
    expected = np_adamw(start, gradients, (0.01, 0.02, 0.005), (0.9, 0.9), 0.1)
    np.testing.assert_allclose(np.array(weights["lm_head"]["weight"]), expected, atol=1e-6)


def test_blocks_are_muon_s_and_embeddings_and_heads_are_not():
    """Both rates follow the schedule, each from its own setting."""
    trainer = Trainer(experiment(train__optimizer="muon", train__muon_lr=0.03))
    optimizer = trainer.train_step.optimizer
    assert optimizer.matrices == trainer.model.block_matrices()
    assert "L_level.layers.0.mlp.down_proj.weight" in optimizer.matrices
    assert not {"embed_tokens.embedding_weight", "lm_head.weight"} & optimizer.matrices
    trainer.train_step(batches(trainer, 1)[0])
    assert optimizer.state["matrix_rate"].item() == pytest.approx(0.03 / 3)  # of 3 warm-up steps
    assert optimizer.learning_rate.item() == pytest.approx(3e-3 / 3)
    assert "v" not in optimizer.state["L_level"]["layers"][0]["mlp"]["down_proj"]["weight"]
    assert "v" in optimizer.state["lm_head"]["weight"]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_compiled_equals_plain_and_it_learns(name):
    changes = {"train__optimizer": name, "train__lr": 1e-2}
    plain = Trainer(experiment(train__compile="never", **changes))
    compiled = Trainer(experiment(train__compile="always", **changes))
    losses = []
    for number, batch in enumerate(batches(plain, 40)):
        losses.append(plain.train_step(batch)["lm_loss"].item())
        if number < 3:
            compiled.train_step(batch)
            for key, value in flat(plain).items():
                np.testing.assert_allclose(flat(compiled)[key], value, atol=2e-4, err_msg=key)
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


def test_a_model_without_blocks_matrices_is_no_thing_for_muon(monkeypatch):
    monkeypatch.setattr(trm.TRM, "block_matrices", lambda self: set())
    with pytest.raises(ConfigError, match="train.optimizer: model trm names no matrices for muon"):
        Trainer(experiment(train__optimizer="muon"))


PLUGIN = """
import mlx.core as mx
from mlx.optimizers import Lion

import mlx_trm as trm


@trm.register_optimizer("lion")
def make_lion(train, model):
    lion = Lion(0.0, weight_decay=train.weight_decay)
    lion.state["own_rate"] = mx.array(0.0)
    lion.other_rates = {"own_rate": 7.0}
    return lion


@trm.register_loss("squares")
def squares(logits, labels):
    hot = labels[..., None] == mx.arange(logits.shape[-1])
    errors = mx.mean(mx.square(logits.astype(mx.float32) - hot), axis=-1)
    return mx.where(labels == -100, 0.0, errors)
"""
YAML = """
plugins: [own.py]
task: {name: sudoku, size: 4, min_givens: 6, max_givens: 8, train_puzzles: 32, test_puzzles: 8}
model: {name: trm, hidden_size: 16, num_heads: 2, L_layers: 1, H_cycles: 1, L_cycles: 1}
train: {optimizer: lion, loss: squares, batch_size: 8, epochs: 8, max_steps: 6, lr_warmup_steps: 3}
run_dir: run
"""


def test_a_plugin_brings_an_optimizer_and_a_loss(monkeypatch):
    """Trained, stopped, resumed to the bit, evaluated; a misspelt one is one line."""
    monkeypatch.setattr(OPTIMIZERS, "_entries", dict(OPTIMIZERS._entries))
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    Path("own.py").write_text(PLUGIN)
    Path("c.yaml").write_text(YAML)
    whole = Trainer(trm.load_config("c.yaml"))
    whole.fit()
    state = whole.train_step.optimizer.state
    assert state["own_rate"].item() == 7.0 and "v" not in state["lm_head"]["weight"]
    trainer = Trainer(trm.load_config("c.yaml", ["run_dir=parts"]))
    trainer.fit(on_tick=lambda step: trainer.stop() if step == 2 else None)
    trainer = Trainer.resume("parts")
    trainer.fit()
    for name, value in flat(whole).items():
        assert np.array_equal(flat(trainer)[name], value), name
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").open()]
    assert all(0 < line["lm_loss"] < 5 for line in lines)
    with pytest.raises(ConfigError, match="train.optimizer: 'lino' is not one of .*mean 'lion'"):
        trm.load_config("c.yaml", ["train.optimizer=lino"])
    with pytest.raises(ConfigError, match="label_smoothing: train.loss squares has none; use soft"):
        trm.load_config("c.yaml", ["train.label_smoothing=0.1"])


FAILING = """
import mlx.core as mx
from mlx.optimizers import SGD

import mlx_trm as trm


class Reshaping(SGD):
    def apply_single(self, gradient, parameter, state):
        return mx.zeros((3,))


class Raising(SGD):
    def apply_single(self, gradient, parameter, state):
        raise KeyError("rho")


@trm.register_optimizer("raises")
def raises(train, model):
    raise ValueError("no such\\nthing")


@trm.register_optimizer("nothing")
def nothing(train, model):
    return None


@trm.register_optimizer("short")
def short(train):
    return SGD(0.0)


@trm.register_optimizer("reshapes")
def reshapes(train, model):
    return Reshaping(0.0)


@trm.register_optimizer("raises_later")
def raises_later(train, model):
    return Raising(0.0)


@trm.register_loss("broken")
def broken(logits, labels):
    raise ValueError("no loss")


@trm.register_loss("of_rows")
def of_rows(logits, labels):
    return mx.mean(logits.astype(mx.float32), axis=(1, 2))
"""


@pytest.mark.parametrize(
    "change, says",
    [
        ("optimizer=raises", "train.optimizer: raises: ValueError: no such thing"),
        ("optimizer=nothing", "train.optimizer: nothing: TypeError: gave None, not an mlx.optim"),
        ("optimizer=short", "train.optimizer: short: TypeError: "),
        ("optimizer=reshapes", "train.optimizer: reshapes: ValueError: .* a step makes it"),
        ("optimizer=raises_later", "train.optimizer: raises_later: KeyError: 'rho'"),
        ("loss=broken", "train.loss: broken: ValueError: no loss"),
        ("loss=of_rows", "train.loss: of_rows: ValueError: gave .* for labels "),
    ],
)
def test_a_plugin_that_fails_does_so_in_one_line_before_there_is_a_folder(
    change, says, monkeypatch
):
    monkeypatch.setattr(OPTIMIZERS, "_entries", dict(OPTIMIZERS._entries))
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    Path("bad.py").write_text(FAILING)
    Path("c.yaml").write_text(YAML.replace("own.py", "bad.py"))
    own = {"optimizer": "muon", "loss": "softmax"}
    own.update([change.split("=")])
    config = trm.load_config("c.yaml", [f"train.{key}={value}" for key, value in own.items()])
    with pytest.raises(ConfigError, match=says):
        Trainer(config)
    assert not Path("run").exists()


def test_trying_a_step_leaves_no_trace():
    """Moments, the count of steps and the rates are those of a new optimiser."""
    trainer = Trainer(experiment(train__optimizer="muon"))
    state = dict(named_arrays(trainer.train_step.optimizer.state))
    assert state.pop("learning_rate").item() == pytest.approx(3e-3)
    assert state.pop("step").item() == 0 and state.pop("matrix_rate").item() == pytest.approx(0.02)
    assert not any(np.array(array).any() for array in state.values())


RATES = """
from mlx.optimizers import Optimizer

import mlx_trm as trm


class Plain(Optimizer):
    other_rates = {"of_heads": 0.5}

    def init_single(self, parameter, state):
        pass

    def apply_single(self, gradient, parameter, state):
        return parameter - (self.state["of_heads"] + self.learning_rate) * gradient


@trm.register_optimizer("plain")
def plain(train, model):
    return Plain()
"""


def test_rates_that_only_training_sets_can_be_resumed(monkeypatch):
    """The optimiser puts neither into its state itself."""
    monkeypatch.setattr(OPTIMIZERS, "_entries", dict(OPTIMIZERS._entries))
    Path("rates.py").write_text(RATES)
    Path("c.yaml").write_text(YAML.replace("own.py", "rates.py"))
    config = trm.load_config("c.yaml", ["train.optimizer=plain", "train.loss=softmax"])
    trainer = Trainer(config)
    trainer.fit(on_tick=lambda step: trainer.stop() if step == 2 else None)
    trainer = Trainer.resume("run")
    trainer.fit()
    assert trainer.train_step.optimizer.state["of_heads"].item() == 0.5
