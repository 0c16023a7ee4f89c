"""`afresh check`: the findings about a cluster, records and this machine, and the fixes that they name."""

import dataclasses
import json
import re
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from consumers.kafka.survey import GroupSeen, Rights, Survey, TopicSeen
from consumers.memory import MemoryRecord
from pipeline.app.check.cluster import check_cluster
from pipeline.app.check.findings import Finding, Level, as_line, ok, show, warn
from pipeline.app.check.records import check_records
from pipeline.errors import UsageError
from pipeline.settings import (
    CheckpointConfig,
    EventsConfig,
    KafkaConfig,
    LimitsConfig,
    Settings,
)
from producers.kafka.records import key_hash

TOPICS = ("events", "items", "recommendations", "dead_letters", "drift")
NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
ALL: Rights = frozenset({"READ", "WRITE", "CREATE", "DESCRIBE"})
GOOD = {"cleanup.policy": "delete", "min.insync.replicas": "1", "retention.ms": str(7 * DAY_MS)}
COMPACT = GOOD | {"cleanup.policy": "compact"}
SAVED = Settings(
    kafka=KafkaConfig(
        security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="shop", sasl_password="x"
    ),
    checkpoint=CheckpointConfig(path="/state"),
)


def seen(group: GroupSeen | None = None, **topics: TopicSeen) -> Survey:
    """A cluster without problems, but for the topics given (by their key in [topics])."""
    by_key = {
        "events": TopicSeen("events", True, ALL, "", 4, (), 1, GOOD),
        "items": TopicSeen("items", True, ALL, "", 1, (), 1, COMPACT),
        "recommendations": TopicSeen("recommendations", True, ALL, "", 4, (), 1, COMPACT),
        "dead_letters": TopicSeen("events.dead-letter", True, ALL, "", 1, (), 1, GOOD),
        "drift": TopicSeen("events.drift", True, ALL, "", 1, (), 1, GOOD),
    } | topics
    by_name = {topic.name: topic for topic in by_key.values()}
    return Survey("4.3", by_name, group or GroupSeen(ALL))


def changed(key: str, **changes: Any) -> Survey:
    """That cluster with one topic changed: its fields, or its configs (names with a dot)."""
    topic = dict(zip(TOPICS, seen().topics.values(), strict=True))[key]
    configs = topic.configs | {name: value for name, value in changes.items() if "." in name}
    fields = {name: value for name, value in changes.items() if "." not in name}
    return seen(**{key: dataclasses.replace(topic, **({"configs": configs} | fields))})


def problems(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level is not Level.OK]


def only(findings: Iterable[Finding], level: Level) -> Finding:
    """The one problem, of this level."""
    (found,) = problems(findings)
    assert found.level is level
    return found


def test_a_cluster_without_problems_has_only_good_findings() -> None:
    findings = list(check_cluster(seen(), SAVED))
    assert problems(findings) == []
    assert {finding.about for finding in findings} >= {"broker", "group afresh", "topic events"}


ABSENT = {"exists": False, "error": "UnknownTopicOrPartitionError"}
UNSEEN = {"exists": None, "error": "TopicAuthorizationFailedError", "rights": None}
DENIED = GroupSeen(None, "GroupAuthorizationFailedError")
ACL = "--allow-principal 'User:shop' --operation Read --group afresh$"


@pytest.mark.parametrize(
    ("cluster", "level", "words"),
    [
        (changed("events", rights=frozenset({"DESCRIBE"})), "fault", "READ is denied.*Read --topic events$"),
        (changed("recommendations", rights=frozenset()), "fault", "WRITE is denied.*--operation Write"),
        (changed("events", **ABSENT), "fault", "nothing to learn.*--create-topics"),
        (changed("drift", **UNSEEN), "fault", "denies DESCRIBE.*User:shop' --operation Write"),
        (changed("items", **UNSEEN), "warn", "denies DESCRIBE.*Read --topic items"),
        (changed("items", **ABSENT), "warn", "no item can be withdrawn.*--create-topics"),
        (changed("drift", **ABSENT), "warn", "afresh run creates it.*--create-topics"),
        (changed("drift", **(ABSENT | {"rights": frozenset()})), "fault", "CREATE is denied.*administrator"),
        (changed("drift", error="Odd"), "fault", "can't be described: Odd.*log"),
        (changed("events", leaderless=(1, 3)), "fault", "without a leader: 1, 3.*start the brokers"),
        (changed("events", **{"cleanup.policy": "compact"}), "fault", "only the newest event.*policy=delete"),
        (changed("dead_letters", **{"cleanup.policy": "compact"}), "fault", "stops the service.*y=delete"),
        (
            changed("recommendations", **{"cleanup.policy": "delete"}),
            "warn",
            "inactive.*policy=compact",
        ),
        (changed("items", **{"cleanup.policy": "delete"}), "warn", "withdrawals are.*policy=compact"),
        (changed("events", **{"retention.ms": "30000"}), "fault", "before the next checkpoint.*ion.ms="),
        (changed("events", **{"retention.ms": "3600000"}), "warn", "3600000: a worker down.*=604800000"),
        (changed("drift", **{"min.insync.replicas": "2"}), "fault", "nothing can be written.*more brokers"),
        (changed("events", configs={}), "warn", "can't be read.*DescribeConfigs --topic events"),
        (seen(DENIED), "fault", f"denies DESCRIBE.*{ACL}"),
        (seen(GroupSeen(frozenset({"DESCRIBE"}))), "fault", f"READ is denied.*{ACL}"),
    ],
)
def test_a_problem_of_a_cluster_is_reported_with_its_fix(cluster: Survey, level: str, words: str) -> None:
    (problem,) = problems(check_cluster(cluster, SAVED))
    assert problem.level == level
    assert re.search(words, f"{problem.found} -> {problem.to_do}")


def test_a_transactional_id_is_checked_where_transactions_are_on() -> None:
    denied = dataclasses.replace(seen(), transactional_id="TransactionalIdAuthorizationFailed")
    assert problems(check_cluster(denied, SAVED)) == []
    kafka = msgspec.structs.replace(SAVED.kafka, transactions=True)
    problem = only(check_cluster(denied, msgspec.structs.replace(SAVED, kafka=kafka)), Level.FAULT)
    assert problem.to_do.endswith("--operation Write --transactional-id afresh-worker-0")


def event(user: str, partition: int, key: bytes | None = b"", **fields: object) -> MemoryRecord:
    """A record of an event; `key` b"": the user's id."""
    value = json.dumps({"user_id": user, "item_id": "i", "timestamp_ms": NOW_MS} | fields).encode()
    return MemoryRecord("events", partition, 0, NOW_MS, user.encode() if key == b"" else key, value)


def placed(user: str, partitions: int = 4) -> MemoryRecord:
    return event(user, key_hash(user.encode()) % partitions)


def raw(value: bytes) -> MemoryRecord:
    return MemoryRecord("events", 0, 7, NOW_MS, b"ann", value)


def checked(records: list[MemoryRecord], partitions: int = 4, **tables: Any) -> list[Finding]:
    return list(check_records("events", partitions, records, Settings(**tables), NOW_MS))


def test_events_keyed_by_user_id_in_the_partitions_of_murmur2_have_no_problem() -> None:
    findings = checked([placed(f"u{number}") for number in range(40)])
    assert problems(findings) == []
    assert findings[0].found == "the newest 40 records decode"
    assert any(finding.found == "click 40 (positive)" for finding in findings)


BY_CRC32 = [event(user, zlib.crc32(user.encode()) % 4) for user in map("u{}".format, range(20))]
OLD, NEW = (event("ann", 2, timestamp_ms=NOW_MS - days * DAY_MS) for days in (11, 9))
LIMITS = LimitsConfig(user_ttl_days=10, item_ttl_days=20)


@pytest.mark.parametrize(
    ("records", "level", "words"),
    [
        ([], "warn", "no record yet.*afresh replay"),
        ([event("ann", 0), event("ann", 1)], "fault", "'ann' in 0, 1: .*the same partitioner"),
        ([event("ann", 2, key=None), placed("bob")], "warn", "1 of 2 events without a key.*as key"),
        ([event("ann", 2, key=b"s1")], "warn", "key 's1' of user 'ann'.*key events by user id"),
        ([event("ann", 1), placed("bob")], "warn", "'ann' in partition 1, expected 2.*use murmur2 in all"),
        (BY_CRC32, "warn", "partitioned by crc32"),
        ([OLD, OLD, NEW], "warn", "2 of the newest 3 .*user_ttl_days = 10: .*--set limits.user_ttl_days=0$"),
    ],
)
def test_a_problem_of_keys_or_times_is_reported(records: list[MemoryRecord], level: str, words: str) -> None:
    found = [each for each in problems(checked(records, limits=LIMITS)) if re.search(words, as_line(each))]
    assert [problem.level for problem in found] == [level]


def test_one_partition_needs_no_keys_and_few_old_events_are_no_problem() -> None:
    alone = [placed(f"u{number}")._replace(partition=0, key=None) for number in range(20)]
    assert problems(checked(alone, partitions=1)) == []
    assert problems(checked([OLD, NEW], limits=LIMITS)) == []
    assert problems(checked([OLD, OLD])) == []


@pytest.mark.parametrize(
    ("value", "reason", "to_do"),
    [
        (b'{"userId":"ann","sku":1}', "missing_field: 1", '"userId" and events.fields.item_id = "sku":'),
        (b'{"p":{"user_id":"a"},"item_id":"i"}', "missing_field", 'set events.fields.user_id = "p.user_id":'),
        (b'{"user_id":"a","item_id":"i","timestamp_ms":1700000000}', "bad_time", 'events.time_unit = "s"'),
        (b'{"user_id":"a","item_id":"i","timestamp_ms":"2023-11-14T22:13:20Z"}', "wrong_type", '"auto"'),
        (b'{"shopper":{"nr":7},"item_id":"i"}', "missing_field", 'user_id = "$key":'),
        (b"not json", "not_json: 1, such as events-0 offset 7", "fix the producer"),
    ],
)  # fmt: skip
def test_records_that_do_not_decode_have_a_setting(value: bytes, reason: str, to_do: str) -> None:
    whole, example, *_ = problems(checked([raw(value)], partitions=1))
    assert (whole.level, example.level) == (Level.FAULT, Level.FAULT)
    assert "1 of the newest 1 record would be dead letters, more than limits.max_dead" in whole.found
    assert example.found.startswith(reason)
    assert to_do in example.to_do


def test_a_few_bad_records_are_a_warning_and_mapped_records_have_no_problem() -> None:
    lenient = LimitsConfig(max_dead_letter_ratio=0.6)
    found = problems(checked([placed("ann"), raw(b"{}")], partitions=1, limits=lenient))
    assert {each.level for each in found} == {Level.WARN}
    mapped = EventsConfig(fields={"user_id": "userId", "item_id": "sku"})
    good = checked([raw(b'{"userId":"ann","sku":1,"shop":2}')], partitions=1, events=mapped)
    assert problems(good) == []
    fields = next(each.found for each in good if each.about == "fields of events")
    assert fields.startswith("read: userId, sku; absent: event_type, ")
    assert fields.endswith("not read: shop (events.fields can name them)")


def test_records_of_several_events_and_ignored_records_are_counted_as_records() -> None:
    events = EventsConfig(fields={"item_id": "lines[].sku"}, roles={"look": "ignore"})
    values = [b'{"user_id":"ann","lines":[{"sku":1},{"sku":2},{"sku":3}]}', b'{"event_type":"look"}']
    records = [*map(raw, values), raw(b'{"user_id":"ann","lines":[{"sku":1},{}]}')]
    assert "1 of the newest 3 records would be dead letters" in checked(records, events=events)[0].found
    (fine, *_) = checked(records[:2], events=events)
    assert fine.found == "the newest 2 records decode, 1 of them are ignored"


def test_a_field_mapped_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match="user_id and item_id are both read from 'user_id'"):
        checked([placed("ann")], events=EventsConfig(fields={"item_id": "user_id"}))


def test_on_a_terminal_a_finding_stays_on_one_line_and_markup_is_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "60")):
        monkeypatch.setenv(name, value)
    command = "kafka-topics.sh --create " + "x" * 80
    show([ok("broker", "[red]there[/]"), warn("topic items", "does not exist", command)], Settings(), {})
    assert capsys.readouterr().out == (
        "\x1b[32mok\x1b[0m     broker: [red]there[/]\n"
        f"\x1b[33mwarn\x1b[0m   topic items: does not exist -> {command}\n"
        "\x1b[32m0 faults, 1 warning: afresh run can start\x1b[0m\n"
    )
