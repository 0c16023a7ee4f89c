"""Many partitions cost as many calls, files and syncs as few: the counts here must not grow."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.workers import Worker, publish, settings_for
from kafka_group import Group

from consumers.memory import MemoryLog
from pipeline.events.batch import TopicPartition

COUNTED = {
    "learner": ("take", "put", "release", "snapshot"),
    "source": ("keep_alive", "read", "committed", "commit", "start_offsets", "end_offsets"),
}


class Calls:
    """Count the calls of a worker's parts, of its folder, and of fsync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        monkeypatch.setattr(os, "fsync", self.counted("fsync", lambda descriptor: None))

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.counts[name] += 1
            return call(*args, **options)

        return wrapped

    def wrap(self, name: str, part: Any) -> Any:
        for method in COUNTED.get(name, ()):
            setattr(part, method, self.counted(f"{name}.{method}", getattr(part, method)))
        return part

    def worker(self, log: MemoryLog, folder: Path, name: str, partitions: int) -> Worker:
        worker = Worker(log, settings_for(folder, name), wrap=self.wrap)
        files: Any = worker.survival.checkpoints.folder  # type: ignore[union-attr]
        for method in ("names", "read", "write", "delete"):
            setattr(files, method, self.counted(f"folder.{method}", getattr(files, method)))
        worker.loop.start()
        worker.finish(partitions)
        return worker

    def of(self, act: Callable[[], object]) -> Counter[str]:
        self.counts.clear()
        act()
        return Counter(self.counts)


def lives(folder: Path, partitions: int, calls: Calls) -> dict[str, Counter[str]]:
    """Return what a checkpoint, a restart, a takeover after a kill and a revocation cost."""
    log = MemoryLog({"events": partitions})
    sources = [TopicPartition("events", number) for number in range(partitions)]
    for start in range(2):
        for source in sources:
            publish(log, [f"user-{source.partition}"], source, start=start)
    found = {}
    dead = calls.worker(log, folder, "dead", partitions)
    for _ in range(4):  # more than are kept: the last one deletes
        for source in sources[:4]:
            publish(log, ["ann"], source, start=7)
        dead.finish()
        found["checkpoint"] = calls.of(dead.loop.checkpoint)
    for source in sources:
        publish(log, ["ann"], source, start=9)
    dead.finish(partitions)
    dead.settle()
    dead.kill()
    heir = Worker(log, settings_for(folder, "heir"), wrap=calls.wrap)
    heir.loop.start()
    found["takeover"] = calls.of(heir.loop.tick)
    assert set(heir.learner.offsets) == set(sources)
    heir.source.revoke(sources[: partitions // 2])
    found["revocation"] = calls.of(heir.loop.tick)
    heir.kill()
    found["restart"] = calls.of(Worker(log, settings_for(folder, "heir"), wrap=calls.wrap).loop.start)
    return found


def test_calls_do_not_grow_with_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    few, many = (lives(tmp_path / str(count), count, calls) for count in (10, 400))
    assert many == few
    assert few["checkpoint"]["fsync"] == few["checkpoint"]["folder.write"] == 3
    assert few["takeover"]["source.read"] == 1


@pytest.mark.kafka
def test_the_source_looks_at_the_assignment_once_a_poll_at_most(
    embedded_broker: str, topic_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Group(embedded_broker, topic_name) as group:
        source, recorder = group.open(group.topic(100))
        calls, consumer = Calls(monkeypatch), source._consumer
        asked = calls.counted("committed", consumer._coordinator._send_offset_fetch_request)
        monkeypatch.setattr(consumer._coordinator, "_send_offset_fetch_request", asked)
        assert calls.of(lambda: group.poll_until_held(source, recorder, 100))["committed"] == 1
        for method in ("assignment", "paused", "highwater", "position"):
            monkeypatch.setattr(consumer, method, calls.counted(method, getattr(consumer, method)))
        assert calls.of(lambda: [source.poll(10, 0.0) for _ in range(10)]).total() <= 10
        assert calls.of(source.lag).total() == 0
