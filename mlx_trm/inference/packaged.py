"""Weights that come with the package: listed, and loaded by name.

``mlx_trm/weights`` holds a checkpoint folder for each name, its arrays in bfloat16 and with a model
card beside them, and ``index.json``, which says what each is for. They are read as any checkpoint
is, each file checked against its SHA-256. ``data/pack_weights.py`` puts them there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

from mlx_trm.config.loading import load_config
from mlx_trm.config.sections import ExperimentConfig
from mlx_trm.errors import CheckpointError, ConfigError, DataError, did_you_mean
from mlx_trm.runs.checkpoint import Checkpoint, load_checkpoint
from mlx_trm.runs.layout import CONFIG
from mlx_trm.system.files import read_json

FOLDER = Path(__file__).parents[1] / "weights"
INDEX, CARD = "index.json", "card.md"


@dataclass(frozen=True)
class Pretrained:
    """Weights that come with the package.

    Attributes:
        name: by which they are loaded.
        task: name of the task that they solve.
        summary: what they are, in a line.
        parameters: how many weights the model has.
        default: whether puzzles that its task reads are given to it where no run is named.
        search: settings of a search that suit it, as ``solve`` takes them.
        folder: where they are.
    """

    name: str
    task: str
    summary: str
    parameters: int
    default: bool
    search: Dict[str, Any]
    folder: Path

    @property
    def card(self) -> str:
        """The model card: data, recipe, accuracy, what it cannot do; Markdown."""
        return (self.folder / CARD).read_text(encoding="utf-8")

    def config(self) -> ExperimentConfig:
        """Read the configuration that it was trained with, without the names of files."""
        return load_config(str(self.folder / CONFIG))


def pretrained(folder: Path = FOLDER) -> List[Pretrained]:
    """List the weights that come with the package, defaults of their tasks first.

    Args:
        folder: that holds them; another one in tests.

    Raises:
        CheckpointError: if the list cannot be read: the package is damaged.
    """
    try:
        index = read_json(folder / INDEX)
        found = [Pretrained(name=name, folder=folder / name, **row) for name, row in index.items()]
    except (DataError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / INDEX}: cannot be read ({error}); install the package anew"
        ) from error
    return sorted(found, key=lambda each: not each.default)


def find_pretrained(name: str, folder: Path = FOLDER) -> Pretrained:
    """Give the weights of a name.

    Raises:
        ConfigError: if there are none of that name; it lists those there are.
    """
    known = {each.name: each for each in pretrained(folder)}
    if name not in known:
        raise ConfigError(
            f"no weights named {name!r} come with the package{did_you_mean(name, known)} "
            f"(there are {', '.join(known) or 'none'})"
        )
    return known[name]


def find_search(path: Path, folder: Path = FOLDER) -> Dict[str, Any]:
    """Give the settings of a search that suit weights.

    Args:
        path: the folder that holds the weights.
        folder: as of :func:`find_pretrained`.

    Returns:
        Settings by name, as of :class:`Pretrained`; none where the package has no such weights.

    Raises:
        CheckpointError: if the list of weights cannot be read.
    """
    same = [each for each in pretrained(folder) if each.folder.resolve() == path.resolve()]
    return dict(same[0].search) if same else {}


def load_pretrained(name: str, folder: Path = FOLDER) -> Checkpoint:
    """Load weights that come with the package.

    Args:
        name: of :func:`pretrained`'s list.
        folder: that holds them; another one in tests.

    Returns:
        The checkpoint, its model in evaluation mode, its weights float32.

    Raises:
        ConfigError: if there are none of that name.
        CheckpointError: if a file is missing or damaged.
    """
    return load_checkpoint(find_pretrained(name, folder).folder)
