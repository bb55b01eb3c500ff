"""What can be fetched, where it comes from and where it goes; nothing here uses the network.

Everything fetched lies in one cache shared by all projects, ``cache_folder()/fetched/<place>``. The
ARC sets share a place, so that one prefix finds all of them. A file ``fetched.json`` in each place
records what was fetched: source, revision, licence, date, and every file's size and SHA-256.
"""

import json
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

from mlx_trm.errors import DataError, did_you_mean
from mlx_trm.system.files import cache_folder

RECORD = "fetched.json"
RECORD_FORMAT = 1
HUGGING_FACE, GITHUB_FILES, GITHUB_ARCHIVE = "huggingface", "github-files", "github-archive"


class RemoteFile(NamedTuple):
    """One file of a set.

    Attributes:
        path: in the source's repository.
        target: its name in the place.
        size: bytes; None where not known.
        sha256: of its content; None where not known.
    """

    path: str
    target: str
    size: Optional[int] = None
    sha256: Optional[str] = None


class RemoteFolder(NamedTuple):
    """The ``.json`` files that lie directly in one folder of an archive.

    Attributes:
        path: in the source's repository.
        target: the folder's name in the place.
    """

    path: str
    target: str


class Source(NamedTuple):
    """A set that can be fetched.

    Attributes:
        name: what the user calls it.
        summary: what it is, in a few words.
        kind: ``huggingface``, ``github-files`` or ``github-archive``.
        repository: owner and name.
        revision: a commit, or a branch where no commit is known.
        licence: as the source states it.
        page: where a person reads about it.
        place: the folder below ``cache_folder()/fetched``.
        presets: configurations that use it.
        files: what is taken, where it is files.
        folders: what is taken, where it is folders of an archive.
        digest: :func:`~mlx_trm.tasks.fetch_record.folder_digest` of the folders.
        size: bytes on disk; None where not known.
        puzzles: how many; None where not known.
        archive_size: bytes of everything in the archive, unpacked.
    """

    name: str
    summary: str
    kind: str
    repository: str
    revision: str
    licence: str
    page: str
    place: str
    presets: Tuple[str, ...]
    files: Tuple[RemoteFile, ...] = ()
    folders: Tuple[RemoteFolder, ...] = ()
    digest: Optional[str] = None
    size: Optional[int] = None
    puzzles: Optional[int] = None
    archive_size: int = 0

    @property
    def targets(self) -> Tuple[str, ...]:
        """Names of the files and folders in the place."""
        files = [file.target for file in self.files]
        return (*files, *(folder.target for folder in self.folders))


_CSV = (RemoteFile("train.csv", "train.csv"), RemoteFile("test.csv", "test.csv"))
_SEE_CARD = "see the dataset card"

SOURCES: Dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="sudoku-extreme",
            summary="9x9 Sudoku, millions, from easy to very hard",
            kind=HUGGING_FACE,
            repository="sapientinc/sudoku-extreme",
            revision="main",
            licence=_SEE_CARD,
            page="https://huggingface.co/datasets/sapientinc/sudoku-extreme",
            place="sudoku-extreme",
            presets=("sudoku.yaml", "sudoku_att.yaml"),
            files=_CSV,
        ),
        Source(
            name="maze-30x30-hard-1k",
            summary="30x30 mazes with long shortest paths",
            kind=HUGGING_FACE,
            repository="sapientinc/maze-30x30-hard-1k",
            revision="main",
            licence=_SEE_CARD,
            page="https://huggingface.co/datasets/sapientinc/maze-30x30-hard-1k",
            place="maze-30x30-hard-1k",
            presets=("maze.yaml",),
            files=_CSV,
        ),
        Source(
            name="arc1",
            summary="ARC-AGI-1: 400 training and 400 evaluation tasks",
            kind=GITHUB_ARCHIVE,
            repository="fchollet/ARC-AGI",
            revision="399030444e0ab0cc8b4e199870fb20b863846f34",
            licence="Apache-2.0",
            page="https://github.com/fchollet/ARC-AGI",
            place="arc-agi",
            presets=("arc1.yaml",),
            folders=(
                RemoteFolder("data/training", "training"),
                RemoteFolder("data/evaluation", "evaluation"),
            ),
            digest="76e2360f6673093730676345fd3db8bf289be3f58179c002980a4e91ae0d9cda",
            size=3_782_011,
            puzzles=800,
            archive_size=3_837_381,
        ),
        Source(
            name="arc2",
            summary="ARC-AGI-2: 1,000 training and 120 evaluation tasks",
            kind=GITHUB_ARCHIVE,
            repository="arcprize/ARC-AGI-2",
            revision="f3283f727488ad98fe575ea6a5ac981e4a188e49",
            licence="Apache-2.0",
            page="https://github.com/arcprize/ARC-AGI-2",
            place="arc-agi",
            presets=("arc2.yaml",),
            folders=(
                RemoteFolder("data/training", "training2"),
                RemoteFolder("data/evaluation", "evaluation2"),
            ),
            digest="1f553f86bac34dcba0a453fa8d207f7da7654c9c3ea530f2c9fce0706600a0cf",
            size=6_016_232,
            puzzles=1120,
            archive_size=6_047_718,
        ),
        Source(
            name="conceptarc",
            summary="ConceptARC: 160 tasks, as the original's repository orders them",
            kind=GITHUB_FILES,
            repository="SamsungSAILMontreal/TinyRecursiveModels",
            revision="e7b68717f0a6c4cbb4ce6fbef787b14f42083bd9",
            licence="MIT",
            page="https://github.com/victorvikram/ConceptARC",
            place="arc-agi",
            presets=("arc1.yaml", "arc2.yaml"),
            files=(
                RemoteFile(
                    "kaggle/combined/arc-agi_concept_challenges.json",
                    "concept_challenges.json",
                    804_217,
                    "4e60bd1de956c2519c3236ba9f2c352c971d5971bfc568ceafa716dd9b1a91fd",
                ),
                RemoteFile(
                    "kaggle/combined/arc-agi_concept_solutions.json",
                    "concept_solutions.json",
                    209_979,
                    "3ec5e95e416e49c85dac28475fc5b73f6998d13b7e91ff0219eee48881c327ee",
                ),
            ),
            size=1_014_196,
            puzzles=160,
        ),
    )
}


def find_source(name: str) -> Source:
    """Return the set of that name.

    Raises:
        DataError: naming those there are.
    """
    if name not in SOURCES:
        raise DataError(
            f"unknown data set {name!r}{did_you_mean(name, SOURCES)} "
            f"(known: {', '.join(SOURCES)})"
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
        entry = read_record(place).get(name)
    except DataError:
        return False
    if entry is None or not covers(source, entry):
        return False
    try:
        return all((place / file).stat().st_size == size for file, (size, _) in entry.files.items())
    except OSError:
        return False


class Entry(NamedTuple):
    """What a record says of a set.

    Attributes:
        revision: that was asked for.
        commit: that the server named; None where it named none.
        files: (size, SHA-256) of each file, by its name in the place.
        about: everything else, as it stands in the record.
    """

    revision: str
    commit: Optional[str]
    files: Dict[str, Tuple[int, str]]
    about: Dict[str, Any]


def covers(source: Source, entry: Entry) -> bool:
    """Say whether an entry is of this revision and names every file of the set."""
    if entry.revision != source.revision:
        return False
    if source.folders:
        return bool(entry.files)
    return set(source.targets) <= set(entry.files)


def read_record(place: Path) -> Dict[str, Entry]:
    """Read the record of a place; empty where there is none.

    Raises:
        DataError: if it cannot be understood.
    """
    path = place / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
    """Read one set's part of a record."""
    files = {}
    for name, file in about["files"].items():
        if name.startswith("/") or ".." in name.split("/") or not isinstance(file["size"], int):
            raise ValueError(name)
        files[name] = (file["size"], str(file["sha256"]))
    commit = about.get("commit")
    rest = {key: value for key, value in about.items() if key not in ("files", "commit")}
    return Entry(str(about["revision"]), None if commit is None else str(commit), files, rest)
