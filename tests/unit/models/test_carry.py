"""The carry: refilling, halting, exploration, and independence of rows."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_trm.config.sections import TaskSpec
from mlx_trm.models.carry import (
    Batch,
    Carry,
    Outputs,
    SentBatch,
    empty_carry,
    exploration_minimum,
    halt,
    random_batch,
    refill,
)

SPEC = TaskSpec(vocab_size=7, seq_len=5, num_puzzle_identifiers=4)


def outputs(q_halt, q_continue=None) -> Outputs:
    q = mx.array(q_halt, dtype=mx.float32)
    other = mx.zeros_like(q) if q_continue is None else mx.array(q_continue, dtype=mx.float32)
    return Outputs(mx.zeros((q.shape[0], 5, 7)), q, other)


def test_random_batch_has_the_spec_and_a_seed_decides_it():
    batch = random_batch(SPEC, 50, seed=1)
    assert [part.dtype for part in batch] == [mx.int32] * 3
    assert batch.inputs.shape == (50, 5) and batch.puzzle_identifiers.shape == (50,)
    tokens = np.array(batch.inputs)
    assert set(np.unique(tokens)) == {1, 2, 3, 4, 5, 6}, "tokens, but never padding"
    assert set(np.unique(np.array(batch.puzzle_identifiers))) == {0, 1, 2, 3}
    assert mx.array_equal(batch.inputs, random_batch(SPEC, 50, seed=1).inputs)
    assert not mx.array_equal(batch.inputs, random_batch(SPEC, 50, seed=2).inputs)
    with pytest.raises(ValueError, match="size"):
        random_batch(SPEC, 0)


@pytest.mark.parametrize("rows, cells", [(3, 5), (1, 1), (4, 16)])
def test_a_batch_arrives_as_it_was_sent(rows, cells):
    draw = np.random.default_rng(0)
    inputs, labels = (draw.integers(-100, 12, (rows, cells)).astype(np.int32) for _ in range(2))
    identifiers = draw.integers(0, 9, rows).astype(np.int32)
    shared = inputs.T.copy().T  # a process's share of a batch need not be contiguous
    batch = SentBatch.send(shared, labels, identifiers).batch()
    for have, want in zip(batch, (inputs, labels, identifiers)):
        assert have.dtype == mx.int32 and np.array_equal(have, want)


def test_first_step_refills_every_row():
    batch = random_batch(SPEC, 3)
    carry = empty_carry(batch, (6, 2), 2, mx.bfloat16)
    assert [latent.shape for latent in carry.latents] == [(3, 6, 2)] * 2
    assert carry.latents[0].dtype == mx.bfloat16
    begun = refill(carry, batch, [mx.array([1.0, 2.0]), mx.array([3.0, 4.0])])
    assert mx.array_equal(begun.current.inputs, batch.inputs)
    assert np.array_equal(np.array(begun.latents[1].astype(mx.float32)), np.tile([3, 4], (3, 6, 1)))
    assert begun.latents[0].dtype == mx.bfloat16
    assert np.array_equal(np.array(begun.steps), [0, 0, 0])


def test_rows_that_have_not_halted_keep_puzzle_latents_and_steps():
    old, new = random_batch(SPEC, 3, seed=1), random_batch(SPEC, 3, seed=2)
    latent = mx.array(np.arange(3 * 6 * 2, dtype=np.float32).reshape(3, 6, 2))
    carry = Carry((latent,), mx.array([2, 3, 4]), mx.array([False, True, False]), old)
    begun = refill(carry, new, [mx.array([-1.0, -2.0])])
    for ours, before, incoming in zip(begun.current, old, new):
        expected = np.array(before)
        expected[1] = np.array(incoming)[1]
        assert np.array_equal(np.array(ours), expected)
    expected = np.array(latent)
    expected[1] = [-1, -2]
    assert np.array_equal(np.array(begun.latents[0]), expected)
    assert np.array_equal(np.array(begun.steps), [2, 0, 4])


def test_evaluation_runs_every_row_to_the_end():
    q = outputs([9.0, -9.0, 9.0])
    assert not np.array(halt(mx.array([1, 2, 3]), q, 4, training=False)).any()
    assert np.array(halt(mx.array([4, 4, 5]), q, 4, training=False)).all()


def test_training_halts_on_belief_or_at_the_end():
    halted = halt(mx.array([1, 1, 1, 4]), outputs([0.1, 0.0, -0.1, -9.0]), 4, training=True)
    assert np.array(halted).tolist() == [True, False, False, True]


def test_training_with_one_step_ignores_belief_and_exploration():
    halted = halt(mx.array([1, 0]), outputs([-5.0, 5.0]), 1, True, mx.array([2, 2]))
    assert np.array(halted).tolist() == [True, False]


def test_continue_value_can_be_what_belief_is_compared_with():
    q = outputs([0.5, 0.5, -0.5], [0.4, 0.6, -0.6])
    halted = halt(mx.array([1, 1, 1]), q, 4, training=True, compare_continue=True)
    assert np.array(halted).tolist() == [True, False, True]


def test_exploration_asks_for_more_steps_even_at_the_end():
    least = exploration_minimum(mx.array([0.05, 0.1, 0.05, 0.0]), mx.array([3, 3, 2, 4]), 0.1)
    assert np.array(least).tolist() == [3, 0, 2, 4]
    halted = halt(mx.array([2, 2, 2, 3]), outputs([1.0] * 4), 3, True, least)
    assert np.array(halted).tolist() == [False, True, True, False]


def test_pack_and_unpack_are_inverse_and_plain():
    carry = empty_carry(random_batch(SPEC, 2), (6, 2), 2, mx.float32)
    packed = carry.pack()
    assert type(packed) is tuple and type(packed[0]) is tuple and type(packed[3]) is tuple
    back = Carry.unpack([list(packed[0]), packed[1], packed[2], list(packed[3])])
    assert isinstance(back, Carry) and isinstance(back.current, Batch)
    assert mx.array_equal(back.current.labels, carry.current.labels)
