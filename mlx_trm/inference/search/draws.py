"""What is random in a search: it follows from the seed, the puzzle, the rollout and the step.

Nothing else decides: neither the other puzzles, nor their order, nor how many rows are computed at
a time.
"""

import hashlib
from typing import List, Optional, Sequence

import mlx.core as mx
import numpy as np

from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.models.base import Tree

# The step whose key draws a start; noise before step n has the key of step n.
START = 0


class RowDraws:
    """Gives the random keys of one rollout of one puzzle."""

    def __init__(self, seed: int, tokens: np.ndarray, rollout: int) -> None:
        """Hash what decides.

        Args:
            seed: of the search.
            tokens: (S,) of the puzzle itself, whatever copy the rollout works on.
            rollout: its number.
        """
        self._hash = hashlib.blake2b(digest_size=16)
        self._hash.update(f"{seed} {rollout} ".encode())
        self._hash.update(np.ascontiguousarray(tokens, dtype=np.uint8).tobytes())

    def _digest(self, purpose: str) -> bytes:
        found = self._hash.copy()
        found.update(purpose.encode())
        return found.digest()

    def key(self, step: int) -> np.ndarray:
        """Give the MLX key of a step, (2,) uint32; step ``START`` is for the start."""
        return np.frombuffer(self._digest(f" step {step}")[:8], dtype="<u4")

    def generator(self) -> np.random.Generator:
        """Give a generator for what is drawn with NumPy: the symmetric copy."""
        return np.random.default_rng(int.from_bytes(self._digest(" symmetry"), "little"))


def hashed_order(seed: int, tokens: np.ndarray) -> bytes:
    """Give a puzzle's place in a random order that its (S,) tokens and the seed alone decide."""
    found = hashlib.blake2b(f"sample {seed} ".encode(), digest_size=16)
    found.update(np.ascontiguousarray(tokens, dtype=np.uint8).tobytes())
    return found.digest()


def stack_keys(draws: Sequence[Optional[RowDraws]], steps: Sequence[int]) -> mx.array:
    """Give the keys of a batch's rows, (B, 2) uint32; rows without draws get zeros."""
    keys = np.zeros((len(draws), 2), dtype=np.uint32)
    for row, (each, step) in enumerate(zip(draws, steps)):
        if each is not None:
            keys[row] = each.key(step)
    return mx.array(keys)


def plain_starts(model: RecursiveModel, inputs: np.ndarray) -> Optional[Tree]:
    """Give the starts of plain runs of puzzles, which are those of a search with seed 0.

    Args:
        model: knows whether it starts at random.
        inputs: (B, S) tokens.

    Returns:
        What ``model.begin`` takes; None where the model does not.
    """
    if not is_random(model):
        return None
    draws = [RowDraws(0, tokens, 0) for tokens in inputs]
    return model.starts(stack_keys(draws, [START] * len(draws)), random=True)


def is_random(model: RecursiveModel) -> bool:
    """Say whether a model was trained to start from random latents."""
    return bool(getattr(model.config, "start", "fixed") == "random")


def mixed_starts(model: RecursiveModel, keys: mx.array, random: List[bool]) -> Tree:
    """Give the starts of a batch whose rows are random or not.

    Args:
        model: knows its own starts.
        keys: (B, 2) uint32.
        random: B, whether a row's start is drawn.

    Returns:
        By name arrays (D,), or (B, T, D) where rows differ.
    """
    own = model.starts(random=False)
    if not any(random):
        return own
    drawn = dict(named_arrays(model.starts(keys, random=True)))
    chosen = mx.array(random)[:, None, None]
    return {
        name: start if drawn[name].ndim == 1 else mx.where(chosen, drawn[name], start)
        for name, start in named_arrays(own)
    }


def add_noise(latent: mx.array, keys: mx.array, deviation: float) -> mx.array:
    """Add normal noise to the rows of a latent.

    Args:
        latent: (B, T, D).
        keys: (B, 2) uint32; a row's key alone decides its noise.
        deviation: of the noise.
    """
    shape = latent.shape[1:]
    noise = mx.vmap(lambda key: mx.random.normal(shape, key=key))(keys)
    return latent + (deviation * noise).astype(latent.dtype)
