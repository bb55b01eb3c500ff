"""What is written for Metal, emulated on the CPU: bytes, bits and gradients. Not yet run on Metal.

A number of bytes is that of all arrays that a compiled piece writes, divided by its elements: what
mx.compile fuses is decided before a device is asked, so that it is the same on Metal.
"""

import re

import mlx.core as mx
import numpy as np
import pytest
from metal import allocated_bytes, emulated_metal
from mlx.utils import tree_flatten
from paths import ROOT
from peaks import peak_bytes

from mlx_trm.models import TRMConfig
from mlx_trm.models.network import Block
from mlx_trm.nn import functional, fused, gating, layers, mixing, residual
from mlx_trm.nn.functional import rope_tables
from mlx_trm.nn.init import KeySequence

pytestmark = pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="emulates Metal on the CPU"
)

EPS = 1e-5
ROWS, LENGTH, SIZE = 8, 97, 512
ELEMENTS = ROWS * LENGTH * SIZE
ANGLES = rope_tables(64, LENGTH, 10000.0)


def rope(x):
    return functional.apply_rope(x.swapaxes(1, 2), ANGLES)


def rotate(qkv):
    return fused._rotate(0)(qkv, *ANGLES, keep=False)


# A piece, the shapes it takes, and the bytes an element that it writes now and wrote before:
# 2 of a bfloat16 array of the size of its result, 4 of a float32 one.
FEATURES, HALVES = (ROWS, LENGTH, SIZE), (ROWS, LENGTH, 2 * SIZE)
POSITIONS = (ROWS, 2 * LENGTH, SIZE)
PIECES = {
    "swiglu": (lambda x: gating.gate_halves(x, -1, None), [HALVES], 2, 14),
    "swiglu_t": (lambda x: gating.gate_halves(x, -2, None), [POSITIONS], 2, 14),
    "swiglu_gradient": (
        lambda x, d: gating.gate_halves_gradient(x, d, -1, None),
        [HALVES, FEATURES],
        *(10, 20),
    ),
    "swiglu_t_gradient": (
        lambda x, d: gating.gate_halves_gradient(x, d, -2, None),
        [POSITIONS, FEATURES],
        *(10, 20),
    ),
    "rope": (rope, [(ROWS, LENGTH, 8, 64)], 2, 12),
    "rotated_heads": (rotate, [(ROWS, LENGTH, 3, 8, 64)], 4, 24),
    "norm_t": (lambda x, y: residual.add_norm(x, y, EPS, True, -2), [FEATURES] * 2, 8, 12),
    "norm_t_gradient": (
        lambda x, d: residual.norm_gradient(x, d, EPS, -2),
        [FEATURES] * 2,
        *(10, 18),
    ),
    # On Metal MLX's own norm is one kernel, of 2 bytes instead of 8 here.
    "gate_norm": (lambda x: gating.gate_halves(x, -1, EPS), [HALVES], 10, 18),
    "gate_norm_t": (lambda x: gating.gate_halves(x, -2, EPS), [POSITIONS], 8, 18),
    "gate_norm_gradient": (
        lambda x, d: gating.gate_halves_gradient(x, d, -1, EPS),
        [HALVES, FEATURES],
        *(26, 60),
    ),
    "gate_norm_t_gradient": (
        lambda x, d: gating.gate_halves_gradient(x, d, -2, EPS),
        [POSITIONS, FEATURES],
        *(24, 60),
    ),
}


def random(shapes, dtype=mx.bfloat16):
    keys = mx.random.split(mx.random.key(7), len(shapes))
    arrays = [mx.random.normal(s, key=k).astype(dtype) for s, k in zip(shapes, keys)]
    mx.eval(arrays, ANGLES)
    return arrays


def flat(results):
    return [np.array(array.astype(mx.float32)) for _, array in tree_flatten([results])]


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_writes_what_it_gives_and_little_more(name):
    piece, shapes, bytes_now, bytes_before = PIECES[name]
    arrays = random(shapes)
    # Another thread computes and frees; when it comes to that decides a peak, so of several. Each
    # is compiled anew: MLX gives one function compiled twice the same graph.
    with emulated_metal():
        lean = [allocated_bytes(mx.compile(piece), *arrays) for _ in range(5)]
    with emulated_metal(lean=False):
        plain = [allocated_bytes(mx.compile(piece), *arrays) for _ in range(9)]
    assert min(lean) / ELEMENTS < bytes_now + 0.2
    assert max(plain) / ELEMENTS > bytes_before - 0.2


@pytest.mark.parametrize(
    "dtype, compiled",
    [(mx.float32, False), (mx.bfloat16, False), (mx.float16, False), (mx.bfloat16, True)],
)
@pytest.mark.parametrize("name", PIECES)
def test_a_piece_gives_the_same_bits(name, dtype, compiled):
    piece, shapes, _, _ = PIECES[name]
    arrays = random([(2, *shape[1:]) for shape in shapes], dtype)
    # Large, small and infinite exponentials, and zeros of both signs.
    arrays[0] = arrays[0] * mx.where(mx.arange(arrays[0].shape[-1]) % 5 == 0, 60.0, 1.0)
    arrays[0] = mx.where(mx.abs(arrays[0]) < 0.1, arrays[0] * 0.0, arrays[0]).astype(dtype)
    found = []
    for lean in (True, False):
        with emulated_metal(lean):
            found.append(flat((mx.compile(piece) if compiled else piece)(*arrays)))
    for have, want in zip(*found):
        np.testing.assert_array_equal(have, want)
        np.testing.assert_array_equal(np.signbit(have), np.signbit(want))


MIXERS = {
    "attention": {"pos_encodings": "none"},
    "rope": {"pos_encodings": "rope"},
    "mlp_t": {"mlp_t": True, "pos_encodings": "none"},
    "gate_norm": {"mlp_t": True, "pos_encodings": "none", "gate_norm": True},
}


@pytest.mark.parametrize("dtype, tolerance", [(mx.float32, 2e-6), (mx.bfloat16, 0.02)])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_block_s_gradient_is_that_of_the_plain_layers(mixer, dtype, tolerance):
    config = TRMConfig(
        hidden_size=32, num_heads=2, expansion=2.0, swiglu_multiple=16, **MIXERS[mixer]
    )
    angles = rope_tables(16, 17, 10000.0) if mixer == "rope" else None
    block = Block(config, 17, KeySequence(0))
    x, cotangent = random([(3, 17, 32)] * 2, dtype)

    def loss(weights, x):
        block.update(weights)
        return mx.sum((block(x, angles) * cotangent).astype(mx.float32))

    weights, found = block.trainable_parameters(), []
    want = tree_flatten(mx.grad(loss, (0, 1))(weights, x))
    with emulated_metal():
        found = tree_flatten(mx.compile(mx.grad(loss, (0, 1)))(weights, x))
    assert len(found) == len(want)
    for (name, have), (_, expected) in zip(found, want):
        assert have.dtype == expected.dtype, name
        error = mx.max(mx.abs(have.astype(mx.float32) - expected.astype(mx.float32)))
        assert error.item() <= tolerance * mx.max(mx.abs(expected)).item(), name


@pytest.mark.parametrize("of_scores", [1 << 30, 3 * 4 * 29 * 29 * 3, 1])
@pytest.mark.parametrize("dtype, tolerance", [(mx.float32, 1e-6), (mx.bfloat16, 0.01)])
def test_attention_in_parts(dtype, tolerance, of_scores, monkeypatch):
    """Whole, rows of one after the other, or heads: one result, and the gradient of attention."""
    monkeypatch.setattr(mixing, "PART_BYTES", of_scores)
    *inputs, cotangent = random([(3, 4, 29, 16)] * 4, dtype)
    assert len(list(mixing.parts(inputs[0]))) == {1 << 30: 1, 1: 12}.get(of_scores, 6)

    def loss(function):
        def of(*arrays):
            return mx.sum((function(*arrays) * cotangent).astype(mx.float32))

        return mx.grad(of, (0, 1, 2))

    wide = [array.astype(mx.float32) for array in inputs]
    want = loss(lambda *arrays: functional.attend(*arrays, 0.25))(*wide)
    found = mx.compile(loss(lambda *arrays: mixing.mix(*arrays, 0.25, True)))(*inputs)
    for have, expected in zip(found, want):
        assert have.dtype == dtype
        error = mx.max(mx.abs(have.astype(mx.float32) - expected))
        assert error.item() <= tolerance * mx.max(mx.abs(expected)).item()
    for keep in (False, True):
        assert mx.array_equal(mixing.mix(*inputs, 0.25, keep), functional.attend(*inputs, 0.25))


def test_attention_s_scores_are_those_of_a_part(monkeypatch):
    """Of 16 rows, two at a time: a fraction of all scores, which are never there together."""
    length, heads = 256, 4
    *inputs, d_out = random([(16, heads, length, 16)] * 4, mx.float32)
    scores = heads * length * length * 4  # of a row
    peaks = {}
    for rows in (2, 16):
        monkeypatch.setattr(mixing, "PART_BYTES", 3 * scores * rows)
        mixed = lambda *arrays: mixing.mix(*arrays, 0.25, True)  # noqa: E731
        peaks[rows] = peak_bytes(lambda: mx.vjp(mixed, inputs, [d_out])[1])
    assert peaks[16] > 2 * 16 * scores and peaks[2] < 0.5 * peaks[16], peaks


def asked(monkeypatch, answer):
    """Note how MLX is asked for attention; ``answer`` is called first, and may raise."""
    calls = []

    def attention(query, key, value, **options):
        answer(options)
        calls.append(options)
        return functional.attend_in_float32(query, key, value, options["scale"])

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attention)
    return calls


@pytest.mark.parametrize("keep", [False, True])
def test_the_fused_kernel_is_asked_for(keep, monkeypatch):
    """In training, too, and in its cycles without gradient: for heads of 64 to 128 numbers."""
    calls = asked(monkeypatch, lambda options: None)
    for size, forced in ((64, True), (128, True), (32, False), (256, False)):
        del calls[:]
        mixing.mix(*random([(1, 2, 5, size)] * 3), 0.125, keep)
        assert [call.get("force_fused") for call in calls] == [True] * forced


@pytest.mark.parametrize("keep", [False, True])
def test_an_mlx_without_that_kernel(keep, monkeypatch):
    """Before 0.32.4 it cannot be asked for; outside of training MLX takes it by itself."""

    def too_old(options):
        if "force_fused" in options:
            raise TypeError("incompatible function arguments")

    calls = asked(monkeypatch, too_old)
    inputs = random([(2, 2, 5, 64)] * 3)
    have = mixing.mix(*inputs, 0.125, keep)
    assert mx.array_equal(have, functional.attend(*inputs, 0.125)) and len(calls) == (not keep)


@pytest.mark.parametrize("training", [False, True])
def test_a_block_goes_this_way_on_metal(training, monkeypatch):
    calls = asked(monkeypatch, lambda options: None)
    config = TRMConfig(hidden_size=128, num_heads=2, swiglu_multiple=16)
    block = Block(config, 9, KeySequence(0))
    block.train(training)
    with emulated_metal():
        block(random([(2, 9, 128)])[0], rope_tables(64, 9, 10000.0))
    assert [call["force_fused"] for call in calls] == [True]


def test_a_quantised_layer_s_evaluation_is_fused_too():
    """It has no part in fused.py; gate and up are given."""
    layer = layers.SwiGLU(16, 16, KeySequence(0))
    layer.eval()
    shape = (ROWS, LENGTH, SIZE)
    with emulated_metal():
        peak = allocated_bytes(
            mx.compile(lambda g, u: layer._gated(g, u, -1)), *random([shape] * 2)
        )
    assert peak / ELEMENTS < 2.2


def test_mlx_s_own_rope_is_not_used():
    """Its sine and cosine are fast ones: at angles of up to 915 they are off."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "mlx_trm").rglob("*.py")]
    assert not [source for source in sources if re.search(r"\bfast\.rope\b", source)]
