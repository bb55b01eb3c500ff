"""Checkpoints of Hugging Face: which file is taken, and what is said where none can be."""

import hashlib
import json
import sys
import threading
import types
from pathlib import Path
from typing import Dict

import pytest
from fetch_server import COMMIT, Server

from mlx_trm.datasets.hub import download_checkpoint, is_checkpoint
from mlx_trm.errors import CheckpointError, ConfigError

FILES = {"step_7": b"weights", "all_config.yaml": b"arch: {}\n", "README.md": b"# A model\n"}


@pytest.fixture(name="server")
def serve(monkeypatch, tmp_path):
    """A hub on this machine, asked by the real library, with a cache of its own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with Server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        server.hugging_face("ann/model", FILES, kind="models")
        yield server


class Hub:
    """A ``huggingface_hub`` that keeps what it is asked and fails as it is told."""

    def __init__(self, monkeypatch, folder: Path, files: Dict[str, str]) -> None:
        self.asked, self.error = [], None
        hub = self

        class Api:
            """The library's calls, by their real names and arguments."""

            def __init__(self, endpoint=None):
                assert endpoint is None

            def model_info(self, repo_id, *, revision=None, files_metadata=False, timeout=None):
                """Say which files there are."""
                hub.asked.append(("info", repo_id, revision))
                if hub.error:
                    raise hub.error
                siblings = [types.SimpleNamespace(rfilename=name) for name in files]
                return types.SimpleNamespace(sha="5" * 40, siblings=siblings)

            def hf_hub_download(self, repo_id, filename, *, revision, **options):
                """Give a file's place."""
                hub.asked.append(("file", repo_id, filename, revision))
                if hub.error and not options.get("local_files_only"):
                    raise hub.error
                path = folder / filename
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(files[filename], encoding="utf-8")
                return str(path)

        module = types.ModuleType("huggingface_hub")
        module.HfApi = Api
        module.utils = types.SimpleNamespace(are_progress_bars_disabled=lambda: True)
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)
        monkeypatch.delenv("HF_ENDPOINT", raising=False)


def refusal(source: str) -> str:
    """Ask for a checkpoint, which must end in one line; give the line."""
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        download_checkpoint(source)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 900
    return str(caught.value)


def test_the_real_library_brings_the_one_checkpoint_and_its_settings(server):
    found = download_checkpoint("hf:ann/model")
    path = Path(found.path)
    assert path.read_bytes() == b"weights" and path.name == "step_7"
    assert (path.parent / "all_config.yaml").read_bytes() == FILES["all_config.yaml"]
    assert not (path.parent / "README.md").exists()
    assert found[1:] == ("ann/model", "step_7", COMMIT)
    # All files come from the commit that the list was of, and a second time from the cache.
    bodies = [line for line in server.asked if line.startswith("GET /ann")]
    assert bodies and all(f"/resolve/{COMMIT}/" in line for line in bodies)
    download_checkpoint("hf:ann/model@main:step_7")
    assert [line for line in server.asked if line.startswith("GET /ann")] == bodies


def test_a_file_that_is_not_the_promised_one_is_refused(server):
    """The library compares sizes; of a large file the repository gives a SHA-256."""
    server.files[f"/ann/model/resolve/{COMMIT}/step_7"] = b"WEIGHTS"
    message = refusal("hf:ann/model")
    assert "its SHA-256 differs" in message and "try again" in message


def test_small_files_are_compared_by_their_name_in_git(server):
    """Those beside the checkpoint too; large ones by their SHA-256."""
    path = "/api/models/ann/model/revision/main"
    about = json.loads(server.files[path])
    for each in about["siblings"]:
        text = FILES[each["rfilename"]]
        each["blobId"] = hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
        del each["lfs"]
    server.files[path] = json.dumps(about).encode()
    assert Path(download_checkpoint("hf:ann/model").path).read_bytes() == b"weights"
    for each in about["siblings"]:
        each["blobId"] = "a" * 40 if each["rfilename"] == "all_config.yaml" else each["blobId"]
    server.files[path] = json.dumps(about).encode()
    assert "(its name in git differs); remove" in refusal("hf:ann/model")


def test_a_download_that_stalls_is_ended(server, monkeypatch):
    """One line, after the time in which something has to come."""
    monkeypatch.setattr("mlx_trm.datasets.watching.STALLED_AFTER", 0.3)
    monkeypatch.setattr("mlx_trm.datasets.watching._PAUSE", 0.05)
    gate = threading.Event()
    server.hook = lambda path: path.endswith("step_7") and gate.wait(5)
    try:
        assert "nothing has come for 0 seconds" in refusal("hf:ann/model")
    finally:
        gate.set()


def test_the_real_library_s_errors_are_one_line(server):
    assert "there is no such repository" in refusal("hf:ann/other")
    server.headers["/api/models/ann/gone/revision/main"] = {"X-Error-Code": "RepoNotFound"}
    assert "there is no such repository" in refusal("hf:ann/gone")
    headers = {"X-Error-Code": "RevisionNotFound"}
    server.headers["/api/models/ann/model/revision/v9"] = headers
    assert "no such revision" in refusal("hf:ann/model@v9")
    server.headers["/api/models/ann/shut/revision/main"] = {"X-Error-Code": "GatedRepo"}
    assert "gives access on request" in refusal("hf:ann/shut")


def test_without_a_network_a_file_of_the_cache_is_taken(server, monkeypatch):
    here = download_checkpoint("hf:ann/model").path
    asked = len(server.asked)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    assert "cannot be downloaded" in refusal("hf:ann/model@main")
    again = download_checkpoint(f"hf:ann/model@{COMMIT}:step_7")
    assert Path(again.path).samefile(here) and len(server.asked) == asked


def test_a_fake_library_is_asked_for_what_was_named(monkeypatch, tmp_path):
    hub = Hub(monkeypatch, tmp_path, {"a/step_1": "1", "a/all_config.yaml": "", "b/step_2": "2"})
    found = download_checkpoint("hf:Ann.B/m_1-x@refs/pr/3:a/step_1")
    assert Path(found.path).read_text(encoding="utf-8") == "1"
    name, commit = "Ann.B/m_1-x", "5" * 40
    assert hub.asked == [
        ("info", name, "refs/pr/3"),
        ("file", name, "a/all_config.yaml", commit),
        ("file", name, "a/step_1", commit),
    ]
    message = refusal("hf:ann/model")
    assert "has 2 checkpoint files" in message and "a/step_1, b/step_2" in message
    assert "hf:ann/model:FILE" in message
    assert "did you mean 'b/step_2'" in refusal("hf:ann/model:b/step_3")


def test_a_repository_without_a_checkpoint_is_said(monkeypatch, tmp_path):
    Hub(monkeypatch, tmp_path, {"README.md": "", "optimizer.pt": ""})
    message = refusal("hf:ann/model")
    assert "no file there" in message and "README.md, optimizer.pt" in message
    Hub(monkeypatch, tmp_path, {f"\x1b[2J{n}.pt": "" for n in range(99)})
    assert "and 87 more" in refusal("hf:ann/model")


@pytest.mark.parametrize(
    "source", ["hf:", "hf:model", "hf:a/b/c", "hf:a/b@", "hf:a/b:", "hf:a/b c"]
)
def test_malformed_sources_are_said(source):
    assert "is not hf:OWNER/NAME[@REVISION][:FILE]" in refusal(source)


def test_without_the_library_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert 'pip install "mlx-trm[hub]"' in refusal("hf:ann/model")


@pytest.mark.parametrize(
    "error, part",
    [
        (OSError(28, "No space left on device"), "no space is left"),
        (ConnectionError("Name or service\nnot known"), "Name or service not known; by hand"),
        (type("OfflineModeIsEnabled", (ConnectionError,), {})("x"), "HF_HUB_OFFLINE"),
        (type("GatedRepoError", (OSError,), {})("x"), "gives access on request"),
    ],
)
def test_errors_are_told_apart(monkeypatch, tmp_path, error, part):
    Hub(monkeypatch, tmp_path, {"step_1": "1"}).error = error
    assert part in refusal("hf:ann/model")


def test_names_of_checkpoints_are_told_from_others():
    """Names that published repositories have."""
    for name in (
        *("step_518071", "arc_v1_public/step_723914", "maze_hard_step_32550", "checkpoint"),
        *("step_39060_sudoku_60k_epoch_attn_type", "pytorch_model.bin", "model.ckpt"),
        *("sudoku-extreme/eqr.pth", "model.safetensors", "a/b/last.pt"),
    ):
        assert is_checkpoint(name), name
    for name in (
        *("all_config.yaml", "trm.py", "losses.py", "README.md", "optimizer.pt", "rng_state_0.pth"),
        *("step_1/submission.json", "training_args.bin", "config.json", "model.py", "step_1.json"),
    ):
        assert not is_checkpoint(name), name
