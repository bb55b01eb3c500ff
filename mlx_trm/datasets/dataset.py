"""Reading built datasets: checks on opening, batches in the reference's order.

Reference: puzzle_dataset.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from mlx_trm.config.sections import MOST_SIZE, TaskSpec
from mlx_trm.datasets.arrays import ADVICE
from mlx_trm.datasets.manifest import MappedFiles, check_manifest
from mlx_trm.datasets.order import Pool
from mlx_trm.datasets.reading import (
    SetArrays,
    check_format,
    check_splits_agree,
    check_values,
    load_set,
    read_metadata,
)
from mlx_trm.datasets.writing import SET_NAME
from mlx_trm.errors import DamagedError, DataError, shown
from mlx_trm.system.files import distinct_names

# The label of cells that no loss counts; mlx_trm.models.carry has the same number on the MLX side.
IGNORE_LABEL_ID = -100
# Larger splits are not searched for examples of another one: it would take seconds. 1,000 Sudoku
# with 1,000 augmentations each have 81 MB.
_MOST_SEARCHED = 1 << 28
_BLOCK_ROWS = 1 << 14

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], Tuple[np.ndarray, np.ndarray]]
Arrays = Dict[str, np.ndarray]

_AUGMENT_STREAM = 0x5EED


class SetSource(NamedTuple):
    """Where a set comes from.

    Attributes:
        folder: of the built dataset, which holds the splits and ``identifiers.json``.
        split: ``train`` or ``test``.
        name: what the set is called, alone or among those of other folders.
        first_identifier: what was added to each of its identifiers but the blank one, because
            other folders have identifiers too.
    """

    folder: Path
    split: str
    name: str
    first_identifier: int


class PuzzleDataset:
    """One split of a built dataset, or of several as one.

    Attributes:
        path: the split's folder; of several the first one's.
        name: what messages call it: the folder, or the folders.
        spec: dimensions and special tokens.
        sets: names of the sets.
        arrays: of each set, by name.
        mapped: the files behind them, which are checked whenever examples are read.
        open_answer: (S,) labels that stand for an answer which is not known, so that none of them
            is scored; None: every answer is known.
        total_groups: puzzles not counting their augmentations, over all sets.
        total_puzzles: puzzles, over all sets.
        mean_puzzle_examples: examples in a puzzle, on average.
    """

    def __init__(
        self,
        path: Path,
        spec: TaskSpec,
        sets: Dict[str, SetArrays],
        sources: Optional[Dict[str, SetSource]] = None,
    ) -> None:
        """Use arrays that are in memory or mapped; :meth:`load` checks them first."""
        self.path = path
        self.name = str(path)
        self.spec = spec
        self._sources = sources or {
            name: SetSource(path.parent, path.name, name, 0) for name in sets
        }
        self.sets = list(sets)
        self.arrays = sets
        self.mapped = MappedFiles()
        self.open_answer: Optional[np.ndarray] = None
        self.total_groups = sum(len(s.group_indices) - 1 for s in sets.values())
        self.total_puzzles = sum(len(s.puzzle_identifiers) for s in sets.values())
        self.mean_puzzle_examples = len(self) / max(1, self.total_puzzles)

    def __len__(self) -> int:
        """Return the number of examples, E over all sets."""
        return sum(len(s.inputs) for s in self.arrays.values())

    @classmethod
    def load(cls, folder: Union[str, Path, Sequence[str]], split: str) -> "PuzzleDataset":
        """Open a split and check it: shapes, ranges, boundaries.

        Args:
            folder: holds one folder for each split. Of several folders the groups mix, the
                identifiers numbered on, and each set keeps its folder's name.
            split: ``train`` or ``test``.

        Raises:
            DataError: if something is missing or wrong, or folders do not fit together; it names
                the file.
        """
        if not isinstance(folder, (str, Path)):
            return cls._joined([cls.load(each, split) for each in folder])
        path = Path(folder).expanduser()
        if not path.is_dir():
            state = "is not a folder" if path.exists() else "no such folder"
            raise DataError(f"{path}: {state}; data build makes one")
        path = path / split
        if not path.is_dir():
            raise DamagedError(
                f"{path}: no such folder; the dataset has no split {split!r}{ADVICE}"
            )
        check_format(path.parent)
        about, spec = read_metadata(path / "dataset.json")
        check_splits_agree(path, spec)
        sets = {name: load_set(path, name, spec) for name in about["sets"]}
        dataset = cls(path, spec, sets)
        if about["total_groups"] != dataset.total_groups:
            raise DamagedError(
                f"{path / 'dataset.json'}: total_groups is {shown(about['total_groups'])}, "
                f"the arrays hold {dataset.total_groups}; build the dataset again"
            )
        mapped = [path / f"{name}__{part}.npy" for name in sets for part in ("inputs", "labels")]
        dataset.mapped.watch(path.parent, split, mapped)
        check_manifest(path.parent, split)
        return dataset

    # Differs from reference: there the identifiers of several datasets collide, and their sets
    # train one after the other; here identifiers are numbered on and groups are mixed.
    @classmethod
    def _joined(cls, parts: List["PuzzleDataset"]) -> "PuzzleDataset":
        """Put the splits of several folders together."""
        first = parts[0]
        labels = distinct_names([part.path.parent for part in parts])
        sets: Dict[str, SetArrays] = {}
        sources: Dict[str, SetSource] = {}
        total = 1
        for part, label in zip(parts, labels):
            _check_alike(first, part)
            blank = part.spec.blank_identifier_id
            for name, data in part.arrays.items():
                whole = label if part.sets == [SET_NAME] else f"{label}/{name}"
                numbers = data.puzzle_identifiers.astype(np.int64)
                numbers[numbers != blank] += total - 1
                sets[whole] = data._replace(puzzle_identifiers=numbers)
                source = part.source(name)
                sources[whole] = source._replace(name=whole, first_identifier=total - 1)
            total += part.spec.num_puzzle_identifiers - 1
            if total > MOST_SIZE:
                raise DataError(f"{part.path}: with it there are {total:,} puzzle identifiers")
        spec = replace(first.spec, num_puzzle_identifiers=total)
        dataset = cls(first.path, spec, sets, sources)
        dataset.name = ", ".join(str(part.path) for part in parts)
        dataset.mapped = MappedFiles(*(part.mapped for part in parts))
        return dataset

    def source(self, name: str) -> SetSource:
        """Return where a set comes from.

        Raises:
            KeyError: if there is no such set.
        """
        return self._sources[name]

    def example(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """Return the (S,) inputs and labels of one example, counted over all sets.

        Raises:
            IndexError: if there is no such example.
        """
        self.mapped.check()
        for data in self.arrays.values():
            if 0 <= index < len(data.inputs):
                return np.array(data.inputs[index]), np.array(data.labels[index])
            index -= len(data.inputs)
        raise IndexError("no such example")

    def example_identifier(self, index: int) -> int:
        """Return the row of the puzzle table of an example, counted over all sets."""
        pool = Pool(list(self.arrays.values()))
        return int(pool.identifiers[np.searchsorted(pool.puzzles, index, side="right") - 1])

    def examples_of(self, number: int) -> List[int]:
        """List the examples, counted over all sets, that have a row of the puzzle table."""
        pool = Pool(list(self.arrays.values()))
        puzzles = np.flatnonzero(pool.identifiers == number)
        return [at for p in puzzles for at in range(int(pool.puzzles[p]), int(pool.puzzles[p + 1]))]

    def count_shared(self, test: "PuzzleDataset") -> Optional[int]:
        """Count the examples of another split whose inputs are those of an example of this one.

        Returns:
            How many; None where a split is too large to be searched, or puzzles differ in length.
        """
        sizes = [data.inputs.nbytes for part in (self, test) for data in part.arrays.values()]
        if sum(sizes) > _MOST_SEARCHED or self.spec.seq_len != test.spec.seq_len:
            return None
        # Numbers without a sign overflow without harm; two rows that differ are alike once in 2^64.
        factors = np.random.Generator(np.random.Philox(0)).integers(
            0, 2**64, self.spec.seq_len, np.uint64, endpoint=False
        )
        mine, others = (np.concatenate(list(_hashes(part, factors))) for part in (self, test))
        return int(np.isin(others, mine).sum())

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        epochs_per_iter: int,
        iteration: int = 1,
        augment: Optional[Augment] = None,
        first: int = 0,
    ) -> Iterator[Arrays]:
        """Yield the batches of one iteration: several epochs in one random order.

        Each epoch takes each group once, and of a group one puzzle. A last batch that is not full
        is dropped.

        Args:
            batch_size: B, examples in each batch.
            seed: with ``iteration`` it decides the order.
            epochs_per_iter: passes over the groups.
            iteration: counted from 1.
            augment: applied to the (B, S) uint8 inputs and labels of each batch, with a generator
                that depends on seed, iteration and batch.
            first: leave out so many batches, as if they had been taken already.

        Returns:
            Dicts of ``inputs``, ``labels`` (B, S) and ``puzzle_identifiers`` (B,), int32; labels
            not to be scored are IGNORE_LABEL_ID.

        Raises:
            ValueError: if a number is too small.

        Reference: puzzle_dataset.py ``_iter_train``, ``_sample_batch``.
        """
        if min(batch_size, epochs_per_iter, iteration) < 1 or first < 0:
            raise ValueError("batch_size, epochs_per_iter and iteration must be at least 1")
        pool = Pool(list(self.arrays.values()))
        for number, (rows, puzzles) in enumerate(
            pool.order(batch_size, np.random.Philox(seed + iteration), epochs_per_iter)
        ):
            if number < first:
                continue
            self.mapped.check()
            inputs, labels = pool.examples(rows)
            self.mapped.check()
            if augment is not None:
                stream = np.random.Philox(
                    np.random.SeedSequence([_AUGMENT_STREAM, seed, iteration, number])
                )
                inputs, labels = augment(inputs, labels, np.random.Generator(stream))
            yield self._collate(inputs, labels, pool.identifiers[puzzles])

    def eval_batches(
        self, batch_size: int, max_examples: Optional[int] = None, seed: int = 0
    ) -> Iterator[Tuple[str, Arrays, int]]:
        """Yield every example once, set by set, in order.

        Args:
            batch_size: B; a last batch is filled up with padding rows.
            max_examples: a sample of so many examples, in their order.
            seed: decides the sample.

        Returns:
            The set's name; a batch as of :meth:`train_batches` with ``places`` besides, (B,) int64,
            where its rows stand in the set; and its number of real rows.

        Raises:
            ValueError: if a number is too small.

        Reference: puzzle_dataset.py ``_iter_test``.
        """
        if batch_size < 1 or (max_examples is not None and max_examples < 1):
            raise ValueError("batch_size and max_examples must be at least 1")
        chosen = np.arange(len(self))
        if max_examples is not None and max_examples < len(self):
            rng = np.random.Generator(np.random.Philox(seed))
            chosen = np.sort(rng.choice(len(self), max_examples, replace=False))
        start = 0
        for name, data in self.arrays.items():
            stop = start + len(data.inputs)
            mine = chosen[(chosen >= start) & (chosen < stop)] - start
            for at in range(0, len(mine), batch_size):
                rows = mine[at : at + batch_size]
                puzzles = np.searchsorted(data.puzzle_indices, rows, side="right") - 1
                self.mapped.check()
                batch = self._collate(
                    data.inputs[rows], data.labels[rows], data.puzzle_identifiers[puzzles]
                )
                self.mapped.check()
                batch["places"] = rows
                yield name, self._pad(batch, batch_size), len(rows)
            start = stop

    def _collate(self, inputs: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> Arrays:
        for values in (inputs, labels):
            check_values(self.path, values, "token", self.spec.vocab_size)
        labels = labels.astype(np.int32)
        if self.open_answer is not None:
            labels[(labels == self.open_answer).all(axis=1)] = IGNORE_LABEL_ID
        if self.spec.ignore_label_id is not None:
            labels[labels == self.spec.ignore_label_id] = IGNORE_LABEL_ID
        return {
            "inputs": inputs.astype(np.int32),
            "labels": labels,
            "puzzle_identifiers": numbers.astype(np.int32),
        }

    def _pad(self, batch: Arrays, batch_size: int) -> Arrays:
        values = {
            "inputs": self.spec.pad_id,
            "labels": IGNORE_LABEL_ID,
            "puzzle_identifiers": self.spec.blank_identifier_id,
            "places": -1,
        }
        missing = batch_size - len(batch["inputs"])
        return {
            name: np.pad(
                array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=values[name]
            )
            for name, array in batch.items()
        }


def _hashes(dataset: PuzzleDataset, factors: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a number for each example, (n,) uint64, in blocks."""
    for data in dataset.arrays.values():
        for at in range(0, len(data.inputs), _BLOCK_ROWS):
            yield data.inputs[at : at + _BLOCK_ROWS].astype(np.uint64) @ factors


def _check_alike(first: PuzzleDataset, other: PuzzleDataset) -> None:
    """Refuse a dataset that cannot be mixed with the first one."""
    for field in ("vocab_size", "seq_len", "pad_id", "ignore_label_id", "blank_identifier_id"):
        want, have = getattr(first.spec, field), getattr(other.spec, field)
        if have != want:
            raise DataError(
                f"{other.path}: {field} is {have}, in {first.path} it is {want}; "
                "only datasets of one kind can be mixed"
            )
    if other.spec.blank_identifier_id != 0:
        raise DataError(
            f"{other.path}: blank_identifier_id is {other.spec.blank_identifier_id}; "
            "only datasets where it is 0 can be mixed"
        )
