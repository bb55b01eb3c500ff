"""Shares of a batch on streams of the CPU: the same numbers, and as many streams as pay."""

import os

import mlx.core as mx
import numpy as np
import pytest
from marks import batches, experiment

from mlx_trm import _backend, streams
from mlx_trm.carry import random_batch
from mlx_trm.config import TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.evaluation import compile_reason
from mlx_trm.models import TRM, TRMConfig, named_arrays
from mlx_trm.training import Trainer

on_cpu = pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="streams are of the CPU"
)


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Give a function that asks for a number of streams."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return lambda count: monkeypatch.setenv(streams.VARIABLE, str(count))


@pytest.fixture
def used(monkeypatch):
    """Collect the streams that work is given to."""
    seen = []
    plain = mx.stream

    def noted(stream):
        seen.append(stream)
        return plain(stream)

    monkeypatch.setattr(mx, "stream", noted)
    return seen


def steps(count, ask, **settings):
    """Train for three steps; give the metrics and all arrays."""
    ask(count)
    trainer = Trainer(experiment(**settings))
    metrics = [trainer.train_step(batch) for batch in batches(trainer, 3)]
    optimizer, carry = trainer.training_state()
    arrays = {**dict(named_arrays(trainer.model.parameters())), **optimizer, **carry}
    return metrics, {name: np.array(array) for name, array in arrays.items()}


@on_cpu
@pytest.mark.parametrize("compiled", ["never", "always"])
def test_training_gives_the_same_numbers(ask, used, compiled):
    """To rounding: gradients of shares are added in another order. 4 shares of 6 rows differ."""
    one, single = steps(1, ask, **{"train.compile": compiled})
    assert not used
    for count in (2, 4):
        used.clear()
        many, shared = steps(count, ask, **{"train.compile": compiled})
        assert len({str(stream) for stream in used}) == count
        assert single.keys() == shared.keys()
        for a, b in zip(one, many):
            assert a.keys() == b.keys()
            assert all(np.allclose(a[k], b[k], rtol=1e-5, atol=1e-6) for k in a)
        for name, array in single.items():
            # The sign of a gradient of next to nothing may turn: a step of lr for a puzzle vector.
            assert np.allclose(array, shared[name], rtol=1e-4, atol=1e-4), name


@on_cpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("with_table", [False, True])
def test_evaluation_gives_the_same_numbers(ask, used, compiled, with_table):
    spec = TaskSpec(vocab_size=11, seq_len=16, num_puzzle_identifiers=3)
    table = {} if with_table else {"puzzle_emb_ndim": 0, "puzzle_emb_len": 0}
    settings = {"hidden_size": 32, "num_heads": 2, "H_cycles": 2, "L_cycles": 2, **table}
    model = TRM(TRMConfig(**settings), spec).eval()
    batch = random_batch(spec, 5)
    found = []
    for count in (1, 3, 64):
        ask(count)
        used.clear()
        reason = compile_reason(model, compiled)
        carry = model.begin(model.initial_carry(batch), batch)
        for _ in range(2):
            carry, outputs = reason(model.weights(), carry, model.puzzle_rows(carry))
        mx.eval(carry.pack(), outputs.logits)
        assert len({str(stream) for stream in used}) == {1: 0, 3: 3, 64: 5}[count]
        found.append([np.array(part) for part in (*carry.latents, outputs.logits, outputs.q_halt)])
    for other in found[1:]:
        assert all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found[0], other))


@on_cpu
@pytest.mark.parametrize(
    "shape, cores, count",
    [
        ((64, 17, 32), 8, 1),  # sudoku_tiny.yaml: too little to do
        ((1, 97, 512), 8, 1),
        ((8, 97, 512), 2, 2),
        ((8, 97, 512), 16, 6),  # 66,218 numbers each
        ((768, 97, 512), 64, 8),
        ((3, 900, 512), 8, 3),
    ],
)
def test_as_many_streams_as_pay(monkeypatch, shape, cores, count):
    monkeypatch.delenv(streams.VARIABLE, raising=False)
    monkeypatch.setenv(_backend.SCHEDULE_WIDTH, "200")
    monkeypatch.setattr(streams, "available_cores", lambda: cores)
    latent = mx.zeros((1,))

    class Latent:  # no such memory is needed to know
        size = int(np.prod(shape))

    Latent.shape = shape
    assert streams.stream_count(Latent) == count
    monkeypatch.setenv(_backend.SCHEDULE_WIDTH, "20")
    assert streams.stream_count(Latent) == 1
    with mx.stream(mx.cpu):
        assert streams.stream_count(latent) == 1


def test_a_bad_number_is_one_line(ask):
    for bad in ("two", "0", "65", "1.5", "-1"):
        ask(bad)
        with pytest.raises(ConfigError, match="MLX_TRM_CPU_STREAMS: must be a whole number from 1"):
            streams.stream_count(mx.zeros((4, 2, 2)))


@on_cpu
def test_threads_of_the_blas_follow(monkeypatch, ask):
    said = []
    monkeypatch.setattr(streams, "set_blas_threads", said.append)
    monkeypatch.setattr(streams, "available_cores", lambda: 8)
    for count in (1, 2, 3, 16):
        ask(count)
        streams.share_cores(mx.zeros((32, 2, 2)))
    assert said == [8, 4, 2, 1]


def test_the_user_s_number_of_threads_counts(monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    cores = streams.available_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert streams.available_cores() == 1
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "100000")
    assert streams.available_cores() == cores
