"""A server in this process, with small models, for tests of its API."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Sequence

from mlx_trm.config.loading import load_config
from mlx_trm.inference.packaged import find_pretrained, load_pretrained
from mlx_trm.models import build_model
from mlx_trm.serving.following import Runs
from mlx_trm.serving.handlers import Server
from mlx_trm.serving.pages import make_pages
from mlx_trm.serving.shelf import Opener, PatientSolver, Served, Shelf
from mlx_trm.serving.streams import Doorman
from mlx_trm.serving.worker import Worker
from mlx_trm.tasks import build_task

SUDOKU = "1... ..2. .3.. ...4"
SOLVED = "1243342143122134"
MAZE = "S..../.###./.#.../.#.#./...#G"


def packaged(name: str = "sudoku-4x4") -> Served:
    """Weights of the package, with settings that suit them."""
    checkpoint, entry = load_pretrained(name), find_pretrained(name)
    return Served(
        name, entry.summary, PatientSolver(checkpoint.model, checkpoint.config), entry.search
    )


def untrained(name: str, preset: str, changes: Sequence[str] = ()) -> Served:
    """A model of a preset's task that knows nothing."""
    config = load_config(preset, ["train.compile=never", *changes])
    model = build_model(config.model, build_task(config.task, config.task_seed).spec, seed=0)
    return Served(name, f"an untrained {name}", PatientSolver(model.eval(), config))


OPENERS: List[Opener] = [
    packaged,
    lambda: untrained("maze", "maze_tiny.yaml", ["task.size=5"]),
    lambda: untrained("arc", "arc_tiny.yaml"),
]


@contextmanager
def serving(
    folders: Sequence[Path] = (),
    openers: Sequence[Opener] = tuple(OPENERS),
    waiting: int = 8,
    seconds: float = 60.0,
) -> Iterator[Server]:
    """What a server has, with its worker at work."""
    worker, shelf = Worker(waiting, seconds), Shelf(openers)
    worker.start(shelf.load)
    try:
        yield Server(shelf, worker, Runs(folders), make_pages(), Doorman())
    finally:
        worker.stop()


def events_of(text: str) -> List[tuple]:
    """The events of a stream, as pairs of a name and its JSON."""
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    named = [lines for lines in blocks if lines[0].startswith("event: ")]
    return [(lines[0][7:], json.loads(lines[1][6:])) for lines in named]
