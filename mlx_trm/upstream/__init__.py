"""The PyTorch original: its checkpoints read and written, its recorded numbers replayed."""

from mlx_trm.upstream.reading import load_upstream_checkpoint

__all__ = ["load_upstream_checkpoint"]
