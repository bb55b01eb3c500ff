"""A supervision step: in micro-batches as at once, and nothing is harmed by what is not finite."""

import math

import mlx.core as mx
import numpy as np
import pytest
from marks import batches, experiment, flat
from mlx.utils import tree_flatten

from mlx_trm.models import network
from mlx_trm.training.step import NonFiniteError
from mlx_trm.training.trainer import Trainer


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def moments(trainer: Trainer) -> dict:
    return {k: np.array(v) for k, v in tree_flatten(trainer.train_step.optimizer.state)}


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("compiled", ["never", "always"])
def test_micro_batches_give_the_same_update(size, compiled):
    """Gradients of every row are summed before anything moves; only rounding differs.

    The gradient of a sum is the sum of gradients; float32 sums in another order differ by some
    1e-7 of their size, so the first moments are compared. Weights move by about lr times the sign
    of tiny gradients, so of them only the first steps are compared, loosely.
    """
    whole = Trainer(experiment(train__compile=compiled))
    parts = Trainer(experiment(train__compile=compiled, train__micro_batch_size=size))
    for number, batch in enumerate(batches(whole, 4)):
        one, other = whole.train_step(batch), parts.train_step(batch)
        for name, value in one.items():
            assert other[name].item() == pytest.approx(value.item(), rel=2e-4, abs=1e-5), name
        if number == 0:
            want, have = moments(whole), moments(parts)
            for name in (name for name in want if name.endswith(".m")):
                scale = np.abs(want[name]).max() + 1e-12
                assert np.abs(want[name] - have[name]).max() / scale < 1e-4, name
        want, have = flat(whole), flat(parts)
        for name in want:
            np.testing.assert_allclose(have[name], want[name], atol=3e-3, err_msg=name)
    assert [c.steps.shape[0] for c in parts.train_step.carries] == [size] * (6 // size) + [
        6 % size
    ] * (6 % size > 0)


def test_a_micro_batch_at_least_as_large_as_the_batch_is_the_batch():
    """To the bit."""
    one, other = Trainer(experiment()), Trainer(experiment(train__micro_batch_size=6))
    for batch in batches(one, 3):
        one.train_step(batch)
        other.train_step(batch)
    for name, value in flat(one).items():
        assert (value == flat(other)[name]).all(), name


@pytest.mark.parametrize("changes", [{}, {"train__micro_batch_size": 4}])
def test_what_is_not_finite_changes_nothing(changes):
    """Weights, moments, average, table and carry are as they were; the step can be skipped."""
    trainer = Trainer(experiment(**changes))
    good = batches(trainer, 4)
    trainer.train_step(good[0])
    before, held = flat(trainer), moments(trainer)
    carried = [np.array(latent) for carry in trainer.train_step.carries for latent in carry.latents]
    whole = trainer.model.lm_head.weight
    trainer.model.lm_head.weight = mx.where(mx.arange(16) == 3, mx.inf, whole)
    with pytest.raises(NonFiniteError, match="step 2: the loss or a gradient is not") as caught:
        trainer.train_step(good[1])
    assert caught.value.step == 2 and trainer.step == 1
    assert sum(part.batch.inputs.shape[0] for part in caught.value.parts) == 6
    trainer.model.lm_head.weight = whole
    for name, value in before.items():
        assert (flat(trainer)[name] == value).all(), name
    for name, value in held.items():
        if name != "learning_rate":
            assert (moments(trainer)[name] == value).all(), name
    again = [np.array(latent) for carry in trainer.train_step.carries for latent in carry.latents]
    assert all((a == b).all() for a, b in zip(carried, again))
    trainer.train_step.skip()
    assert trainer.step == 2 and all(
        carry.halted.all().item() for carry in trainer.train_step.carries
    )
    assert np.isfinite(trainer.train_step(good[2])["lm_loss"].item())


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("changes", [{}, {"train__micro_batch_size": 4}])
def test_a_puzzle_row_s_gradient_that_is_not_finite_changes_nothing(changes, value, monkeypatch):
    """Loss and gradients of the weights are finite; the look at the rows' gradients alone tells."""
    trainer = Trainer(experiment(train__compile="never", **changes))
    good = batches(trainer, 2)
    trainer.train_step(good[0])
    before, held = flat(trainer), moments(trainer)
    carried = [
        {k: np.array(v) for k, v in carry.named().items()} for carry in trainer.train_step.carries
    ]
    embed = network.embed_inputs

    @mx.custom_function
    def spoilt(rows):
        return rows + 0

    @spoilt.vjp
    def _(rows, cotangent, _):
        return mx.where(mx.arange(rows.shape[0])[:, None] == 1, value, cotangent)

    monkeypatch.setattr(
        network, "embed_inputs", lambda tokens, rows, *more: embed(tokens, spoilt(rows), *more)
    )
    differentiate = trainer.train_step._functions.differentiate
    state = trainer.model.trained_weights()
    for part in trainer.train_step._parts(good[1], 2):
        found, of_rows, _, metrics = differentiate(
            state, trainer.train_step._initial(), part.carry.pack(), tuple(part.batch),
            trainer.model.puzzle_emb(part.batch.puzzle_identifiers), part.min_steps, part.keys,
        )  # fmt: skip
        assert all(mx.isfinite(leaf).all().item() for _, leaf in tree_flatten((found, metrics)))
        assert np.isfinite(of_rows).all(1).tolist() == [n != 1 for n in range(of_rows.shape[0])]
    with pytest.raises(NonFiniteError, match="step 2: "):
        trainer.train_step(good[1])
    assert trainer.step == 1
    for name, array in before.items():
        assert (flat(trainer)[name] == array).all(), name
    for name, array in held.items():
        assert name == "learning_rate" or (moments(trainer)[name] == array).all(), name
    for carry, arrays in zip(trainer.train_step.carries, carried):
        assert all((np.array(carry.named()[name]) == array).all() for name, array in arrays.items())


@pytest.mark.parametrize("mixer", [True, False])
@pytest.mark.parametrize("compiled", ["never", "always"])
def test_computing_activations_again_changes_no_number(mixer, compiled):
    """That it takes less memory is shown in models/test_memory.py, at a size where it counts."""

    def made(recompute: bool) -> Trainer:
        config = experiment(
            train__compile=compiled, train__checkpoint_activations=recompute, train__batch_size=6
        )
        config.model.mlp_t = mixer
        config.model.hidden_size, config.model.L_cycles = 64, 8
        return Trainer(config)

    kept, again = made(False), made(True)
    for trainer in (kept, again):
        for batch in batches(trainer, 2):
            trainer.train_step(batch)
    for name, value in flat(kept).items():
        np.testing.assert_allclose(flat(again)[name], value, atol=1e-6, err_msg=name)


def test_blocks_without_trained_weights_are_computed_again_too():
    """As after ``freeze()``, or where all layers of a block are quantised."""
    trainer = Trainer(experiment(train__batch_size=6))
    model, batch = trainer.model, batches(trainer, 1)[0]
    model.L_level.layers[0].freeze()
    carry = model.begin(model.initial_carry(batch), batch)

    def loss_fn(weights):
        with model.using(weights):
            return mx.sum(model.step(carry, model.puzzle_rows(carry))[1].logits ** 2)

    found = []
    for again in (False, True):
        model.recompute(again)
        found.append(dict(tree_flatten(mx.grad(loss_fn)(model.trained_weights()))))
    assert found[0] and not any(name.startswith("L_level") for name in found[0])
    for name, gradient in found[0].items():
        assert mx.array_equal(found[1][name], gradient), name
