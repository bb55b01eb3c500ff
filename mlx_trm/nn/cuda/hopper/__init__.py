"""Kernels for the tensor cores of NVIDIA's Hopper GPUs, and when they fit."""
