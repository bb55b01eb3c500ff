"""Opening the files of a built dataset: everything is checked, and what is wrong is named.

Reference: puzzle_dataset.py ``_load_metadata``, ``_lazy_load_dataset``.
"""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, NamedTuple, Tuple

import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.datasets.arrays import ADVICE, open_array
from mlx_trm.datasets.writing import FORMAT_VERSION, MARKER, SPLITS
from mlx_trm.errors import DamagedError, DataError, shown
from mlx_trm.system.files import read_json

LOG = logging.getLogger(__name__)

# What is larger is not read through when it is opened: that would take seconds and fill the memory.
SCANNED_BYTES = 1 << 28
_BLOCK_BYTES = 1 << 18
# Of dataset.json and build.json; a folder of a thousand tasks has 100,000.
_MOST_ABOUT = 1 << 24


class SetArrays(NamedTuple):
    """The arrays of one set: E examples in P puzzles in G groups.

    Attributes:
        inputs: (E, S) tokens, mapped from the file.
        labels: (E, S) tokens, mapped from the file.
        puzzle_identifiers: (P,) rows of the puzzle table.
        puzzle_indices: (P + 1,) the examples of puzzle p are [p] to [p + 1] - 1.
        group_indices: (G + 1,) the puzzles of group g are [g] to [g + 1] - 1.
    """

    inputs: np.ndarray
    labels: np.ndarray
    puzzle_identifiers: np.ndarray
    puzzle_indices: np.ndarray
    group_indices: np.ndarray


def read_metadata(path: Path) -> Tuple[Dict[str, Any], TaskSpec]:
    """Read and check ``dataset.json``."""
    about: Dict[str, Any] = read_json(path, dict, ADVICE, _MOST_ABOUT)
    try:
        spec = TaskSpec.read(about)
    except ValueError as error:
        raise DamagedError(f"{path}: {error}{ADVICE}") from error
    groups = about.get("total_groups")
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise DamagedError(
            f"{path}: total_groups must be a whole number from 1 up, not {shown(groups)}"
        )
    sets = about.get("sets")
    plain = isinstance(sets, list) and all(
        isinstance(name, str) and name and not set(name) & set("/\\\0") for name in sets
    )
    if not plain or not sets or len(set(sets)) != len(sets):
        raise DamagedError(f"{path}: sets must be a list of different names, not {shown(sets)}")
    return about, spec


def check_format(folder: Path) -> None:
    """Refuse a dataset that another version of this package has built in another format.

    Args:
        folder: of the dataset. Without ``build.json`` it is the reference's own format.

    Raises:
        DataError: if it is another format, or ``build.json`` is damaged or cannot be read.
    """
    path = folder / MARKER
    if not path.exists():
        return
    about = read_json(path, dict, ADVICE, _MOST_ABOUT)
    version = about.get("format", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise DamagedError(
            f"{path}: was built by another version of mlx_trm (format {shown(version)}, this one "
            f"reads {FORMAT_VERSION}){ADVICE}"
        )


def check_splits_agree(path: Path, spec: TaskSpec) -> None:
    """Refuse a split whose dimensions or numbers are not those of the split beside it.

    A model of the one is trained for, or asked about, the other: rows of its table that are not
    there would be read.

    Raises:
        DamagedError: naming what differs.
    """
    for split in SPLITS:
        beside = path.parent / split / "dataset.json"
        if split == path.name or not beside.is_file():
            continue
        other = read_metadata(beside)[1]
        for field in fields(spec):
            have, want = getattr(spec, field.name), getattr(other, field.name)
            if have != want:
                raise DamagedError(
                    f"{path}: {field.name} is {have}, in {split} it is {want}; "
                    "build the dataset again"
                )


def load_set(folder: Path, name: str, spec: TaskSpec) -> SetArrays:
    """Open and check the arrays of one set.

    Raises:
        DamagedError: if one is missing, or is not what it should be.
        DataError: if one cannot be read.
    """
    files = {field: folder / f"{name}__{field}.npy" for field in SetArrays._fields}
    data = SetArrays(
        **{
            field: open_array(path, 2 if field in ("inputs", "labels") else 1)
            for field, path in files.items()
        }
    )
    rows, width = data.inputs.shape
    if width != spec.seq_len:
        _refuse(files["inputs"], f"rows of {width} cells, seq_len is {spec.seq_len}")
    if data.labels.shape != data.inputs.shape:
        _refuse(files["labels"], f"shape {data.labels.shape}, the inputs have {data.inputs.shape}")
    for field in ("inputs", "labels"):
        _check_range(files[field], getattr(data, field), "token", spec.vocab_size)
    if spec.ignore_label_id is not None:
        _check_scored(files["labels"], data.labels, spec.ignore_label_id, folder.name)
    for field, total in (("puzzle_indices", rows), ("group_indices", len(data.puzzle_identifiers))):
        edges = getattr(data, field)
        # Numbers without a sign fall without getting negative.
        if len(edges) < 2 or edges[0] != 0 or edges[-1] != total or (edges[1:] <= edges[:-1]).any():
            _refuse(files[field], f"must rise from 0 to {total}")
    if len(data.puzzle_indices) != len(data.puzzle_identifiers) + 1:
        _refuse(
            files["puzzle_indices"],
            f"has {len(data.puzzle_indices) - 1} puzzles, {len(data.puzzle_identifiers)} "
            "have an identifier",
        )
    _check_range(
        files["puzzle_identifiers"],
        data.puzzle_identifiers,
        "identifier",
        spec.num_puzzle_identifiers,
    )
    return data


def _check_range(path: Path, values: np.ndarray, what: str, limit: int) -> None:
    """Refuse numbers that are not 0 to ``limit`` - 1; of large files a sample is looked at."""
    if not values.size:
        _refuse(path, "is empty")
    if not isinstance(values, np.memmap):
        check_values(path, values, what, limit)
        return
    blocks = -(-values.nbytes // _BLOCK_BYTES)
    # Batches are checked again when they are taken.
    looked_at = np.linspace(0, blocks - 1, min(blocks, SCANNED_BYTES // _BLOCK_BYTES), dtype=int)
    for part in _read_blocks(path, values, looked_at.tolist()):
        check_values(path, part, what, limit)


def _check_scored(path: Path, labels: np.ndarray, ignored: int, split: str) -> None:
    """Refuse training labels none of which counts; a contest's test set may have no answers."""
    if isinstance(labels, np.memmap) and labels.nbytes <= SCANNED_BYTES:
        parts = _read_blocks(path, labels, range(-(-labels.nbytes // _BLOCK_BYTES)))
        if any((part != ignored).any() for part in parts):  # the first one has some
            return
        if split == "train":
            _refuse(path, f"every label is {ignored}, which means not scored")
        LOG.warning("%s: holds no answers, every label is %d; nothing is scored", path, ignored)


def _read_blocks(path: Path, values: np.memmap, blocks: Iterable[int]) -> Iterator[np.ndarray]:
    """Read blocks of a mapped file. What is mapped would count as this process's memory."""
    try:
        with open(path, "rb") as file:
            for block in blocks:
                file.seek(values.offset + block * _BLOCK_BYTES)
                left = values.nbytes - block * _BLOCK_BYTES
                yield np.frombuffer(file.read(min(_BLOCK_BYTES, left)), dtype=values.dtype)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def check_values(path: Path, values: np.ndarray, what: str, limit: int) -> None:
    """Refuse numbers that are not 0 to ``limit`` - 1.

    Raises:
        DamagedError: naming the file and the number.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        _refuse(path, f"{what} {low if low < 0 else high} is not in 0..{limit - 1}")


def _refuse(path: Path, problem: str) -> None:
    raise DamagedError(f"{path}: {problem}{ADVICE}")
