"""Fetching sets from a small server: what lands where, what is refused, what stays."""

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
from fetch_server import COMMIT, Server
from paths import ROOT

from mlx_trm.data import main
from mlx_trm.datasets import fetch as fetch_module
from mlx_trm.datasets import watching
from mlx_trm.datasets.fetch import PARTIAL, Fetched, fetch
from mlx_trm.datasets.sources import BY_HAND, RECORD, SOURCES, fetched_folder, is_fetched
from mlx_trm.errors import DataError
from mlx_trm.tasks.arc.files import read_subset
from mlx_trm.tasks.arc.task import ARC, ARCConfig

SUDOKU = "sapientinc/sudoku-extreme"
CSV = {"train.csv": b"source,question\n" + b"a,b\n" * 9000, "test.csv": b"source,question\nc,d\n"}
NEW_CSV = {"train.csv": b"source,question\nchanged\n", "test.csv": CSV["test.csv"]}
ARC_SETS = ("arc1", "arc2", "conceptarc")


def arc_text(target: str) -> bytes:
    """The content of a stand-in for an ARC file: one task, named after its subset."""
    subset, kind = target[: -len(".json")].split("_")
    pair = {"input": [[1]], "output": [[2]]}
    task = {"train": [pair], "test": [{"input": [[3]]}]}
    return json.dumps({f"task-{subset}": task if kind == "challenges" else [[[4]]]}).encode()


def plain_path(target: str) -> str:
    """Where the server has an ARC file."""
    return f"/plain/arc-agi_{target}"


@pytest.fixture(name="web")
def make_web(tmp_path: Path, monkeypatch: Any) -> Iterator[Server]:
    """A server with small stand-ins of all sets; the cache and the current folder are our own."""
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch_module, "RETRIES", 0)
    monkeypatch.chdir(tmp_path)
    with Server() as web:
        monkeypatch.setenv("HF_ENDPOINT", web.address)
        for name in ARC_SETS:
            files = []
            for file in SOURCES[name].files:
                text = arc_text(file.target)
                web.files[plain_path(file.target)] = text
                digest = hashlib.sha256(text).hexdigest()
                files.append(file._replace(size=len(text), sha256=digest))
            base = f"{web.address}/plain/"
            source = SOURCES[name]._replace(files=tuple(files), base_url=base)
            monkeypatch.setitem(SOURCES, name, source)
        web.hugging_face(SUDOKU, CSV)
        yield web


def content(folder: Path) -> Dict[str, bytes]:
    """Every file below a folder, hidden ones too; lock files left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def record(place: Path) -> Any:
    """What the record of a place says."""
    return json.loads((place / RECORD).read_text(encoding="utf-8"))["sets"]


def refused(says: str, name: str, force: bool = False) -> str:
    """The one line that a fetch is refused with."""
    with pytest.raises(DataError, match=says) as caught:
        fetch(name, force)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    return message


def run(capsys: Any, *words: str) -> Tuple[int, str, str]:
    """Exit code, standard output, standard error of ``data fetch``."""
    code = main(["fetch", *words])
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
    there = content(place)
    assert there.pop(RECORD) and there == CSV
    assert record(place)["sudoku-extreme"] == {
        "revision": "main",
        "commit": COMMIT,
        "files": {
            name: {"size": len(text), "sha256": hashlib.sha256(text).hexdigest()}
            for name, text in CSV.items()
        },
    }
    web.asked.clear()
    code, out, err = run(capsys, "sudoku-extreme", "sudoku-extreme")
    assert code == 0 and err == "" and web.asked == []
    assert out.count("sudoku-extreme: is there already and was checked: 2 files") == 1


def test_arc_files_and_what_is_missing(web: Server, tmp_path: Path, capsys: Any) -> None:
    """ARC's sets lie side by side, say what a preset still needs, and are read by the presets."""
    code, out, _ = run(capsys, "arc1", "-q")
    assert code == 0
    assert (
        "--config arc1.yaml  (needs conceptarc too: python -m mlx_trm.data fetch conceptarc)" in out
    )
    code, out, err = run(capsys, "arc2", "conceptarc", "-q")
    assert code == 0 and err == ""
    files = [file for name in ARC_SETS for file in SOURCES[name].files]
    assert web.asked == [f"GET {plain_path(file.target)}" for file in files]
    there = content(tmp_path / "cache" / "fetched" / "arc-agi")
    assert sorted(json.loads(there.pop(RECORD))["sets"]) == ["arc1", "arc2", "conceptarc"]
    assert there == {file.target: arc_text(file.target) for file in files}
    for names in (["training", "evaluation", "concept"], ["training2", "evaluation2", "concept"]):
        task = ARC(ARCConfig("arc", subsets=names, test_set_name=names[1]))
        assert [[t.name for t in read_subset(subset)] for subset in task.subsets()] == [
            [f"task-{name}"] for name in names
        ]


def test_the_table(web: Server, tmp_path: Path, capsys: Any) -> None:
    """Without a name, and with --list: names, sizes, licences, what is there; nothing is asked."""
    code, out, err = run(capsys)
    assert code == 0 and err == "" and not (tmp_path / "cache").exists()
    rows = {line.split("  ")[0]: line for line in out.split("\n")}
    assert set(SOURCES) < set(rows)
    assert "  unknown  see the dataset card  no    https://hugg" in rows["sudoku-extreme"]
    assert "  0.0 MiB  Apache-2.0            no    https://github.com/arcprize" in rows["arc2"]
    assert f"Fetched sets go to {tmp_path / 'cache' / 'fetched'}" in out
    fetch("conceptarc")
    web.asked.clear()
    _, out, _ = run(capsys, "--list", "conceptarc", "arc1")
    assert [line.split()[0] for line in out.split("\n")[2:4]] == ["conceptarc", "arc1"]
    assert [" yes " in line for line in out.split("\n")[2:4]] == [True, False]
    assert "fetch NAME" not in out and not web.asked


def test_a_set_to_be_downloaded_by_hand(web: Server, tmp_path: Path, capsys: Any) -> None:
    """Its licence, what to download and what to do then; nothing is asked, nothing written."""
    (each,) = BY_HAND.values()
    assert each.url.startswith("https://database.lichess.org/") and each.licence == "CC0-1.0"
    for names in ([each.name], [], [each.name, "--list"]):
        code, out, err = run(capsys, *names)
        assert code == 0 and err == "" and not web.asked
        for text in (
            f"{each.name}: ",
            each.licence,
            each.page,
            f"download {each.url}",
            *each.steps,
        ):
            assert text in out
    assert not (tmp_path / "cache").exists()
    assert "lichess-puzzles" in run(capsys, "lichess-puzles")[2]


def test_data_list_shows_what_is_fetched(web: Server, capsys: Any) -> None:
    """And only that."""
    assert web.address and main(["list"]) == 0
    assert "Fetched:" not in capsys.readouterr().out
    fetch("conceptarc")
    assert main(["list"]) == 0
    (line,) = [x for x in capsys.readouterr().out.split("\n") if x.startswith("conceptarc ")]
    assert "  160  " in line and line.endswith(str(fetched_folder("conceptarc")))


def test_names_are_checked_first(web: Server, tmp_path: Path, capsys: Any) -> None:
    """Before anything is downloaded."""
    code, out, err = run(capsys, "arc1", "sudoku-extrem")
    assert (code, out) == (2, "")
    assert err.startswith("unknown data set 'sudoku-extrem'; did you mean 'sudoku-extreme'?")
    assert not web.asked and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("library", ["huggingface_hub", "pooch", "filelock"])
def test_without_the_extra(
    web: Server, tmp_path: Path, capsys: Any, monkeypatch: Any, library: str
) -> None:
    """One line says what to install; the table needs nothing."""
    monkeypatch.setitem(sys.modules, library, None)
    code, out, err = run(capsys, "arc1")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert 'pip install "mlx-trm[fetch]", or in a checkout pip install -e ".[fetch]"' in err
    assert not web.asked and not (tmp_path / "cache").exists()
    assert run(capsys)[0] == 0


def test_libraries_are_imported_where_they_are_used() -> None:
    """Neither the command nor the module brings them."""
    code = "import sys, mlx_trm.cli.fetching, mlx_trm.datasets.fetch; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert not set(done.stdout.decode().split()) & {"huggingface_hub", "pooch", "filelock"}


def test_progress(web: Server, capsys: Any, monkeypatch: Any) -> None:
    """Bars if asked for, silence if not; afterwards Hugging Face's are as they were."""
    import huggingface_hub

    fetch("conceptarc")
    assert web.asked and capsys.readouterr().err == ""
    fetch("conceptarc", force=True, progress=True)
    assert "conceptarc concept_solutions.json:   0%" in capsys.readouterr().err
    hidden, disabled = [], huggingface_hub.utils.are_progress_bars_disabled
    download = huggingface_hub.HfApi.hf_hub_download

    def listening(*words: Any, **options: Any) -> Any:
        hidden.append(disabled())
        return download(*words, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", listening)
    fetch("sudoku-extreme")
    fetch("sudoku-extreme", force=True, progress=True)
    assert hidden == [True, True, False, False] and not disabled()


# Wrong content -----------------------------------------------------------------------------------


def test_wrong_bytes(web: Server, tmp_path: Path) -> None:
    """Not even the files before the wrong one are put in place; later the rest is asked for."""
    path = plain_path("concept_solutions.json")
    good, web.files[path] = web.files[path], b'{"a": [3]}'
    wrong = hashlib.sha256(b'{"a": [3]}').hexdigest()
    message = refused(f"cannot be downloaded: SHA256.*{wrong}", "conceptarc")
    assert message.startswith(f"{web.address}{path}: ")
    assert list(content(tmp_path / "cache").values()) == [arc_text("concept_challenges.json")]
    assert os.listdir(fetched_folder("conceptarc")) == [PARTIAL] and not is_fetched("conceptarc")
    web.files[path] = good
    web.asked.clear()
    assert fetch("conceptarc").downloaded and is_fetched("conceptarc")
    assert web.asked == [f"GET {path}"]


def test_not_what_hugging_face_promised(web: Server, tmp_path: Path) -> None:
    """It names a SHA-256: the first download is checked by it too, and the next starts afresh."""
    path = f"/datasets/{SUDOKU}/resolve/{COMMIT}/train.csv"
    web.files[path] = CSV["train.csv"][:-1] + b"x"
    refused(
        "main/train.csv: what came is not what is expected .*; it is not kept", "sudoku-extreme"
    )
    assert content(tmp_path / "cache") == {} and not fetched_folder("sudoku-extreme").exists()
    web.files[path] = CSV["train.csv"]
    assert fetch("sudoku-extreme").downloaded


def test_changed_since_the_first_time(web: Server) -> None:
    """What is there stays, a lost file comes from the same commit; --force takes the new set."""
    fetch("sudoku-extreme")
    place = fetched_folder("sudoku-extreme")
    before = content(place)
    web.hugging_face(SUDOKU, NEW_CSV, commit="d" * 40)
    (place / "train.csv").unlink()
    assert fetch("sudoku-extreme").downloaded and content(place) == before
    (place / "train.csv").unlink()
    web.hugging_face(SUDOKU, NEW_CSV)  # the same commit now names other bytes
    refused("SHA-256 .*--force takes a set that has changed", "sudoku-extreme")
    del before["train.csv"]
    assert content(place) == before
    web.hugging_face(SUDOKU, NEW_CSV, commit="d" * 40)
    assert fetch("sudoku-extreme", force=True).downloaded
    assert (place / "train.csv").read_bytes() == NEW_CSV["train.csv"]
    assert record(place)["sudoku-extreme"]["commit"] == "d" * 40
    assert not fetch("sudoku-extreme").downloaded


# What is there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sudoku-extreme", "conceptarc"])
def test_a_changed_file_is_not_overwritten(web: Server, name: str) -> None:
    """It is refused, and --force brings the right one back."""
    fetch(name)
    path = fetched_folder(name) / SOURCES[name].files[0].target
    right = path.read_bytes()
    path.write_bytes(right[:-4] + b"x,y\n")  # as long as before
    web.asked.clear()
    refused(f"{path.name}: is not the file that was fetched", name)
    assert path.read_bytes()[-4:] == b"x,y\n" and not web.asked
    assert fetch(name, force=True).downloaded
    assert path.read_bytes() == right


def test_files_put_there_by_hand(web: Server) -> None:
    """Are checked where that is possible, recorded, and not downloaded."""
    arc = {file.target: arc_text(file.target) for file in SOURCES["conceptarc"].files}
    for name, files in (("sudoku-extreme", CSV), ("conceptarc", arc)):
        place = fetched_folder(name)
        place.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (place / file).write_bytes(text)
        assert not is_fetched(name)
        result = fetch(name)
        assert isinstance(result, Fetched) and not result.downloaded
        assert is_fetched(name) and set(result.files) == set(files)
    assert not web.asked
    (place / RECORD).unlink()
    (place / "concept_solutions.json").write_bytes(b"{}")
    refused("concept_solutions.json: is not the file that was fetched", "conceptarc")


def test_a_damaged_record(web: Server) -> None:
    """Is not written over; without it the files are checked again and recorded."""
    fetch("conceptarc")
    path = fetched_folder("conceptarc") / RECORD
    path.write_text("{")
    for force in (False, True):
        refused("fetched.json: is not a record of this version; move it away", "conceptarc", force)
    assert path.read_text() == "{"
    path.unlink()
    web.asked.clear()
    assert not fetch("conceptarc").downloaded and is_fetched("conceptarc") and not web.asked


def test_a_folder_in_the_way(web: Server) -> None:
    """Is refused, with --force too, and not removed."""
    (fetched_folder("conceptarc") / "concept_solutions.json").mkdir(parents=True)
    for force in (False, True):
        refused("concept_solutions.json: is a folder, and a file", "conceptarc", force)
    assert not web.asked and (fetched_folder("conceptarc") / "concept_solutions.json").is_dir()


def test_links_that_lead_out(web: Server, tmp_path: Path) -> None:
    """Nothing is written through a link out of the cache; one in a file's place is replaced."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    place = fetched_folder("conceptarc")
    for link in (place.parent, place, place.with_name(".arc-agi.lock"), place / PARTIAL):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside / "file" if link.suffix == ".lock" else outside)
        refused("a link leads out of the cache folder", "conceptarc")
        link.unlink()
    (place / "concept_solutions.json").symlink_to(outside / "file")
    refused("concept_solutions.json: is not the file that was fetched", "conceptarc")
    assert not web.asked and fetch("conceptarc", force=True).downloaded
    assert content(outside) == {"file": b"mine"}


# Things that go wrong ----------------------------------------------------------------------------


def test_a_broken_connection(web: Server, monkeypatch: Any) -> None:
    """Another attempt mends it; where none is left it is one line, and nothing is in place."""
    path = plain_path("concept_challenges.json")
    web.cuts[path] = [10]
    refused(f"{path}: cannot be downloaded: .*; by hand: put it at .*, then fetch", "conceptarc")
    assert not fetched_folder("conceptarc").exists()
    monkeypatch.setattr(fetch_module, "RETRIES", 1)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    web.cuts[path] = [10]
    assert fetch("conceptarc").downloaded


def test_a_large_file_goes_on_where_it_broke_off(web: Server) -> None:
    """Hugging Face is asked for the rest only."""
    text = np.random.default_rng(0).bytes(11 << 20)
    web.hugging_face(SUDOKU, {**CSV, "train.csv": text})
    path = f"/datasets/{SUDOKU}/resolve/{COMMIT}/train.csv"
    web.cuts[path] = [(10 << 20) + 9]
    with suppress(DataError):  # some versions of the library go on by themselves, others then
        fetch("sudoku-extreme")
    fetch("sudoku-extreme")
    assert (fetched_folder("sudoku-extreme") / "train.csv").read_bytes() == text
    assert [line.split("=")[-1] for line in web.asked if "bytes=" in line] == [f"{10 << 20}-"]


def test_parts_of_two_versions_are_refused(web: Server) -> None:
    """The file changes while it comes: the rest, a 206, has another ETag and another length."""
    texts = [np.random.default_rng(seed).bytes((11 << 20) + seed) for seed in (0, 1)]
    web.hugging_face(SUDOKU, {**CSV, "train.csv": texts[0]})
    path = f"/datasets/{SUDOKU}/resolve/{COMMIT}/train.csv"
    web.cuts[path] = [(10 << 20) + 9]

    def change(asked: str) -> None:
        if asked == path:
            web.files[path] = texts[1]
            web.headers[path] = {**web.headers[path], "ETag": '"another"'}
            web.hook = lambda path: None

    web.hook = change
    refused("train.csv: ", "sudoku-extreme")
    assert not is_fetched("sudoku-extreme")
    assert not (fetched_folder("sudoku-extreme") / "train.csv").exists()


def without_digests(web: Server) -> None:
    """Make the server list neither SHA-256 nor git's names."""
    for revision in ("main", COMMIT):
        path = f"/api/datasets/{SUDOKU}/revision/{revision}"
        about = json.loads(web.files[path])
        for each in about["siblings"]:
            del each["lfs"], each["blobId"]
        web.files[path] = json.dumps(about).encode()


@pytest.mark.parametrize("what", ["ETag", "total"])
def test_where_no_digest_is_known_one_version_comes(web: Server, what: str) -> None:
    """What changes while it comes is not kept."""
    without_digests(web)
    path = f"/datasets/{SUDOKU}/resolve/{COMMIT}/train.csv"

    def change(asked: str) -> None:
        if asked == path and what == "ETag":
            web.headers[path] = {**web.headers[path], "ETag": '"another"'}
        if asked == path and what == "total":
            web.files[path] += b"more"

    web.hook = change
    refused("train.csv: was changed while it came; it is not kept", "sudoku-extreme")
    assert not (fetched_folder("sudoku-extreme") / PARTIAL).exists()
    web.hook = lambda path: None
    fetch("sudoku-extreme")
    assert (fetched_folder("sudoku-extreme") / "train.csv").read_bytes() == web.files[path]


def test_where_nothing_tells_versions_apart_nothing_is_gone_on_with(
    web: Server, monkeypatch: Any
) -> None:
    """What a fetch that broke off has left may be another version of the same length and ETag."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's own attempts
    without_digests(web)
    first, second = (f"/datasets/{SUDOKU}/resolve/{COMMIT}/{name}" for name in CSV)
    web.cuts[second] = [3] * 20
    refused("test.csv: cannot be downloaded", "sudoku-extreme")
    left = fetched_folder("sudoku-extreme") / PARTIAL / "train.csv"
    assert left.read_bytes() == web.files[first]
    web.files[first] = web.files[first].replace(b"a,b", b"x,y")
    web.cuts[second] = []
    web.asked.clear()
    fetch("sudoku-extreme")
    assert (fetched_folder("sudoku-extreme") / "train.csv").read_bytes() == web.files[first]
    assert not [line for line in web.asked if "bytes=" in line]


def test_a_small_file_is_checked_by_its_name_in_git(web: Server) -> None:
    """Of files that are not large Hugging Face tells no SHA-256, but git's name for the content."""
    path = f"/api/datasets/{SUDOKU}/revision/main"
    about = json.loads(web.files[path])
    for each in about["siblings"]:
        text = CSV[each["rfilename"]]
        del each["lfs"]
        each["blobId"] = hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
    web.files[path] = json.dumps(about).encode()
    content_path = f"/datasets/{SUDOKU}/resolve/{COMMIT}/train.csv"
    web.files[content_path] = CSV["train.csv"][:-1] + b"x"
    refused("train.csv: what came is not what is expected", "sudoku-extreme")
    web.files[content_path] = CSV["train.csv"]
    assert fetch("sudoku-extreme").downloaded


@pytest.mark.parametrize("name", ["sudoku-extreme", "conceptarc"])
def test_a_server_that_hardly_sends(web: Server, monkeypatch: Any, name: str) -> None:
    """A byte now and then never ends a time limit; what does not reach the disk for long does."""
    monkeypatch.setattr(watching, "STALLED_AFTER", 0.3)
    monkeypatch.setattr(watching, "_PAUSE", 0.05)
    done = threading.Event()
    web.hook = lambda path: (path.endswith(("train.csv", ".json")) and done.wait(20)) and None
    refused("cannot be downloaded: nothing has come for 0 seconds", name)
    done.set()
    assert not is_fetched(name)


def test_a_server_that_never_stops(tmp_path: Path, monkeypatch: Any) -> None:
    """What brings far more than was promised is given up."""
    monkeypatch.setattr(watching, "_SPARE", 10)
    monkeypatch.setattr(watching, "_PAUSE", 0.01)
    stop = threading.Event()

    def work() -> None:
        (tmp_path / "a").write_bytes(b"x" * 1000)
        stop.wait(20)

    with pytest.raises(ValueError, match="larger than the 900 bytes that were promised"):
        watching.watch(work, tmp_path, 900)
    stop.set()


@pytest.mark.parametrize("place", ["http://[::1/x", "http://[nonsense]/x", "//[", "gopher://x/"])
def test_a_redirect_to_no_address(web: Server, place: str) -> None:
    """It is one line, whatever the library makes of it."""
    web.redirects[plain_path("concept_challenges.json")] = place
    refused("cannot be downloaded", "conceptarc")


@pytest.mark.parametrize("name", ["sudoku-extreme", "arc1"])
def test_offline(web: Server, tmp_path: Path, capsys: Any, monkeypatch: Any, name: str) -> None:
    """One line that says so and how to do without; code 2."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    source = SOURCES[name]
    if source.base_url is not None:
        monkeypatch.setitem(SOURCES, name, source._replace(base_url="http://127.0.0.1:9/"))
    code, out, err = run(capsys, name, "-q")
    target = tmp_path / "cache" / "fetched" / source.place / source.files[0].target
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.endswith(
        f"cannot be downloaded: Connection refused; by hand: put it at {target}, then fetch again\n"
    )
    assert not target.parent.exists() and not web.asked


def test_a_file_that_is_not_there(web: Server) -> None:
    """404: the URL, and where a file fetched by hand has to be."""
    web.files.clear()
    message = refused("cannot be downloaded: .*404 .*; by hand: put it at", "sudoku-extreme")
    assert message.startswith(f"https://huggingface.co/datasets/{SUDOKU}/resolve/main/train.csv: ")


@pytest.mark.parametrize("name", ["sudoku-extreme", "arc1"])
def test_a_disk_that_is_full(web: Server, name: str) -> None:
    """One line that names another way; what was there stays."""
    text = bytes(300_000)
    if name == "arc1":
        web.files[plain_path("training_solutions.json")] = text
    else:
        web.hugging_face(SUDOKU, {**CSV, "train.csv": text})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        refused("cannot be read or written: File too large; MLX_TRM_CACHE can name another", name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not is_fetched(name) and os.listdir(fetched_folder(name)) == [PARTIAL]


def test_a_folder_that_cannot_be_written(web: Server, tmp_path: Path, monkeypatch: Any) -> None:
    """The same."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "file"))
    refused("cannot be read or written: Not a directory; MLX_TRM_CACHE can name", "arc1")
    monkeypatch.setenv("MLX_TRM_CACHE", str(tmp_path / "cache"))

    def denied(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "there")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", denied)
        refused("there: cannot be read or written: Permission denied; MLX_TRM_CACHE", "arc1")
    assert os.listdir(fetched_folder("arc1")) == [PARTIAL] and web.asked


@pytest.mark.parametrize("name", ["sudoku-extreme", "arc1"])
def test_ctrl_c(web: Server, monkeypatch: Any, name: str) -> None:
    """No file has its name before all have come; the next fetch finishes."""
    import huggingface_hub
    import tqdm

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tqdm.tqdm, "update", interrupt)
        download = huggingface_hub.HfApi.hf_hub_download
        patch.setattr(
            huggingface_hub.HfApi,
            "hf_hub_download",
            lambda api, repository, path, **options: (
                interrupt() if path == "test.csv" else download(api, repository, path, **options)
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            fetch(name)
    place = fetched_folder(name)
    assert not any((place / file.target).exists() for file in SOURCES[name].files)
    assert not is_fetched(name)
    assert fetch(name).downloaded and is_fetched(name) and web.asked
    assert PARTIAL not in os.listdir(place)


def test_two_at_once(web: Server, caplog: Any) -> None:
    """The second waits, says so, finds the files, and downloads nothing."""
    caplog.set_level("INFO", "mlx_trm")
    started, waiting = threading.Event(), threading.Event()
    results: List[Fetched] = []

    def hook(_: str) -> None:
        started.set()
        assert waiting.wait(30)

    def work() -> None:
        results.append(fetch("conceptarc"))

    class Listener(fetch_module.logging.Handler):
        """Notices the message of the one that waits."""

        def emit(self, record: Any) -> None:  # pylint: disable=redefined-outer-name
            if "another process is fetching" in record.getMessage():
                waiting.set()

    listener = Listener()
    fetch_module.LOG.addHandler(listener)
    web.hook = hook
    threads = [threading.Thread(target=work) for _ in range(2)]
    try:
        threads[0].start()
        assert started.wait(30)
        threads[1].start()
        for thread in threads:
            thread.join(60)
    finally:
        fetch_module.LOG.removeHandler(listener)
    assert [result.downloaded for result in results] == [True, False]
    assert len(web.asked) == 2
