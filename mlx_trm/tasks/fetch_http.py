"""Downloading one file over HTTP with the standard library, going on where a download broke off.

What has come lies in a ``.part`` file; a note beside it keeps what the server said of the content,
so that the rest is asked for with ``Range`` and ``If-Range`` only while that holds.
"""

import errno
import http.client
import json
import logging
import re
import shutil
import socket
import ssl
import string
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple
from urllib.parse import quote, urljoin, urlsplit

from mlx_trm.errors import DataError

LOG = logging.getLogger(__name__)

MAX_REDIRECTS = 5
Progress = Callable[[int, Optional[int]], None]

_CHUNK = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_SECONDS = 60.0
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_NO_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH)
_NOT_THERE = (socket.gaierror, ConnectionRefusedError)
_WRONG = (ssl.SSLCertVerificationError, http.client.InvalidURL, ValueError, str)


class DownloadError(DataError):
    """A file that did not come; the message says from where and why."""


class Patience(NamedTuple):
    """How long a download is tried.

    Attributes:
        timeout: seconds without a single byte that count as a failure.
        attempts: failures in a row, without any new byte, after which it is given up.
        pause: seconds before the second attempt; doubled before each further one.
    """

    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0


class Announced(NamedTuple):
    """What a server says of a file before it sends it.

    Attributes:
        commit: of the repository; None where it says none.
        sha256: of the content; None where it says none.
    """

    commit: Optional[str]
    sha256: Optional[str]


class _Broken(Exception):
    """A failure that another attempt may mend."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def download(
    url: str,
    part: Path,
    limit: int,
    patience: Patience = Patience(),
    progress: Optional[Progress] = None,
    inspect: Optional[Callable[[Announced], None]] = None,
) -> Optional[str]:
    """Download a file, going on with what an earlier call has left.

    Args:
        url: ``http`` or ``https``.
        part: where it goes. It stays there when the download fails or is interrupted.
        limit: more bytes than this are refused.
        patience: how long it is tried.
        progress: called with the bytes that are there and, where known, those there will be.
        inspect: called before anything is written; what it raises ends the download.

    Returns:
        The commit that the server named, if it did.

    Raises:
        DownloadError: if the file does not come.
        DataError: if it cannot be written.
    """
    failures, farthest = 0, _size(part)
    while True:
        try:
            return _attempt(url, part, limit, patience, progress, inspect)
        except _Broken as error:
            failures = 1 if _size(part) > farthest else failures + 1
            farthest = max(farthest, _size(part))
            if failures >= patience.attempts:
                kept = "; what has come is kept, and fetching again goes on there"
                raise DownloadError(f"{url}: {error}{kept if _size(part) else ''}") from error
            wait = max(error.wait, patience.pause * 2 ** (failures - 1))
            wait = min(wait, _MOST_SECONDS)
            LOG.info("%s: %s; trying again in %.0f s", url, error, wait)
            time.sleep(wait)


def forget(part: Path) -> None:
    """Remove a ``.part`` file and its note."""
    for path in (part, _note_path(part)):
        if path.exists():
            path.unlink()


def _attempt(
    url: str,
    part: Path,
    limit: int,
    patience: Patience,
    progress: Optional[Progress],
    inspect: Optional[Callable[[Announced], None]],
) -> Optional[str]:
    """Ask once; what comes is added to the part."""
    note = _read_note(part, url)
    have = _size(part) if note else 0
    if note and have == note.get("total"):
        return _text(note.get("commit"))
    with _opened(url, _headers(have, note), patience.timeout, inspect) as (response, said):
        if response.status == 200:
            have, note = 0, {}
        elif not _continues(response, have):
            forget(part)
            raise _Broken("it does not go on where the last download broke off")
        total = _total(response)
        if total is not None and total > limit:
            forget(part)
            raise DownloadError(f"{url}: sends {total:,} bytes, more than the {limit:,} expected")
        commit, validator = said.commit or _text(note.get("commit")), _validator(response)
        try:
            _check_room(part, total, have)
            _write_note(
                part, {"url": url, "validator": validator, "total": total, "commit": commit}
            )
            with open(part, "ab" if have else "wb") as file:
                while total is None or have < total:
                    chunk = _read(response, _CHUNK if total is None else min(_CHUNK, total - have))
                    if not chunk:
                        break
                    file.write(chunk)
                    have += len(chunk)
                    if have > limit:
                        break
                    if progress is not None:
                        progress(have, total)
        except OSError as error:
            raise unwritable(part, error) from error
    if have > limit:
        forget(part)
        raise DownloadError(f"{url}: sends more than the {limit:,} bytes expected")
    if total is not None and have < total:
        raise _Broken(f"the connection was cut off after {have:,} of {total:,} bytes")
    if total is None:
        _write_note(part, {"url": url, "validator": validator, "total": have, "commit": commit})
    return commit


def unwritable(path: Path, error: OSError) -> DataError:
    """Say in a line that something in the cache cannot be written."""
    return DataError(
        f"{error.filename or path}: cannot be read or written: {error.strerror or error}; "
        "MLX_TRM_CACHE can name another folder"
    )


def _headers(have: int, note: Dict[str, Any]) -> Dict[str, str]:
    """Ask for the file, or for what is missing of it."""
    headers = {"User-Agent": "mlx_trm", "Accept-Encoding": "identity"}
    if have:
        headers.update({"Range": f"bytes={have}-", "If-Range": note["validator"]})
    return headers


@contextmanager
def _opened(
    url: str,
    headers: Dict[str, str],
    timeout: float,
    inspect: Optional[Callable[[Announced], None]],
) -> Iterator[Tuple[http.client.HTTPResponse, Announced]]:
    """Open a URL; give the answer (200, 206 or 416) and what all answers on the way announced.

    ``file:``, ``ftp:`` and ``data:`` have no handler here and cannot be opened.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler,
                    urllib.request.HTTPSHandler, urllib.request.UnknownHandler):  # fmt: skip
        opener.add_handler(handler())
    said = Announced(None, None)
    here = url
    for _ in range(MAX_REDIRECTS + 1):
        response = _open_once(opener, here, headers, timeout)
        try:
            said = _listen(response, said)
            if inspect is not None:
                inspect(said)
            if response.status in _REDIRECTS and response.headers.get("Location"):
                here = _next_place(url, here, response.headers["Location"])
                continue
            _check_status(response, url, here)
            yield response, said
            return
        finally:
            response.close()
    raise DownloadError(f"{url}: redirects more than {MAX_REDIRECTS} times")


def _open_once(
    opener: urllib.request.OpenerDirector,
    url: str,
    headers: Dict[str, str],
    timeout: float,
) -> Any:
    """Send one request."""
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        hopeless = isinstance(reason, _NOT_THERE) or getattr(reason, "errno", 0) in _NO_NETWORK
        if isinstance(reason, _WRONG) or (hopeless and "Range" not in headers):
            raise DownloadError(f"{url}: cannot be reached: {_describe(reason)}") from error
        raise _Broken(f"no answer: {_describe(reason)}") from error


def _listen(response: http.client.HTTPResponse, said: Announced) -> Announced:
    """Add what Hugging Face says in headers, often with a redirect."""
    commit = response.headers.get("X-Repo-Commit", "")
    digest = response.headers.get("X-Linked-Etag", "").strip('"')
    return Announced(
        commit if re.fullmatch(r"[0-9a-f]{40}", commit) else said.commit,
        digest if re.fullmatch(r"[0-9a-f]{64}", digest) else said.sha256,
    )


def _next_place(url: str, here: str, location: str) -> str:
    """Follow a redirect, within http and https, and never from https to http."""
    there = urljoin(here, quote(location, safe=string.punctuation))
    parts = urlsplit(there)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"{url}: redirects to {there!r}, which is neither http nor https")
    if parts.scheme == "http" and urlsplit(here).scheme == "https":
        raise DownloadError(f"{url}: redirects from https to {there!r}, which is not encrypted")
    return there


def _check_status(response: http.client.HTTPResponse, url: str, here: str) -> None:
    """Accept 200, 206 and 416; the rest is refused, or tried again."""
    status = f"HTTP {response.status} {response.reason}".strip()
    if response.status in (200, 206, 416):
        coding = response.headers.get("Content-Encoding", "identity")
        if response.status == 200 and coding != "identity":
            raise DownloadError(f"{url}: sent as {coding!r}, which was not asked for")
        return
    if response.status in (408, 429) or response.status >= 500:
        after = response.headers.get("Retry-After", "")
        raise _Broken(status, float(after) if after.isascii() and after.isdigit() else 0.0)
    via = "" if urlsplit(here).netloc == urlsplit(url).netloc else f" from {urlsplit(here).netloc}"
    raise DownloadError(f"{url}: {status}{via}")


def _continues(response: http.client.HTTPResponse, have: int) -> bool:
    """Whether an answer to ``Range`` begins where the part ends."""
    match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    return response.status == 206 and match is not None and int(match.group(1)) == have


def _total(response: http.client.HTTPResponse) -> Optional[int]:
    """Bytes of the whole file, or None where the server does not say."""
    match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    length = match.group(2) if match else response.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def _validator(response: http.client.HTTPResponse) -> Optional[str]:
    """What tells later whether the file is still the same: a strong ETag, or its date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _read(response: http.client.HTTPResponse, size: int) -> bytes:
    """Read what is there, at most ``size`` bytes; nothing at the end."""
    try:
        return response.read1(size)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke: {_describe(error)}") from error


def _describe(error: object) -> str:
    """Say what went wrong with a connection."""
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _check_room(part: Path, total: Optional[int], have: int) -> None:
    """Refuse what the disk cannot hold before it is full."""
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - have > free:
        raise DataError(
            f"{part.parent}: {total - have:,} bytes are to come and {free:,} are free; "
            "MLX_TRM_CACHE can name another folder"
        )


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_note(part: Path, note: Dict[str, Any]) -> None:
    """Keep what the server said."""
    try:
        _note_path(part).write_text(json.dumps(note), encoding="utf-8")
    except OSError as error:
        raise unwritable(part, error) from error


def _read_note(part: Path, url: str) -> Dict[str, Any]:
    """Return the note of a part that can be gone on with; empty where it has to start afresh."""
    try:
        note = json.loads(_note_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(note, dict) or note.get("url") != url:
        return {}
    whole = isinstance(note.get("total"), int) and note["total"] == _size(part)
    if not (whole or isinstance(note.get("validator"), str)):
        return {}
    return note


def _text(value: object) -> Optional[str]:
    return value if isinstance(value, str) else None
