"""The hand-written gradients of a block's halves against automatic differentiation."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import plain
import pytest
from mlx.utils import tree_flatten
from peaks import peak_bytes

from mlx_trm import quantize_model
from mlx_trm.config.sections import TaskSpec
from mlx_trm.models import TRM, TRMConfig, build_model
from mlx_trm.models.carry import random_batch
from mlx_trm.models.network import Block
from mlx_trm.nn import functional, fused, reasoning, residual
from mlx_trm.nn.functional import rope_tables
from mlx_trm.nn.init import KeySequence
from mlx_trm.nn.layers import CastedLinear

MIXERS = {
    "attention": {"pos_encodings": "none"},
    "rope": {"pos_encodings": "rope"},
    "mlp_t": {"mlp_t": True, "pos_encodings": "none"},
    "gate_norm": {"mlp_t": True, "pos_encodings": "none", "gate_norm": True},
    "rope_gate_norm": {"pos_encodings": "rope", "gate_norm": True},
}
SMALL = {"hidden_size": 32, "num_heads": 2, "expansion": 2.0, "swiglu_multiple": 16}
LENGTH = 17


def small_block(mixer):
    config = TRMConfig(**SMALL, **MIXERS[mixer])
    angles = (
        rope_tables(config.head_dim, LENGTH, 10000.0)
        if MIXERS[mixer]["pos_encodings"] == "rope"
        else None
    )
    return Block(config, LENGTH, KeySequence(0)), angles


def gradients(block, angles, x, cotangent, by_hand, compiled):
    """The block's result, and its gradient with respect to its weights and to x."""

    def loss(weights, x):
        block.update(weights)
        out = block(x, angles)
        return mx.sum(out.astype(mx.float32) * cotangent), out

    weights = block.trainable_parameters()
    with fused.use(by_hand):
        function = mx.value_and_grad(loss, (0, 1))
        if compiled:
            function = mx.compile(function)
        (_, out), (of_weights, of_x) = function(weights, x)
        mx.eval(out, of_weights, of_x)
    block.update(weights)
    return {"out": out, "x": of_x, **dict(tree_flatten(of_weights))}


# Where a product's result and a residual are added before rounding (addmm), the plain layers round
# twice: one unit in the last place of 8 bits, 0.4 %, here of the largest number.
@pytest.mark.parametrize("dtype, tolerance", [(mx.float32, 2e-6), (mx.bfloat16, 0.02)])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_of_the_plain_layers(mixer, dtype, tolerance, compiled):
    block, angles = small_block(mixer)
    keys = mx.random.split(mx.random.key(3), 2)
    x = mx.random.normal((3, LENGTH, 32), key=keys[0]).astype(dtype)
    cotangent = mx.random.normal((3, LENGTH, 32), key=keys[1])
    automatic = gradients(block, angles, x, cotangent, False, False)
    by_hand = gradients(block, angles, x, cotangent, True, compiled)
    assert set(automatic) == set(by_hand)
    if mx.default_device().type == mx.DeviceType.gpu:  # where products may be rounded to TF32
        tolerance = 0.02
    for name, want in automatic.items():
        have = by_hand[name]
        assert have.dtype == want.dtype and have.shape == want.shape, name
        error = mx.max(mx.abs(have.astype(mx.float32) - want.astype(mx.float32)))
        assert error.item() <= tolerance * mx.max(mx.abs(want)).item(), name


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
def test_a_left_weight_s_gradient_is_summed_over_the_rows(count, dtype, monkeypatch):
    """That of a single row is not summed, and has the numbers that the sum would have."""
    keys = mx.random.split(mx.random.key(7), 2)
    a = mx.random.normal((count, 5, 32), key=keys[0]).astype(dtype)
    b = mx.random.normal((count, 9, 32), key=keys[1]).astype(dtype)
    products = (a @ b.swapaxes(1, 2)).reshape(count, -1)
    want = (mx.ones((1, count), dtype=dtype) @ products).reshape(5, 9)
    mx.eval(a, b, want)
    if count == 1:
        monkeypatch.setattr(mx, "ones", None)
    found = fused._left_gradient(a, b)
    assert found.dtype == want.dtype and mx.array_equal(found, want)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_step_without_gradient_is_the_same(mixer):
    """Evaluation, and the cycles of training that are not differentiated, keep nothing."""
    spec = TaskSpec(vocab_size=7, seq_len=9)
    model = TRM(TRMConfig(**SMALL, **MIXERS[mixer], forward_dtype="float32"), spec)
    batch = random_batch(spec, 4)
    carry = model.begin(model.initial_carry(batch), batch)
    results = []
    for choice, training in ((False, False), (True, False), (True, True)):
        model.train(training)
        with fused.use(choice):
            results.append(model.reason(carry, model.puzzle_rows(carry))[1].logits)
    assert mx.array_equal(results[1], results[2])
    # Products of other shapes add in another order, which the recursion amplifies.
    assert mx.max(mx.abs(results[0] - results[1])).item() < 2e-3


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("cycles", [(2, 3), (1, 1), (2, 0)])
def test_a_state_that_only_its_sum_needs_is_not_made(mixer, cycles, monkeypatch):
    """A kernel gives the next sum and leaves the state out; here plain operations do."""
    asked = []

    def add_norm_sum(x, y, following, eps, keep_norm, whole_warps):
        asked.append(keep_norm)
        norm = residual.add_norm(x, y, eps, False)[0]
        return norm + following, norm if keep_norm else None

    spec = TaskSpec(vocab_size=7, seq_len=9)
    schedule = {"H_cycles": cycles[0], "L_cycles": cycles[1], "forward_dtype": "float32"}
    model = TRM(TRMConfig(**SMALL, **MIXERS[mixer], **schedule), spec)
    batch = random_batch(spec, 4)
    carry = model.begin(model.initial_carry(batch), batch)
    model.eval()
    with fused.use(True):
        with monkeypatch.context() as patch:
            patch.setattr(Block, "keeps_nothing", lambda self: False)
            want = model.reason(carry, model.puzzle_rows(carry))
        monkeypatch.setattr(reasoning, "add_norm_sum", add_norm_sum)
        have = model.reason(carry, model.puzzle_rows(carry))
    for one, other in zip((*have[0], have[1].logits), (*want[0], want[1].logits)):
        assert mx.array_equal(one, other)
    one_cycle = [left == 0 for left in reversed(range(cycles[1]))]  # z_L itself is used at its end
    assert asked == one_cycle * cycles[0]


def test_memory_is_a_fraction_of_automatic_differentiation_s():
    spec = TaskSpec(vocab_size=11, seq_len=81)
    settings = {**SMALL, "hidden_size": 64, "H_cycles": 1, "L_cycles": 3, "puzzle_emb_ndim": 0}
    config = TRMConfig(**settings, puzzle_emb_len=0, forward_dtype="float32", mlp_t=True)
    model = TRM(dataclasses.replace(config, pos_encodings="none"), spec)
    batch = random_batch(spec, 16)
    carry = model.begin(model.initial_carry(batch), batch)
    mx.eval(carry.pack(), model.parameters())

    def loss(weights):
        with model.using(weights):
            return mx.sum(model.reason(carry, None)[1].logits)

    peaks = []
    for by_hand in (False, True):
        with fused.use(by_hand):
            peaks.append(peak_bytes(lambda: mx.grad(loss)(model.trained_weights())))
    assert peaks[1] < 0.7 * peaks[0]


class Adapted(CastedLinear):
    """A layer that somebody has put in a layer's place."""

    def __call__(self, x):
        return super().__call__(x) + 1.0


def test_other_layers_than_ours_are_not_passed_over():
    block, _ = small_block("attention")
    block.mlp.down_proj = Adapted(64, 32, False, KeySequence(1))
    block.mlp.gate_up_proj = Adapted(32, 128, False, KeySequence(2))
    x = mx.random.normal((2, LENGTH, 32), key=mx.random.key(3))
    results = []
    for choice in (False, True):
        with fused.use(choice):
            results.append(block(x, None))
    assert mx.array_equal(*results)


@pytest.mark.parametrize("name", sorted(plain.SMALL))
def test_what_is_said_to_need_no_gradient_needs_none(name, monkeypatch):
    """On CUDA kernels have no gradient; here whatever keeps nothing is cut off instead."""
    call = fused._Function.__call__

    def cut(self, *arguments, keep):
        results = call(self, *arguments, keep=keep)
        if keep:
            return results
        if isinstance(results, mx.array):
            return mx.stop_gradient(results)
        return tuple(mx.stop_gradient(result) for result in results)

    def cut_sum(*arguments):
        return tuple(mx.stop_gradient(part) for part in residual.add_norm_sum(*arguments))

    spec = TaskSpec(vocab_size=7, seq_len=9, num_puzzle_identifiers=3)
    model = build_model(dataclasses.replace(plain.SMALL[name], forward_dtype="float32"), spec)
    batch = random_batch(spec, 4)
    carry = model.begin(model.initial_carry(batch), batch)

    def loss(weights, rows):
        with model.using(weights):
            outputs = model.reason(carry, rows)[1]
        return mx.sum(mx.square(outputs.logits)) + mx.sum(outputs.q_halt)

    found = []
    for by_hand in (False, True):
        with fused.use(by_hand), monkeypatch.context() as patch:
            patch.setattr(fused._Function, "__call__", cut)
            patch.setattr(reasoning, "add_norm_sum", cut_sum)
            gradients = mx.grad(loss, (0, 1))(model.trained_weights(), model.puzzle_rows(carry))
        found.append(dict(tree_flatten(gradients)))
    for key, want in found[0].items():
        scale = mx.max(mx.abs(want)).item()
        assert mx.max(mx.abs(found[1][key] - want)).item() <= 1e-3 * max(scale, 1e-6), key


def test_quantised_layers_stay_as_they_are():
    spec = TaskSpec(vocab_size=7, seq_len=9)
    model = TRM(TRMConfig(**SMALL, pos_encodings="none", forward_dtype="float32"), spec)
    quantize_model(model, bits=8)
    batch = random_batch(spec, 2)
    carry = model.begin(model.initial_carry(batch), batch)
    model.eval()
    logits = []
    for choice in (False, True):
        with fused.use(choice):
            logits.append(model.reason(carry, model.puzzle_rows(carry))[1].logits)
    assert mx.array_equal(*logits)


def test_a_gradient_is_wanted_inside_only_where_it_is_outside():
    assert fused.gradient_expected()
    with fused.expect_gradient(False):
        with fused.expect_gradient(True):
            assert not fused.gradient_expected()
    assert fused.gradient_expected()


def in_turns(first, second):
    """Run two functions in threads of their own; each says ``meet()`` where it waits for the other.

    Returns:
        What they return, the first one's before the second one's.
    """
    meet = threading.Barrier(2, timeout=60).wait
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(each, meet) for each in (first, second)]]


def test_threads_choose_for_themselves():
    """One thread's choice, made and taken back, changes nothing for a thread that chose before."""

    def trainer(meet):
        with fused.use(True):
            found = [(fused.in_use(), fused.gradient_expected())]
            meet()  # the solver makes its choice
            meet()
            found.append((fused.in_use(), fused.gradient_expected()))
            meet()  # and takes it back
            meet()
            found.append((fused.in_use(), fused.gradient_expected()))
        return found

    def solver(meet):
        meet()
        with fused.use(False), fused.expect_gradient(False):
            meet()
            found = (fused.in_use(), fused.gradient_expected())
            meet()
        meet()
        return found

    assert in_turns(trainer, solver) == [[(True, True)] * 3, (False, False)]
    assert fused.in_use() == (mx.default_device().type == mx.DeviceType.gpu)


def test_a_thread_without_custom_functions_leaves_them_to_others(monkeypatch):
    """An export in one thread takes no gradient from a step that another thread traces."""
    seen = []

    def recorded(x):
        seen.append(threading.get_ident())
        return functional.silu_and_share(x)

    monkeypatch.setattr(functional, "_differentiable_silu", recorded)

    def trainer(meet):
        meet()  # the export has begun
        functional.silu(mx.zeros((2,)))
        meet()
        return threading.get_ident()

    def exporter(meet):
        with functional.without_custom_functions():
            meet()
            meet()
            functional.silu(mx.zeros((2,)))

    trainers, _ = in_turns(trainer, exporter)
    assert seen == [trainers]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_is_traced_in_its_own_thread_s_mode(compiled):
    """Also through mx.compile: two threads trace at the same time, one fused and one plain."""
    block, _ = small_block("mlp_t")
    block.eval()
    x = mx.random.normal((2, LENGTH, 32), key=mx.random.key(5))
    mx.eval(x, block.parameters())
    traced = []

    def traced_in(choice, meet):
        def step(x):
            traced.append((choice, fused.in_use()))
            return block(x, None)

        with fused.use(choice):
            meet()  # both have chosen
            result = (mx.compile(step) if compiled else step)(x)
            mx.eval(result)
        return result

    plain_layers, by_hand = in_turns(
        lambda meet: traced_in(False, meet), lambda meet: traced_in(True, meet)
    )
    assert sorted(traced) == [(False, False), (True, True)]
    assert mx.allclose(plain_layers, by_hand, rtol=1e-4, atol=1e-4)
