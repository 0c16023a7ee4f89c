"""The names that dashboards rely on, and what the figures mean."""

import re

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition

from pipeline.events.batch import TopicPartition
from pipeline.events.checks import REASONS
from pipeline.outcome import SKIPS, STAGES
from pipeline.service.metrics import LATENCY_BUCKETS_S, BatchHistogram, Metrics

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


def say_everything(metrics: Metrics) -> None:
    metrics.consumed({"click": 2})
    metrics.rejected("not_json", 2)
    metrics.ignored({"look": 3})
    metrics.duplicates(3)
    metrics.user_moves(4)
    metrics.late(5)
    metrics.due(6)
    metrics.dead_letters("not_json", 2)
    metrics.learned(1000)
    metrics.lag({TopicPartition("events", 0): 7})
    metrics.assigned(4)
    metrics.rebalanced()
    metrics.newest_event(1_500)
    metrics.committed(8.5)
    metrics.latency(np.array([0.1, 0.2]))
    metrics.stage("train", 0.25)
    metrics.trained(2.5, 0.5)
    metrics.skipped("non_finite")
    metrics.rows("items", 10, 3, 1)
    metrics.quality("attention", "hr", "cold", 0.25)
    metrics.coverage(0.75)
    metrics.drift("adwin", "loss", 9.5)
    metrics.reacting(True)
    metrics.published(5)
    metrics.publish_failed(2)
    metrics.too_large("events.dead-letter", "truncated", 3)
    metrics.checkpoint(0.5, 10.5)
    metrics.version(17)
    metrics.build_info("0.1.0", "3.11", "2.13")


def test_names_types_and_labels_are_those_that_were_promised() -> None:
    metrics = Metrics()
    say_everything(metrics)
    text = generate_latest(metrics.registry).decode()
    types = dict(re.findall(r"^# TYPE afresh_(\S+) (\S+)$", text, re.M))
    assert types == {name: kind for name, (kind, _) in NAMES.items()}
    labels: dict[str, set[str]] = {}
    for name, found in re.findall(r"^afresh_(\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ", text, re.M):
        labels.setdefault(name, set()).update(set(re.findall(r'(\w+)="', found)) - {"le"})
    assert labels == {name: names for name, (_, names) in NAMES.items()}


def test_what_was_said_is_what_is_scraped() -> None:
    metrics = Metrics()
    say_everything(metrics)
    assert value(metrics, "events_consumed_total", type="click") == 2
    assert value(metrics, "events_rejected_total", reason="not_json") == 2
    assert value(metrics, "events_duplicate_total") == 3
    assert value(metrics, "dead_letters_total", reason="not_json") == 2
    assert value(metrics, "events_learned") == 1000
    assert value(metrics, "consumer_lag_records", topic="events", partition="0") == 7
    assert value(metrics, "partitions_assigned") == 4
    assert value(metrics, "rebalances_total") == 1
    assert value(metrics, "last_commit_timestamp_seconds") == 8.5
    assert value(metrics, "stage_seconds_sum", stage="train") == 0.25
    assert value(metrics, "train_steps_total") == 1
    assert value(metrics, "loss") == 2.5
    assert value(metrics, "gradient_norm") == 0.5
    assert value(metrics, "train_steps_skipped_total", reason="non_finite") == 1
    assert value(metrics, "quality_ratio", model="attention", measure="hr", segment="cold") == 0.25
    assert value(metrics, "catalogue_coverage_ratio") == 0.75
    assert value(metrics, "drift_detections_total", detector="adwin", signal="loss") == 1
    assert value(metrics, "last_drift_timestamp_seconds") == 9.5
    assert value(metrics, "drift_reaction") == 1
    assert value(metrics, "rankings_published_total") == 5
    assert value(metrics, "publish_failures_total") == 2
    assert value(metrics, "records_too_large_total", topic="events.dead-letter", outcome="truncated") == 3
    assert value(metrics, "checkpoint_seconds_sum") == 0.5
    assert value(metrics, "last_checkpoint_timestamp_seconds") == 10.5
    assert value(metrics, "model_version") == 17
    assert value(metrics, "build_info", version="0.1.0", python="3.11", torch="2.13") == 1


def test_fixed_series_are_there_from_the_start() -> None:
    metrics = Metrics()
    for name, (kind, labels) in NAMES.items():
        if not labels:
            assert value(metrics, f"{name}_count" if kind == "histogram" else name) == 0, name
    assert all(value(metrics, "stage_seconds_count", stage=stage) == 0 for stage in STAGES)
    for reason in REASONS:
        assert value(metrics, "events_rejected_total", reason=reason) == 0
        assert value(metrics, "dead_letters_total", reason=reason) == 0
    assert all(value(metrics, "train_steps_skipped_total", reason=reason) == 0 for reason in SKIPS)


def test_liveness_is_asked_at_the_scrape() -> None:
    metrics, answers = Metrics(), iter([True, False])
    metrics.ask_live(lambda: next(answers))
    assert [value(metrics, "live"), value(metrics, "live")] == [1, 0]


def test_rows_are_set_and_those_that_came_and_went_are_added_up() -> None:
    metrics = Metrics()
    metrics.rows("users", 10, 10, 0)
    metrics.rows("users", 12, 5, 3)
    assert value(metrics, "table_rows", table="users") == 12
    assert value(metrics, "rows_admitted_total", table="users") == 15
    assert value(metrics, "rows_evicted_total", table="users") == 3


def test_event_types_beyond_thirty_two_share_one_series() -> None:
    metrics = Metrics()
    metrics.consumed({f"type-{n}": 1 for n in range(40)})
    metrics.consumed({"type-3": 1, "type-39": 1, "other": 1, "new": 1})
    assert value(metrics, "events_consumed_total", type="type-3") == 2
    assert value(metrics, "events_consumed_total", type="type-39") is None
    assert value(metrics, "events_consumed_total", type="other") == 8 + 3
    series = [
        s for family in metrics.registry.collect() for s in family.samples if "events_consumed" in s.name
    ]
    assert len(series) == 33


def test_partitions_that_went_away_lose_their_lag() -> None:
    metrics = Metrics()
    metrics.lag({TopicPartition("events", 0): 5, TopicPartition("events", 1): 6})
    metrics.lag({TopicPartition("events", 1): 4})
    assert value(metrics, "consumer_lag_records", topic="events", partition="0") is None
    assert value(metrics, "consumer_lag_records", topic="events", partition="1") == 4
    metrics.lag({})
    assert value(metrics, "consumer_lag_records", topic="events", partition="1") is None


def test_the_newest_event_never_goes_back() -> None:
    metrics = Metrics()
    metrics.newest_event(2_500)
    metrics.newest_event(1_000)
    assert value(metrics, "last_event_timestamp_seconds") == 2.5


def test_latency_counts_each_event_once_as_a_slow_count_would() -> None:
    seconds = np.concatenate(([0.0, 0.001, 600.0, 601.0], np.random.default_rng(0).lognormal(-2, 2, 1000)))
    metrics = Metrics()
    metrics.latency(seconds[:500])
    metrics.latency(seconds[500:])
    for bound in LATENCY_BUCKETS_S:
        expected = sum(1 for each in seconds.tolist() if each <= bound)
        assert value(metrics, "end_to_end_latency_seconds_bucket", le=repr(float(bound))) == expected, bound
    assert value(metrics, "end_to_end_latency_seconds_bucket", le="+Inf") == len(seconds)
    assert value(metrics, "end_to_end_latency_seconds_count") == len(seconds)
    assert value(metrics, "end_to_end_latency_seconds_sum") == pytest.approx(float(seconds.sum()))


def test_latency_leaves_out_what_is_not_finite_and_takes_none_for_negative() -> None:
    metrics = Metrics()
    metrics.latency(np.array([np.nan, np.inf, -np.inf, -3.0, 0.5]))
    metrics.latency(np.array([]))
    assert value(metrics, "end_to_end_latency_seconds_count") == 2
    assert value(metrics, "end_to_end_latency_seconds_sum") == 0.5
    assert value(metrics, "end_to_end_latency_seconds_bucket", le="0.001") == 1


def test_latency_buckets_go_from_a_millisecond_to_ten_minutes() -> None:
    assert (LATENCY_BUCKETS_S[0], LATENCY_BUCKETS_S[-1]) == (0.001, 600.0)
    assert list(LATENCY_BUCKETS_S) == sorted(set(LATENCY_BUCKETS_S))


def test_a_name_can_be_registered_once_only() -> None:
    registry = CollectorRegistry()
    registry.register(BatchHistogram("twice", "Twice.", [1.0]))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(BatchHistogram("twice", "Twice.", [1.0]))


def test_both_text_formats_can_be_written() -> None:
    metrics = Metrics()
    say_everything(metrics)
    assert exposition.generate_latest(metrics.registry).endswith(b"# EOF\n")
    assert b"_created" not in generate_latest(metrics.registry)
