"""The Metal kernels, their bodies compiled by g++ behind MLX's signature. Not yet run on Metal.

What each gives is compared with the plain operations that it stands for; that it is used where it
should be, with the same gradients, is seen on MLX's CPU with g++ in the place of Metal.
"""

import logging
import re

import mlx.core as mx
import numpy as np
import pytest
from metal import emulated_metal
from metal_shim import Shim, bits_of, compiler, signature
from mlx.utils import tree_flatten
from paths import REFERENCE

from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import TaskSpec
from mlx_trm.models import TRMConfig, build_model
from mlx_trm.models.carry import random_batch
from mlx_trm.models.network import Block
from mlx_trm.nn import gating, metal_kernels, residual
from mlx_trm.nn.functional import without_custom_functions
from mlx_trm.nn.init import KeySequence
from mlx_trm.training.step import TrainStep
from mlx_trm.upstream.recording import Recording
from mlx_trm.upstream.replay import compare

pytestmark = pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="emulates Metal on the CPU"
)

EPS = 1e-5
# Unit in the last place, of the result's largest number; in float32 two operations round anew.
LAST_PLACE = {mx.float32: 2.0**-22, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}
SHAPES = [(1, 1, 1), (2, 17, 32), (3, 7, 33), (1, 97, 5), (5, 1, 64), (2, 6, 1)]


@pytest.fixture(name="compiled", scope="module")
def fixture_compiled(tmp_path_factory):
    if compiler() is None:
        pytest.skip("no g++, which stands in for Metal")
    return Shim(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(name="shim")
def fixture_shim(compiled, monkeypatch):
    """g++ in the place of Metal, as if the environment asked for the kernels."""
    monkeypatch.setattr(metal_kernels, "launch", compiled)
    monkeypatch.setenv("MLX_TRM_METAL_KERNELS", "1")
    metal_kernels._are_right.cache_clear()
    compiled.calls.clear()
    yield compiled
    metal_kernels._are_right.cache_clear()


def random(shape, dtype, number=0, scale=3.0):
    return (scale * mx.random.normal(shape, key=mx.random.key(number))).astype(dtype)


def plain(function, *arguments):
    with emulated_metal(), metal_kernels.use(False):
        found = function(*arguments)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def check(found, wanted):
    assert len(found) == len(wanted)
    for have, want in zip(found, wanted):
        assert have.shape == want.shape and have.dtype == want.dtype
        have, want = (np.array(array.astype(mx.float32)) for array in (have, want))
        np.testing.assert_array_equal(np.isfinite(have), np.isfinite(want))
        finite = np.isfinite(want)
        np.testing.assert_array_equal(have[~finite], want[~finite])
        if finite.any():
            limit = LAST_PLACE[found[0].dtype] * np.abs(want[finite]).max()
            assert np.abs(have[finite] - want[finite]).max() <= limit


@pytest.mark.parametrize("dtype", metal_kernels.DTYPES, ids=str)
@pytest.mark.parametrize("axis", [-1, -2])
def test_swiglu_and_its_gradient(axis, dtype, shim):
    for shape in SHAPES:
        whole = list(shape)
        whole[axis] *= 2
        gate_up, d_h = random(whole, dtype), random(shape, dtype, 1)
        have = [metal_kernels.swiglu(gate_up, axis)]
        check(have, plain(gating.gate_halves, gate_up, axis, None))
        have = metal_kernels.swiglu_gradient(gate_up, d_h, axis)
        check(have, plain(gating.gate_halves_gradient, gate_up, d_h, axis, None))
    rows = random((2 * 5, 12), dtype)  # as a half over features gives them
    have, want = metal_kernels.swiglu(rows, -1), plain(gating.gate_halves, rows, -1, None)
    check([have], want)
    assert shim.calls == {"trm_swiglu": 7, "trm_swiglu_gradient": 6}


@pytest.mark.parametrize("dtype", metal_kernels.DTYPES, ids=str)
def test_norm_over_positions_and_its_gradient(dtype, shim):
    for shape in SHAPES:
        x, y = random(shape, dtype), random(shape, dtype, 1)
        want = plain(residual.add_norm, x, y, EPS, True, -2)
        check(metal_kernels.position_norm(x, y, EPS, True), want)
        normed, unused = metal_kernels.position_norm(x, y, EPS, False)
        check([normed], want[:1])
        assert unused.shape == (1,)
        want = plain(residual.norm_gradient, x, y, EPS, -2)
        check([metal_kernels.position_norm_gradient(x, y, EPS)], want)
    assert shim.calls["trm_position_norm"] == 12


@pytest.mark.parametrize("dtype", metal_kernels.DTYPES, ids=str)
def test_numbers_at_the_ends(dtype, shim):
    """Infinite exponentials, zeros of both signs, infinities: as the plain operations have them."""
    ends = [0.0, -0.0, 1e-8, -1e-8, 88.0, -88.0, 89.0, -89.0, 6e4, -6e4, np.inf, -np.inf, np.nan]
    gate, up = np.meshgrid(np.array(ends, np.float32), np.array([0.0, 1.0, -2.0, 6e4], np.float32))
    gate_up = mx.array(np.concatenate([gate, up], axis=-1)).astype(dtype)
    have = metal_kernels.swiglu(gate_up, -1)
    want = plain(gating.gate_halves, gate_up, -1, None)
    check([have], want)
    zeros = np.array(want[0].astype(mx.float32)) == 0
    signs = [np.signbit(np.array(array.astype(mx.float32))) for array in (have, want[0])]
    np.testing.assert_array_equal(signs[0][zeros], signs[1][zeros])
    zeros = mx.zeros((2, 3, 5), dtype=dtype)
    check(metal_kernels.position_norm(zeros, zeros, EPS, True), [zeros, zeros])
    assert shim.calls


def test_an_array_that_is_not_contiguous(shim):
    """MLX copies it before the launch."""
    gate_up = random((6, 4, 3), mx.bfloat16).transpose(1, 2, 0)
    have = metal_kernels.swiglu(gate_up, -1)
    check([have], plain(gating.gate_halves, gate_up, -1, None))
    assert shim.calls == {"trm_swiglu": 1}


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_the_shim_rounds_as_mlx_does(dtype, tmp_path):
    """Each number of the type, and in between; halves of its smallest; too large; no number."""
    if compiler() is None:
        pytest.skip("no g++, which stands in for Metal")
    body = "uint at = thread_position_in_grid.x; y[at] = T(float(x[at]) * eps[at]);"
    shim = Shim(tmp_path, [metal_kernels.Kernel("k", ("x", "eps"), ("y",), body)])
    kernel = metal_kernels.Kernel("k", ("x", "eps"), ("y",), body)
    numbers = mx.array(np.arange(2**16, dtype=np.uint16)).view(dtype)
    for factor in (1.0, 1.0 + 2.0**-9, 0.75, 3.0):
        factors = mx.full((2**16,), factor)
        have = shim(kernel, [numbers, factors], [(2**16,)], (2**16, 1, 1), 256)[0]
        want = (numbers.astype(mx.float32) * factors).astype(dtype)
        numbered = np.array(want.astype(mx.float32) == want.astype(mx.float32))
        np.testing.assert_array_equal(bits_of(have)[numbered], bits_of(want)[numbered])
        assert np.isnan(np.array(have.astype(mx.float32))[~numbered]).all()


# What MLX 0.32's write_signature gives for arrays of (3, 7, 33) bfloat16 numbers.
WRITTEN = """const device bfloat16_t* x [[buffer(0)]]
const constant int* x_shape [[buffer(1)]]
const device bfloat16_t* y [[buffer(2)]]
const constant float* eps [[buffer(3)]]
device bfloat16_t* normed [[buffer(4)]]
device bfloat16_t* total [[buffer(5)]]
uint3 thread_position_in_grid [[thread_position_in_grid]]
uint3 threads_per_grid [[threads_per_grid]]"""


def test_the_signature_is_mlx_s():
    arrays = [("bfloat16_t", 3, 693), ("bfloat16_t", 3, 693), ("float", 1, 1)]
    found = signature(metal_kernels.POSITION_NORM, arrays, ["bfloat16_t"] * 2)
    assert "\n".join(f"{text} [[{place}]]" for text, place in found) == WRITTEN


# The bodies' language --------------------------------------------------------------------------

WORDS = {"uint", "float", "T", "for", "if", "metal", "precise", "exp", "rsqrt", "x", "y"}
WORDS |= {"thread_position_in_grid", "threads_per_grid"}
SIGNS = set("+ - * / = < ( ) [ ] { } ; . ? :".split()) | {"::", "++", "+="}
TOKEN = re.compile(r"[A-Za-z_]\w*|\d+(?:\.\d*)?\w*|::|\+\+|\+=|\S")


def wrong_tokens(kernel):
    """Give what a body says that Metal and g++ might not both understand in the same way."""
    tokens = TOKEN.findall(kernel.body)
    shapes = {f"{name}_shape" for name in kernel.inputs}
    known = WORDS | SIGNS | shapes | {*kernel.inputs, *kernel.outputs, *kernel.flags}
    found = []
    for before, token in zip(["", *tokens], tokens):
        if before in ("uint", "float", "T") and (token[0].isalpha() or token == "_"):
            known.add(token)  # a variable of its own
        number = re.fullmatch(r"\d+|\d+\.\d+f", token)
        pointer = before in ("uint", "float", "T") and token in "*&"
        if pointer or (token not in known and not number):
            found.append(token)
        if token in ("exp", "rsqrt") and not kernel.body.count(f"metal::precise::{token}("):
            found.append(token)
    # What MLX puts into the signature it finds by the name anywhere in a body, in a part of a word.
    for name in kernel.inputs:
        for what in ("shape", "strides", "ndim"):
            if f"{name}_{what}" in kernel.body and f"{name}_{what}" not in tokens:
                found.append(f"{name}_{what}")
    return found


@pytest.mark.parametrize("kernel", metal_kernels.KERNELS, ids=lambda kernel: kernel.name)
def test_a_body_uses_few_words(kernel):
    assert not wrong_tokens(kernel)
    assert kernel.body.isascii() and kernel.name.isidentifier()


@pytest.mark.parametrize(
    "body",
    [
        "threadgroup float sums[8];",
        "float sum = simd_sum(x[0]);",
        "float a = exp(x[0]);",
        "float a = metal::fast::exp(x[0]);",
        "device T* p = x;",
        "uint* p = 0;",
        "half a = half(x[0]);",
        "size_t at = 0;",
        "float a = 1.0;",
        "float a = max_x_shape[0];",
        "threadgroup_barrier(mem_flags::mem_device);",
    ],
)
def test_other_words_are_found(body):
    assert wrong_tokens(metal_kernels.Kernel("k", ("x",), ("y",), body))


def test_g_plus_plus_refuses_arithmetic_in_half_precision(tmp_path):
    """Metal would round in between: a body says where it does."""
    if compiler() is None:
        pytest.skip("no g++, which stands in for Metal")
    body = "uint at = thread_position_in_grid.x; y[at] = x[at] * x[at];"
    with pytest.raises(ValueError, match="no match for"):
        Shim(tmp_path, [metal_kernels.Kernel("k", ("x",), ("y",), body)])


# Where they are used ---------------------------------------------------------------------------


def test_they_are_off_unless_asked_for(shim, monkeypatch):
    array = random((2, 8, 4), mx.bfloat16)
    with emulated_metal():
        assert metal_kernels.usable(array)
        with metal_kernels.use(False):
            assert not metal_kernels.usable(array)
        with without_custom_functions():  # a file to be exported
            assert not metal_kernels.usable(array)
        assert not metal_kernels.usable(array.astype(mx.int32))
        assert not metal_kernels.usable(mx.zeros((0, 8, 4)))
        assert not metal_kernels.usable(mx.zeros((1, 5, 3))) and metal_kernels.usable(mx.zeros(16))
        for value in ("0", "", "yes"):
            monkeypatch.setenv("MLX_TRM_METAL_KERNELS", value)
            assert not metal_kernels.usable(array)
        monkeypatch.delenv("MLX_TRM_METAL_KERNELS")
        assert not metal_kernels.usable(array)
        with metal_kernels.use(True):
            assert metal_kernels.usable(array)
    for choice in (None, True):  # another device
        with metal_kernels.use(choice), emulated_metal(lean=False):
            assert not metal_kernels.usable(array)
    del shim


def warnings_of(caplog, launch, monkeypatch):
    """Compare twice with a GPU that runs kernels by ``launch``; give the answers and warnings."""
    monkeypatch.setattr(metal_kernels, "launch", launch)
    metal_kernels._are_right.cache_clear()
    caplog.clear()
    with emulated_metal(), caplog.at_level(logging.WARNING):
        answers = {metal_kernels.usable(random((2, 8, 4), mx.bfloat16)) for _ in range(2)}
    return answers, [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("kernel", metal_kernels.KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_that_is_wrong_is_seen_before_it_is_used(kernel, shim, caplog, monkeypatch):
    """In one dtype, in any result: a warning, once, and plain operations."""

    def off(which, *arguments):
        results = shim(which, *arguments)
        if which is kernel and results[-1].dtype == mx.bfloat16:
            results[-1] = results[-1] * 1.1 if results[-1].size > 1 else results[-1]
        return results

    answers, said = warnings_of(caplog, off, monkeypatch)
    assert answers == {False} and len(said) == 1
    assert "MLX_TRM_METAL_KERNELS" in said[0] and "bfloat16" in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("results", ["nan", "nothing"])
def test_a_gpu_that_writes_no_numbers(results, shim, caplog, monkeypatch):
    def nothing(which, *arguments):
        found = shim(which, *arguments)
        return [a * (np.nan if results == "nan" else 0.0) for a in found]

    answers, said = warnings_of(caplog, nothing, monkeypatch)
    assert answers == {False} and len(said) == 1


def test_a_kernel_that_does_not_compile(shim, caplog, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("[metal::Device] Unable to build metal library\nprogram_source:3:1")

    answers, said = warnings_of(caplog, refuse, monkeypatch)
    assert answers == {False} and len(said) == 1
    assert said[0].endswith(
        "fails in mlx.core.float32: [metal::Device] Unable to build metal library"
    )
    del shim


def test_mlx_is_asked_as_it_wants_to_be(monkeypatch):
    """By names, with a grid of threads, and T and a flag as template arguments."""
    asked = []

    def metal_kernel(**words):
        def run(**options):
            asked.append({**words, **options})
            return [
                mx.zeros(s, dtype=d)
                for s, d in zip(options["output_shapes"], options["output_dtypes"])
            ]

        return run

    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
    metal_kernels._built.cache_clear()
    try:
        metal_kernels.position_norm(*[random((3, 7, 33), mx.bfloat16)] * 2, EPS, True)
        metal_kernels.swiglu(random((3, 14, 33), mx.float16), -2)
    finally:
        metal_kernels._built.cache_clear()
    norm, swiglu = asked
    assert norm["template"] == [("T", mx.bfloat16), ("KEEP", True)]
    assert (norm["grid"], norm["threadgroup"]) == ((33, 3, 1), (33, 1, 1))
    assert norm["output_shapes"] == [(3, 7, 33)] * 2
    assert norm["input_names"] == ["x", "y", "eps"] and norm["source"]
    assert (swiglu["grid"], swiglu["threadgroup"]) == ((7 * 33, 3, 1), (231, 1, 1))
    assert swiglu["output_dtypes"] == [mx.float16]


# Through the halves ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, tolerance", [(mx.float32, 2e-6), (mx.bfloat16, 0.02)])
@pytest.mark.parametrize("mixer", [{}, {"mlp_t": True}, {"mlp_t": True, "gate_norm": True}])
def test_a_block_s_gradient(mixer, dtype, tolerance, shim):
    sizes = {"hidden_size": 32, "num_heads": 2, "expansion": 2.0, "swiglu_multiple": 16}
    block = Block(TRMConfig(pos_encodings="none", **sizes, **mixer), 17, KeySequence(0))
    x, cotangent = (random((3, 17, 32), dtype, number, 1.0) for number in (1, 2))

    def loss(weights, x):
        block.update(weights)
        return mx.sum((block(x, None) * cotangent).astype(mx.float32))

    weights = block.trainable_parameters()
    want = tree_flatten(mx.grad(loss, (0, 1))(weights, x))
    with emulated_metal():
        have = tree_flatten(mx.grad(loss, (0, 1))(weights, x))
        mx.eval(have)
    gate_norm, positions = mixer.get("gate_norm"), mixer.get("mlp_t")
    expected = set() if gate_norm else {"trm_swiglu", "trm_swiglu_gradient"}
    if positions:
        expected |= {"trm_position_norm", "trm_position_norm_gradient"}
    assert set(shim.calls) >= expected
    for (name, one), (_, other) in zip(have, want):
        error = mx.max(mx.abs(one.astype(mx.float32) - other.astype(mx.float32))).item()
        assert error <= tolerance * mx.max(mx.abs(other)).item(), name


def test_recorded_steps(shim):
    """Loss, metrics, latents and gradients of the original, by the rounding rule of parity."""
    with emulated_metal():
        comparisons = compare(Recording(REFERENCE / "cuda" / "trm_mlp_bf16.safetensors"))
    assert comparisons and not [entry for entry in comparisons if not entry.passed]
    assert set(shim.calls) == {kernel.name for kernel in metal_kernels.KERNELS}


def by_plain_operations(kernel, arrays, shapes, grid, together, flags=()):
    """Do a kernel's work by MLX's operations, which mx.compile can trace."""
    del together
    with metal_kernels.use(False), emulated_metal():
        if kernel in (metal_kernels.SWIGLU, metal_kernels.SWIGLU_GRADIENT):
            blocks = arrays[0].reshape(grid[1], 2 * grid[0])
            if kernel is metal_kernels.SWIGLU:
                found = [gating.gate_halves(blocks, -1, None)]
            else:
                d_h = arrays[1].reshape(grid[1], grid[0])
                found = gating.gate_halves_gradient(blocks, d_h, -1, None)
        elif kernel is metal_kernels.POSITION_NORM:
            found = residual.add_norm(*arrays[:2], EPS, flags[0], -2)
            found = found if flags[0] else [found[0], mx.zeros((1,), dtype=found[0].dtype)]
        else:
            found = [residual.norm_gradient(*arrays[:2], EPS, -2)]
    return [array.reshape(shape) for array, shape in zip(found, shapes)]


@pytest.mark.parametrize("compiled_step", ["never", "always"])
def test_train_steps_and_an_evaluation(compiled_step, shim, monkeypatch):
    """Compiled, too: the comparison before the first use comes while MLX traces."""
    settings = ["model.hidden_size=32", "model.num_heads=2", "model.forward_dtype=float32"]
    settings += [f"train.compile={compiled_step}", "train.batch_size=3", "model.L_cycles=1"]
    settings += ["model.H_cycles=2", "model.L_layers=1", "train.micro_batch_size=null"]
    config = load_config("sudoku_tiny.yaml", settings)
    if compiled_step == "always":
        monkeypatch.setattr(metal_kernels, "launch", by_plain_operations)
    found = []
    for choice in (False, True):
        model = build_model(config.model, TaskSpec(11, 16), seed=0)
        batch = random_batch(model.spec, 3)
        with emulated_metal(), metal_kernels.use(choice):
            step = TrainStep(config, model, 100)
            metrics = [step(batch) for _ in range(2)]
            mx.eval(metrics, model.parameters())
            model.eval()
            carry = model.begin(model.initial_carry(batch), batch)
            logits = model.step(carry, model.puzzle_rows(carry))[1].logits
        found.append([*tree_flatten([metrics]), *tree_flatten(model.parameters()), ("l", logits)])
    for (name, one), (_, other) in zip(*found):
        if isinstance(one, mx.array):
            np.testing.assert_allclose(np.array(one), np.array(other), 2e-3, 2e-5, err_msg=name)
    if compiled_step == "never":
        assert set(shim.calls) == {kernel.name for kernel in metal_kernels.KERNELS}


def test_bits_are_kept():
    array = random((4, 3), mx.bfloat16)
    assert mx.array_equal(mx.array(bits_of(array)).view(mx.bfloat16), array)
