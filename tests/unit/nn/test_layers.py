"""Layers: initialisation, rounding, and equality with plain NumPy arithmetic."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_trm.nn import functional
from mlx_trm.nn.functional import (
    apply_rope,
    mean_in_torch_order,
    rms_norm,
    rope_tables,
    scaled,
    silu,
)
from mlx_trm.nn.init import KeySequence, trunc_normal
from mlx_trm.nn.layers import Attention, CastedEmbedding, CastedLinear, PuzzleEmbedding, SwiGLU
from mlx_trm.system.device import on_cuda, on_gpu


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def np_silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_trunc_normal_has_the_standard_deviation_asked_for_after_truncation():
    draws = np.array(trunc_normal((400, 500), 0.5, KeySequence(0).next()))
    # 200,000 draws: the sample deviation is within about 0.0008 of the true one.
    assert abs(draws.std() - 0.5) < 0.004
    assert abs(draws.mean()) < 0.006
    bound = 2 * 0.5 / 0.87962566103423978
    assert draws.max() <= bound + 1e-6 and draws.min() >= -bound - 1e-6
    assert draws.max() > 0.99 * bound


def test_trunc_normal_of_zero_is_zero():
    assert np.array_equal(
        np.array(trunc_normal((3, 2), 0, KeySequence(0).next())), np.zeros((3, 2))
    )


def test_keys_differ_and_a_seed_decides_them():
    first, second = KeySequence(3), KeySequence(3)
    a, b = first.next(), first.next()
    assert not np.array_equal(np.array(a), np.array(b))
    assert np.array_equal(np.array(a), np.array(second.next()))
    assert not np.array_equal(np.array(KeySequence(4).next()), np.array(a))


@pytest.mark.parametrize("axis", [-1, -2])
def test_rms_norm_divides_by_the_root_mean_square(axis):
    x = normal(2, 5, 7)
    expected = x / np.sqrt(np.mean(x**2, axis=axis, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.array(rms_norm(mx.array(x), 1e-5, axis)), expected, rtol=2e-6)


@pytest.mark.parametrize("axis", [-1, -2])
def test_rms_norm_rounds_half_precision_once(axis):
    x = mx.array(normal(3, 6, 8)).astype(mx.bfloat16)
    wide = rms_norm(x.astype(mx.float32), 1e-5, axis).astype(mx.bfloat16)
    result = rms_norm(x, 1e-5, axis)
    assert result.dtype == mx.bfloat16
    assert mx.array_equal(result, wide)


@pytest.mark.parametrize("size", [1, 2, 16, 64, 128, 384, 512])
def test_a_mean_in_torch_s_order(size):
    """The order is that of a warp: halves, and from 128 on lanes of vectors of 4 before."""
    x = normal(50, size) ** 2
    vectors = x
    if size >= 128:
        lanes = x.reshape(50, -1, 32, 4)
        vectors = lanes[:, 0]
        for i in range(1, lanes.shape[1]):
            vectors = vectors + lanes[:, i]
        vectors = vectors[..., 0] + vectors[..., 1] + vectors[..., 2] + vectors[..., 3]
    while vectors.shape[1] > 1:
        middle = vectors.shape[1] // 2
        vectors = vectors[:, :middle] + vectors[:, middle:]
    have = np.array(mean_in_torch_order(mx.array(x)))
    assert np.array_equal(have, vectors * np.float32(1 / size))
    assert np.allclose(have[:, 0], x.astype(np.float64).mean(axis=1), rtol=1e-6)


@pytest.mark.skipif(not on_cuda(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("size", [16, 64, 128, 512])
def test_a_norm_is_torch_s_to_the_bit_on_cuda(size):
    torch = pytest.importorskip("torch")
    x = normal(4096, size)
    wide = torch.tensor(x).cuda()
    want = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    assert np.array_equal(np.array(rms_norm(mx.array(x), 1e-5)), want.cpu().numpy())


def test_silu_rounds_half_precision_once():
    x = mx.array(np.linspace(-9, 9, 301, dtype=np.float32)).astype(mx.bfloat16)
    wide = np.array(x.astype(mx.float32))
    expected = mx.array(np_silu(wide)).astype(mx.bfloat16)
    assert mx.array_equal(silu(x), expected)
    twice = x * mx.sigmoid(x)
    assert not mx.array_equal(silu(x), twice), "rounding twice is told apart by these inputs"


def test_scaled_keeps_the_factor_in_float32():
    values = np.arange(1, 256, dtype=np.float32)
    expected = mx.array(values * np.float32(math.sqrt(512))).astype(mx.bfloat16)
    x = mx.array(values).astype(mx.bfloat16)
    assert mx.array_equal(scaled(x, math.sqrt(512)), expected)
    assert not mx.array_equal(x * math.sqrt(512), expected), "a rounded factor is told apart"


def test_linear_with_and_without_bias():
    layer = CastedLinear(5, 3, bias=True, keys=KeySequence(0))
    layer.bias = mx.array([1.0, -2.0, 0.5])
    x = normal(2, 4, 5)
    expected = x @ np.array(layer.weight).T + np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(np.array(layer(mx.array(x))), expected, rtol=1e-5, atol=1e-6)
    assert "bias" not in CastedLinear(5, 3, bias=False, keys=KeySequence(0))


def test_left_product_equals_transposing():
    layer = CastedLinear(5, 3, bias=False, keys=KeySequence(0))
    x = mx.array(normal(2, 5, 4))
    transposed = layer(x.transpose(0, 2, 1)).transpose(0, 2, 1)
    np.testing.assert_allclose(np.array(layer.left(x)), np.array(transposed), rtol=1e-5, atol=1e-6)


def test_embedding_looks_rows_up_exactly_and_casts():
    table = CastedEmbedding(7, 4, 0.5, KeySequence(1))
    ids = mx.array([[0, 6], [3, 3]], dtype=mx.int32)
    expected = table.embedding_weight.astype(mx.bfloat16)[ids]
    assert mx.array_equal(table(ids, mx.bfloat16), expected)
    assert table.embedding_weight.dtype == mx.float32


def test_embedding_gradient_counts_every_use():
    table = CastedEmbedding(3, 2, 0.5, KeySequence(1))
    ids = mx.array([0, 2, 2, 2], dtype=mx.int32)

    def total(weight: mx.array) -> mx.array:
        table.embedding_weight = weight
        return mx.sum(table(ids, mx.float32))

    gradient = mx.grad(total)(table.embedding_weight)
    assert np.array_equal(np.array(gradient), [[1, 1], [0, 0], [3, 3]])


def test_puzzle_embedding_is_a_buffer_of_zeros():
    table = PuzzleEmbedding(5, 3)
    assert table.trainable_parameters() == {}
    assert np.array_equal(np.array(table(mx.array([4, 0]))), np.zeros((2, 3)))


@pytest.mark.parametrize(
    "size, expansion, multiple, inner",
    [(512, 4, 256, 1536), (97, 4, 256, 512), (16, 4, 256, 256), (32, 2, 16, 48), (17, 2, 16, 32)],
)
def test_swiglu_inner_size(size, expansion, multiple, inner):
    assert SwiGLU.inner_size(size, expansion, multiple) == inner


def test_swiglu_has_the_gate_first():
    layer = SwiGLU(4, 6, KeySequence(0))
    x = normal(2, 3, 4)
    projected = x @ np.array(layer.gate_up_proj.weight).T
    expected = (np_silu(projected[..., :6]) * projected[..., 6:]) @ np.array(
        layer.down_proj.weight
    ).T
    np.testing.assert_allclose(np.array(layer(mx.array(x))), expected, rtol=1e-5, atol=1e-6)
    turned = layer.left(mx.array(x.transpose(0, 2, 1)))
    np.testing.assert_allclose(np.array(turned), expected.transpose(0, 2, 1), rtol=1e-5, atol=1e-6)


def test_rope_rotates_pairs_half_a_head_apart():
    head_dim, positions = 6, 5
    x = normal(1, 2, positions, head_dim)
    result = np.array(apply_rope(mx.array(x), rope_tables(head_dim, positions, 10000.0)))
    for position in range(positions):
        for pair in range(3):
            angle = position * 10000.0 ** (-2 * pair / head_dim)
            a, b = x[0, :, position, pair], x[0, :, position, pair + 3]
            np.testing.assert_allclose(
                result[0, :, position, pair], a * np.cos(angle) - b * np.sin(angle), atol=1e-6
            )
            np.testing.assert_allclose(
                result[0, :, position, pair + 3], b * np.cos(angle) + a * np.sin(angle), atol=1e-6
            )


def test_rope_frequencies_are_rounded_once():
    cos, sin = rope_tables(64, 916, 10000.0)
    powers = np.float32(10000.0 ** (np.arange(0, 64, 2) / 64.0))
    angles = np.arange(916, dtype=np.float32)[:, None] * (np.float32(1) / powers)
    # A frequency one unit in the last place off would be 3e-5 away at the last position.
    np.testing.assert_allclose(np.array(cos)[:, :32], np.cos(angles.astype(np.float64)), atol=1e-6)
    np.testing.assert_allclose(np.array(sin)[:, 32:], np.sin(angles.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("rope", [False, True])
def test_attention_equals_plain_arithmetic(rope):
    size, heads, positions = 8, 2, 5
    layer = Attention(size, heads, KeySequence(2))
    x = normal(2, positions, size)
    tables = rope_tables(size // heads, positions, 10000.0) if rope else None
    qkv = x @ np.array(layer.qkv_proj.weight).T
    query, key, value = (
        part.reshape(2, positions, heads, 4).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, -1)
    )
    if tables is not None:
        query = np.array(apply_rope(mx.array(query), tables))
        key = np.array(apply_rope(mx.array(key), tables))
    scores = query @ key.transpose(0, 1, 3, 2) / 2.0
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    mixed = (shares @ value).transpose(0, 2, 1, 3).reshape(2, positions, size)
    expected = mixed @ np.array(layer.o_proj.weight).T
    np.testing.assert_allclose(np.array(layer(mx.array(x), tables)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(
    not functional._EXP_IS_SLOW or on_gpu(), reason="MLX's own exp is used elsewhere"
)
@pytest.mark.parametrize("compiled", [False, True])
def test_silu_and_sigmoid_against_float64(compiled):
    x = mx.linspace(-80.0, 80.0, 200001)
    exact = 1.0 / (1.0 + np.exp(-np.array(x).astype(np.float64)))
    sigmoid, silu = (
        mx.compile(f) if compiled else f for f in (functional.sigmoid, functional.silu)
    )
    assert np.abs(np.array(sigmoid(x)) - exact).max() < 2.5e-7
    error = np.abs(np.array(silu(x)) - exact * np.array(x).astype(np.float64))
    assert (error / np.maximum(1.0, np.abs(np.array(x)))).max() < 2.5e-7
    near = np.abs(np.array(x)) < 4
    assert error[near].mean() < 8e-8


def test_silu_of_extremes():
    x = mx.array([0.0, 1e30, -1e30, -200.0, 200.0])
    np.testing.assert_allclose(
        np.array(functional.silu(x)), [0.0, 1e30, 0.0, 0.0, 200.0], atol=1e-6
    )
    slope = mx.grad(lambda x: mx.sum(functional.silu(x)))(x)
    np.testing.assert_allclose(np.array(slope), [0.5, 1.0, 0.0, 0.0, 1.0], atol=1e-6)
