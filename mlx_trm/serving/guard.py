"""What stands before every route: who may ask, and what a browser may do with the answer.

A page of another site can make a browser send requests to this machine. It cannot be this page's
guest: a name that leads here only by DNS is refused (DNS rebinding), so is whatever a browser says
comes from another origin, and no answer allows another origin to read it (there is no CORS).
"""

import ipaddress
import json
from typing import Collection, Dict, List, Optional, Tuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def host_name(host: str) -> str:
    """Give the name in a Host header, without its port, in small letters."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def is_address(name: str) -> bool:
    """Whether a name is an IP address, which needs no DNS."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """An ASGI application around another one that lets through what may pass."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        """Guard an application.

        Args:
            app: is asked what passes.
            names: that a Host header may have, besides addresses and ``localhost``.
        """
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no web sockets here

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                have = {name.lower() for name, _ in given}
                own = [(n.encode(), v.encode()) for n, v in HEADERS.items()]
                message = {**message, "headers": given + [e for e in own if e[0] not in have]}
            await send(message)

        problem = self._problem(scope["headers"])
        if problem is None:
            await self._app(scope, receive, send_guarded)
        else:
            await refuse(403, problem, send_guarded)

    def _problem(self, headers: List[Tuple[bytes, bytes]]) -> Optional[str]:
        """Say why a request may not pass; None: it may."""
        found: Dict[str, str] = {}
        for key, value in headers:
            name = key.decode("latin-1").lower()
            if name == "host" and name in found:
                return "two Host headers"
            found[name] = value.decode("latin-1")
        host = found.get("host", "")
        name = host_name(host)
        if name not in self._names and not is_address(name):
            return (
                "this name does not lead here; use the address that the server has printed, or "
                "start it with --allow-host NAME"
            )
        origin = found.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.strip().lower():
            return "requests of other sites are not answered"
        navigates = found.get("sec-fetch-mode") == "navigate"
        if found.get("sec-fetch-site") in ("cross-site", "same-site") and not navigates:
            return "requests of other sites are not answered"
        return None


async def refuse(status: int, problem: str, send: Send) -> None:
    """Answer with an error of one line, as JSON."""
    body = json.dumps({"error": problem}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
