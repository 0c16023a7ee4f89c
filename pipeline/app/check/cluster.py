"""Check a cluster, our rights in it and its topics: pure functions of a `consumers.kafka.survey`."""

from collections.abc import Iterator
from typing import NamedTuple

from consumers.kafka.survey import Rights, Survey, TopicSeen
from pipeline.app.check.findings import Finding, fault, numbered, ok, warn
from pipeline.settings import KafkaConfig, Settings
from pipeline.state.positions import DAY_MS
from producers.kafka.client import transaction_options

LOOK_AT_LOG = "look at the broker's log, and try again"
WRONG_POLICY = {  # of each key of [topics]: the policy that it needs, and what the other one does
    "events": ("delete", "only the newest event of a key is kept, and a crash can't be recovered from"),
    "dead_letters": ("delete", "the broker rejects a dead letter without a key, which stops the service"),
    "recommendations": ("compact", "rankings of inactive users are deleted"),
    "items": ("compact", "withdrawals are deleted"),
}
CREATE = "afresh check --create-topics"
MISSING = {  # what a missing topic means, and what to do
    "events": ("there is nothing to learn from", f"correct topics.events, or {CREATE}"),
    "items": ("no item can be withdrawn", CREATE),
}


class TopicUse(NamedTuple):
    """A topic of the configuration, and how the service uses it."""

    key: str  # of [topics]
    name: str
    right: str  # the operation that the service needs


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
    kafka = settings.kafka
    login = kafka.security_protocol + (f" as {kafka.sasl_username}" if kafka.sasl_username else "")
    yield ok("broker", f"{kafka.bootstrap_servers} ({login}), Kafka {seen.version}")
    yield _group(seen, kafka)
    if name := transactional_id(kafka):
        if seen.transactional_id:
            acl = _allow(kafka, "Write", f"--transactional-id {name}")
            yield fault(f"transactional id {name}", "can't be used: the broker denies DESCRIBE", acl)
        else:
            yield ok(f"transactional id {name}", "DESCRIBE allowed (the broker does not report WRITE)")
    for use in topic_uses(settings):
        yield from _topic(use, seen.topics[use.name], settings)


def _group(seen: Survey, kafka: KafkaConfig) -> Finding:
    about, acl = f"group {kafka.group_id}", _allow(kafka, "Read", f"--group {kafka.group_id}")
    if "Authorization" in seen.group.error:
        return fault(about, "can't be joined: the broker denies DESCRIBE", acl)
    if seen.group.error:
        return fault(about, f"can't be described: {seen.group.error}", LOOK_AT_LOG)
    if lacks("READ", seen.group.rights):
        return fault(about, "can't be joined: READ is denied", acl)
    return ok(about, _allowed("READ", seen.group.rights))


def _topic(use: TopicUse, topic: TopicSeen, settings: Settings) -> Iterator[Finding]:
    about = f"topic {use.name}"
    acl = _allow(settings.kafka, use.right.title(), f"--topic {use.name}")
    if topic.exists is None:
        make = warn if use.key == "items" else fault  # the service runs without it
        yield make(about, "the broker denies DESCRIBE: the topic may exist or not", acl)
    elif not topic.exists:
        yield _missing(use, topic)
    elif topic.error:
        yield fault(about, f"can't be described: {topic.error}", LOOK_AT_LOG)
    else:
        if lacks(use.right, topic.rights):
            yield fault(about, f"exists, but {use.right} is denied", acl)
        problems = [*_replicas(use, topic), *_configs(use, topic, settings)]
        yield from problems or [ok(about, _summary(use, topic))]


def _missing(use: TopicUse, topic: TopicSeen) -> Finding:
    about = f"topic {use.name}"
    if use.key not in MISSING and lacks("CREATE", topic.rights):
        return fault(about, "does not exist, and CREATE is denied", f"let an administrator run {CREATE}")
    default = "afresh run creates it, with the broker's numbers of partitions and replicas", CREATE
    effect, to_do = MISSING.get(use.key, default)
    return (fault if use.key == "events" else warn)(about, f"does not exist: {effect}", to_do)


def _replicas(use: TopicUse, topic: TopicSeen) -> Iterator[Finding]:
    about, min_isr = f"topic {topic.name}", topic.whole("min.insync.replicas")
    if topic.leaderless:
        partitions = ", ".join(map(str, topic.leaderless))
        yield fault(about, f"partitions without a leader: {partitions}", "start the brokers that hold them")
    if min_isr is not None and use.right == "WRITE" and topic.in_sync < min_isr:
        found = f"{topic.in_sync} replicas in sync, min.insync.replicas = {min_isr}: nothing can be written"
        yield fault(about, found, "start more brokers, or lower min.insync.replicas")


def _configs(use: TopicUse, topic: TopicSeen, settings: Settings) -> Iterator[Finding]:
    about, kafka = f"topic {topic.name}", settings.kafka
    if not topic.configs:
        acl = _allow(kafka, "DescribeConfigs", f"--topic {topic.name}")
        yield warn(about, "its configuration can't be read, and is not checked", acl)
        return
    policy = topic.configs.get("cleanup.policy", "")
    wanted, effect = WRONG_POLICY.get(use.key, ("", ""))
    if wanted and ("compact" in policy) != (wanted == "compact"):
        make = warn if wanted == "compact" else fault
        fix = _alter(kafka, topic.name, f"cleanup.policy={wanted}")
        yield make(about, f"cleanup.policy = {policy}: {effect}", fix)
    kept_ms, interval_ms = topic.whole("retention.ms"), settings.checkpoint.interval_s * 1000
    if use.key != "events" or not settings.checkpoint.path or kept_ms is None or kept_ms < 0:
        return
    if kept_ms < max(DAY_MS, settings.checkpoint.keep * interval_ms):
        make, effect = warn, "a worker down for longer can't resume"
        if kept_ms <= interval_ms:
            make, effect = fault, "events are deleted before the next checkpoint: see checkpoint.interval_s"
        fix = _alter(kafka, topic.name, f"retention.ms={7 * DAY_MS}")
        yield make(about, f"retention.ms = {kept_ms}: {effect}", fix)


def _summary(use: TopicUse, topic: TopicSeen) -> str:
    compacted = ["compacted"] if topic.configs.get("cleanup.policy") == "compact" else []
    return ", ".join([numbered(topic.partitions, "partition"), *compacted, _allowed(use.right, topic.rights)])


def lacks(operation: str, rights: Rights) -> bool:
    """Return whether the broker reports our rights without this operation."""
    return rights is not None and operation not in rights


def _allowed(operation: str, rights: Rights) -> str:
    return "rights not reported" if rights is None else f"{operation} allowed"


def transactional_id(kafka: KafkaConfig) -> str:
    """Return the transactional id of this worker; "" without transactions."""
    return str(transaction_options(kafka)["transactional_id"]) if kafka.transactions else ""


def partitions_wanted(seen: Survey, settings: Settings) -> int:
    """Return the number of partitions of new topics: that of the events topics; -1: the broker's default."""
    return max((seen.topics[name].partitions for name in settings.topics.event_topics()), default=0) or -1


def _alter(kafka: KafkaConfig, topic: str, config: str) -> str:
    arguments = f"--alter --entity-type topics --entity-name {topic} --add-config {config}"
    return _command(kafka, "configs", arguments)


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
