"""Writing: puzzles in the reference's on-disk format, whole folders or nothing, and the cache.

A split's folder holds ``dataset.json`` and, for its set ``all``, ``all__inputs.npy``,
``all__labels.npy`` (E, S), ``all__puzzle_identifiers.npy`` (P,), ``all__puzzle_indices.npy``
(P + 1,) and ``all__group_indices.npy`` (G + 1,): examples stand in puzzles, puzzles in groups.

Reference: dataset/common.py ``PuzzleDatasetMetadata``; dataset/build_*_dataset.py.
"""

import os
import re
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np

from mlx_trm.config.sections import TaskSpec
from mlx_trm.errors import DataError
from mlx_trm.system.files import flush, is_abandoned, owner_name, write_json, write_text

FORMAT_VERSION = 1
MARKER = "build.json"
IDENTIFIERS = "identifiers.json"
SPLITS = ("train", "test")
SET_NAME = "all"
TEST_PUZZLES = "test_puzzles.json"
BLANK_NAME = "<blank>"
ARRAYS = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")

_HEADER_BYTES = 128
# The temporary folder of a build. Those of earlier versions do not name their process.
_BUILDING = re.compile(r"\.(?P<name>.+?)(\.(?P<owner>\d+-[0-9a-f]{8}))?\.[a-z0-9_]+")


class Puzzle(NamedTuple):
    """Examples of one puzzle.

    Attributes:
        name: what its row of the puzzle table belongs to; None: it has none.
        inputs: (E, S) uint8 tokens.
        labels: (E, S) uint8 tokens.
    """

    name: Optional[str]
    inputs: np.ndarray
    labels: np.ndarray


class PuzzleBlock(NamedTuple):
    """Puzzles with equally many examples each, in bulk: for tasks with millions.

    Attributes:
        inputs: (n, S) uint8 tokens.
        labels: (n, S) uint8 tokens.
        group_size: puzzles in each group; divides the number of puzzles.
        examples: of each puzzle; divides n.
        names: of the puzzles; None: they have none.
    """

    inputs: np.ndarray
    labels: np.ndarray
    group_size: int = 1
    examples: int = 1
    names: Optional[Sequence[str]] = None


Group = Union[List[Puzzle], PuzzleBlock]

# Puzzles of a block where they are made one by one.
_TOGETHER = 64


def in_blocks(pairs: Iterable[Tuple[np.ndarray, np.ndarray]]) -> Iterator[PuzzleBlock]:
    """Put pairs of (S,) uint8 inputs and labels together, as they come, each a group of its own."""
    pairs = iter(pairs)
    while True:
        together = list(islice(pairs, _TOGETHER))
        if not together:
            return
        inputs, labels = (np.stack(side) for side in zip(*together))
        yield PuzzleBlock(inputs, labels)


@contextmanager
def whole_folder(target: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes ``target`` if all goes well, and vanishes otherwise.

    Args:
        target: where the folder goes. An empty folder there, or one that an earlier build made,
            is replaced.
        keep_existing: leave what another process put there meanwhile, and drop this folder.

    Raises:
        DataError: if ``target`` holds anything else, or cannot be written.
    """
    target = Path(os.path.realpath(target))
    if not keep_existing:
        check_replaceable(target)
    temporary: Optional[Path] = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent, None if keep_existing else target.name)
        prefix = f".{target.name}.{owner_name()}."
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        # mkdtemp is for secrets; a dataset has the rights that any new folder has.
        content = temporary / "new"
        content.mkdir()
        yield content
        for path in (*content.rglob("*"), content):
            flush(path)
        if keep_existing and target.is_dir():
            return
        if target.exists():
            os.rename(target, temporary / "old")
        try:
            os.rename(content, target)
        except OSError:
            if keep_existing and target.is_dir():
                return
            if (temporary / "old").exists():
                os.rename(temporary / "old", target)
            raise
        flush(target.parent)
    except OSError as error:
        advice = "; MLX_TRM_CACHE can name another folder" if keep_existing else ""
        raise DataError(
            f"{error.filename or target}: cannot be written: {error.strerror or error}{advice}"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(parent: Path, name: Optional[str] = None) -> None:
    """Remove what builds left that were killed; what one of them was replacing is put back.

    Args:
        parent: the folder they built into.
        name: only those of the dataset of this name; None: of all, in the cache.

    Raises:
        OSError: if the folder cannot be read.
    """
    for path in list(parent.glob(".*.*")):
        found = _BUILDING.fullmatch(path.name)
        if found is None or name not in (None, found["name"]) or not path.is_dir():
            continue
        inside = set(os.listdir(path))
        if not inside <= {"new", "old"} or not is_abandoned(path, found["owner"] or "0"):
            continue
        if "old" in inside and not (parent / found["name"]).exists():
            os.rename(path / "old", parent / found["name"])
        shutil.rmtree(path, ignore_errors=True)


def is_built(folder: Path) -> bool:
    """Say whether a dataset is in the cache; what builds left beside it that were killed goes."""
    with suppress(OSError):  # a cache that can only be read, or is not there yet
        _remove_leftovers(folder.parent)
    return (folder / MARKER).is_file()


def check_replaceable(target: Path) -> None:
    """Refuse a folder that holds anything but an earlier build.

    Raises:
        DataError: saying what is in the way.
    """
    advice = "give the name of a new or empty folder"
    if target.is_dir():
        foreign = set(os.listdir(target)) - {MARKER, IDENTIFIERS, TEST_PUZZLES, *SPLITS}
        if any(target.iterdir()) and (foreign or not (target / MARKER).is_file()):
            raise DataError(f"{target}: is not empty and was not made by data build; {advice}")
        for split in SPLITS:
            inside = os.listdir(target / split) if (target / split).is_dir() else []
            ours = {f"{SET_NAME}__{name}.npy" for name in ARRAYS} | {"dataset.json"}
            if set(inside) - ours:
                raise DataError(
                    f"{target / split}: holds files that are not the dataset's; {advice}"
                )
    elif target.exists() or target.is_symlink():
        raise DataError(f"{target}: is not a folder; {advice}")


class _Rows:
    """A (rows, S) uint8 .npy file that grows; the header is written last.

    The header is our own, so that no version of NumPy changes a byte.
    """

    def __init__(self, path: Path, spec: TaskSpec) -> None:
        self.file: BinaryIO = open(path, "wb")  # pylint: disable=consider-using-with
        self.width = spec.seq_len
        self.tokens = spec.vocab_size
        self.what = f"{path.parent.name} {path.stem.split('__')[-1]} of the task's groups()"
        self.rows = 0
        self.file.write(b"\0" * _HEADER_BYTES)

    def append(self, rows: np.ndarray) -> None:
        """Add (n, S) uint8.

        Raises:
            DataError: if they are something else, or a token is not in the vocabulary.
        """
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != self.width:
            raise DataError(
                f"{self.what}: must be (E, {self.width}) uint8, as spec.seq_len says, "
                f"not {rows.shape} {rows.dtype}"
            )
        if rows.size and rows.max() >= self.tokens:
            raise DataError(
                f"{self.what}: token {rows.max()} is not in 0..{self.tokens - 1}; "
                f"spec.vocab_size is {self.tokens}"
            )
        self.file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Write the header and close."""
        shape = (
            f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({self.rows}, {self.width}), }}"
        )
        magic = b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little")
        self.file.seek(0)
        self.file.write(magic + shape.encode().ljust(_HEADER_BYTES - 11) + b"\n")
        self.file.close()


def write_dataset(
    groups: Iterable[Group],
    folder: Path,
    spec: TaskSpec,
    identifiers: Optional[Dict[str, int]] = None,
) -> Dict[str, Any]:
    """Write one split; used inside :func:`whole_folder`.

    Args:
        groups: lists of puzzles, or blocks; read once, never held together.
        folder: of the split, made here.
        spec: of the task; its num_puzzle_identifiers is not used.
        identifiers: numbers of puzzle names; new names are added. None: a fresh table.

    Returns:
        What ``dataset.json`` says. ``num_puzzle_identifiers`` counts the names met so far.

    Raises:
        DataError: if there are no puzzles, an array has another shape or dtype, a token is not in
            the vocabulary, or arrays, names and sizes of groups do not fit together.
    """
    names = {} if identifiers is None else identifiers
    folder.mkdir(parents=True)
    inputs = _Rows(folder / f"{SET_NAME}__inputs.npy", spec)
    labels = _Rows(folder / f"{SET_NAME}__labels.npy", spec)
    sizes: List[np.ndarray] = []
    numbers: List[np.ndarray] = []
    group_sizes: List[np.ndarray] = []
    try:
        for group in groups:
            if isinstance(group, PuzzleBlock):
                count, left = divmod(len(group.inputs), group.examples)
                if len(group.labels) != len(group.inputs) or left or count % group.group_size:
                    raise DataError(
                        "groups() of the task: inputs, labels and group_size do not fit together"
                    )
                if group.names is not None and len(group.names) != count:
                    raise DataError(
                        "groups() of the task: a block has as many names as puzzles, or none"
                    )
                inputs.append(group.inputs)
                labels.append(group.labels)
                sizes.append(np.full(count, group.examples, dtype=np.int32))
                numbers.append(_numbers(group.names, count, names, spec.blank_identifier_id))
                group_sizes.append(
                    np.full(count // group.group_size, group.group_size, dtype=np.int32)
                )
                continue
            for puzzle in group:
                if len(puzzle.inputs) != len(puzzle.labels):
                    raise DataError("groups() of the task: a puzzle has as many labels as inputs")
                inputs.append(puzzle.inputs)
                labels.append(puzzle.labels)
                number = spec.blank_identifier_id
                if puzzle.name is not None:
                    number = names.setdefault(puzzle.name, len(names) + 1)
                numbers.append(np.array([number], dtype=np.int32))
            sizes.append(np.array([len(puzzle.inputs) for puzzle in group], dtype=np.int32))
            group_sizes.append(np.array([len(group)], dtype=np.int32))
    finally:
        inputs.close()
        labels.close()
    if not inputs.rows:
        raise DataError(f"no puzzles for the split {folder.name!r}; is a filter too strict?")
    arrays = {
        "puzzle_identifiers": np.concatenate(numbers),
        "puzzle_indices": _boundaries(sizes),
        "group_indices": _boundaries(group_sizes),
    }
    for name, array in arrays.items():
        np.save(folder / f"{SET_NAME}__{name}.npy", array)
    puzzles = len(arrays["puzzle_identifiers"])
    about = asdict(replace(spec, num_puzzle_identifiers=len(names) + 1))
    # Differs from reference: its Sudoku builder gives the number of groups as total_puzzles; here
    # augmented puzzles are counted too, as its ARC builder does.
    about.update(
        total_groups=len(arrays["group_indices"]) - 1,
        mean_puzzle_examples=inputs.rows / puzzles,
        total_puzzles=puzzles,
        sets=[SET_NAME],
    )
    write_json(folder / "dataset.json", about, indent=1)
    return about


def write_splits(
    groups: Iterable[Tuple[str, Iterable[Group]]], folder: Path, spec: TaskSpec
) -> Dict[str, Dict[str, Any]]:
    """Write splits whose names are numbered together, and the names.

    Args:
        groups: of each split; read once, one split after the other.
        folder: of the dataset.
        spec: of the task; its num_puzzle_identifiers is not used.

    Returns:
        What each split's ``dataset.json`` says.
    """
    names: Dict[str, int] = {}
    about = {split: write_dataset(parts, folder / split, spec, names) for split, parts in groups}
    for split, said in about.items():  # the later splits may have added names
        said["num_puzzle_identifiers"] = len(names) + 1
        write_json(folder / split / "dataset.json", said, indent=1)
    write_identifiers(folder, names)
    return about


def write_whole_text(path: Union[str, Path], text: str) -> None:
    """Write a file of the user's, and the folders above it; it is there whole or not at all.

    Raises:
        DataError: if it cannot be written.
    """
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


def _numbers(
    wanted: Optional[Sequence[str]], count: int, names: Dict[str, int], blank: int
) -> np.ndarray:
    """Look up the numbers of a block's names, (count,) int32; new names get the next ones."""
    if wanted is None:
        return np.full(count, blank, dtype=np.int32)
    found = [names.setdefault(name, len(names) + 1) for name in wanted]
    return np.array(found, dtype=np.int32)


def _boundaries(sizes: List[np.ndarray]) -> np.ndarray:
    """Turn sizes into (n + 1,) int32 boundaries that begin with 0."""
    return np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int32)


def write_identifiers(folder: Path, identifiers: Dict[str, int]) -> None:
    """Write the names of the puzzle table's rows, number 0 being the blank one."""
    write_json(
        folder / IDENTIFIERS,
        [BLANK_NAME, *sorted(identifiers, key=identifiers.__getitem__)],
        indent=1,
    )
