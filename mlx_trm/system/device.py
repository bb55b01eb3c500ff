"""Which device MLX computes on, and what MLX tells about it."""

from typing import Any, Dict, Optional

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


def old_mlx_advice(version: str) -> Optional[str]:
    """Say what an MLX that is too old for a Mac's GPU does, and what to do; None for a newer one.

    Args:
        version: of MLX, such as ``0.29.3``.
    """
    numbers = version.split(".")
    if len(numbers) < 2 or not (numbers[0] + numbers[1]).isdigit():
        return None
    if (int(numbers[0]), int(numbers[1])) >= (0, 32):
        return None
    return (
        f"MLX {version} ends the whole process where a Mac's GPU fails, for want of memory too, "
        "and checkpoints are all that is left; MLX 0.32 does not, and needs Python 3.10 or newer: "
        "make a new virtual environment with it"
    )


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
