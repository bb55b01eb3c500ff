"""Results of kernels in bfloat16, and what they may differ by from plain operations."""

import mlx.core as mx

from mlx_trm.nn import fused


def normal(*shape):
    return mx.random.normal(shape).astype(mx.bfloat16)


def check(have, want, allowed=0.01, least=0.5, units=2):
    """Equal but for rare roundings: few of the numbers differ, and by ``units`` of 8 bits at most.

    ``least`` is the magnitude of what has been added up, where the sum may be smaller.
    """
    have, want = have.astype(mx.float32), want.astype(mx.float32)
    assert have.shape == want.shape
    assert mx.mean(have != want).item() <= allowed
    assert mx.all(mx.abs(have - want) <= units * 0.008 * mx.maximum(mx.abs(want), least)).item()


def distance(have, want):
    """The root of the mean square of the difference."""
    return mx.sqrt(mx.mean(mx.square(have.astype(mx.float32) - want))).item()


def exact_attention(qkv, angles):
    """Attention of (B, T, 3, h, D / h) in float32 throughout."""
    query, key, value = (qkv[:, :, part].astype(mx.float32).swapaxes(1, 2) for part in range(3))
    if angles is not None:
        query, key = (fused.apply_rope(part, angles) for part in (query, key))
    scores = query @ key.swapaxes(-1, -2) * qkv.shape[-1] ** -0.5
    return (mx.softmax(scores, axis=-1) @ value).swapaxes(1, 2)
