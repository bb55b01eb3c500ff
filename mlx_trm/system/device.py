"""Which device MLX computes on."""

import mlx.core as mx


def on_gpu() -> bool:
    """Whether MLX computes on a GPU by default."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def on_cuda() -> bool:
    """Whether that GPU is one of MLX's CUDA backend."""
    backend = getattr(mx, "cuda", None)
    return on_gpu() and backend is not None and bool(backend.is_available())
