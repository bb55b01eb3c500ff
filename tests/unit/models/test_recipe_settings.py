"""Settings that the reference has not: gate norm, registers, a head's bias, damping and noise."""

import mlx.core as mx
import numpy as np
import pytest
from marks import batches, experiment, flat
from mlx.utils import tree_flatten
from plain import SMALL, SPEC, begun, small

from mlx_trm.config.loading import config_from_dict, config_to_dict
from mlx_trm.errors import ConfigError
from mlx_trm.models import named_arrays
from mlx_trm.models.carry import draw_normal, random_batch, row_keys, with_noise
from mlx_trm.models.losses import act_loss
from mlx_trm.nn.functional import sigmoid, without_custom_functions
from mlx_trm.nn.gating import gated_norm
from mlx_trm.nn.init import KeySequence
from mlx_trm.nn.layers import SwiGLU
from mlx_trm.training.trainer import Trainer

NO_PUZZLE = {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0}
NEW = {"gate_norm": True, "head_bias": True, "register_tokens": 3, **NO_PUZZLE}


def test_sigmoid_and_its_gradient():
    x = mx.array(np.linspace(-100, 100, 4001, dtype=np.float32))
    wide = np.array(x, dtype=np.float64)
    want = 1 / (1 + np.exp(-wide))
    assert np.allclose(np.array(sigmoid(x)), want, rtol=1e-6, atol=2.5e-7)
    slope = np.array(mx.grad(lambda x: mx.sum(sigmoid(x)))(x))
    assert np.allclose(slope, want * (1 - want), rtol=1e-5, atol=4e-7)
    with without_custom_functions():
        assert mx.array_equal(sigmoid(x), mx.array(np.array(sigmoid(x))))
    assert sigmoid(x.astype(mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_swiglu_with_gate_norm_is_its_formula(axis):
    layer = SwiGLU(12, 8, KeySequence(0), gate_norm_eps=1e-5)
    x = mx.random.normal((2, 12, 12), key=mx.random.key(1))
    first, second = np.array(layer.gate_up_proj.weight), np.array(layer.down_proj.weight)
    z = np.array(x, dtype=np.float64)
    z = z if axis == -1 else z.swapaxes(1, 2)
    gate, up = np.split(z @ first.T, 2, axis=-1)
    product = gate * up
    normed = product / np.sqrt((product**2).mean(-1, keepdims=True) + 1e-5)
    want = (normed / (1 + np.exp(-gate))) @ second.T
    have = np.array(layer(x) if axis == -1 else layer.left(x).swapaxes(1, 2))
    assert np.abs(have - want).max() < 1e-5


def test_a_gate_norm_forgets_the_size_of_its_inputs():
    gate, up = (mx.random.normal((3, 64), key=mx.random.key(seed)) for seed in (0, 1))
    once, twice = gated_norm(gate, up, 1e-9), gated_norm(gate, 1000 * up, 1e-9)
    assert mx.max(mx.abs(once - twice)).item() < 1e-5


@pytest.mark.parametrize("name", sorted(SMALL))
def test_new_settings_work_in_every_model_and_every_weight_learns(name):
    settings = {k: v for k, v in NEW.items() if hasattr(SMALL[name], k)}
    model = small(name, **settings)
    assert model.positions == 3 and model.registers.shape == (3, 16)
    assert model.lm_head.bias.shape == (7,)
    batch = random_batch(SPEC, 3)
    carry = model.begin(model.initial_carry(batch), batch)
    assert model.puzzle_rows(carry) is None

    def loss(weights):
        with model.using(weights):
            left, outputs = model.step(carry, None)
        return act_loss(outputs, carry.current.labels, left.halted, left.steps)[0]

    gradients = dict(tree_flatten(mx.grad(loss)(model.trained_weights())))
    for key, gradient in gradients.items():
        assert mx.max(mx.abs(gradient)).item() > 0, key
    left = set(gradients) - model.block_matrices()
    assert {"registers", "lm_head.bias", "q_head.bias"} <= left


def test_registers_stand_before_the_cells_and_q_is_read_at_the_first():
    model = small("trm", **NEW).eval()
    batch = random_batch(SPEC, 2)
    x = model.embed(batch.inputs, None)
    assert x.shape == (2, 3 + SPEC.seq_len, 16)
    assert np.allclose(np.array(x[1, :3]), np.array(model.registers) * 4, rtol=1e-6)
    state = mx.random.normal((2, 3 + SPEC.seq_len, 16), key=mx.random.key(0))
    said = model.read_outputs(state)
    changed = model.read_outputs(state.at[:, 1:3].add(1.0))
    assert mx.array_equal(said.q_halt, changed.q_halt)
    assert mx.array_equal(said.logits, changed.logits)
    assert not mx.array_equal(said.q_halt, model.read_outputs(state.at[:, :1].add(1.0)).q_halt)


def test_defaults_change_no_weight():
    names = {name for name, _ in named_arrays(small("trm").parameters())}
    assert not {"registers", "lm_head.bias"} & names


def test_damping_keeps_a_share_of_the_old_latents():
    plain, damped = small("trm", H_cycles=1, L_cycles=1), None
    damped = small("trm", H_cycles=1, L_cycles=1, damping=0.25)
    for model in (plain, damped):
        model.eval()
    carry, rows = begun(plain)
    z_H, z_L = carry.latents
    x = plain.embed(carry.current.inputs, rows)
    new = 0.25 * z_L + 0.75 * plain.L_level(z_L, z_H + x, plain._cos_sin)
    answer = 0.25 * z_H + 0.75 * plain.L_level(z_H, new, plain._cos_sin)
    (have_H, have_L), _ = damped.reason(carry, rows)
    assert mx.max(mx.abs(have_L - new)).item() < 1e-5
    assert mx.max(mx.abs(have_H - answer)).item() < 1e-5
    assert not mx.array_equal(have_H, plain.reason(carry, rows)[0][0])


@pytest.mark.parametrize("name", ["trm", "trm_singlez", "trm_hier6"])
def test_noise_follows_from_the_rows_keys_and_is_for_training_alone(name):
    model, quiet = small(name, noise=0.5, H_cycles=1), small(name, H_cycles=1)
    carry, rows = begun(model)
    keys = row_keys(0, 5, 3)

    def state(model, keys, part=slice(None)):
        latents = tuple(latent[part] for latent in carry.latents)
        current = carry.current.__class__(*(each[part] for each in carry.current))
        with with_noise(keys):
            return model.reason(carry._replace(latents=latents, current=current), rows[part])[0][0]

    model.train()
    first = state(model, keys)
    assert mx.array_equal(first, state(model, keys)), "the keys decide"
    assert not mx.array_equal(first, state(model, row_keys(0, 6, 3)))
    alone = state(model, keys[1:2], slice(1, 2))
    assert mx.max(mx.abs(alone - first[1:2])).item() < 1e-3, "a row's key decides its noise"
    with pytest.raises(ValueError, match="with_noise"):
        model.reason(carry, rows)
    model.eval()
    quiet.eval()
    assert mx.array_equal(model.reason(carry, rows)[0][0], quiet.reason(carry, rows)[0][0])


@pytest.mark.parametrize("how", ["never", pytest.param("always", marks=pytest.mark.slow)])
def test_training_gives_each_row_its_own_noise(how):
    """The same in micro-batches, and other noise than none."""
    settings = {"model__noise": 1.0, "model__damping": 0.5, "train__compile": how}
    settings.update(train__lr=1e-4, train__lr_warmup_steps=0)
    runs = [
        Trainer(experiment(**settings)),
        Trainer(experiment(**settings, train__micro_batch_size=4)),
        Trainer(experiment(**{**settings, "model__noise": 0.0})),
    ]
    for batch in batches(runs[0], 2):
        whole, parts, quiet = (run.train_step(batch) for run in runs)
        assert parts["lm_loss"].item() == pytest.approx(whole["lm_loss"].item(), rel=1e-3)
        assert quiet["lm_loss"].item() != pytest.approx(whole["lm_loss"].item(), rel=1e-3)


def test_the_keys_of_training_are_those_of_seed_step_and_row(monkeypatch):
    seen = []

    def spy(keys):
        seen.append(keys)
        return with_noise(keys)

    monkeypatch.setattr("mlx_trm.training.update.with_noise", spy)
    run = Trainer(experiment(model__noise=0.1, train__micro_batch_size=4, train__compile="never"))
    for step, batch in enumerate(batches(run, 2), 1):
        seen.clear()
        run.train_step(batch)
        assert mx.array_equal(mx.concatenate(seen), row_keys(run.run.config.seed, step, 6))


def test_a_run_with_noise_and_random_starts_goes_on_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"model__noise": 0.1, "model__start": "random", "train__max_steps": 8}
    whole, parts = (Trainer(experiment(run_dir=name, **settings)) for name in ("whole", "parts"))
    whole.fit()
    parts.fit(on_tick=lambda step: parts.stop() if step == 3 else None)
    resumed = Trainer.resume("parts")
    assert resumed.fit().steps == 8
    ours, theirs = flat(resumed), flat(whole)
    assert all(np.array_equal(ours[key], value) for key, value in theirs.items())


def test_noise_has_the_deviation_asked_for_and_differs_between_updates():
    model = small("trm", noise=0.5)
    with with_noise(row_keys(0, 1, 4)):
        move = model.move()
    zero = mx.zeros((4, 200, 50))
    draws = [np.array(move(zero, zero)) for _ in range(6)]
    for draw in draws:
        assert abs(draw.std() - 0.5) < 0.01
    assert abs(np.corrcoef(draws[0].ravel(), draws[1].ravel())[0, 1]) < 0.02
    start = np.array(model.starts(row_keys(0, 1, 4), random=True)["L_init"])
    again = np.array(draw_normal(row_keys(0, 1, 4), start.shape[1:], mx.float32))
    assert abs(np.corrcoef(start.ravel(), again.ravel())[0, 1]) < 0.2


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"register_tokens": 2}, "register_tokens: are in the place of the puzzle vector"),
        ({"register_tokens": 2, "puzzle_emb_ndim": 0}, "puzzle_emb_len: must be 0"),
        ({"register_tokens": -1}, "register_tokens"),
        ({"damping": 1.0}, "damping"),
        ({"noise": -0.1}, "noise"),
        ({"start": "anywhere"}, "start"),
        ({"name": "trm_singlez", "start": "random"}, "start: must be fixed"),
        ({"name": "transformers_baseline", "start": "random"}, "start: must be fixed"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, words):
    values = {"task": {"name": "sudoku"}, "model": {"name": "trm", **settings}}
    with pytest.raises(ConfigError, match=f"model.{words}"):
        config_from_dict(values)


def test_new_settings_survive_a_file():
    config = experiment(model__start="random", model__damping=0.05, model__noise=0.01)
    config = config_from_dict({**config_to_dict(config)})
    assert (config.model.start, config.model.damping, config.model.noise) == ("random", 0.05, 0.01)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("dtype, tolerance", [(mx.float32, 2e-6), (mx.bfloat16, 0.02)])
def test_the_gate_norms_gradient_is_that_of_its_formula(axis, keep, dtype, tolerance, monkeypatch):
    monkeypatch.setattr("mlx_trm.nn.gating.on_gpu", lambda: not keep)
    gate, up, cotangent = (
        mx.random.normal((3, 24, 40), key=mx.random.key(seed)).astype(dtype) for seed in range(3)
    )

    def formula(gate, up):
        product = gate * up
        mean = mx.mean(mx.square(product), axis=axis, keepdims=True)
        return mx.sigmoid(gate) * product * mx.rsqrt(mean + 1e-5)

    wide = [part.astype(mx.float32) for part in (gate, up, cotangent)]
    want, slopes = mx.vjp(formula, wide[:2], wide[2:])
    have, found = mx.vjp(lambda g, u: gated_norm(g, u, 1e-5, axis), [gate, up], [cotangent])
    for one, other in zip([*have, *found], [*want, *slopes]):
        assert one.dtype == dtype
        error = mx.max(mx.abs(one.astype(mx.float32) - other)).item()
        assert error <= tolerance * mx.max(mx.abs(other)).item()
