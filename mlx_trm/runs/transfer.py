"""Weights of one run in another model: taken, resized, left out, and said which.

A run may begin with what another one has learnt, of the same task, of the same task with other
puzzles, or of another task as far as shapes allow. Weights go by their names; a weight of another
shape stays as a new model has it. The rows of the puzzle table go to the puzzles of the same names
where the checkpoint knows them, by their numbers, or become their mean.

Reference: ``load_checkpoint`` in pretrain.py, which resets a table of another size to its mean.
"""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from mlx_trm.errors import CheckpointError, ConfigError, shown
from mlx_trm.models import RecursiveModel, named_arrays
from mlx_trm.runs.checkpoint import open_checkpoint, read_arrays
from mlx_trm.runs.layout import AVERAGE, MODEL, ROW_NAMES
from mlx_trm.runs.puzzle_rows import (
    TABLE,
    check_count,
    describe_rows,
    match_names,
    read_row_names,
    reset_table,
    take_rows,
)
from mlx_trm.runs.weights import check_finite

TAKEN, PARTLY, RESET, FRESH, LEFT = STATES = "taken", "partly", "reset", "fresh", "left"


@dataclass
class Weights:
    """What a checkpoint gives to a new model.

    Attributes:
        arrays: float32 by dotted name; the average, where there is one, in place of what it is of.
        names: of the rows of the puzzle table, N of them; None where the checkpoint has none.
        origin: what messages call it.
    """

    arrays: Dict[str, mx.array]
    names: Optional[List[str]] = None
    origin: str = "the checkpoint"


class Transfer(NamedTuple):
    """What became of one weight.

    Attributes:
        name: dotted.
        shape: in the new model; of what is left, in the checkpoint.
        state: ``taken`` from the checkpoint; ``partly``, a table some of whose rows are; ``reset``,
            a table whose rows are all new; ``fresh``, as a new model has it; ``left``, in the
            checkpoint only.
        note: why, or how; may be empty.
    """

    name: str
    shape: Tuple[int, ...]
    state: str
    note: str


@dataclass
class TransferReport:
    """What became of every weight of a model and of a checkpoint.

    Attributes:
        origin: where the weights come from.
        transfers: in the model's order, then what is left.
    """

    origin: str
    transfers: List[Transfer] = field(default_factory=list)

    def names(self, state: str) -> List[str]:
        """Give the names of the weights that are in a state, such as ``taken``."""
        return [each.name for each in self.transfers if each.state == state]

    def rows(self) -> List[Tuple[str, str, str, str]]:
        """Give name, shape, state and note as rows of a table."""
        return [(shown(t.name), str(t.shape), t.state, t.note) for t in self.transfers]

    def summary(self) -> str:
        """Say in a line how many weights are what."""
        parts = [f"{len(self.names(state))} {state}" for state in STATES if self.names(state)]
        return f"{self.origin}: {', '.join(parts)}"


def read_weights(path: Union[str, Path], weights: str = "ema") -> Weights:
    """Read a checkpoint's weights without building its model.

    Args:
        path: a run folder (its ``latest`` is taken) or a checkpoint folder.
        weights: ``ema`` for the averaged weights where there are any, ``raw`` for the others.

    Raises:
        CheckpointError: if there is none, or a file is damaged or does not fit the others.
        ValueError: if ``weights`` is neither ``ema`` nor ``raw``.
    """
    folder, _, averaged = open_checkpoint(path, weights)
    arrays = read_arrays(folder / MODEL)
    if averaged:
        arrays.update(read_arrays(folder / AVERAGE))
    check_finite(arrays, str(folder))
    names, table = read_row_names(folder), arrays.get(TABLE)
    if table is None:
        return Weights(arrays, names, str(folder))
    if table.ndim != 2 or 0 in table.shape or not mx.issubdtype(table.dtype, mx.floating):
        raise CheckpointError(
            f"{folder / MODEL}: {TABLE} is {tuple(table.shape)} of {table.dtype}, must be rows of "
            "floating-point numbers, (rows, numbers); use another checkpoint"
        )
    check_count(names, table, str(folder / ROW_NAMES))
    return Weights(arrays, names, str(folder))


def transfer_weights(
    model: RecursiveModel,
    source: Weights,
    names: Optional[Sequence[str]] = None,
    only: Sequence[str] = (),
    rows: str = "auto",
    new_rows: str = "mean",
) -> TransferReport:
    """Put a checkpoint's weights into a model, those whose names and shapes fit.

    Args:
        model: changed in place; untouched where an error is raised.
        source: of :func:`read_weights`.
        names: of the rows of the model's puzzle table, N of them; None where they have none.
        only: patterns such as ``L_level.*``; weights that match none stay as they are.
        rows: how the puzzle table's rows are found: ``names``; ``numbers``, row i becomes row i;
            ``mean``, every row becomes the mean of all, as in the reference where sizes differ;
            ``fresh``, not at all; ``auto``, by names where both sides know them, else by numbers
            where there are equally many, else the mean.
        new_rows: what rows that are not found become: the ``mean`` of all, or ``zero``.

    Returns:
        What became of every weight.

    Raises:
        ConfigError: if a pattern matches nothing, nothing can be taken, or rows cannot be found by
            names because they are not known, or the tables do not match.
        ValueError: if names are not as many as rows, or the source's table is not one.
    """
    own = dict(named_arrays(model.parameters()))
    known = sorted({*own, *source.arrays})
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise ConfigError(
                f"init.only: {pattern!r} matches no weight (there are {', '.join(known)})"
            )
    report, chosen = TransferReport(source.origin), {}
    for name, array in own.items():
        found = source.arrays.get(name)
        state, note = FRESH, ""
        if only and not any(fnmatchcase(name, pattern) for pattern in only):
            note = "not asked for"
        elif found is None:
            note = "the checkpoint has none"
        elif name == TABLE:
            value, state, note = _rows(found, array.shape, source.names, names, rows, new_rows)
            if value is not None:
                chosen[name] = value
        elif found.shape != array.shape:
            note = f"{tuple(found.shape)} in the checkpoint"
        else:
            state, chosen[name] = TAKEN, found.astype(mx.float32)
        report.transfers.append(Transfer(name, tuple(array.shape), state, note))
    asked = not only or any(fnmatchcase(TABLE, pattern) for pattern in only)
    if rows == "names" and asked and not (TABLE in own and TABLE in source.arrays):
        side = source.origin if TABLE in own else "the model"
        raise ConfigError(f"init.rows: {side} has no puzzle table; leave init.rows out")
    for name in sorted(set(source.arrays) - set(own)):
        shape = tuple(source.arrays[name].shape)
        report.transfers.append(Transfer(name, shape, LEFT, "the model has none"))
    if not chosen:
        raise ConfigError(
            f"init.run: nothing in {source.origin} fits the model; use one with the same "
            "model.hidden_size and layers"
        )
    model.update(tree_unflatten(list(chosen.items())))
    mx.eval(model.parameters())
    return report


def _rows(
    table: mx.array,
    shape: Tuple[int, ...],
    have: Optional[Sequence[str]],
    want: Optional[Sequence[str]],
    rows: str,
    new_rows: str,
) -> Tuple[Optional[mx.array], str, str]:
    """Make a puzzle table; give it (None: it stays as it is), its state, and a note."""
    count = shape[0]
    if rows == "fresh":
        return None, FRESH, "as a new model has it"
    if table.ndim != 2:
        raise ValueError(f"a puzzle table has two dimensions, not {tuple(table.shape)}")
    for side, names, size in (("checkpoint", have, table.shape[0]), ("model", want, count)):
        if names is not None and len(names) != size and rows in ("auto", "names"):
            raise ValueError(f"{len(names)} names for the {size} rows of the {side}'s puzzle table")
    if table.shape[1] != shape[1]:
        if rows == "names":
            raise ConfigError(
                f"init.rows: rows have {table.shape[1]} numbers in the checkpoint and {shape[1]} "
                "in the model; use the same model.puzzle_emb_ndim, or leave init.rows out"
            )
        return None, FRESH, f"rows of {table.shape[1]} numbers in the checkpoint"
    if rows == "names" and (have is None or want is None):
        side = "the checkpoint does" if have is None else "the data do"
        raise ConfigError(
            f"init.rows: {side} not say which row is whose; use numbers, mean or fresh"
        )
    if have is not None and want is not None and rows in ("auto", "names"):
        found = match_names(have, want)
        return _take(table, found, new_rows, "by name")
    if rows == "mean" or (rows == "auto" and table.shape[0] != count):
        return reset_table(table, count), RESET, f"every row the mean of {table.shape[0]:,}"
    found = np.where(np.arange(count) < table.shape[0], np.arange(count), -1)
    return _take(table, found, new_rows, "by number")


def _take(table: mx.array, found: np.ndarray, new_rows: str, how: str) -> Tuple[mx.array, str, str]:
    """Take rows; give them, the state of the table, and how many rows there were, in words."""
    new = int((found < 0).sum())
    state = RESET if new == len(found) else PARTLY if new else TAKEN
    return take_rows(table, found, new_rows), state, describe_rows(table, found, new_rows, how)
