"""Which device MLX computes on, and what MLX tells about it."""

from typing import Any, Dict

import mlx.core as mx


def on_gpu() -> bool:
    """Whether MLX computes on a GPU by default."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def on_cuda() -> bool:
    """Whether that GPU is one of MLX's CUDA backend."""
    backend = getattr(mx, "cuda", None)
    return on_gpu() and backend is not None and bool(backend.is_available())


def on_metal() -> bool:
    """Whether MLX computes on a GPU that is not one of its CUDA backend: a Mac's."""
    return on_gpu() and not on_cuda()


def read_device_info(device: Any) -> Dict[str, Any]:
    """Give what MLX tells about a device; empty where it tells nothing.

    Args:
        device: ``mx.cpu`` or ``mx.gpu``.
    """
    try:
        if hasattr(mx, "device_info"):
            return dict(mx.device_info(device))
        if device == mx.gpu and mx.metal.is_available():  # MLX before 0.31
            return dict(mx.metal.device_info())
    except (RuntimeError, ValueError, TypeError):
        pass
    return {}
