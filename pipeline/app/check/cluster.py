"""Check a cluster, our rights in it and its topics: pure functions of a `consumers.kafka.survey`."""

import difflib
from collections.abc import Iterator
from typing import NamedTuple

from consumers.kafka.survey import Rights, Survey, TopicSeen
from pipeline.app.check.findings import Finding, fault, numbered, ok, warn
from pipeline.settings import KafkaConfig, Settings
from pipeline.state.positions import DAY_MS
from producers.kafka.client import MAX_REQUEST_BYTES, transaction_options
from producers.kafka.records import TRUNCATED_BYTES
from producers.kafka.topics import wanted_topics

HEADERS_BYTES = 2_048  # a dead letter has more of them than its record
SLOW_MS = 50.0  # every batch takes three round trips: fetch, publish and commit
LOOK_AT_LOG = "look at the broker's log, and try again"


class TopicUse(NamedTuple):
    """A topic of the configuration, and how the service uses it."""

    key: str  # of [topics]
    name: str
    right: str  # the operation that the service needs


COMPACTED = ("items", "recommendations")  # the other topics delete old records
POLICY_EFFECTS = {  # of the wrong cleanup policy
    "events": "only the newest event of a key is kept, and a crash can't be recovered from",
    "dead_letters": "the broker rejects a dead letter without a key, which stops the service",
    "recommendations": "rankings of inactive users are deleted",
    "items": "withdrawals are deleted",
}


def topic_uses(settings: Settings) -> list[TopicUse]:
    """Return every topic of the configuration, the events topics first."""
    topics = settings.topics
    return [
        *(TopicUse("events", name, "READ") for name in topics.event_topics()),
        TopicUse("items", topics.items, "READ"),
        TopicUse("recommendations", topics.recommendations, "WRITE"),
        TopicUse("dead_letters", topics.dead_letters, "WRITE"),
        TopicUse("drift", topics.drift, "WRITE"),
    ]


def check_cluster(seen: Survey, settings: Settings) -> Iterator[Finding]:
    """Yield the findings about a cluster that answers."""
    yield _broker(seen, settings.kafka)
    yield _group(seen, settings.kafka)
    yield from _transactions(seen, settings.kafka)
    for use in topic_uses(settings):
        yield from _topic(use, seen, settings)
    yield from _partition_counts(seen, settings)


def _broker(seen: Survey, kafka: KafkaConfig) -> Finding:
    login = kafka.security_protocol + (f" as {kafka.sasl_username}" if kafka.sasl_username else "")
    nodes = "" if seen.brokers is None else f", {numbered(seen.brokers, 'broker')}"
    found = f"{kafka.bootstrap_servers} ({login}), Kafka {seen.version}{nodes}"
    found += f", answers in {seen.latency_ms:.1f} ms"
    if seen.latency_ms > SLOW_MS:
        return warn("broker", found, "run the worker closer to the broker: a batch takes several round trips")
    return ok("broker", found)


def _group(seen: Survey, kafka: KafkaConfig) -> Finding:
    about, group = f"group {kafka.group_id}", seen.group
    acl = _allow(kafka, "Read", f"--group {kafka.group_id}")
    if "Authorization" in group.error:
        return fault(about, "can't be joined: the broker denies DESCRIBE", acl)
    if group.error:
        return fault(about, f"can't be described: {group.error}", LOOK_AT_LOG)
    if lacks("READ", group.rights):
        return fault(about, "can't be joined: READ is denied", acl)
    state = f", {group.state.lower()}" if group.members else ""
    return ok(about, f"{numbered(group.members, 'member')}{state}, {_allowed('READ', group.rights)}")


def _transactions(seen: Survey, kafka: KafkaConfig) -> Iterator[Finding]:
    name = transactional_id(kafka)
    if name and seen.transactional_id:
        acl = _allow(kafka, "Write", f"--transactional-id {name}")
        yield fault(f"transactional id {name}", "can't be used: the broker denies DESCRIBE", acl)
    elif name:
        yield ok(f"transactional id {name}", "DESCRIBE allowed (the broker does not report WRITE)")


def _topic(use: TopicUse, seen: Survey, settings: Settings) -> Iterator[Finding]:
    about, topic = f"topic {use.name}", seen.topics[use.name]
    acl = _allow(settings.kafka, use.right.title(), f"--topic {use.name}")
    if topic.exists is None:
        make = warn if use.key == "items" else fault  # the service runs without it
        yield make(about, "the broker denies DESCRIBE: the topic may exist or not", acl)
    elif not topic.exists:
        yield _missing(use, seen, settings)
    elif topic.error:
        yield fault(about, f"can't be described: {topic.error}", LOOK_AT_LOG)
    else:
        if lacks(use.right, topic.rights):
            yield fault(about, f"exists, but {use.right} is denied", acl)
        problems = [*_replicas(use, topic, seen), *_configs(use, topic, seen, settings)]
        yield from problems or [ok(about, _summary(use, topic))]


def _missing(use: TopicUse, seen: Survey, settings: Settings) -> Finding:
    about = f"topic {use.name}"
    create = f"afresh check --create-topics, or: {_create_command(use, seen, settings)}"
    if use.key == "events":
        others = {*seen.names} - {each.name for each in topic_uses(settings)}
        similar = ", ".join(difflib.get_close_matches(use.name, sorted(others), 3, 0.4))
        correct = "correct topics.events" + (f" (there is {similar})" if similar else "")
        return fault(about, "does not exist: there is nothing to learn from", f"{correct}, or {create}")
    if use.key == "items":
        return warn(about, "does not exist: no item can be withdrawn", create)
    if lacks("CREATE", seen.topics[use.name].rights):
        return fault(about, "does not exist, and CREATE is denied", f"let an administrator run: {create}")
    found = "does not exist; afresh run creates it, with the broker's numbers of partitions and replicas"
    return warn(about, found, create)


def _replicas(use: TopicUse, topic: TopicSeen, seen: Survey) -> Iterator[Finding]:
    about, min_isr = f"topic {topic.name}", topic.whole("min.insync.replicas")
    if topic.leaderless:
        partitions = ", ".join(map(str, topic.leaderless))
        yield fault(about, f"partitions without a leader: {partitions}", "start the brokers that hold them")
    if min_isr is not None and use.right == "WRITE" and topic.in_sync < min_isr:
        found = f"{topic.in_sync} replicas in sync, min.insync.replicas = {min_isr}: nothing can be written"
        yield fault(about, found, "start more brokers, or lower min.insync.replicas")
    elif topic.replicas == 1 and (seen.brokers or 1) > 1:
        found = f"one replica on a cluster of {seen.brokers} brokers: it is lost with that broker"
        yield warn(about, found, "raise the replication factor with kafka-reassign-partitions.sh")
    elif topic.replicas > 2 and min_isr == 1 and use.right == "WRITE":
        found = f"{topic.replicas} replicas, but min.insync.replicas = 1: one broker alone acknowledges"
        yield warn(about, found, "set min.insync.replicas=2")


def _configs(use: TopicUse, topic: TopicSeen, seen: Survey, settings: Settings) -> Iterator[Finding]:
    about, policy = f"topic {topic.name}", topic.configs.get("cleanup.policy", "")
    if not topic.configs:
        acl = _allow(settings.kafka, "DescribeConfigs", f"--topic {topic.name}")
        yield warn(about, "its configuration can't be read, and is not checked", acl)
        return
    compacted = use.key in COMPACTED
    if use.key in POLICY_EFFECTS and ("compact" in policy) != compacted:
        after = f" after {_duration(topic.whole('retention.ms'))}" if compacted else ""
        make, wanted = (warn, "compact") if compacted else (fault, "delete")
        found = f"cleanup.policy = {policy}: {POLICY_EFFECTS[use.key]}{after}"
        yield make(about, found, _alter(settings.kafka, topic.name, f"cleanup.policy={wanted}"))
    if use.key == "events":
        yield from _retention(topic, settings)
    if use.key == "dead_letters":
        yield from _message_size(topic, seen, settings)


def _retention(topic: TopicSeen, settings: Settings) -> Iterator[Finding]:
    """Compare the retention of events with what a restart needs."""
    about, checkpoint = f"topic {topic.name}", settings.checkpoint
    if not checkpoint.path:
        return
    kept_ms, kept_bytes = topic.whole("retention.ms"), topic.whole("retention.bytes")
    interval_ms = checkpoint.interval_s * 1000
    if kept_ms is not None and 0 <= kept_ms < max(DAY_MS, checkpoint.keep * interval_ms):
        make, effect = warn, "a worker down for longer can't resume"
        if kept_ms <= interval_ms:
            make, effect = fault, "events are deleted before the next checkpoint: see checkpoint.interval_s"
        fix = _alter(settings.kafka, topic.name, f"retention.ms={7 * DAY_MS}")
        yield make(about, f"retention.ms = {kept_ms} ({_duration(kept_ms)}): {effect}", fix)
    if kept_bytes is not None and kept_bytes >= 0:
        found = f"retention.bytes = {kept_bytes}: a burst may delete events before they are learned"
        yield warn(about, found, _alter(settings.kafka, topic.name, "retention.bytes=-1"))


def _message_size(topic: TopicSeen, seen: Survey, settings: Settings) -> Iterator[Finding]:
    """Yield a warning where the dead-letter topic does not accept every record that an events topic does."""
    sizes = (seen.topics[name].whole("max.message.bytes") or 0 for name in settings.topics.event_topics())
    limit, needed = topic.whole("max.message.bytes"), max(sizes, default=0) + HEADERS_BYTES
    if limit is not None and limit < needed:
        found = (
            f"max.message.bytes = {limit}: of a bad event of the largest size only its first "
            f"{TRUNCATED_BYTES[0]:,} bytes are kept"
        )
        fix = f"max.message.bytes={max(MAX_REQUEST_BYTES, needed)}"
        yield warn(f"topic {topic.name}", found, _alter(settings.kafka, topic.name, fix))


def _partition_counts(seen: Survey, settings: Settings) -> Iterator[Finding]:
    """Yield a warning where the events topics have different numbers of partitions."""
    topics = (seen.topics[name] for name in settings.topics.event_topics())
    counts = {topic.name: topic.partitions for topic in topics if topic.partitions}
    if len({*counts.values()}) > 1:
        smallest, most = min(counts, key=counts.__getitem__), max(counts.values())
        found = ", ".join(f"{name} has {count}" for name, count in counts.items())
        alter = _command(settings.kafka, "topics", f"--alter --topic {smallest} --partitions {most}")
        yield warn(
            "partitions of the events topics",
            f"{found}: a user's events lie in partitions of different numbers, and may go to several workers",
            f"give all the same number: {alter} (moves keys: do it before the first checkpoint)",
        )


def _summary(use: TopicUse, topic: TopicSeen) -> str:
    parts, configs = [numbered(topic.partitions, "partition")], topic.configs
    if "cleanup.policy" in configs:
        kept = f"kept for {_duration(topic.whole('retention.ms'))}"
        parts.append("compacted" if configs["cleanup.policy"] == "compact" else kept)
    if use.key == "events" and configs.get("message.timestamp.type"):
        parts.append(configs["message.timestamp.type"])
    return ", ".join([*parts, _allowed(use.right, topic.rights)])


def lacks(operation: str, rights: Rights) -> bool:
    """Return whether the broker reports our rights without this operation."""
    return rights is not None and operation not in rights


def _allowed(operation: str, rights: Rights) -> str:
    return "rights not reported" if rights is None else f"{operation} allowed"


def _duration(milliseconds: int | None) -> str:
    """Return a duration in words.

    >>> _duration(604_800_000), _duration(5_400_000), _duration(-1)
    ('7 days', '1.5 h', 'ever')
    """
    if milliseconds is None or milliseconds < 0:
        return "ever"
    hours = milliseconds / 3_600_000
    return f"{hours / 24:.4g} days" if hours >= 24 else f"{hours:.3g} h"


def transactional_id(kafka: KafkaConfig) -> str:
    """Return the transactional id of this worker; "" without transactions."""
    return str(transaction_options(kafka)["transactional_id"]) if kafka.transactions else ""


def partitions_wanted(seen: Survey, settings: Settings) -> int:
    """Return the number of partitions of new topics: that of the events topics; -1: the broker's default."""
    return max((seen.topics[name].partitions for name in settings.topics.event_topics()), default=0) or -1


def _create_command(use: TopicUse, seen: Survey, settings: Settings) -> str:
    wanted = wanted_topics(settings.topics, partitions_wanted(seen, settings))
    topic = next(topic for topic in wanted if topic.name == use.name)
    partitions = "" if topic.partitions < 0 else f" --partitions {topic.partitions}"
    configs = "".join(f" --config {key}={value}" for key, value in topic.configs.items())
    return _command(settings.kafka, "topics", f"--create --topic {topic.name}{partitions}{configs}")


def _alter(kafka: KafkaConfig, topic: str, config: str) -> str:
    return _command(
        kafka, "configs", f"--alter --entity-type topics --entity-name {topic} --add-config {config}"
    )


def _allow(kafka: KafkaConfig, operation: str, resource: str) -> str:
    principal = f"--allow-principal 'User:{kafka.sasl_username or '<yours>'}'"
    return _command(kafka, "acls", f"--add {principal} --operation {operation} {resource}")


def _command(kafka: KafkaConfig, tool: str, arguments: str) -> str:
    """Return a call of one of Kafka's own tools, ready to be copied.

    >>> _command(KafkaConfig(security_protocol="SSL"), "topics", "--list")
    'kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --command-config admin.properties --list'
    """
    login = "" if kafka.security_protocol == "PLAINTEXT" else " --command-config admin.properties"
    return f"kafka-{tool}.sh --bootstrap-server {kafka.bootstrap_servers}{login} {arguments}"
