"""The CUDA kernels against plain operations on that GPU, and how compiled kernels are kept.

The kernels need an NVIDIA GPU:
``MLX_TRM_TEST_DEVICE=gpu python -m pytest tests/unit/nn/test_cuda.py``.
"""

import os
import struct

import mlx.core as mx
import pytest
from helpers.rounding import check, distance, exact_attention, normal

from mlx_trm.nn import fused
from mlx_trm.nn.cuda import gate_norm
from mlx_trm.nn.cuda import kernels as cuda
from mlx_trm.nn.cuda import nvrtc
from mlx_trm.nn.cuda import position_mlp as position_kernels
from mlx_trm.nn.cuda.hopper import mlp_t_wgmma
from mlx_trm.nn.functional import rms_norm, rope_tables, silu
from mlx_trm.nn.residual import add_norm_sum, residual_norm
from mlx_trm.training.nonfinite import all_finite

on_cuda = pytest.mark.skipif(
    not cuda.usable(mx.bfloat16), reason="needs an NVIDIA GPU with MLX's CUDA backend"
)


def choose_kernel(name, monkeypatch, sizes):
    """Have the position half go through the kernel of that name, or skip where it does not fit."""
    if name == "mlp_t":
        monkeypatch.setattr(position_kernels, "mlp_t_wgmma_fits", lambda *sizes: False)
        assert position_kernels.position_mlp_fits(*sizes)
        return
    _, length, size, inner = sizes
    if not 64 < length <= 104 or size % 64 or inner % 32 or cuda.architecture() != "sm_90":
        pytest.skip("not of these sizes, or not on this GPU")
    monkeypatch.setattr(mlp_t_wgmma, "_LEAST_TILES", 0)
    assert mlp_t_wgmma.mlp_t_wgmma_fits(*sizes)


def exact_position_mlp(x, gate_up, down, norm_eps):
    """x + down(gate norm), in float32 throughout."""
    x, gate_up, down = (part.astype(mx.float32) for part in (x, gate_up, down))
    gate, up = mx.split(gate_up @ x, 2, axis=-2)
    return x + down @ (mx.sigmoid(gate) * rms_norm(gate * up, norm_eps, -2))


@on_cuda
@pytest.mark.parametrize(
    "rows, length, size, inner",
    [
        (5, 97, 512, 512),
        (3, 17, 64, 64),
        (2, 90, 64, 96),
        (2, 33, 96, 64),
        (40, 97, 512, 512),
        (300, 97, 512, 512),
        (300, 96, 64, 64),
        (2, 104, 256, 64),
        (1, 65, 64, 64),
        (201, 65, 64, 192),
    ],
)
@pytest.mark.parametrize("norm_eps", [None, 1e-5])
@pytest.mark.parametrize("kernel", ["mlp_t", "mlp_t_wgmma"])
def test_position_mlp(kernel, rows, length, size, inner, norm_eps, monkeypatch):
    if kernel == "mlp_t_wgmma" and norm_eps is not None:
        pytest.skip("a gate norm goes through the other kernel")
    choose_kernel(kernel, monkeypatch, (rows, length, size, inner))
    x = normal(rows, length, size)
    gate_up, down = 0.1 * normal(2 * inner, length), 0.1 * normal(length, inner)
    out, total = position_kernels.position_mlp(x, gate_up, down, 1e-5, True, norm_eps)
    gate, up = mx.split(gate_up @ x, 2, axis=-2)
    if norm_eps is None:
        h = silu(gate) * up
    else:
        h = mx.sigmoid(gate) * rms_norm(gate * up, norm_eps, -2)
    want = x + down @ h
    # The products before are rounded too, and their sums taken in another order.
    largest = mx.max(mx.abs(want)).item()
    # A gate norm's scale waits for the sums, so numbers that plain operations round before it are
    # rounded without it: about half of the results differ by one unit, and are no less exact.
    share = 0.1 if norm_eps is None else 0.6
    check(total, want, share, largest)
    check(out, rms_norm(want, 1e-5, -2), share, largest)
    if norm_eps is not None:
        exact = exact_position_mlp(x, gate_up, down, norm_eps)
        assert distance(total, exact) <= distance(want, exact)
    assert mx.array_equal(
        position_kernels.position_mlp(x, gate_up, down, 1e-5, False, norm_eps)[0], out
    )


@on_cuda
@pytest.mark.parametrize(
    "rows, length, size, inner",
    [
        (1, 97, 512, 512),
        (3, 17, 64, 64),
        (2, 8, 32, 64),
        (2, 90, 64, 96),
        (2, 33, 96, 64),
        (2, 96, 64, 64),
        (2, 104, 256, 64),
        (1, 65, 128, 64),
        (64, 97, 512, 512),
        (64, 93, 512, 256),
        (201, 65, 64, 128),
        (300, 97, 512, 512),
    ],
)
@pytest.mark.parametrize("kernel", ["mlp_t", "mlp_t_wgmma"])
def test_gradient_of_the_position_mlp(kernel, rows, length, size, inner, monkeypatch):
    """No further from float32 throughout than that of plain operations in bfloat16."""
    choose_kernel(kernel, monkeypatch, (rows, length, size, inner))
    primals = normal(rows, length, size), normal(2 * inner, length), normal(length, inner)
    x, gate_up, down = (part.astype(mx.float32) * by for part, by in zip(primals, (1, 0.1, 0.1)))
    weight = mx.random.normal(x.shape)

    def loss(x, gate_up, down):
        out = fused.position_mlp(x.astype(mx.bfloat16), gate_up, down, 1e-5, True)
        return mx.sum(out.astype(mx.float32) * weight)

    def exact_loss(x, gate_up, down):
        gate, up = mx.split(gate_up @ x, 2, axis=-2)
        return mx.sum(rms_norm(x + down @ (gate * mx.sigmoid(gate) * up), 1e-5, -2) * weight)

    called, gradient = [], position_kernels.position_mlp_gradient
    monkeypatch.setattr(
        position_kernels,
        "position_mlp_gradient",
        lambda *arguments: called.append(1) or gradient(*arguments),
    )
    by_kernel = mx.grad(loss, (0, 1, 2))(x, gate_up, down)
    mx.eval(by_kernel)
    monkeypatch.setattr(position_kernels, "position_mlp_fits", lambda *sizes: False)
    plain = mx.grad(loss, (0, 1, 2))(x, gate_up, down)
    exact = mx.grad(exact_loss, (0, 1, 2))(x, gate_up, down)
    assert called == [1]
    for have, other, want in zip(by_kernel, plain, exact):
        assert have.shape == want.shape
        assert distance(have, want) <= 1.02 * distance(other, want)
        assert distance(other, want) <= 0.01 * distance(want, mx.zeros_like(want))


@on_cuda
@pytest.mark.parametrize("axis", [-1, -2])
def test_swiglu(axis):
    gate_up = normal(3, 24, 32) if axis == -1 else normal(3, 32, 24)
    gate, up = mx.split(gate_up, 2, axis=axis)
    check(cuda.swiglu(gate_up, axis), silu(gate) * up)
    d_h = normal(*gate.shape)

    def h(gate_up):
        gate, up = mx.split(gate_up.astype(mx.float32), 2, axis=axis)
        return gate * mx.sigmoid(gate) * up

    want = mx.vjp(h, [gate_up], [d_h.astype(mx.float32)])[1][0]
    have, again = cuda.swiglu_gradient(gate_up, d_h, axis)
    check(again, silu(gate) * up)
    # The kernel rounds d_h * up and silu(gate) as PyTorch does.
    assert mx.max(mx.abs(have - want)).item() <= 0.02 * mx.max(mx.abs(want)).item()


@on_cuda
@pytest.mark.parametrize("size", [576, 1728, 1536, 64, 1032])
@pytest.mark.parametrize("halves", [False, True])
def test_gate_norm(size, halves):
    gate, up, d_out = (normal(3, 29, size) for _ in range(3))
    parts = [mx.concatenate([gate, up], axis=-1)] if halves else [gate, up]

    def plain(gate, up):
        product = gate * up
        return mx.sigmoid(gate) * product * mx.rsqrt(mx.mean(product**2, -1, keepdims=True) + 1e-5)

    wide = [part.astype(mx.float32) for part in (gate, up, d_out)]
    want, slopes = mx.vjp(plain, wide[:2], wide[2:])
    check(gate_norm.gate_norm(parts, 1e-5), want[0].astype(mx.bfloat16))
    found = gate_norm.gate_norm_gradient(parts, d_out, 1e-5, again=True)
    check(found.pop(), want[0].astype(mx.bfloat16))
    assert len(gate_norm.gate_norm_gradient(parts, d_out, 1e-5)) == len(parts)
    for have, want in zip(mx.split(found[0], 2, axis=-1) if halves else found, slopes):
        error = mx.max(mx.abs(have - want)).item()
        assert error <= 0.01 * mx.max(mx.abs(want)).item()


@on_cuda
@pytest.mark.parametrize("inner, size", [(512, 512), (24, 64), (256, 576)])
def test_gate_norm_over_positions(inner, size):
    gate_up, d_out = normal(3, 2 * inner, size), normal(3, inner, size)
    assert gate_norm.gate_norm_positions_fits(gate_up.shape)

    def plain(gate_up):
        gate, up = mx.split(gate_up, 2, axis=-2)
        product = gate * up
        return mx.sigmoid(gate) * product * mx.rsqrt(mx.mean(product**2, -2, keepdims=True) + 1e-5)

    wide = [part.astype(mx.float32) for part in (gate_up, d_out)]
    (want,), (slope,) = mx.vjp(plain, wide[:1], wide[1:])
    check(gate_norm.gate_norm_positions(gate_up, 1e-5), want.astype(mx.bfloat16))
    have, again = gate_norm.gate_norm_positions_gradient(gate_up, d_out, 1e-5)
    check(again, want.astype(mx.bfloat16))
    assert mx.max(mx.abs(have - slope)).item() <= 0.01 * mx.max(mx.abs(slope)).item()


@on_cuda
@pytest.mark.parametrize("size", [576, 64, 520])
def test_residual_norm(size):
    x, y, d_out = (normal(3, 29, size) for _ in range(3))

    def plain(x, y):
        total = x + y
        return total * mx.rsqrt(mx.mean(total**2, -1, keepdims=True) + 1e-5)

    wide = [part.astype(mx.float32) for part in (x, y, d_out)]
    want, slopes = mx.vjp(plain, wide[:2], wide[2:])
    have, found = mx.vjp(lambda x, y: residual_norm(x, y, 1e-5, True), [x, y], [d_out])
    for one, other in zip([*have, *found], [*want, *slopes]):
        assert mx.max(mx.abs(one - other)).item() <= 0.02 * mx.max(mx.abs(other)).item()
    assert mx.array_equal(residual_norm(x, y, 1e-5, False), have[0])


@on_cuda
def test_norms():
    x, y = normal(7, 97, 512), normal(7, 97, 512)
    out, total = cuda.add_norm(x, y, 1e-5, True)
    check(total, x + y)
    check(out, rms_norm(x + y, 1e-5))
    for axis, have in (
        (-1, cuda.norm_gradient(x, y, 1e-5)),
        (-2, cuda.position_norm_gradient(x, y, 1e-5)),
    ):
        wide = [x.astype(mx.float32), y.astype(mx.float32)]
        want = mx.vjp(lambda s, a=axis: rms_norm(s, 1e-5, a), wide[:1], wide[1:])[1][0]
        check(have, want.astype(mx.bfloat16))


@on_cuda
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("size", [512, 256, 2048, 576, 128, 32, 520])
def test_a_norm_and_what_is_added_to_it(size, keep):
    """Bit for bit what the kernel of the norm gives, rounded, and one more sum, rounded.

    Of the smaller sizes some lanes of a warp have nothing.
    """
    x, y, following = normal(3, 29, size), normal(3 * 29, size), normal(3, 29, size)
    total, norm = add_norm_sum(x, y, following, 1e-5, keep, size % 256 == 0)
    want = cuda.add_norm(x, y, 1e-5, False)[0]
    assert want.shape == total.shape == x.shape
    check(want, rms_norm(x + y.reshape(x.shape), 1e-5))
    assert mx.array_equal(total, want + following)
    assert mx.array_equal(norm, want) if keep else norm is None


@pytest.mark.parametrize("following", [mx.ones((1, 3, 256)), mx.ones((2, 3, 256))])
def test_what_is_not_alike_is_added_by_plain_operations(following):
    """A kernel would read past the end of the first, and the second's numbers wrongly."""
    x, y = normal(2, 3, 256), normal(2, 3, 256)
    total, norm = add_norm_sum(x, y, following, 1e-5, True, True)
    assert mx.array_equal(total, norm + following) and total.dtype == mx.float32


@pytest.mark.parametrize("kind", ["finite", "nan", "inf", "-inf"])
@pytest.mark.parametrize("which, at", [(0, 0), (0, -1), (1, 3), (2, 0), (2, -1)])
def test_what_is_not_finite_is_found(which, at, kind):
    """By one kernel on an NVIDIA GPU, by sums elsewhere; numbers may be large or none."""
    arrays = [mx.full((size,), 1e30) for size in (5, 300_001, 1)] + [mx.zeros((0, 4))]
    if kind != "finite":
        arrays[which][at] = float(kind)
    assert all_finite(arrays).item() == (kind == "finite")
    assert mx.compile(lambda *parts: all_finite(parts))(*arrays).item() == (kind == "finite")
    narrow = [array.astype(mx.bfloat16) for array in arrays]
    assert all_finite(narrow).item() == (kind == "finite")
    assert all_finite([]).item()
    many = [mx.zeros((2,)) for _ in range(300)] + arrays
    assert all_finite(many).item() == (kind == "finite")


@on_cuda
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("length, size", [(97, 64), (17, 16), (128, 32), (200, 64), (916, 64)])
def test_attention(length, size, rotated):
    qkv, d_out = normal(2, length, 3, 4, size), normal(2, length, 4, size)
    angles = rope_tables(size, length, 10000.0) if rotated else None

    def ours(qkv):
        if cuda.attention_fits(2, length, size):
            cos, sin = angles or (mx.zeros((1,)), mx.zeros((1,)))
            return fused._attention_kernel(rotated, True)(qkv, cos, sin, keep=True)[0]
        return fused._long_attention(qkv, angles, True).reshape(d_out.shape)

    (have,), (have_gradient,) = mx.vjp(ours, [qkv], [d_out])
    wide = [qkv.astype(mx.float32)], [d_out.astype(mx.float32)]
    (want,), (want_gradient,) = mx.vjp(lambda x: exact_attention(x, angles), *wide)
    # Operands and exponentials of 8 bits: 0.4 % of numbers around 1.
    assert mx.max(mx.abs(have - want)).item() <= 0.02
    assert mx.max(mx.abs(have_gradient - want_gradient)).item() <= 0.04


@pytest.mark.parametrize("rotated", [False, True])
def test_zeros_behind_the_queries_change_nothing(rotated, monkeypatch):
    """By plain operations, which heads of other sizes than the kernels' go through."""
    qkv = mx.random.normal((2, 100, 3, 2, 24))
    d_out = mx.random.normal((200, 48))
    angles = rope_tables(24, 100, 10000.0) if rotated else None

    def gradient():
        return mx.vjp(lambda x: fused._long_attention(x, angles, True), [qkv], [d_out])

    (want,), (want_gradient,) = gradient()
    padded = []
    real = fused._put_behind
    monkeypatch.setattr(
        fused, "_put_behind", lambda x, more: padded.append(more) or real(x, more or 28)
    )
    (have,), (have_gradient,) = gradient()
    assert padded and mx.array_equal(have, want)
    assert mx.allclose(have_gradient, want_gradient, atol=1e-6).item()


# How machine code is kept -------------------------------------------------------------------------


def test_without_an_nvidia_gpu_nothing_goes_through_the_kernels():
    if mx.default_device().type == mx.DeviceType.cpu:
        assert not cuda.usable(mx.bfloat16)
    assert not cuda.usable(mx.float32)


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """Stand in for NVRTC, which is not installed everywhere; the list holds what it was asked."""
    asked = []

    class Library:
        @staticmethod
        def nvrtcVersion(major, minor):
            major._obj.value, minor._obj.value = 13, 0

    def compiled(_, source, architecture):
        asked.append((source, architecture))
        return f"code {len(asked)}".encode()

    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "library", Library)
    monkeypatch.setattr(nvrtc, "_compile", compiled)
    nvrtc._binary.cache_clear()
    yield asked
    nvrtc._binary.cache_clear()


def test_code_is_compiled_once_a_machine(compilations, tmp_path):
    assert nvrtc.binary("norm.cu", "sm_90", {"SIZE": 512}) == b"code 1"
    nvrtc._binary.cache_clear()  # as in a new process
    assert nvrtc.binary("norm.cu", "sm_90", {"SIZE": 512}) == b"code 1"
    assert nvrtc.binary("norm.cu", "sm_90", {"SIZE": 256}) == b"code 2"
    assert nvrtc.binary("norm.cu", "sm_80", {"SIZE": 512}) == b"code 3"
    assert len(compilations) == 3 and b"#define SIZE 512\n" in compilations[0][0]
    files = [path.name for path in (tmp_path / "cache" / "cuda").iterdir()]
    assert len(files) == 3 and all(name.endswith(".cubin") for name in files)


@pytest.mark.parametrize("damage", [b"", b"code 1", b"x" * 50])
def test_damaged_code_is_compiled_again(compilations, tmp_path, damage):
    nvrtc.binary("rope.cu", "sm_90", {})
    (file,) = (tmp_path / "cache" / "cuda").iterdir()
    file.write_bytes(damage)
    nvrtc._binary.cache_clear()
    assert nvrtc.binary("rope.cu", "sm_90", {}) == b"code 2"
    nvrtc._binary.cache_clear()
    assert nvrtc.binary("rope.cu", "sm_90", {}) == b"code 2" and len(compilations) == 2


def test_a_cache_that_cannot_be_written_does_no_harm(compilations, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    assert nvrtc.binary("rope.cu", "sm_90", {}) == b"code 1"
    assert os.listdir(tmp_path) == ["cache"] and len(compilations) == 1


# Bytes of the arrays in mlp_t.cu and attention.cu, added up by hand: for T = 97 and 256 columns
# a tile of 104 rows of 264 numbers and 3 stages of 64 rows of 104 and 104 rows of 40; for the
# gradient two tiles, of 48 rows at least, and 2 stages.
def test_shared_memory_is_what_the_kernels_use():
    stage = 64 * 104 + 104 * 40
    needed = position_kernels.position_mlp_bytes
    assert needed(97, 256) == 2 * (104 * 264 + 3 * stage) == 119808
    assert needed(97, 128) == 93184
    assert needed(97, 64, True) == 2 * (2 * 104 * 72 + 2 * stage) == 73216
    stage = 64 * 24 + 24 * 40
    assert needed(17, 64, True) == 2 * (2 * 48 * 72 + 2 * stage)
    assert cuda.attention_bytes(97, 64, False) == 2 * 3 * 112 * 72
    assert cuda.attention_bytes(97, 64, True) == 2 * (4 * 112 * 72 + 112 * 120) + 2 * 4 * 112


@pytest.mark.parametrize(
    "name, warps, attends", [("sm_90", 8, True), ("sm_80", 8, True), ("sm_89", 4, False)]
)
def test_kernels_are_used_where_a_block_s_memory_suffices(monkeypatch, name, warps, attends):
    monkeypatch.setattr(cuda, "architecture", lambda: name)
    assert position_kernels.position_mlp_fits(768, 97, 512, 512)
    monkeypatch.setattr(position_kernels, "multiprocessors", lambda: 132)
    found = [position_kernels._warps_and_tiles(rows, 97, 512) for rows in (1, 33, 34, 768)]
    assert found == [(4, 1), (4, 1), (4, 2), (warps, 2)]
    found = [position_kernels._gradient_warps(rows, 512) for rows in (1, 49, 50, 66, 67, 768)]
    assert found == [4, 4, 8, 8, 4, 4]
    assert [position_kernels._gradient_warps(1, size) for size in (64, 96)] == [4, 2]
    assert cuda.attention_fits(768, 97, 64) and cuda.attention_fits(768, 128, 64) == attends
    assert not position_kernels.position_mlp_fits(70000, 97, 512, 512)
    assert not cuda.attention_fits(70000, 97, 64)
    assert not cuda.position_norm_fits(70000, 97, 512)
    monkeypatch.setattr(cuda, "architecture", lambda: None)
    assert not position_kernels.position_mlp_fits(768, 97, 512, 512) and not cuda.attention_fits(
        768, 97, 64
    )


def test_floats_travel_as_their_bits():
    bits = cuda.float_bits(1e-5)
    assert struct.unpack("<f", struct.pack("<i", bits))[0] == pytest.approx(1e-5, rel=1e-7)


@pytest.mark.parametrize(
    "file",
    [
        "attention.cu",
        "finite.cu",
        "gating.cu",
        "hopper/long_attention.cu",
        "hopper/long_attention_gradient.cu",
        "hopper/mlp_t_wgmma.cu",
        "hopper/swiglu_product.cu",
        "mlp_t.cu",
        "norm.cu",
        "rope.cu",
    ],
)
def test_sources_are_in_the_package(file):
    source = nvrtc._source(file, (("SIZE", 64),))
    assert source.startswith("#define SIZE 64\n") and 'extern "C" __global__' in source
    assert source.count("typedef unsigned short bf16") == 1
    assert ("wgmma" in source) == file.startswith("hopper/")
