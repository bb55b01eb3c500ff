"""TRM with six latents: its recursion, its names, and which cycle has a gradient."""

import dataclasses

import numpy as np
import pytest
from mlx.utils import tree_flatten
from plain import SMALL, SPEC, Plain, answer_gradients, assert_step, begun, small

from mlx_trm.config.loading import config_from_dict
from mlx_trm.errors import ConfigError
from mlx_trm.models import TRM, TRMHier6

INITIAL = ["H_init", "L1_init", "L2_init", "L3_init", "L4_init", "L5_init", "L6_init"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pos_encodings": "learned", "H_cycles": 1, "L_layers": 2},
        {"mlp_t": True, "pos_encodings": "none"},
        {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0},
    ],
)
def test_the_recursion_written_out(changes):
    model = small("trm_hier6", **changes)
    carry, _ = begun(model)
    plain = Plain(model)
    positions = changes.get("puzzle_emb_len", 3)
    x = plain.embed(carry.current, positions)
    z_H, *z = (plain.start(name, x) for name in INITIAL)
    for _ in range(model.config.H_cycles):
        for i in range(6):
            z[i] = plain.level("L_level", z[0] + z[1] + z[2] + z[3] + z[4] + z[5] + z_H + x)
        z_H = plain.level("L_level", z_H + z[0] + z[1] + z[2] + z[3] + z[4] + z[5])
    assert_step(model, (z_H, *z), *plain.read(z_H, positions))


def test_it_has_trm_s_weights_and_seven_different_initial_states():
    model = TRMHier6(dataclasses.replace(SMALL["trm_hier6"], L_layers=2), SPEC)
    found = dict(tree_flatten(model.parameters()))
    of_trm = {name for name, _ in tree_flatten(TRM(SMALL["trm"], SPEC).parameters())}
    assert set(found) == of_trm - {"L_init"} | set(INITIAL)
    assert list(model.initial_names) == INITIAL
    assert len({np.array(found[name]).tobytes() for name in INITIAL}) == 7
    assert not set(INITIAL) & set(dict(tree_flatten(model.trained_weights())))


def test_only_the_last_cycle_has_a_gradient():
    model = small("trm_hier6", H_cycles=3)
    carry, rows = begun(model)
    before, _ = small("trm_hier6", H_cycles=2).reason(carry, rows)
    whole = answer_gradients(model, carry, rows)
    last = small("trm_hier6", H_cycles=1)
    part = answer_gradients(last, carry._replace(latents=before), rows)
    assert set(whole) == set(part) and len(whole) > 8
    for name, gradient in whole.items():
        scale = np.abs(gradient).max()
        assert scale > 1e-6, f"{name} has a gradient"
        np.testing.assert_allclose(gradient, part[name], atol=2e-4 * scale, err_msg=name)


@pytest.mark.parametrize("cycles", [1, 5, 7])
def test_there_is_one_cycle_for_each_latent(cycles):
    values = {"task": {"name": "sudoku"}, "model": {"name": "trm_hier6", "L_cycles": cycles}}
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    message = f"model.L_cycles: must be 6, one for each latent, not {cycles}"
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match="L_cycles: must be 6"):
        TRMHier6(dataclasses.replace(SMALL["trm_hier6"], L_cycles=cycles), SPEC)
