"""Send every query of the dashboard and the alert rules to a real Prometheus that scrapes a service at work.

    python tests/benchmarks/monitoring.py [--events 60000] [--rate 1500]

Starts the embedded broker, `afresh run` with a checkpoint, simulated users with a change of preferences, some
bad records, and Prometheus with the rules of deploy/prometheus, scraping every second. After the last event,
when a drift alarm and a checkpoint have been seen, each query of the dashboard and of the rules (without
thresholds) must have data, and no alert may fire but those on what was done here. Prints a table and one last
JSON line; ends with 1 otherwise. Needs `prometheus` on PATH; everything
listens on loopback.
"""

import json
import math
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import yaml
from bench import free_port, parser_of, print_result
from harness.prometheus import PROMETHEUS, Query, panel_queries, rule_queries, rules, tool
from harness.service import Sent, Site, until

from producers.embedded_broker import EmbeddedBroker

WAIT_S = 120.0
DONE_HERE = {"AfreshDeadLetters", "AfreshDrift"}  # bad records and a change are part of the stream


def prometheus_config(folder: Path, target: str) -> Path:
    """Write deploy's configuration with another target and a short interval; return its path."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


class Prometheus:
    """A Prometheus that scrapes `target`, and its HTTP API. As a context manager it is stopped at the end."""

    def __init__(self, folder: Path, target: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        command = [tool("prometheus"), f"--config.file={prometheus_config(folder, target)}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={self.address}"]
        with (folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Prometheus":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer. Raise OSError when there is none."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expr: str) -> list[float]:
        """Return the value of every series that answers, now, to an expression; not a number: no answer."""
        values = [float(series["value"][1]) for series in self.get("query", query=expr)["result"]]
        return [value for value in values if not math.isnan(value)]

    def wait(self, expr: str, least: float = 0.0) -> None:
        """Wait until an expression has a value above `least`. Raise AssertionError at the deadline."""

        def met() -> bool:
            with suppress(OSError):
                return any(value > least for value in self.values(expr))
            return False

        until(met, f"{expr} > {least:g}", WAIT_S)


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
    parser = parser_of(__doc__)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--rate", type=float, default=1_500.0)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="afresh-monitoring-")))
        broker = stack.enter_context(EmbeddedBroker()).bootstrap_servers
        target = f"127.0.0.1:{free_port()}"
        settings = {"checkpoint.interval_s": 10, "metrics.address": target}
        site = stack.enter_context(Site(broker, "monitoring", folder, settings=settings))
        site.create_topics()
        site.run()
        prometheus = stack.enter_context(Prometheus(folder, target))
        prometheus.wait('afresh_partitions_assigned{job="afresh"}')
        users = ["--events", str(options.events), "--rate", str(options.rate)]
        site.start("simulate", *users, "--change", f"sudden@{options.events // 2}")
        prometheus.wait("sum(afresh_events_learned)", options.events / 4)
        site.send(Sent(b"u", value) for value in (b"{no event", b'{"user_id": "u"}') for _ in range(100))
        prometheus.wait("sum(afresh_events_learned)", options.events - 1)
        prometheus.wait("afresh_last_drift_timestamp_seconds")
        prometheus.wait("sum(increase(afresh_checkpoint_seconds_count[10m]))")
        result = check(prometheus)
        print_result(**result)
    return 1 if result["without_data"] or result["not_evaluated"] or result["alarmed_for_nothing"] else 0


if __name__ == "__main__":
    sys.exit(main())
