"""The HTTP server: live as long as the loop ticks, ready in one state only."""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from unittest.mock import Mock

import pytest
from harness.clock import ManualClock
from prometheus_client import CollectorRegistry, Counter

from pipeline.errors import UsageError
from pipeline.service.health import Health, HealthServer, State, serve, split_address


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0)


@pytest.fixture
def health(clock: ManualClock) -> Health:
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


def test_live_until_no_tick_comes_in_time(server: HealthServer, clock: ManualClock, health: Health) -> None:
    assert get(server, "/live")[0] == 200
    clock.advance(9.0)
    assert get(server, "/live")[0] == 200
    clock.advance(2.5)
    status, _, body = get(server, "/live")
    assert (status, body) == (503, "no tick for 11.5 s, at most 10 s expected\n")
    health.tick()
    assert get(server, "/live")[::2] == (200, "live\n")


def test_an_announced_step_has_a_deadline_until_the_next_tick(clock: ManualClock, health: Health) -> None:
    health.busy("checkpoint", 300.0)
    clock.advance(299.0)
    assert health.stalled() == ""
    clock.advance(2.0)
    assert health.stalled() == "no tick for 301.0 s, at most 300 s expected while busy: checkpoint"
    health.tick()
    clock.advance(11.0)
    assert health.stalled() == "no tick for 11.0 s, at most 10 s expected"


@pytest.mark.parametrize("state", [None, "starting", "resuming", "rebalancing", "ready", "stopping"])
def test_ready_in_one_state_and_named(server: HealthServer, health: Health, state: State | None) -> None:
    if state is not None:
        health.become(state)
    status, content_type, body = get(server, "/ready")
    assert (status, content_type) == (200 if state == "ready" else 503, "application/json")
    assert json.loads(body) == {"state": state or "starting"}


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("*/*", "text/plain", ""),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", "# EOF\n"),
    ],
)
def test_metrics_come_as_requested(server: HealthServer, accept: str, content_type: str, end: str) -> None:
    status, found, body = get(server, "/metrics", Accept=accept)
    assert (status, found.split(";")[0]) == (200, content_type)
    assert "things_total 3.0" in body
    assert body.endswith(end)


def test_head_has_no_body_and_other_paths_are_not_found(server: HealthServer) -> None:
    assert get(server, "/live?x=1", "HEAD")[::2] == (200, "")
    assert get(server, "/")[::2] == (404, "expected /metrics, /live or /ready\n")
    assert get(server, "/live", "POST")[0] == 501


def test_a_metric_that_fails_is_logged_and_the_next_request_is_answered(
    server: HealthServer, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Mock(**{"describe.return_value": [], "collect.side_effect": RuntimeError("broken metric")})
    registry.register(broken)
    with pytest.raises(http.client.RemoteDisconnected):
        get(server, "/metrics")
    assert get(server, "/live")[0] == 200
    assert "broken metric" in caplog.text


def test_an_unavailable_address_is_an_error_with_advice(registry: CollectorRegistry, health: Health) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for wrong, why in ((address, "Address already in use"), ("192.0.2.1:0", "Cannot assign")):
            with pytest.raises(UsageError, match=rf"^metrics\.address = '{wrong}': {why}.*use port 0"):
                HealthServer(wrong, registry, health)


def test_closing_frees_the_port_and_no_address_no_server(registry: CollectorRegistry, health: Health) -> None:
    assert serve("", registry, health) is None
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
