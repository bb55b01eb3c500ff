"""MLX's limits of memory: how much it may take, and how far it may run ahead."""

import os
from contextlib import contextmanager
from threading import Lock
from typing import Iterator, Optional

import mlx.core as mx

from mlx_trm.errors import ConfigError
from mlx_trm.system.device import on_gpu, on_metal, read_device_info

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
    return _machine_memory()


def _machine_memory() -> Optional[int]:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def default_cache() -> Optional[int]:
    """Give the bytes of freed memory that MLX shall keep where nobody says so; None: as it likes.

    On a Mac, whose memory is everybody's, MLX would keep nearly all that a GPU may use.
    """
    if not on_metal():
        return None
    memory = read_device_info(mx.gpu).get("memory_size") or _machine_memory() or 16 * GIB
    return min(2 * GIB, int(memory) // 8)


class MemoryLimit:
    """MLX's limits of memory and cache: of the whole process, which several threads may change.

    An evaluation lowers them for a while. What another thread sets meanwhile holds afterwards.
    """

    def __init__(self) -> None:
        """Leave MLX's limit as it is."""
        self._lock = Lock()
        # The limit before set_capped() first changed it.
        self._first: Optional[int] = None
        # While lower_in_block() holds: its own limit, and the one that returns when it ends.
        self._lowered: Optional[int] = None
        self._outside = 0
        # Whether somebody has said how much of the cache to keep.
        self._cache_chosen = False

    def set_cache(self, limit: Optional[int]) -> None:
        """Set MLX's limit of its cache, in bytes; None: :func:`default_cache`, at most."""
        with self._lock:
            if limit is not None:
                self._cache_chosen = True
                mx.set_cache_limit(limit)
            else:
                _lower_cache()

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
        """Lower the limits inside a ``with`` block; of two blocks at a time the first one counts.

        That of the cache is lowered to :func:`default_cache`, unless somebody has set it here.

        Args:
            limit: in bytes; where it is above the limit outside, that one stays.
        """
        with self._lock:
            mine, cache = self._lowered is None, None
            if mine:
                cache = None if self._cache_chosen else _lower_cache()
                self._outside, self._lowered = mx.set_memory_limit(limit), limit
                mx.set_memory_limit(min(limit, self._outside))
        try:
            yield
        finally:
            if mine:
                with self._lock:
                    mx.set_memory_limit(self._outside)
                    self._lowered = None
                    if cache is not None and not self._cache_chosen:
                        mx.set_cache_limit(cache)

    def _set(self, limit: int) -> None:
        if self._lowered is None:
            mx.set_memory_limit(limit)
        else:
            self._outside = limit
            mx.set_memory_limit(min(limit, self._lowered))


PROCESS_LIMIT = MemoryLimit()


def set_limits(
    memory_gb: Optional[float], cache_gb: Optional[float], wired_gb: Optional[float] = None
) -> None:
    """Set MLX's limits of memory, of its cache and of wired memory, in GiB, where they are given.

    Where the cache's is not, it is :func:`default_cache`. Wired memory, which a Mac does not move
    away, is left alone unless it is given, and nothing elsewhere.

    Raises:
        ConfigError: if the machine does not allow so much wired memory.
    """
    if memory_gb is not None:
        PROCESS_LIMIT.set_limit(int(memory_gb * GIB))
    PROCESS_LIMIT.set_cache(None if cache_gb is None else int(cache_gb * GIB))
    if wired_gb is not None and on_metal():
        try:
            mx.set_wired_limit(int(wired_gb * GIB))
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"train.wired_limit_gb: {wired_gb:g} GiB are more than this Mac allows ({error}); "
                "set less, or null"
            ) from error


def _lower_cache() -> Optional[int]:
    """Lower MLX's limit of its cache to the default; give the one before, None if it stays."""
    limit = default_cache()
    if limit is None:
        return None
    before = int(mx.set_cache_limit(limit))
    if before < limit:
        mx.set_cache_limit(before)
        return None
    return before
