"""What data there is: samples that come with the package, sets fetched, and datasets built."""

import json
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional

from mlx_trm.datasets.dataset import PuzzleDataset
from mlx_trm.datasets.sources import SAMPLES, SOURCES, fetched_folder, is_fetched, read_record
from mlx_trm.datasets.writing import MARKER, SPLITS
from mlx_trm.errors import DataError, shown
from mlx_trm.system.bounded import read_object
from mlx_trm.system.files import cache_folder


class DataEntry(NamedTuple):
    """One line of ``data list``.

    Attributes:
        name: of the file or folder.
        content: what it holds, in words.
        examples: how many puzzles; None where that cannot be told.
        size: bytes on disk.
        path: where it is.
    """

    name: str
    content: str
    examples: Optional[int]
    size: int
    path: Path


def bundled_samples() -> List[DataEntry]:
    """List the puzzles that come with the package."""
    found = [
        DataEntry(
            path.stem,
            path.stem.replace("_", " ") + " puzzles",
            path.read_bytes().count(b"\n") - 1,
            path.stat().st_size,
            path,
        )
        for path in SAMPLES.glob("*.csv")
    ]
    for path in SAMPLES.glob("*_challenges.json"):
        solutions = path.with_name(path.name.replace("_challenges", "_solutions"))
        found.append(
            DataEntry(
                path.stem[: -len("_challenges")],
                "small ARC-format tasks",
                len(json.loads(path.read_text(encoding="utf-8"))),
                path.stat().st_size + solutions.stat().st_size,
                path,
            )
        )
    return sorted(found)


def fetched_sets() -> List[DataEntry]:
    """List the sets that have been fetched."""
    found = []
    for name, source in SOURCES.items():
        if is_fetched(name):
            place = fetched_folder(name)
            size = sum(size for size, _ in read_record(place)[name].files.values())
            found.append(DataEntry(name, source.summary, source.puzzles, size, place))
    return found


def built_datasets(folder: Optional[Path] = None) -> List[DataEntry]:
    """List the datasets in the cache.

    Args:
        folder: where to look; default :func:`~mlx_trm.system.files.cache_folder`.
    """
    root = cache_folder() if folder is None else folder
    found = []
    for marker in sorted(root.glob(f"*/{MARKER}")):
        size = sum(path.stat().st_size for path in marker.parent.rglob("*") if path.is_file())
        splits = list(_splits(marker.parent))
        examples: Optional[int] = sum(len(dataset) for dataset in splits) if splits else None
        content = " and ".join(dataset.path.name for dataset in splits) or "damaged"
        try:
            about = read_object(marker, 1 << 24)["content"][0]
            task, seed = shown(about["task"]), shown(about.get("seed", "not used"))
            content = f"{task} {content}, seed {seed}"
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass  # a task of somebody's own may describe itself otherwise
        found.append(DataEntry(marker.parent.name, content, examples, size, marker.parent))
    return found


def _splits(folder: Path) -> Iterator[PuzzleDataset]:
    """Open the splits of a built dataset that can be opened."""
    for split in SPLITS:
        try:
            yield PuzzleDataset.load(folder, split)
        except DataError:
            continue
