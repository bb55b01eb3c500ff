"""The names of puzzle identifiers: to which puzzle each row of a puzzle table belongs.

A built dataset holds them in ``identifiers.json``, a checkpoint packed in ``identifiers.json.gz``:
an ARC set with a thousand augmentations has 876,406, 25 MB as text. With the names a table keeps
its meaning when a dataset is built again, with other tasks or in another order.
"""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set, Tuple

from mlx_trm.datasets.dataset import PuzzleDataset
from mlx_trm.datasets.reading import read_metadata
from mlx_trm.datasets.writing import BLANK_NAME, IDENTIFIERS
from mlx_trm.errors import DamagedError, describe_error
from mlx_trm.system.bounded import MOST_TEXT, parse_json, unpack_gzip
from mlx_trm.system.files import read_json

# What helps where a built dataset's names or places are damaged.
NAMES_ADVICE = "; ARC is scored with it, build the dataset again"


def load_names(folder: Path) -> List[str]:
    """Read the names of the identifiers of a built dataset; number 0 is the blank one.

    Raises:
        DataError: if they cannot be read.
    """
    path = folder / IDENTIFIERS
    names: List[str] = read_json(path, list, NAMES_ADVICE)
    if not names or not all(isinstance(name, str) for name in names):
        raise DamagedError(f"{path}: is not a list of names{NAMES_ADVICE}")
    return names


def load_all_names(folder: Path, split: str) -> List[str]:
    """Read the names of a built dataset that says how many there are.

    Raises:
        DataError: if they cannot be read, or are more or fewer.
    """
    names = load_names(folder)
    count = read_metadata(folder / split / "dataset.json")[1].num_puzzle_identifiers
    if len(names) != count:
        raise DamagedError(
            f"{folder / IDENTIFIERS}: has {len(names):,} names, the dataset has {count:,} "
            "identifiers; build the dataset again"
        )
    return names


def row_names(dataset: PuzzleDataset) -> Optional[List[str]]:
    """Name the rows of the puzzle table that a dataset needs.

    Args:
        dataset: of one folder, or of several, whose identifiers are numbered on.

    Returns:
        N names, the blank one first; None where a folder has none.

    Raises:
        DataError: if a file with names is damaged.
    """
    names = [BLANK_NAME]
    seen: Set[Tuple[Path, int]] = set()
    for name in dataset.sets:
        source = dataset.source(name)
        if (source.folder, source.first_identifier) in seen:
            continue
        seen.add((source.folder, source.first_identifier))
        if not (source.folder / IDENTIFIERS).is_file():
            continue  # of a task without names; what is missing is seen below
        if source.first_identifier != len(names) - 1:
            return None
        names += load_all_names(source.folder, source.split)[1:]
    return names if len(names) == dataset.spec.num_puzzle_identifiers else None


def number_rows(names: Sequence[str]) -> Dict[str, Optional[int]]:
    """Give the row of each name; None where several rows have it, because data sets were mixed."""
    rows: Dict[str, Optional[int]] = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        rows.update((name, None) for name, count in Counter(names).items() if count > 1)
    return rows


def pack_names(names: Sequence[str]) -> bytes:
    """Write names as compressed JSON, the same bytes every time; of ARC's a quarter is left."""
    text = json.dumps(list(names), ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode("utf-8"), compresslevel=6, mtime=0)


def unpack_names(packed: bytes) -> List[str]:
    """Read what :func:`pack_names` wrote.

    Raises:
        ValueError: if it is something else.
    """
    try:
        names = parse_json(unpack_gzip(packed, MOST_TEXT))
    except ValueError as error:
        raise ValueError(f"no packed names ({describe_error(error)})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("no list of names")
    return names
