"""What is float32 in half precision, and that half precision learns."""

import mlx.core as mx
import numpy as np
import pytest
from marks import batches, experiment

import mlx_trm as trm
from mlx_trm.models import named_arrays
from mlx_trm.models.base import DTYPES
from mlx_trm.models.losses import act_loss, loss_scale
from mlx_trm.nn.functional import rms_norm
from mlx_trm.training.trainer import Trainer

HALVES = ["bfloat16", "float16"]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def trained(dtype: str, mlp_t: bool = True, steps: int = 3) -> Trainer:
    config = experiment()
    config.model.forward_dtype, config.model.mlp_t = dtype, mlp_t
    trainer = Trainer(config)
    for batch in batches(trainer, steps):
        trainer.train_step(batch)
    return trainer


@pytest.mark.parametrize("mlp_t", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_what_stays_float32(dtype, mlp_t):
    """Weights, table, moments, average, metrics, Q values; latents and logits are halves."""
    trainer = trained(dtype, mlp_t)
    kept = [
        *named_arrays(trainer.model.parameters()),
        *named_arrays(trainer.train_step.average.weights),
        *((k, v) for k, v in named_arrays(trainer.train_step.optimizer.state) if k != "step"),
    ]
    assert len(kept) > 30 and {array.dtype for _, array in kept} == {mx.float32}
    (carry,) = trainer.train_step.carries
    assert {latent.dtype for latent in carry.latents} == {DTYPES[dtype]}
    _, outputs = trainer.model.step(carry, trainer.model.puzzle_rows(carry))
    assert outputs.logits.dtype == DTYPES[dtype]
    assert outputs.q_halt.dtype == outputs.q_continue.dtype == mx.float32
    loss, metrics = act_loss(outputs, carry.current.labels, carry.halted, carry.steps)
    assert {loss.dtype, *(value.dtype for value in metrics.values())} == {mx.float32}


@pytest.mark.parametrize("dtype", HALVES)
def test_norms_do_not_overflow(dtype):
    """The squares of 300 exceed float16's largest number; in float32 they do not."""
    x = mx.full((2, 64), 300.0, dtype=DTYPES[dtype])
    assert np.allclose(np.array(rms_norm(x, 1e-5).astype(mx.float32)), 1.0, atol=4e-3)


@pytest.mark.parametrize("dtype", HALVES)
def test_attention_sums_in_float32(dtype):
    """The mean over 4,096 equal keys is exact; summed in a half it would be far off."""
    from mlx_trm.nn.functional import attend

    value = mx.ones((1, 1, 4096, 4), dtype=DTYPES[dtype])
    found = attend(value[:, :, :3] * 0, value * 0, value, 0.5)
    assert np.allclose(np.array(found.astype(mx.float32)), 1.0, atol=4e-3)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("loss", ["stablemax", "softmax"])
def test_losses_are_summed_in_float32(dtype, loss):
    """70,000 rows of a loss near 1.8 exceed float16's largest number."""
    count = 70_000
    logits = mx.zeros((count, 1, 6), dtype=DTYPES[dtype])
    q = mx.zeros((count,))
    outputs = trm.Outputs(logits, q, q)
    labels = mx.ones((count, 1), dtype=mx.int32)
    halted, steps = mx.ones((count,), dtype=mx.bool_), mx.ones((count,), dtype=mx.int32)
    _, metrics = act_loss(outputs, labels, halted, steps, loss)
    assert metrics["lm_loss"].item() == pytest.approx(count * np.log(6.0), rel=1e-3)


def gradient_error(scale: float) -> float:
    """How far float16's gradients of the puzzle rows are from float32's, at batch 768.

    The gradient of a row depends on the others only by the division: 32 of them are computed.
    """
    found = []
    for dtype in ("float32", "float16"):
        spec = trm.TaskSpec(vocab_size=11, seq_len=81)
        config = trm.TRMConfig(
            hidden_size=16, num_heads=2, expansion=2, swiglu_multiple=16, L_layers=1, H_cycles=1,
            L_cycles=2, mlp_t=True, pos_encodings="none", puzzle_emb_len=1, halt_max_steps=4,
            forward_dtype=dtype,
        )  # fmt: skip
        model = trm.TRM(config, spec, seed=0).train()
        batch = trm.random_batch(spec, 32, 1)
        carry = model.begin(model.initial_carry(batch), batch)

        def loss_fn(rows, model=model, carry=carry):
            left, outputs = model.step(carry, rows)
            loss, _ = act_loss(outputs, carry.current.labels, left.halted, left.steps)
            return loss * (scale / 768)

        found.append(np.array(mx.grad(loss_fn)(model.puzzle_rows(carry))) / scale)
    return float(np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0]))


def test_float16_needs_its_scale():
    """The evidence: without it the gradients of a batch of 768 lose digits, with it they do not."""
    scale = loss_scale(mx.float16, 768)
    assert scale == 512 and loss_scale(mx.bfloat16, 768) == loss_scale(mx.float32, 768) == 1
    plain, scaled = gradient_error(1.0), gradient_error(scale)
    assert scaled < 0.02 and plain > 2 * scaled


def test_half_precision_learns_as_well():
    """The toy task's loss falls as far as in float32."""

    def end(name: str) -> float:
        config = experiment(train__epochs=30, run_dir=name)
        config.model.forward_dtype = name
        trainer = Trainer(config)
        trainer.fit()
        (metrics,) = trainer.run.evaluator.run(
            "train", weights=trainer.train_step.average.weights
        ).values()
        return metrics["lm_loss"]

    full = end("float32")
    assert full < 1.45  # 1.61 is chance
    for dtype in HALVES:
        assert end(dtype) < full + 0.15, dtype
