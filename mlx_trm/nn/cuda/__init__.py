"""Kernels in CUDA C for what MLX's own leave slow on an NVIDIA GPU; nothing here runs elsewhere."""
