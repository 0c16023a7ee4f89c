"""Members of a Kafka group against real brokers: who holds which partition, and who may commit."""

import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from harness.clients import ends, open_source, poll_forever, poll_until, values
from kafka.admin import MemberToRemove
from kafka.future import Future
from kafka_group import Group, numbered

from consumers.kafka import member as kafka_member
from consumers.kafka.member import Member
from pipeline.errors import CommitRefused, UsageError
from pipeline.events.batch import TopicPartition
from pipeline.settings import KafkaConfig

REPLACED = r"'worker-0': another process has joined group"


def test_a_second_member_takes_half_and_nothing_is_lost_or_doubled(group: Group) -> None:
    topic = group.topic(4, [row for number in range(4) for row in numbered(100, number, number * 100)])
    first, held_by_first = group.open(topic)
    seen = poll_until(first, 120, max_events=60)

    def commit(partitions: object) -> None:
        first.commit(ends(seen))

    held_by_first.on_revoked = commit
    with group.another(topic) as (held_by_second, taken):
        while len(held_by_second.held) < 2 or len(values(seen + taken)) < 400:
            seen.append(first.poll(20, 0.02))
        assert held_by_second.source.generation() == first.generation() > 1
        assert held_by_first.held.isdisjoint(held_by_second.held)
    held_by_first.on_revoked = lambda partitions: None
    assert sorted(values(seen + taken)) == sorted(b"%d" % n for n in range(400))
    assert len(held_by_first.partitions_of("revoked")) == 2  # what stays is not revoked
    assert held_by_first.partitions_of("lost") == []
    assert held_by_first.threads == {threading.get_ident()}


class Joining:
    """The parts of a client and of its coordinator that a `Member` drives: each join waits for `answer`."""

    def __init__(self) -> None:
        self.joins: list[Future] = []
        self.fetches = 0
        self.answered = 0
        self._coordinator = self._manager = self

    def need_rejoin(self) -> bool:
        return self.answered < 2  # as after a cooperative rebalance that revokes

    def call_soon(self, coroutine: object) -> Future:
        self.joins.append(Future())
        return self.joins[-1]

    async def ensure_active_group_async(self) -> bool: ...
    async def _on_join_complete_async(self, *args: object) -> None: ...

    def answer(self) -> None:
        self.answered += 1
        self.joins[-1].success(True)

    def poll(self, timeout_ms: float, max_records: int) -> dict[object, object]:
        if not self.need_rejoin() or self.ensure_active_group(timeout_ms):  # type: ignore[attr-defined]
            self.fetches += 1
        return {}


def test_a_join_that_outlasts_a_poll_goes_on_and_no_other_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub: whether a real client forgets a join, or misses its answer, is a matter of milliseconds."""
    monkeypatch.setattr(kafka_member, "JOIN_WAIT_S", 0.01)
    client = Joining()
    member = Member(client)
    for _ in range(3):
        assert member.poll() == member.keep_alive() == {}
    assert (len(client.joins), client.fetches) == (1, 0)
    client.answer()
    member.poll()
    assert (len(client.joins), client.fetches) == (2, 0)  # the client wants to join once more
    client.answer()
    member.poll()
    member.poll()
    assert (len(client.joins), client.fetches) == (2, 2)


DOOMED = """
import sys, time
from harness.clients import open_source
from pipeline.settings import KafkaConfig
address, topic = sys.argv[1:]
source, recorder = open_source(KafkaConfig(bootstrap_servers=address, group_id=topic), topic)
while True:
    source.poll(10, 0.05)
    if recorder.held:
        print("held", flush=True)
"""


def test_a_worker_that_was_killed_gets_its_place_back_at_once(group: Group) -> None:
    topic = group.topic(2)
    command = [sys.executable, "-c", DOOMED, group.broker, topic]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE) as doomed:
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == b"held\n"
        doomed.kill()
    kafka = KafkaConfig(bootstrap_servers=group.broker, group_id=topic)  # its session lasts 45 s
    again, recorder = open_source(kafka, topic)
    began = time.monotonic()
    while len(recorder.held) < 2:
        again.poll(10, 0.05)
    assert time.monotonic() - began < 5
    again.close()


def test_of_two_processes_with_one_worker_id_the_older_one_ends(group: Group) -> None:
    topic = group.topic(1, numbered(10))
    older, _ = group.open(topic)
    seen = poll_until(older, 10)
    group.hold(topic)

    def commit() -> None:
        with suppress(CommitRefused):  # the embedded broker reports it at the next join only
            older.commit(ends(seen))

    with pytest.raises(UsageError, match=REPLACED) as caught:
        poll_forever(older, commit)
    assert "\n" not in str(caught.value)
    older.close()
    assert len(group.members(topic)) == 1  # it took itself out, not the newer one


def test_a_process_replaced_while_idle_ends_too(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.kafka.fetch.PLACE_EVERY_S", 0.5)
    topic = group.topic()
    older, _ = group.hold(topic, broker_timeout_s=2.0)
    newer, _ = group.hold(topic)
    with pytest.raises(UsageError, match=REPLACED):
        poll_forever(older)
    for _ in range(20):
        newer.poll(10, 0.05)  # it isn't


def test_a_member_that_closes_is_out_of_the_group_at_once(group: Group) -> None:
    topic = group.topic()
    source, _ = group.hold(topic)
    assert len(group.members(topic)) == 1
    source.close()
    assert group.members(topic) == []


def test_staying_alive_during_a_rebalance_leaves_the_listener_alone(group: Group) -> None:
    topic = group.topic(2)
    first, held_by_first = group.hold(topic, 2)
    calls = list(held_by_first.calls)
    with group.another(topic) as (held_by_second, _):
        while held_by_second.source.generation() == 0:  # until both have joined again
            first.keep_alive()
        first.keep_alive()
        assert held_by_first.calls == calls
        while not held_by_second.held:
            first.poll(10, 0.02)
        assert len(held_by_first.held) == len(held_by_second.held) == 1


def test_a_member_that_was_removed_loses_its_partitions_and_may_not_commit(group: Group) -> None:
    topic = group.topic(1, numbered(20))
    source, recorder = group.open(topic)
    first = poll_until(source, 5, max_events=5)
    group.admin.remove_group_members(topic, [MemberToRemove(member_id=group.members(topic)[0])])
    with pytest.raises(CommitRefused, match="poll, commit again"):
        source.commit(ends(first))
    assert source.generation() == 0
    seen = poll_until(source, 20)  # nothing was committed: from the start
    assert recorder.partitions_of("lost") == [TopicPartition(topic, 0)]
    assert recorder.partitions_of("revoked") == []
    assert values(seen) == [b"%d" % n for n in range(20)]
