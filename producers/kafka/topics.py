"""The topics that afresh reads and writes, and how to create them."""

from collections.abc import Iterable
from dataclasses import dataclass

from kafka.errors import KafkaError, TopicAlreadyExistsError

from consumers.kafka.client import brief, open_admin, translated
from pipeline.errors import AfreshError, UsageError
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import MAX_REQUEST_BYTES


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to be created; -1 leaves a number to the broker."""

    name: str
    partitions: int
    configs: dict[str, str]


def wanted_topics(topics: TopicsConfig, partitions: int = -1) -> list[NewTopic]:
    """Every topic of the configuration with what it needs; `partitions` is for events and recommendations.

    >>> [topic.name for topic in wanted_topics(TopicsConfig()) if "compact" in topic.configs.values()]
    ['items', 'recommendations']
    """
    compact = {"cleanup.policy": "compact"}
    delete = {"cleanup.policy": "delete"}
    return [
        *(NewTopic(name, partitions, delete) for name in topics.event_topics()),
        NewTopic(topics.items, 1, compact),
        NewTopic(topics.recommendations, partitions, compact),
        # a dead letter is a record that the broker took once, and headers: it must fit again
        NewTopic(topics.dead_letters, 1, delete | {"max.message.bytes": str(MAX_REQUEST_BYTES)}),
        NewTopic(topics.drift, 1, delete),
    ]


def create_topics(
    kafka: KafkaConfig, topics: TopicsConfig, partitions: int = -1, replication: int = -1
) -> list[str]:
    """Create the topics that don't exist; return their names. Those that exist stay as they are.

    Raise `UsageError` when no broker answers or it refuses.
    """
    admin = open_admin(kafka)
    created = []
    try:
        for topic in wanted_topics(topics, partitions):
            spec = {
                "num_partitions": topic.partitions,
                "replication_factor": replication,
                "configs": topic.configs,
            }
            try:
                admin.create_topics({topic.name: spec})
            except TopicAlreadyExistsError:
                continue
            created.append(topic.name)
        admin.wait_for_topics(created)
    except KafkaError as error:
        raise translated(error, "creating topics") from error
    finally:
        admin.close()
    return created


def ensure_topics(kafka: KafkaConfig, topics: TopicsConfig) -> list[str]:
    """Create what the service lacks, with the broker's own numbers of partitions and replicas; return the
    names of what was created.

    Raise `UsageError` when no broker answers, or when it refuses: the message says what to create.
    """
    needed = (*topics.event_topics(), topics.recommendations, topics.dead_letters, topics.drift)
    absent = missing_topics(kafka, needed)
    if not absent:
        return []
    try:
        return create_topics(kafka, topics)
    except AfreshError as error:
        names = ", ".join(map(repr, absent))
        kind = f" ({topics.recommendations!r} with cleanup.policy=compact)"
        raise UsageError(
            f"missing on {kafka.bootstrap_servers}: topics {names}, and creating them failed: "
            f"{brief(error.__cause__ or error)}. Create them"
            f"{kind if topics.recommendations in absent else ''}, or correct the names in the table [topics]"
        ) from error


def missing_topics(kafka: KafkaConfig, names: Iterable[str]) -> list[str]:
    """Return those of the topics that don't exist. Raise `UsageError` when no broker answers."""
    admin = open_admin(kafka)
    try:
        existing = set(admin.list_topics())
    except KafkaError as error:
        raise translated(error, "listing topics") from error
    finally:
        admin.close()
    return [name for name in names if name not in existing]


def expect_topics(kafka: KafkaConfig, topics: TopicsConfig) -> None:
    """Raise `UsageError` when a topic that is written to doesn't exist, or no broker answers."""
    absent = missing_topics(kafka, (topics.recommendations, topics.dead_letters, topics.drift))
    if absent:
        raise UsageError(
            f"topic {absent[0]!r} does not exist on {kafka.bootstrap_servers}: expected the topics of "
            "[topics]; create it, or correct the name"
        )
