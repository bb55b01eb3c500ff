"""Reading built datasets: checks on opening, batches in the reference's order.

Reference: puzzle_dataset.py.
"""

import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from mlx_trm.config import TaskSpec
from mlx_trm.errors import DataError

# The label of cells that no loss counts (mlx_trm.carry has the same number for the MLX side).
IGNORE_LABEL_ID = -100

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], Tuple[np.ndarray, np.ndarray]]
Arrays = Dict[str, np.ndarray]

_AUGMENT_STREAM = 0x5EED


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


class PuzzleDataset:
    """One split of a built dataset.

    Attributes:
        path: the split's folder.
        spec: dimensions and special tokens.
        sets: names of the sets.
        total_groups: puzzles not counting their augmentations, over all sets.
        total_puzzles: puzzles, over all sets.
        mean_puzzle_examples: examples in a puzzle, on average.
    """

    def __init__(self, path: Path, spec: TaskSpec, sets: Dict[str, SetArrays]) -> None:
        """Use arrays that are in memory or mapped; :meth:`load` checks them first."""
        self.path = path
        self.spec = spec
        self.sets = list(sets)
        self._data = sets
        self.total_groups = sum(len(s.group_indices) - 1 for s in sets.values())
        self.total_puzzles = sum(len(s.puzzle_identifiers) for s in sets.values())
        self.mean_puzzle_examples = len(self) / max(1, self.total_puzzles)

    def __len__(self) -> int:
        """Return the number of examples, E over all sets."""
        return sum(len(s.inputs) for s in self._data.values())

    @classmethod
    def load(cls, folder: Union[str, Path], split: str) -> "PuzzleDataset":
        """Open a split and check it: shapes, ranges, boundaries.

        Args:
            folder: holds one folder for each split.
            split: ``train`` or ``test``.

        Raises:
            DataError: if something is missing or wrong; it names the file.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            state = "is not a folder" if path.exists() else "no such folder"
            raise DataError(f"{path}: {state}; data build makes one")
        path = path / split
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; the dataset has no split {split!r}")
        about, spec = _read_metadata(path / "dataset.json")
        sets = {name: _load_set(path, name, spec) for name in about["sets"]}
        dataset = cls(path, spec, sets)
        if about["total_groups"] != dataset.total_groups:
            raise DataError(
                f"{path / 'dataset.json'}: total_groups is {about['total_groups']}, "
                f"the arrays hold {dataset.total_groups}; build the dataset again"
            )
        return dataset

    def example(self, index: int) -> Tuple[np.ndarray, np.ndarray]:
        """Return the (S,) inputs and labels of one example, counted over all sets.

        Raises:
            IndexError: if there is no such example.
        """
        for data in self._data.values():
            if 0 <= index < len(data.inputs):
                return np.array(data.inputs[index]), np.array(data.labels[index])
            index -= len(data.inputs)
        raise IndexError("no such example")

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
        pool = _Pool(list(self._data.values()))
        for number, (rows, puzzles) in enumerate(
            pool.order(batch_size, np.random.Philox(seed + iteration), epochs_per_iter)
        ):
            if number < first:
                continue
            inputs, labels = pool.examples(rows)
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
            The set's name, a batch as of :meth:`train_batches`, and its number of real rows.

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
        for name, data in self._data.items():
            stop = start + len(data.inputs)
            mine = chosen[(chosen >= start) & (chosen < stop)] - start
            for at in range(0, len(mine), batch_size):
                rows = mine[at : at + batch_size]
                puzzles = np.searchsorted(data.puzzle_indices, rows, side="right") - 1
                batch = self._collate(
                    data.inputs[rows], data.labels[rows], data.puzzle_identifiers[puzzles]
                )
                yield name, self._pad(batch, batch_size), len(rows)
            start = stop

    def _collate(self, inputs: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> Arrays:
        labels = labels.astype(np.int32)
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
        }
        missing = batch_size - len(batch["inputs"])
        return {
            name: np.pad(
                array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), constant_values=values[name]
            )
            for name, array in batch.items()
        }


class _Pool:
    """The sets of a split as one."""

    # Differs from reference: it trains the sets of a dataset one after the other; here they mix.

    def __init__(self, sets: List[SetArrays]) -> None:
        self.sets = sets
        self.starts = np.cumsum([0] + [len(s.inputs) for s in sets])
        self.identifiers = np.concatenate([s.puzzle_identifiers for s in sets])
        self.puzzles = _joined([s.puzzle_indices for s in sets])
        self.groups = _joined([s.group_indices for s in sets])

    def order(
        self, batch_size: int, bits: np.random.Philox, epochs: int
    ) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """Yield (B,) examples and (B,) puzzles of each batch."""
        rng = np.random.Generator(bits)
        groups = np.concatenate([rng.permutation(len(self.groups) - 1) for _ in range(epochs)])
        sizes = np.diff(self.puzzles)
        if (sizes == 1).all():
            for at in range(0, len(groups) - batch_size + 1, batch_size):
                group = groups[at : at + batch_size]
                # One call draws what the reference draws one by one.
                puzzle = rng.integers(self.groups[group], self.groups[group + 1])
                yield self.puzzles[puzzle], puzzle
            return
        at = 0
        while at < len(groups):
            rows: List[np.ndarray] = []
            chosen: List[np.ndarray] = []
            room = batch_size
            while at < len(groups) and room:
                puzzle = int(rng.integers(self.groups[groups[at]], self.groups[groups[at] + 1]))
                at += 1
                take = min(int(sizes[puzzle]), room)
                # Differs from reference: it draws these from NumPy's global generator; here one
                # seed decides everything. A puzzle with one example draws nothing.
                picked = np.zeros(take, dtype=np.int64)
                if sizes[puzzle] > 1:
                    picked = rng.choice(int(sizes[puzzle]), take, replace=False)
                rows.append(self.puzzles[puzzle] + picked)
                chosen.append(np.full(take, puzzle))
                room -= take
            if not room:
                yield np.concatenate(rows), np.concatenate(chosen)

    def examples(self, rows: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Return the inputs and labels of examples, (B, S) each."""
        if len(self.sets) == 1:
            return self.sets[0].inputs[rows], self.sets[0].labels[rows]
        which = np.searchsorted(self.starts, rows, side="right") - 1
        inputs = np.empty((len(rows), self.sets[0].inputs.shape[1]), self.sets[0].inputs.dtype)
        labels = inputs.copy()
        for number, data in enumerate(self.sets):
            mine = which == number
            inputs[mine] = data.inputs[rows[mine] - self.starts[number]]
            labels[mine] = data.labels[rows[mine] - self.starts[number]]
        return inputs, labels


def _joined(boundaries: List[np.ndarray]) -> np.ndarray:
    """Put the boundaries of several sets one after the other."""
    joined = [np.zeros(1, dtype=np.int64)]
    for part in boundaries:
        joined.append(joined[-1][-1] + part[1:].astype(np.int64))
    return np.concatenate(joined)


def _read_metadata(path: Path) -> Tuple[Dict[str, Any], TaskSpec]:
    """Read and check ``dataset.json``."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # bad UTF-8 or bad JSON
        raise DataError(f"{path}: is not JSON: {error}; build the dataset again") from error
    if not isinstance(about, dict):
        raise DataError(f"{path}: is not a JSON object; build the dataset again")
    least = dict.fromkeys(("pad_id", "ignore_label_id", "blank_identifier_id"), 0)
    least.update(vocab_size=1, seq_len=1, num_puzzle_identifiers=1, total_groups=1)
    for key, low in least.items():
        value = about.get(key)
        if key == "ignore_label_id" and key in about and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise DataError(f"{path}: {key} must be a whole number from {low} up, not {value!r}")
    for key, limit in (
        ("pad_id", "vocab_size"),
        ("blank_identifier_id", "num_puzzle_identifiers"),
    ):
        if about[key] >= about[limit]:
            raise DataError(f"{path}: {key} is {about[key]}, {limit} is only {about[limit]}")
    sets = about.get("sets")
    plain = isinstance(sets, list) and all(
        isinstance(name, str) and name and not set(name) & set("/\\\0") for name in sets
    )
    if not plain or not sets or len(set(sets)) != len(sets):
        raise DataError(f"{path}: sets must be a list of different names, not {sets!r}")
    spec = TaskSpec(
        vocab_size=about["vocab_size"],
        seq_len=about["seq_len"],
        num_puzzle_identifiers=about["num_puzzle_identifiers"],
        pad_id=about["pad_id"],
        blank_identifier_id=about["blank_identifier_id"],
        ignore_label_id=about["ignore_label_id"],
    )
    return about, spec


def _load_set(folder: Path, name: str, spec: TaskSpec) -> SetArrays:
    """Open and check the arrays of one set."""
    files = {field: folder / f"{name}__{field}.npy" for field in SetArrays._fields}
    data = SetArrays(
        **{
            field: _load_array(path, 2 if field in ("inputs", "labels") else 1)
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
    for field, total in (("puzzle_indices", rows), ("group_indices", len(data.puzzle_identifiers))):
        edges = getattr(data, field)
        if len(edges) < 2 or edges[0] != 0 or edges[-1] != total or (np.diff(edges) < 1).any():
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


def _load_array(path: Path, dimensions: int) -> np.ndarray:
    """Open an integer array; (E, S) ones are mapped, not read."""
    try:
        array = np.load(path, mmap_mode="r" if dimensions == 2 else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; build the dataset again") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: is damaged ({error}); build the dataset again") from error
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != dimensions
        or array.dtype.kind not in "iu"
    ):
        _refuse(path, f"is not an array of whole numbers with {dimensions} dimensions")
    return array


def _check_range(path: Path, values: np.ndarray, what: str, limit: int) -> None:
    if not values.size:
        _refuse(path, "is empty")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        _refuse(path, f"{what} {low if low < 0 else high} is not in 0..{limit - 1}")


def _refuse(path: Path, problem: str) -> None:
    raise DataError(f"{path}: {problem}; build the dataset again")
