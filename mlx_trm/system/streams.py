"""Shares the rows of a batch among streams of the CPU, so that all its cores work.

MLX's CPU backend runs the operations of a stream one after the other in one thread, and only the
BLAS inside a matrix product uses more. Rows do not depend on each other within a step. On two cores
two streams with one BLAS thread each made an evaluation step of 8 Sudoku 1.4 times as fast as one
stream with two (docs/benchmarks).

On a GPU, and on macOS, whose CPU has not been measured, there is one stream: the default one.
"""

import os
import threading
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import mlx.core as mx
from mlx.utils import tree_map

from mlx_trm.errors import ConfigError
from mlx_trm.system.backend import can_overlap_streams
from mlx_trm.system.blas import blas_threads, set_blas_threads
from mlx_trm.system.device import on_gpu

VARIABLE = "MLX_TRM_CPU_STREAMS"
# Each stream adds a copy of the step to the graph that Python builds.
_MOST = 8
# Numbers in a latent that a stream has at least: with fewer, making the graph takes longer than
# computing (a step of sudoku_tiny.yaml, 34,816 numbers: two streams took 1.4 times as long as one).
_LEAST = 1 << 16
# MLX's streams belong to the thread that made them, and are kept for good.
_OWN = threading.local()


def available_cores() -> int:
    """Give the processors this process may use; the BLAS may have been allowed fewer."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, blas_threads() or cores or 1))


def read_stream_setting() -> Optional[int]:
    """Give the number in the environment variable ``MLX_TRM_CPU_STREAMS``, None where it is unset.

    Raises:
        ConfigError: if it is not from 1 to 64.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked and (not asked.isdecimal() or not 1 <= int(asked) <= 64):
        raise ConfigError(f"{VARIABLE}: must be a whole number from 1 to 64, not {asked!r}")
    return int(asked) if asked else None


def stream_count(rows: int, numbers: int) -> int:
    """Give the number of streams that a step is shared among.

    Args:
        rows: B, puzzles in the batch.
        numbers: in one of its latents, (B, T, D); 0 where there is none.

    Raises:
        ConfigError: as :func:`read_stream_setting`.
    """
    asked = read_stream_setting()
    if on_gpu():
        return 1
    if asked is not None:
        return max(1, min(asked, rows))
    if not can_overlap_streams():
        return 1
    return max(1, min(_MOST, available_cores(), rows, numbers // _LEAST))


def share_cores(rows: int, numbers: int) -> int:
    """Share the cores among the streams of a step, as threads of the BLAS.

    Call it before a step, which may be a compiled function that only calls MLX.

    Args:
        rows: B, puzzles in the batch.
        numbers: in one of its latents.

    Returns:
        The number of streams.
    """
    count = stream_count(rows, numbers)
    if not on_gpu():
        set_blas_threads(max(1, available_cores() // count))
    return count


def give_back_cores() -> None:
    """Let a matrix product use all cores again; call it when a step has been computed."""
    if not on_gpu():
        set_blas_threads(available_cores())


def over_rows(function: Callable[..., Any], extent: Tuple[int, int], *trees: Any) -> List[Any]:
    """Apply a function to shares of a batch, each on a stream of its own; after share_cores.

    Args:
        function: of as many trees; nothing in it depends on other rows.
        extent: the rows of the batch, and the numbers in one of its latents.
        trees: nested tuples of arrays, or None; B is the length of every array's first axis.

    Returns:
        The results, by rows; one, of the whole batch, where there is nothing to share. They are
        computed side by side if they are evaluated together.
    """
    rows, count = extent[0], stream_count(*extent)
    if count == 1:
        return [function(*trees)]
    results = []
    for number in range(count):
        share = slice(rows * number // count, rows * (number + 1) // count)
        with mx.stream(_stream(number)):
            results.append(function(*(_cut(tree, share) for tree in trees)))
    return results


def one_by_one(function: Callable[..., Any], rows: int, parts: int, *trees: Any) -> List[Any]:
    """Apply a function to parts of a batch, each when the one before is done.

    What is there at a time besides arguments and results is then what one part takes.

    Args:
        function: of as many trees; nothing in it depends on other rows.
        rows: in the batch.
        parts: how many, as equal as can be.
        trees: nested tuples of arrays, or None; B is the length of every array's first axis.

    Returns:
        The results, by rows; one, of the whole batch, where there is one part.
    """
    if parts == 1:
        return [function(*trees)]
    results: List[Any] = []
    for number in range(parts):
        share = slice(rows * number // parts, rows * (number + 1) // parts)
        # MLX computes in an order of its own, which may be many parts side by side.
        results.append(function(*(_after(_cut(tree, share), results[-1:]) for tree in trees)))
    return results


def _after(tree: Any, done: Any) -> Any:
    """Give the arrays of a tree as such that are there when those of another one are."""
    first: List[mx.array] = []
    tree_map(lambda array: None if array is None else first.append(array), done)
    if not first:
        return tree
    return tree_map(lambda array: None if array is None else mx.depends([array], first)[0], tree)


def _stream(number: int) -> mx.Stream:
    streams: Dict[int, mx.Stream] = getattr(_OWN, "streams", {})
    if number not in streams:
        streams[number] = mx.default_stream(mx.cpu) if number == 0 else mx.new_stream(mx.cpu)
        _OWN.streams = streams
    return streams[number]


def joined(parts: Sequence[Any]) -> Any:
    """Concatenate the parts of a batch, trees of arrays, by their first axis; None stays None."""
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
