"""The table of what can be fetched, and the record of what was."""

import json
import re
from pathlib import Path
from typing import Any, List

import pytest
from paths import ROOT

from mlx_trm.datasets.sources import (
    RECORD,
    SOURCES,
    fetched_folder,
    find_source,
    is_fetched,
    read_record,
)
from mlx_trm.errors import DataError

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))


def test_names_and_places(tmp_path: Path) -> None:
    """Five sets; those of ARC share a place and take different names in it."""
    root = tmp_path / "cache" / "fetched"
    assert {name: fetched_folder(name) for name in SOURCES} == {
        "sudoku-extreme": root / "sudoku-extreme",
        "maze-30x30-hard-1k": root / "maze-30x30-hard-1k",
        "arc1": root / "arc-agi",
        "arc2": root / "arc-agi",
        "conceptarc": root / "arc-agi",
    }
    assert {name: [file.target for file in source.files] for name, source in SOURCES.items()} == {
        "sudoku-extreme": ["train.csv", "test.csv"],
        "maze-30x30-hard-1k": ["train.csv", "test.csv"],
        "arc1": arc_names("training", "evaluation"),
        "arc2": arc_names("training2", "evaluation2"),
        "conceptarc": arc_names("concept"),
    }


def arc_names(*subsets: str) -> List[str]:
    """Names of the files of subsets."""
    return [f"{s}_{kind}.json" for s in subsets for kind in ("challenges", "solutions")]


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_pinned(name: str) -> None:
    """ARC has a commit, licences and digests; file by file a URL that says so."""
    source = SOURCES[name]
    assert source.name == name and source.page.startswith("https://")
    if source.base_url is None:
        assert source.revision == "main" and source.licence == "see the dataset card"
        assert source.size is None and all(file.sha256 is None for file in source.files)
        assert source.url(source.files[0]) == f"{source.page}/resolve/main/train.csv"
        return
    assert COMMIT.fullmatch(source.revision)
    assert source.licence in ("Apache-2.0", "MIT")
    for file in source.files:
        assert DIGEST.fullmatch(file.sha256 or "") and file.path == f"arc-agi_{file.target}"
        assert source.url(file) == (
            f"https://raw.githubusercontent.com/SamsungSAILMontreal/TinyRecursiveModels/"
            f"{source.revision}/kaggle/combined/{file.path}"
        )
    assert source.size == sum(file.size or 0 for file in source.files)


def test_the_size_of_the_arc_files() -> None:
    """10.7 MB in ten files, each another one."""
    files = [file for source in SOURCES.values() if source.base_url for file in source.files]
    assert len({file.sha256 for file in files}) == 10
    assert sum(file.size or 0 for file in files) == 10_721_750


def test_an_unknown_name() -> None:
    """It is refused with a suggestion."""
    for function in (find_source, fetched_folder, is_fetched):
        with pytest.raises(DataError, match="'arc3'; did you mean 'arc2'.*known: sudoku-extreme"):
            function("arc3")


def write(place: Path, **changes: Any) -> None:
    """A record of conceptarc, and its files with two bytes each."""
    place.mkdir(parents=True, exist_ok=True)
    files = {}
    for target in arc_names("concept"):
        (place / target).write_text("{}")
        files[target] = {"size": 2, "sha256": "0" * 64}
    entry = {"revision": SOURCES["conceptarc"].revision, "files": files, **changes}
    (place / RECORD).write_text(json.dumps({"format": 1, "sets": {"conceptarc": entry}}))


def test_is_fetched() -> None:
    """The record has to name all files, and they have to be there, of those sizes."""
    place = fetched_folder("conceptarc")
    assert not is_fetched("conceptarc")
    write(place)
    assert is_fetched("conceptarc")
    assert not is_fetched("arc1")
    (place / "concept_solutions.json").write_text("{ }")
    assert not is_fetched("conceptarc")
    (place / "concept_solutions.json").unlink()
    assert not is_fetched("conceptarc")
    write(place, files={"concept_challenges.json": {"size": 2, "sha256": "0" * 64}})
    assert not is_fetched("conceptarc")


OUTSIDE = {"revision": "", "files": {"../a": {"size": 1, "sha256": ""}}}
DAMAGED = ["", "[]", "{}", "\0", '{"format": 2, "sets": {}}', '{"format": 1, "sets": {"arc1": {}}}']
DAMAGED += [json.dumps({"format": 1, "sets": {"arc1": OUTSIDE}}), "[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record(content: str) -> None:
    """It counts as nothing fetched; reading it says what to do."""
    place = fetched_folder("arc1")
    place.mkdir(parents=True)
    (place / RECORD).write_text(content)
    assert not is_fetched("arc1")
    with pytest.raises(DataError, match="fetched.json: is not a record of this version"):
        read_record(place)


def cells(first: str) -> Any:
    """The cells of the row of data/README.md that begins with a cell."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.split("\n") if line.startswith(f"| {first} |")]
    return row.strip("| ").split(" | ")


@pytest.mark.parametrize("name", SOURCES)
def test_data_readme_says_the_same(name: str) -> None:
    """Source, revision, licence, sizes and checksums stand in the document as in the code."""
    source = SOURCES[name]
    assert cells(f"`{name}`") == [
        f"`{name}`",
        source.summary,
        f"[{source.page.split('/', 3)[3].replace('datasets/', '')}]({source.page})",
        f"`{source.revision}`",
        source.licence,
        "not known" if source.size is None else f"{source.size:,}",
    ]
    for file in source.files:
        if file.sha256 is not None:
            row = [f"`{file.target}`", f"{file.size:,}", f"`{file.sha256}`"]
            assert cells(f"`{file.target}`") == row


def test_data_readme_says_what_presets_need() -> None:
    """The sets in a preset's row are those that name it; every packaged one has a row."""
    root = ROOT / "mlx_trm" / "config" / "presets"
    presets = {path.name for path in root.glob("*.yaml")}
    named = {preset for source in SOURCES.values() for preset in source.presets}
    for preset in sorted(presets | named):
        sets = set(re.findall(r"`([^`]+)`", cells(f"`{preset}`")[2]))
        assert sets == {name for name, source in SOURCES.items() if preset in source.presets}
