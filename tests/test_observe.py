"""What the loop tells its observer becomes the metrics that it stands for."""

import logging
from pathlib import Path
from typing import Any

import pytest
from workers import P0, START_MS, Worker, publish, settings_for

from consumers.memory import ListLog
from pipeline.events.batch import RawBatch
from pipeline.events.records import DriftAlarm
from pipeline.outcome import Mark, Outcome, no_mark
from pipeline.service.clock import ManualClock
from pipeline.service.health import Health
from pipeline.service.metrics import Metrics
from pipeline.service.observe import MetricsObserver, ModelStatus
from producers.memory import MemoryReceipt, MemorySink


def test_a_run_shows_in_metrics_and_health(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, ["ann", "bob", "ann"])
    log.append(b"{", timestamp=START_MS + 3)
    clock = ManualClock(START_MS)
    metrics, health = Metrics(), Health(clock)

    def standing() -> ModelStatus:
        learner = worker.learner
        return ModelStatus({("counting", "hr", "all"): 0.25}, 0.5, learner.events_learned, learner.seq)

    observer = MetricsObserver(metrics, health, clock, standing)
    worker = Worker(log, settings_for(tmp_path), observer=observer)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"afresh_{name}", labels)

    worker.loop.start()
    worker.finish()
    worker.loop.checkpoint()
    assert health.state == "ready"
    assert value("events_consumed_total", type="click") == 3
    assert value("events_rejected_total", reason="not_json") == 1
    assert value("dead_letters_total", reason="not_json") == 1
    assert value("events_learned") == 3
    assert value("rankings_published_total") == 2
    assert value("end_to_end_latency_seconds_count") == 3
    assert value("stage_seconds_count", stage="publish") == 1
    assert value("train_steps_total") == 1
    assert value("partitions_assigned") == 1
    assert value("consumer_lag_records", topic="events", partition="0") == 0
    assert value("quality_ratio", model="counting", measure="hr", segment="all") == 0.25
    assert value("catalogue_coverage_ratio") == 0.5
    assert value("checkpoint_seconds_count") == 1
    worker.source.revoke([P0])
    worker.loop.tick()
    assert value("partitions_assigned") == 0
    worker.kill()


def test_an_alarm_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipeline.service.observe")
    log = ListLog()
    publish(log, ["ann"])
    metrics, clock = Metrics(), ManualClock(START_MS)
    worker = Worker(log, settings_for(tmp_path), observer=MetricsObserver(metrics, Health(clock), clock))
    step = worker.learner.step

    def alarming(raw: RawBatch, mark: Mark = no_mark) -> Outcome:
        outcome = step(raw, mark)
        outcome.alarms.append(DriftAlarm("adwin", "hit_rate", 7, 0.5, 0.25, START_MS, 0.4))
        return outcome

    worker.learner.step = alarming  # type: ignore[method-assign]
    worker.loop.start()
    worker.finish()
    worker.kill()
    labels = {"detector": "adwin", "signal": "hit_rate"}
    assert metrics.registry.get_sample_value("afresh_drift_detections_total", labels) == 1
    told = [record.getMessage() for record in caplog.records if record.name == "pipeline.service.observe"]
    assert told == ["drift: hit_rate 0.500 -> 0.250 at event 7; reaction 0.40"]


def test_a_worker_is_ready_without_a_partition_and_when_others_take_those_it_had(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, ["ann"])
    clock = ManualClock(START_MS)
    health = Health(clock)
    observer = MetricsObserver(Metrics(), health, clock)
    worker = Worker(log, settings_for(tmp_path), assigned=[], observer=observer)

    def state() -> str:
        return health.state

    worker.loop.start()
    assert state() == "rebalancing"
    worker.loop.tick()
    assert state() == "ready"
    worker.source.assign([P0])
    worker.finish()
    for _ in range(2):  # once with users that were learned, once with none
        worker.source.revoke([P0])
        worker.loop.tick()
        worker.loop.tick()
        assert state() == "ready"
        worker.source.assign([P0])
        worker.loop.tick()
    worker.kill()


class PunctualReceipt(MemoryReceipt):
    """A receipt that knows when it was acknowledged."""

    def acknowledged_ms(self) -> int:  # type: ignore[override]
        """A quarter of a second after the first event's record."""
        return START_MS + 250


class PunctualSink(MemorySink):
    """A sink whose receipts know the time."""

    def publish(self, *batch: Any) -> PunctualReceipt:
        """Take a batch."""
        super().publish(*batch)
        receipt = PunctualReceipt(self)
        receipt.acknowledge()
        return receipt


def test_latency_ends_with_the_acknowledgement_not_when_somebody_looks(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, ["ann"])
    metrics, clock = Metrics(), ManualClock(START_MS)
    sink = PunctualSink()
    worker = Worker(
        log,
        settings_for(tmp_path),
        wrap=lambda name, part: sink if name == "sink" else part,
        observer=MetricsObserver(metrics, Health(clock), clock),
    )
    worker.loop.start()
    worker.finish()
    worker.clock.advance(30.0)
    worker.loop.checkpoint()
    assert metrics.registry.get_sample_value("afresh_end_to_end_latency_seconds_count") == 1
    assert metrics.registry.get_sample_value("afresh_end_to_end_latency_seconds_sum") == 0.25
    worker.kill()


def test_what_was_restored_shows_before_the_first_batch(tmp_path: Path) -> None:
    log = ListLog()
    publish(log, ["ann", "bob", "ann"])
    first = Worker(log, settings_for(tmp_path))
    first.loop.start()
    first.finish()
    first.loop.leave()
    first.kill()
    metrics, clock = Metrics(), ManualClock(START_MS)

    def standing() -> ModelStatus:
        return ModelStatus({}, 0.0, worker.learner.events_learned, worker.learner.seq)

    observer = MetricsObserver(metrics, Health(clock), clock, standing)
    worker = Worker(log, settings_for(tmp_path), observer=observer)
    worker.loop.start()
    worker.settle()
    assert metrics.registry.get_sample_value("afresh_events_learned") == 3
    assert metrics.registry.get_sample_value("afresh_model_version") == first.learner.seq
    worker.kill()
