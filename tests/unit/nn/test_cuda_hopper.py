"""The kernels for Hopper's tensor cores against plain operations, and what goes through them.

The kernels need such an NVIDIA GPU:
``MLX_TRM_TEST_DEVICE=gpu python -m pytest tests/unit/nn/test_cuda_hopper.py``.
"""

import mlx.core as mx
import numpy as np
import pytest
from helpers.rounding import check, distance, exact_attention, normal

from mlx_trm.nn import fused
from mlx_trm.nn.cuda import kernels as cuda
from mlx_trm.nn.cuda import nvrtc
from mlx_trm.nn.cuda.hopper import long_attention as lengths
from mlx_trm.nn.cuda.hopper import mlp_t_wgmma as halves
from mlx_trm.nn.cuda.hopper import swiglu_product as products
from mlx_trm.nn.cuda.hopper.long_attention import long_attention_fits
from mlx_trm.nn.cuda.hopper.swiglu_product import swiglu_product, swiglu_product_fits
from mlx_trm.nn.functional import rope_tables
from mlx_trm.nn.gating import gate_halves

on_hopper = pytest.mark.skipif(
    not cuda.usable(mx.bfloat16) or cuda.architecture() != "sm_90",
    reason="needs an NVIDIA GPU of the Hopper generation",
)


@on_hopper
@pytest.mark.parametrize(
    "rows, size, inner",
    [(4096, 512, 1536), (16421, 256, 768), (20001, 512, 1536), (5000, 64, 96)],
)
def test_swiglu_product(rows, size, inner):
    x = normal(rows, size)
    gate_up = (normal(2 * inner, size) * size**-0.5).astype(mx.bfloat16)
    assert swiglu_product_fits(rows, size, inner, x.dtype)
    # Sums of the same products in another order round the other way once in a while: a gate, what
    # it is multiplied by, and their product, which of 30 million numbers are all three for some.
    check(swiglu_product(x, gate_up), gate_halves(x @ gate_up.T, -1, None), units=3)


@pytest.mark.parametrize(
    "rows, size, inner, architecture, fits",
    [
        (4096, 512, 1536, "sm_90", True),
        (4095, 512, 1536, "sm_90", False),
        (1 << 31, 512, 1536, "sm_90", False),
        (4096, 64, 96, "sm_90", True),
        (4096, 96, 96, "sm_90", False),
        (4096, 576, 1536, "sm_90", False),
        (4096, 512, 100, "sm_90", False),
        (4096, 512, 1536, "sm_80", False),
        (4096, 512, 1536, "sm_100", False),
    ],
)
def test_which_products_have_a_kernel(rows, size, inner, architecture, fits, monkeypatch):
    monkeypatch.setattr(products, "usable", lambda dtype: dtype == mx.bfloat16)
    monkeypatch.setattr(products, "architecture", lambda: architecture)
    monkeypatch.setattr(products, "shared_limit", lambda: 227 * 1024)
    monkeypatch.setattr(products, "compiles", lambda *what: True)
    assert swiglu_product_fits(rows, size, inner, mx.bfloat16) == fits
    assert not swiglu_product_fits(rows, size, inner, mx.float32)
    monkeypatch.setattr(products, "compiles", lambda *what: False)
    assert not swiglu_product_fits(rows, size, inner, mx.bfloat16)


def in_parts(pieces, rows, numbers):
    """Rows of a matrix from pieces of 8 numbers, all rows' first ones, then their second ones."""
    return pieces.reshape(-1, rows, 8).transpose(1, 0, 2).reshape(rows, numbers)


@pytest.mark.parametrize("length, inner", [(97, 64), (65, 32), (104, 96), (80, 64)])
def test_weights_lie_as_the_wgmma_kernels_read_them(length, inner):
    gate_up = np.arange(2 * inner * length).reshape(2 * inner, length) + 1
    down = np.arange(length * inner).reshape(length, inner) + 1
    steps = -(-length // 16) * 16
    weights = mx.array(gate_up), mx.array(down)
    first, second = (np.array(array) for array in halves._for_columns(*weights))
    again, turned, third = (np.array(array) for array in halves._for_gradient(*weights))
    assert np.array_equal(again, first)
    for part in range(inner // 32):
        units = slice(32 * part, 32 * part + 32)
        gates, ups = gate_up[:inner][units], gate_up[inner:][units]
        rows = in_parts(first[part], 64, steps)
        assert np.array_equal(rows[:, :length], np.concatenate([gates, ups]))
        assert not rows[:, length:].any()
        rows = in_parts(second[part], 104, 32)
        assert np.array_equal(rows[:length], down[:, units]) and not rows[length:].any()
        rows = in_parts(turned[part], 32, steps)
        assert np.array_equal(rows[:, :length], down[:, units].T) and not rows[:, length:].any()
        rows = in_parts(third[part], 104, 64)
        assert np.array_equal(rows[:length], np.concatenate([gates, ups]).T)
        assert not rows[length:].any()


@pytest.mark.parametrize(
    "rows, length, size, inner, architecture, fits",
    [
        (768, 97, 512, 512, "sm_90", True),
        (32, 97, 512, 512, "sm_90", True),
        (31, 97, 512, 512, "sm_90", False),
        (768, 64, 512, 512, "sm_90", False),
        (768, 65, 512, 64, "sm_90", True),
        (768, 105, 512, 512, "sm_90", False),
        (768, 97, 96, 512, "sm_90", False),
        (768, 97, 512, 48, "sm_90", False),
        (1 << 22, 97, 512, 512, "sm_90", False),
        (768, 97, 512, 512, "sm_80", False),
        (768, 97, 512, 512, "sm_100", False),
    ],
)
def test_which_position_halves_go_by_wgmma(
    rows, length, size, inner, architecture, fits, monkeypatch
):
    monkeypatch.setattr(halves, "architecture", lambda: architecture)
    monkeypatch.setattr(halves, "shared_limit", lambda: 227 * 1024)
    monkeypatch.setattr(halves, "compiles", lambda *what: True)
    assert halves.mlp_t_wgmma_fits(rows, length, size, inner) == fits
    monkeypatch.setattr(
        halves, "compiles", lambda file, target, defines: "BACK" not in str(defines)
    )
    assert not halves.mlp_t_wgmma_fits(rows, length, size, inner)


# For T = 97: a part of 112 x 64 and 104 x 32 numbers, 6 of them, and a tile of 112 rows of 72 for
# each group; for the gradient parts with 112 x 32 and 104 x 64 more, 4 of them, and two tiles.
def test_shared_memory_of_the_wgmma_kernels():
    part, tile = 112 * 64, 112 * 72
    assert halves.mlp_t_wgmma_bytes(97, 3, False) == 2 * (6 * (part + 3328) + 3 * tile) + 72
    gradient = 2 * (4 * (part + 112 * 32 + 6656) + 2 * 2 * tile) + 48
    assert halves.mlp_t_wgmma_bytes(97, 2, True) == gradient == 203824


def test_groups_of_a_block_fill_the_last_round(monkeypatch):
    monkeypatch.setattr(halves, "multiprocessors", lambda: 132)
    found = [halves._groups(tiles, 3) for tiles in (8, 132, 256, 512, 1536, 6144)]
    assert found == [1, 1, 2, 2, 3, 3]
    assert [halves._groups(tiles, 2) for tiles in (8, 132, 256, 512, 6144)] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("keep, norm_eps", [(False, None), (True, None), (False, 1e-5)])
def test_only_what_has_no_gradient_goes_through_the_product(keep, norm_eps, monkeypatch):
    called = []

    def product(x, gate_up):
        called.append(x.shape)
        return gate_halves(x.reshape(-1, 8) @ gate_up.T, -1, None)

    x, gate_up, down = (mx.random.normal(shape) for shape in ((2, 3, 8), (32, 8), (8, 16)))
    want = fused.feature_mlp(x, gate_up, down, 1e-5, keep, norm_eps)
    monkeypatch.setattr(fused, "swiglu_product_fits", lambda *sizes: True)
    monkeypatch.setattr(fused, "swiglu_product", product)
    have = fused.feature_mlp(x, gate_up, down, 1e-5, keep, norm_eps)
    assert mx.array_equal(have, want)
    assert called == ([] if keep or norm_eps else [(2, 3, 8)])


def scaled(length, kind):
    """What q, k and v are multiplied by: rows that grow, so that each key outdoes those before it,
    or fall, or large numbers, whose softmax is almost one of a kind."""
    if kind in ("growing", "falling"):
        ends = (0.1, 6.0) if kind == "growing" else (6.0, 0.1)
        return mx.linspace(*ends, length).reshape(1, length, 1, 1, 1)
    return mx.array([12.0, 12.0, 1.0]).reshape(1, 1, 3, 1, 1) if kind == "large" else 1.0


def attended(qkv, angles, keep=False):
    cos, sin = angles or (mx.zeros((1,)), mx.zeros((1,)))
    return fused._attention_kernel(angles is not None, False)(qkv, cos, sin, keep=keep)[0]


@on_hopper
@pytest.mark.parametrize("kind", ["plain", "growing", "falling", "large"])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("rows, length, heads", [(2, 916, 8), (3, 129, 2), (1, 64, 1), (2, 300, 8)])
def test_long_attention(rows, length, heads, rotated, kind):
    qkv = (mx.random.normal((rows, length, 3, heads, 64)) * scaled(length, kind)).astype(
        mx.bfloat16
    )
    angles = rope_tables(64, length, 10000.0) if rotated else None
    assert long_attention_fits(qkv, rotated, False)
    have, exact = attended(qkv, angles), exact_attention(qkv, angles)
    plain = fused._long_attention(qkv, angles, True).reshape(have.shape)
    # MLX's own, which rounds at the same places, is about as far from float32.
    assert distance(have, exact) <= 1.25 * distance(plain, exact)
    assert mx.array_equal(attended(qkv, angles), have)
    if rotated:
        return
    # Exponentials and results are rounded to 8 bits, each by 1 / 256 of it at most; the rest is
    # float32, of which fast exponentials and long sums take some units. (In float64 by NumPy with
    # these two roundings the worst of these cases reaches 0.9 of it.)
    of_sizes = mx.concatenate([qkv[:, :, :2], mx.abs(qkv[:, :, 2:])], axis=2)
    bound = (exact_attention(of_sizes, None) + mx.abs(exact)) / 256
    assert mx.all(mx.abs(have.astype(mx.float32) - exact) <= 1.01 * bound + 1e-6).item()


@on_hopper
@pytest.mark.parametrize("kind", ["plain", "growing", "falling", "large"])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(
    "rows, length, heads", [(2, 916, 8), (3, 385, 2), (1, 512, 1), (9, 448, 4), (40, 480, 8)]
)
def test_the_gradient_of_long_attention(rows, length, heads, rotated, kind):
    qkv = (mx.random.normal((rows, length, 3, heads, 64)) * scaled(length, kind)).astype(
        mx.bfloat16
    )
    d_out = normal(rows, length, heads, 64)
    angles = rope_tables(64, length, 10000.0) if rotated else None
    assert long_attention_fits(qkv, rotated, True)

    def gradient(attend, qkv, d_out):
        return mx.vjp(lambda x: attend(x, angles).reshape(d_out.shape), [qkv], [d_out])

    (out,), (have,) = gradient(lambda *what: attended(*what, keep=True), qkv, d_out)
    assert mx.array_equal(out, attended(qkv, angles))
    # Keys and values are added up in one order; only the queries' sums are not.
    again = gradient(lambda *what: attended(*what, keep=True), qkv, d_out)[1][0]
    assert mx.array_equal(again[:, :, 1:], have[:, :, 1:])
    _, (plain,) = gradient(lambda *what: fused._long_attention(*what, True), qkv, d_out)
    exact = gradient(exact_attention, qkv.astype(mx.float32), d_out.astype(mx.float32))[1][0]
    for part in range(3):
        far, other = (distance(x[:, :, part], exact[:, :, part]) for x in (have, plain))
        # Values are rounded where cuDNN's are, as in the forward pass. For queries and keys a share
        # is rounded before it meets what is rounded next, by as many bits: the distance may grow
        # by the square root of 2 where cuDNN keeps it in float32; and the same room as above.
        assert far <= 1.25 * (1 if part == 2 else 2**0.5) * other, (part, far, other)


@on_hopper
@pytest.mark.parametrize("row", [7, 399])
def test_nan_stays_nan_in_the_gradient_of_long_attention(row):
    """Where it belongs, and nowhere else; what lies behind the last row is that row once more."""
    qkv, d_out = normal(2, 400, 3, 2, 64), normal(2, 400, 2, 64)
    d_out[1, row, 1, 3] = float("nan")
    cos = sin = mx.zeros((1,))
    results = lengths.long_attention(qkv, cos, sin, False, True)
    found = mx.isnan(lengths.long_attention_gradient(qkv, cos, sin, False, results, d_out))
    expected = np.zeros(found.shape, dtype=bool)
    expected[1, row, 0, 1] = expected[1, :, 1, 1] = expected[1, :, 2, 1, 3] = True
    assert np.array_equal(np.array(found), expected)


@on_hopper
def test_nan_stays_nan_in_long_attention():
    qkv = normal(2, 200, 3, 2, 64)
    for part in range(3):
        spoilt = mx.array(qkv)
        spoilt[1, 7, part, 1, 3] = float("nan")
        found = mx.isnan(attended(spoilt, None))
        where = found[1, 7, 1] if part == 0 else found[1, :, 1, 3 if part == 2 else slice(None)]
        assert mx.all(where).item()
        assert not mx.any(found[0]).item() and not mx.any(found[1, :, 0]).item()


def for_hopper(monkeypatch, architecture="sm_90", compiles=True):
    """Say that there is such a GPU, whose kernels compile or do not."""
    monkeypatch.setattr(lengths, "usable", lambda dtype: dtype == mx.bfloat16)
    monkeypatch.setattr(lengths, "architecture", lambda: architecture)
    monkeypatch.setattr(lengths, "shared_limit", lambda: 227 * 1024)
    monkeypatch.setattr(lengths, "compiles", lambda *what: compiles)


@pytest.mark.parametrize(
    "shape, architecture, fits, gradient_fits",
    [
        ((1, 916, 3, 8, 64), "sm_90", True, True),
        ((1, 385, 3, 1, 64), "sm_90", True, True),
        ((1, 384, 3, 1, 64), "sm_90", True, False),
        ((1, 64, 3, 1, 64), "sm_90", True, False),
        ((1, 63, 3, 1, 64), "sm_90", False, False),
        ((1, 916, 3, 8, 32), "sm_90", False, False),
        ((cuda.GRID, 916, 3, 8, 64), "sm_90", True, False),
        ((cuda.GRID + 1, 64, 3, 1, 64), "sm_90", False, False),
        ((1, 916, 3, 8, 64), "sm_80", False, False),
        ((1, 916, 3, 8, 64), "sm_100", False, False),
    ],
)
def test_which_attention_has_a_kernel(shape, architecture, fits, gradient_fits, monkeypatch):
    for_hopper(monkeypatch, architecture)
    narrow, wide = mx.zeros(shape, dtype=mx.bfloat16), mx.zeros(shape)
    assert long_attention_fits(narrow, True, False) == fits
    assert long_attention_fits(narrow, True, True) == gradient_fits
    assert not long_attention_fits(wide, True, False) and not long_attention_fits(wide, True, True)
    monkeypatch.setattr(lengths, "shared_limit", lambda: 227 * 1024 - 1)
    assert long_attention_fits(narrow, True, False) == fits
    assert not long_attention_fits(narrow, True, True)
    for_hopper(monkeypatch, architecture, compiles=False)
    assert not long_attention_fits(narrow, True, False)


def test_a_gradient_kernel_that_does_not_compile_leaves_training_to_mlx(monkeypatch):
    for_hopper(monkeypatch)
    monkeypatch.setattr(lengths, "compiles", lambda file, *what: "gradient" not in file)
    qkv = mx.zeros((1, 916, 3, 8, 64), dtype=mx.bfloat16)
    assert long_attention_fits(qkv, True, False) and not long_attention_fits(qkv, True, True)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fits", [False, True])
def test_long_attention_goes_through_its_kernels_where_they_fit(fits, keep, monkeypatch):
    """By plain operations in their place, so what is computed must not change."""
    called = []

    def forward(qkv, cos, sin, rotated, keep):
        called.append(("forward", rotated, keep))
        out = fused._long_attention(qkv, (cos, sin), False).reshape(2, 130, 2, 32)
        return [out, out, out, out] if keep else [out]

    def gradient(qkv, cos, sin, rotated, results, d_out):
        called.append(("gradient", rotated, len(results)))

        def plain(x):
            return fused._long_attention(x, (cos, sin), True).reshape(d_out.shape)

        return mx.vjp(plain, [qkv], [d_out])[1][0]

    x, qkv, out = (mx.random.normal(shape) for shape in ((2, 130, 64), (192, 64), (64, 64)))
    angles, d_out = rope_tables(32, 130, 10000.0), mx.random.normal((2, 130, 64))

    def computed():
        def attend(x):
            return fused.attention(x, qkv, out, 2, angles, 1e-5, keep)

        return mx.vjp(attend, [x], [d_out])[1][0] if keep else attend(x)

    want = computed()
    monkeypatch.setattr(lengths, "long_attention_fits", lambda qkv, rotated, keep: fits)
    monkeypatch.setattr(lengths, "long_attention", forward)
    monkeypatch.setattr(lengths, "long_attention_gradient", gradient)
    fused._attention_kernel.cache_clear()
    try:
        assert mx.allclose(computed(), want, rtol=1e-5, atol=1e-5).item()
    finally:
        fused._attention_kernel.cache_clear()
    expected = [("forward", True, keep)] + [("gradient", True, 4)] * keep
    assert called == (expected if fits else [])


def test_a_kernel_that_does_not_compile_is_said_once(monkeypatch, caplog):
    def refuse(*what):
        raise nvrtc.NvrtcError("no such instruction")

    monkeypatch.setattr(nvrtc, "binary", refuse)
    nvrtc.compiles.cache_clear()
    try:
        for _ in range(3):
            assert not nvrtc.compiles("long_attention.cu", "sm_90a", (("T", 916),))
        assert [record.message for record in caplog.records] == [
            "long_attention.cu for sm_90a does not compile, it is done without: no such instruction"
        ]
    finally:
        nvrtc.compiles.cache_clear()
