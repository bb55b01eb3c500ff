"""Reading ARC tasks: Kaggle's two JSON files a subset, or a folder with one JSON file a task.

Reference: dataset/build_arc_dataset.py ``load_puzzles_arcagi``.
"""

import logging
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from mlx_trm.config.checks import is_unicode
from mlx_trm.errors import DataError, shown
from mlx_trm.system.files import read_json
from mlx_trm.tasks.arc.grids import CANVAS, SEPARATOR, check_grid

LOG = logging.getLogger(__name__)

PARTS = ("train", "test")
Pair = Tuple[np.ndarray, np.ndarray]


class ArcTask(NamedTuple):
    """One task: demonstrations and test pairs.

    Attributes:
        name: its identifier.
        pairs: (input, output) grids, (H, W) uint8, by part; the parts in the order of the file,
            which decides the order of examples.
        raw: the JSON, outputs of the test pairs filled in.
    """

    name: str
    pairs: Dict[str, List[Pair]]
    raw: Dict[str, Any]


class Subset(NamedTuple):
    """Where the tasks of a subset are.

    Attributes:
        name: of the subset.
        challenges: a JSON file, or a folder with one JSON file a task.
        solutions: a JSON file; None for a folder.
    """

    name: str
    challenges: Path
    solutions: Optional[Path]

    def files(self) -> List[Path]:
        """Return every file that is read, in order."""
        if self.solutions is None:
            return sorted(self.challenges.rglob("*.json"), key=lambda path: (path.stem, path))
        return [self.challenges] + ([self.solutions] if self.solutions.is_file() else [])


def find_subset(prefix: Path, name: str) -> Subset:
    """Find the files of a subset: ``{prefix}_{name}_challenges.json``, or a folder.

    Args:
        prefix: beginning of the files' names, or a folder that holds them.
        name: of the subset.

    Raises:
        DataError: saying where it was looked for.
    """
    starts = [f"{prefix}_{name}"] + ([str(prefix / name)] if prefix.is_dir() else [])
    for start in starts:
        challenges = Path(f"{start}_challenges.json")
        if challenges.is_file():
            return Subset(name, challenges, Path(f"{start}_solutions.json"))
        if Path(start).is_dir():
            found = Subset(name, Path(start), None)
            if not found.files():
                raise DataError(f"{start}: holds no JSON files; it should hold one a task")
            return found
    places = " nor ".join(f"{start}_challenges.json nor a folder {start}" for start in starts)
    raise DataError(
        f"task.subsets: {name!r}: there is neither {places}; "
        "task.input_file_prefix says where the names begin"
    )


def read_subset(subset: Subset, size: int = CANVAS, complete: bool = True) -> List[ArcTask]:
    """Read and check the tasks of a subset, in the order of the file, or of a folder's names.

    Args:
        subset: where they are.
        size: of the canvas, the largest grid.
        complete: refuse test inputs without an output; otherwise they get the grid ``[[0]]``.

    Raises:
        DataError: naming the file, the task and the pair.
    """
    if subset.solutions is None:
        return _read_folder(subset, size, complete)
    raw = read_json(subset.challenges)
    solutions: Dict[str, Any] = {}
    if subset.solutions.is_file():
        solutions = read_json(subset.solutions)
        spare = [name for name in solutions if name not in raw]
        if spare:
            LOG.warning(
                "%s: has solutions of %d tasks that are not in %s, such as %s; they are not used",
                *(subset.solutions, len(spare), subset.challenges, shown(spare[0])),
            )
    elif complete and not all(_answered(task) for task in raw.values()):
        raise DataError(
            f"{subset.solutions}: no such file; put the solutions there, or leave the answers open "
            "with task.require_solutions=false (their accuracy means nothing then)"
        )
    tasks = []
    for name, task in raw.items():
        where = f"{subset.challenges}: task {shown(name)}"
        _check_task(task, where)
        answers = ""
        if subset.solutions.is_file():
            answers = f"{subset.solutions}: task {shown(name)}"
            _fill_in(task, solutions.get(name), answers)
        tasks.append(_task(name, task, where, size, complete, answers))
    if not tasks:
        raise DataError(f"{subset.challenges}: holds no tasks")
    return tasks


def read_own(path: Path, size: int = CANVAS) -> List[ArcTask]:
    """Read tasks as people have them; test inputs need no output.

    Args:
        path: a JSON file of one task, or of several by name (with Kaggle's solutions where they lie
            beside it), or a folder with one JSON file a task.
        size: of the canvas, the largest grid.

    Raises:
        DataError: naming the file, the task and the pair.
    """
    if path.is_dir():
        subset = Subset(path.name, path, None)
        if not subset.files():
            raise DataError(f"{path}: holds no JSON files; it should hold one a task")
        return read_subset(subset, size, complete=False)
    raw = read_json(path)
    if any(isinstance(raw.get(part), list) for part in PARTS):
        _check_task(raw, str(path))
        return [_task(path.stem, raw, str(path), size, complete=False)]
    solutions = path.with_name(path.name.replace("_challenges.", "_solutions."))
    beside = solutions if solutions != path else path.with_name(f"{path.stem}_solutions.json")
    return read_subset(Subset(path.stem, path, beside), size, complete=False)


def _read_folder(subset: Subset, size: int, complete: bool) -> List[ArcTask]:
    tasks: Dict[str, ArcTask] = {}
    for path in subset.files():
        name, raw = path.stem, read_json(path)
        _check_task(raw, str(path))
        if name in tasks:
            raise DataError(f"{path}: there are two tasks of this name in {subset.challenges}")
        tasks[name] = _task(name, raw, str(path), size, complete)
    return list(tasks.values())


def _answered(task: Any) -> bool:
    pairs = task.get("test") if isinstance(task, dict) else None
    return isinstance(pairs, list) and all(
        isinstance(pair, dict) and "output" in pair for pair in pairs
    )


def _check_task(task: Any, where: str) -> None:
    """Refuse what is not lists of pairs."""
    for part in PARTS:
        pairs = task.get(part) if isinstance(task, dict) else None
        if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
            raise DataError(f"{where}: {part!r} must be a list of input and output grids")
        if not pairs:
            raise DataError(f"{where}: {part!r} is empty")


def _fill_in(task: Dict[str, Any], answers: Any, where: str) -> None:
    """Put the outputs into the test pairs."""
    pairs = task["test"]
    if answers is None:
        raise DataError(f"{where}: has no entry")
    if not isinstance(answers, list) or len(answers) != len(pairs):
        have = f"{len(answers)} grids" if isinstance(answers, list) else "no list of grids"
        raise DataError(f"{where}: has {have}, the task has {len(pairs)} test inputs")
    for pair, answer in zip(pairs, answers):
        pair["output"] = answer


def _task(
    name: str, raw: Dict[str, Any], where: str, size: int, complete: bool, answers: str = ""
) -> ArcTask:
    """Check the name and the grids of a task; ``answers`` says where its outputs come from."""
    if SEPARATOR in name or not name or not is_unicode(name):
        place = where.encode("utf-8", "replace").decode()
        raise DataError(f"{place}: a task's name is text without {SEPARATOR!r}")
    pairs: Dict[str, List[Pair]] = {}
    for part in raw:
        if part not in PARTS:
            continue
        pairs[part] = []
        for number, pair in enumerate(raw[part], 1):
            here = f"{where}: {part} pair {number}"
            if part == "test" and not complete and pair.get("output") is None:
                pair["output"] = [[0]]
            grids = []
            for side in ("input", "output"):
                if side not in pair:
                    raise DataError(f"{here}: has no {side!r}")
                there = here
                if answers and part == "test" and side == "output":
                    there = f"{answers}: {part} pair {number}"
                grids.append(check_grid(pair[side], f"{there}: {side}", size))
            pairs[part].append((grids[0], grids[1]))
    return ArcTask(name, pairs, raw)
