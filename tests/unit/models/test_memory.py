"""The memory estimate against peaks that MLX measured."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.models import TRM, TRMConfig, memory
from mlx_trm.models.carry import random_batch
from mlx_trm.models.losses import act_loss
from mlx_trm.models.memory import (
    choose_micro_batch,
    estimate_row_bytes,
    estimate_train_bytes,
    rows_that_fit,
)
from mlx_trm.nn import fused
from mlx_trm.system import memory as limits_of_mlx
from mlx_trm.system.memory import device_memory


@pytest.mark.parametrize("by_hand", [False, True], ids=["automatic", "fused"])
@pytest.mark.parametrize(
    "settings, length, rows",
    [
        ({"hidden_size": 64, "L_cycles": 2}, 81, 4),
        ({"hidden_size": 64, "L_cycles": 2, "num_heads": 8}, 240, 2),
        ({"hidden_size": 64, "L_cycles": 3, "mlp_t": True, "pos_encodings": "none"}, 81, 8),
        (
            {
                "hidden_size": 64,
                "L_cycles": 3,
                "mlp_t": True,
                "pos_encodings": "none",
                "gate_norm": True,
            },
            81,
            8,
        ),
    ],
)
def test_the_estimate_is_within_a_factor_of_two_of_the_peak(settings, length, rows, by_hand):
    spec = TaskSpec(vocab_size=11, seq_len=length)
    config = TRMConfig(**{"num_heads": 4, "H_cycles": 2, "forward_dtype": "float32", **settings})
    model = TRM(config, spec)
    batch = random_batch(spec, rows)
    carry = model.begin(model.initial_carry(batch), batch)
    vectors = model.puzzle_rows(carry)
    mx.eval(carry.pack(), vectors, model.parameters())

    def loss_fn(weights, table_rows):
        with model.using(weights):
            left, outputs = model.step(carry, table_rows)
        return act_loss(outputs, carry.current.labels, left.halted, left.steps)[0]

    start = mx.get_active_memory()
    mx.reset_peak_memory()
    with fused.use(by_hand):
        mx.eval(mx.grad(loss_fn, (0, 1))(model.trained_weights(), vectors))
        estimate = rows * estimate_row_bytes(model)
    peak = mx.get_peak_memory() - start
    assert 0.5 < estimate / peak < 2.0


def test_the_paper_s_batch_does_not_fit_a_small_machine(monkeypatch):
    spec = TaskSpec(vocab_size=11, seq_len=81)
    model = TRM(TRMConfig(mlp_t=True, pos_encodings="none", forward_dtype="float32"), spec)
    assert 80 < estimate_train_bytes(model, 768) / 2**30 < 140
    monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: 16 << 30)
    with pytest.raises(ConfigError) as caught:
        choose_micro_batch(model, 768, None)
    message = str(caught.value)
    assert "768 needs about" in message and "16 GiB" in message
    rows = int(message.split("train.batch_size=")[1].split()[0])
    assert rows % 8 == 0 and 48 < rows < 120
    assert choose_micro_batch(model, rows, None) == rows
    assert choose_micro_batch(model, 768, rows) == rows
    with pytest.raises(ConfigError, match="train.micro_batch_size: a batch of 400 needs about"):
        choose_micro_batch(model, 768, 400)


def test_auto_takes_equal_parts_that_fit(monkeypatch):
    spec = TaskSpec(vocab_size=11, seq_len=81)
    model = TRM(TRMConfig(mlp_t=True, pos_encodings="none", forward_dtype="float32"), spec)
    monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: 16 << 30)
    fits, chosen = rows_that_fit(model), choose_micro_batch(model, 768, "auto")
    parts = -(-768 // chosen)
    assert chosen <= fits < 128 and parts == -(-768 // fits) and chosen * parts - 768 < parts
    assert choose_micro_batch(model, 40, "auto") == 40
    assert choose_micro_batch(model, 768, "auto", recompute=True) > 2 * chosen
    monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: None)
    assert choose_micro_batch(model, 768, "auto") == 768 == choose_micro_batch(model, 768, None)


@pytest.fixture(name="limits")
def fixture_limits(monkeypatch):
    """The limits that MLX is given, the newest last; the first one is MLX's own. On CUDA."""
    found = [64 << 30]

    def set_limit(limit):
        found.append(limit)
        return found[-2]

    monkeypatch.setattr(mx, "set_memory_limit", set_limit)
    monkeypatch.setattr(limits_of_mlx, "PROCESS_LIMIT", limits_of_mlx.MemoryLimit())
    monkeypatch.setattr(memory, "PROCESS_LIMIT", limits_of_mlx.PROCESS_LIMIT)
    monkeypatch.setattr(memory, "on_cuda", lambda: True)
    monkeypatch.setattr(memory.cuda, "architecture", lambda: "sm_90")
    return found


def paper_model():
    """The paper's Sudoku model."""
    config = TRMConfig(mlp_t=True, pos_encodings="none", forward_dtype="bfloat16")
    return TRM(config, TaskSpec(vocab_size=11, seq_len=81))


def test_training_keeps_mlx_from_allocating_ahead(limits):
    """At the estimate, which a larger run in the same process may raise, never above MLX's own."""
    model = paper_model()
    memory.limit_run_ahead(model, 8)
    small = limits[-1]
    assert 4 << 30 <= small < 8 << 30
    memory.limit_run_ahead(model, 64)
    assert small < limits[-1] < 64 << 30
    memory.limit_run_ahead(model, 100_000)
    assert limits[-1] == 64 << 30
    limits_of_mlx.set_limits(2.0, None)
    assert limits[-1] == 2 << 30


def test_a_limit_set_while_another_thread_evaluates_holds_afterwards(limits):
    """A trainer or the user says so meanwhile: the evaluation's end does not undo it."""
    model = paper_model()
    with ThreadPoolExecutor(1) as pool:
        with memory.limit_evaluation_memory(model, 8):
            inside = limits[-1]
            pool.submit(memory.limit_run_ahead, model, 64).result()
            assert limits[-1] == inside
        trained = limits[-1]
        assert inside < trained < 64 << 30
        with memory.limit_evaluation_memory(model, 8):
            pool.submit(limits_of_mlx.set_limits, 3.0, None).result()
            assert limits[-1] == min(inside, 3 << 30)
        assert limits[-1] == 3 << 30
        with memory.limit_evaluation_memory(model, 8):
            pool.submit(memory.limit_run_ahead, model, 100_000).result()
        assert limits[-1] == 64 << 30


def test_an_mlx_that_tells_nothing_about_an_nvidia_gpu(monkeypatch):
    """MLX before 0.31, which Python 3.9 has: its memory is unknown, and no kernel of ours runs."""
    monkeypatch.delattr(mx, "device_info", raising=False)
    monkeypatch.setattr(limits_of_mlx, "on_gpu", lambda: True)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert device_memory() is None and memory.cuda.architecture.__wrapped__() is None


def test_device_memory_is_that_of_this_machine():
    found = device_memory()
    assert found is None or 1 << 28 < found < 1 << 44


def test_an_evaluation_keeps_mlx_from_allocating_ahead(limits, monkeypatch):
    """On CUDA: a limit of what a block needs, inside the block only, and never above the user's."""
    model = paper_model()
    monkeypatch.setattr(memory, "on_cuda", lambda: False)
    with memory.limit_evaluation_memory(model, 768):
        assert limits == [64 << 30]  # nothing to do elsewhere
    monkeypatch.setattr(memory, "on_cuda", lambda: True)
    with memory.limit_evaluation_memory(model, 768):
        assert 1 << 30 < limits[-1] < 4 << 30
        inside = len(limits)
        with ThreadPoolExecutor(1) as pool, memory.limit_evaluation_memory(model, 8):
            pool.submit(memory.limit_evaluation_memory(model, 8).__enter__).result()
        assert len(limits) == inside
    assert limits[-1] == 64 << 30
    limits[:] = [1 << 30]
    with memory.limit_evaluation_memory(model, 768):
        assert limits[-1] == 1 << 30
    assert limits[-1] == 1 << 30
