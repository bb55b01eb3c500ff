"""Every file of a checkpoint, a dataset and a cache, damaged: never other data in silence.

Each damage is refused in one line, makes no difference, or is mended. A few are tried in every run,
five hundred of each file with ``-m slow``.
"""

import hashlib
import random
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import numpy as np
import pytest
from mutations import mutate
from toy_arc import write_tasks

from mlx_trm.__main__ import main
from mlx_trm.config.loading import load_config
from mlx_trm.datasets.dataset import PuzzleDataset
from mlx_trm.datasets.names import row_names
from mlx_trm.datasets.writing import SPLITS
from mlx_trm.errors import TRMError
from mlx_trm.models import named_arrays
from mlx_trm.runs.checkpoint import load_checkpoint, load_training_state
from mlx_trm.runs.puzzle_rows import read_row_names
from mlx_trm.tasks import build_task
from mlx_trm.tasks.arc.voting import load_scorer

SOME, ALL = 3, 500
STEP = "run/step_2"


@pytest.fixture(name="made", scope="module")
def make_sound_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of ARC tasks, their dataset, and a cache with another one."""
    folder: Path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        write_tasks()
        assert main("train --config c.yaml -q run_dir=run".split()) == 0
        assert main("data build --config c.yaml --output built".split()) == 0
    return folder


@pytest.fixture(name="work")
def make_work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the current folder."""
    folder = tmp_path / "work"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.setenv("MLX_TRM_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    for module in ("system.files", "datasets.writing"):  # no machine is switched off here
        monkeypatch.setattr(f"mlx_trm.{module}.flush", lambda path: None)
    return folder


def digest(*values: Any) -> str:
    """A hash of arrays and texts."""
    found = hashlib.sha256()
    for value in values:
        held = np.asarray(value)
        found.update(f"{held.shape} {held.dtype}".encode())
        found.update(str(value).encode() if held.dtype.kind in "UO" else held.tobytes())
    return found.hexdigest()


def read_checkpoint() -> str:
    """All that evaluating and going on reads of a checkpoint."""
    folder = Path(STEP)
    loaded = load_checkpoint(folder)
    weights = [array for _, array in sorted(named_arrays(loaded.model.parameters()))]
    step, average, training = load_training_state(folder, loaded.model)
    parts = [average or {}, training.optimizer, training.carry]
    arrays = [part[name] for part in parts for name in sorted(part)]
    facts = (loaded.step, step, loaded.spec, loaded.config, training.progress, loaded.weights)
    return digest(*weights, *arrays, str(facts), str(read_row_names(folder)))


def read_set(dataset: PuzzleDataset) -> Iterator[Any]:
    """All that training and evaluating reads of a split."""
    yield str(dataset.spec)
    for data in dataset.arrays.values():
        yield from data
    for _, batch, count in dataset.eval_batches(4):
        yield from (*batch.values(), count)
    yield str(row_names(dataset))
    if dataset.path.name == "test":
        scorer = load_scorer(dataset.source(dataset.sets[0]), 6)
        yield str((scorer.inputs, scorer.outputs, list(scorer.names)))


def read_built() -> str:
    """A built dataset."""
    return digest(*(v for split in SPLITS for v in read_set(PuzzleDataset.load("built", split))))


def read_cache() -> str:
    """A dataset of the cache, which is made anew where it is damaged."""
    task = build_task(load_config("c.yaml").task, 42)
    return digest(*(value for split in SPLITS for value in read_set(task.dataset(split))))


PLACES: Dict[str, Callable[[], str]] = {STEP: read_checkpoint, "built": read_built,
                                        "cache": read_cache}  # fmt: skip


def try_mutations(place: str, count: int, seed: int) -> Dict[str, int]:
    """Damage each file so many times; give how often what happened."""
    read = PLACES[place]
    before = read()
    files = [path for path in sorted(Path(place).rglob("*")) if path.is_file()]
    contents = {path: path.read_bytes() for path in files}
    found: Dict[str, int] = {"refused": 0, "harmless or mended": 0}
    for path, content in contents.items():
        rng = random.Random(f"{seed} {path.name} {path.parent.name}")
        for number in range(count):
            path.write_bytes(mutate(content, rng, list(contents.values())))
            try:
                after = read()
                assert after == before, f"{path}: mutation {number}: other data, without a word"
                found["harmless or mended"] += 1
            except TRMError as error:
                lines = str(error).split("\n")
                assert len(lines) == 1 or "problems" in lines[0], error
                assert place != "cache", f"{path}: mutation {number} was not mended: {error}"
                found["refused"] += 1
            if place == "cache":  # it may be another folder's file by now
                for other, held in contents.items():
                    if not other.exists() or other.read_bytes() != held:
                        other.write_bytes(held)
            else:
                path.write_bytes(content)
    return found


@pytest.mark.parametrize("place", PLACES)
def test_some_mutations(place: str, work: Path) -> None:
    """Three of each file; a cache is made anew each time, so one."""
    found = try_mutations(place, 1 if place == "cache" else SOME, 0)
    assert sum(found.values()) >= 10
    assert found["refused" if place != "cache" else "harmless or mended"]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_many_mutations(place: str, work: Path) -> None:
    """Five hundred of each file."""
    print(place, try_mutations(place, ALL, 1))
