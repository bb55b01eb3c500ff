"""MLX's limits of memory: how much it may take, and how far it may run ahead."""

import os
from typing import Any, Optional

import mlx.core as mx

from mlx_trm.system.device import on_gpu

GIB = 1 << 30


def device_memory() -> Optional[int]:
    """Give the bytes the default device may use, or None where that cannot be told.

    On a Mac the GPU shares the machine's memory and may use most of it; MLX says how much.
    """
    if on_gpu():
        read: Any = getattr(mx, "device_info", None) or mx.metal.device_info
        info = read()
        for key in ("max_recommended_working_set_size", "total_memory", "memory_size"):
            if key in info:
                return int(info[key])
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def set_limits(memory_gb: Optional[float], cache_gb: Optional[float]) -> None:
    """Set MLX's limits of memory and of its cache, in GiB, where they are given."""
    if memory_gb is not None:
        mx.set_memory_limit(int(memory_gb * GIB))
    if cache_gb is not None:
        mx.set_cache_limit(int(cache_gb * GIB))
