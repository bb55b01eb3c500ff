"""A checkpoint carried to another machine: what stays, what is rounded, what is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict

import mlx.core as mx
import numpy as np
import pytest
from marks import experiment
from run_files import arrays_of, log_of

from mlx_trm.errors import CheckpointError, ConfigError
from mlx_trm.export import main as export
from mlx_trm.inference import portable
from mlx_trm.inference.portable import MANIFEST, pack_checkpoint, unpack_checkpoint
from mlx_trm.runs.checkpoint import load_checkpoint, verify_checkpoint
from mlx_trm.system.files import owner_name
from mlx_trm.training.trainer import Trainer


@pytest.fixture(name="run", scope="module")
def train(tmp_path_factory) -> Path:
    """A run that was stopped in its second iteration."""
    folder = tmp_path_factory.mktemp("portable") / "run"
    trainer = Trainer(experiment(run_dir=str(folder), train__epochs=15, eval__interval=5))
    trainer.fit(on_tick=lambda number: trainer.stop() if number == 30 else None)
    return folder


@pytest.fixture(name="packed", scope="module")
def pack(run, tmp_path_factory) -> Path:
    """A pack of it, in pieces of 10 kB, so that files have several."""
    folder = tmp_path_factory.mktemp("packed") / "pack"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "PIECE", 10_000)
        pack_checkpoint(run, folder)
    return folder


@pytest.fixture(name="pack")
def copy_pack(packed, tmp_path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(packed, tmp_path / "pack"))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """The same everywhere."""
    monkeypatch.setattr(portable, "PIECE", 10_000)


def state_of(run: Path) -> Dict[str, Any]:
    """What ``state.json`` says."""
    return json.loads((run / "latest" / "state.json").read_text(encoding="utf-8"))


def test_all_but_the_moments_comes_back_to_the_bit(run, tmp_path):
    pack = pack_checkpoint(run, tmp_path / "pack")
    sizes = [path.stat().st_size for path in (tmp_path / "pack").iterdir() if path.name != MANIFEST]
    assert len(sizes) == pack.pieces > 8 and max(sizes) <= 10_000 and sum(sizes) == pack.size
    shutil.move(str(tmp_path / "pack"), str(tmp_path / "elsewhere"))
    unpack_checkpoint(tmp_path / "elsewhere", tmp_path / "new")
    verify_checkpoint(tmp_path / "new" / "latest")
    before, after = arrays_of(run / "latest"), arrays_of(tmp_path / "new" / "latest")
    assert set(before) == set(after)
    rounded = 0
    for name, array in before.items():
        if name.startswith("optimizer.") and array.size > 1:
            wanted = np.array(mx.array(array).astype(mx.bfloat16).astype(mx.float32))
            rounded += int(not np.array_equal(array, wanted))
            array = wanted
        assert np.array_equal(after[name], array), name
    assert rounded > 3
    assert state_of(tmp_path / "new")["progress"] == state_of(run)["progress"]
    assert log_of(tmp_path / "new") == log_of(run)
    config = load_checkpoint(tmp_path / "new").config
    assert config.run_dir == str(tmp_path / "new")


def test_the_new_run_goes_on(run, pack, tmp_path):
    """It ends at the step it was to end at, nearly where the first one would have."""
    unpack_checkpoint(pack, tmp_path / "new")
    shutil.copytree(run, tmp_path / "same", symlinks=True)
    ends = []
    for folder in (tmp_path / "new", tmp_path / "same"):
        Trainer.resume(folder).fit()
        ends.append(arrays_of(folder / "latest"))
        assert state_of(folder)["step"] == 60
    assert len(log_of(tmp_path / "new")) == len(log_of(tmp_path / "same"))
    moved = np.abs(ends[0]["model.lm_head.weight"] - ends[1]["model.lm_head.weight"]).max()
    assert 0 < moved < 0.05


def test_the_commands(run, tmp_path, capsys):
    pack, new = str(tmp_path / "pack"), str(tmp_path / "new")
    assert export([str(run), "--pack", pack]) == 0
    assert "but not to the bit" in capsys.readouterr().out
    assert export([pack, "--unpack", new]) == 0
    assert f"train --resume {new}" in capsys.readouterr().out
    for line, part in (
        ([str(run)], "name one of --output FILE, --pack FOLDER, --unpack NEW"),
        ([str(run), "--pack", pack, "--unpack", new], "name one of"),
        ([str(run), "--pack", pack], "not empty; name a new folder"),
        ([pack, "--unpack", new], "not empty; name a new folder"),
        ([str(run), "--unpack", str(tmp_path / "x")], "name the folder of a pack"),
        ([str(run), "--pack", str(tmp_path / "x"), "--quantize", "8"], "for --output only"),
    ):
        assert export(line) == 2
        message = capsys.readouterr().err
        assert len(message.splitlines()) == 1 and part in message, message
    assert sorted(os.listdir(tmp_path)) == ["new", "pack"]


def test_weights_without_a_training_are_not_packed(run, tmp_path):
    checkpoint = load_checkpoint(run)
    from mlx_trm.runs.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "bare", checkpoint.model, checkpoint.config, 3)
    with pytest.raises(CheckpointError, match="weights only"):
        pack_checkpoint(tmp_path / "bare", tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("case", ["byte", "cut", "gone", "more", "swapped"])
def test_a_damaged_piece_is_named(pack, tmp_path, case):
    piece, other = pack / "model.safetensors.00001", pack / "model.safetensors.00000"
    content = piece.read_bytes()
    if case == "gone":
        piece.unlink()
    elif case == "swapped":
        piece.write_bytes(other.read_bytes())
    else:
        changed = {"byte": content[:-1] + b"?", "cut": content[:-1], "more": content + b"?"}
        piece.write_bytes(changed[case])
    with pytest.raises(CheckpointError, match=r"model.safetensors.00001: .*copy"):
        unpack_checkpoint(pack, tmp_path / "new")
    assert os.listdir(tmp_path) == ["pack"]


def bad_manifests() -> Dict[str, Any]:
    """Changes to a manifest that make it none."""

    def piece(**changes: Any) -> Any:
        return lambda m: m["files"]["config.yaml"][0].update(changes)

    return {
        "another format": lambda m: m.update(pack=2),
        "no files": lambda m: m.pop("files"),
        "a file is missing": lambda m: m["files"].pop("carry.safetensors"),
        "a file too many": lambda m: m["files"].update({"../../x": []}),
        "a name from elsewhere": piece(name="../../../etc/passwd"),
        "a size that is none": piece(size=True),
        "a size beyond": piece(size=1 << 40),
        "a digest that is none": piece(sha256="x"),
        "a step that is none": lambda m: m.update(step=-1),
        "progress that is none": lambda m: m.update(progress={"iteration": "x"}),
        "dimensions that are none": lambda m: m.update(spec={"vocab_size": 3}),
        "too many pieces": lambda m: m["files"].update({"metrics.jsonl": [{}] * 20_000}),
        "a list": lambda m: m.update(files=["model.safetensors"]),
    }


@pytest.mark.parametrize("case", sorted(bad_manifests()))
def test_a_manifest_that_is_none_is_one_line(pack, tmp_path, case):
    manifest = json.loads((pack / MANIFEST).read_text(encoding="utf-8"))
    bad_manifests()[case](manifest)
    (pack / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no manifest of a pack") as caught:
        unpack_checkpoint(pack, tmp_path / "new")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400 + len(str(pack))
    assert os.listdir(tmp_path) == ["pack"]


def test_a_pack_s_plugins_are_not_imported(pack, tmp_path):
    """The configuration of a pack is somebody else's."""
    harm = tmp_path / "harm"
    (tmp_path / "evil.py").write_text(f"open({str(harm)!r}, 'w').write('x')")
    manifest = json.loads((pack / MANIFEST).read_text(encoding="utf-8"))
    for each in manifest["files"]["config.yaml"]:
        piece = pack / each["name"]
        text = piece.read_text(encoding="utf-8")
        text = text.replace("plugins: []", f"plugins: [{tmp_path / 'evil.py'}]")
        piece.write_text(text, encoding="utf-8")
        each["size"], each["sha256"] = (
            piece.stat().st_size,
            portable.hashlib.sha256(text.encode()).hexdigest(),
        )
    (pack / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CheckpointError, match="plugins: .*evil.py.*--allow-plugins") as caught:
        unpack_checkpoint(pack, tmp_path / "new")
    assert ".tmp" not in str(caught.value)
    assert not harm.exists() and not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(portable, "write_json", full)
        with pytest.raises(CheckpointError, match="No space left"):
            pack_checkpoint(run, tmp_path / "pack")
    assert not os.listdir(tmp_path)
    pack_checkpoint(run, tmp_path / "pack")
    monkeypatch.setattr(portable, "save_checkpoint", full)
    with pytest.raises(CheckpointError, match="No space left"):
        unpack_checkpoint(tmp_path / "pack", tmp_path / "new")
    assert os.listdir(tmp_path) == ["pack"]


def test_what_a_killed_process_left_is_removed(run, tmp_path):
    """And what another one is about to write is not."""
    machine = owner_name().partition("-")[2]
    left = [f".pack.{process}-{machine}.tmp" for process in (2**22 + 5, os.getppid())]
    for name in left:
        (tmp_path / name).mkdir()
    pack_checkpoint(run, tmp_path / "pack")
    assert sorted(os.listdir(tmp_path)) == [left[1], "pack"]


def test_a_file_in_the_way_is_left_alone(run, tmp_path):
    (tmp_path / "pack").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is a file or not empty"):
        pack_checkpoint(run, tmp_path / "pack")
    assert (tmp_path / "pack").read_text(encoding="utf-8") == "mine"


def test_a_log_that_is_too_short_is_said(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    (copy / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="has 0 lines, and the checkpoint says"):
        pack_checkpoint(copy, tmp_path / "pack")
