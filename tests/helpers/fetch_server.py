"""A web server on this machine: small files, and small repositories as Hugging Face serves them."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List

COMMIT = "c" * 40


class Server:
    """Answers on a free port of 127.0.0.1 inside a ``with`` block.

    Attributes:
        files: content by path; change them at any time.
        headers: sent with a path's answer too.
        redirects: where a path leads, by path.
        cuts: by path, after how many bytes the body breaks off; used up, one entry a GET.
        asked: ``GET /path`` of every request so far, with the range where one was asked for.
        hook: called with the path before a body is sent.
    """

    def __init__(self) -> None:
        self.files: Dict[str, bytes] = {}
        self.headers: Dict[str, Dict[str, str]] = {}
        self.cuts: Dict[str, List[int]] = {}
        self.redirects: Dict[str, str] = {}
        self.asked: List[str] = []
        self.hook: Callable[[str], None] = lambda path: None
        server = self

        class Handler(BaseHTTPRequestHandler):
            """Answers from ``files``."""

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

    def hugging_face(
        self,
        repository: str,
        files: Dict[str, bytes],
        commit: str = COMMIT,
        kind: str = "datasets",
    ) -> None:
        """Serve a data set, or of another kind ``models``, at ``main`` and at a commit."""
        start = "" if kind == "models" else f"/{kind}"
        digests = {name: hashlib.sha256(text).hexdigest() for name, text in files.items()}
        siblings = [
            {
                "rfilename": name,
                "size": len(text),
                "blobId": "b" * 40,
                "lfs": {"sha256": digests[name], "size": len(text), "pointerSize": 130},
            }
            for name, text in files.items()
        ]
        about = {"id": repository, "sha": commit, "siblings": siblings, "private": False}
        about.update(tags=[], downloads=0, likes=0, disabled=False, gated=False)
        for revision in ("main", commit):
            path = f"/api/{kind}/{repository}/revision/{revision}"
            self.files[path] = json.dumps(about).encode()
            for name, text in files.items():
                path = f"{start}/{repository}/resolve/{revision}/{name}"
                self.files[path] = text
                self.headers[path] = {"X-Repo-Commit": commit, "ETag": f'"{digests[name]}"'}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = handler.path.partition("?")[0]
        wanted = handler.headers.get("Range") or ""
        self.asked.append(f"{handler.command} {path} {wanted}".strip())
        body = self.files.get(path, b"")
        status = 200 if path in self.files else 404
        headers = {"Content-Type": "application/json", **self.headers.get(path, {})}
        if path in self.redirects:
            status, headers["Location"] = 302, self.redirects[path]
        if wanted.endswith("-") and status == 200:
            start = int(wanted[len("bytes=") : -1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[start:]
        try:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            if handler.command == "GET":
                self.hook(path)
                cuts = self.cuts.get(path)
                handler.wfile.write(body[: cuts.pop(0)] if cuts else body)
        except OSError:  # the client has left
            pass
