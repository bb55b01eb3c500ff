"""Downloading with huggingface_hub: a stand-in for it everywhere, the real one where installed."""

import importlib.util
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List

import pytest
from fetch_server import COMMIT, Server

from mlx_trm.datasets.fetch import FetchOptions, fetch
from mlx_trm.datasets.sources import RECORD, fetched_folder, is_fetched, read_record
from mlx_trm.errors import DataError
from mlx_trm.tasks.fetch_http import Patience
from mlx_trm.tasks.fetch_hub import find_hub

NAME, REPOSITORY = "sudoku-extreme", "sapientinc/sudoku-extreme"
CSV = {"train.csv": b"source,question\n" + b"a,b\n" * 9000, "test.csv": b"source,question\nc,d\n"}
OPTIONS = FetchOptions(patience=Patience(10.0, 2, 0.001))
REAL = importlib.util.find_spec("huggingface_hub") is not None


class StandIn(SimpleNamespace):
    """Behaves as the parts of the library that are used do, and remembers how it was called."""

    __version__ = "0.23.0"
    __spec__ = importlib.util.spec_from_loader("huggingface_hub", None)

    def __init__(self, files: Dict[str, bytes], etag: str = "0" * 40) -> None:
        super().__init__(calls=[], bars=True, etag=etag, files=files, error=None)
        self.utils = SimpleNamespace(
            are_progress_bars_disabled=lambda: not self.bars,
            disable_progress_bars=lambda: setattr(self, "bars", False),
            enable_progress_bars=lambda: setattr(self, "bars", True),
        )

    def hf_hub_url(self, repository: str, path: str, **more: Any) -> str:
        """Where a file is."""
        assert more["repo_type"] == "dataset"
        return f"{more['endpoint']}/{repository}/{more['revision']}/{path}"

    def get_hf_file_metadata(self, url: str, token: bool, timeout: float) -> Any:
        """What the server says of it."""
        assert token is False and timeout == 10.0
        self.calls.append(url)
        return SimpleNamespace(commit_hash=COMMIT, etag=self.etag)

    def hf_hub_download(self, repository: str, path: str, **more: Any) -> str:
        """Put it into a folder, with the library's notes beside it."""
        assert more.pop("token") is False and more.pop("etag_timeout") == 10.0
        folder = Path(more["local_dir"])
        self.calls.append((repository, path, more, self.bars))
        (folder / ".cache" / "huggingface").mkdir(parents=True)
        if self.error:
            raise self.error
        (folder / path).write_bytes(self.files[path])
        return str(folder / path)


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of these tests goes into the user's cache, and nothing reaches a server."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/hf/")


@pytest.fixture(name="hub")
def make_hub(monkeypatch: Any) -> StandIn:
    """The stand-in, installed."""
    hub = StandIn(CSV)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def names(place: Path) -> List[str]:
    """Files and folders in a place, hidden ones too."""
    return sorted(path.name for path in place.iterdir())


def test_the_hub_is_used(hub: StandIn) -> None:
    """The endpoint and the commit reach it; the file ends in our place, and only there."""
    assert fetch(NAME, OPTIONS).downloaded and is_fetched(NAME)
    place = fetched_folder(NAME)
    assert names(place) == [RECORD, "test.csv", "train.csv"]
    assert {name: (place / name).read_bytes() for name in CSV} == CSV
    assert read_record(place)[NAME].commit == COMMIT
    url, call, second, _ = hub.calls
    assert url == f"http://127.0.0.1:9/hf/{REPOSITORY}/main/train.csv"
    assert second == f"http://127.0.0.1:9/hf/{REPOSITORY}/{COMMIT}/test.csv"
    assert call == (
        REPOSITORY,
        "train.csv",
        {
            "repo_type": "dataset",
            "endpoint": "http://127.0.0.1:9/hf",
            "revision": COMMIT,
            "local_dir": place / ".train.csv.hub",
        },
        False,
    )
    assert hub.bars


def test_its_progress_bars(hub: StandIn) -> None:
    """Are shown where they are wanted, and left off where the user has put them off."""
    fetch(NAME, OPTIONS._replace(quiet=False))
    assert hub.calls[1][3] is True
    hub.bars = False
    fetch(NAME, OPTIONS._replace(quiet=False, force=True))
    assert hub.calls[-1][3] is False and not hub.bars


def test_not_used_when_unwanted(hub: StandIn) -> None:
    """--no-hub, and sets that are not on Hugging Face."""
    with pytest.raises(DataError, match="cannot be reached"):
        fetch(NAME, OPTIONS._replace(use_hub=False))
    assert hub.calls == []


def test_its_failures(hub: StandIn) -> None:
    """One line, which names the way without it; what it has begun stays for the next time."""
    hub.error = RuntimeError("no\nway")
    with pytest.raises(DataError) as caught:
        fetch(NAME, OPTIONS)
    assert str(caught.value) == (
        f"http://127.0.0.1:9/hf/{REPOSITORY}/main/train.csv: huggingface_hub says RuntimeError: "
        "no way (--no-hub downloads without it)"
    )
    assert names(fetched_folder(NAME)) == [".train.csv.hub"] and hub.bars


def test_changed(hub: StandIn) -> None:
    """The record holds for it too: by what it announces, or by what came."""
    fetch(NAME, OPTIONS)
    force = OPTIONS._replace(force=True)
    hub.etag = "d" * 64
    number = len(hub.calls)
    with pytest.raises(DataError, match="has changed since it was first fetched .SHA-256 ddd"):
        fetch(NAME, force)
    assert len(hub.calls) == number + 1
    hub.etag, hub.files = "0" * 40, {**CSV, "train.csv": b"new"}
    with pytest.raises(DataError, match="has changed since it was first fetched"):
        fetch(NAME, force)
    assert (fetched_folder(NAME) / "train.csv").read_bytes() == CSV["train.csv"]
    fetch(NAME, force._replace(accept_changed=True))
    assert (fetched_folder(NAME) / "train.csv").read_bytes() == b"new"


@pytest.mark.parametrize("version, good", [("0.22.2", False), ("0.23.0", True), ("1.0.0rc1", True),
                                           ("2.4.0", True), ("new", False)])  # fmt: skip
def test_versions(hub: StandIn, monkeypatch: Any, version: str, good: bool, caplog: Any) -> None:
    """Older ones leave a second copy in their cache, and are not used."""
    monkeypatch.setattr(hub, "__version__", version, raising=False)
    with caplog.at_level(logging.INFO, "mlx_trm"):
        assert (find_hub() is hub) == good
    assert (caplog.text == "") == good


def test_without_it(monkeypatch: Any, caplog: Any) -> None:
    """Missing: nothing is said. Broken: a line says so."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with caplog.at_level(logging.INFO, "mlx_trm"):
        assert find_hub() is None and caplog.text == ""
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert find_hub() is None and "huggingface_hub cannot be used: " in caplog.text


@pytest.fixture(name="web")
def make_web(monkeypatch: Any) -> Iterator[Server]:
    """A server for the real library."""
    monkeypatch.setenv("no_proxy", "*")
    with Server() as web:
        monkeypatch.setenv("HF_ENDPOINT", web.address)
        web.hugging_face(REPOSITORY, CSV)
        yield web


@pytest.mark.skipif(not REAL, reason="huggingface_hub is not installed")
def test_the_real_one(web: Server, tmp_path: Path, monkeypatch: Any) -> None:
    """It brings the files into our place, leaves no other copy, and its errors are one line."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert fetch(NAME, OPTIONS).downloaded
    place = fetched_folder(NAME)
    assert names(place) == [RECORD, "test.csv", "train.csv"]
    assert {name: (place / name).read_bytes() for name in CSV} == CSV
    assert read_record(place)[NAME].commit == COMMIT
    copies = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 9000]
    assert copies == [place / "train.csv"]
    assert any(request.method == "HEAD" for request in web.requests)
    number = len(web.requests)
    assert not fetch(NAME, OPTIONS).downloaded and len(web.requests) == number
    web.hugging_face(REPOSITORY, {"train.csv": b"new"})
    with pytest.raises(DataError, match="has changed since it was first fetched"):
        fetch(NAME, OPTIONS._replace(force=True))
    web.replies.clear()
    with pytest.raises(DataError, match="huggingface_hub says .*--no-hub") as caught:
        fetch(NAME, OPTIONS._replace(force=True))
    assert "\n" not in str(caught.value)
