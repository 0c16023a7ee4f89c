"""The HTTP server for /metrics, /live and /ready.

Liveness comes from the loop's tick, not from the thread that answers, which still runs when the loop hangs.
"""

import json
import logging
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeline.errors import UsageError
from pipeline.service.ports import Clock, State

logger = logging.getLogger(__name__)

TEXT, JSON = "text/plain; charset=utf-8", "application/json"


class Deadline(NamedTuple):
    """When the loop's next tick is due, and the long step until then, if any."""

    since_s: float
    until_s: float
    reason: str


class Health:
    """The state and liveness of the loop; read from the server's threads.

    Each value is one attribute that is replaced as a whole, so no lock is needed.
    """

    def __init__(self, clock: Clock, stall_s: float = 60.0) -> None:
        """Start as `starting` and live; a loop without a tick for `stall_s` seconds is stalled."""
        self._clock = clock
        self._stall_s = stall_s
        self._state: State = "starting"
        self.tick()

    @property
    def state(self) -> State:
        """The state of the worker."""
        return self._state

    def become(self, state: State) -> None:
        """Change the state."""
        if state != self._state:
            logger.info("%s -> %s", self._state, state)
        self._state = state

    def tick(self) -> None:
        """Note a tick of the loop; this ends a `busy` step."""
        self.busy("", self._stall_s)

    def busy(self, reason: str, limit_s: float) -> None:
        """Announce a long step: the next tick may take `limit_s` seconds."""
        now_s = self._clock.monotonic_s()
        self._deadline = Deadline(now_s, now_s + limit_s, reason)

    def stalled(self) -> str:
        """Return "" before the deadline of the next tick, else a description of the stall."""
        since_s, until_s, reason = self._deadline
        now_s = self._clock.monotonic_s()
        if now_s <= until_s:
            return ""
        return f"no tick for {now_s - since_s:.1f} s, at most {until_s - since_s:g} s expected" + (
            f" while busy: {reason}" if reason else ""
        )


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port", IPv6 in brackets. Raise `ValueError` with what is expected.

    >>> split_address("[::1]:0")
    ('::1', 0)
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare) != (bare != host) or any(sign in bare for sign in "[]/ "):
        raise ValueError('host:port, such as 127.0.0.1:9464, or "" for no server')
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError("host:port with a port from 0 (any free one) to 65535")
    return bare, int(port)


class HealthServer(ThreadingHTTPServer):
    """Serves on `metrics.address` until closed. `address` has the actual port for port 0."""

    daemon_threads = True  # a slow scraper must not delay the end of the process

    def __init__(self, address: str, registry: CollectorRegistry, health: Health) -> None:
        """Start to listen. Raise `UsageError` when the address is not available."""
        host, port = split_address(address)
        self.registry, self.health = registry, health
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"metrics.address = {address!r}: {error.strerror or error}; expected a free local "
                'address: change it, use port 0 for any free port, or "" for no server'
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self.server_address[1]}"
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.1,), name="afresh-http", daemon=True
        )
        self._thread.start()
        logger.info("serving /metrics, /live and /ready on %s", self.address)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def server_bind(self) -> None:
        """Bind without `HTTPServer`'s question to DNS for the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log an error, unless the client closed the connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            logger.warning("no answer to %s", client_address, exc_info=True)


def serve(address: str, registry: CollectorRegistry, health: Health) -> HealthServer | None:
    """Start the server, or return None where `address` is empty."""
    return HealthServer(address, registry, health) if address else None


class _Handler(BaseHTTPRequestHandler):
    server: HealthServer
    timeout = 10  # seconds for a client to send its request
    server_version = "afresh"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, content_type, encode(self.server.registry))
        elif path == "/live":
            stalled = self.server.health.stalled()
            status = HTTPStatus.SERVICE_UNAVAILABLE if stalled else HTTPStatus.OK
            self._answer(status, TEXT, f"{stalled or 'live'}\n".encode())
        elif path == "/ready":
            state = self.server.health.state
            status = HTTPStatus.OK if state == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(status, JSON, json.dumps({"state": state}).encode() + b"\n")
        else:
            self._answer(HTTPStatus.NOT_FOUND, TEXT, b"expected /metrics, /live or /ready\n")

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)
