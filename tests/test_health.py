"""The HTTP server: alive as long as the loop ticks, ready in one state only."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.registry import Collector

from pipeline.errors import UsageError
from pipeline.service.health import Health, HealthServer, State, serve, split_address


class HandClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def monotonic_s(self) -> float:
        return self.s


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def health(clock: HandClock) -> Health:
    return Health(clock, stall_s=10.0)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    return registry


@pytest.fixture
def server(registry: CollectorRegistry, health: Health) -> Iterator[HealthServer]:
    with HealthServer("127.0.0.1:0", registry, health) as running:
        yield running


def get(server: HealthServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    with closing(http.client.HTTPConnection(server.address, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()


def test_live_while_the_loop_ticks_and_not_when_it_stands_still(
    server: HealthServer, clock: HandClock, health: Health
) -> None:
    clock.s += 9.0
    assert get(server, "/live")[0] == 200
    clock.s += 2.5
    status, _, body = get(server, "/live")
    assert (status, body) == (503, "no tick for 11.5 s, at most 10 s expected\n")
    health.tick()
    assert get(server, "/live")[::2] == (200, "live\n")


def test_a_long_step_that_was_announced_is_no_stall_until_its_own_limit(
    clock: HandClock, health: Health
) -> None:
    health.busy("checkpoint", 300.0)
    clock.s += 299.0
    assert health.stalled() == ""
    clock.s += 2.0
    assert health.stalled() == "no tick for 301.0 s, at most 300 s expected while busy: checkpoint"


def test_a_tick_ends_what_was_announced(clock: HandClock, health: Health) -> None:
    health.busy("checkpoint", 300.0)
    health.tick()
    clock.s += 11.0
    assert health.stalled() == "no tick for 11.0 s, at most 10 s expected"


@pytest.mark.parametrize(
    ("state", "status"),
    [("starting", 503), ("resuming", 503), ("rebalancing", 503), ("ready", 200), ("stopping", 503)],
)
def test_ready_in_one_state_only_and_the_body_names_it(
    server: HealthServer, health: Health, state: State, status: int
) -> None:
    health.become(state)
    got, content_type, body = get(server, "/ready")
    assert (got, content_type, json.loads(body)) == (status, "application/json", {"state": state})


def test_a_new_worker_is_live_and_not_ready(server: HealthServer) -> None:
    assert get(server, "/live")[0] == 200
    assert json.loads(get(server, "/ready")[2]) == {"state": "starting"}


def test_metrics_come_in_the_format_that_was_asked_for(server: HealthServer) -> None:
    status, content_type, body = get(server, "/metrics")
    assert (status, content_type.split(";")[0]) == (200, "text/plain")
    assert "things_total 3.0" in body
    status, content_type, body = get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (status, content_type.split(";")[0]) == (200, "application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_head_has_no_body_and_other_paths_are_not_found(server: HealthServer) -> None:
    assert get(server, "/live?x=1", "HEAD")[::2] == (200, "")
    assert get(server, "/")[::2] == (404, "expected /metrics, /live or /ready\n")
    assert get(server, "/live", "POST")[0] == 501


def test_a_metric_that_fails_is_logged_and_the_next_request_is_answered(
    server: HealthServer, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Collector):
        def describe(self) -> list[object]:
            return []

        def collect(self) -> list[object]:
            raise RuntimeError("broken metric")

    registry.register(Broken())
    with pytest.raises(http.client.RemoteDisconnected):
        get(server, "/metrics")
    assert get(server, "/live")[0] == 200
    assert "broken metric" in caplog.text


def test_a_port_in_use_is_one_line_that_says_what_to_do(registry: CollectorRegistry, health: Health) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        expected = rf"^metrics\.address = '{address}': Address already in use; expected .* use port 0"
        with pytest.raises(UsageError, match=expected):
            HealthServer(address, registry, health)


def test_a_host_that_is_not_here_is_one_line(registry: CollectorRegistry, health: Health) -> None:
    with pytest.raises(UsageError, match=r"^metrics\.address = '192\.0\.2\.1:0': Cannot assign"):
        HealthServer("192.0.2.1:0", registry, health)


def test_an_empty_address_means_no_server(registry: CollectorRegistry, health: Health) -> None:
    assert serve("", registry, health) is None


def test_closing_frees_the_port(registry: CollectorRegistry, health: Health) -> None:
    first = serve("127.0.0.1:0", registry, health)
    assert first is not None
    first.close()
    with HealthServer(first.address, registry, health) as second:
        assert get(second, "/live")[0] == 200


def test_addresses_are_host_and_port() -> None:
    assert split_address("0.0.0.0:9464") == ("0.0.0.0", 9464)
    assert split_address("[::]:80") == ("::", 80)
    for wrong in ("9464", ":9464", "a:", "a:b", "a:-1", "a:70000", "::1:80", "[a]:1", "http://a:1", "a:١"):
        with pytest.raises(ValueError, match="host:port"):
            split_address(wrong)
