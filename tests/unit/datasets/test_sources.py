"""The table of what can be fetched, and the record of what was."""

import json
import re
from pathlib import Path
from typing import Any

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
    assert [target for name in ("arc1", "arc2", "conceptarc") for target in SOURCES[name].targets] \
        == ["training", "evaluation", "training2", "evaluation2",
            "concept_challenges.json", "concept_solutions.json"]  # fmt: skip
    for name in ("sudoku-extreme", "maze-30x30-hard-1k"):
        assert SOURCES[name].targets == ("train.csv", "test.csv")


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_pinned(name: str) -> None:
    """A set of GitHub has a commit, a licence and digests; a size is a size."""
    source = SOURCES[name]
    assert source.name == name and source.page.startswith("https://")
    assert bool(source.files) != bool(source.folders)
    if source.kind == "huggingface":
        assert source.revision == "main" and source.licence == "see the dataset card"
        assert all(file.sha256 is None and file.size is None for file in source.files)
        return
    assert COMMIT.fullmatch(source.revision)
    assert source.licence in ("Apache-2.0", "MIT")
    digests = [source.digest] if source.folders else [file.sha256 for file in source.files]
    assert all(DIGEST.fullmatch(digest or "") for digest in digests)
    if source.files:
        assert source.size == sum(file.size or 0 for file in source.files)
    else:
        assert 0 < (source.size or 0) <= source.archive_size


def test_an_unknown_name() -> None:
    """It is refused with a suggestion."""
    for function in (find_source, fetched_folder, is_fetched):
        with pytest.raises(DataError, match="'arc3'; did you mean 'arc2'.*known: sudoku-extreme"):
            function("arc3")


def write(place: Path, **changes: Any) -> None:
    """A record of conceptarc, and its files with two bytes each."""
    place.mkdir(parents=True, exist_ok=True)
    files = {}
    for target in SOURCES["conceptarc"].targets:
        (place / target).write_text("{}")
        files[target] = {"size": 2, "sha256": "0" * 64}
    entry = {"revision": SOURCES["conceptarc"].revision, "files": files, **changes}
    (place / RECORD).write_text(json.dumps({"format": 1, "sets": {"conceptarc": entry}}))


def test_is_fetched() -> None:
    """The record and the files have to be there, of this revision and of those sizes."""
    place = fetched_folder("conceptarc")
    assert not is_fetched("conceptarc")
    write(place)
    assert is_fetched("conceptarc")
    assert not is_fetched("arc1")
    (place / "concept_solutions.json").write_text("{ }")
    assert not is_fetched("conceptarc")
    (place / "concept_solutions.json").unlink()
    assert not is_fetched("conceptarc")
    write(place, revision="0" * 40)
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
    """Source, revision, licence, size and checksum stand in the document as in the code."""
    source = SOURCES[name]
    digest = "recorded at the first download"
    if source.kind != "huggingface":
        digest = f"`{source.digest}`" if source.digest else "of each file, below"
    assert cells(f"`{name}`") == [
        f"`{name}`",
        source.summary,
        f"[{source.repository}]({source.page})",
        f"`{source.revision}`",
        source.licence,
        "not known" if source.size is None else f"{source.size:,}",
        digest,
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
