"""Built datasets: what their files were is known, and another content is never taken for it."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from marks import Marks, MarksConfig

from mlx_trm.data import main as data
from mlx_trm.datasets import manifest
from mlx_trm.datasets.manifest import check_manifest
from mlx_trm.errors import DamagedError, DataError
from mlx_trm.system.files import owner_name
from mlx_trm.tasks import PuzzleDataset


@pytest.fixture(name="built")
def make_built(tmp_path: Path, monkeypatch: Any) -> Path:
    """A built dataset of both splits."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    Marks(MarksConfig(), 1).build(tmp_path / "built")
    return tmp_path / "built"


def flip(path: Path, at: int) -> None:
    """Change one byte into another token of the toy task; the file's time stays as it was."""
    before = os.stat(path)
    content = bytearray(path.read_bytes())
    content[at] = content[at] % 5 + 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.mark.parametrize("name", ["inputs", "labels"])
def test_another_token_is_refused(built: Path, name: str) -> None:
    """One that is in the vocabulary, so that nothing else could tell."""
    flip(built / "train" / f"all__{name}.npy", -7)
    with pytest.raises(DamagedError, match=rf"all__{name}.npy: is damaged: its SHA-256"):
        PuzzleDataset.load(built, "train")
    assert len(PuzzleDataset.load(built, "test")) == 32
    (built / "build.json").unlink()
    assert len(PuzzleDataset.load(built, "train")) == 32, "whoever meant it can say so"


def test_splits_that_were_exchanged_are_refused(built: Path) -> None:
    """By the manifest alone: no other file says which split it is of."""
    (built / "train").rename(built / "x")
    (built / "test").rename(built / "train")
    (built / "x").rename(built / "test")
    for split in ("train", "test"):
        with pytest.raises(DamagedError):
            PuzzleDataset.load(built, split)


def test_a_damaged_cache_is_built_anew(built: Path, tmp_path: Path, caplog: Any) -> None:
    """Without a word of the user's, and to the byte."""
    del built
    task = Marks(MarksConfig(), 1)
    task.dataset("train")
    (path,) = (tmp_path / "cache").glob("*/train/all__inputs.npy")
    before = path.read_bytes()
    flip(path, -1)
    task.dataset("train")
    assert path.read_bytes() == before and "its SHA-256 is not the one" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.pop("files"),
        lambda entry: entry.update(block_bytes=1),
        lambda entry: entry["files"]["train/all__inputs.npy"].update(size="7"),
        lambda entry: entry["files"]["train/all__inputs.npy"].update(sha256=[]),
        lambda entry: entry["files"].update({"../x": {"size": 0, "sha256": []}}),
        lambda entry: entry.update(files=[1]),
    ],
)
def test_a_damaged_manifest(built: Path, change: Any) -> None:
    """One line."""
    about = json.loads((built / "build.json").read_text())
    change(about["manifest"])
    (built / "build.json").write_text(json.dumps(about))
    with pytest.raises(DamagedError, match="build.json: its manifest is damaged; build") as caught:
        PuzzleDataset.load(built, "train")
    assert "\n" not in str(caught.value)


def test_a_dataset_of_an_earlier_version_is_read(built: Path) -> None:
    """It has a marker without a manifest."""
    about = json.loads((built / "build.json").read_text())
    assert set(about.pop("manifest")["files"]) > {"identifiers.json", "test/dataset.json"}
    (built / "build.json").write_text(json.dumps(about))
    flip(built / "train" / "all__labels.npy", -7)
    assert len(PuzzleDataset.load(built, "train")) == 32 and not check_manifest(built)


def test_a_large_file_is_sampled_and_verified_on_request(
    built: Path, monkeypatch: Any, capsys: Any
) -> None:
    """The first and the last block, and some between; ``data verify`` reads all."""
    monkeypatch.setattr(manifest, "BLOCK_BYTES", 16)
    shutil.rmtree(built)
    Marks(MarksConfig(), 1).build(built)
    monkeypatch.setattr(manifest, "FULL_BYTES", 16)
    monkeypatch.setattr(manifest, "SAMPLED_BLOCKS", 0)
    read: List[int] = []
    real = manifest._hash_block

    def hash_block(path: Path, number: int) -> str:
        read.extend([number] if path.name == "all__inputs.npy" else [])
        return real(path, number)

    monkeypatch.setattr(manifest, "_hash_block", hash_block)
    assert data(["verify", str(built)]) == 0 and "as it was built" in capsys.readouterr().out
    manifest._CHECKED.clear()
    read.clear()
    path = built / "train" / "all__inputs.npy"
    flip(path, 160)
    PuzzleDataset.load(built, "train")
    assert set(read) == {0, (path.stat().st_size - 1) // 16}
    assert data(["verify", str(built)]) == 1
    assert "all__inputs.npy: is damaged: its SHA-256" in capsys.readouterr().out
    flip(path, -1)
    with pytest.raises(DamagedError):
        PuzzleDataset.load(built, "train")


def test_everything_is_flushed_before_it_is_there(tmp_path: Path, monkeypatch: Any) -> None:
    """Each file and folder, and the folder above after the last rename."""
    flushed: List[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc") else "")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    Marks(MarksConfig(), 1).build(tmp_path / "built")
    files = [path for path in (tmp_path / "built").rglob("*")]
    assert len(flushed) > len(files)
    if os.path.isdir("/proc"):
        names = {path.rpartition("/new")[2] for path in flushed}
        wanted = {f"/{path.relative_to(tmp_path / 'built')}" for path in files}
        assert wanted <= names and flushed[-1] == str(tmp_path)


# Changed while it is in use ---------------------------------------------------------------------


def batches_after(built: Path, change: Any) -> None:
    """Take a training batch, change a file, take more; the same with evaluation and examples."""
    dataset = PuzzleDataset.load(built, "train")
    for items in (dataset.train_batches(4, 0, 4), dataset.eval_batches(4)):
        next(items)
        change()
        for _ in items:
            pass
    dataset.example(31)


def test_a_mapped_file_that_is_cut(built: Path) -> None:
    """In its last page, where the system gives zeros without a word: said, before any is used."""
    path = built / "train" / "all__inputs.npy"
    dataset = PuzzleDataset.load(built, "train")
    training, evaluation = dataset.train_batches(4, 0, 4), dataset.eval_batches(4)
    next(training), next(evaluation)
    os.truncate(path, path.stat().st_size - 60)
    assert (np.array(dataset.arrays["all"].inputs[-1]) == 0).all(), "this is what would be read"
    for use in (lambda: next(training), lambda: next(evaluation), lambda: dataset.example(0)):
        with pytest.raises(DataError, match=r"all__inputs.npy: was changed while it was in use"):
            use()


def test_a_mapped_file_that_is_rewritten(built: Path) -> None:
    """Another content of the same size is refused; the same content is not."""
    path = built / "train" / "all__labels.npy"
    batches_after(built, lambda: os.utime(path, (time.time(),) * 2))
    with pytest.raises(DamagedError, match="all__labels.npy: is damaged: its SHA-256"):
        batches_after(built, lambda: flip(path, -3))


def test_a_dataset_that_is_built_anew_meanwhile(built: Path) -> None:
    """The files in use are still there, though they have no name any more."""
    batches_after(built, lambda: Marks(MarksConfig(), 2).build(built))
    batches_after(built, lambda: shutil.rmtree(built, ignore_errors=True))


# Leftovers --------------------------------------------------------------------------------------


def test_leftovers_go_when_their_process_is_gone(tmp_path: Path) -> None:
    """Of this dataset's builds; what one of them was replacing is put back first."""
    Marks(MarksConfig(), 1).build(tmp_path / "built")
    gone = owner_name().replace(str(os.getpid()), "4194999", 1)
    other = gone[:-8] + "00000000"
    for owner in (gone, owner_name(), other):
        (tmp_path / f".built.{owner}.abc_12" / "new").mkdir(parents=True)
    (tmp_path / f".else.{gone}.abc_12" / "new").mkdir(parents=True)
    os.rename(tmp_path / "built", tmp_path / f".built.{gone}.abc_12" / "old")
    Marks(MarksConfig(), 1).build(tmp_path / "built")
    assert sorted(os.listdir(tmp_path)) == sorted(
        [f".built.{owner_name()}.abc_12", f".built.{other}.abc_12", f".else.{gone}.abc_12", "built"]
    )


def test_what_a_killed_build_was_replacing_is_not_lost(tmp_path: Path, monkeypatch: Any) -> None:
    """Killed between the two renames, and the next build fails: the old one is there again."""
    task = Marks(MarksConfig(), 1)
    task.build(tmp_path / "built")
    gone = owner_name().replace(str(os.getpid()), "4194999", 1)
    (tmp_path / f".built.{gone}.abc_12").mkdir()
    os.rename(tmp_path / "built", tmp_path / f".built.{gone}.abc_12" / "old")
    monkeypatch.setattr(Marks, "groups", lambda *_args: iter(()))
    with pytest.raises(DataError, match="no puzzles"):
        task.build(tmp_path / "built")
    assert len(PuzzleDataset.load(tmp_path / "built", "train")) == 32
    assert os.listdir(tmp_path) == ["built"]
