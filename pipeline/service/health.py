"""One small HTTP server for /metrics, /live and /ready.

Liveness comes from the loop's own tick, never from the thread that answers: that one answers on when the loop
hangs.
"""

import json
import logging
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple, Protocol, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeline.errors import UsageError

logger = logging.getLogger(__name__)

State = Literal["starting", "resuming", "rebalancing", "ready", "stopping"]
TEXT, JSON = "text/plain; charset=utf-8", "application/json"


class Monotonic(Protocol):
    """The part of the loop's clock that health needs."""

    def monotonic_s(self) -> float: ...


class Promise(NamedTuple):
    """Until when the loop has promised its next tick, and what it is doing until then."""

    since_s: float
    until_s: float
    reason: str


class Health:
    """What the loop says of itself; read from the server's threads.

    Each answer is one attribute that is replaced whole, so that no lock is needed.
    """

    def __init__(self, clock: Monotonic, stall_s: float = 60.0) -> None:
        """Start as `starting` and live; without a tick for `stall_s` seconds the loop counts as stuck."""
        self._clock = clock
        self._stall_s = stall_s
        self._state: State = "starting"
        self.tick()

    @property
    def state(self) -> State:
        """What the worker is doing."""
        return self._state

    def become(self, state: State) -> None:
        """Change the state; only `ready` is ready."""
        if state != self._state:
            logger.info("%s -> %s", self._state, state)
        self._state = state

    def tick(self) -> None:
        """Say that the loop goes round; ends what `busy` announced."""
        self.busy("", self._stall_s)

    def busy(self, reason: str, limit_s: float) -> None:
        """Announce a long step: the next tick may take up to `limit_s` seconds from now."""
        now_s = self._clock.monotonic_s()
        self._promise = Promise(now_s, now_s + limit_s, reason)

    def stalled(self) -> str:
        """Return "" while the loop keeps its promise, else a sentence on what is late."""
        since_s, until_s, reason = self._promise
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


class HealthServer:
    """Answers on `metrics.address` until closed. `address` is the real one: port 0 is resolved."""

    def __init__(self, address: str, registry: CollectorRegistry, health: Health) -> None:
        """Listen at once. Raise `UsageError` where that address can't be had."""
        host, port = split_address(address)
        try:
            self._server = _Server(host, port, registry, health)
        except OSError as error:
            raise UsageError(
                f"metrics.address = {address!r}: {error.strerror or error}; expected an address that is free "
                'here: change it, use port 0 for any free port, or "" for no server'
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="afresh-http", daemon=True
        )
        self._thread.start()
        logger.info("serving /metrics, /live and /ready on %s", self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(address: str, registry: CollectorRegistry, health: Health) -> HealthServer | None:
    """Start the server, or return None where `address` is empty."""
    return HealthServer(address, registry, health) if address else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a slow scraper must not hold up the end of the process

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        self.registry, self.health = registry, health
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(
            self
        )  # HTTPServer's own asks DNS for the host's name, which can take seconds

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(
            sys.exception(), ConnectionError | TimeoutError
        ):  # a client that hung up is no news
            logger.warning("no answer to %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
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
