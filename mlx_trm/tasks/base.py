"""What a task is: a class with a ``spec`` and ``groups``, and whatever else it can do."""

import hashlib
import inspect
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import numpy as np

from mlx_trm.config.registry import TASKS
from mlx_trm.config.sections import TaskConfig, TaskSpec
from mlx_trm.datasets.dataset import PuzzleDataset, SetSource
from mlx_trm.datasets.manifest import write_marker
from mlx_trm.datasets.writing import (
    FORMAT_VERSION,
    SPLITS,
    Group,
    PuzzleBlock,
    is_built,
    whole_folder,
    write_splits,
)
from mlx_trm.errors import DamagedError, DataError
from mlx_trm.system.files import cache_folder, hash_file
from mlx_trm.tasks.puzzle_files import FilePuzzles
from mlx_trm.tasks.text import TextForm

LOG = logging.getLogger(__name__)

C = TypeVar("C")
T = TypeVar("T", bound="Type[Task]")


class ScoredRows(NamedTuple):
    """Some examples of a set with what a model answered; no padding rows.

    Attributes:
        inputs: (n, S) integer tokens.
        labels: (n, S) integer tokens, IGNORE_LABEL_ID where not scored.
        predictions: (n, S) integer tokens.
        puzzle_identifiers: (n,) rows of the puzzle table.
        q_halt: (n,) float, the logit of the model's belief that the prediction is right.
        places: (n,) the examples' places in their set.
    """

    inputs: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    puzzle_identifiers: np.ndarray
    q_halt: np.ndarray
    places: np.ndarray


class Scorer:
    """Scores a set by the rules of a task, beyond cell and exact accuracy."""

    def update(self, rows: ScoredRows) -> None:
        """Count some examples; how they are cut into batches makes no difference."""
        raise NotImplementedError

    def result(self) -> Dict[str, float]:
        """Return the metrics by name."""
        raise NotImplementedError

    def state(self) -> Dict[str, np.ndarray]:
        """Return everything counted so far as arrays, to be sent to another process."""
        raise NotImplementedError

    def merge(self, state: Dict[str, np.ndarray]) -> None:
        """Add what another scorer of the same set counted, as its :meth:`state` says."""
        raise NotImplementedError

    def files(self) -> Dict[str, str]:
        """Return texts worth keeping, by file name: a submission, say. By default none."""
        return {}


# What is good of some examples, as bool of any shape, by the name of each measure.
Judge = Callable[[ScoredRows], Dict[str, np.ndarray]]


class ShareScorer(Scorer):
    """The shares that the rules of a task call good, by one or more measures."""

    def __init__(self, metrics: Sequence[str], judge: Judge) -> None:
        """Begin with counts of zero.

        Args:
            metrics: their names.
            judge: says what counts for each of them, and by its size among how many.
        """
        self.judge = judge
        self.counts = {name: np.zeros(2, np.int64) for name in metrics}

    def update(self, rows: ScoredRows) -> None:
        """Count predictions."""
        good = self.judge(rows)
        self.merge({name: np.array([flags.sum(), flags.size]) for name, flags in good.items()})

    def state(self) -> Dict[str, np.ndarray]:
        """Return how many are good, and of how many, by measure."""
        return dict(self.counts)

    def merge(self, state: Dict[str, np.ndarray]) -> None:
        """Add another scorer's counts."""
        for name, pair in state.items():
            self.counts[name] = self.counts[name] + pair

    def result(self) -> Dict[str, float]:
        """Return the shares, NaN where nothing was measured."""
        return {name: int(n) / (int(of) or float("nan")) for name, (n, of) in self.counts.items()}


class Task(TextForm):
    """Base of all tasks. A subclass writes ``spec`` and ``groups``; the rest has defaults.

    Attributes:
        version: raised whenever the same settings give other puzzles, so that no cached ones are
            used. (A change in a plugin's file is noticed without it.)
        config: the task's section of the configuration.
        seed: decides generated and augmented puzzles.
        assumed: dimensions of the model that is asked, for a task that has them from its data and
            cannot read these here.
    """

    version = 1
    assumed: Optional[TaskSpec] = None

    def __init__(self, config: Any, seed: int = 0) -> None:
        """Keep the settings; nothing is read yet.

        Args:
            config: of the class that the task is registered with.
            seed: of the data, :attr:`ExperimentConfig.task_seed`.
        """
        self.config = config
        self.seed = seed

    @property
    def spec(self) -> TaskSpec:
        """Dimensions and special tokens.

        How many identifiers there are may be known to the built dataset only; then any number
        above 1 says that there are some.
        """
        raise NotImplementedError

    @property
    def names_puzzles(self) -> bool:
        """Whether puzzles have names. They are numbered over all splits, built together then."""
        return self.spec.num_puzzle_identifiers > 1

    @property
    def token_names(self) -> List[str]:
        """What each of the V tokens stands for; by default its number."""
        return [str(token) for token in range(self.spec.vocab_size)]

    def groups(self, split: str, rng: np.random.Generator) -> Iterable[Group]:
        """Yield the puzzles of a split, in groups: a puzzle and its augmentations.

        Args:
            split: ``train`` or ``test``.
            rng: decides everything that is random; its seed is the task's.

        Returns:
            Lists of :class:`Puzzle`, or :class:`PuzzleBlock` where there are millions.

        Raises:
            DataError: if the raw data cannot be used.
        """
        raise NotImplementedError

    def augment(
        self, inputs: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> Tuple[np.ndarray, np.ndarray]:
        """Transform a batch of (B, S) uint8 inputs and labels; used with ``augment: online``."""
        del rng
        return inputs, labels

    def read_file(self, path: Union[str, Path]) -> Iterator[FilePuzzles]:
        """Read puzzles with their answers from a file, part by part and in its order.

        Raises:
            DataError: at the first thing wrong, or if the task reads no files.
        """
        raise DataError(
            f"{path}: the task {self.config.name!r} reads no puzzle files; use task.data_dir"
        )

    # pylint: disable-next=useless-return
    def scorer(self, source: Optional[SetSource] = None) -> Optional[Scorer]:
        """Return a new scorer, if the task has one.

        Args:
            source: the set to be scored; None where it does not matter which one.
        """
        del source
        return None

    def raw_file(self, split: str) -> Optional[Path]:
        """Return the file that the settings name for a split; None: they name none."""
        check_split(split)
        chosen = self.config.train_file if split == "train" else self.config.test_file
        return Path(chosen).expanduser() if chosen else None

    def content(self, split: str) -> Dict[str, Any]:
        """Return everything that decides the puzzles of a split, as JSON; the cache's key.

        Settings of the task that do not matter may be left out, so that they rebuild nothing.
        """
        settings = asdict(self.config)
        settings.pop("data_dir", None)
        for name in ("train_file", "test_file"):
            if settings.get(name):
                settings[name] = hash_file(settings[name])
        return {**settings, "split": split, "seed": self.seed}

    def dataset(self, split: str, progress: bool = False) -> PuzzleDataset:
        """Open a split: that of ``data_dir``, or one built from the settings into the cache.

        Args:
            split: ``train`` or ``test``.
            progress: show a bar while building.

        Raises:
            DataError: if the data cannot be read or built, or are not of this task's dimensions.
        """
        check_split(split)
        if self.config.data_dir:
            dataset = PuzzleDataset.load(self.config.data_dir, split)
            for name in ("vocab_size", "seq_len"):
                have, want = getattr(dataset.spec, name), getattr(self.spec, name)
                if have != want:
                    raise DataError(
                        f"{dataset.name}: {name} is {have}, this task needs {want}; "
                        "give the data_dir that was built for it"
                    )
            return dataset
        splits, folder = self._place_in_cache(split)
        if not is_built(folder):
            LOG.info("building %s into %s", " and ".join(splits), folder)
            self.build(folder, splits, progress, keep_existing=True)
        try:
            return PuzzleDataset.load(folder, split)
        except DamagedError as error:  # not what cannot be read just now
            LOG.warning("%s: building it anew", error)
            self.build(folder, splits, progress)
            return PuzzleDataset.load(folder, split)

    def find_built(self, split: str) -> Optional[Path]:
        """Return the folder in the cache that :meth:`dataset` would open; None: it is not built.

        Raises:
            DataError: if the raw data, which decide its name, cannot be read.
        """
        folder = self._place_in_cache(split)[1]
        return folder if is_built(folder) else None

    def _place_in_cache(self, split: str) -> Tuple[Sequence[str], Path]:
        """Return the splits that are built together with one, and their folder in the cache."""
        splits = SPLITS if self.names_puzzles else (split,)
        name = f"{self.config.name}-{'-'.join(splits)}-{self.cache_key(splits)[:16]}"
        return splits, cache_folder() / name

    def cache_key(self, splits: Sequence[str] = SPLITS) -> str:
        """Return a hash of everything that decides the built files."""
        about = {
            "format": FORMAT_VERSION,
            "code": [self.version, _plugin_code(type(self))],
            "content": [self.content(split) for split in splits],
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def build(
        self,
        folder: Union[str, Path],
        splits: Sequence[str] = SPLITS,
        progress: bool = False,
        keep_existing: bool = False,
    ) -> Dict[str, Dict[str, Any]]:
        """Build a dataset in the reference's format; afterwards it is there whole or not at all.

        Args:
            folder: to make, or to replace if an earlier build made it.
            splits: which ones.
            progress: show a bar.
            keep_existing: leave the folder if another process makes it meanwhile.

        Returns:
            What each split's ``dataset.json`` says.

        Raises:
            DataError: if the data cannot be read, or the folder not be written.
        """
        with whole_folder(Path(folder).expanduser(), keep_existing) as temporary:
            about = self.write(temporary, splits, progress)
            content = [self.content(split) for split in splits]
            marker = {"made_by": "mlx_trm", "format": FORMAT_VERSION, "content": content}
            write_marker(temporary, {**marker, "key": self.cache_key(splits)})
        return about

    def write(
        self, folder: Path, splits: Sequence[str], progress: bool
    ) -> Dict[str, Dict[str, Any]]:
        """Write the files of a built dataset into a new folder; :meth:`build` makes it whole.

        Arguments and return value are those of :meth:`build`.
        """
        rngs = {split: np.random.default_rng([self.seed, SPLITS.index(split)]) for split in splits}
        groups = (
            (split, with_progress(self.groups(split, rng), split, progress))
            for split, rng in rngs.items()
        )
        return write_splits(groups, folder, self.spec)


def check_split(split: str) -> None:
    """Refuse an unknown split.

    Raises:
        DataError: if it is neither ``train`` nor ``test``.
    """
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; there are {' and '.join(SPLITS)}")


def register_task(name: str, config_class: Type[TaskConfig]) -> Callable[[T], T]:
    """Register the decorated :class:`Task` under the name that ``task.name`` gives.

    Args:
        name: for configurations.
        config_class: a dataclass derived from TaskConfig.
    """
    return TASKS.register(name, config_class)


def build_task(config: TaskConfig, seed: int = 0) -> Task:
    """Make the task that a configuration names.

    Args:
        config: a task section.
        seed: of its data.

    Raises:
        ConfigError: if no task has that name.
    """
    task: Task = TASKS.get(config.name).cls(config, seed)
    return task


def _plugin_code(cls: Type[Task]) -> Optional[str]:
    """Return a hash of the module that defines a task outside this package."""
    if cls.__module__.split(".")[0] == __name__.split(".", maxsplit=1)[0]:
        return None
    try:
        source = inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):  # a notebook is no file, but keeps its cells
        members = [getattr(value, "fget", value) for value in vars(cls).values()]
        try:
            source = "".join(map(inspect.getsource, filter(inspect.isfunction, members)))
        except OSError:  # typed at a prompt
            return None
    return hashlib.sha256(source.encode()).hexdigest()


def with_progress(
    items: Iterable[C], name: str, progress: bool, unit: str = " puzzles"
) -> Iterator[C]:
    """Yield groups of puzzles, or other items; with ``progress`` a bar called ``name`` counts."""
    if not progress:
        yield from items
        return
    from tqdm import tqdm

    with tqdm(desc=name, unit=unit, unit_scale=True) as shown:
        for item in items:
            yield item
            n = len(item) if isinstance(item, list) else 1
            shown.update(len(item.inputs) // item.examples if isinstance(item, PuzzleBlock) else n)
