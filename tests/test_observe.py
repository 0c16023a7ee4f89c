"""What the loop reports to its observer shows in the metrics and the health."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.clock import ManualClock
from harness.workers import P0, START_MS, Worker, publish, settings_for

from consumers.memory import MemoryLog
from pipeline.events.batch import RawBatch
from pipeline.events.records import DriftAlarm
from pipeline.outcome import Mark, Outcome, no_mark
from pipeline.service.health import Health
from pipeline.service.metrics import Metrics
from pipeline.service.observe import MetricsObserver, ModelStatus
from producers.memory import MemoryReceipt, MemorySink


class Observed:
    """A worker on a log of its own, its metrics and its health."""

    def __init__(self, folder: Path, users: list[str], **options: Any) -> None:
        self.log, self.metrics, clock = MemoryLog(), Metrics(), ManualClock(START_MS)
        publish(self.log, users)
        self.health = Health(clock)
        observer = MetricsObserver(self.metrics, self.health, clock, self.status)
        self.worker = Worker(self.log, settings_for(folder), observer=observer, **options)

    def status(self) -> ModelStatus:
        learner = self.worker.learner
        return ModelStatus({("counting", "hr", "all"): 0.25}, 0.5, learner.events_learned, learner.seq)

    def run(self) -> "Observed":
        self.worker.loop.start()
        self.worker.finish()
        return self

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"afresh_{name}", labels)


@pytest.fixture
def observe(tmp_path: Path) -> Iterator[Callable[..., Observed]]:
    made: list[Observed] = []

    def make(users: list[str], **options: Any) -> Observed:
        made.append(Observed(tmp_path, users, **options))
        return made[-1]

    yield make
    for each in made:
        each.worker.kill()


def test_a_run_shows_in_metrics_and_health(observe: Callable[..., Observed]) -> None:
    run = observe(["ann", "bob", "ann"])
    run.log.append(b"{", timestamp=START_MS + 3)
    run.run()
    run.worker.loop.checkpoint()
    assert run.health.state == "ready"
    for name, labels, expected in (
        ("events_consumed_total", {"type": "click"}, 3),
        ("events_rejected_total", {"reason": "not_json"}, 1),
        ("dead_letters_total", {"reason": "not_json"}, 1),
        ("events_learned", {}, 3),
        ("rankings_published_total", {}, 2),
        ("end_to_end_latency_seconds_count", {}, 3),
        ("stage_seconds_count", {"stage": "publish"}, 1),
        ("train_steps_total", {}, 1),
        ("partitions_assigned", {}, 1),
        ("consumer_lag_records", {"topic": "events", "partition": "0"}, 0),
        ("quality_ratio", {"model": "counting", "measure": "hr", "segment": "all"}, 0.25),
        ("catalogue_coverage_ratio", {}, 0.5),
        ("checkpoint_seconds_count", {}, 1),
        ("last_event_timestamp_seconds", {}, (START_MS + 2) / 1000),
    ):
        assert run.value(name, **labels) == expected, name
    run.log.append(b'{"user_id": "ann", "item_id": "tea"}', timestamp=START_MS - 60_000)
    run.worker.finish()
    assert run.value("last_event_timestamp_seconds") == (START_MS + 2) / 1000  # the newest one stays
    run.worker.source.revoke([P0])
    run.worker.loop.tick()
    assert run.value("partitions_assigned") == 0


def test_an_alarm_is_counted_and_logged(
    observe: Callable[..., Observed], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.service.observe")
    run = observe(["ann"])
    step = run.worker.learner.step

    def alarming(raw: RawBatch, mark: Mark = no_mark) -> Outcome:
        outcome = step(raw, mark)
        outcome.alarms.append(DriftAlarm("adwin", "hit_rate", 7, 0.5, 0.25, START_MS, 0.4))
        return outcome

    run.worker.learner.step = alarming  # type: ignore[method-assign]
    run.run()
    assert run.value("drift_detections_total", detector="adwin", signal="hit_rate") == 1
    lines = [record.getMessage() for record in caplog.records if record.name == "pipeline.service.observe"]
    assert lines == ["drift: hit_rate 0.500 -> 0.250 at event 7; reaction 0.40"]


def test_a_worker_is_ready_without_a_partition_and_when_others_take_those_it_had(
    observe: Callable[..., Observed],
) -> None:
    run = observe(["ann"], assigned=[])
    worker, states = run.worker, []
    worker.loop.start()
    states.append(run.health.state)
    worker.loop.tick()
    states.append(run.health.state)
    worker.source.assign([P0])
    worker.finish()
    for _ in range(2):  # once with users that were learned, once with none
        worker.source.revoke([P0])
        worker.loop.tick()
        worker.loop.tick()
        states.append(run.health.state)
        worker.source.assign([P0])
        worker.loop.tick()
    assert states == ["rebalancing", "ready", "ready", "ready"]


class PunctualReceipt(MemoryReceipt):
    """A receipt that knows when it was acknowledged."""

    def acknowledged_ms(self) -> int:  # type: ignore[override]
        """A quarter of a second after the first event's record."""
        return START_MS + 250


class PunctualSink(MemorySink):
    """A sink with receipts that know the time."""

    def publish(self, *batch: Any) -> PunctualReceipt:
        """Take a batch."""
        super().publish(*batch)
        receipt = PunctualReceipt(self)
        receipt.acknowledge()
        return receipt


def test_latency_ends_with_the_acknowledgement_not_when_it_is_looked_at(
    observe: Callable[..., Observed],
) -> None:
    sink = PunctualSink()
    run = observe(["ann"], wrap=lambda name, part: sink if name == "sink" else part).run()
    run.worker.clock.advance(30.0)
    run.worker.loop.checkpoint()
    assert run.value("end_to_end_latency_seconds_count") == 1
    assert run.value("end_to_end_latency_seconds_sum") == 0.25


def test_what_was_restored_shows_before_the_first_batch(observe: Callable[..., Observed]) -> None:
    first = observe(["ann", "bob", "ann"]).run()
    first.worker.loop.leave()
    first.worker.kill()
    second = observe(["ann", "bob", "ann"])
    second.worker.loop.start()
    second.worker.settle()
    assert second.value("events_learned") == 3
    assert second.value("model_version") == first.worker.learner.seq
