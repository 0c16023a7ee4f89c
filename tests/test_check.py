"""`afresh check`: what is told of a cluster, of records and of this machine, and what to do about it."""

import dataclasses
import fcntl
import io
import json
import re
import socket
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from brokers.clients import config, make_topic
from kafka import KafkaAdminClient, KafkaProducer
from rich.console import Console
from rich.text import Text
from workers import Worker, publish, settings_for

from consumers.kafka.survey import GroupSeen, Rights, Survey, TopicSeen, survey
from consumers.memory import MemoryLog, MemoryRecord
from pipeline.app import cli
from pipeline.app.check.cluster import judge_cluster
from pipeline.app.check.findings import Finding, Level, ok, warn
from pipeline.app.check.here import checkpoint, import_names, learned_offsets, port, worker_runs
from pipeline.app.check.records import judge_places, judge_records
from pipeline.app.check.view import on_terminal
from pipeline.errors import UsageError
from pipeline.settings import (
    CheckpointConfig,
    EventsConfig,
    KafkaConfig,
    LimitsConfig,
    Settings,
    TopicsConfig,
)
from producers.kafka.records import key_hash

pytestmark = pytest.mark.usefixtures("logging_as_before")

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
ALL: Rights = frozenset({"READ", "WRITE", "CREATE", "DESCRIBE"})
GOOD = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "min.insync.replicas": "1",
    "retention.bytes": "-1",
    "retention.ms": str(7 * DAY_MS),
}
COMPACT = GOOD | {"cleanup.policy": "compact"}
SAVED = Settings(
    kafka=KafkaConfig(
        security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="shop", sasl_password="x"
    ),
    checkpoint=CheckpointConfig(path="/state"),
)


def seen(group: GroupSeen | None = None, **topics: TopicSeen) -> Survey:
    """A cluster where all is well, but for the topics given (by their key in [topics])."""
    names = {
        "events": TopicSeen("events", True, ALL, "", 4, (), 1, 1, GOOD),
        "items": TopicSeen("items", True, ALL, "", 1, (), 1, 1, COMPACT),
        "recommendations": TopicSeen("recommendations", True, ALL, "", 4, (), 1, 1, COMPACT),
        "dead_letters": TopicSeen(
            "events.dead-letter", True, ALL, "", 1, (), 1, 1, GOOD | {"max.message.bytes": "12582912"}
        ),
        "drift": TopicSeen("events.drift", True, ALL, "", 1, (), 1, 1, GOOD),
    } | topics
    told = {topic.name: topic for topic in names.values()}
    there = tuple(name for name, topic in told.items() if topic.exists)
    return Survey("4.3", 1, 1.0, there, told, group or GroupSeen("Dead", 0, ALL))


def changed(key: str, **changes: Any) -> Survey:
    """That cluster with one topic changed: its fields, or its settings (names with a dot)."""
    keys = ("events", "items", "recommendations", "dead_letters", "drift")
    found = dict(zip(keys, seen().topics.values(), strict=True))[key]
    configs = found.configs | {name: value for name, value in changes.items() if "." in name}
    fields = {name: value for name, value in changes.items() if "." not in name}
    return seen(**{key: dataclasses.replace(found, **({"configs": configs} | fields))})


def only(findings: Sequence[Finding], level: Level) -> Finding:
    """The one finding of this level."""
    (found,) = [finding for finding in findings if finding.level is level]
    return found


def troubles(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is not Level.OK]


def test_a_cluster_where_all_is_well_gives_no_trouble() -> None:
    findings = judge_cluster(seen(), SAVED)
    assert troubles(findings) == []
    assert {finding.about for finding in findings} >= {"broker", "group afresh", "topic events"}


ABSENT = {"exists": False, "error": "UnknownTopicOrPartitionError"}
UNSEEN = {"exists": None, "error": "TopicAuthorizationFailedError", "rights": None}


@pytest.mark.parametrize(
    ("key", "changes", "level", "told"),
    [
        ("events", {"rights": frozenset({"DESCRIBE"})}, "fault", "READ is refused.*Read --topic events$"),
        ("recommendations", {"rights": frozenset({"READ"})}, "fault", "WRITE is refused.*--operation Write"),
        ("drift", UNSEEN, "fault", "refuses to describe it.*User:shop' --operation Write"),
        ("items", UNSEEN, "warn", "refuses to describe it.*Read --topic items"),
        ("events", ABSENT, "fault", "nothing to learn from.*--create-topics.*--create --topic events"),
        ("items", ABSENT, "warn", "no item can be withdrawn.*cleanup.policy=compact"),
        ("drift", ABSENT, "warn", "afresh run makes it.*--topic events.drift"),
        ("drift", ABSENT | {"rights": frozenset()}, "fault", "CREATE is refused.*let somebody run"),
        ("drift", {"error": "Odd"}, "fault", "can't be described: Odd.*log"),
        ("events", {"leaderless": (1, 3)}, "fault", "without a leader: 1, 3.*start the brokers"),
        ("events", {"cleanup.policy": "compact"}, "fault", "but the newest event.*cleanup.policy=delete"),
        ("dead_letters", {"cleanup.policy": "compact"}, "fault", "stops the service.*cleanup.policy=delete"),
        ("recommendations", {"cleanup.policy": "delete"}, "warn", "lost after 7 days.*policy=compact"),
        ("items", {"cleanup.policy": "delete"}, "warn", "withdrawals are forgotten.*policy=compact"),
        ("events", {"retention.ms": "30000"}, "fault", "before the next checkpoint.*retention.ms="),
        ("events", {"retention.ms": "3600000"}, "warn", r"\(1 h\): a worker that is down.*=604800000"),
        ("events", {"retention.bytes": "9"}, "warn", "a burst.*retention.bytes=-1"),
        ("dead_letters", {"max.message.bytes": "1048588"}, "warn", "first 65,536 bytes can.*bytes=12582912"),
        ("drift", {"min.insync.replicas": "2"}, "fault", "nothing can be written.*bring brokers back"),
        ("drift", {"replicas": 3, "in_sync": 3}, "warn", "by one broker alone.*min.insync.replicas=2"),
        ("events", {"configs": {}}, "warn", "may not be read.*--operation DescribeConfigs --topic events"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_topic_is_told_with_what_to_do(
    key: str, changes: dict[str, Any], level: str, told: str
) -> None:
    (trouble,) = troubles(judge_cluster(changed(key, **changes), SAVED))
    assert trouble.level == level
    assert re.search(told, f"{trouble.found} -> {trouble.to_do}")


def test_an_events_topic_that_is_missing_is_guessed_from_those_that_are_there() -> None:
    missing = TopicSeen("events", False, ALL, "E")
    cluster = seen(events=missing, other=TopicSeen("shop-events", True, ALL, "", 4, (), 1, 1, GOOD))
    assert "there is shop-events" in only(judge_cluster(cluster, SAVED), Level.FAULT).to_do


def test_one_replica_matters_where_there_are_more_brokers() -> None:
    alone = seen()
    several = dataclasses.replace(alone, brokers=3)
    assert {finding.found[:11] for finding in troubles(judge_cluster(several, SAVED))} == {"one replica"}


def test_events_topics_with_different_numbers_of_partitions_are_told() -> None:
    settings = msgspec.structs.replace(SAVED, topics=TopicsConfig(events=["events", "more"]))
    found = only(
        judge_cluster(seen(more=TopicSeen("more", True, ALL, "", 6, (), 1, 1, GOOD)), settings), Level.WARN
    )
    assert "events has 4, more has 6" in found.found
    assert "--topic events --partitions 6" in found.to_do


@pytest.mark.parametrize(
    ("group", "found"),
    [
        (GroupSeen("", 0, None, "GroupAuthorizationFailedError"), "refuses to describe it"),
        (GroupSeen("Dead", 0, frozenset({"DESCRIBE"})), "READ is refused"),
    ],
)
def test_a_group_that_may_not_be_joined_names_the_missing_acl(group: GroupSeen, found: str) -> None:
    trouble = only(judge_cluster(seen(group), SAVED), Level.FAULT)
    assert found in trouble.found
    assert trouble.to_do.endswith("--allow-principal 'User:shop' --operation Read --group afresh")


def test_a_transactional_id_is_looked_at_where_transactions_are_on() -> None:
    alone = seen()
    refused = Survey(
        "4.3", 1, 1.0, alone.names, alone.topics, alone.group, "TransactionalIdAuthorizationFailed"
    )
    assert troubles(judge_cluster(refused, SAVED)) == []
    kafka = msgspec.structs.replace(SAVED.kafka, transactions=True)
    trouble = only(judge_cluster(refused, msgspec.structs.replace(SAVED, kafka=kafka)), Level.FAULT)
    assert trouble.to_do.endswith("--operation Write --transactional-id afresh-worker-0")


def event(
    user: str, partition: int, offset: int = 0, key: bytes | None = b"", **fields: object
) -> MemoryRecord:
    """A record of an event; `key` b"": the user's id."""
    value = json.dumps({"user_id": user, "item_id": "i", "timestamp_ms": NOW_MS} | fields).encode()
    return MemoryRecord("events", partition, offset, NOW_MS, user.encode() if key == b"" else key, value)


def placed(user: str, partitions: int = 4) -> MemoryRecord:
    return event(user, key_hash(user.encode()) % partitions)


def test_events_whose_keys_are_user_ids_where_murmur2_puts_them_give_no_trouble() -> None:
    records = [placed(f"u{number}") for number in range(40)]
    findings = judge_records("events", 4, records, Settings(), NOW_MS)
    assert troubles(findings) == []
    assert findings[0].found == "the newest 40 records decode"
    assert any(finding.found == "click 40 (positive)" for finding in findings)


@pytest.mark.parametrize(
    ("records", "level", "found", "to_do"),
    [
        ([event("ann", 0), event("ann", 1), placed("bob")], "fault", "'ann' in 0, 1", "the same partitioner"),
        ([event("ann", 2, key=None), placed("bob")], "warn", "1 of 2 events without a key", "as key"),
        ([event("ann", 2, key=b"s1")], "warn", "key 's1' of user 'ann'", "key events by user id"),
        ([event("ann", 1), placed("bob")], "warn", "'ann' in partition 1, expected 2", "one partitioner"),
    ],
)
def test_keys_that_scatter_a_user_are_told_with_an_example(
    records: list[MemoryRecord], level: str, found: str, to_do: str
) -> None:
    findings = troubles(judge_records("events", 4, records, Settings(), NOW_MS))
    (trouble,) = [each for each in findings if found in each.found]
    assert trouble.level == level
    assert to_do in trouble.to_do


def test_another_partitioner_is_named_and_one_partition_needs_none() -> None:
    records = [event(f"u{number}", zlib.crc32(f"u{number}".encode()) % 4) for number in range(20)]
    assert (
        "placed by crc32" in only(judge_records("events", 4, records, Settings(), NOW_MS), Level.WARN).found
    )
    alone = [record._replace(partition=0, key=None) for record in records]
    assert troubles(judge_records("events", 1, alone, Settings(), NOW_MS)) == []


def raw(value: bytes) -> MemoryRecord:
    return MemoryRecord("events", 0, 7, NOW_MS, b"ann", value)


@pytest.mark.parametrize(
    ("value", "reason", "to_do"),
    [
        (b'{"userId":"ann","sku":1}', "missing_field: 1", '"userId" and events.fields.item_id = "sku":'),
        (b'{"p":{"user_id":"a"},"item_id":"i"}', "missing_field", 'set events.fields.user_id = "p.user_id":'),
        (b'{"user_id":"a","item_id":"i","timestamp_ms":1700000000}', "bad_time", 'events.time_unit = "s"'),
        (b'{"user_id":"a","item_id":"i","timestamp_ms":"2023-11-14T22:13:20Z"}', "wrong_type", '"auto"'),
        (b'{"shopper":{"nr":7,"id":"ann"},"item_id":"i"}', "missing_field", 'user_id = "shopper.id":'),
        (b'{"shopper":{"nr":7},"item_id":"i"}', "missing_field", 'user_id = "$key":'),
        (b"not json", "not_json: 1, such as events-0 offset 7", "mend the producer"),
    ],
)  # fmt: skip
def test_records_that_do_not_decode_are_told_by_reason_with_the_setting_that_helps(
    value: bytes, reason: str, to_do: str
) -> None:
    whole, example, *_ = troubles(judge_records("events", 1, [raw(value)], Settings(), NOW_MS))
    assert (whole.level, example.level) == (Level.FAULT, Level.FAULT)
    assert (
        "1 of the newest 1 record would be dead letters, more than limits.max_dead_letter_ratio"
        in whole.found
    )
    assert example.found.startswith(reason)
    assert to_do in example.to_do


def test_a_few_bad_records_are_a_warning_and_the_example_s_setting_makes_them_readable() -> None:
    records = [placed("ann"), raw(b"{}")]
    lenient = Settings(limits=LimitsConfig(max_dead_letter_ratio=0.6))
    assert {each.level for each in troubles(judge_records("events", 1, records, lenient, NOW_MS))} == {
        Level.WARN
    }
    mapped = Settings(events=EventsConfig(fields={"user_id": "userId", "item_id": "sku"}))
    good = judge_records("events", 1, [raw(b'{"userId":"ann","sku":1,"shop":2}')], mapped, NOW_MS)
    assert troubles(good) == []
    fields = next(each.found for each in good if each.about == "fields of events")
    assert fields.startswith("read: userId, sku; not there: event_type, ")
    assert fields.endswith("not read: shop (events.fields can name them)")


def test_records_of_several_events_and_records_to_ignore_are_counted_as_records() -> None:
    events = EventsConfig(fields={"item_id": "lines[].sku"}, roles={"look": "ignore"})
    records = [
        raw(b'{"user_id":"ann","lines":[{"sku":1},{"sku":2},{"sku":3}]}'),
        raw(b'{"event_type":"look"}'),
        raw(b'{"user_id":"ann","lines":[{"sku":1},{}]}'),
    ]
    found = judge_records("events", 4, records, Settings(events=events), NOW_MS)
    assert "1 of the newest 3 records would be dead letters" in found[0].found
    (fine, *_) = judge_records("events", 4, records[:2], Settings(events=events), NOW_MS)
    assert fine.found == "the newest 2 records decode, 1 of them to be ignored"


def test_events_older_than_what_is_remembered_are_a_warning() -> None:
    limits = LimitsConfig(user_ttl_days=10, item_ttl_days=20)
    old, new = (event("ann", 2, timestamp_ms=NOW_MS - days * DAY_MS) for days in (11, 9))
    found = only(judge_records("events", 4, [old, old, new], Settings(limits=limits), NOW_MS), Level.WARN)
    assert found.found.startswith("2 of the newest 3 events are older than limits.user_ttl_days = 10: their")
    assert found.to_do.endswith("--set limits.user_ttl_days=0")
    assert troubles(judge_records("events", 4, [old, new], Settings(limits=limits), NOW_MS)) == []
    assert troubles(judge_records("events", 4, [old, old], Settings(), NOW_MS)) == []


def test_an_empty_topic_is_a_warning() -> None:
    assert "no record yet" in only(judge_records("events", 4, [], Settings(), NOW_MS), Level.WARN).found


def test_another_owner_of_an_import_name_is_a_fault() -> None:
    root = Path(cli.__file__).parents[2]
    (fine,) = import_names({"pipeline": ["afresh"], "consumers": ["Afresh"]}, root)
    assert (fine.level, fine.about) == (Level.OK, "import names")
    (trouble,) = import_names({"consumers": ["afresh", "acme-bus"]}, root)
    assert trouble.level is Level.FAULT
    assert "import name consumers: is installed by acme-bus too" in f"{trouble.about}: {trouble.found}"
    assert "pip uninstall acme-bus" in trouble.to_do


def test_a_package_that_hides_ours_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "producers").mkdir()
    (tmp_path / "producers" / "__init__.py").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "producers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    trouble = only(list(import_names({}, Path(cli.__file__).parents[2])), Level.FAULT)
    assert trouble.about == "import name producers"
    assert f"comes from {tmp_path}" in trouble.found


def on_disk(folder: Path) -> Settings:
    return Settings(checkpoint=CheckpointConfig(path=str(folder), journal=str(folder)))


def test_a_checkpoint_folder_is_looked_at_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    findings = list(checkpoint(on_disk(folder), running=False))
    assert troubles(findings) == []
    assert "will be made" in findings[0].found
    assert "starts anew" in findings[1].found
    assert list(tmp_path.iterdir()) == []
    assert "nothing survives" in only(list(checkpoint(Settings(), running=False)), Level.WARN).found
    file = tmp_path / "file"
    file.touch()
    assert "is no folder" in troubles(list(checkpoint(on_disk(file / "state"), running=False)))[0].found


def test_a_checkpoint_that_has_learned_more_than_the_topic_holds_is_a_fault(tmp_path: Path) -> None:
    log = MemoryLog()
    settings = settings_for(tmp_path)
    assert learned_offsets(settings) == {}
    publish(log, ["ann", "bob", "ann"])
    worker = Worker(log, settings)
    worker.loop.start()
    worker.finish()
    worker.loop.checkpoint()
    worker.kill()
    learned = learned_offsets(settings)
    assert list(judge_places("events", {0: 3}, learned)) == []
    assert list(judge_places("others", {0: 0}, learned)) == []
    one = only(list(judge_places("events", {0: 2}, learned)), Level.FAULT)
    assert "offset 3 of partition 0, which ends at 2: the topic was made anew" in one.found


def test_a_checkpoint_that_is_damaged_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "worker-0").mkdir()
    (tmp_path / "worker-0" / "manifest-000000000007.json").write_text("{")
    trouble = only(list(checkpoint(on_disk(tmp_path), running=False)), Level.FAULT)
    assert "all 1 checkpoints of worker worker-0 are damaged" in trouble.found


def test_a_port_that_is_taken_is_a_fault_unless_our_own_worker_has_it(tmp_path: Path) -> None:
    settings = on_disk(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "can't be taken" in only(list(port(address, worker_runs(settings))), Level.FAULT).found
        (tmp_path / "worker-0").mkdir()
        with (tmp_path / "worker-0" / "journal.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert worker_runs(settings)
            assert troubles(list(port(address, running=True))) == []
            told = [finding.found for finding in checkpoint(settings, running=True)]
        assert not worker_runs(settings)
    assert "a process runs as worker-0: the journal is locked by it" in told
    assert next(port(address, running=False)).found == "is free"


def test_on_a_terminal_commands_stay_on_one_line_and_markup_is_text() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=60)
    command = "kafka-topics.sh --create " + "x" * 80
    findings = [ok("broker", "[red]there[/]"), warn("topic items", "does not exist", command)]
    for part in on_terminal(findings):
        console.print(part, soft_wrap=isinstance(part, Text))
    shown = stream.getvalue()
    assert "[red]there[/]" in shown
    assert f"\ntopic items: {command}\n" in shown
    assert shown.endswith("\nno fault, 1 warning: afresh run can start\n")


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = cli.main(["check", *args, "--set", "metrics.address=", "--log-level", "error"])
    return code, capsys.readouterr().out


def test_without_a_broker_this_machine_is_looked_at_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFRESH_KAFKA__OPTIONS__SSL_PASSWORD", "hunter2")
    code, out = run(
        capsys, "--set", "kafka.bootstrap_servers=127.0.0.1:1", "--set", "kafka.start_timeout_s=0.3"
    )
    assert code == 2
    lines = out.splitlines()
    assert 'kafka.bootstrap_servers = "127.0.0.1:1"  (--set)' in lines
    assert any(line.startswith("ok     import names: ") for line in lines)
    assert lines[-2].startswith(
        "fault  broker: no broker answered at kafka.bootstrap_servers = '127.0.0.1:1'"
    )
    assert lines[-1] == "1 fault, 1 warning: mend the faults first"
    assert "hunter2" not in out
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        _, out = run(capsys, "--set", f"kafka.bootstrap_servers=127.0.0.1:{other.getsockname()[1]}")
    assert "Something takes connections at 127.0.0.1:" in out


@pytest.mark.kafka
def test_topics_are_created_on_request_alone(
    embedded_broker: str, topic_name: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    roles = ("events", "items", "recommendations", "dead_letters", "drift")
    names = {role: topic_name(role) for role in roles}
    events = names["events"]
    make_topic(embedded_broker, events, 3)
    producer = KafkaProducer(bootstrap_servers=embedded_broker)
    for number in range(30):
        value = msgspec.json.encode({"user_id": f"u{number}", "item_id": "i"})
        producer.send(events, key=f"u{number}".encode(), value=value)
    producer.send(events, key=b"u1", value=b"{").get(10)
    producer.close()
    sets = [f"topics.{role}={name}" for role, name in names.items() if role != "events"]
    sets += [f'topics.events=["{events}"]', f"kafka.bootstrap_servers={embedded_broker}"]
    options = [word for text in sets for word in ("--set", text)]

    code, out = run(capsys, *options, "--json")
    report = json.loads(out.splitlines()[-1])
    assert (code, report["faults"]) == (0, 0)
    told = {check["about"]: check for check in report["checks"]}
    assert told[f"topic {names['drift']}"]["level"] == "warn"
    assert told[f"keys of {events}"]["level"] == "ok"
    assert "not_json: 1" in told[f"records of {events}"]["found"]
    assert report["configuration"]["topics.drift"] == {"value": f'"{names["drift"]}"', "origin": "--set"}
    assert report["configuration"]["rank.k"] == {"value": "10", "origin": "default"}
    admin = KafkaAdminClient(bootstrap_servers=embedded_broker)
    assert not set(admin.list_topics()) & (set(names.values()) - {events})

    code, out = run(capsys, *options, "--create-topics")
    assert code == 0
    assert f"ok     topic {names['recommendations']}: 3 partitions, compacted" in out
    assert f"ok     records of {names['items']}: no record yet" in out
    assert set(admin.list_topics()) >= set(names.values())
    admin.close()


@pytest.mark.kafka
def test_a_survey_joins_no_group(embedded_broker: str, topic_name: Callable[[str], str]) -> None:
    group = topic_name("group")
    found = survey(config(embedded_broker, group), [topic_name("absent")], f"{group}-worker-0")
    assert (found.group.members, found.group.error, found.transactional_id) == (0, "", "")
    assert [topic.exists for topic in found.topics.values()] == [False]
    assert found.latency_ms > 0
    admin = KafkaAdminClient(bootstrap_servers=embedded_broker)
    assert group not in {each["group_id"] for each in admin.list_groups()}
    admin.close()


def test_a_field_that_is_mapped_twice_is_an_error() -> None:
    settings = Settings(events=EventsConfig(fields={"item_id": "user_id"}))
    with pytest.raises(UsageError, match="user_id and item_id are both read from 'user_id'"):
        judge_records("events", 4, [placed("ann")], settings, NOW_MS)
