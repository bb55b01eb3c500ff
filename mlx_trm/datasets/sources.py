"""What can be fetched, where it comes from and where it goes; nothing here uses the network.

Everything fetched lies in one cache shared by all projects, ``cache_folder()/fetched/<place>``. The
ARC sets share a place, so that one prefix finds all of them. A file ``fetched.json`` in each place
records what was fetched: the commit, and every file's size and SHA-256.
"""

from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

from mlx_trm.errors import DataError, did_you_mean
from mlx_trm.system.bounded import read_object
from mlx_trm.system.files import cache_folder

# The puzzles that come with the package.
SAMPLES = Path(__file__).resolve().parents[1] / "samples"
RECORD = "fetched.json"
RECORD_FORMAT = 1
# Bytes of a record; those of all sets take 3,000.
_MOST_RECORD = 1 << 20

# Size in bytes and SHA-256 of files, by their names in a place.
Files = Dict[str, Tuple[int, str]]

# The original's own files: name, bytes, SHA-256.
_ARC_REPOSITORY = "SamsungSAILMontreal/TinyRecursiveModels"
_ARC_COMMIT = "e7b68717f0a6c4cbb4ce6fbef787b14f42083bd9"
_ARC_URL = f"https://raw.githubusercontent.com/{_ARC_REPOSITORY}/{_ARC_COMMIT}/kaggle/combined/"
_ARC_FILES = """
training_challenges.json 1269733 5b02a4753e9088134744d952b048a03f6f23abf4eb6c04e3f27822cf3d439634
training_solutions.json 184616 47212ad04ef4211221ac6141cba8c8d425e20e90da90ace575ef286c5f992534
evaluation_challenges.json 2062906 2b05f8f7d33b73fdbefd69914c399e9409d1949c7f16aabc78e677443a64b208
evaluation_solutions.json 312989 629622b0eecf42c6cb4da628955ef76ec43214f0d00081f8cf63082ade496c52
training2_challenges.json 4010050 779eaba89790ebad9af02514a7efc0aefaf2cf8236f046a31bbf8b9ec48f20f5
training2_solutions.json 658743 9f07a38bd25af5e83aa5bf85c5cb1a1fefdb30f6a755256fa65429e697ca97f9
evaluation2_challenges.json 984679 e7c62a4bd211867c6b538f66b8013b81f299663c82ca062f49a52bf439d6e4e8
evaluation2_solutions.json 223838 84be4f4f39b79e82c36d565fc878830988b094917f052ee7069aef30b33ca8f1
concept_challenges.json 804217 4e60bd1de956c2519c3236ba9f2c352c971d5971bfc568ceafa716dd9b1a91fd
concept_solutions.json 209979 3ec5e95e416e49c85dac28475fc5b73f6998d13b7e91ff0219eee48881c327ee
"""


class RemoteFile(NamedTuple):
    """One file of a set.

    Attributes:
        path: in the source's repository, or behind its base URL.
        target: its name in the place.
        size: bytes; None where not known.
        sha256: of its content; None where not known.
    """

    path: str
    target: str
    size: Optional[int] = None
    sha256: Optional[str] = None


class Source(NamedTuple):
    """A set that can be fetched. The defaults are those of the ARC sets.

    Attributes:
        name: what the user calls it.
        summary: what it is, in a few words.
        licence: as the source states it.
        page: where a person reads about it.
        presets: configurations that use it.
        files: what is taken.
        puzzles: how many; None where not known.
        place: the folder below ``cache_folder()/fetched``.
        repository: owner and name.
        revision: a commit, or a branch where no commit is known.
        base_url: what a file's path is put behind; None for a data set of Hugging Face.
    """

    name: str
    summary: str
    licence: str
    page: str
    presets: Tuple[str, ...]
    files: Tuple[RemoteFile, ...]
    puzzles: Optional[int] = None
    place: str = "arc-agi"
    repository: str = _ARC_REPOSITORY
    revision: str = _ARC_COMMIT
    base_url: Optional[str] = _ARC_URL

    @property
    def size(self) -> Optional[int]:
        """Bytes of all files; None where not known."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None

    def url(self, file: RemoteFile) -> str:
        """Return where a person can download a file."""
        return (self.base_url or f"{self.page}/resolve/{self.revision}/") + file.path


def _arc_files(*subsets: str) -> Tuple[RemoteFile, ...]:
    """Return the files of some subsets, in the order of the table."""
    rows = [line.split() for line in _ARC_FILES.split("\n") if line]
    return tuple(
        RemoteFile(f"arc-agi_{name}", name, int(size), sha256)
        for name, size, sha256 in rows
        if name.split("_")[0] in subsets
    )


def _csv_source(name: str, summary: str, *presets: str) -> Source:
    """Describe a data set of Hugging Face, of which neither commit nor digests are known to us."""
    repository = f"sapientinc/{name}"
    page = f"https://huggingface.co/datasets/{repository}"
    files = (RemoteFile("train.csv", "train.csv"), RemoteFile("test.csv", "test.csv"))
    licence = "see the dataset card"
    return Source(
        name, summary, licence, page, presets, files, None, name, repository, "main", None
    )


_ALL = (
    _csv_source(
        "sudoku-extreme",
        "9x9 Sudoku, millions, from easy to very hard",
        *("sudoku.yaml", "sudoku_att.yaml", "sudoku_symbols.yaml"),
    ),
    _csv_source("maze-30x30-hard-1k", "30x30 mazes with long shortest paths", "maze.yaml"),
    Source(
        name="arc1",
        summary="ARC-AGI-1: 400 training and 400 evaluation tasks",
        licence="Apache-2.0",
        page="https://github.com/fchollet/ARC-AGI",
        presets=("arc1.yaml",),
        files=_arc_files("training", "evaluation"),
        puzzles=800,
    ),
    Source(
        name="arc2",
        summary="ARC-AGI-2: 1,000 training and 120 evaluation tasks",
        licence="Apache-2.0",
        page="https://github.com/arcprize/ARC-AGI-2",
        presets=("arc2.yaml",),
        files=_arc_files("training2", "evaluation2"),
        puzzles=1120,
    ),
    Source(
        name="conceptarc",
        summary="ConceptARC: 160 tasks",
        licence="MIT",
        page="https://github.com/victorvikram/ConceptARC",
        presets=("arc1.yaml", "arc2.yaml"),
        files=_arc_files("concept"),
        puzzles=160,
    ),
)
SOURCES: Dict[str, Source] = {source.name: source for source in _ALL}


class ByHand(NamedTuple):
    """A set that its reader downloads: it has no fixed bytes, and is too large to be tried.

    Attributes:
        name: what the user calls it.
        summary: what it is, in a few words.
        licence: as the source states it.
        page: where a person reads about it.
        url: of the file.
        steps: what to do with it, a line each.
    """

    name: str
    summary: str
    licence: str
    page: str
    url: str
    steps: Tuple[str, ...]


_BY_HAND = (
    ByHand(
        name="lichess-puzzles",
        summary="chess puzzles of Lichess, millions, with ratings and themes",
        licence="CC0-1.0",
        page="https://database.lichess.org/#puzzles",
        url="https://database.lichess.org/lichess_db_puzzle.csv.zst",
        steps=(
            "python -m mlx_trm.evaluate RUN --data lichess_db_puzzle.csv.zst --max-examples 1000  "
            '(packed as it is; pip install "mlx_trm[chess]")',
            "python -m mlx_trm.train --config chess_mate1.yaml task.train_file=TRAIN.csv "
            "task.test_file=TEST.csv task.variants=0  (unpack it by 'zstd -d' and cut it in two, "
            "the first line in both)",
        ),
    ),
)
BY_HAND: Dict[str, ByHand] = {each.name: each for each in _BY_HAND}


def find_source(name: str) -> Source:
    """Return the set of that name.

    Raises:
        DataError: naming those there are.
    """
    if name not in SOURCES:
        raise DataError(
            f"unknown data set {name!r}{did_you_mean(name, [*SOURCES, *BY_HAND])} "
            f"(known: {', '.join([*SOURCES, *BY_HAND])})"
        )
    return SOURCES[name]


def fetched_root() -> Path:
    """Return the folder that holds everything fetched."""
    return cache_folder() / "fetched"


def fetched_folder(name: str) -> Path:
    """Return where a set's files are, or would be, once fetched.

    Args:
        name: of the set, such as ``arc1``.

    Raises:
        DataError: if there is no such set.
    """
    return fetched_root() / find_source(name).place


def is_fetched(name: str) -> bool:
    """Say whether all files of a set are there, as its record says; their bytes are not read.

    Args:
        name: of the set, such as ``arc1``.

    Raises:
        DataError: if there is no such set.
    """
    source, place = find_source(name), fetched_folder(name)
    try:
        files = read_record(place)[name].files
        return all(
            (place / file.target).stat().st_size == files[file.target][0] for file in source.files
        )
    except (DataError, KeyError, OSError):
        return False


class Entry(NamedTuple):
    """What a record says of a set.

    Attributes:
        files: size and SHA-256 of each file.
        commit: that the server named; None where it named none.
        about: the entry as it stands in the record.
    """

    files: Files
    commit: Optional[str]
    about: Dict[str, Any]


def read_record(place: Path) -> Dict[str, Entry]:
    """Read the record of a place, by the names of the sets; empty where there is none.

    Raises:
        DataError: if it cannot be understood.
    """
    path = place / RECORD
    try:
        content = read_object(path, _MOST_RECORD)
        if content["format"] != RECORD_FORMAT:
            raise ValueError("another format")
        return {name: _entry(about) for name, about in content["sets"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: is not a record of this version; move it away and fetch again: files that "
            "are there are checked, not downloaded once more"
        ) from error


def _entry(about: Dict[str, Any]) -> Entry:
    """Read what a record says of one set."""
    files: Files = {}
    for name, file in about["files"].items():
        if name.startswith("/") or ".." in name.split("/") or not isinstance(file["size"], int):
            raise ValueError(name)
        files[name] = (file["size"], str(file["sha256"]))
    commit = about.get("commit")
    return Entry(files, None if commit is None else str(commit), about)
