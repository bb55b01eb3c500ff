"""Downloads from a server that misbehaves: what is kept, asked for again, and refused."""

import json
import logging
import os
import random
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from fetch_server import COMMIT, Reply, Server

from mlx_trm.errors import DataError
from mlx_trm.tasks import fetch_http
from mlx_trm.tasks.fetch_http import Announced, DownloadError, Patience, download

CONTENT = random.Random(0).randbytes(700_000)
QUICK = Patience(timeout=10.0, attempts=3, pause=0.001)
LIMIT = 1 << 20


@pytest.fixture(name="server")
def make_server(monkeypatch: Any) -> Iterator[Server]:
    """The server, reached without a proxy."""
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        yield server


def get(server: Server, part: Path, patience: Patience = QUICK, limit: int = LIMIT) -> Any:
    """Download ``/a``."""
    return download(f"{server.address}/a", part, limit, patience)


def test_a_download(server: Server, tmp_path: Path) -> None:
    """The bytes, the commit that was named, and progress up to the end."""
    server.replies["/a"] = Reply(CONTENT, headers={"X-Repo-Commit": COMMIT})
    seen: List[Any] = []
    part = tmp_path / "a.part"
    commit = download(f"{server.address}/a", part, LIMIT, QUICK, lambda *now: seen.append(now))
    assert part.read_bytes() == CONTENT and commit == COMMIT
    assert seen[-1] == (700_000, 700_000) and seen == sorted(seen) and len(seen) > 2
    assert [request.range for request in server.requests] == [None]
    # All is there: nothing more is asked for.
    assert get(server, part) == COMMIT and len(server.requests) == 1


def test_a_cut_off_download_goes_on(server: Server, tmp_path: Path) -> None:
    """Twice cut off: only the rest is asked for and sent, on condition that it is the same."""
    server.replies["/a"] = Reply(CONTENT, cuts=[300_000, 100_000])
    get(server, tmp_path / "a.part")
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    assert [(r.range, r.if_range, r.sent) for r in server.requests] == [
        (None, None, 300_000),
        ("bytes=300000-", '"one"', 100_000),
        ("bytes=400000-", '"one"', 300_000),
    ]


def test_a_later_call_goes_on(server: Server, tmp_path: Path) -> None:
    """What a failed call has kept is not sent again; the commit named first is remembered."""
    part = tmp_path / "a.part"
    reply = server.replies["/a"] = Reply(CONTENT, cuts=[500_000])
    reply.headers["X-Repo-Commit"] = COMMIT
    with pytest.raises(
        DownloadError, match="cut off after 500,000 of 700,000.*what has come is kep"
    ):
        get(server, part, Patience(attempts=1))
    assert part.read_bytes() == CONTENT[:500_000]
    del reply.headers["X-Repo-Commit"]
    assert get(server, part) == COMMIT
    assert part.read_bytes() == CONTENT and server.requests[-1].sent == 200_000


def test_changed_in_between(server: Server, tmp_path: Path) -> None:
    """Another ETag: the old half is thrown away."""
    part = tmp_path / "a.part"
    server.replies["/a"] = Reply(CONTENT, cuts=[500_000])
    with pytest.raises(DownloadError):
        get(server, part, Patience(attempts=1))
    server.replies["/a"] = Reply(CONTENT[::-1], etag='"two"')
    get(server, part)
    assert part.read_bytes() == CONTENT[::-1]
    assert server.requests[-1].range == "bytes=500000-" and server.requests[-1].sent == 700_000


@pytest.mark.parametrize("odd", ["ignores", "weak", "none", "no-note", "other-url", "bad-note"])
def test_starting_over(server: Server, tmp_path: Path, odd: str) -> None:
    """Where it cannot be told that the rest fits, everything is sent again, and fits."""
    part, note = tmp_path / "a.part", tmp_path / "a.part.json"
    etag = {"weak": 'W/"one"', "none": ""}.get(odd, '"one"')
    server.replies["/a"] = Reply(CONTENT, etag=etag, cuts=[500_000], ranges=odd != "ignores")
    with pytest.raises(DownloadError):
        get(server, part, Patience(attempts=1))
    if odd == "no-note":
        note.unlink()
    if odd == "bad-note":
        note.write_text("[1")
    if odd == "other-url":
        note.write_text(json.dumps({**json.loads(note.read_text()), "url": "http://x/a"}))
    part.write_bytes(b"x" * 500_000)
    get(server, part)
    assert part.read_bytes() == CONTENT and server.requests[-1].sent == 700_000
    assert (server.requests[-1].range is None) == (odd != "ignores")


def test_a_date_does_as_well(server: Server, tmp_path: Path) -> None:
    """Without a strong ETag the date of the file is the condition."""
    date = "Mon, 01 Sep 2025 00:00:00 GMT"
    reply = Reply(CONTENT, etag="", cuts=[500_000], headers={"Last-Modified": date})
    server.replies["/a"] = reply
    with pytest.raises(DownloadError):
        get(server, tmp_path / "a.part", Patience(attempts=1))
    reply.etag = date  # what the server compares If-Range with
    get(server, tmp_path / "a.part")
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    assert server.requests[-1][1:4] == ("bytes=500000-", date, 200_000)


def test_a_wrong_range(server: Server, tmp_path: Path) -> None:
    """A part that begins elsewhere is not put behind what is there."""
    part = tmp_path / "a.part"
    server.replies["/a"] = reply = Reply(CONTENT, cuts=[500_000])
    with pytest.raises(DownloadError):
        get(server, part, Patience(attempts=1))
    reply.ranges = False
    reply.statuses = [206]
    reply.headers = {"Content-Range": "bytes 0-699999/700000"}
    with pytest.raises(DownloadError, match="does not go on where the last download broke off"):
        get(server, part, Patience(attempts=1))
    assert not part.exists()
    reply.headers = {}
    get(server, part)
    assert part.read_bytes() == CONTENT


def test_a_shorter_file_than_before(server: Server, tmp_path: Path) -> None:
    """416: what was kept is thrown away."""
    part = tmp_path / "a.part"
    server.replies["/a"] = Reply(CONTENT, cuts=[500_000])
    with pytest.raises(DownloadError):
        get(server, part, Patience(attempts=1))
    server.replies["/a"] = Reply(CONTENT[:1000])
    get(server, part)
    assert part.read_bytes() == CONTENT[:1000]
    assert [r.range for r in server.requests] == [None, "bytes=500000-", None]


@pytest.mark.parametrize("statuses", [[500], [503, 502], [429, 408]])
def test_errors_that_pass(server: Server, tmp_path: Path, statuses: List[int]) -> None:
    """5xx and the like are tried again, a message says so."""
    server.replies["/a"] = Reply(CONTENT, statuses=list(statuses))
    get(server, tmp_path / "a.part")
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    assert len(server.requests) == len(statuses) + 1


def test_errors_that_do_not_pass(server: Server, tmp_path: Path, caplog: Any) -> None:
    """Three times 503: given up, with longer and longer pauses; nothing is left."""
    server.replies["/a"] = Reply(CONTENT, statuses=[503] * 9)
    with caplog.at_level(logging.INFO, "mlx_trm"):
        with pytest.raises(DownloadError, match=r"/a: HTTP 503 Service Unavailable$"):
            get(server, tmp_path / "a.part")
    assert len(server.requests) == 3 and not list(tmp_path.iterdir())
    assert caplog.text.count("trying again in 0 s") == 2


def test_pauses(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    """They double; Retry-After is obeyed up to a minute; progress begins the count anew."""
    slept: List[float] = []
    monkeypatch.setattr(fetch_http.time, "sleep", slept.append)
    patience = Patience(timeout=5.0, attempts=4, pause=1.0)
    server.replies["/a"] = Reply(CONTENT, statuses=[500] * 3, cuts=[0, 0, 0, 9, 0, 0, 9])
    get(server, tmp_path / "a.part", patience)
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    assert slept == [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0]
    slept.clear()
    server.replies["/b"] = Reply(statuses=[429] * 2, headers={"Retry-After": "7"})
    server.replies["/c"] = Reply(statuses=[429] * 2, headers={"Retry-After": "700"})
    for path in "bc":
        download(f"{server.address}/{path}", tmp_path / path, LIMIT, patience)
    assert slept == [7.0, 7.0, 60.0, 60.0]


def test_no_progress_is_no_progress(server: Server, tmp_path: Path) -> None:
    """A server that cannot go on and always breaks off at the same place is given up."""
    server.replies["/a"] = Reply(CONTENT, cuts=[500_000] * 99, ranges=False)
    with pytest.raises(DownloadError, match="cut off"):
        get(server, tmp_path / "a.part")
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_refusals(server: Server, tmp_path: Path, status: int) -> None:
    """Are not tried again."""
    server.replies["/a"] = Reply(status=status)
    with pytest.raises(DownloadError, match=f"{server.address}/a: HTTP {status} "):
        get(server, tmp_path / "a.part")
    assert len(server.requests) == 1 and not list(tmp_path.iterdir())


def test_a_slow_server(server: Server, tmp_path: Path) -> None:
    """Silence for longer than the timeout counts as a cut; what came before it is kept."""
    server.replies["/a"] = Reply(CONTENT, stalls=[1.0])
    get(server, tmp_path / "a.part", Patience(0.3, 3, 0.001))
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    begin, *_ = [r.range for r in server.requests if r.range]
    assert 0 < int(begin[6:-1]) <= 350_000
    server.replies["/b"] = Reply(CONTENT, stalls=[0.3] * 9, ranges=False)
    with pytest.raises(DownloadError, match="the connection broke: timed out"):
        download(f"{server.address}/b", tmp_path / "b", LIMIT, Patience(0.1, 2, 0.001))


def test_redirects(server: Server, tmp_path: Path) -> None:
    """Five are followed, relative ones too, and what they announce is kept; Range goes along."""
    heard: List[Announced] = []
    for number, status in enumerate((301, 302, 303, 307, 308)):
        server.replies[f"/{number}"] = Reply(location=f"{number + 1}", status=status)
    server.replies["/2"].headers = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": '"' + "d" * 64 + '"'}
    server.replies["/5"] = Reply(CONTENT, cuts=[500_000])
    url = f"{server.address}/0"
    assert download(url, tmp_path / "a", LIMIT, QUICK, None, heard.append) == COMMIT
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert heard[:4] == [Announced(None, None)] * 2 + [Announced(COMMIT, "d" * 64)] * 2
    assert [(r.range, r.sent) for r in server.requests if r.path == "/5"] == [
        (None, 500_000),
        ("bytes=500000-", 200_000),
    ]


@pytest.mark.parametrize(
    "location, says",
    [
        ("/a", "redirects more than 5 times"),
        ("file:///etc/passwd", "redirects to 'file:///etc/passwd', which is neither"),
        ("ftp://127.0.0.1/a", "which is neither http nor https"),
        ("data:text/plain,hello", "which is neither http nor https"),
        ("gopher://a", "which is neither http nor https"),
    ],
)
def test_bad_redirects(server: Server, tmp_path: Path, location: str, says: str) -> None:
    """A loop, and redirects that lead away from the web."""
    server.replies["/a"] = Reply(location=location, status=302)
    with pytest.raises(DownloadError, match=says):
        get(server, tmp_path / "a.part")
    assert len(server.requests) == (6 if location == "/a" else 1) and not list(tmp_path.iterdir())


def test_https_is_not_left() -> None:
    """From https to http is refused, to https it is allowed; from http both are."""
    step = fetch_http._next_place  # pylint: disable=protected-access
    with pytest.raises(DownloadError, match="from https to 'http://b/', which is not encrypted"):
        step("https://a/", "https://a/x", "http://b/")
    with pytest.raises(DownloadError, match="not encrypted"):
        step("http://z/", "https://a/x", "http://a/y")
    assert step("https://a/", "https://a/x", "//b/y z") == "https://b/y%20z"
    assert step("http://a/", "http://a/x", "https://b/") == "https://b/"
    assert step("http://a/", "http://a/x", "http://b/") == "http://b/"


def test_too_much(server: Server, tmp_path: Path) -> None:
    """More than the limit is refused, announced or not, and not kept."""
    part = tmp_path / "a.part"
    server.replies["/a"] = Reply(CONTENT)
    with pytest.raises(DownloadError, match="sends 700,000 bytes, more than the 1,000 expected"):
        get(server, part, limit=1000)
    server.replies["/a"] = Reply(CONTENT, length=False)
    with pytest.raises(DownloadError, match="sends more than the 1,000 bytes expected"):
        get(server, part, limit=1000)
    assert not list(tmp_path.iterdir())
    get(server, part, limit=700_000)
    assert part.read_bytes() == CONTENT


def test_odd_answers(server: Server, tmp_path: Path) -> None:
    """Compressed where it must not be; empty; chunks that break off."""
    server.replies["/a"] = Reply(CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(DownloadError, match="sent as 'gzip'"):
        get(server, tmp_path / "a.part")
    server.replies["/a"] = Reply(b"")
    get(server, tmp_path / "a.part")
    assert (tmp_path / "a.part").read_bytes() == b""
    chunk = b"5\r\nhello\r\n"
    server.replies["/b"] = Reply(chunk, headers={"Transfer-Encoding": "chunked"}, length=False)
    with pytest.raises(DownloadError, match="the connection broke"):
        download(f"{server.address}/b", tmp_path / "b", LIMIT, QUICK)


def test_what_inspect_refuses(server: Server, tmp_path: Path) -> None:
    """Is not downloaded."""
    server.replies["/a"] = Reply(CONTENT)

    def refuse(_: Announced) -> None:
        raise DataError("no")

    with pytest.raises(DataError, match="^no$"):
        download(f"{server.address}/a", tmp_path / "a", LIMIT, QUICK, inspect=refuse)
    assert not list(tmp_path.iterdir()) and len(server.requests) == 1


def test_nobody_there(tmp_path: Path) -> None:
    """A closed port, a name that is none, a URL that is none: one attempt, one line."""
    with Server() as server:
        address = server.address
    slow = Patience(pause=1000.0)
    with pytest.raises(DownloadError, match="cannot be reached: Connection refused"):
        download(f"{address}/a", tmp_path / "a", LIMIT, slow)
    for url in ("http://:x/", "gopher://a/b", "http://127.0.0.1:99999/a", "file:///etc/passwd"):
        with pytest.raises(DownloadError, match="cannot be reached: "):
            download(url, tmp_path / "a", LIMIT, slow)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_download(server: Server, tmp_path: Path) -> None:
    """Ctrl-C leaves what came, and the next call goes on from there."""
    part = tmp_path / "a.part"
    server.replies["/a"] = Reply(CONTENT)

    def interrupt(done: int, _: Any) -> None:
        if done > 400_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(f"{server.address}/a", part, LIMIT, QUICK, interrupt)
    have = part.stat().st_size
    assert have > 400_000
    get(server, part)
    assert part.read_bytes() == CONTENT
    assert server.requests[-1].range == f"bytes={have}-"


def test_a_full_disk(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    """Seen beforehand, or met on the way: one line that names another way."""
    server.replies["/a"] = Reply(CONTENT)
    with monkeypatch.context() as patch:
        usage = type("Usage", (), {"free": 1000})
        patch.setattr(fetch_http.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(DataError, match="700,000 bytes are to come and 1,000 are free"):
            get(server, tmp_path / "a.part")
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "a.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left on device; MLX_TRM_CACHE can name another"):
        get(server, tmp_path / "a.part")
