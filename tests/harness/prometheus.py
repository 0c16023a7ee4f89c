"""The queries of deploy/prometheus and deploy/grafana, and the programs that check and run them."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD = DEPLOY / "grafana" / "afresh.json"
RATE_INTERVAL = "1m"  # what Grafana makes of $__rate_interval at a scrape interval of 15 s
PACKAGE = "install Debian's package `prometheus` (apt-get install --no-install-recommends prometheus)"


class Query(NamedTuple):
    """A query with the name of its panel or rule."""

    name: str
    expr: str


def tool(name: str) -> str:
    """Return the path of `promtool` or `prometheus`. Without it skip the test; in CI fail."""
    path = shutil.which(name)
    if path is not None:
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{name} is not on PATH, and CI must check what Prometheus is given: {PACKAGE}")
    pytest.skip(f"{name} is not on PATH: {PACKAGE}")


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return content


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels that show something: all but the rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_queries(job: str = "afresh", instance: str = ".*", interval: str = RATE_INTERVAL) -> list[Query]:
    """Return every query of the dashboard and its drift marks, with variables put in as Grafana does."""
    values = {"job": job, "instance": instance, "__rate_interval": interval}
    asked = [
        Query(f"{panel['title']} {target['refId']}", target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]
    marks = [mark for mark in dashboard()["annotations"]["list"] if not mark.get("builtIn")]
    asked += [Query(mark["name"], mark["target"]["expr"]) for mark in marks]
    return [
        Query(name, re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda found: values[found[1] or found[2]], expr))
        for name, expr in asked
    ]


def rules() -> Iterator[dict[str, Any]]:
    content = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text("utf-8"))
    for group in content["groups"]:
        yield from group["rules"]


def rule_queries(job: str = "afresh") -> list[Query]:
    """Return each rule's expression without thresholds, which has data while no alert fires."""
    return [
        Query(rule["alert"], without_thresholds(rule["expr"].replace('"afresh"', f'"{job}"')))
        for rule in rules()
    ]


def without_thresholds(expr: str) -> str:
    """Remove comparisons with numbers from an expression, and `absent`, which has data only in an alert.

    >>> without_thresholds('rate(a[5m]) > 0.01 and on (job) b == 0')
    'rate(a[5m]) and on (job) b'
    >>> without_thresholds('absent(up{job="afresh"})')
    'up{job="afresh"}'
    """
    expr = re.sub(r"^absent\((.*)\)$", r"\1", expr.strip())
    return re.sub(r"\s*(?:==|!=|<=|>=|<|>)\s*-?[\d.]+(?![\w.])", "", expr)


def metric_names(expr: str) -> set[str]:
    return set(re.findall(r"\bafresh_(\w+)", expr))
