"""The alert rules and the dashboard: what they ask can be answered, and an alert fires when it should."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.prometheus import (
    DEPLOY,
    PROMETHEUS,
    dashboard,
    metric_names,
    panel_queries,
    panels,
    rule_queries,
    rules,
    tool,
)
from prometheus_client import generate_latest
from test_metrics import NAMES, fill

from pipeline.service.metrics import Metrics

UNITS = {"none", "short", "s", "bytes", "percentunit", "eps", "cps"}


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """Run promtool; return what it says. Raise AssertionError unless it is content."""
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, input=text)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# Prometheus


def test_promtool_takes_the_configuration_with_its_rules() -> None:
    said = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert f"SUCCESS: {len(list(rules()))} rules found" in said


def test_alerts_fire_when_they_should_and_not_when_all_is_well() -> None:
    promtool("test", "rules", PROMETHEUS / "alerts.test.yml")


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = (PROMETHEUS / "alerts.test.yml").read_text("utf-8")
    fired = set(re.findall(r"""labels: '\{alertname="(\w+)".*value: 1""", cases))
    assert fired == {rule["alert"] for rule in rules()}


def test_an_alert_says_what_it_means_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        assert all(text.strip() for text in rule["annotations"].values()), rule["alert"]
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_names_of_metrics_are_as_prometheus_likes_them() -> None:
    metrics = Metrics()
    fill(metrics)
    promtool("check", "metrics", text=generate_latest(metrics.registry).decode())


# The dashboard


def test_every_query_is_one_that_prometheus_can_read(tmp_path: Path) -> None:
    exprs = [query.expr for query in (*panel_queries(), *rule_queries())]
    group = {"name": "queries", "rules": [{"record": f"q{n}", "expr": expr} for n, expr in enumerate(exprs)]}
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [group]}), "utf-8")
    said = promtool("check", "rules", tmp_path / "queries.yml")
    assert f"SUCCESS: {len(exprs)} rules found" in said


def test_queries_name_metrics_and_labels_that_there_are() -> None:
    known: dict[str, set[str]] = {}
    for name, (kind, labels) in NAMES.items():
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        known |= {name + suffix: labels for suffix in suffixes}
    for query in (*panel_queries(), *rule_queries()):
        assert metric_names(query.expr) <= set(known), query
        of_prometheus = {"job", "instance"}
        for name, chosen in re.findall(r"\bafresh_(\w+)\{([^}]*)\}", query.expr):
            assert set(re.findall(r"(\w+)=", chosen)) <= known[name] | of_prometheus, query
        named = {label for labels in known.values() for label in labels} | of_prometheus | {"le"}
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", query.expr):
            assert set(filter(None, re.split(r",\s*", labels))) <= named, query


def test_every_metric_of_the_service_is_on_the_dashboard() -> None:
    shown = {name for query in panel_queries() for name in metric_names(query.expr)}
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    assert names == NAMES.keys() - {"model_version"}  # the number of a batch


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_can_be_read_by_who_has_never_seen_it(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert 'job="$job", instance=~"$instance"' in target["expr"]
        # over a fixed time a rate has no data at a longer scrape interval
        assert set(re.findall(r"\brate\([^[]*\[([^]]*)]", target["expr"])) <= {"$__rate_interval"}


def test_the_source_of_data_is_a_variable_everywhere() -> None:
    board = dashboard()
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert all(variables[name]["datasource"] == chosen for name in ("job", "instance"))
    assert all(source["datasource"] == chosen for panel in panels() for source in (panel, *panel["targets"]))
    marks = [mark for mark in board["annotations"]["list"] if not mark.get("builtIn")]
    assert [mark["datasource"] for mark in marks] == [chosen]
    assert (board["uid"], board["id"], board["schemaVersion"]) == ("afresh", None, 42)


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    grafana = compose["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    provisioning = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards/afresh.yml").read_text())["providers"]
    inside = f"{provider['options']['path']}/afresh.json"
    assert mounts["./grafana/afresh.json"] == inside
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == inside
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    mounted = compose["services"]["prometheus"]["volumes"]
    for name in ("prometheus.yml", *scraped["rule_files"]):
        assert f"./prometheus/{name}:/etc/prometheus/{name}:ro" in mounted
