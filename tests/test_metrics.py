"""The names that dashboards rely on, and what the values mean."""

import re

import numpy as np
import pytest
from prometheus_client import generate_latest

from pipeline.events.batch import TopicPartition
from pipeline.events.checks import REASONS
from pipeline.outcome import SKIPS, STAGES
from pipeline.service.metrics import LATENCY_BUCKETS_S, Metric, Metrics

NAMES = {  # name as scraped: type, labels
    "events_consumed_total": ("counter", {"type"}),
    "events_rejected_total": ("counter", {"reason"}),
    "events_ignored_total": ("counter", {"type"}),
    "events_duplicate_total": ("counter", set()),
    "user_moves_total": ("counter", set()),
    "events_late_total": ("counter", set()),
    "rankings_due": ("gauge", set()),
    "dead_letters_total": ("counter", {"reason"}),
    "events_learned": ("gauge", set()),
    "consumer_lag_records": ("gauge", {"topic", "partition"}),
    "partitions_assigned": ("gauge", set()),
    "rebalances_total": ("counter", set()),
    "last_event_timestamp_seconds": ("gauge", set()),
    "last_commit_timestamp_seconds": ("gauge", set()),
    "live": ("gauge", set()),
    "end_to_end_latency_seconds": ("histogram", set()),
    "stage_seconds": ("histogram", {"stage"}),
    "train_steps_total": ("counter", set()),
    "train_steps_skipped_total": ("counter", {"reason"}),
    "loss": ("gauge", set()),
    "gradient_norm": ("gauge", set()),
    "table_rows": ("gauge", {"table"}),
    "rows_admitted_total": ("counter", {"table"}),
    "rows_evicted_total": ("counter", {"table"}),
    "quality_ratio": ("gauge", {"model", "measure", "segment"}),
    "catalogue_coverage_ratio": ("gauge", set()),
    "drift_detections_total": ("counter", {"detector", "signal"}),
    "last_drift_timestamp_seconds": ("gauge", set()),
    "drift_reaction": ("gauge", set()),
    "rankings_published_total": ("counter", set()),
    "publish_failures_total": ("counter", set()),
    "records_too_large_total": ("counter", {"topic", "outcome"}),
    "checkpoint_seconds": ("histogram", set()),
    "last_checkpoint_timestamp_seconds": ("gauge", set()),
    "model_version": ("gauge", set()),
    "build_info": ("gauge", {"version", "python", "torch"}),
}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"afresh_{name}", labels)


def fill(metrics: Metrics) -> dict[str, tuple[dict[str, str], float]]:
    """Give every metric a value of its own; return by sample name what a scrape must find."""
    expected = {}
    for number, metric in enumerate(Metric, 2):
        labels = {label: f"a-{label}" for label in metric.value.labels}
        kind = metric.value.kind.__name__.lower().removeprefix("batch")
        name = metric.name.lower() + {"counter": "_total", "gauge": "", "histogram": "_sum"}[kind]
        if metric is Metric.END_TO_END_LATENCY_SECONDS:
            metrics.observe_latency(np.array([number - 1.0, 1.0]))
        else:
            write = {"counter": metrics.add, "gauge": metrics.set, "histogram": metrics.observe}[kind]
            write(metric, number, *labels.values())
        expected[name] = (labels, number)
    return expected


def test_names_types_labels_and_values_are_those_that_were_promised() -> None:
    metrics = Metrics()
    for name, (labelled, number) in fill(metrics).items():
        assert value(metrics, name, **labelled) == number, name
    text = generate_latest(metrics.registry).decode()
    types = dict(re.findall(r"^# TYPE afresh_(\S+) (\S+)$", text, re.M))
    assert types == {name: kind for name, (kind, _) in NAMES.items()}
    labels: dict[str, set[str]] = {}
    for name, found in re.findall(r"^afresh_(\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ", text, re.M):
        labels.setdefault(name, set()).update(set(re.findall(r'(\w+)="', found)) - {"le"})
    assert labels == {name: names for name, (_, names) in NAMES.items()}


def test_fixed_series_are_there_from_the_start() -> None:
    metrics = Metrics()
    for name, (kind, labels) in NAMES.items():
        if not labels:
            assert value(metrics, f"{name}_count" if kind == "histogram" else name) == 0, name
    assert all(value(metrics, "stage_seconds_count", stage=stage) == 0 for stage in STAGES)
    for name in ("events_rejected_total", "dead_letters_total"):
        assert all(value(metrics, name, reason=reason) == 0 for reason in REASONS)
    assert all(value(metrics, "train_steps_skipped_total", reason=reason) == 0 for reason in SKIPS)


def test_liveness_is_asked_at_the_scrape() -> None:
    metrics, answers = Metrics(), iter([True, False])
    metrics.set_live(lambda: next(answers))
    assert [value(metrics, "live"), value(metrics, "live")] == [1, 0]


def test_event_types_beyond_thirty_two_share_one_series() -> None:
    metrics = Metrics()
    metrics.add_types(Metric.EVENTS_CONSUMED, {f"type-{n}": 1 for n in range(40)})
    metrics.add_types(Metric.EVENTS_CONSUMED, {"type-3": 1, "type-39": 1, "other": 1, "new": 1})
    assert value(metrics, "events_consumed_total", type="type-3") == 2
    assert value(metrics, "events_consumed_total", type="type-39") is None
    assert value(metrics, "events_consumed_total", type="other") == 8 + 3
    assert generate_latest(metrics.registry).count(b"\nafresh_events_consumed_total{") == 33


def test_partitions_that_went_away_lose_their_lag() -> None:
    metrics = Metrics()
    metrics.set_lag({TopicPartition("events", 0): 5, TopicPartition("events", 1): 6})
    metrics.set_lag({TopicPartition("events", 1): 4})
    assert value(metrics, "consumer_lag_records", topic="events", partition="0") is None
    assert value(metrics, "consumer_lag_records", topic="events", partition="1") == 4
    metrics.set_lag({})
    assert value(metrics, "consumer_lag_records", topic="events", partition="1") is None


def test_latency_counts_each_event_once_as_a_slow_count_would() -> None:
    seconds = np.concatenate(([0.0, 0.001, 600.0, 601.0], np.random.default_rng(0).lognormal(-2, 2, 1000)))
    metrics = Metrics()
    metrics.observe_latency(seconds[:500])
    metrics.observe_latency(seconds[500:])
    assert (LATENCY_BUCKETS_S[0], LATENCY_BUCKETS_S[-1]) == (0.001, 600.0)
    for bound in LATENCY_BUCKETS_S:
        expected = sum(1 for each in seconds.tolist() if each <= bound)
        assert value(metrics, "end_to_end_latency_seconds_bucket", le=repr(float(bound))) == expected, bound
    assert value(metrics, "end_to_end_latency_seconds_bucket", le="+Inf") == len(seconds)
    assert value(metrics, "end_to_end_latency_seconds_count") == len(seconds)
    assert value(metrics, "end_to_end_latency_seconds_sum") == pytest.approx(float(seconds.sum()))
    others = Metrics()
    others.observe_latency(np.array([np.nan, np.inf, -np.inf, -3.0, 0.5]))  # not finite: none; negative: 0
    others.observe_latency(np.array([]))
    assert value(others, "end_to_end_latency_seconds_count") == 2
    assert value(others, "end_to_end_latency_seconds_sum") == 0.5
    assert value(others, "end_to_end_latency_seconds_bucket", le="0.001") == 1
