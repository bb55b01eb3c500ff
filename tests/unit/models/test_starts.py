"""Where latents start from, keys of rows, other numbers of cycles, and which matrices Muon gets."""

import mlx.core as mx
import numpy as np
import pytest
from plain import SMALL, SPEC, small

from mlx_trm.errors import ConfigError
from mlx_trm.models import named_arrays
from mlx_trm.models.carry import draw_exploration, draw_normal, random_batch, row_keys

RECURSIVE = sorted(set(SMALL) - {"transformers_baseline"})


def test_a_rows_key_follows_from_seed_step_and_place_alone():
    keys = row_keys(3, 7, 6)
    assert keys.shape == (6, 2) and keys.dtype == mx.uint32
    assert mx.array_equal(row_keys(3, 7, 2), keys[:2]), "the size of the batch has no say"
    assert len({tuple(key) for key in keys.tolist()}) == 6
    for other in (row_keys(3, 8, 6), row_keys(4, 7, 6)):
        assert not {tuple(key) for key in keys.tolist()} & {tuple(key) for key in other.tolist()}
    before = draw_exploration(3, 7, 6, 0.5, 16)
    row_keys(3, 7, 6)
    assert mx.array_equal(draw_exploration(3, 7, 6, 0.5, 16), before)


def test_draws_are_cut_off_at_two_deviations_and_have_deviation_one():
    drawn = np.array(draw_normal(row_keys(0, 1, 8), (100, 50), mx.float32))
    assert drawn.shape == (8, 100, 50)
    assert np.abs(drawn).max() <= 2 / 0.8796 and np.abs(drawn).max() > 2.2
    assert abs(drawn.std() - 1) < 0.01 and abs(drawn.mean()) < 0.02
    part = draw_normal(row_keys(0, 1, 8)[5:], (100, 50), mx.float32)
    assert np.array_equal(np.array(part), drawn[5:]), "a slice of the keys is those rows"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_fixed_starts_are_the_models_own_and_begin_is_as_it_was(name):
    model = small(name)
    found = model.starts()
    assert set(found) == set(model.initial_names)
    assert all(mx.array_equal(found[each], model[each]) for each in found)
    batch = random_batch(SPEC, 2)
    carry = model.initial_carry(batch)
    plain, given = model.begin(carry, batch), model.begin(
        carry, batch, model.starts(row_keys(0, 1, 2))
    )
    for one, other in zip(plain.latents, given.latents):
        assert mx.array_equal(one, other), "keys alone draw nothing where start is fixed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_starts_draw_every_latent_but_the_answers(dtype):
    model = small("trm_hier6", forward_dtype=dtype)
    keys = row_keys(0, 1, 4)
    found = model.starts(keys, random=True)
    answer, *others = model.initial_names
    assert mx.array_equal(found[answer], model[answer])
    shape = (4, model.positions + SPEC.seq_len, model.config.hidden_size)
    assert all(found[name].shape == shape for name in others)
    assert all(found[name].dtype == model.dtype for name in others)
    sums = [float(mx.sum(found[name].astype(mx.float32)).item()) for name in others]
    assert len(set(sums)) == len(others), "each latent has draws of its own"
    part = model.starts(keys[1:3], random=True)
    assert all(mx.array_equal(part[name], found[name][1:3]) for name in others)
    batch = random_batch(SPEC, 4)
    carry = model.initial_carry(batch)._replace(halted=mx.array([True, False, True, True]))
    begun = model.begin(carry, batch, found)
    assert mx.array_equal(begun.latents[1][0], found[others[0]][0])
    assert mx.array_equal(begun.latents[1][1], carry.latents[1][1]), "only where it has halted"
    with pytest.raises(ValueError, match="keys"):
        model.starts(random=True)


def test_random_starts_are_the_same_when_compiled():
    model = small("trm")
    keys = row_keys(0, 1, 3)

    def draw(keys):
        return model.starts(keys, random=True)["L_init"]

    assert mx.max(mx.abs(mx.compile(draw)(keys) - draw(keys))).item() < 1e-5


@pytest.mark.parametrize("name", RECURSIVE)
def test_other_cycles_are_those_of_a_model_configured_so(name):
    model, fewer = small(name).eval(), small(name, H_cycles=1).eval()
    L = model.config.L_cycles
    batch = random_batch(SPEC, 2)

    def logits(which):
        return which(which.initial_carry(batch), batch)[1].logits

    plain, expected = logits(model), logits(fewer)
    with model.with_cycles(1, L):
        assert model.cycles == (1, L) and small(name).cycles == (2, L)
        assert mx.array_equal(logits(model), expected)
    assert model.cycles == (2, L)
    assert mx.array_equal(logits(model), plain) and not mx.array_equal(plain, expected)


def test_cycles_that_a_model_cannot_run_are_refused():
    for name, cycles, words in (
        ("transformers_baseline", (1, 1), "no H_cycles"),
        ("trm_hier6", (1, 2), "must be 6"),
        ("trm", (0, 2), "at least 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            with small(name).with_cycles(*cycles):
                pass


@pytest.mark.parametrize("name", sorted(SMALL))
def test_block_matrices_are_those_of_the_levels_alone(name):
    model = small(name, pos_encodings="learned")
    found, weights = model.block_matrices(), dict(named_arrays(model.trained_weights()))
    assert found <= set(weights)
    left = set(weights) - found
    assert left == {
        "embed_tokens.embedding_weight", "embed_pos.embedding_weight", "lm_head.weight",
        "q_head.weight", "q_head.bias",
    }  # fmt: skip
    assert all(weights[each].ndim == 2 for each in found)
