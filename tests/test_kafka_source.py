"""The Kafka source against real brokers: order, offsets, transactions, rebalances, what is lost."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from harness.clients import Recorder, Row, config, make_topic, open_source, poll_forever, poll_until, write
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import MemberToRemove
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.future import Future

from consumers.kafka import client as kafka_client
from consumers.kafka import member as kafka_member
from consumers.kafka.client import Patience, consumer_options
from consumers.kafka.member import Member
from consumers.kafka.source import BACKLOG_WAIT_S, KafkaSource
from pipeline.errors import BrokerLost, CommitRefused, OffsetsGone, UsageError
from pipeline.events.batch import Polled, TopicPartition
from pipeline.settings import BatchConfig, KafkaConfig
from producers.embedded_broker import EmbeddedBroker

START_MS = 1_700_000_000_000
Name = Callable[[str], str]
Fresh = Callable[..., str]
Opener = Callable[..., tuple[KafkaSource, Recorder]]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Open sources that are closed after the test."""
    sources: list[KafkaSource] = []

    def make(kafka: KafkaConfig, *topics: str) -> tuple[KafkaSource, Recorder]:
        source, recorder = open_source(kafka, *topics)
        sources.append(source)
        return source, recorder

    yield make
    for source in sources:
        source.close()


@pytest.fixture
def fresh(broker: str, topic_name: Name) -> Fresh:
    """Make topics, with so many partitions and these records."""

    def make(partitions: int = 1, rows: Sequence[Row] = ()) -> str:
        topic = topic_name("events")
        make_topic(broker, topic, partitions)
        write(broker, topic, rows)
        return topic

    return make


@pytest.fixture
def admin(broker: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=broker)
    yield client
    client.close()


def numbered(count: int, partition: int = 0, start: int = 0) -> list[Row]:
    """Return records with their number as value, a millisecond apart."""
    return [Row(partition, START_MS + n, b"%d" % n) for n in range(start, start + count)]


def values(batches: list[Polled]) -> list[bytes]:
    return [record.value or b"" for batch in batches for record in batch.records]


def ends(batches: list[Polled]) -> dict[TopicPartition, int]:
    return {span.source: span.stop for batch in batches for span in batch.spans}


@contextmanager
def transaction(broker: str, topic: str, rows: list[Row]) -> Iterator[KafkaProducer]:
    """Write records in a transaction that is open within the block, and aborted unless it was committed."""
    producer = KafkaProducer(bootstrap_servers=broker, transactional_id=f"{topic}-writer", linger_ms=0)
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for row in rows:
            producer.send(topic, value=row.value, partition=row.partition, timestamp_ms=row.timestamp)
        producer.flush(timeout=20)
        yield producer
    finally:
        with suppress(KafkaError):  # it was committed
            producer.abort_transaction()
        producer.close(timeout=5)


@contextmanager
def member(kafka: KafkaConfig, topic: str) -> Iterator[tuple[Recorder, list[Polled]]]:
    """Run another member of the group in a thread of its own, as another process would."""
    source, recorder = open_source(msgspec.structs.replace(kafka, worker_id="another"), topic)
    taken: list[Polled] = []
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            taken.append(source.poll(20, 0.02))

    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(poll)
        try:
            yield recorder, taken
        finally:
            over.set()
            polling.result()
            source.close()


def test_an_uneven_backlog_comes_in_order_of_time_and_in_full_batches(
    broker: str, fresh: Fresh, opened: Opener
) -> None:
    topic = fresh(4)
    times = random.Random(7).sample(range(100_000), 3_060)
    rows = [
        Row(partition, START_MS + time_ms, b"%d" % time_ms)
        for partition, (start, stop) in enumerate([(0, 2_000), (2_000, 2_060), (2_060, 3_060), (0, 0)])
        for time_ms in sorted(times[start:stop])
    ]
    write(broker, topic, rows)
    source, _ = opened(config(broker, topic), topic)
    batches = poll_until(source, 3_060)
    assert values(batches) == [b"%d" % time_ms for time_ms in sorted(times)]
    assert [len(batch.records) for batch in batches] == [128] * 23 + [116]


def test_a_batch_is_closed_soon_after_its_first_record(broker: str, fresh: Fresh, opened: Opener) -> None:
    topic = fresh(2)
    source, recorder = opened(config(broker, topic), topic)
    while not recorder.held:
        source.poll(128, 0.05)
    write(broker, topic, numbered(3))
    began = time.monotonic()
    (batch,) = poll_until(source, 3, wait_s=0.1)
    assert len(batch.records) == 3
    assert time.monotonic() - began < BACKLOG_WAIT_S


def test_spans_step_over_aborted_transactions(broker: str, fresh: Fresh, opened: Opener) -> None:
    topic = fresh(1, numbered(50))
    with transaction(broker, topic, numbered(20, start=1_000)):
        pass
    write(broker, topic, numbered(50, start=50))
    source, _ = opened(config(broker, topic), topic)
    batches = poll_until(source, 100, max_events=40)
    assert values(batches) == [b"%d" % n for n in range(100)]
    spans = [span for batch in batches for span in batch.spans]
    assert [len(batch.records) for batch in batches] == [40, 40, 20]
    assert all(before.stop == after.start for before, after in pairwise(spans))
    assert spans[-1].stop == 121  # 20 aborted records and their marker lie between
    assert values([source.read(batch.spans, batch.order_R) for batch in batches]) == values(batches)


def test_an_aborted_tail_leaves_no_lag(broker: str, fresh: Fresh, opened: Opener) -> None:
    topic = fresh(1, numbered(5))
    with transaction(broker, topic, numbered(5, start=100)):
        pass
    source, _ = opened(config(broker, topic), topic)
    poll_until(source, 5)
    source.poll(128, 0.2)
    assert source.lag() == {TopicPartition(topic, 0): 0}


def test_an_open_transaction_delays_no_other_partition(broker: str, fresh: Fresh, opened: Opener) -> None:
    topic = fresh(2)
    with transaction(broker, topic, [Row(0, START_MS, b"open")]) as producer:
        write(broker, topic, numbered(3, partition=1))
        source, _ = opened(config(broker, topic), topic)
        assert values(poll_until(source, 3)) == [b"0", b"1", b"2"]
        began = time.monotonic()
        source.poll(128, 0.05)
        source.poll(128, 0.05)
        assert time.monotonic() - began < BACKLOG_WAIT_S
        producer.commit_transaction()
    assert values(poll_until(source, 1)) == [b"open"]


def test_a_second_member_takes_half_and_nothing_is_lost_or_doubled(
    broker: str, fresh: Fresh, opened: Opener
) -> None:
    topic = fresh(4, [row for partition in range(4) for row in numbered(100, partition, partition * 100)])
    first, held_by_first = opened(config(broker, topic), topic)
    seen = poll_until(first, 120, max_events=60)

    def commit(partitions: object) -> None:
        first.commit(ends(seen))

    held_by_first.on_revoked = commit
    with member(config(broker, topic), topic) as (held_by_second, taken):
        while len(held_by_second.held) < 2 or len(values(seen + taken)) < 400:
            seen.append(first.poll(20, 0.02))
        assert held_by_second.source.generation() == first.generation() > 1
        assert held_by_first.held.isdisjoint(held_by_second.held)
    held_by_first.on_revoked = lambda partitions: None
    assert sorted(values(seen + taken)) == sorted(b"%d" % n for n in range(400))
    assert len(held_by_first.partitions_of("revoked")) == 2  # what stays is not revoked
    assert held_by_first.partitions_of("lost") == []
    assert held_by_first.threads == {threading.get_ident()}


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


def test_a_worker_that_was_killed_gets_its_place_back_at_once(broker: str, fresh: Fresh) -> None:
    topic = fresh(2)
    folder = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", DOOMED, broker, topic], cwd=folder, stdout=subprocess.PIPE
    ) as doomed:
        assert doomed.stdout is not None
        assert doomed.stdout.readline() == b"held\n"
        doomed.kill()
    kafka = KafkaConfig(bootstrap_servers=broker, group_id=topic)  # its session lasts 45 s
    again, recorder = open_source(kafka, topic)
    began = time.monotonic()
    while len(recorder.held) < 2:
        again.poll(10, 0.05)
    assert time.monotonic() - began < 5
    again.close()


def test_of_two_processes_with_one_worker_id_the_older_one_ends(
    broker: str, fresh: Fresh, opened: Opener, admin: KafkaAdminClient
) -> None:
    topic = fresh(1, numbered(10))
    older, _ = opened(config(broker, topic), topic)
    seen = poll_until(older, 10)
    newer, recorder = opened(config(broker, topic), topic)
    while not recorder.held:
        newer.poll(10, 0.05)

    def commit() -> None:
        with suppress(CommitRefused):  # the embedded broker reports it at the next join only
            older.commit(ends(seen))

    with pytest.raises(UsageError, match=r"'worker-0': another process has joined group") as caught:
        poll_forever(older, commit)
    assert "\n" not in str(caught.value)
    older.close()
    assert len(admin.describe_groups([topic])[topic]["members"]) == 1  # it took itself out, not the newer one


def test_a_process_that_was_replaced_while_idle_ends_too(
    broker: str, fresh: Fresh, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.kafka.fetch.PLACE_EVERY_S", 0.5)
    topic = fresh()
    older, recorder = opened(config(broker, topic, broker_timeout_s=2.0), topic)
    while not recorder.held:
        older.poll(10, 0.05)
    newer, recorder = opened(config(broker, topic), topic)
    while not recorder.held:
        newer.poll(10, 0.05)
    with pytest.raises(UsageError, match=r"'worker-0': another process has joined group"):
        poll_forever(older)
    for _ in range(20):
        newer.poll(10, 0.05)  # it isn't


def test_a_member_that_closes_is_out_of_the_group_at_once(
    broker: str, fresh: Fresh, admin: KafkaAdminClient
) -> None:
    topic = fresh()
    source, recorder = open_source(config(broker, topic), topic)
    while not recorder.held:
        source.poll(10, 0.05)
    assert len(admin.describe_groups([topic])[topic]["members"]) == 1
    source.close()
    assert admin.describe_groups([topic])[topic]["members"] == []


def test_staying_alive_during_a_rebalance_leaves_the_listener_alone(
    broker: str, fresh: Fresh, opened: Opener
) -> None:
    topic = fresh(2)
    first, held_by_first = opened(config(broker, topic), topic)
    while len(held_by_first.held) < 2:
        first.poll(10, 0.05)
    calls = list(held_by_first.calls)
    with member(config(broker, topic), topic) as (held_by_second, _):
        while held_by_second.source.generation() == 0:  # until both have joined again
            first.keep_alive()
        first.keep_alive()
        assert held_by_first.calls == calls
        while not held_by_second.held:
            first.poll(10, 0.02)
        assert len(held_by_first.held) == len(held_by_second.held) == 1


def test_a_member_that_was_removed_loses_its_partitions_and_may_not_commit(
    broker: str, fresh: Fresh, opened: Opener, admin: KafkaAdminClient
) -> None:
    topic = fresh(1, numbered(20))
    source, recorder = opened(config(broker, topic), topic)
    first = poll_until(source, 5, max_events=5)
    (group,) = admin.describe_groups([topic]).values()
    admin.remove_group_members(topic, [MemberToRemove(member_id=group["members"][0]["member_id"])])
    with pytest.raises(CommitRefused, match="poll, commit again"):
        source.commit(ends(first))
    assert source.generation() == 0
    seen = poll_until(source, 20)  # nothing was committed: from the start
    assert recorder.partitions_of("lost") == [TopicPartition(topic, 0)]
    assert recorder.partitions_of("revoked") == []
    assert values(seen) == [b"%d" % n for n in range(20)]


def test_an_error_of_the_listener_comes_out_of_poll(broker: str, fresh: Fresh, opened: Opener) -> None:
    topic = fresh()
    source, recorder = opened(config(broker, topic), topic)

    def refuse(partitions: object) -> None:
        raise OffsetsGone("not these")

    recorder.assigned = refuse  # type: ignore[method-assign]
    with pytest.raises(OffsetsGone, match="not these"):
        poll_forever(source)


def test_a_topic_that_was_created_again_is_an_error(
    broker: str, fresh: Fresh, opened: Opener, admin: KafkaAdminClient, request: pytest.FixtureRequest
) -> None:
    topic = fresh(1, numbered(100))
    first, _ = open_source(config(broker, topic), topic)
    (batch,) = poll_until(first, 100, max_events=100)
    first.commit(ends([batch]))
    ids = first.topic_ids()
    assert ids.keys() == {topic} or "embedded" in request.node.callspec.id
    first.close()
    admin.delete_topics([topic])
    while topic in admin.list_topics():
        pass
    make_topic(broker, topic)
    write(broker, topic, numbered(7))
    second, recorder = opened(config(broker, topic), topic)
    assert second.topic_ids() != ids or ids == {}  # the embedded broker has none
    with pytest.raises(OffsetsGone, match="the topic holds 0 to 7"):
        second.read(batch.spans, batch.order_R)
    recorder.assigned = lambda partitions: second.seek(partitions[0], 100)  # type: ignore[method-assign]
    with pytest.raises(OffsetsGone, match="wanted offset 100, but the topic holds 0 to 7"):
        poll_forever(second)


@pytest.mark.kafka
def test_a_broker_that_goes_away_is_lost(topic_name: Name) -> None:
    topic = topic_name("events")
    with EmbeddedBroker() as broker:
        make_topic(broker.bootstrap_servers, topic)
        write(broker.bootstrap_servers, topic, numbered(5))
        source, _ = open_source(config(broker.bootstrap_servers, topic, broker_timeout_s=1.5), topic)
        seen = poll_until(source, 5)
        broker.stop()

        def commit() -> None:
            with suppress(CommitRefused):
                source.commit(ends(seen))

        with pytest.raises(BrokerLost, match=r"has not answered for .*kafka\.broker_timeout_s = 1\.5"):
            poll_forever(source, commit)
        source.close()


def test_a_broker_that_is_away_for_a_while_is_logged_once_and_its_return_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "consumers.kafka.client")
    patience = Patience(KafkaConfig(bootstrap_servers="here:9092", broker_timeout_s=60.0))
    for ago_s in (1.0, 4.0, 5.0):
        patience.failed("reading events", time.monotonic() - ago_s, OSError())
        patience._failing_since = None  # the next one began longer ago
    patience.answered()
    patience.answered()
    assert [record.getMessage() for record in caplog.records] == [
        "the broker at here:9092 has not answered for 4 s while reading events; waiting up to 60 s",
        "the broker at here:9092 answers again",
    ]


def test_no_broker_at_start_is_an_error_of_one_line() -> None:
    kafka = KafkaConfig(bootstrap_servers="127.0.0.1:1", start_timeout_s=0.3)
    with pytest.raises(
        UsageError, match=r"no broker answered at kafka\.bootstrap_servers = '127\.0\.0\.1:1'"
    ) as caught:
        KafkaSource(kafka, ["events"], BatchConfig())
    assert "\n" not in str(caught.value)


def test_a_topic_that_does_not_exist_is_an_error(broker: str, topic_name: Name) -> None:
    with pytest.raises(UsageError, match=r"nowhere.*does not exist"):
        KafkaSource(config(broker), [topic_name("nowhere")], BatchConfig())


def test_options_of_the_user_reach_the_client_but_not_those_of_the_guarantees() -> None:
    kafka = KafkaConfig(
        security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="ann", sasl_password="secret",
        ssl_cafile="/ca.pem", options={"fetch_min_bytes": 10, "linger_ms": 1},
    )  # fmt: skip
    options = consumer_options(kafka, in_group=True)
    assert options["fetch_min_bytes"] == 10
    assert "linger_ms" not in options  # a producer's option
    assert options["sasl_plain_password"] == "secret"
    assert options["ssl_cafile"] == "/ca.pem"
    assert (options["enable_auto_commit"], options["auto_offset_reset"]) == (False, "none")
    assert consumer_options(kafka, in_group=False)["group_id"] is None
    for wrong, said in {
        "fetch_min_byte": "did you mean fetch_min_bytes",
        "enable_auto_commit": "afresh sets this option itself",
    }.items():
        with pytest.raises(UsageError, match=rf"kafka\.options\.{wrong} = 1: .*{said}"):
            consumer_options(KafkaConfig(options={wrong: 1}), in_group=True)


def test_a_broker_that_is_late_is_waited_for_and_that_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka_client, "SILENCE_LOGGED_S", 0.2)
    caplog.set_level("INFO", "consumers.kafka.client")
    waits_ms = []

    def late(**options: int) -> str:
        waits_ms.append(options["bootstrap_timeout_ms"])
        if len(waits_ms) < 2:
            raise KafkaTimeoutError("no answer")
        return "a client"

    options = kafka_client.connection_options(KafkaConfig(bootstrap_servers="here:9092"))
    assert kafka_client.connect(late, options) == "a client"
    assert waits_ms == [200, 14_800]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "no broker has answered at here:9092 yet; waiting up to 15 s (kafka.start_timeout_s)"
