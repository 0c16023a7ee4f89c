"""Ask a real Prometheus everything that the dashboard and the alert rules ask, about a service at work.

    python tests/benchmarks/monitoring.py [--events 60000] [--rate 1500] [--hold]

Starts the embedded broker, `afresh run` with a checkpoint, simulated users with a change of preferences, some
records that are no events, and Prometheus with the rules of deploy/prometheus, scraping every second. After
the last event, when a drift alarm and a checkpoint have been seen, each query of the dashboard and of the
rules (without thresholds) must have data, and no alert may fire but those on what was done here. Prints a
table and one last JSON line; ends with 1 otherwise. --hold leaves everything up until Ctrl-C, for a look at
Prometheus. Needs
`prometheus` on PATH; everything listens on loopback.
"""

import argparse
import json
import math
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import yaml
from harness.prometheus import PROMETHEUS, Query, panel_queries, rule_queries, rules, tool
from kafka import KafkaProducer

from pipeline.settings import KafkaConfig, TopicsConfig
from producers.embedded_broker import EmbeddedBroker
from producers.kafka.client import producer_options
from producers.kafka.topics import create_topics

WAIT_S = 120.0
SCRAPE_S = 1
DONE_HERE = {"AfreshDeadLetters", "AfreshDrift"}  # broken records and a change of taste are part of the show


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for a while; it is asked to end, and killed if it doesn't."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def prometheus_config(folder: Path, target: str) -> Path:
    """Write deploy's configuration with another target and a short interval; return its path."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


class Prometheus:
    """The HTTP API of a Prometheus."""

    def __init__(self, address: str) -> None:
        self._base = f"http://{address}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer. Raise OSError when there is none."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._base}/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expr: str) -> list[float]:
        """Return the value of every series that answers, now, to an expression; not a number: no answer."""
        values = [float(series["value"][1]) for series in self.get("query", query=expr)["result"]]
        return [value for value in values if not math.isnan(value)]

    def wait(self, expr: str, least: float = 0.0) -> None:
        """Wait until an expression has a value above `least`. Raise RuntimeError in the end."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                if any(value > least for value in self.values(expr)):
                    return
            time.sleep(0.5)
        raise RuntimeError(f"not within {WAIT_S:g} s: {expr} > {least:g}")


def spoil(kafka: KafkaConfig, topic: str, records: int) -> None:
    """Send records that are no events."""
    producer = KafkaProducer(**producer_options(kafka))
    for number in range(records):
        producer.send(topic, key=b"u", value=b"{no event" if number % 2 else b'{"user_id": "u"}')
    producer.close()


def ask(prometheus: Prometheus, queries: list[Query]) -> list[tuple[Query, list[float]]]:
    """Return each query with the values that it has now; none where Prometheus can't read it."""
    answers = []
    for query in queries:
        try:
            answers.append((query, prometheus.values(query.expr)))
        except OSError as error:
            print(f"{query.name}: {error}", file=sys.stderr)
            answers.append((query, []))
    return answers


def show(title: str, answers: list[tuple[Query, list[float]]]) -> None:
    """Print a table."""
    print(f"\n{title:<62} series  values")
    for query, values in answers:
        sample = ", ".join(f"{value:.4g}" for value in values[:4])
        print(f"  {query.name[:60]:<60} {len(values):>6}  {sample or 'NO DATA'}")


def check(prometheus: Prometheus) -> dict[str, Any]:
    """Ask everything; print and return what came of it."""
    asked, watched = ask(prometheus, panel_queries()), ask(prometheus, rule_queries())
    show("the dashboard's queries", asked)
    show("what the alert rules look at", watched)
    groups = prometheus.get("rules")["groups"]
    states = {rule["name"]: rule for group in groups for rule in group["rules"]}
    unhealthy = [name for name, rule in states.items() if rule["health"] != "ok"]
    firing = [name for name, rule in states.items() if rule["state"] != "inactive"]
    print(f"\nrules loaded {len(states)}, not healthy {unhealthy}, pending or firing {firing}")
    return {
        "panel_queries": len(asked),
        "rules": len(watched),
        "without_data": [query.name for query, values in asked + watched if not values],
        "not_evaluated": unhealthy + sorted({rule["alert"] for rule in rules()} - states.keys()),
        "alarmed_for_nothing": sorted(set(firing) - DONE_HERE),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--rate", type=float, default=1_500.0)
    parser.add_argument("--hold", action="store_true", help="stay up until Ctrl-C")
    options = parser.parse_args()
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="afresh-monitoring-")))
        kafka = KafkaConfig(bootstrap_servers=stack.enter_context(EmbeddedBroker()).bootstrap_servers)
        create_topics(kafka, TopicsConfig(), 4)
        target, address = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        sets = {
            "kafka.bootstrap_servers": kafka.bootstrap_servers,
            "checkpoint.path": str(folder / "state"),
            "checkpoint.interval_s": "10",
            "metrics.address": target,
        }
        service = [sys.executable, "-m", "pipeline.app.cli", "run"]
        service += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        stack.enter_context(running(service, folder / "afresh.log"))
        server = [tool("prometheus"), f"--config.file={prometheus_config(folder, target)}"]
        server += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
        stack.enter_context(running(server, folder / "prometheus.log"))
        prometheus = Prometheus(address)
        prometheus.wait('afresh_partitions_assigned{job="afresh"}')
        users = [sys.executable, "-m", "pipeline.app.cli", "simulate", "--events", str(options.events)]
        users += ["--rate", str(options.rate), "--change", f"sudden@{options.events // 2}"]
        users += ["--set", f"kafka.bootstrap_servers={kafka.bootstrap_servers}"]
        stack.enter_context(running(users, folder / "users.log"))
        prometheus.wait("sum(afresh_events_learned)", options.events / 4)
        spoil(kafka, "events", 200)
        prometheus.wait("sum(afresh_events_learned)", options.events - 1)
        for expr in (
            "afresh_last_drift_timestamp_seconds",
            "sum(increase(afresh_checkpoint_seconds_count[10m]))",
        ):
            prometheus.wait(expr)
        result = check(prometheus) | {"seconds": round(time.monotonic() - began, 1)}
        print(json.dumps(result))
        if options.hold:
            print(f"Prometheus: http://{address}  metrics: http://{target}/metrics", file=sys.stderr)
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(1)
    return 1 if result["without_data"] or result["not_evaluated"] or result["alarmed_for_nothing"] else 0


if __name__ == "__main__":
    sys.exit(main())
