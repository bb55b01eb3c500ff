"""Attention of many positions without a gradient, on Hopper, in bfloat16; ``long_attention.cu``.

MLX's is cuDNN's, which pads the positions to a multiple of 128, and wants queries and keys turned
by their positions before: 30 % more time for the 916 positions of a maze. Where a gradient is
wanted cuDNN's stays, since its gradient needs what its forward pass keeps.
"""

from typing import Dict, Optional

import mlx.core as mx

from mlx_trm.nn.cuda.kernels import GRID, architecture, launch, rope_keys, shared_limit, usable
from mlx_trm.nn.cuda.nvrtc import compiles
from mlx_trm.nn.functional import CosSin

# Rows of a block and its threads, keys at a time, and stages of keys and values: long_attention.cu.
_ROWS, _THREADS, _KEYS, _STAGES = 128, 256, 64, 4
# Of a head; the kernel's numbers in a row of shared memory.
_SIZE = 64
_FILE, _NAME, _TARGET = "hopper/long_attention.cu", "long_attention", "sm_90a"


def long_attention_fits(qkv: mx.array, rotated: bool) -> bool:
    """Whether :func:`long_attention` takes ``qkv``, with angles or without."""
    count, positions, _, _, size = qkv.shape
    return (
        usable(qkv.dtype)
        and architecture() == "sm_90"
        and size == _SIZE
        and _KEYS <= positions < 1 << 20
        and count <= GRID
        and _shared_bytes() <= shared_limit()
        and compiles(_FILE, _TARGET, tuple({_NAME.upper(): 1, **_defines(qkv, rotated)}.items()))
    )


def _defines(qkv: mx.array, rotated: bool) -> Dict[str, int]:
    return {"T": qkv.shape[1], "HEADS": qkv.shape[3], "ROPE": int(rotated)}


def _shared_bytes() -> int:
    return _STAGES * 2 * _KEYS * _SIZE * 2


def long_attention(qkv: mx.array, cos_sin: Optional[CosSin]) -> mx.array:
    """Give softmax(q k^T / 8) v.

    Args:
        qkv: (B, T, 3, h, 64) bfloat16.
        cos_sin: (T, 64) float32 each, by which queries and keys are turned; None: they are not.

    Returns:
        (B, T, h, 64) bfloat16.
    """
    count, positions, _, heads, size = qkv.shape
    none = mx.zeros((1,))
    cos, sin = cos_sin or (none, none)
    keys = qkv if cos_sin is None else rope_keys(qkv, cos, sin)
    blocks = -(-positions // _ROWS)
    return launch(
        _FILE,
        _NAME,
        [qkv, keys, cos, sin],
        [(count, positions, heads, size)],
        [],
        (blocks * heads, count),
        threads=_THREADS,
        defines=_defines(qkv, cos_sin is not None),
        shared_memory=_shared_bytes(),
        target=_TARGET,
    )[0]
