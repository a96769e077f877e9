"""Who may speak to the server: names and tokens, the Host and Origin of a request, its size and its time.

A page on the network must not reach an annotator's server through the annotator's browser: not by a form or a script of
its own (Origin, Sec-Fetch-Site, JSON only), nor by giving its own name the server's address (Host).
"""

import asyncio
import dataclasses
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import socket
import unicodedata
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from onereward_jax.annotation.store import Person, Store
from onereward_jax.errors import UserError, printable, shown

MAX_NAME = 64  # characters of an annotator's name
MAX_BODY = 2**16  # bytes
BODY_SECONDS = 10.0  # in which a request's body must have come
SESSION_SECONDS = 30 * 86_400.0
PAGES = ("/", "/organiser")  # a link on another site may lead here, and nowhere else

_LOG = logging.getLogger("onereward.annotate")
_PROXY = "if that is a proxy of yours, start onereward annotate with --public and its address"
_TUNNEL = f"{_PROXY}; through an SSH tunnel, open localhost and the same port"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


# ------------------------------------------------------------------------------------------------------ names, tokens


def clean_name(value: Any) -> str:
    """Return an annotator's name in one form, without spaces around it.

    Raises:
      UserError: it is no name.
    """
    name = unicodedata.normalize("NFC", value).strip() if isinstance(value, str) and len(value) <= 1000 else ""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UserError(f"a name has 1 to {MAX_NAME} letters, on one line: give another")
    return name


def new_token() -> str:
    """Make a token, of 192 bits."""
    return secrets.token_urlsafe(24)


def digest(token: str) -> bytes:
    """Digest a token or a session's secret: only this is stored. It is long and random, so needs no salt."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def person_of_token(store: Store, token: Any) -> Person | None:
    """Return whose token it is; the time that takes says nothing of the tokens there are."""
    given, found = digest(token if isinstance(token, str) else ""), None
    for person, known in store.tokens():
        if hmac.compare_digest(given, known):
            found = person
    return found


# --------------------------------------------------------------------------------------------------------------- site


@dataclasses.dataclass(frozen=True)
class Site:
    """Where the server is to be found.

    Attributes:
      host, port: where it listens.
      public: the address that a proxy gives it, such as "https://annotate.example.org", or "".
    """

    host: str
    port: int
    public: str = ""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it: then nobody needs a token."""
        address = _address(self.host)
        return not self.public and (self.host == "localhost" or (address is not None and address.is_loopback))

    @property
    def is_secure(self) -> bool:
        return self.public.startswith("https://")

    def knows(self, host: str) -> bool:
        """Whether a request's Host is one of the server's own.

        By name it is `localhost`, or this machine's or the proxy's name. An address in digits is no danger: a page
        that turns its own name to this address (DNS rebinding) sends its name.
        """
        if self.public and host.lower() == urlsplit(self.public).netloc.lower():
            return True
        try:
            parts = urlsplit(f"//{host}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path or parts.query or parts.fragment:
            return False
        address = _address(name)
        if self.is_loopback:
            return name == "localhost" or (address is not None and address.is_loopback)
        machine = socket.gethostname().lower()
        return address is not None or name in ("localhost", machine, machine.partition(".")[0])

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Whether a request's Origin is the page that the server itself gave."""
        if self.public and host.lower() == urlsplit(self.public).netloc.lower():
            return origin.lower() == self.public.lower().rstrip("/")
        return origin.lower() == f"http://{host.lower()}"


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None


# -------------------------------------------------------------------------------------------------------------- guard


class Refused(Exception):
    """A request that is not answered; the message says why, to the client and in the log."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


def log_refusal(scope: Scope, status: int, reason: str) -> None:
    """Log a refused request on one line. What looks like a token, in a path that is none of ours, is left out."""
    client = (scope.get("client") or ("?",))[0]
    path = re.sub(r"[\w~-]{16,}", "…", str(scope.get("path", "")))
    line = f"refused {client} {scope.get('method', '?')} {path[:100]}: {status}, {reason}"
    _LOG.warning("%s", printable(line, 400))


class Guard:
    """ASGI middleware: refuses what is not for us, reads a request's body within limits, sets the headers."""

    def __init__(self, app: App, site: Site, body_seconds: float = BODY_SECONDS):
        self._app, self._site, self._body_seconds = app, site, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket: there are none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message.get("headers", ())}
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                if b"cache-control" not in known:
                    extra.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive) if scope["method"] == "POST" else b""
        except Refused as refused:
            log_refusal(scope, refused.status, refused.reason)
            await _send_error(send_with_headers, refused)
            return
        await self._app(scope, _received(body, receive), send_with_headers)

    def _check(self, scope: Scope) -> None:
        """Check whom a request is for, and whose page sent it.

        Raises:
          Refused.
        """
        headers = _headers(scope)
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._site.knows(hosts[0]):
            name = shown(hosts[0] if hosts else "")
            raise Refused(421, f"Host {name} is not this server's name: {_TUNNEL}")
        if self._site.is_loopback and any(name == "forwarded" or name.startswith("x-forwarded-") for name in headers):
            raise Refused(403, f"the request came through a proxy, so from who knows where: {_TUNNEL}")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refused(405, "only GET and POST are answered")
        origins = headers.get("origin", [])
        if any(not self._site.is_own_origin(origin, hosts[0]) for origin in origins):
            raise Refused(403, f"the request comes from another site, {shown(origins[0])}: {_PROXY}")
        [came] = headers.get("sec-fetch-site", ["none"])[:1]
        is_link = scope["method"] == "GET" and scope["path"] in PAGES
        if came not in ("none", "same-origin") and not is_link:
            raise Refused(403, "the request comes from another site")
        if scope["method"] == "POST":
            kind = (headers.get("content-type") or [""])[0].partition(";")[0].strip().lower()
            if kind != "application/json":
                raise Refused(415, "the body must be application/json")
            length = (headers.get("content-length") or ["0"])[0]
            if not length.isdigit() or len(length) > 12 or int(length) > MAX_BODY:
                raise Refused(413, f"the body is longer than {MAX_BODY >> 10} KiB")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read a body.

        Raises:
          Refused: it is too long, or does not come.
        """
        body = b""
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the client left before its request was complete")
                    body += message.get("body", b"")
                    if len(body) > MAX_BODY:
                        raise Refused(413, f"the body is longer than {MAX_BODY >> 10} KiB")
                    if not message.get("more_body", False):
                        return body
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self._body_seconds:g} seconds") from None


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _received(body: bytes, receive: Receive) -> Receive:
    """Give the body that was read, and then what comes."""
    given = False

    async def read() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


async def _send_error(send: Send, refused: Refused) -> None:
    body = json.dumps({"error": refused.reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
