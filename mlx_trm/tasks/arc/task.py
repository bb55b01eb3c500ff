"""The ARC task: ARC-AGI-1, ARC-AGI-2, ConceptARC, or any tasks in their format.

A task's demonstrations, and its test pairs unless they are for testing, are examples of one
puzzle, which has a row of the puzzle table; so has each of its augmentations.

Reference: dataset/build_arc_dataset.py, evaluators/arc.py.
"""

import json
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from mlx_trm.config.sections import TaskConfig, TaskSpec
from mlx_trm.datasets.dataset import PuzzleDataset, SetSource
from mlx_trm.datasets.names import load_names
from mlx_trm.datasets.sources import SAMPLES, fetched_folder
from mlx_trm.datasets.writing import SPLITS, TEST_PUZZLES, PuzzleBlock, write_splits
from mlx_trm.errors import DataError, did_you_mean, shown
from mlx_trm.system.files import hash_file
from mlx_trm.tasks.arc import grids as arc_grids
from mlx_trm.tasks.arc.builder import Plan, Writer, check_amount, draw_plans, number_plans
from mlx_trm.tasks.arc.files import ArcTask, Subset, find_subset, read_subset
from mlx_trm.tasks.arc.lookup import (
    KnownInput,
    KnownSet,
    KnownTasks,
    looks_like_name,
    read_built,
    read_raw,
    split_grids,
)
from mlx_trm.tasks.arc.overlap import log_plans, note_shared, warn_of_shared
from mlx_trm.tasks.arc.view import GridView
from mlx_trm.tasks.arc.voting import NO_ANSWER, ArcScorer, load_scorer
from mlx_trm.tasks.base import check_split, register_task, with_progress

LOG = logging.getLogger(__name__)


@dataclass
class ARCConfig(TaskConfig):
    """Settings of the ARC task."""

    seed: Optional[int] = field(default=42, metadata={"min": 0, "max": 2**32 - 1})
    """Seed of the augmentations; identifiers, rows of a trained table, depend on it."""
    input_file_prefix: Optional[str] = None
    """Where the raw files' names begin (reference: input_file_prefix); unset: what is fetched."""
    subsets: List[str] = field(default_factory=lambda: ["training", "evaluation", "concept"])
    """Which subsets, in this order (reference: subsets)."""
    test_set_name: str = "evaluation"
    """The subset whose test pairs are for testing (reference: test_set_name)."""
    num_aug: int = field(default=1000, metadata={"min": 0})
    """Augmentations of each task (reference: num_aug)."""
    require_solutions: bool = True
    """Refuse test inputs without a solution; false fills in blanks, as a contest needs."""
    aggregated_voting: bool = False
    """Keep votes for the next evaluations, until a run stops (reference: aggregated_voting)."""
    max_grid_size: int = field(default=arc_grids.CANVAS, metadata={"min": 2, "max": 30})
    """Rows and columns of the canvas; ARC's own grids need 30."""

    def problems(self) -> List[str]:
        """Find settings that do not fit together."""
        found = super().problems()
        for name in ("train_file", "test_file"):
            if getattr(self, name):
                found.append(f"{name}: ARC is read from input_file_prefix and subsets")
        if not self.subsets or len(set(self.subsets)) != len(self.subsets):
            found.append("subsets: " + ("names one twice" if self.subsets else "is empty"))
        elif self.test_set_name not in self.subsets:
            hint = did_you_mean(self.test_set_name, self.subsets)
            found.append(
                f"test_set_name: {self.test_set_name!r} is not one of subsets "
                f"{', '.join(self.subsets)}{hint}"
            )
        if any(not name or set(name) & set("/\\\0") for name in self.subsets):
            found.append("subsets: a name is part of a file's name, without slashes")
        return found


@register_task("arc", ARCConfig)
class ARC(GridView):  # pylint: disable=too-many-public-methods
    """Find the rule in a few pairs of coloured grids and apply it to one more."""

    config: ARCConfig
    symbols = "0123456789/[], "

    def __init__(self, config: ARCConfig, seed: int = 0) -> None:
        """Keep the settings; nothing is read yet. Arguments as of every task."""
        super().__init__(config, seed)
        self._scorers: Dict[SetSource, ArcScorer] = {}
        self._known: Optional[KnownTasks] = None

    @property
    def spec(self) -> TaskSpec:
        """Dimensions; how many identifiers there are is known to the built dataset only."""
        return TaskSpec(
            vocab_size=arc_grids.VOCABULARY,
            seq_len=self.config.max_grid_size**2,
            num_puzzle_identifiers=2,
        )

    # Reading and building ----------------------------------------------------------------------

    def subsets(self) -> List[Subset]:
        """Find the files of all subsets.

        Raises:
            DataError: if one is missing.
        """
        prefix = self.prefix()
        return [find_subset(prefix, name) for name in self.config.subsets]

    def prefix(self) -> Path:
        """Return where the names of the raw files begin: given, bundled, or fetched.

        Raises:
            DataError: if none is given and nothing has been fetched.
        """
        chosen = self.config.input_file_prefix
        if chosen is None:
            fetched = fetched_folder("arc1")
            if fetched.is_dir():
                return fetched
            raise DataError(
                "task.input_file_prefix: is not set and no ARC data have been fetched; "
                "python -m mlx_trm.data fetch arc1 arc2 conceptarc brings them, or name the prefix "
                "of your own files"
            )
        path = Path(chosen).expanduser()
        there = path.is_dir() or any(path.parent.glob(f"{path.name}_*"))
        bundled = SAMPLES / chosen
        if not there and "/" not in chosen and any(SAMPLES.glob(f"{bundled.name}_*")):
            return bundled
        return path

    def plans(self, rng: np.random.RandomState) -> Iterator[Plan]:
        """Read all tasks and draw their augmentations.

        Args:
            rng: NumPy's legacy generator, fresh from the seed.

        Raises:
            DataError: if the raw data cannot be used.
        """
        # Differs from reference: with the test subset first, its order of splits depends on
        # Python's hashing of strings; here train always comes first.
        yield from draw_plans(self._read_tasks(), self.config.num_aug, rng)

    def _read_tasks(self) -> Iterator[Tuple[List[ArcTask], bool]]:
        """Read the tasks of each subset, and whether they are for testing."""
        config, count = self.config, 0
        for subset in self.subsets():
            tasks = read_subset(subset, config.max_grid_size, config.require_solutions)
            where = str(subset.challenges)
            count = check_amount(tasks, count, config.num_aug, config.max_grid_size, where)
            yield tasks, subset.name == config.test_set_name

    def groups(self, split: str, rng: np.random.Generator) -> Iterator[PuzzleBlock]:
        """Yield a block for each task: the puzzle and its augmentations.

        Args:
            split: ``train`` or ``test``.
            rng: not used; the draws are the reference's, by a generator of the task's seed.

        Raises:
            DataError: if the raw data cannot be used.
        """
        check_split(split)
        legacy = np.random.RandomState(self.seed)
        plans = list(self.plans(legacy))
        writer = Writer(legacy, self.config.max_grid_size)
        if split == "test":
            for _ in writer.blocks(plans, "train"):
                pass
        yield from writer.blocks(plans, split)

    def write(
        self, folder: Path, splits: Sequence[str], progress: bool
    ) -> Dict[str, Dict[str, Any]]:
        """Write both splits, the identifiers and the test tasks; see :meth:`Task.write`."""
        if set(splits) != set(SPLITS):
            raise ValueError("the splits of ARC are built together")
        rng = np.random.RandomState(self.seed)
        plans = list(with_progress(self.plans(rng), "augmenting", progress, " tasks"))
        log_plans(plans, self.config.num_aug)
        writer = Writer(rng, self.config.max_grid_size)
        groups = (
            (split, with_progress(writer.blocks(plans, split), split, progress)) for split in SPLITS
        )
        about = write_splits(groups, folder, self.spec)
        tests = {plan.task.name: plan.task.raw for plan in plans if plan.to_test}
        (folder / TEST_PUZZLES).write_text(json.dumps(tests) + "\n", encoding="utf-8")
        note_shared(plans, folder / "test", about["test"])
        return about

    def dataset(self, split: str, progress: bool = False) -> PuzzleDataset:
        """Open a split, and say which test pairs are trained on; see :meth:`Task.dataset`."""
        found = super().dataset(split, progress)
        if split == "test":
            warn_of_shared(found)
            if not self.config.require_solutions:
                found.open_answer = arc_grids.encode(NO_ANSWER, self.config.max_grid_size)
        return found

    def content(self, split: str) -> Dict[str, Any]:
        """Return what decides the built files; the splits are built together."""
        config = self.config
        files = {
            subset.name: [
                [path.name, hash_file(path)] if subset.solutions is None else hash_file(path)
                for path in subset.files()
            ]
            for subset in self.subsets()
        }
        return {
            "task": config.name,
            "split": split,
            "files": files,
            "test_set_name": config.test_set_name,
            "num_aug": config.num_aug,
            "require_solutions": config.require_solutions,
            "max_grid_size": config.max_grid_size,
            "seed": self.seed,
        }

    # Scoring -----------------------------------------------------------------------------------

    def scorer(self, source: Optional[SetSource] = None) -> Optional[ArcScorer]:
        """Return the voting scorer of a test set; the train split has nothing to vote on.

        Raises:
            DataError: if the dataset lacks what votes are counted with.
        """
        if source is None or source.split != "test":
            return None
        size, complete = self.config.max_grid_size, self.config.require_solutions
        # Differs from reference: it votes over all evaluations so far unless told otherwise.
        if not self.config.aggregated_voting:
            return load_scorer(source, size, complete)
        if source in self._scorers:
            self._scorers[source].next_round()
        else:
            self._scorers[source] = load_scorer(source, size, complete)
        return self._scorers[source]

    # As a person sees it -----------------------------------------------------------------------

    def known_tasks(self) -> KnownTasks:
        """Return the test tasks, read once from ``data_dir`` or the raw files; nothing is built.

        There are none where the files cannot be read.
        """
        if self._known is None:
            try:
                self._known = KnownTasks(self._known_sets())
            except DataError as error:
                self._known = KnownTasks([], problem=str(error))
        return self._known

    def _known_sets(self) -> List[KnownSet]:
        config = self.config
        if config.data_dir:
            dataset = self.dataset("test")
            sources = map(dataset.source, dataset.sets)
            return [read_built(source, config.max_grid_size) for source in sources]
        subset = find_subset(self.prefix(), config.test_set_name)
        complete = config.require_solutions
        return [read_raw(subset, config.max_grid_size, complete, self._row_numbers)]

    def _row_numbers(self) -> Dict[str, int]:
        """Number the puzzles as a build does: as one in the cache says, or by its draws alone."""
        built = self.find_built("test")
        if built is not None:
            return {name: number for number, name in enumerate(load_names(built))}
        LOG.info("drawing all augmentations to number the puzzles; a checkpoint has the numbers")
        return number_plans(self.plans(np.random.RandomState(self.seed)))

    def _find(self, text: str) -> Optional[KnownInput]:
        """Look up a test input by the name of its task, or by the grid itself."""
        named = self.known_tasks().find_by_name(text) if looks_like_name(text) else []
        if named:
            return named[0]
        try:
            return self.known_tasks().find_by_grid(
                arc_grids.parse_grid(text, self.config.max_grid_size)
            )
        except DataError:
            return None

    def split_puzzles(self, lines: Iterable[str]) -> Iterator[Tuple[int, str]]:
        """Find the grids in a file: JSON of tasks, of one grid, or rows of digits.

        Returns:
            Pairs of a line's number and a grid as :meth:`parse` reads it; of tasks their test
            inputs.
        """
        return split_grids(list(lines), self.known_tasks())

    def list_names(self) -> List[str]:
        """Give the test inputs of the data's tasks as ``NAME:NUMBER``."""
        known = self.known_tasks().by_name
        return [f"{each.name}:{each.number}" for name in sorted(known) for each in known[name]]

    def expand_puzzle(self, text: str) -> List[str]:
        """Return the test inputs of a task given by its name as ``NAME:NUMBER``."""
        if looks_like_name(text):
            return [
                f"{each.name}:{each.number}" for each in self.known_tasks().find_by_name(text)
            ] or [text]
        return [text]

    def parse(self, text: str) -> np.ndarray:
        """Read a puzzle into the canvas's corner.

        Args:
            text: a grid, ``012/345`` or ``[[0, 1, 2], [3, 4, 5]]``; or the name of a test task of
                the data set, of which ``NAME:2`` is the second test input.

        Raises:
            DataError: if it is malformed, too large, or no task's name.
        """
        size, hint = self.config.max_grid_size, ""
        if looks_like_name(text):
            named = self.known_tasks().find_by_name(text)
            if named:
                return arc_grids.encode(named[0].given, size)
            hint = self.known_tasks().explain_unknown(text)
        try:
            return arc_grids.encode(arc_grids.parse_grid(text, size), size)
        except DataError as error:
            raise DataError(f"{error}{hint}") from error

    def identifier(self, text: str) -> int:
        """Return the row of the puzzle table of a test input, known by its task's name or as it is.

        Any other grid gets the blank row, which no training has touched; it is logged.
        """
        found = self._find(text)
        number = 0 if found is None else self.known_tasks().identifier(found)
        if not number:
            problem = self.known_tasks().problem
            LOG.warning(
                "%s: is no test input of the data set%s, so the model knows no rule for it",
                shown(text.replace("\n", "/"), 60),
                f" ({problem})" if problem else "",
            )
        return number

    def row_name(self, text: str) -> Optional[str]:
        """Return the name of the task that a test input of the data set belongs to."""
        found = self._find(text)
        return None if found is None else found.name

    def demonstrations(self, text: str) -> List[Tuple[np.ndarray, np.ndarray]]:
        """Return the pairs that show what the task of a test input asks for.

        Args:
            text: as :meth:`parse` reads it.

        Returns:
            (S,) uint8 inputs and answers; none where it is no test input of the data set.
        """
        found, size = self._find(text), self.config.max_grid_size
        pairs = [] if found is None else self.known_tasks().demonstrations(found)
        encode = partial(arc_grids.encode, size=size)
        return [(encode(given), encode(answer)) for given, answer in pairs]

    def known_answer(self, text: str) -> Optional[np.ndarray]:
        """Return the (S,) uint8 answer of a test input of the data set."""
        found = self._find(text)
        if found is None:
            return None
        # Where solutions may be missing, one black cell stands for an answer that is not known.
        if not self.config.require_solutions and np.array_equal(found.answer, NO_ANSWER):
            return None
        return arc_grids.encode(found.answer, self.config.max_grid_size)
