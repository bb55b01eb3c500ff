"""Test pairs that a model is trained on: subsets share tasks, some under other names.

ARC-AGI-2's training tasks hold most evaluation tasks of ARC-AGI-1, so a model that is trained on
the one and tested on the other has seen the answers.
"""

import logging
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Sequence

from mlx_trm.datasets.dataset import PuzzleDataset
from mlx_trm.errors import shown
from mlx_trm.system.files import read_json, write_json
from mlx_trm.tasks.arc.builder import Plan
from mlx_trm.tasks.arc.files import Pair

LOG = logging.getLogger(__name__)

# Where a built test split keeps what was found.
SHARED = "test_pairs_in_training"


def log_plans(plans: Sequence[Plan], num_aug: int) -> None:
    """Say how many tasks have fewer augmentations than were wanted."""
    short = sum(len(plan.transforms) <= num_aug for plan in plans)
    if short:
        LOG.info(
            "%d of %d tasks have fewer than %d different augmentations", short, len(plans), num_aug
        )


def find_shared(plans: Iterable[Plan]) -> Optional[Dict[str, Any]]:
    """Find test pairs, input and output, that are training examples of any task too.

    Returns:
        How many are, of how many, and the first one as ``TASK:NUMBER``; None where there is none.
    """
    plans = list(plans)
    trained = {_key(pair) for plan in plans for pair in plan.pairs("train")}
    tested = [
        (plan.task.name, number, _key(pair))
        for plan in plans
        for number, pair in enumerate(plan.pairs("test"), 1)
    ]
    shared = [(name, number) for name, number, key in tested if key in trained]
    if not shared:
        return None
    name, number = shared[0]
    return {"shared": len(shared), "of": len(tested), "first": f"{name}:{number}"}


def _key(pair: Pair) -> bytes:
    return b"".join(bytes(grid.shape) + grid.tobytes() for grid in pair)


def note_shared(plans: Sequence[Plan], split: Path, about: Dict[str, Any]) -> None:
    """Write what :func:`find_shared` finds into the ``dataset.json`` of the test split."""
    found = find_shared(plans)
    if found is not None:
        about[SHARED] = found
        write_json(split / "dataset.json", about, indent=1)


def warn_of_shared(dataset: PuzzleDataset) -> None:
    """Say how many test pairs of a built dataset are training examples, where any are."""
    for folder in sorted({dataset.source(name).folder for name in dataset.sets}):
        found = read_json(folder / "test" / "dataset.json").get(SHARED)
        if isinstance(found, dict):
            first = found.get("first")
            LOG.warning(
                "%s: %s of %s test pairs are training examples too, such as %s; the model learns "
                "their answers by heart, so leave out a subset of task.subsets",
                *(folder, shown(found.get("shared")), shown(found.get("of")), shown(first)),
            )
