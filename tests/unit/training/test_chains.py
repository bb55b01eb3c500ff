"""Winner takes all: the chain of lowest loss learns, and its answer becomes that of all."""

import mlx.core as mx
import numpy as np
import pytest
from marks import batches, experiment, flat
from mlx.utils import tree_flatten

from mlx_trm.errors import CheckpointError, ConfigError
from mlx_trm.models.carry import Carry, draw_exploration, row_keys
from mlx_trm.models.losses import act_loss, answer_losses
from mlx_trm.training.chains import Chains
from mlx_trm.training.trainer import Trainer

THREE = {"train__chains": 3, "model__start": "random", "train__compile": "never"}


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_only_the_best_chain_of_each_row_learns():
    """Three steps against the chains run one by one, and the gradient of the best one's step."""
    trainer = Trainer(experiment(**THREE))
    model, step = trainer.model.train(), trainer.train_step
    chains, wins = Chains(trainer.config.train, model), []
    carry = None
    for number, batch in enumerate(batches(trainer, 3), start=1):
        carry = chains.initial_carry(batch) if carry is None else carry
        carry = chains.begin(carry, batch, row_keys(0, number, 6))
        answer, *others = carry.latents
        rows, labels = model.puzzle_rows(carry), carry.current.labels
        ends = [model.reason(carry._replace(latents=(answer, z)), rows) for z in others]
        losses = np.stack([np.array(answer_losses(out.logits, labels)) for _, out in ends])
        best = losses.argmin(axis=0)
        wins.append(best)
        z_L = mx.stack([others[chain][row] for row, chain in enumerate(best)])
        least = draw_exploration(0, number, 6, 0.5, 3)

        def loss_fn(weights, winner=carry._replace(latents=(answer, z_L)), rows=rows, least=least):
            with model.using(weights):
                left, outputs = model.step(winner, rows, least)
            loss, sums = act_loss(outputs, left.current.labels, left.halted, left.steps)
            return loss / 6, left.pack(), sums

        (_, packed, sums), want = mx.value_and_grad(loss_fn)(model.trained_weights())
        left = Carry.unpack(packed)
        found = []
        apply = step.optimizer.apply_gradients
        step.optimizer.apply_gradients = lambda g, w, apply=apply, found=found: (
            found.append(dict(tree_flatten(g))) or apply(g, w)
        )
        metrics = step(batch)
        step.optimizer.apply_gradients = apply
        assert metrics["lm_loss"].item() == pytest.approx(losses.min(axis=0).sum(), rel=1e-5)
        assert metrics["q_halt_loss"].item() == pytest.approx(sums["q_halt_loss"].item(), rel=1e-5)
        for name, gradient in tree_flatten(want):
            np.testing.assert_allclose(
                np.array(found[0][name]), np.array(gradient), rtol=1e-3, atol=1e-6, err_msg=name
            )
        carry = step.carries[0]
        np.testing.assert_allclose(np.array(carry.latents[0]), np.array(left.latents[0]), atol=1e-5)
        for latent, (latents, _) in zip(carry.latents[1:], ends):
            np.testing.assert_allclose(np.array(latent), np.array(latents[1]), atol=1e-5)
        assert np.array_equal(np.array(carry.halted), np.array(left.halted))
    assert len(set(np.concatenate(wins))) == 3, "each of the chains has won once"
    assert len(carry.latents) == 4


def test_each_chain_has_a_start_of_its_own_and_a_row_that_goes_on_keeps_its():
    trainer = Trainer(experiment(**THREE))
    chains = Chains(trainer.config.train, trainer.model)
    batch = batches(trainer, 1)[0]
    first = chains.begin(chains.initial_carry(batch), batch, row_keys(0, 1, 6))
    starts = [np.array(latent) for latent in first.latents[1:]]
    assert len(starts) == 3
    assert all(np.abs(a - b).max() > 0.1 for a, b in zip(starts, starts[1:]))
    halted = mx.array([True, False, True, False, False, True])
    second = chains.begin(first._replace(halted=halted), batch, row_keys(0, 2, 6))
    for old, new in zip(first.latents[1:], second.latents[1:]):
        same = [np.array_equal(np.array(old)[row], np.array(new)[row]) for row in range(6)]
        assert same == [False, True, False, True, True, False]


@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_race_the_same(size):
    whole = Trainer(experiment(**THREE))
    parts = Trainer(experiment(train__micro_batch_size=size, **THREE))
    for batch in batches(whole, 3):
        one, other = whole.train_step(batch), parts.train_step(batch)
        for name, value in one.items():
            assert other[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name
    for name, value in flat(whole).items():
        np.testing.assert_allclose(flat(parts)[name], value, atol=3e-3, err_msg=name)


def test_a_run_keeps_its_number_of_chains():
    """A carry of another number is refused, by the settings or by what it holds."""
    trainer = Trainer(experiment(run_dir="run", train__max_steps=4, **THREE))
    trainer.fit()
    assert Trainer.resume("run").train_step.step == 4
    with pytest.raises(ConfigError, match="train.chains: the run has 3, not 2"):
        Trainer.resume("run", ["train.chains=2"])
    optimizer, carry = trainer.train_step.state()
    other = Trainer(experiment(**{**THREE, "train__chains": 2})).train_step
    average = dict(tree_flatten(trainer.train_step.average.weights))
    with pytest.raises(CheckpointError, match="the carry is not of this model and batch size"):
        other.restore(4, average, optimizer, carry)


def test_chains_from_one_start_are_refused():
    with pytest.raises(ConfigError, match="train.chains: several need model.start random"):
        Trainer(experiment(train__chains=2))
