"""MLX's limits of memory: how much it may take, and how far it may run ahead."""

import os
from contextlib import contextmanager
from threading import Lock
from typing import Iterator, Optional

import mlx.core as mx

from mlx_trm.system.device import on_gpu, read_device_info

GIB = 1 << 30


def device_memory() -> Optional[int]:
    """Give the bytes the default device may use, or None where that cannot be told.

    On a Mac the GPU shares the machine's memory and may use most of it; MLX says how much.
    """
    if on_gpu():
        info = read_device_info(mx.gpu)
        for key in ("max_recommended_working_set_size", "total_memory", "memory_size"):
            if key in info:
                return int(info[key])
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


class MemoryLimit:
    """MLX's memory limit: one number for the whole process, which several threads may change.

    An evaluation lowers it for a while. What another thread sets meanwhile holds afterwards.
    """

    def __init__(self) -> None:
        """Leave MLX's limit as it is."""
        self._lock = Lock()
        # The limit before set_capped() first changed it.
        self._first: Optional[int] = None
        # While lower_in_block() holds: its own limit, and the one that returns when it ends.
        self._lowered: Optional[int] = None
        self._outside = 0

    def set_limit(self, limit: int) -> None:
        """Set the limit, in bytes."""
        with self._lock:
            self._set(limit)

    def set_capped(self, limit: int) -> None:
        """Set the limit, in bytes, at most to what it was when this was first called."""
        with self._lock:
            if self._first is None:
                # MLX tells its limit where it gets another one, and not every version elsewhere.
                inside = self._lowered is not None
                self._first = self._outside if inside else mx.set_memory_limit(limit)
            self._set(min(limit, self._first))

    @contextmanager
    def lower_in_block(self, limit: int) -> Iterator[None]:
        """Lower the limit inside a ``with`` block; of two blocks at a time the first one counts.

        Args:
            limit: in bytes; where it is above the limit outside, that one stays.
        """
        with self._lock:
            mine = self._lowered is None
            if mine:
                self._outside, self._lowered = mx.set_memory_limit(limit), limit
                mx.set_memory_limit(min(limit, self._outside))
        try:
            yield
        finally:
            if mine:
                with self._lock:
                    mx.set_memory_limit(self._outside)
                    self._lowered = None

    def _set(self, limit: int) -> None:
        if self._lowered is None:
            mx.set_memory_limit(limit)
        else:
            self._outside = limit
            mx.set_memory_limit(min(limit, self._lowered))


PROCESS_LIMIT = MemoryLimit()


def set_limits(memory_gb: Optional[float], cache_gb: Optional[float]) -> None:
    """Set MLX's limits of memory and of its cache, in GiB, where they are given."""
    if memory_gb is not None:
        PROCESS_LIMIT.set_limit(int(memory_gb * GIB))
    if cache_gb is not None:
        mx.set_cache_limit(int(cache_gb * GIB))
