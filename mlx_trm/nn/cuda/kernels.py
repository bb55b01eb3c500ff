"""Hand-written CUDA kernels in bfloat16 for what MLX's own kernels leave slow.

Each function has a plain counterpart in :mod:`mlx_trm.nn.fused`, which is used on every other
device, dtype and size; ``MLX_TRM_CUDA_KERNELS=0`` asks for it everywhere. Measured:
docs/benchmarks.

Shape letters: B batch, T positions, D hidden, I inner size of a SwiGLU, h heads.
"""

import ctypes
import os
import struct
from functools import lru_cache
from typing import List, Optional, Sequence, Tuple

import mlx.core as mx

from mlx_trm.nn.cuda.nvrtc import binary, compiles, library
from mlx_trm.system.device import read_device_info

_THREADS = 256
# KiB of shared memory that a block may have, by architecture; on others, as far as is known, 99.
_SHARED_KIB = {80: 163, 87: 163, 90: 227, 100: 227, 103: 227}
# The most blocks along the second axis of a grid.
GRID = 65535


@lru_cache(maxsize=1)
def architecture() -> Optional[str]:
    """Give the GPU's architecture, such as ``sm_90``, where the kernels run on it; else None."""
    if os.environ.get("MLX_TRM_CUDA_KERNELS", "1") == "0":
        return None
    if not hasattr(mx.fast, "precompiled_cuda_kernel") or not mx.cuda.is_available():
        return None
    name = str(read_device_info(mx.gpu).get("architecture", "")).rstrip("af")
    number = name[len("sm_") :]
    if not name.startswith("sm_") or not number.isdigit() or int(number) < 80:
        return None
    # One file stands for all: where it does not compile, no kernel is used.
    if library() is None or not compiles("gating.cu", name, (("SWIGLU_FORWARD", 1),)):
        return None
    return name


def shared_limit() -> int:
    """Give the bytes of shared memory that a block may have; 0 where no kernel runs."""
    name = architecture()
    return 0 if name is None else 1024 * _SHARED_KIB.get(int(name[len("sm_") :]), 99)


@lru_cache(maxsize=1)
def multiprocessors() -> int:
    """Give how many multiprocessors the GPU has; MLX does not tell."""
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuDeviceGetAttribute(ctypes.byref(count), 16, 0) == 0:
            return count.value
    except (OSError, AttributeError):
        pass
    return 132  # of an H100


def usable(dtype: mx.Dtype) -> bool:
    """Whether arrays of this dtype go through these kernels on the default device."""
    return (
        dtype == mx.bfloat16
        and mx.default_device().type == mx.DeviceType.gpu
        and architecture() is not None
    )


def launch(  # pylint: disable=too-many-arguments,too-many-positional-arguments
    file: str,
    name: str,
    inputs: List[mx.array],
    shapes: Sequence[Tuple[int, ...]],
    scalars: List[int],
    blocks: Tuple[int, int],
    threads: int = _THREADS,
    defines: Optional[dict] = None,
    shared_memory: int = 0,
    dtypes: Sequence[mx.Dtype] = (),
    target: Optional[str] = None,
    init_value: Optional[float] = None,
) -> List[mx.array]:
    """Run a kernel of a file of this folder; its outputs are bfloat16 unless ``dtypes`` says so."""
    built_for = target or architecture() or ""
    outputs: List[mx.array] = mx.fast.precompiled_cuda_kernel(
        name=name,
        # One kernel alone, as MLX hashes its code at every launch: up to 0.4 microseconds a KiB.
        compiled_source=binary(file, built_for, {name.upper(): 1, **(defines or {})}),
        inputs=inputs,
        output_shapes=list(shapes),
        output_dtypes=list(dtypes) or [mx.bfloat16] * len(shapes),
        scalars=scalars,
        grid=(blocks[0] * threads, blocks[1], 1),
        threadgroup=(threads, 1, 1),
        shared_memory=shared_memory,
        init_value=init_value,
        ensure_row_contiguous=True,
        stream=mx.gpu,
    )
    return outputs


def float_bits(number: float) -> int:
    """Give a float32 as an integer: MLX 0.32 takes no floats as scalar arguments of a kernel."""
    bits: int = struct.unpack("<i", struct.pack("<f", number))[0]
    return bits


def swiglu_fits(shape: Tuple[int, ...], axis: int) -> bool:
    """Whether :func:`swiglu` takes gate and up of that shape, halves of ``axis``."""
    _, block, count = _halved(shape, axis)
    return block % 8 == 0 and 2 * count < 2**31


def swiglu(gate_up: mx.array, axis: int) -> mx.array:
    """silu(gate) * up, halves of ``axis`` (-1 or -2) of a bfloat16 array."""
    shape, block, count = _halved(gate_up.shape, axis)
    blocks = -(-count // (8 * _THREADS))
    scalars = [block, count]
    return launch("gating.cu", "swiglu_forward", [gate_up], [shape], scalars, (blocks, 1))[0]


def swiglu_gradient(gate_up: mx.array, d_h: mx.array, axis: int) -> List[mx.array]:
    """Give the gradient of gate_up, and h, computed again."""
    shape, block, count = _halved(gate_up.shape, axis)
    blocks = -(-count // (8 * _THREADS))
    shapes = [tuple(gate_up.shape), shape]
    arrays = [gate_up, d_h]
    return launch("gating.cu", "swiglu_backward", arrays, shapes, [block, count], (blocks, 1))


def _halved(shape: Tuple[int, ...], axis: int) -> Tuple[Tuple[int, ...], int, int]:
    halved = list(shape)
    halved[axis] //= 2
    block = halved[-1] if axis == -1 else halved[-1] * halved[-2]
    count = 1
    for size in halved:
        count *= size
    return tuple(halved), block, count


def norm_fits(size: int, whole_warps: bool) -> bool:
    """Whether :func:`add_norm` and :func:`norm_gradient` take rows of ``size`` numbers.

    Args:
        size: D.
        whole_warps: whether each lane of a warp shall have as many.
    """
    return size % (256 if whole_warps else 8) == 0 and size <= 2048


def add_norm(x: mx.array, y: mx.array, eps: float, keep_total: bool) -> List[mx.array]:
    """Give rms_norm(x + y) over the last axis, shaped as x, and x + y where kept, shaped as y."""
    shapes = [tuple(x.shape), tuple(y.shape)][: 1 + keep_total]
    return _over_rows("add_norm", [x, y], shapes, eps, {"KEEP": int(keep_total)})


def add_norm_sum(
    x: mx.array, y: mx.array, following: mx.array, eps: float, keep_norm: bool
) -> List[mx.array]:
    """Give rms_norm(x + y) plus ``following``, and the norm where it is kept, shaped as x."""
    shapes, arrays = [tuple(x.shape)] * (1 + keep_norm), [x, y, following]
    return _over_rows("add_norm_sum", arrays, shapes, eps, {"KEEP": int(keep_norm)})


def norm_gradient(total: mx.array, d_out: mx.array, eps: float) -> mx.array:
    """Give the gradient of ``total``, whose RMS norm over the last axis has the gradient d_out."""
    return _over_rows("norm_backward", [total, d_out], [tuple(total.shape)], eps, {})[0]


def _over_rows(
    name: str, arrays: List[mx.array], shapes: List[Tuple[int, ...]], eps: float, more: dict
) -> List[mx.array]:
    size = arrays[0].shape[-1]
    rows, defines = arrays[0].size // size, {"SIZE": size, **more}
    blocks, scalars = -(-rows // (_THREADS // 32)), [rows, float_bits(eps)]
    return launch("norm.cu", name, arrays, shapes, scalars, (blocks, 1), defines=defines)


def position_norm_fits(rows: int, positions: int, size: int) -> bool:
    """Whether :func:`position_norm_gradient` takes (``rows``, ``positions``, ``size``)."""
    return size % 64 == 0 and positions <= 256 and rows <= GRID


def position_norm_gradient(total: mx.array, d_out: mx.array, eps: float) -> mx.array:
    """The same as :func:`norm_gradient` over the positions of (B, T, D)."""
    count, positions, size = total.shape
    return launch(
        "norm.cu",
        "norm_backward_positions",
        [total, d_out],
        [(count, positions, size)],
        [size // 2, float_bits(eps)],
        (size // 64, count),
        defines={"POSITIONS": positions},
    )[0]


def rope_fits(head_dim: int) -> bool:
    """Whether :func:`rope` takes heads of ``head_dim`` numbers."""
    return head_dim % 16 == 0


def rope(qkv: mx.array, cos: mx.array, sin: mx.array, more: int) -> List[mx.array]:
    """Split qkv, (B, T, 3, h, D / h), and rotate its queries and keys.

    Args:
        qkv: bfloat16.
        cos: (T, D / h) float32; sin likewise.
        more: zero positions put behind the queries.

    Returns:
        q, (B, T + more, h, D / h), and k and v, each (B, T, h, D / h).
    """
    count, positions, _, heads, size = qkv.shape
    shapes = [(count, positions + more, heads, size), (count, positions, heads, size)]
    pairs = count * (positions + more) * heads * (size // 16)
    scalars = [positions, positions + more, heads, size // 2, pairs]
    blocks = (-(-pairs // _THREADS), 1)
    query, key = launch("rope.cu", "rope_forward", [qkv, cos, sin], shapes, scalars, blocks)
    return [query, key, qkv[:, :, 2]]


def rope_keys(qkv: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Give the rotated keys, (B, T, h, D / h), of what :func:`rope` takes."""
    count, positions, _, heads, size = qkv.shape
    pairs = count * positions * heads * (size // 16)
    scalars, blocks = [positions, heads, size // 2, pairs], (-(-pairs // _THREADS), 1)
    shapes = [(count, positions, heads, size)]
    return launch("rope.cu", "rope_keys", [qkv, cos, sin], shapes, scalars, blocks)[0]


def rope_gradient(
    d_query: mx.array, d_key: mx.array, d_value: mx.array, cos: mx.array, sin: mx.array
) -> mx.array:
    """Give the gradient of qkv, (B, T, 3, h, D / h), from those of :func:`rope`'s results."""
    count, padded, heads, size = d_query.shape
    positions = cos.shape[0]
    pairs = count * positions * heads * (size // 16)
    return launch(
        "rope.cu",
        "rope_backward",
        [d_query, d_key, d_value, cos, sin],
        [(count, positions, 3, heads, size)],
        [positions, padded, heads, size // 2, pairs],
        (-(-pairs // _THREADS), 1),
    )[0]


def attention_fits(rows: int, positions: int, head_dim: int) -> bool:
    """Whether :func:`attention` takes these sizes: a head of a sequence in shared memory."""
    return (
        positions <= 128
        and head_dim in (16, 32, 64)
        and rows <= GRID
        and attention_bytes(positions, head_dim, True) <= shared_limit()
    )


def attention_bytes(positions: int, head_dim: int, backward: bool) -> int:
    """Give the shared memory of a block of attention.cu."""
    rows = -(-positions // 16) * 16
    tile = rows * (head_dim + 8)
    return 2 * (4 * tile + rows * (rows + 8)) + 8 * rows if backward else 2 * 3 * tile


def attention(
    qkv: mx.array, cos: mx.array, sin: mx.array, rotated: bool, keep_sums: bool
) -> List[mx.array]:
    """Give softmax(q k^T / sqrt(D / h)) v of rotated q and k, and what its gradient needs.

    Args:
        qkv: (B, T, 3, h, D / h) bfloat16.
        cos: (T, D / h) float32, read only where ``rotated``; sin likewise.
        rotated: whether queries and keys are turned by their positions.
        keep_sums: whether there is the second result.

    Returns:
        (B, T, h, D / h) bfloat16, and (B, h, T) float32, the rows' log-sum-exps to base 2.
    """
    count, positions, _, heads, size = qkv.shape
    shapes = [(count, positions, heads, size), (count, heads, positions)][: 1 + keep_sums]
    more = {"ROPE": int(rotated), "KEEP": int(keep_sums)}
    return _attention("attention_forward", [qkv, cos, sin], shapes, more)


def attention_gradient(
    qkv: mx.array,
    cos: mx.array,
    sin: mx.array,
    rotated: bool,
    results: Sequence[mx.array],
    d_out: mx.array,
) -> mx.array:
    """Give the gradient of qkv from both results of :func:`attention` and the first's gradient."""
    arrays, shapes = [qkv, cos, sin, *results, d_out], [tuple(qkv.shape)]
    return _attention("attention_backward", arrays, shapes, {"ROPE": int(rotated)})[0]


def _attention(
    name: str, arrays: List[mx.array], shapes: Sequence[Tuple[int, ...]], more: dict
) -> List[mx.array]:
    count, positions, _, heads, size = arrays[0].shape
    warps = -(-positions // 16)
    shared = attention_bytes(positions, size, name == "attention_backward")
    return launch(
        "attention.cu",
        name,
        arrays,
        shapes,
        [float_bits(size**-0.5)],
        (heads, count),
        threads=32 * warps,
        defines={"T": positions, "HEADS": heads, "SIZE": size, **more},
        shared_memory=shared,
        dtypes=[mx.bfloat16, mx.float32][: len(shapes)],
    )
