"""The memory estimate against peaks that MLX measured."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import mlx.core as mx
import pytest
from metal import emulated_metal
from peaks import peak_bytes

from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import ConfigError
from mlx_trm.inference.quantization import quantize_model
from mlx_trm.models import TRM, TRMConfig, memory, named_arrays
from mlx_trm.models.carry import random_batch
from mlx_trm.models.losses import act_loss
from mlx_trm.models.memory import (
    choose_micro_batch,
    estimate_row_bytes,
    estimate_train_bytes,
    rows_that_fit,
)
from mlx_trm.nn import fused, mixing
from mlx_trm.nn.cuda.hopper import swiglu_product
from mlx_trm.system import memory as limits_of_mlx
from mlx_trm.system.backend import OPERATIONS
from mlx_trm.system.memory import device_memory


@pytest.mark.parametrize("way", ["automatic", "fused", "metal"])
@pytest.mark.parametrize(
    "settings, length, rows",
    [
        ({"hidden_size": 64, "L_cycles": 2}, 81, 4),
        ({"hidden_size": 64, "L_cycles": 2, "num_heads": 8}, 240, 2),
        ({"hidden_size": 64, "L_cycles": 3, "mlp_t": True, "pos_encodings": "none"}, 81, 4),
        (
            {
                "hidden_size": 64,
                "L_cycles": 3,
                "mlp_t": True,
                "pos_encodings": "none",
                "gate_norm": True,
            },
            81,
            4,
        ),
    ],
)
def test_the_estimate_is_within_a_factor_of_two_of_the_peak(
    settings, length, rows, way, monkeypatch
):
    # Scores of a head at a time: on a Mac they are a fixed number of bytes, not a row's.
    monkeypatch.setattr(mixing, "PART_BYTES", 1)
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

    gradient = mx.grad(loss_fn, (0, 1))
    with fused.use(way != "automatic"), emulated_metal() if way == "metal" else nullcontext():
        peak = peak_bytes(lambda: gradient(model.trained_weights(), vectors))
        estimate = rows * estimate_row_bytes(model)
    assert 0.5 < estimate / peak < 2.0


@pytest.mark.parametrize("way", ["automatic", "fused", "metal"])
@pytest.mark.parametrize("mlp_t, layers, cycles", [(True, 2, 6), (False, 2, 6), (True, 1, 1)])
def test_activations_computed_again_take_less_memory(mlp_t, layers, cycles, way, monkeypatch):
    """Kept are each block's input and what one block computes: of many blocks, a fraction.

    The estimate of a row knows that; nothing is left behind in the model.
    """
    monkeypatch.setattr(mixing, "PART_BYTES", 1)
    config = TRMConfig(
        hidden_size=32, num_heads=4, H_cycles=1, L_cycles=cycles, L_layers=layers, mlp_t=mlp_t,
        pos_encodings="none" if mlp_t else "rope", forward_dtype="float32",
    )  # fmt: skip
    spec = TaskSpec(vocab_size=11, seq_len=25)
    model = TRM(config, spec)
    own, peaks, estimates = named_arrays(model.parameters()), {}, []

    def loss_fn(weights):
        with model.using(weights):
            return mx.sum(model.step(carry, model.puzzle_rows(carry))[1].logits)

    for again in (False, True):
        model.recompute(again)
        for rows in (4, 12):
            batch = random_batch(spec, rows)
            carry = model.begin(model.initial_carry(batch), batch)
            mx.eval(carry.pack(), model.parameters())
            with (
                fused.use(way != "automatic"),
                emulated_metal() if way == "metal" else nullcontext(),
            ):
                gradient = mx.grad(loss_fn)
                peaks[again, rows] = peak_bytes(lambda: gradient(model.trained_weights()))
                estimate = estimate_row_bytes(model)
        estimates.append(estimate)
    row = (peaks[True, 12] - peaks[True, 4]) / 8
    assert 0.5 < estimates[1] / row < 2.0 and estimates[1] <= estimates[0]
    if cycles > 1:
        assert peaks[True, 12] < 0.65 * peaks[False, 12]
        assert estimates[1] < 0.7 * estimates[0]
    for (name, array), (_, before) in zip(named_arrays(model.parameters()), own):
        assert array is before, f"{name} is left behind"


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
    model.recompute(True)
    assert choose_micro_batch(model, 768, "auto") > 2 * chosen
    model.recompute(False)
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


# On Metal, and on every device: not yet run on Metal ----------------------------------------------


@pytest.fixture(name="mac")
def fixture_mac(limits, monkeypatch):
    """A Mac of 16 GiB: its limits as ``limits``, and the limits of its cache."""
    caches = [12 << 30]

    def set_cache(limit):
        caches.append(limit)
        return caches[-2]

    about = {"memory_size": 16 << 30, "max_recommended_working_set_size": 11 << 30}
    monkeypatch.setattr(mx, "set_cache_limit", set_cache)
    monkeypatch.setattr(limits_of_mlx, "read_device_info", lambda device: about)
    monkeypatch.setattr(memory.cuda, "architecture", lambda: None)
    with emulated_metal():
        yield limits, caches


def test_mlx_is_kept_from_allocating_ahead_on_metal(mac):
    """As on CUDA, with the cache besides: beyond the limit MLX gives freed memory back."""
    limits, _ = mac
    model = paper_model()
    memory.limit_run_ahead(model, 64)
    needed = estimate_train_bytes(model, 64)
    assert needed < limits[-1] < needed + (3 << 30)
    with memory.limit_evaluation_memory(model, 64):
        assert limits[-1] < 6 << 30
    assert needed < limits[-1] < needed + (3 << 30)


@pytest.mark.parametrize("size, kept", [(8, 1.0), (16, 2.0), (128, 2.0)])
def test_a_mac_s_cache_is_small_unless_the_user_says_so(mac, monkeypatch, size, kept):
    about = {"memory_size": size << 30}
    monkeypatch.setattr(limits_of_mlx, "read_device_info", lambda device: about)
    _, caches = mac
    with memory.limit_evaluation_memory(paper_model(), 8):
        assert caches[-1] == kept * 2**30
    assert caches[-1] == 12 << 30  # as it was
    limits_of_mlx.set_limits(None, None)
    assert caches[-1] == kept * 2**30
    caches.append(1 << 20)  # the user's own, by MLX
    limits_of_mlx.set_limits(None, None)
    assert caches[-1] == 1 << 20
    limits_of_mlx.set_limits(None, 10.0)
    with memory.limit_evaluation_memory(paper_model(), 8):
        assert caches[-1] == 10 << 30


def test_elsewhere_the_cache_is_mlx_s_own(mac):
    _, caches = mac
    with emulated_metal(lean=False):
        limits_of_mlx.set_limits(None, None)
        with memory.limit_evaluation_memory(paper_model(), 8):
            pass
    assert caches == [12 << 30]


def test_wired_memory_is_a_setting_only(mac, monkeypatch):
    wired = []

    def set_wired(limit):
        if limit > 11 << 30:
            raise ValueError("[metal::set_wired_limit] too large")
        wired.append(limit)

    monkeypatch.setattr(mx, "set_wired_limit", set_wired)
    limits_of_mlx.set_limits(4.0, 1.0)
    assert not wired
    limits_of_mlx.set_limits(None, None, 8.0)
    with emulated_metal(lean=False):
        limits_of_mlx.set_limits(None, None, 4.0)
    assert wired == [8 << 30]
    with pytest.raises(ConfigError, match=r"^train.wired_limit_gb: 12 GiB are more .* set less"):
        limits_of_mlx.set_limits(None, None, 12.0)


def test_auto_takes_no_more_positions_than_keep_metal_busy(monkeypatch):
    monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: 1 << 40)
    small, large = paper_model(), maze_model()
    assert choose_micro_batch(small, 768, "auto") == 768
    with emulated_metal():
        for model in (small, large):
            positions = model.positions + model.spec.seq_len
            rows = choose_micro_batch(model, 768, "auto")
            assert 0.8 * 12_000 < rows * positions <= 12_000
            assert choose_micro_batch(model, 768, 700) == 700
        monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: None)
        assert choose_micro_batch(large, 768, "auto") == rows


def maze_model():
    """A model of the maze's length."""
    config = TRMConfig(hidden_size=64, num_heads=1, forward_dtype="bfloat16")
    return TRM(config, TaskSpec(vocab_size=6, seq_len=900))


@pytest.mark.parametrize("metal", [False, True])
def test_an_evaluation_takes_the_rows_that_fit(metal, monkeypatch, caplog):
    caplog.set_level("INFO")
    model = paper_model()
    with emulated_metal() if metal else nullcontext():
        monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: 2 << 30)
        fitting = memory.cap_evaluation_rows(model, 100_000)
        assert 50 < fitting < 700 and "100000 need about" in caplog.text
        assert memory.cap_evaluation_rows(model, 50) == 50
        monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: 1 << 20)
        assert memory.cap_evaluation_rows(model, 50) == 1
        monkeypatch.setattr("mlx_trm.models.memory.device_memory", lambda: None)
        assert memory.cap_evaluation_rows(model, 50) == 50


@pytest.mark.parametrize("settings, kept", [({}, True), ({"gate_norm": True}, False)])
def test_an_evaluation_by_the_position_kernel_needs_no_inner_array(settings, kept, monkeypatch):
    """As much as one of attention: 22 arrays of T * D numbers a row, 13 counted; not 31."""
    arrays = {}
    for name, fields in {"mlp": {"mlp_t": True, **settings}, "attention": {}}.items():
        config = TRMConfig(forward_dtype="bfloat16", pos_encodings="none", **fields)
        model = TRM(config, TaskSpec(vocab_size=11, seq_len=81), seed=0)
        monkeypatch.setattr(memory.cuda, "usable", lambda dtype: dtype == mx.bfloat16)
        monkeypatch.setattr(memory.position_kernels, "shared_limit", lambda: 227 * 1024)
        one = (model.positions + 81) * config.hidden_size * 2
        arrays[name] = memory._evaluation_row_bytes(model) / one
        monkeypatch.setattr(memory.cuda, "usable", lambda dtype: False)
        assert name == "attention" or memory._evaluation_row_bytes(model) / one > 30
    assert (arrays["mlp"] < 23) == kept and (settings or arrays["mlp"] == arrays["attention"])


@pytest.mark.parametrize("settings", [{}, {"gate_norm": True}, {"quantized": True}])
@pytest.mark.parametrize(
    "operations, units, least",
    [("1", 22 * 4 / 7, (1 << 30) // 6), ("4", 22, 1 << 28), ("", 22, 3 << 29)],
)
def test_what_an_evaluation_takes_where_kernels_write_little(
    settings, operations, units, least, limits, monkeypatch
):
    """Four sevenths of it if memory is freed at once; else as where blocks are not of kernels."""
    config = TRMConfig(
        forward_dtype="bfloat16", pos_encodings="none", gate_norm=settings.get("gate_norm", False)
    )
    model = TRM(config, TaskSpec(vocab_size=11, seq_len=81), seed=0)
    if "quantized" in settings:
        quantize_model(model, 8)
    for module in (memory.cuda, swiglu_product):
        monkeypatch.setattr(module, "usable", lambda dtype: dtype == mx.bfloat16)
        monkeypatch.setattr(module, "architecture", lambda: "sm_90")
        monkeypatch.setattr(module, "shared_limit", lambda: 227 * 1024)
    monkeypatch.setattr(swiglu_product, "compiles", lambda *what: True)
    monkeypatch.setenv(OPERATIONS, operations)
    one = (model.positions + 81) * config.hidden_size * 2
    if settings:
        units, least = 22, 3 << 29
    with fused.use(True):
        outside = mx.get_active_memory()
        for rows in (1, 64):
            with memory.limit_evaluation_memory(model, rows):
                assert limits[-1] == least
        with memory.limit_evaluation_memory(model, 4096):
            assert limits[-1] == pytest.approx(outside + 4096 * units * one, rel=1e-3)
