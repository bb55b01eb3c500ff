"""Fetching whole sets from a small server: what lands where, what is refused, what stays."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from fetch_server import COMMIT, Reply, Server
from paths import ROOT
from test_fetch_archives import packed

from mlx_trm.cli.fetching import DownloadProgress
from mlx_trm.data import main
from mlx_trm.datasets import fetch as fetch_module
from mlx_trm.datasets.fetch import Fetched, FetchOptions, fetch
from mlx_trm.datasets.sources import RECORD, SOURCES, fetched_folder, is_fetched
from mlx_trm.errors import ConfigError, DataError
from mlx_trm.tasks import fetch_record
from mlx_trm.tasks.fetch_http import Patience
from mlx_trm.tasks.fetch_record import folder_digest, folder_facts, place_lock, swap_in
from mlx_trm.tasks.fetch_servers import SERVERS, server

SUDOKU = "sapientinc/sudoku-extreme"
CSV = {"train.csv": b"source,question\n" + b"a,b\n" * 9000, "test.csv": b"source,question\nc,d\n"}
ARC = {
    "x/data/training/b.json": b"{}",
    "x/data/training/a.json": b'{"train": []}',
    "x/data/evaluation/c.json": b"[1, 2]",
    "x/README.md": b"more",
}
# sha256sum of these, as data/README.md says:
# find training evaluation -type f | sort | xargs sha256sum | sha256sum
ARC_DIGEST = "8741a168ed1cf0dec73b021cb6b1df0b7aea9ad588af7c644eec689c6182e292"
CONCEPT = {"concept_challenges.json": b'{"a": 1}', "concept_solutions.json": b'{"a": [2]}'}
OPTIONS = FetchOptions(use_hub=False, patience=Patience(10.0, 3, 0.001))


@pytest.fixture(name="web")
def make_web(tmp_path: Path, monkeypatch: Any) -> Iterator[Server]:
    """A server with small stand-ins of all sets; the cache and the current folder are our own."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path)
    with Server() as web:
        for variable in SERVERS:
            monkeypatch.setenv(variable, web.address)
        arc = SOURCES["arc1"]._replace(digest=ARC_DIGEST, archive_size=9000)
        monkeypatch.setitem(SOURCES, "arc1", arc)
        concept = SOURCES["conceptarc"]
        files = tuple(
            file._replace(size=len(text), sha256=hashlib.sha256(text).hexdigest())
            for file, text in zip(concept.files, CONCEPT.values())
        )
        monkeypatch.setitem(SOURCES, "conceptarc", concept._replace(files=files))
        web.hugging_face(SUDOKU, CSV)
        web.hugging_face("sapientinc/maze-30x30-hard-1k", CSV)
        web.replies[arc_path()] = Reply(packed(ARC))
        for path, text in zip(concept_paths(), CONCEPT.values()):
            web.replies[path] = Reply(text)
        yield web


def arc_path() -> str:
    """Where the server has the archive."""
    return f"/fchollet/ARC-AGI/archive/{SOURCES['arc1'].revision}.tar.gz"


def concept_paths() -> List[str]:
    """Where the server has the files of ConceptARC."""
    source = SOURCES["conceptarc"]
    return [f"/{source.repository}/{source.revision}/{file.path}" for file in source.files]


def content(folder: Path) -> Dict[str, bytes]:
    """Every file below a folder, hidden ones and lock files too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def record(place: Path) -> Any:
    """What the record of a place says."""
    return json.loads((place / RECORD).read_text(encoding="utf-8"))["sets"]


def refused(says: str, name: str, options: FetchOptions = OPTIONS) -> str:
    """The one line that a fetch is refused with."""
    with pytest.raises(DataError, match=says) as caught:
        fetch(name, options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def run(capsys: Any, *words: str) -> Tuple[int, str, str]:
    """Exit code, standard output, standard error of ``data fetch``."""
    code = main(["fetch", "--no-hub", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# The command -------------------------------------------------------------------------------------


def test_fetching_and_fetching_again(web: Server, tmp_path: Path, capsys: Any) -> None:
    """Source and licence first, then the files, the record, and the line that uses them."""
    code, out, err = run(capsys, "sudoku-extreme")
    place = tmp_path / "cache" / "fetched" / "sudoku-extreme"
    assert code == 0 and is_fetched("sudoku-extreme")
    assert "from     sapientinc/sudoku-extreme, main\n" in err
    assert "licence  see the dataset card: https://huggingface.co/datasets/sapientinc/" in err
    assert out.split("\n")[:2] == [
        f"sudoku-extreme: fetched: 2 files, 0.0 MiB, in {place}",
        "use it: python -m mlx_trm.train --config sudoku.yaml "
        f"task.train_file={place}/train.csv task.test_file={place}/test.csv",
    ]
    there = content(tmp_path / "cache")
    assert sorted(there) == [
        f"fetched/sudoku-extreme/{n}" for n in (RECORD, "test.csv", "train.csv")
    ]
    assert {name: (place / name).read_bytes() for name in CSV} == CSV
    about = record(place)["sudoku-extreme"]
    assert about.pop("date").endswith("Z")
    assert about == {
        "source": "https://huggingface.co/datasets/sapientinc/sudoku-extreme",
        "repository": SUDOKU,
        "revision": "main",
        "commit": COMMIT,
        "licence": "see the dataset card",
        "files": {
            name: {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            for name, text in CSV.items()
        },
    }
    asked = [request.path for request in web.requests if "resolve" in request.path]
    assert [path.split("/")[-2:] for path in asked] == [["main", "train.csv"], [COMMIT, "test.csv"]]

    number = len(web.requests)
    code, out, err = run(capsys, "sudoku-extreme", "sudoku-extreme")
    assert code == 0 and err == "" and len(web.requests) == number
    assert out.count("sudoku-extreme: is there already and was checked: 2 files") == 1
    assert content(tmp_path / "cache") == there


def test_force_and_several(web: Server, tmp_path: Path, capsys: Any) -> None:
    """Anew with --force; ARC's sets lie side by side and say what is still missing."""
    code, out, _ = run(capsys, "arc1", "-q")
    assert code == 0
    assert (
        "--config arc1.yaml  (needs conceptarc too: python -m mlx_trm.data fetch conceptarc)" in out
    )
    code, out, err = run(capsys, "arc1", "conceptarc", "-q", "--force")
    assert code == 0 and err == ""
    assert out.split("\n")[2:4] == [
        "use it: python -m mlx_trm.train --config arc1.yaml",
        "use it: python -m mlx_trm.train --config arc2.yaml  "
        "(needs arc2 too: python -m mlx_trm.data fetch arc2)",
    ]
    assert [r.path for r in web.requests] == [arc_path(), arc_path(), *concept_paths()]
    place = tmp_path / "cache" / "fetched" / "arc-agi"
    there = content(place)
    del there[RECORD]
    assert there == {
        "training/a.json": b'{"train": []}',
        "training/b.json": b"{}",
        "evaluation/c.json": b"[1, 2]",
        **CONCEPT,
    }
    about = record(place)
    assert sorted(about) == ["arc1", "conceptarc"] and about["arc1"]["licence"] == "Apache-2.0"
    assert sorted(about["arc1"]["files"]) == ["evaluation/c.json", "training/a.json",
                                              "training/b.json"]  # fmt: skip
    assert is_fetched("arc1") and is_fetched("conceptarc") and not is_fetched("arc2")


def test_the_table(web: Server, tmp_path: Path, capsys: Any) -> None:
    """Without a name, and with --list: names, sizes, licences, what is there; nothing is asked."""
    code, out, err = run(capsys)
    assert code == 0 and err == "" and not (tmp_path / "cache").exists()
    rows = {line.split("  ")[0]: line for line in out.split("\n")}
    assert set(SOURCES) < set(rows)
    assert "  unknown  see the dataset card  no    https://hugg" in rows["sudoku-extreme"]
    assert "  5.7 MiB  Apache-2.0            no    https://github.com/arcprize" in rows["arc2"]
    assert f"Fetched sets go to {tmp_path / 'cache' / 'fetched'}" in out
    fetch("conceptarc", OPTIONS)
    number = len(web.requests)
    _, out, _ = run(capsys, "--list", "conceptarc", "arc1")
    assert [line.split()[0] for line in out.split("\n")[2:4]] == ["conceptarc", "arc1"]
    assert [" yes " in line for line in out.split("\n")[2:4]] == [True, False]
    assert "fetch NAME" not in out and len(web.requests) == number


def test_data_list_shows_what_is_fetched(web: Server, capsys: Any) -> None:
    """And only that."""
    assert web.address and main(["list"]) == 0
    assert "Fetched:" not in capsys.readouterr().out
    fetch("conceptarc", OPTIONS)
    assert main(["list"]) == 0
    (line,) = [x for x in capsys.readouterr().out.split("\n") if x.startswith("conceptarc ")]
    assert "  160  " in line and line.endswith(str(fetched_folder("conceptarc")))


def test_names_are_checked_first(web: Server, tmp_path: Path, capsys: Any) -> None:
    """Before anything is downloaded."""
    code, out, err = run(capsys, "arc1", "sudoku-extrem")
    assert (code, out) == (2, "")
    assert err.startswith("unknown data set 'sudoku-extrem'; did you mean 'sudoku-extreme'?")
    assert not web.requests and not (tmp_path / "cache").exists()


# Servers -----------------------------------------------------------------------------------------


def test_where_the_servers_are(monkeypatch: Any) -> None:
    """The usual ones, or those that the environment names; nonsense is refused."""
    for variable, usual in SERVERS.items():
        monkeypatch.delenv(variable, raising=False)
        assert server(variable) == usual
        monkeypatch.setenv(variable, "")
        assert server(variable) == usual
        monkeypatch.setenv(variable, "https://mirror.example/hf/")
        assert server(variable) == "https://mirror.example/hf"
        for wrong in ("mirror.example", "file:///etc", "https://", "http://a:x", "http://[", "x y"):
            monkeypatch.setenv(variable, wrong)
            with pytest.raises(ConfigError, match=f"^{variable}: .* is not the address of a serve"):
                server(variable)


def test_a_mirror_in_a_folder(web: Server, monkeypatch: Any) -> None:
    """An endpoint may have a path."""
    monkeypatch.setenv("HF_ENDPOINT", f"{web.address}/mirror/")
    web.replies = {f"/mirror{path}": reply for path, reply in web.replies.items()}
    for path in list(web.replies):
        if path.startswith("/mirror/far/"):
            web.replies[path[len("/mirror") :]] = web.replies[path]
    assert fetch("sudoku-extreme", OPTIONS).downloaded


def test_a_miss_says_how_to_do_without(web: Server, tmp_path: Path) -> None:
    """404: the URL, and where a file fetched by hand has to be; nothing is made."""
    web.replies.clear()
    place = tmp_path / "cache" / "fetched"
    message = refused("HTTP 404 Not Found; by hand: put it at", "sudoku-extreme")
    assert message.startswith(f"{web.address}/datasets/{SUDOKU}/resolve/main/train.csv: HTTP 404")
    assert message.endswith(f"put it at {place}/sudoku-extreme/train.csv, then fetch again")
    message = refused("HTTP 404 Not Found; by hand: unpack it and put", "arc1")
    assert (
        f"data/training at {place}/arc-agi/training and data/evaluation at {place}/arc" in message
    )
    assert content(tmp_path / "cache") == {} and list(place.iterdir()) == []


# Wrong content -----------------------------------------------------------------------------------


def test_wrong_bytes(web: Server, tmp_path: Path) -> None:
    """A file that is not the one known is not put in place; the right one later is."""
    good = web.replies[concept_paths()[1]]
    web.replies[concept_paths()[1]] = Reply(b'{"a": [3]}')
    wrong = hashlib.sha256(b'{"a": [3]}').hexdigest()
    refused(
        f"what came is not what is expected .SHA-256 {wrong}, expected .*not kept", "conceptarc"
    )
    place = tmp_path / "cache" / "fetched" / "arc-agi"
    assert sorted(content(place)) == ["concept_challenges.json", RECORD]
    assert not is_fetched("conceptarc")
    web.replies[concept_paths()[1]] = good
    assert fetch("conceptarc", OPTIONS).downloaded and is_fetched("conceptarc")
    assert [r.path for r in web.requests].count(concept_paths()[0]) == 1


@pytest.mark.parametrize("evil", ["content", "name", "more", "less", "damaged"])
def test_a_wrong_archive(web: Server, tmp_path: Path, evil: str) -> None:
    """Nothing of it is put in place, and what was there stays."""
    fetch("conceptarc", OPTIONS)
    before = content(tmp_path / "cache")
    files = dict(ARC)
    if evil == "content":
        files["x/data/training/b.json"] = b"[]"
    elif evil == "name":
        files["x/data/training/d.json"] = files.pop("x/data/training/b.json")
    elif evil == "more":
        files["x/data/training/d.json"] = b""
    elif evil == "less":
        del files["x/data/evaluation/c.json"]
    damaged = packed(files)[:-9] if evil == "damaged" else packed(files)
    web.replies[arc_path()] = Reply(damaged)
    refused("is damaged" if evil == "damaged" else "what came is not what is expected", "arc1")
    assert content(tmp_path / "cache") == before and not is_fetched("arc1")
    web.replies[arc_path()] = Reply(packed(ARC))
    assert fetch("arc1", OPTIONS).downloaded and is_fetched("arc1")


def test_a_web_page(web: Server, tmp_path: Path) -> None:
    """What a hotel's network answers is not recorded as data."""
    web.hugging_face(SUDOKU, {"train.csv": b"\n <!DOCTYPE html><html>Please log in</html>"})
    refused("gives a web page, not data", "sudoku-extreme")
    assert content(tmp_path / "cache") == {}


def test_not_what_the_server_promised(web: Server, tmp_path: Path) -> None:
    """Hugging Face announces a SHA-256: the first download is checked by it too."""
    (far,) = [path for path, reply in web.replies.items() if reply.content == CSV["train.csv"]]
    web.replies[far].content = CSV["train.csv"][:-1] + b"x"
    refused("train.csv: what came is not what is expected", "sudoku-extreme")
    assert content(tmp_path / "cache") == {}


CHANGED = {"train.csv": b"source,question\nchanged\n", "test.csv": CSV["test.csv"]}


@pytest.mark.parametrize("announced", [True, False])
def test_changed_since_the_first_time(web: Server, tmp_path: Path, announced: bool) -> None:
    """Refused, before the download where the server says so; --accept-changed takes it."""
    fetch("sudoku-extreme", OPTIONS)
    before = content(tmp_path / "cache")
    web.hugging_face(SUDOKU, CHANGED, commit="d" * 40)
    if not announced:
        for reply in web.replies.values():
            reply.headers.pop("X-Linked-Etag", None)
    number = len(web.requests)
    force = OPTIONS._replace(force=True)
    says = "train.csv: has changed since it was first fetched .*--force --accept-changed takes it"
    refused(says, "sudoku-extreme", force)
    sent = sum(request.sent for request in web.requests[number:])
    assert sent == (0 if announced else len(CHANGED["train.csv"]))
    assert content(tmp_path / "cache") == before and is_fetched("sudoku-extreme")
    assert fetch("sudoku-extreme", force._replace(accept_changed=True)).downloaded
    place = tmp_path / "cache" / "fetched" / "sudoku-extreme"
    assert (place / "train.csv").read_bytes() == CHANGED["train.csv"]
    assert record(place)["sudoku-extreme"]["commit"] == "d" * 40
    assert not fetch("sudoku-extreme", OPTIONS).downloaded


def test_never_accepted(web: Server) -> None:
    """--accept-changed is for sets without a known digest."""
    web.replies[concept_paths()[0]] = Reply(b'{"a": 2}')
    refused("is not what is expected", "conceptarc", OPTIONS._replace(accept_changed=True))


# What is there -----------------------------------------------------------------------------------


def test_a_lost_file_comes_back(web: Server, tmp_path: Path) -> None:
    """From the commit that the others are from, though there is a newer one."""
    fetch("sudoku-extreme", OPTIONS)
    before = content(tmp_path / "cache")
    place = fetched_folder("sudoku-extreme")
    (place / "test.csv").unlink()
    web.replies[f"/datasets/{SUDOKU}/resolve/main/test.csv"] = Reply(b"new")
    number = len(web.requests)
    assert fetch("sudoku-extreme", OPTIONS).downloaded
    assert [r.path.split("/")[-2:] for r in web.requests[number:]][0] == [COMMIT, "test.csv"]
    after = content(tmp_path / "cache")
    after.pop(f"fetched/sudoku-extreme/{RECORD}")
    before.pop(f"fetched/sudoku-extreme/{RECORD}")
    assert after == before


def test_a_changed_file_is_not_overwritten(web: Server) -> None:
    """It is refused, and --force brings the right one back."""
    fetch("sudoku-extreme", OPTIONS)
    path = fetched_folder("sudoku-extreme") / "train.csv"
    path.write_bytes(CSV["train.csv"][:-4] + b"x,y\n")  # as long as before
    number = len(web.requests)
    refused("train.csv: is not the file that was fetched", "sudoku-extreme")
    assert path.read_bytes()[-4:] == b"x,y\n" and len(web.requests) == number
    assert fetch("sudoku-extreme", OPTIONS._replace(force=True)).downloaded
    assert path.read_bytes() == CSV["train.csv"]


def test_files_put_there_by_hand(web: Server) -> None:
    """Are checked where that is possible, recorded, and not downloaded."""
    for name, files in (("sudoku-extreme", CSV), ("conceptarc", CONCEPT)):
        place = fetched_folder(name)
        place.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (place / file).write_bytes(text)
        assert not is_fetched(name)
        result = fetch(name, OPTIONS)
        assert not result.downloaded and is_fetched(name) and set(result.files) == set(files)
    assert not web.requests
    (place / RECORD).unlink()
    (place / "concept_solutions.json").write_bytes(b"{}")
    refused("concept_solutions.json: is not the file that was fetched", "conceptarc")


def test_folders_put_there_by_hand(web: Server) -> None:
    """The same; one of two folders is completed, if it is the right one."""
    place = fetched_folder("arc1")
    for name, text in ARC.items():
        if "data/" in name:
            path = place / name[len("x/data/") :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
    (place / "training" / ".DS_Store").write_bytes(b"a Mac was here")
    assert not fetch("arc1", OPTIONS).downloaded and is_fetched("arc1") and not web.requests
    (place / "evaluation" / "c.json").unlink()
    refused("training: its files are not those that were fetched", "arc1")
    (place / "evaluation").rmdir()
    (place / RECORD).unlink()
    (place / "training" / "a.json").write_bytes(b"mine")
    refused("training: its files are not those that were fetched", "arc1")
    assert (place / "training" / "a.json").read_bytes() == b"mine"
    (place / "training" / "a.json").write_bytes(ARC["x/data/training/a.json"])
    assert fetch("arc1", OPTIONS).downloaded and is_fetched("arc1")


def test_force_spares_what_was_not_fetched(web: Server) -> None:
    """A folder is replaced only if nothing else is in it."""
    fetch("arc1", OPTIONS)
    place = fetched_folder("arc1")
    (place / "training" / "a.json").write_bytes(b"broken")
    (place / "training" / "mine.json").write_bytes(b"years of work")
    force = OPTIONS._replace(force=True)
    refused("training/mine.json: was not fetched; move it away", "arc1", force)
    assert (place / "training" / "mine.json").exists()
    (place / "training" / "mine.json").unlink()
    assert fetch("arc1", force).downloaded and web.requests
    assert (place / "training" / "a.json").read_bytes() == ARC["x/data/training/a.json"]


def test_things_in_the_way(web: Server) -> None:
    """A folder for a file, a file for a folder: refused, with --force too, and not removed."""
    place = fetched_folder("arc1")
    (place / "concept_solutions.json").mkdir(parents=True)
    (place / "training").write_text("mine")
    for options in (OPTIONS, OPTIONS._replace(force=True)):
        refused(
            "concept_solutions.json: is a folder, and a file of that name", "conceptarc", options
        )
        refused("training: is in the way of a folder", "arc1", options)
    assert not web.requests and (place / "training").read_text() == "mine"


def test_a_damaged_record(web: Server) -> None:
    """Is not written over; without it the files are checked again and recorded."""
    fetch("conceptarc", OPTIONS)
    path = fetched_folder("conceptarc") / RECORD
    path.write_text("{")
    refused("fetched.json: is not a record of this version; move it away", "conceptarc")
    assert path.read_text() == "{"
    path.unlink()
    number = len(web.requests)
    assert not fetch("conceptarc", OPTIONS).downloaded and is_fetched("conceptarc")
    assert len(web.requests) == number


def test_a_folder_that_cannot_be_written(web: Server, tmp_path: Path, monkeypatch: Any) -> None:
    """One line that names another way."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "file"))
    refused("cannot be read or written: Not a directory; MLX_TRM_CACHE can name", "arc1")
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))

    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "there")

    for name, function in (("sudoku-extreme", "replace"), ("arc1", "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, denied)
            refused("there: cannot be read or written: Permission denied; MLX_TRM_CACHE", name)
    assert content(tmp_path / "cache") == {} and web.requests


# Interruptions -----------------------------------------------------------------------------------


def test_ctrl_c_and_on(web: Server, tmp_path: Path) -> None:
    """The part stays, and only the rest is sent the next time."""
    text = os.urandom(700_000)
    web.hugging_face(SUDOKU, {**CSV, "train.csv": text})

    def interrupt(_: str, done: int, __: Any) -> None:
        if done > 400_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("sudoku-extreme", OPTIONS, interrupt)
    place = fetched_folder("sudoku-extreme")
    have = (place / ".train.csv.part").stat().st_size
    assert have > 400_000 and not is_fetched("sudoku-extreme")
    assert sorted(content(place)) == [".train.csv.part", ".train.csv.part.json"]
    fetch("sudoku-extreme", OPTIONS)
    assert (place / "train.csv").read_bytes() == text
    (last,) = [r for r in web.requests if r.range and r.sent]
    assert last.range == f"bytes={have}-" and last.sent == 700_000 - have
    names = sorted(content(tmp_path / "cache"))
    assert names == [f"fetched/sudoku-extreme/{n}" for n in (RECORD, "test.csv", "train.csv")]


def test_leftovers_of_a_killed_fetch(web: Server) -> None:
    """Are removed by the next."""
    place = fetched_folder("arc1")
    (place / ".temporary-x" / "new").mkdir(parents=True)
    (place / ".temporary-x" / "new" / "a.json").write_text("half")
    fetch("arc1", OPTIONS)
    assert sorted(os.listdir(place)) == ["evaluation", RECORD, "training"] and web.requests


def test_all_folders_or_none(tmp_path: Path, monkeypatch: Any) -> None:
    """If the second of two folders cannot be moved, the first goes back to where it was."""
    for name in ("new", "old", "place"):
        (tmp_path / name).mkdir()
    for name in ("new/a", "new/b", "place/a", "place/b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    before = content(tmp_path)
    rename, calls = os.rename, []

    def failing(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 4:  # b's move into the place
            raise OSError(5, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(OSError):
            swap_in(tmp_path / "new", tmp_path / "old", tmp_path / "place", ("a", "b"))
    assert content(tmp_path) == before
    swap_in(tmp_path / "new", tmp_path / "old", tmp_path / "place", ("a", "b"))
    assert content(tmp_path) == {"old/a/x": "place/a".encode(), "old/b/x": b"place/b",
                                 "place/a/x": b"new/a", "place/b/x": b"new/b"}  # fmt: skip


# Two at once -------------------------------------------------------------------------------------


def test_the_lock(tmp_path: Path) -> None:
    """One at a time; who waits says so once; the lock's file and an empty place go away."""
    place = tmp_path / "fetched" / "a"
    inside: List[str] = []
    waits: List[str] = []
    ready = threading.Event()

    def other() -> None:
        with place_lock(place, lambda: (waits.append("waiting"), ready.set())):  # type: ignore
            inside.append("other")

    thread = threading.Thread(target=other)
    with place_lock(place):
        assert place.is_dir()
        thread.start()
        assert ready.wait(10)
        inside.append("first")
    thread.join(10)
    assert inside == ["first", "other"] and waits == ["waiting"]
    assert os.listdir(tmp_path / "fetched") == []


def test_a_lock_file_that_goes_away(tmp_path: Path, monkeypatch: Any) -> None:
    """Who gets the lock of a file that has just been removed makes a new one."""
    path, calls = tmp_path / ".a.lock", []
    lock_file = fetch_record._lock_file  # pylint: disable=protected-access

    def locking(file: Any) -> None:
        lock_file(file)
        calls.append(file)
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(fetch_record, "_lock_file", locking)
    with place_lock(tmp_path / "a"):
        assert path.exists() and len(calls) == 2 and calls[0].closed


def test_many_take_turns(tmp_path: Path, monkeypatch: Any) -> None:
    """Never two at once, whoever removes the lock's file."""
    monkeypatch.setattr(fetch_record, "_SECONDS_BETWEEN_LOOKS", 0.0005)
    now: List[int] = []
    most: List[int] = []

    def work() -> None:
        for _ in range(20):
            with place_lock(tmp_path / "fetched" / "a"):
                now.append(1)
                most.append(len(now))
                now.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 160 and max(most) == 1


def test_two_processes(web: Server, tmp_path: Path) -> None:
    """The second waits, finds the files, and downloads nothing."""
    for reply in web.replies.values():
        if reply.content == CSV["train.csv"]:
            reply.stalls = [0.5]
    words = [sys.executable, "-m", "mlx_trm.data", "fetch", "--no-hub", "sudoku-extreme"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(  # pylint: disable=consider-using-with
            words, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert sorted("fetched: 2 files" in out for out, _ in outputs) == [False, True]
    assert sorted("is there already and was checked" in out for out, _ in outputs) == [False, True]
    assert [r.sent for r in web.requests if r.sent] == [len(text) for text in CSV.values()]
    assert {name: (fetched_folder("sudoku-extreme") / name).read_bytes() for name in CSV} == CSV


# Parts -------------------------------------------------------------------------------------------


def test_the_digest_of_a_folder(tmp_path: Path) -> None:
    """As sha256sum computes it: of the lines "SHA-256  name", sorted by bytes."""
    for name, text in {"b": "1", "B": "2", "a/c": "", "é": "4"}.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(text)
    facts = folder_facts(tmp_path / "d", "d")
    assert sorted(facts) == ["d/B", "d/a/c", "d/b", "d/é"] and facts["d/b"][0] == 1
    assert (
        folder_digest(facts) == "21e838cdf5b24179e0cc6c74e96625361e058fc2477c97303bb7dfc3d6dbb25c"
    )
    assert folder_digest({**facts, "d/b": facts["d/B"]}) != folder_digest(facts)


def test_progress_lines(web: Server, capsys: Any, monkeypatch: Any) -> None:
    """Lines now and then where there is no terminal, a bar where there is one, silence with -q."""
    seen: List[Any] = []
    result = fetch("sudoku-extreme", OPTIONS, lambda *now: seen.append(now))
    assert isinstance(result, Fetched) and web.requests
    assert seen[-1] == ("sudoku-extreme test.csv", 20, 20)
    lines: List[str] = []
    monkeypatch.setattr("mlx_trm.cli.fetching.LOGGER.info", lambda *words: lines.append(str(words)))
    for quiet, between in ((False, 0.0), (False, 1000.0), (True, 0.0)):
        shown = DownloadProgress(quiet, between)
        shown.show("a", 1 << 20, 1 << 21)
        shown.show("a", 1 << 21, None)
        shown.close()
    assert lines == [str(("%s: %s%s", "a", "1.0 MiB", " of 2.0 MiB")),
                     str(("%s: %s%s", "a", "2.0 MiB", ""))]  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    capsys.readouterr()
    shown = DownloadProgress()
    shown.show("a", 1 << 20, 1 << 21)
    shown.show("b", 1 << 20, None)
    shown.close()
    err = capsys.readouterr().err
    assert "a:  50%" in err and "2.10M" in err and "b: 1.05MB" in err


def test_the_limits(web: Server, monkeypatch: Any) -> None:
    """More than a set can hold is refused before it fills the disk."""
    monkeypatch.setattr(fetch_module, "MOST_BYTES", 1000)
    refused("sends 36,016 bytes, more than the 1,000 expected", "sudoku-extreme")
    web.replies[concept_paths()[0]] = Reply(bytes(10_000))
    refused("sends 10,000 bytes, more than the 8 expected", "conceptarc")
    web.replies[arc_path()] = Reply(packed({**ARC, "x/zeros": bytes(100_000)}))
    refused("unpacks to more than the 90,000 bytes", "arc1")
