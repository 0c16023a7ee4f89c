"""What the loop reports to its observer, and batches of records that are no event or several."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.clock import ManualClock
from harness.learners import CountingLearner
from harness.workers import P0, P1, START_MS, Worker, publish, settings_for
from test_loop import assert_restored, finished, started

from consumers.memory import MemoryLog
from pipeline.events.batch import RawBatch
from pipeline.events.records import DriftAlarm
from pipeline.outcome import Mark, Outcome, no_mark
from pipeline.service.health import Health
from pipeline.service.metrics import Metrics
from pipeline.service.observe import MetricsObserver, ModelStatus
from pipeline.settings import EventsConfig, Settings
from producers.memory import MemoryReceipt, MemorySink

LINES = EventsConfig(fields={"item_id": "lines[].id"}, roles={"look": "ignore"})


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


Observe = Callable[..., Observed]


@pytest.fixture
def observe(tmp_path: Path) -> Iterator[Observe]:
    made: list[Observed] = []

    def make(users: list[str], **options: Any) -> Observed:
        made.append(Observed(tmp_path, users, **options))
        return made[-1]

    yield make
    for each in made:
        each.worker.kill()


def test_a_run_shows_in_metrics_and_health(observe: Observe) -> None:
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


def test_an_alarm_is_counted_and_logged(observe: Observe, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_worker_is_ready_without_a_partition_and_when_others_take_those_it_had(observe: Observe) -> None:
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


class PunctualSink(MemorySink):
    def publish(self, *batch: Any) -> MemoryReceipt:
        receipt = super().publish(*batch)
        receipt.acknowledged_ms = lambda: START_MS + 250  # type: ignore[assignment, method-assign]
        return receipt


def test_latency_ends_with_the_acknowledgement_not_when_it_is_looked_at(observe: Observe) -> None:
    sink = PunctualSink()
    run = observe(["ann"], wrap=lambda name, part: sink if name == "sink" else part).run()
    run.worker.clock.advance(30.0)
    run.worker.loop.checkpoint()
    assert run.value("end_to_end_latency_seconds_count") == 1
    assert run.value("end_to_end_latency_seconds_sum") == 0.25


def with_lines(folder: Path, **limits: Any) -> Settings:
    return msgspec.structs.replace(settings_for(folder, **limits), events=LINES)


def publish_lines(log: MemoryLog, number: int, *items: str, partition: int = 0) -> None:
    value = {"user_id": "ann", "lines": [{"id": item} for item in items]}
    log.append(msgspec.json.encode(value), partition=partition, timestamp=START_MS + number)


def test_batches_of_ignored_records_are_committed_and_exceed_no_limit(tmp_path: Path) -> None:
    log = MemoryLog({"events": 2})
    for number in range(9):
        log.append(b'{"event_type":"look"}', partition=0, timestamp=START_MS + number)
        log.append(None, partition=1, timestamp=START_MS + number)
    clock, metrics = ManualClock(START_MS), Metrics()
    settings = with_lines(tmp_path, max_consecutive_dead_letters=1, max_dead_letter_ratio=0.001)
    observer = MetricsObserver(metrics, Health(clock), clock)
    worker = finished(log, tmp_path, settings=settings, observer=observer)
    worker.settle()
    assert log.committed == worker.learner.offsets == {P0: 9, P1: 9}
    assert (worker.learner.events_learned, worker.outbox.rejects, worker.outbox.rankings) == (0, [], [])
    for name in ("look", "tombstone"):
        assert metrics.registry.get_sample_value("afresh_events_ignored_total", {"type": name}) == 9
    assert_restored(worker)


def test_a_batch_holds_at_most_max_events_or_one_record(tmp_path: Path) -> None:
    log = MemoryLog({"events": 2})
    lines = [1, 3, 2, 7, 1, 1, 1, 1]  # of each record; a batch has room for 4 events
    for number, count in enumerate(lines):
        publish_lines(log, number, *(f"i{line}" for line in range(count)), partition=number % 2)
    sizes: list[int] = []

    class Noting(CountingLearner):
        def step(self, raw: RawBatch, *mark: Any) -> Outcome:
            sizes.append(len(raw.events))
            return super().step(raw, *mark)

    settings = with_lines(tmp_path)
    worker = finished(log, tmp_path, settings=settings, learner=Noting(settings))
    assert sizes == [4, 2, 7, 4]
    assert worker.learner.events_learned == sum(lines)
    assert_restored(worker)


def test_another_worker_catches_up_with_several_events_a_record(tmp_path: Path) -> None:
    log = MemoryLog()
    for number in range(6):
        publish_lines(log, number, f"i{number}", "tea")
    first = finished(log, tmp_path, settings=with_lines(tmp_path))
    first.settle()
    first.kill()
    other = started(log, tmp_path, settings=with_lines(tmp_path, worker="worker-1"))
    other.settle()
    assert other.learner.users == first.learner.users
