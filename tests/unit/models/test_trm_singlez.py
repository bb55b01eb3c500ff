"""TRM with a single state: its recursion, its names, and which cycle has a gradient."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from plain import SMALL, SPEC, Plain, answer_gradients, assert_step, begun, small

from mlx_trm.models import TRM, TRMSingleZ


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pos_encodings": "learned", "H_cycles": 3},
        {"mlp_t": True, "pos_encodings": "none"},
        {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0, "L_cycles": 3},
    ],
)
def test_the_recursion_written_out(changes):
    model = small("trm_singlez", **changes)
    carry, _ = begun(model)
    plain = Plain(model)
    positions = changes.get("puzzle_emb_len", 3)
    x = plain.embed(carry.current, positions)
    z = plain.start("L_init", x)
    for _ in range(model.config.H_cycles):
        for _ in range(model.config.L_cycles):
            z = plain.level("L_level", z + x)
        z = plain.level("L_level", z)
    assert_step(model, (z,), *plain.read(z, positions))


def test_it_has_trm_s_weights_but_one_initial_state():
    names = {name for name, _ in tree_flatten(TRMSingleZ(SMALL["trm_singlez"], SPEC).parameters())}
    of_trm = {name for name, _ in tree_flatten(TRM(SMALL["trm"], SPEC).parameters())}
    assert names == of_trm - {"H_init"}
    assert "L_init" in names


def test_only_the_last_cycle_has_a_gradient():
    model = small("trm_singlez", H_cycles=3)
    carry, rows = begun(model)
    before, _ = small("trm_singlez", H_cycles=2).reason(carry, rows)
    whole = answer_gradients(model, carry, rows)
    last = small("trm_singlez", H_cycles=1)
    part = answer_gradients(last, carry._replace(latents=before), rows)
    assert set(whole) == set(part) and len(whole) > 8
    for name, gradient in whole.items():
        np.testing.assert_allclose(gradient, part[name], atol=1e-5, err_msg=name)
        assert np.abs(gradient).max() > 1e-6, f"{name} has a gradient"


def test_the_continue_target_works_as_with_trm():
    model = small("trm_singlez", no_ACT_continue=False).train()
    carry, rows = begun(model)
    left, outputs = model.step(carry, rows)
    _, after = model.reason(left, rows)
    value = mx.sigmoid(mx.maximum(after.q_halt, after.q_continue))
    assert mx.allclose(outputs.target_q_continue, value, atol=1e-6)
    assert small("trm_singlez").step(carry, rows)[1].target_q_continue is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 3}, "num_heads: 3 does not divide hidden_size 16"),
        ({"puzzle_emb_ndim": 0}, "puzzle_emb_len: must be 0"),
        ({"puzzle_emb_ndim": 49}, "49 numbers do not fit puzzle_emb_len 3"),
    ],
)
def test_settings_that_do_not_fit_together(change, message):
    with pytest.raises(ValueError, match=message):
        TRMSingleZ(dataclasses.replace(SMALL["trm_singlez"], **change), SPEC)
