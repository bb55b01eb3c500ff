"""A web server on this machine that serves small files and misbehaves as it is told."""

import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List, NamedTuple, Optional

COMMIT = "c" * 40


@dataclass
class Reply:
    """How a path is answered. The lists are used up, one entry a request.

    Attributes:
        content: the file.
        etag: of the content; "" sends none.
        statuses: answered first, instead of the file.
        cuts: the body breaks off after so many bytes.
        stalls: seconds before the body goes on, in its middle.
        ranges: whether ``Range`` is obeyed.
        location: redirect there.
        length: whether ``Content-Length`` is sent.
        headers: sent too.
        status: of every answer, where it is not 200.
    """

    content: bytes = b""
    etag: str = '"one"'
    statuses: List[int] = field(default_factory=list)
    cuts: List[int] = field(default_factory=list)
    stalls: List[float] = field(default_factory=list)
    ranges: bool = True
    location: str = ""
    length: bool = True
    headers: Dict[str, str] = field(default_factory=dict)
    status: int = 200


class Request(NamedTuple):
    """What was asked for, and how many bytes of a body were sent."""

    path: str
    range: Optional[str]
    if_range: Optional[str]
    sent: int
    method: str = "GET"


class Server:
    """Answers on a free port of 127.0.0.1 inside a ``with`` block.

    Attributes:
        replies: by path; change them at any time.
        address: ``http://127.0.0.1:PORT``.
    """

    def __init__(self) -> None:
        self.replies: Dict[str, Reply] = {}
        self._requests: List[Request] = []
        self._busy = 0
        self._change = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            """Answers from ``replies``."""

            def do_GET(self) -> None:  # pylint: disable=invalid-name
                """Send what was asked for."""
                server.answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:  # pylint: disable=W0622
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def requests(self) -> List[Request]:
        """Everything asked so far, in order; answers that are under way are waited for."""
        with self._change:
            self._change.wait_for(lambda: self._busy == 0, timeout=5.0)
            return list(self._requests)

    def hugging_face(self, repository: str, files: Dict[str, bytes], commit: str = COMMIT) -> None:
        """Serve a dataset as Hugging Face does: files lie on another host, behind a redirect."""
        elsewhere = self.address.replace("127.0.0.1", "localhost")
        for name, content in files.items():
            digest = hashlib.sha256(content).hexdigest()
            headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{digest}"',
                       "X-Linked-Size": str(len(content))}  # fmt: skip
            for revision in ("main", commit):
                self.replies[f"/datasets/{repository}/resolve/{revision}/{name}"] = Reply(
                    location=f"{elsewhere}/far/{digest}", headers=headers, status=302
                )
            self.replies[f"/far/{digest}"] = Reply(content, etag=f'"{digest}"')

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        reply = self.replies.get(handler.path, Reply(status=404))
        wanted, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        sent = 0
        with self._change:
            self._busy += 1
        try:
            sent = self._send(handler, reply, wanted, condition)
        except OSError:  # the client has left
            pass
        finally:
            with self._change:
                asked = Request(handler.path, wanted, condition, sent, handler.command)
                self._requests.append(asked)
                self._busy -= 1
                self._change.notify_all()

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        reply: Reply,
        wanted: Optional[str],
        condition: Optional[str],
    ) -> int:
        status = reply.statuses.pop(0) if reply.statuses else reply.status
        body = reply.content if status == 200 else b""
        headers = dict(reply.headers)
        if reply.location:
            headers["Location"] = reply.location
        if status == 200:
            if reply.etag:
                headers["ETag"] = reply.etag
            if reply.ranges and wanted and condition in (None, reply.etag):
                start = int(wanted[len("bytes=") : -1])
                status, body = (206, body[start:]) if start < len(body) else (416, b"")
                whole = len(reply.content)
                headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        handler.send_response(status)
        if reply.length:
            headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return 0
        end = min(reply.cuts.pop(0), len(body)) if reply.cuts else len(body)
        if reply.stalls:
            handler.wfile.write(body[: end // 2])
            handler.wfile.flush()
            time.sleep(reply.stalls.pop(0))
            handler.wfile.write(body[end // 2 : end])
        else:
            handler.wfile.write(body[:end])
        handler.wfile.flush()
        return end
