"""Shares of a batch on streams of the CPU: the same numbers, and as many streams as pay."""

import dataclasses
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from child_processes import run_python
from marks import batches, experiment

from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.inference import step as slow_blas
from mlx_trm.inference.step import EvaluationStep
from mlx_trm.models import TRM, TRMConfig, named_arrays
from mlx_trm.models.carry import Batch, Carry, random_batch
from mlx_trm.models.memory import _evaluation_row_bytes
from mlx_trm.system import backend, blas, streams
from mlx_trm.training.step import TrainStep
from mlx_trm.training.trainer import Trainer

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
    optimizer, carry = trainer.train_step.state()
    arrays = {**dict(named_arrays(trainer.model.parameters())), **optimizer, **carry}
    return metrics, {name: np.array(array) for name, array in arrays.items()}


@on_cpu
@pytest.mark.parametrize("compiled", ["never", "always"])
def test_training_gives_the_same_numbers(ask, used, compiled):
    """To rounding: gradients of shares are added in another order. 4 shares of 6 rows differ."""
    one, single = steps(1, ask, train__compile=compiled)
    assert not used
    for count in (2, 4):
        used.clear()
        many, shared = steps(count, ask, train__compile=compiled)
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
        reason = EvaluationStep(model, compiled)
        carry = model.begin(model.initial_carry(batch), batch)
        for _ in range(2):
            carry, outputs = reason(model.weights(), carry, model.puzzle_rows(carry))
        mx.eval(carry.pack(), outputs.logits)
        assert len({str(stream) for stream in used}) == {1: 0, 3: 3, 64: 5}[count]
        found.append([np.array(part) for part in (*carry.latents, outputs.logits, outputs.q_halt)])
    for other in found[1:]:
        assert all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(found[0], other))


@on_cpu
def test_parts_one_after_the_other_have_all_cores(ask, used, monkeypatch):
    """``eval.memory_limit_gb``: one stream works at a time, and no core waits for another one."""
    said = []
    monkeypatch.setattr(streams, "available_cores", lambda: 2)
    monkeypatch.setattr(streams, "set_blas_threads", said.append)
    settings = {"hidden_size": 32, "num_heads": 2, "H_cycles": 1, "L_cycles": 1}
    model = TRM(TRMConfig(**settings), TaskSpec(vocab_size=11, seq_len=16)).eval()
    batch = random_batch(model.spec, 8)
    carry = model.begin(model.initial_carry(batch), batch)
    ask(2)
    for rows, threads, count in ((None, 1, 2), (4, 2, 0)):
        used.clear()
        limit = None if rows is None else rows * _evaluation_row_bytes(model) / 2**30
        EvaluationStep(model, False, limit)(model.weights(), carry, model.puzzle_rows(carry))
        assert said.pop() == threads and len({str(stream) for stream in used}) == count


def entering(*shape):
    """A carry whose latent has that shape, without its memory."""
    latent = mx.broadcast_to(mx.zeros((1,) * len(shape)), shape)
    rows = mx.zeros((shape[0],), dtype=mx.int32)
    return Carry((latent,), rows, rows == 0, Batch(rows, rows, rows))


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
    monkeypatch.setenv(backend.SCHEDULE_WIDTH, "200")
    monkeypatch.setattr(streams, "available_cores", lambda: cores)
    carry = entering(*shape)
    assert streams.stream_count(*carry.extent) == count
    assert streams.stream_count(*carry._replace(latents=()).extent) == 1
    monkeypatch.setenv(backend.SCHEDULE_WIDTH, "20")
    assert streams.stream_count(*carry.extent) == 1


@on_cpu
def test_one_stream_where_the_blas_makes_its_own_threads(monkeypatch):
    monkeypatch.setenv(backend.SCHEDULE_WIDTH, "200")
    monkeypatch.setattr(streams, "available_cores", lambda: 8)

    class OpenMP:
        @staticmethod
        def openblas_get_parallel():
            return 2

    monkeypatch.setattr(backend, "find_openblas", lambda: OpenMP)
    assert streams.stream_count(*entering(64, 97, 512).extent) == 1


def test_a_bad_number_is_one_line(ask):
    # The last is a superscript, as bytes: a locale may not have it.
    for bad in ("two", "0", "65", "1.5", "-1", os.fsdecode("²".encode())):
        ask(bad)
        with pytest.raises(ConfigError, match="MLX_TRM_CPU_STREAMS: must be a whole number from 1"):
            streams.stream_count(*entering(4, 2, 2).extent)


def test_a_bad_number_is_found_before_there_is_a_run(ask, tmp_path):
    ask("many")
    with pytest.raises(ConfigError, match="MLX_TRM_CPU_STREAMS"):
        Trainer(experiment(run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@on_cpu
def test_threads_of_the_blas_follow(monkeypatch, ask):
    said = []
    monkeypatch.setattr(streams, "set_blas_threads", said.append)
    monkeypatch.setattr(streams, "available_cores", lambda: 8)
    for count in (1, 2, 3, 16):
        ask(count)
        streams.share_cores(*entering(32, 2, 2).extent)
    assert said == [8, 4, 2, 1]
    said.clear()
    ask(2)
    steps(2, ask)
    assert said[-1] == 8 and 4 in said  # the user's own products have all cores afterwards


@on_cpu
@pytest.mark.parametrize("compiled", [False, True])
def test_several_threads(ask, compiled):
    """MLX's streams are a thread's own; a server answers from several."""
    ask(2)
    spec = TaskSpec(vocab_size=11, seq_len=16, num_puzzle_identifiers=3)
    model = TRM(TRMConfig(hidden_size=32, num_heads=2, H_cycles=1, L_cycles=1), spec).eval()
    mx.eval(model.parameters())
    reason = EvaluationStep(model, compiled)

    def answers(_):
        batch = random_batch(spec, 5)
        carry = model.begin(model.initial_carry(batch), batch)
        _, outputs = reason(model.weights(), carry, model.puzzle_rows(carry))
        return np.array(outputs.logits)

    want = answers(0)
    for _ in range(3):  # each time in new threads
        with ThreadPoolExecutor(1) as pool:
            found = list(pool.map(answers, range(2)))
        assert all(np.array_equal(want, logits) for logits in found)


@on_cpu
def test_a_resumed_run_sets_the_same_threads(ask, monkeypatch):
    """Of unequal micro-batches too: what is traced anew must not set what a traced step would not.

    How many threads a product has decides how it rounds.
    """
    ask(4)
    monkeypatch.setattr(streams, "available_cores", lambda: 8)
    threads, seen = [0], []
    monkeypatch.setattr(streams, "set_blas_threads", lambda count: threads.__setitem__(0, count))
    plain = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *trees: (seen.append(threads[0]), plain(*trees)))
    trainer = Trainer(experiment(train__compile="always", train__micro_batch_size=4))
    first, second = batches(trainer, 2)
    seen.clear()
    trainer.train_step(first)
    traced = list(seen)
    seen.clear()
    trainer.train_step(second)
    # 4 rows on 4 streams of 2 threads, 2 rows on 2 of 4: each before it is evaluated.
    assert [n for n in seen if n != 8] == [n for n in traced if n != 8] == [2, 4, 4]


def test_the_blas_s_number_of_threads_counts(monkeypatch):
    monkeypatch.setattr(streams, "blas_threads", lambda: None)
    cores = streams.available_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    for allowed, count in ((1, 1), (100000, cores)):
        monkeypatch.setattr(streams, "blas_threads", lambda allowed=allowed: allowed)
        assert streams.available_cores() == count


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="is said to MLX on Linux")
@pytest.mark.parametrize("before", ["", "import mlx.core; "])
def test_mlx_is_told_before_it_computes(before):
    """And never where it may have computed something already."""
    code = before + "import os, mlx_trm; print(os.environ.get('MLX_BFS_MAX_WIDTH'))"
    done = run_python("-c", code, env={backend.SCHEDULE_WIDTH: None})
    assert done.returncode == 0, done.stderr
    cuda = hasattr(mx, "cuda") and mx.cuda.is_available()
    assert done.stdout.strip() == ("None" if before or cuda else "200")


@on_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="the C library is asked on Linux")
@pytest.mark.parametrize("said", [None, "131072"])
def test_freed_memory_is_kept_for_the_next_arrays(said):
    """The system clears no pages again; what the environment says of malloc holds."""
    code = (
        "import resource, mlx_trm, mlx.core as mx; mx.set_default_device(mx.cpu)\n"
        "for number in range(3):\n"
        "    if number == 1: start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    mx.eval(mx.zeros((10 << 20,)) + 1.0)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)"
    )
    variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    environment = {name: None for name in variables}
    done = run_python("-c", code, env={**environment, "MALLOC_MMAP_THRESHOLD_": said})
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) < 10_000) == (said is None)


@on_cpu
def test_a_slow_blas_is_told_of_once(monkeypatch, caplog):
    """By whatever computes steps first, from Python as in a command, for large models only."""
    slow_blas._warn_once.cache_clear()
    monkeypatch.setattr(blas.sys, "platform", "linux")
    monkeypatch.setattr(blas, "blas_library", lambda: "/mlx_cpu.libs/libblas-bd8a282c.so.3")
    config, spec = load_config("sudoku_tiny.yaml"), TaskSpec(vocab_size=7, seq_len=9)
    large = dataclasses.replace(config.model, hidden_size=128)
    for model, told in ((config.model, 0), (large, 1), (large, 1)):
        EvaluationStep.configured(TRM(model, spec), config, short=True)
        TrainStep(config, TRM(model, spec), 2)
        assert len(caplog.records) == told
