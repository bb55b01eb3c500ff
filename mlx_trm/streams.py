"""Shares the rows of a batch among streams of the CPU, so that all its cores work.

MLX's CPU backend runs the operations of a stream one after the other in one thread, and only the
BLAS inside a matrix product uses more. Rows do not depend on each other within a step. On two cores
two streams with one BLAS thread each made an evaluation step of 8 Sudoku 1.4 times as fast as one
stream with two (docs/benchmarks).

On a GPU, and on macOS, whose CPU has not been measured, there is one stream: the default one.
"""

import os
from functools import lru_cache
from typing import Any, Callable, List, Sequence

import mlx.core as mx
from mlx.utils import tree_map

from mlx_trm._backend import schedules_widely, set_blas_threads
from mlx_trm.errors import ConfigError
from mlx_trm.layers import on_gpu

VARIABLE = "MLX_TRM_CPU_STREAMS"
# Each stream adds a copy of the step to the graph that Python builds.
_MOST = 8
# Numbers in a latent that a stream has at least: with fewer, making the graph takes longer than
# computing (a step of sudoku_tiny.yaml, 34,816 numbers: two streams took 1.4 times as long as one).
_LEAST = 1 << 16


def available_cores() -> int:
    """Give the processors this process may use; ``OPENBLAS_NUM_THREADS`` may allow it fewer."""
    asked = os.environ.get("OPENBLAS_NUM_THREADS", "")
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores, int(asked))) if asked.isdigit() else cores


def stream_count(latent: mx.array) -> int:
    """Give the number of streams that a step on the default device is shared among.

    Args:
        latent: (B, T, D), says how much there is to do. The environment variable
            ``MLX_TRM_CPU_STREAMS`` may say how many streams there are at most.

    Raises:
        ConfigError: if it is not a number from 1 to 64.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked and (not asked.isdigit() or not 1 <= int(asked) <= 64):
        raise ConfigError(f"{VARIABLE}: must be a whole number from 1 to 64, not {asked!r}")
    if on_gpu():
        return 1
    if asked:
        return min(int(asked), latent.shape[0])
    if not schedules_widely():
        return 1
    return max(1, min(_MOST, available_cores(), latent.shape[0], latent.size // _LEAST))


@lru_cache(maxsize=None)
def _stream(number: int) -> mx.Stream:
    """Give the stream of a share. MLX keeps streams for good, so they are made once."""
    return mx.default_stream(mx.cpu) if number == 0 else mx.new_stream(mx.cpu)


def share_cores(latent: mx.array) -> int:
    """Give the number of streams for a step, and each of them as many BLAS threads as there are.

    Call it before a step, which may be a compiled function that only calls MLX.
    """
    count = stream_count(latent)
    if not on_gpu():
        set_blas_threads(max(1, available_cores() // count))
    return count


def over_rows(function: Callable[..., Any], latent: mx.array, *trees: Any) -> List[Any]:
    """Apply a function to shares of a batch, each on a stream of its own.

    Args:
        function: of as many trees; nothing in it depends on other rows.
        latent: (B, T, D), for :func:`stream_count`.
        trees: nested tuples of arrays, or None; B is the length of every array's first axis.

    Returns:
        The results, by rows; one, of the whole batch, where there is nothing to share. They are
        computed side by side if they are evaluated together.
    """
    count, rows = share_cores(latent), latent.shape[0]
    if count == 1:
        return [function(*trees)]
    results = []
    for number in range(count):
        share = slice(rows * number // count, rows * (number + 1) // count)
        with mx.stream(_stream(number)):
            results.append(function(*(_cut(tree, share) for tree in trees)))
    return results


def joined(parts: Sequence[Any]) -> Any:
    """Put trees of rows behind each other again; None stays None."""
    if len(parts) == 1:
        return parts[0]
    return tree_map(
        lambda first, *others: None if first is None else mx.concatenate([first, *others]), *parts
    )


def added(parts: Sequence[Any]) -> Any:
    """Add trees of sums, such as gradients and metrics; None stays None."""
    total = parts[0]
    for part in parts[1:]:
        total = tree_map(lambda a, b: None if a is None else a + b, total, part)
    return total


def _cut(tree: Any, share: slice) -> Any:
    return tree_map(lambda array: None if array is None else array[share], tree)
