"""Rows of a puzzle table that follow their puzzles: matched by name, taken, grown, reset."""

from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import mlx.core as mx
import numpy as np

from mlx_trm.config.sections import NEW_ROWS
from mlx_trm.datasets.names import row_names, unpack_names
from mlx_trm.errors import CheckpointError, describe_error
from mlx_trm.models import RecursiveModel
from mlx_trm.runs.layout import ROW_NAMES, is_there, unreadable
from mlx_trm.system.bounded import MOST_TEXT, read_bytes
from mlx_trm.tasks import PuzzleDataset

TABLE = "puzzle_emb.weights"


def read_row_names(folder: Path) -> Optional[List[str]]:
    """Read the names of the rows of a checkpoint's puzzle table; None where it has none.

    Raises:
        CheckpointError: if they are damaged.
        UnreadableError: if the machine cannot read them.
    """
    file = folder / ROW_NAMES
    if not is_there(file):
        return None
    try:
        content = read_bytes(file, MOST_TEXT)
    except OSError as error:
        raise unreadable(file, error) from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; use another checkpoint") from error
    try:
        return unpack_names(content)
    except (OSError, ValueError) as error:  # gzip's own errors are of both kinds
        raise CheckpointError(
            f"{file}: cannot be read ({describe_error(error)}); use another checkpoint"
        ) from error


def match_names(have: Sequence[str], want: Sequence[str]) -> np.ndarray:
    """Find names in a list of names.

    Args:
        have: the list. A name that stands there twice, because two datasets were mixed, is matched
            in order.
        want: the names to find.

    Returns:
        (len(want),) int64, where each stands in ``have``; -1 where it does not.
    """
    once = {name: place for place, name in enumerate(have)}
    if len(once) == len(have):
        return np.fromiter((once.get(name, -1) for name in want), dtype=np.int64, count=len(want))
    places: Dict[str, List[int]] = {}
    for place, name in enumerate(have):
        places.setdefault(name, []).append(place)
    met: Dict[str, int] = {}
    found = np.full(len(want), -1, dtype=np.int64)
    for at, name in enumerate(want):
        where = places.get(name)
        if where is not None:
            number = met.get(name, 0)
            met[name] = number + 1
            found[at] = where[min(number, len(where) - 1)]
    return found


def take_rows(table: mx.array, found: np.ndarray, new_rows: str = "mean") -> mx.array:
    """Make a table of some rows of another one.

    Args:
        table: (M, E) float32.
        found: (N,) integers, which row each becomes; -1: a new one.
        new_rows: ``mean``: new rows are the mean of the table; ``zero``: as a new model's.

    Returns:
        (N, E) float32.

    Raises:
        ValueError: if ``new_rows`` is neither, or ``found`` is no such array or leaves the table.
    """
    if new_rows not in NEW_ROWS:
        raise ValueError(f"new_rows must be 'mean' or 'zero', got {new_rows!r}")
    if table.ndim != 2 or found.ndim != 1 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError("a table has two dimensions, and what is taken of it is (N,) integers")
    if found.size and not -1 <= found.min() <= found.max() < table.shape[0]:
        raise ValueError(f"rows must be in -1..{table.shape[0] - 1}")
    table = table.astype(mx.float32)
    if (found >= 0).all():
        return table[mx.array(found.astype(np.int32))]
    new = mean_row(table) if new_rows == "mean" else mx.zeros((1, table.shape[1]))
    places = np.where(found < 0, table.shape[0], found).astype(np.int32)
    return mx.concatenate([table, new])[mx.array(places)]


def mean_row(table: mx.array) -> mx.array:
    """Give the mean of all rows, (1, E) float32, summed in parts so that a million rows keep it."""
    blocks = (table[at : at + 1024] for at in range(0, table.shape[0], 1024))
    parts = [mx.sum(block.astype(mx.float32), axis=0, keepdims=True) for block in blocks]
    return mx.sum(mx.concatenate(parts), axis=0, keepdims=True) / table.shape[0]


def reset_table(table: mx.array, count: int) -> mx.array:
    """Make a table of ``count`` rows, float32, each the mean of the rows of an (M, E) table.

    Reference: ``load_checkpoint`` in pretrain.py.
    """
    return mx.repeat(mean_row(table), count, axis=0)


def grow_table(table: mx.array, count: int, new_rows: str = "mean") -> mx.array:
    """Add ``count`` new rows at the end of an (M, E) table; see :func:`take_rows`."""
    found = np.concatenate([np.arange(table.shape[0]), np.full(count, -1)])
    return take_rows(table, found, new_rows)


def follow_data(
    model: RecursiveModel,
    names: Optional[Sequence[str]],
    dataset: PuzzleDataset,
    new_rows: str = "mean",
) -> Optional[str]:
    """Give the puzzles of a dataset the rows that puzzles of the same names have learnt.

    Args:
        model: with a table; it gets one of the dataset's size, unless its rows are right already.
        names: of its rows; None where they are not known.
        dataset: to be evaluated.
        new_rows: what unknown puzzles get, as of :func:`take_rows`.

    Returns:
        What was done, in words, empty where nothing had to be; None where nothing can be, because
        the checkpoint or the dataset has no names.

    Raises:
        DataError: if the dataset's names are damaged.
        CheckpointError: if ``names`` are not as many as the rows of the model's table.
    """
    check_count(names, model.puzzle_emb.weights, f"{ROW_NAMES} of the checkpoint")
    want = row_names(dataset)
    if names is None or want is None:
        return None
    if list(names) == want:
        return ""
    found = match_names(names, want)
    table = model.puzzle_emb.weights
    set_table(model, take_rows(table, found, new_rows))
    return describe_rows(table, found, new_rows, "by name")


def set_table(model: RecursiveModel, table: mx.array) -> None:
    """Give a model a puzzle table of another size; its ``spec`` follows.

    Raises:
        ValueError: if the model has no table, or one with rows of another size.
    """
    width = model.config.puzzle_emb_ndim
    if not width or table.shape[1:] != (width,):
        raise ValueError(f"the model's puzzle rows have {width} numbers, not {table.shape[1:]}")
    model.puzzle_emb.weights = table
    model.spec = replace(model.spec, num_puzzle_identifiers=table.shape[0])
    mx.eval(table)


def check_count(names: Optional[Sequence[str]], table: mx.array, where: str) -> None:
    """Refuse a checkpoint's names that are not as many as the rows of its table."""
    if names is not None and len(names) != table.shape[0]:
        raise CheckpointError(
            f"{where}: {len(names):,} names of rows for a puzzle table of {table.shape[0]:,}; "
            "use another checkpoint"
        )


def describe_rows(table: mx.array, found: np.ndarray, new_rows: str, how: str) -> str:
    """Say how many rows :func:`take_rows` takes, makes new, and leaves.

    Args:
        table: (N, puzzle_emb_ndim), the rows there are.
        found: (M,) the number of each wanted row, -1 where there is none.
        new_rows: what unknown puzzles get.
        how: the rows were found, such as ``by name``.
    """
    new = int((found < 0).sum())
    unused = table.shape[0] - len(np.unique(found[found >= 0]))
    note = f"{len(found) - new:,} rows {how}"
    note += f", {new:,} new: {new_rows}" if new else ""
    return note + (f", {unused:,} left" if unused else "")
