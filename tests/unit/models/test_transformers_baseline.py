"""The transformer without recursion: its pass, and its own settings of when to halt."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plain import SMALL, SPEC, Plain, answer_gradients, assert_step, begun, small

from mlx_trm.config.loading import config_from_dict
from mlx_trm.errors import ConfigError
from mlx_trm.inference.step import EvaluationStep
from mlx_trm.models import TransformersBaseline
from mlx_trm.models.carry import random_batch

NAME = "transformers_baseline"


@pytest.mark.parametrize(
    "changes", [{}, {"pos_encodings": "learned", "H_layers": 3}, {"puzzle_emb_ndim": 0}]
)
def test_the_pass_written_out(changes):
    model = small(NAME, **changes)
    carry, _ = begun(model)
    plain = Plain(model)
    positions = 0 if "puzzle_emb_ndim" in changes else 2
    x = plain.embed(carry.current, positions)
    z_H = plain.level("H_level", plain.start("H_init", x) + x)
    assert_step(model, (z_H,), *plain.read(z_H, positions))


def test_the_state_lives_on_from_step_to_step():
    model = small(NAME).eval()
    batch = random_batch(SPEC, 3)
    carry = model.initial_carry(batch)
    plain = Plain(model)
    x = plain.embed(batch, 2)
    z_H = plain.start("H_init", x)
    for _ in range(3):
        carry, outputs = model(carry, batch)
        z_H = plain.level("H_level", z_H + x)
        np.testing.assert_allclose(np.array(carry.latents[0]), z_H, atol=5e-5)
    np.testing.assert_allclose(np.array(outputs.logits), plain.read(z_H, 2)[0], atol=5e-5)


def test_parameter_names_are_the_reference_s():
    names = {n for n, _ in tree_flatten(TransformersBaseline(SMALL[NAME], SPEC).parameters())}
    block = ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"]
    assert names == {f"H_level.layers.{i}.{part}.weight" for i in (0, 1) for part in block} | {
        "H_init",
        "embed_tokens.embedding_weight",
        "lm_head.weight",
        "puzzle_emb.weights",
        "q_head.bias",
        "q_head.weight",
    }


def test_all_of_the_pass_has_a_gradient_and_nothing_before_it():
    model = small(NAME)
    carry, rows = begun(model)
    for name, gradient in answer_gradients(model, carry, rows).items():
        assert np.abs(gradient).max() > 1e-6, f"{name} has a gradient"

    def leaving(latent: mx.array) -> mx.array:
        latents, _ = model.reason(carry._replace(latents=(latent,)), rows)
        return mx.sum(latents[0])

    assert not np.array(mx.grad(leaving)(carry.latents[0])).any()


def test_a_row_halts_where_q_halt_is_more_than_q_continue_unless_act_is_off():
    model = small(NAME).train()
    carry, rows = begun(model, rows=12)
    carry = carry._replace(steps=mx.array([3, 0] * 6))
    left, outputs = model.step(carry, rows)
    believes = np.array(outputs.q_halt) > np.array(outputs.q_continue)
    ends = np.arange(12) % 2 == 0
    assert believes[~ends].any() and not believes[~ends].all()
    assert np.array(left.halted).tolist() == (believes | ends).tolist()
    off = small(NAME, act_enabled=False).train()
    assert np.array(off.step(carry, rows)[0].halted).tolist() == ends.tolist()
    assert np.array(model.eval().step(carry, rows)[0].halted).tolist() == ends.tolist()
    also = small(NAME, act_enabled=False, act_inference=True).eval()
    assert np.array(also.step(carry, rows)[0].halted).tolist() == (believes | ends).tolist()


def test_q_continue_is_trained_only_where_asked():
    carry, rows = begun(small(NAME), rows=4)
    assert small(NAME).step(carry, rows)[1].target_q_continue is None
    model = small(NAME, compute_target_q=True).train()
    left, outputs = model.step(carry, rows)
    _, after = model.reason(left, rows)
    value = mx.sigmoid(mx.maximum(after.q_halt, after.q_continue))
    assert mx.allclose(outputs.target_q_continue, value, atol=1e-6)
    assert model.eval().step(carry, rows)[1].target_q_continue is None
    off = small(NAME, compute_target_q=True, act_enabled=False).train()
    assert off.step(carry, rows)[1].target_q_continue is None


@pytest.mark.parametrize("compiled", [False, True])
def test_with_act_inference_a_row_keeps_the_answer_it_halted_with(compiled):
    usual, adaptive = small(NAME).eval(), small(NAME, act_inference=True).eval()
    carry, rows = begun(usual, rows=16, seed=4)
    step, adaptive_step = EvaluationStep(usual, False), EvaluationStep(adaptive, compiled)
    free, held = carry, carry
    kept = [None] * 16
    for _ in range(4):
        free, outputs = step(usual.weights(), free, rows)
        held, found = adaptive_step(adaptive.weights(), held, rows)
        logits = np.array(outputs.logits)
        believes = np.array(outputs.q_halt > outputs.q_continue)
        for i in range(16):
            if kept[i] is None:
                np.testing.assert_allclose(np.array(found.logits)[i], logits[i], atol=1e-4)
                kept[i] = logits[i] if believes[i] else None
            else:
                np.testing.assert_allclose(np.array(found.logits)[i], kept[i], atol=1e-4)
    halted = sum(logits is not None for logits in kept)
    assert 0 < halted < 16, "some rows halt and others go on"
    assert not np.allclose(np.array(outputs.logits), np.array(found.logits), atol=1e-2)


def test_act_inference_does_not_take_a_new_row_for_a_halted_one():
    """Even if the initial state itself, read as an answer, said that it is finished."""
    model = small(NAME, act_inference=True).eval()
    model.H_init = model.q_head.weight[0] - model.q_head.weight[1]
    carry, rows = begun(model)
    said = model.read_outputs(carry.latents[0])
    assert mx.all(said.q_halt > said.q_continue)
    latents, _ = model.reason(carry, rows)
    expected = model.H_level(
        carry.latents[0], model.embed(carry.current.inputs, rows), model._cos_sin
    )
    assert mx.allclose(latents[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"pos_encodings": "none"}, "model.pos_encodings: 'none' is not one of 'rope', 'learned'"),
        ({"num_heads": 12}, "model.num_heads: 12 does not divide hidden_size 512"),
        ({"H_cycles": 1}, "unknown key 'model.H_cycles'"),
        ({"mlp_t": True}, "unknown key 'model.mlp_t'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, message):
    values = {"task": {"name": "sudoku"}, "model": {"name": NAME, **settings}}
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_built_in_python_is_checked_too():
    with pytest.raises(ValueError, match="num_heads: 12 does not divide hidden_size 16"):
        TransformersBaseline(dataclasses.replace(SMALL[NAME], num_heads=12), SPEC)
