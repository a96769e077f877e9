"""Runs the application on uvicorn, with limits on clients that are slow to ask or to listen."""

import asyncio
import logging
import socket
import sys
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from onereward_jax.annotation.security import App
from onereward_jax.errors import UserError

REQUEST_SECONDS = 15.0  # from a request's first byte, or the connection, to its last
LISTEN_SECONDS = 30.0  # for which a client may take nothing of what it is sent
MAX_HEADERS = 2**14  # bytes
MAX_CONNECTIONS = 1000

_LOG = logging.getLogger("onereward.annotate")


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 that cuts the connection of a client that doesn't finish its request, or doesn't take the answer."""

    _asking: asyncio.TimerHandle | None = None
    _listening: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(request=True, answer=True)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._await_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._listening is None:
            self._await_listener()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(answer=True)

    def _await_request(self) -> None:
        """Start the request's time when it begins, and stop it when it is complete."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop(request=True)
        elif self._asking is None and not self.transport.is_closing():
            self._asking = self.loop.call_later(REQUEST_SECONDS, self._cut, "does not finish its request")

    def _await_listener(self, before: float = float("inf")) -> None:
        """Cut the connection unless some of the answer leaves in time, again and again until it is nearly through.

        Args:
          before: bytes that waited when the time began; asyncio says nothing when some of them have left.
        """
        waiting = self.transport.get_write_buffer_size()
        if waiting < before:
            self._listening = self.loop.call_later(LISTEN_SECONDS, self._await_listener, waiting)
        else:
            self._cut("does not take the answer")

    def _stop(self, request: bool = False, answer: bool = False) -> None:
        if request and self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if answer and self._listening is not None:
            self._listening.cancel()
            self._listening = None

    def _cut(self, reason: str) -> None:
        _LOG.warning("refused %s: 408, it %s", self.client[0] if self.client else "?", reason)
        self.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """Open the port.

    Args:
      port: 0 for any that is free.

    Raises:
      UserError: it can't be opened.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        opened = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{host} is no address of this machine ({error}): give another by --host") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(256)
    except OSError as error:
        opened.close()
        why = error.strerror
        raise UserError(f"port {port} of {host} can't be opened ({why}): give another by --port or --host") from None
    return opened


def serve(app: App, opened: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM; requests that are being answered are finished."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("onereward.annotate", "uvicorn.error"):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).propagate = False
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=TimeoutProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=5,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADERS,
    )
    uvicorn.Server(config).run(sockets=[opened])
