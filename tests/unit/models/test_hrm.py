"""HRM: its recursion, which updates have a gradient, and Q-learning of when to halt."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plain import SMALL, SPEC, Plain, answer_gradients, assert_step, begun, small

from mlx_trm.config.loading import config_from_dict
from mlx_trm.errors import ConfigError
from mlx_trm.models import HRM
from mlx_trm.models.losses import act_loss


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pos_encodings": "learned", "H_layers": 2},
        {"mlp_t": True, "pos_encodings": "none"},
        {"puzzle_emb_ndim": 0, "pos_encodings": "none"},
        {"H_cycles": 1, "L_cycles": 1},
    ],
)
def test_the_recursion_written_out(changes):
    model = small("hrm", **changes)
    carry, _ = begun(model)
    plain = Plain(model)
    # ceil(20 / 16), or nothing.
    positions = 0 if changes.get("puzzle_emb_ndim") == 0 else 2
    x = plain.embed(carry.current, positions)
    z_H, z_L = plain.start("H_init", x), plain.start("L_init", x)
    for _ in range(model.config.H_cycles):
        for _ in range(model.config.L_cycles):
            z_L = plain.level("L_level", z_L + z_H + x)
        z_H = plain.level("H_level", z_H + z_L)
    assert_step(model, (z_H, z_L), *plain.read(z_H, positions))


def test_parameter_names_are_the_reference_s():
    names = {name for name, _ in tree_flatten(HRM(SMALL["hrm"], SPEC).parameters())}
    block = ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"]
    layers = {f"H_level.layers.0.{part}.weight" for part in block}
    layers |= {f"L_level.layers.{i}.{part}.weight" for i in (0, 1) for part in block}
    assert names == layers | {
        "H_init",
        "L_init",
        "embed_tokens.embedding_weight",
        "lm_head.weight",
        "puzzle_emb.weights",
        "q_head.bias",
        "q_head.weight",
    }


def test_only_the_very_last_updates_have_a_gradient():
    """The whole recursion has the gradient of its last two updates alone, from where they begin."""
    model, last = small("hrm"), small("hrm", H_cycles=1, L_cycles=1)
    carry, rows = begun(model)
    x = model.embed(carry.current.inputs, rows)
    z_H, z_L = carry.latents
    for update in range(5):  # all six updates of z_L but one
        if update == 3:
            z_H = model.H_level(z_H, z_L, model._cos_sin)
        z_L = model.L_level(z_L, z_H + x, model._cos_sin)
    whole = answer_gradients(model, carry, rows)
    part = answer_gradients(last, carry._replace(latents=(z_H, z_L)), rows)
    assert set(whole) == set(part)
    for name, gradient in whole.items():
        np.testing.assert_allclose(gradient, part[name], atol=1e-5, err_msg=name)
    trained = {name for name in whole if name != "1"}
    assert {name for name, _ in tree_flatten(model.trained_weights())} == {
        name[2:] for name in trained
    }
    for name in whole:
        assert np.abs(whole[name]).max() > 1e-6, f"{name} has a gradient"


def test_a_row_halts_where_q_halt_is_more_than_q_continue():
    model = small("hrm").train()
    carry, rows = begun(model, rows=12)
    carry = carry._replace(steps=mx.array([3, 0] * 6))
    left, outputs = model.step(carry, rows)
    q_halt, q_continue = np.array(outputs.q_halt), np.array(outputs.q_continue)
    believes = q_halt > q_continue
    assert np.array(left.halted).tolist() == (believes | (np.arange(12) % 2 == 0)).tolist()
    odd = believes[1::2]
    assert odd.any() and not odd.all(), "both happen before the last step"
    assert ((q_halt > 0) != believes)[1::2].any(), "comparing with 0 would be another rule"
    least = mx.full((12,), 3, dtype=mx.int32)
    kept, _ = model.step(carry, rows, least)
    assert np.array(kept.halted).tolist() == [True, False] * 6
    assert np.array(model.eval().step(carry, rows)[0].halted).tolist() == [True, False] * 6


def test_the_continue_target_is_the_better_value_one_step_on():
    model = small("hrm").train()
    carry, rows = begun(model, rows=8)
    carry = carry._replace(steps=mx.array([0, 1, 2, 3] * 2))
    left, outputs = model.step(carry, rows)
    _, after = model.reason(left, rows)
    halt_value, go_on = np.array(after.q_halt), np.array(after.q_continue)
    last = np.arange(8) % 4 == 3
    value = np.where(last, halt_value, np.maximum(halt_value, go_on))
    np.testing.assert_allclose(
        np.array(outputs.target_q_continue), 1 / (1 + np.exp(-value)), atol=1e-6
    )
    assert (go_on > halt_value)[last].any() and (go_on > halt_value)[~last].any()
    assert model.eval().step(carry, rows)[1].target_q_continue is None
    assert small("hrm", halt_max_steps=1).step(carry, rows)[1].target_q_continue is None


def test_the_continue_loss_joins_the_halt_loss_and_its_target_is_a_constant():
    model = small("hrm").train()
    carry, rows = begun(model, rows=4)
    target = model.step(carry, rows)[1].target_q_continue

    def loss_fn(weights, constant):
        with model.using(weights):
            left, outputs = model.step(carry, rows)
        if constant:
            outputs = outputs._replace(target_q_continue=target)
        return act_loss(outputs, carry.current.labels, left.halted, left.steps)

    loss, metrics = loss_fn(model.trained_weights(), False)
    q = metrics["q_halt_loss"] + metrics["q_continue_loss"]
    assert loss.item() == pytest.approx((metrics["lm_loss"] + 0.5 * q).item(), rel=1e-6)
    assert metrics["q_continue_loss"].item() > 0.1
    free, fixed = (
        dict(tree_flatten(mx.grad(lambda w, c=c: loss_fn(w, c)[0])(model.trained_weights())))
        for c in (False, True)
    )
    for name, gradient in free.items():
        np.testing.assert_allclose(np.array(gradient), np.array(fixed[name]), atol=1e-6)
    assert np.abs(np.array(free["q_head.weight"])[1]).max() > 1e-3, "q_continue is trained"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 3}, "num_heads: 3 does not divide hidden_size 16"),
        ({"num_heads": 16}, "rope needs an even head size"),
    ],
)
def test_settings_that_do_not_fit_together(change, message):
    with pytest.raises(ValueError, match=message):
        HRM(dataclasses.replace(SMALL["hrm"], **change), SPEC)
    assert HRM(dataclasses.replace(SMALL["hrm"], mlp_t=True, **change), SPEC)


@pytest.mark.parametrize("key", ["no_ACT_continue", "puzzle_emb_len"])
def test_settings_of_trm_that_hrm_does_not_have_are_unknown(key):
    values = {"task": {"name": "sudoku"}, "model": {"name": "hrm", key: 1}}
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    assert f"unknown key 'model.{key}'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
