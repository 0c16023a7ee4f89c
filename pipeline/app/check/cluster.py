"""Judge a cluster, our rights in it and its topics: pure functions over what `consumers.kafka.survey` saw."""

import difflib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from consumers.kafka.survey import Rights, Survey, TopicSeen
from pipeline.app.check.findings import Finding, fault, ok, warn
from pipeline.app.check.kafka_tools import acl_command, configs_command, create_command, tool
from pipeline.settings import KafkaConfig, Settings
from producers.kafka.client import MAX_REQUEST_BYTES, transaction_options
from producers.kafka.records import TRUNCATED_BYTES
from producers.kafka.topics import wanted_topics

DAY_MS = 86_400_000
HEADERS_BYTES = 2_048  # that a dead letter has more than its record
SLOW_MS = 50.0  # a round trip beyond it is felt in every batch: fetch, publish and commit each take one


class Use(NamedTuple):
    """A topic of the configuration, and what the service does with it."""

    key: str  # of [topics]
    name: str
    right: str  # the operation that the service needs
    needed: bool  # False: the service does without


def uses(settings: Settings) -> list[Use]:
    """Return every topic of the configuration, the events topics first."""
    topics = settings.topics
    return [
        *(Use("events", name, "READ", True) for name in topics.event_topics()),
        Use("items", topics.items, "READ", False),
        Use("recommendations", topics.recommendations, "WRITE", True),
        Use("dead_letters", topics.dead_letters, "WRITE", True),
        Use("drift", topics.drift, "WRITE", True),
    ]


def judge_cluster(seen: Survey, settings: Settings) -> list[Finding]:
    """Return the findings about a cluster that answers."""
    return [
        _broker(seen, settings.kafka),
        *_group(seen, settings.kafka),
        *_transactions(seen, settings.kafka),
        *(finding for use in uses(settings) for finding in _topic(use, seen, settings)),
        *_together(seen, settings),
    ]


def _broker(seen: Survey, kafka: KafkaConfig) -> Finding:
    how = f"{kafka.security_protocol}" + (f" as {kafka.sasl_username}" if kafka.sasl_username else "")
    nodes = "" if seen.brokers is None else f", {seen.brokers} broker{'' if seen.brokers == 1 else 's'}"
    text = (
        f"{kafka.bootstrap_servers} ({how}) answers in {seen.latency_ms:.1f} ms; "
        f"speaks Kafka {seen.version}{nodes}"
    )
    if seen.latency_ms > SLOW_MS:
        return warn("broker", text, "run the worker closer to the broker: each batch takes several trips")
    return ok("broker", text)


def _group(seen: Survey, kafka: KafkaConfig) -> Iterator[Finding]:
    about, group = f"group {kafka.group_id}", seen.group
    acl = acl_command(kafka, "Read", f"--group {kafka.group_id}")
    if "Authorization" in group.error:
        yield fault(about, "may not be joined: the broker refuses to describe it", acl)
    elif group.error:
        yield fault(about, f"can't be described: {group.error}", "look at the broker's log, and try again")
    elif lacks("READ", group.rights):
        yield fault(about, "may be described, not joined: READ is refused", acl)
    else:
        members = f"{group.members} member{'' if group.members == 1 else 's'}"
        state = f", {group.state.lower()}" if group.members else ""
        allowed = "rights not told" if group.rights is None else "READ allowed"
        yield ok(about, f"{members}{state}, {allowed}")


def _transactions(seen: Survey, kafka: KafkaConfig) -> Iterator[Finding]:
    if not kafka.transactions:
        return
    name = transactional_id(kafka)
    if seen.transactional_id:
        to_do = acl_command(kafka, "Write", f"--transactional-id {name}")
        yield fault(f"transactional id {name}", "may not be described, so not used either", to_do)
    else:
        yield ok(f"transactional id {name}", "may be described (whether written, the broker doesn't tell)")


def _topic(use: Use, seen: Survey, settings: Settings) -> Iterator[Finding]:
    about, kafka, topic = f"topic {use.name}", settings.kafka, seen.topics[use.name]
    acl = acl_command(kafka, use.right.title(), f"--topic {use.name}")
    if topic.exists is None:
        found = "the broker refuses to describe it, so whether it exists isn't told"
        yield fault(about, found, acl) if use.needed else warn(about, found, acl)
    elif not topic.exists:
        yield _missing(use, seen, settings)
    elif topic.error:
        yield fault(about, f"can't be described: {topic.error}", "look at the broker's log, and try again")
    else:
        if lacks(use.right, topic.rights):
            yield fault(about, f"exists, but {use.right} is refused", acl)
        trouble = list(_settings_of(use, topic, seen, settings))
        yield from trouble
        if not trouble:
            yield ok(about, _good(use, topic))


def _missing(use: Use, seen: Survey, settings: Settings) -> Finding:
    about = f"topic {use.name}"
    create = f"afresh check --create-topics, or: {creation(use, seen, settings)}"
    if use.key == "events":
        ours = {each.name for each in uses(settings)}
        others = [name for name in seen.names if name not in ours and not name.startswith("_")]
        near = difflib.get_close_matches(use.name, others, 3, 0.4)
        found = "does not exist: there is nothing to learn from"
        if near:
            return fault(about, found, f"correct topics.events (there is {', '.join(near)}), or {create}")
        return fault(about, found, f"correct topics.events, or {create}")
    if not use.needed:
        return warn(about, "does not exist: no item can be withdrawn", create)
    if lacks("CREATE", seen.topics[use.name].rights):
        return fault(about, "does not exist, and CREATE is refused", f"let somebody run: {create}")
    text = "does not exist; afresh run makes it, with the broker's numbers of partitions and replicas"
    return warn(about, text, create)


def _settings_of(use: Use, topic: TopicSeen, seen: Survey, settings: Settings) -> Iterator[Finding]:
    """Yield what is wrong with a topic that exists."""
    kafka, about = settings.kafka, f"topic {topic.name}"
    if topic.leaderless:
        which = ", ".join(map(str, topic.leaderless))
        yield fault(about, f"partitions without a leader: {which}", "start the brokers that hold them")
    yield from _replicas(use, topic, seen)
    if not topic.configs:
        yield warn(
            about, "its settings may not be read, so they are not checked",
            acl_command(kafka, "DescribeConfigs", f"--topic {topic.name}"),
        )  # fmt: skip
        return
    policy = topic.configs.get("cleanup.policy", "")
    compacted = "compact" in policy
    if use.key in ("events", "dead_letters") and compacted:
        why = {
            "events": "all but the newest event of a key are dropped, and a crash can't be made good",
            "dead_letters": "a dead letter without a key is refused, which stops the service",
        }[use.key]
        to_do = configs_command(kafka, topic.name, "cleanup.policy=delete")
        yield fault(about, f"cleanup.policy = {policy}: {why}", to_do)
    if use.key in ("recommendations", "items") and not compacted:
        why = {
            "recommendations": "lists of people who are idle are lost",
            "items": "withdrawals are forgotten",
        }[use.key]
        to_do = configs_command(kafka, topic.name, "cleanup.policy=compact")
        yield warn(
            about, f"cleanup.policy = {policy}: {why} after {_span(topic.whole('retention.ms'))}", to_do
        )
    if use.key == "events":
        yield from _retention(topic, settings)
    if use.key == "dead_letters":
        yield from _room(topic, seen, settings)


def _replicas(use: Use, topic: TopicSeen, seen: Survey) -> Iterator[Finding]:
    about, least = f"topic {topic.name}", topic.whole("min.insync.replicas")
    if least is not None and use.right == "WRITE" and topic.in_sync < least:
        text = f"{topic.in_sync} replicas in sync, min.insync.replicas = {least}: nothing can be written"
        yield fault(about, text, "bring brokers back, or lower min.insync.replicas")
    elif topic.replicas == 1 and (seen.brokers or 1) > 1:
        text = f"one replica on a cluster of {seen.brokers} brokers: it is gone with that broker"
        yield warn(about, text, "raise the replication factor with kafka-reassign-partitions.sh")
    elif topic.replicas > 2 and least == 1 and use.right == "WRITE":
        text = f"{topic.replicas} replicas, but min.insync.replicas = 1: acknowledged by one broker alone"
        yield warn(about, text, "set min.insync.replicas=2")


def _retention(topic: TopicSeen, settings: Settings) -> Iterator[Finding]:
    """Hold the time that events are kept against what a restart needs."""
    about, checkpoint, kept_ms = f"topic {topic.name}", settings.checkpoint, topic.whole("retention.ms")
    if not checkpoint.path:
        return
    to_do = configs_command(settings.kafka, topic.name, "retention.ms=604800000")
    interval = f"checkpoint.interval_s = {checkpoint.interval_s:g}"
    if kept_ms is not None and 0 <= kept_ms <= checkpoint.interval_s * 1000:
        text = f"retention.ms = {kept_ms}, {interval}: events go before the next checkpoint has them"
        yield fault(about, text, to_do)
    elif kept_ms is not None and 0 <= kept_ms < max(DAY_MS, checkpoint.keep * checkpoint.interval_s * 1000):
        text = f"retention.ms = {kept_ms} ({_span(kept_ms)}): a worker that is down for longer can't go on"
        yield warn(about, text, to_do)
    kept_bytes = topic.whole("retention.bytes")
    if kept_bytes is not None and kept_bytes >= 0:
        text = f"retention.bytes = {kept_bytes}: a burst may take events before they are learned"
        yield warn(about, text, configs_command(settings.kafka, topic.name, "retention.bytes=-1"))


def _room(topic: TopicSeen, seen: Survey, settings: Settings) -> Iterator[Finding]:
    """Say whether every record that an events topic takes fits into the dead letters."""
    takes = [seen.topics[name].whole("max.message.bytes") or 0 for name in settings.topics.event_topics()]
    room = topic.whole("max.message.bytes")
    needed = max(takes, default=0) + HEADERS_BYTES
    if room is not None and room < needed:
        head = f"its first {TRUNCATED_BYTES[0]:,} bytes"
        text = f"max.message.bytes = {room}: of a bad event of the largest size only {head} can be kept"
        to_do = configs_command(
            settings.kafka, topic.name, f"max.message.bytes={max(MAX_REQUEST_BYTES, needed)}"
        )
        yield warn(f"topic {topic.name}", text, to_do)


def _together(seen: Survey, settings: Settings) -> Iterator[Finding]:
    """Hold the events topics against each other."""
    counts = {
        name: seen.topics[name].partitions
        for name in settings.topics.event_topics()
        if seen.topics[name].partitions
    }
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} has {count}" for name, count in counts.items())
        most = max(counts.values())
        few = next(name for name, count in counts.items() if count < most)
        yield warn(
            "partitions of the events topics",
            f"{text}: a user's events lie in partitions of different numbers, and may go to several workers",
            f"give all as many: {tool(settings.kafka, 'kafka-topics.sh')} --alter --topic {few} "
            f"--partitions {most} (moves keys: do it before there is a checkpoint)",
        )


def _good(use: Use, topic: TopicSeen) -> str:
    parts = [f"{topic.partitions} partition{'' if topic.partitions == 1 else 's'}"]
    if "cleanup.policy" in topic.configs:
        kept = _span(topic.whole("retention.ms"))
        compacted = topic.configs["cleanup.policy"] == "compact"
        parts.append("compacted" if compacted else f"kept for {kept}")
    if use.key == "events" and topic.configs.get("message.timestamp.type"):
        parts.append(topic.configs["message.timestamp.type"])
    allowed = "rights not told" if topic.rights is None else f"{use.right} allowed"
    return ", ".join([*parts, allowed])


def lacks(operation: str, rights: Rights) -> bool:
    """Say whether the broker tells our rights, and this one is not among them."""
    return rights is not None and operation not in rights


def _span(milliseconds: int | None) -> str:
    """Return a duration in words.

    >>> _span(604_800_000), _span(90_000), _span(-1)
    ('7 days', '1.5 min', 'ever')
    """
    if milliseconds is None or milliseconds < 0:
        return "ever"
    for unit, size in (("days", DAY_MS), ("h", 3_600_000), ("min", 60_000)):
        if milliseconds >= size:
            return f"{milliseconds / size:.4g} {unit}"
    return f"{milliseconds / 1000:g} s"


def transactional_id(kafka: KafkaConfig) -> str:
    """Return the transactional id that this worker uses; "" when it uses none."""
    return str(transaction_options(kafka)["transactional_id"]) if kafka.transactions else ""


def creation(use: Use, seen: Survey, settings: Settings) -> str:
    """Return the command of Kafka's own tools that creates a topic as `--create-topics` does."""
    wanted = wanted_topics(settings.topics, partitions_wanted(seen, settings))
    return create_command(settings.kafka, next(topic for topic in wanted if topic.name == use.name))


def partitions_wanted(seen: Survey, settings: Settings) -> int:
    """Return how many partitions new topics get: as many as events topics have; -1: the broker decides."""
    counts: Sequence[int] = [seen.topics[name].partitions for name in settings.topics.event_topics()]
    return max(counts, default=0) or -1
