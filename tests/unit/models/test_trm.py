"""The model: names, shapes, what has a gradient, and independence of a row from its neighbours."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from mlx_trm.config.sections import TaskSpec
from mlx_trm.inference.step import EvaluationStep
from mlx_trm.models import TRM, TRMConfig, build_model
from mlx_trm.models.carry import Batch, Carry, random_batch
from mlx_trm.models.losses import act_loss

SPEC = TaskSpec(vocab_size=7, seq_len=16, num_puzzle_identifiers=5)
SMALL = TRMConfig(
    hidden_size=32,
    num_heads=4,
    swiglu_multiple=16,
    H_cycles=2,
    L_cycles=2,
    puzzle_emb_len=2,
    puzzle_emb_ndim=40,
    halt_max_steps=4,
    forward_dtype="float32",
)
MIXERS = {
    "attention": SMALL,
    "learned": dataclasses.replace(SMALL, pos_encodings="learned"),
    "mlp_t": dataclasses.replace(SMALL, mlp_t=True, pos_encodings="none"),
    "no_puzzle": dataclasses.replace(SMALL, puzzle_emb_ndim=0, puzzle_emb_len=0),
}


def lively(config: TRMConfig, seed: int = 0) -> TRM:
    """A model whose Q head and puzzle table are random, so that they matter."""
    model = TRM(config, SPEC, seed=seed)
    model.q_head.weight = mx.random.normal((2, config.hidden_size), key=mx.random.key(1)) * 0.1
    model.q_head.bias = mx.array([0.1, -0.1])
    if model.config.puzzle_emb_ndim:
        shape = model.puzzle_emb.weights.shape
        model.puzzle_emb.weights = mx.random.normal(shape, key=mx.random.key(2))
    return model


def rows_of(batch: Batch, order: list) -> Batch:
    return Batch(*(part[mx.array(order)] for part in batch))


def test_parameter_names_are_the_reference_s():
    names = {name for name, _ in tree_flatten(TRM(SMALL, SPEC).parameters())}
    block = ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"]
    layers = {f"L_level.layers.{i}.{part}.weight" for i in (0, 1) for part in block}
    assert names == layers | {
        "H_init",
        "L_init",
        "embed_tokens.embedding_weight",
        "lm_head.weight",
        "puzzle_emb.weights",
        "q_head.bias",
        "q_head.weight",
    }
    mixed = {name for name, _ in tree_flatten(TRM(MIXERS["mlp_t"], SPEC).parameters())}
    assert "L_level.layers.1.mlp_t.gate_up_proj.weight" in mixed
    learned = dict(tree_flatten(TRM(MIXERS["learned"], SPEC).parameters()))
    assert learned["embed_pos.embedding_weight"].shape == (18, 32)


def test_what_adam_trains_leaves_out_buffers_and_the_table():
    model = TRM(SMALL, SPEC)
    trained = {name for name, _ in tree_flatten(model.trained_weights())}
    weights = {name for name, _ in tree_flatten(model.weights())}
    assert weights - trained == {"H_init", "L_init"}
    assert not any(name.startswith("puzzle_emb") for name in weights)


def test_the_paper_s_model_has_the_paper_s_size():
    config = TRMConfig(mlp_t=True, pos_encodings="none")
    model = TRM(config, TaskSpec(vocab_size=11, seq_len=81))
    count = sum(array.size for _, array in tree_flatten(model.trained_weights()))
    # Two blocks of 3 * 97 * 512 + 3 * 512 * 1536 numbers, embedding, two heads: 5.03 million.
    assert count == 2 * (3 * 97 * 512 + 3 * 512 * 1536) + 2 * 11 * 512 + 2 * 512 + 2
    assert 5.0e6 < count < 5.1e6


def test_initial_weights():
    model = TRM(TRMConfig(mlp_t=False), TaskSpec(vocab_size=500, seq_len=81))
    assert np.array_equal(np.array(model.q_head.weight), np.zeros((2, 512)))
    assert np.array_equal(np.array(model.q_head.bias), [-5, -5])
    assert not np.array(model.puzzle_emb.weights).any()
    down = np.array(model.L_level.layers[0].mlp.down_proj.weight)
    assert down.std() == pytest.approx(1 / np.sqrt(1536), rel=0.01)
    tokens = np.array(model.embed_tokens.embedding_weight)
    assert tokens.std() == pytest.approx(1 / np.sqrt(512), rel=0.01)
    assert np.array(model.H_init).std() == pytest.approx(1, rel=0.1)
    assert not np.array_equal(np.array(model.H_init), np.array(model.L_init))


def test_a_seed_decides_the_weights():
    one, same, other = (TRM(SMALL, SPEC, seed=seed) for seed in (0, 0, 1))
    flat = [dict(tree_flatten(model.parameters())) for model in (one, same, other)]
    for name, array in flat[0].items():
        assert mx.array_equal(array, flat[1][name])
    assert not mx.array_equal(flat[0]["lm_head.weight"], flat[2]["lm_head.weight"])


@pytest.mark.parametrize("mixer", sorted(MIXERS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_has_the_shapes_and_dtypes_promised(mixer, dtype):
    model = lively(dataclasses.replace(MIXERS[mixer], forward_dtype=dtype)).eval()
    batch = random_batch(SPEC, 3)
    carry, outputs = model(model.initial_carry(batch), batch)
    length = 16 + (0 if mixer == "no_puzzle" else 2)
    assert [latent.shape for latent in carry.latents] == [(3, length, 32)] * 2
    assert outputs.logits.shape == (3, 16, 7)
    assert outputs.logits.dtype == carry.latents[0].dtype == getattr(mx, dtype)
    assert outputs.q_halt.dtype == outputs.q_continue.dtype == mx.float32
    assert np.array(carry.steps).tolist() == [1, 1, 1]
    assert np.isfinite(np.array(outputs.logits.astype(mx.float32))).all()


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_the_definition_written_out(mixer):
    """One step from the recursion as the paper states it, layer by layer."""
    model = lively(MIXERS[mixer]).eval()
    batch = random_batch(SPEC, 2)
    carry, outputs = model(model.initial_carry(batch), batch)
    x = model.embed_tokens(batch.inputs, mx.float32)
    if mixer != "no_puzzle":
        vector = mx.pad(model.puzzle_emb.weights[batch.puzzle_identifiers], [(0, 0), (0, 24)])
        x = mx.concatenate([vector.reshape(2, 2, 32), x], axis=1)
    if mixer == "learned":
        x = (x + model.embed_pos.embedding_weight) / np.sqrt(2)
    x = x * np.sqrt(32)

    def refine(state, injection):
        state = state + injection
        for block in model.L_level.layers:
            state = block(state, model._cos_sin)
        return state

    z_H = mx.broadcast_to(model.H_init, x.shape)
    z_L = mx.broadcast_to(model.L_init, x.shape)
    for _ in range(2):
        for _ in range(2):
            z_L = refine(z_L, z_H + x)
        z_H = refine(z_H, z_L)
    np.testing.assert_allclose(np.array(carry.latents[0]), np.array(z_H), atol=2e-5)
    np.testing.assert_allclose(np.array(carry.latents[1]), np.array(z_L), atol=2e-5)
    start = model.positions
    logits = z_H[:, start:] @ model.lm_head.weight.T
    np.testing.assert_allclose(np.array(outputs.logits), np.array(logits), atol=2e-5)
    q = z_H[:, 0] @ model.q_head.weight.T + model.q_head.bias
    np.testing.assert_allclose(np.array(outputs.q_halt), np.array(q[:, 0]), atol=2e-5)
    np.testing.assert_allclose(np.array(outputs.q_continue), np.array(q[:, 1]), atol=2e-5)


def test_only_the_last_cycle_has_a_gradient():
    """More cycles before the last change nothing in the gradient but their starting point."""
    long = lively(dataclasses.replace(SMALL, H_cycles=3))
    short = lively(dataclasses.replace(SMALL, H_cycles=1))
    batch = random_batch(SPEC, 2)

    def gradients(model: TRM, carry: Carry) -> dict:
        def loss_fn(weights, rows):
            with model.using(weights):
                left, outputs = model.step(carry, rows)
            return act_loss(outputs, carry.current.labels, left.halted, left.steps)[0]

        found = mx.grad(loss_fn, (0, 1))(model.trained_weights(), model.puzzle_rows(carry))
        return dict(tree_flatten(found))

    begun = long.begin(long.initial_carry(batch), batch)
    before = lively(dataclasses.replace(SMALL, H_cycles=2))
    latents, _ = before.reason(begun, before.puzzle_rows(begun))
    whole, last = gradients(long, begun), gradients(short, begun._replace(latents=latents))
    assert set(whole) == set(last)
    for name, gradient in whole.items():
        np.testing.assert_allclose(np.array(gradient), np.array(last[name]), atol=1e-5)
        assert np.array(gradient).any(), f"{name} has a gradient"


def test_the_carry_that_leaves_has_no_gradient():
    model = lively(SMALL)
    batch = random_batch(SPEC, 2)
    begun = model.begin(model.initial_carry(batch), batch)

    def leaving(weights):
        with model.using(weights):
            latents, _ = model.reason(begun, model.puzzle_rows(begun))
        return sum(mx.sum(latent) for latent in latents)

    for _, gradient in tree_flatten(mx.grad(leaving)(model.trained_weights())):
        assert not np.array(gradient).any()


def test_using_restores_the_weights_after_an_error_too():
    model = lively(SMALL)
    before = dict(tree_flatten(model.weights()))
    other = lively(SMALL, seed=9).trained_weights()
    with pytest.raises(RuntimeError, match="inside"):
        with model.using(other):
            assert not mx.array_equal(model.lm_head.weight, before["lm_head.weight"])
            raise RuntimeError("inside")
    for name, array in tree_flatten(model.weights()):
        assert mx.array_equal(array, before[name])


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(5)), mixer=st.sampled_from(sorted(MIXERS)))
def test_a_row_does_not_depend_on_its_place_in_the_batch(order, mixer):
    # One cycle: products of a row may add in another order at another place, and a second cycle
    # amplifies that to more than is allowed here.
    model = lively(dataclasses.replace(MIXERS[mixer], H_cycles=1)).eval()
    batch = random_batch(SPEC, 5)
    carry, outputs = model(model.initial_carry(batch), batch)
    moved_batch = rows_of(batch, order)
    moved, moved_outputs = model(model.initial_carry(moved_batch), moved_batch)
    for whole, part in zip((*carry.latents, *outputs[:3]), (*moved.latents, *moved_outputs[:3])):
        np.testing.assert_allclose(np.array(whole)[order], np.array(part), atol=2e-5)


@pytest.mark.parametrize("mixer", ["attention", "mlp_t"])
def test_a_compiled_step_equals_a_plain_one_and_leaves_no_tracers(mixer):
    model = lively(MIXERS[mixer]).eval()
    batch = random_batch(SPEC, 3)
    carry = model.begin(model.initial_carry(batch), batch)
    rows = model.puzzle_rows(carry)
    plain, plain_outputs = EvaluationStep(model, False)(model.weights(), carry, rows)
    fast, fast_outputs = EvaluationStep(model, True)(model.weights(), carry, rows)
    np.testing.assert_allclose(np.array(plain.latents[0]), np.array(fast.latents[0]), atol=2e-5)
    np.testing.assert_allclose(
        np.array(plain_outputs.logits), np.array(fast_outputs.logits), atol=2e-5
    )
    assert np.isfinite(np.array(model.lm_head.weight)).all(), "the model holds real arrays"


def test_the_continue_target_comes_from_a_second_pass():
    model = lively(dataclasses.replace(SMALL, no_ACT_continue=False)).train()
    batch = random_batch(SPEC, 3)
    carry = model.begin(model.initial_carry(batch), batch)
    carry = carry._replace(steps=mx.array([0, 1, 3]))
    rows = model.puzzle_rows(carry)
    left, outputs = model.step(carry, rows)
    _, after = model.reason(left, rows)
    halt_value, go_on = np.array(after.q_halt), np.array(after.q_continue)
    value = np.array([max(halt_value[0], go_on[0]), max(halt_value[1], go_on[1]), halt_value[2]])
    np.testing.assert_allclose(
        np.array(outputs.target_q_continue), 1 / (1 + np.exp(-value)), atol=1e-6
    )
    wants = (np.array(outputs.q_halt) > np.array(outputs.q_continue)) | (np.array([1, 2, 4]) >= 4)
    assert np.array(left.halted).tolist() == wants.tolist()
    assert model.eval().step(carry, rows)[1].target_q_continue is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": 5}, "num_heads: 5 does not divide hidden_size 32"),
        ({"num_heads": 32}, "rope needs an even head size"),
        ({"puzzle_emb_ndim": 0}, "puzzle_emb_len: must be 0"),
        ({"puzzle_emb_ndim": 65}, "65 numbers do not fit puzzle_emb_len 2"),
    ],
)
def test_settings_that_do_not_fit_together(change, message):
    with pytest.raises(ValueError, match=message):
        TRM(dataclasses.replace(SMALL, **change), SPEC)


def test_build_model_goes_by_name_and_resolves_defaults():
    model = build_model(dataclasses.replace(SMALL, puzzle_emb_ndim=None), SPEC, seed=3)
    assert isinstance(model, TRM)
    assert model.puzzle_emb.weights.shape == (5, 32)
    zero = build_model(dataclasses.replace(SMALL, puzzle_emb_len=0, puzzle_emb_ndim=40), SPEC)
    assert zero.positions == 2, "ceil(40 / 32)"


def test_belief_halts_a_row_in_training_and_not_in_evaluation():
    """Of a model that believes every answer: one step in training, all of them in evaluation."""
    model = TRM(SMALL, SPEC)
    model.q_head.bias = mx.array([5.0, -5.0])
    batch = random_batch(SPEC, size=3)
    for training, expected in ((True, [True] * 4), (False, [False, False, False, True])):
        model.train(training)
        carry, halted = model.initial_carry(batch), []
        for _ in expected:
            carry, _ = model(carry, batch)
            halted.append(carry.halted.tolist())
        assert halted == [[each] * 3 for each in expected], training
