"""How weights begin: independent keys from one seed, and JAX's truncated normal."""

import math
from typing import Tuple

import mlx.core as mx

from mlx_trm.errors import ConfigError

# The standard deviation of a standard normal truncated to [-2, 2]. Dividing by it gives the drawn
# numbers the standard deviation asked for, as JAX's initialisers do and PyTorch's do not.
_TRUNCATED_STD = 0.87962566103423978

# MLX aborts the process over arrays with more elements than a 32-bit number counts.
_TOO_MANY = 2**31


class KeySequence:
    """A stream of independent random keys from one seed, so that a seed decides every weight."""

    def __init__(self, seed: int) -> None:
        """Start the stream at ``seed``."""
        self._key = mx.random.key(seed)

    def next(self) -> mx.array:
        """Give a key that has not been given before."""
        self._key, key = mx.random.split(self._key)
        return key


def trunc_normal(shape: Tuple[int, ...], std: float, key: mx.array) -> mx.array:
    """Draw from a normal truncated at two sigmas whose standard deviation is exactly ``std``.

    Args:
        shape: of the result.
        std: standard deviation after truncation; 0 gives zeros.
        key: an MLX random key.

    Returns:
        float32 array of ``shape``.

    Raises:
        ConfigError: if that is more than MLX can make.

    Reference: models/common.py ``trunc_normal_init_``.
    """
    if math.prod(shape) >= _TOO_MANY:
        raise ConfigError(
            f"model: a weight of shape {shape} is too large for MLX; lower hidden_size, expansion "
            "or whatever makes it so"
        )
    if std == 0:
        return mx.zeros(shape, dtype=mx.float32)
    draws = mx.random.truncated_normal(-2.0, 2.0, shape, dtype=mx.float32, key=key)
    return draws * (std / _TRUNCATED_STD)
