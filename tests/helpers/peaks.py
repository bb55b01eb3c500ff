"""The memory that a computation takes: the same figure on a busy machine as on an idle one."""

from typing import Any, Callable

import mlx.core as mx


def peak_bytes(compute: Callable[[], Any]) -> int:
    """Give the bytes that a computation holds at most at a time, beside what was there before.

    MLX's CPU allocates for operations up to a hundred ahead of the one that is computed, and
    frees what an operation has read when it is done; so a peak tells how far the one thread was
    ahead of the other. With a memory limit that is always exceeded, MLX waits before each
    operation for those that it has queued.

    Args:
        compute: gives arrays, which are evaluated here, or evaluates what it makes.
    """
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    outside = mx.set_memory_limit(1)
    try:
        mx.eval(compute())
        mx.synchronize()
    finally:
        mx.set_memory_limit(outside)
    return int(mx.get_peak_memory() - before)
