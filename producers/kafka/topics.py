"""The topics that afresh reads and writes, and how to create them."""

from collections.abc import Sequence
from dataclasses import dataclass

from kafka.errors import TopicAlreadyExistsError

from consumers.kafka.client import brief, open_admin
from pipeline.errors import AfreshError, UsageError
from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import MAX_REQUEST_BYTES


@dataclass(frozen=True, slots=True)
class NewTopic:
    """A topic to create; -1 partitions: the broker's default."""

    name: str
    partitions: int
    configs: dict[str, str]


def wanted_topics(topics: TopicsConfig, partitions: int = -1) -> list[NewTopic]:
    """Return every configured topic; `partitions` applies to events and recommendations.

    >>> [topic.name for topic in wanted_topics(TopicsConfig()) if "compact" in topic.configs.values()]
    ['items', 'recommendations']
    """
    compact = {"cleanup.policy": "compact"}
    delete = {"cleanup.policy": "delete"}
    return [
        *(NewTopic(name, partitions, delete) for name in topics.event_topics()),
        NewTopic(topics.items, 1, compact),
        NewTopic(topics.recommendations, partitions, compact),
        # a dead letter is a record that the broker once took, plus headers
        NewTopic(topics.dead_letters, 1, delete | {"max.message.bytes": str(MAX_REQUEST_BYTES)}),
        NewTopic(topics.drift, 1, delete),
    ]


def create_topics(
    kafka: KafkaConfig, topics: TopicsConfig, partitions: int = -1, replication: int = -1
) -> list[str]:
    """Create the topics that don't exist and return their names; existing topics are not changed.

    Raise `UsageError` when no broker answers or it rejects the request.
    """
    created = []
    with open_admin(kafka, "creating topics") as admin:
        for topic in wanted_topics(topics, partitions):
            spec = {"num_partitions": topic.partitions, "replication_factor": replication}
            try:
                admin.create_topics({topic.name: spec | {"configs": topic.configs}})
            except TopicAlreadyExistsError:
                continue
            created.append(topic.name)
        admin.wait_for_topics(created)
    return created


def ensure_topics(kafka: KafkaConfig, topics: TopicsConfig, needed: Sequence[str] = ()) -> list[str]:
    """Create the configured topics with the broker's defaults if a needed one is missing; return their names.

    `needed`: by default all that the service reads or writes. Raise `UsageError` when no broker answers or it
    rejects the request; the message names what to create.
    """
    service = (*topics.event_topics(), topics.recommendations, topics.dead_letters, topics.drift)
    with open_admin(kafka, "listing topics") as admin:
        existing = set(admin.list_topics())
    missing = [name for name in needed or service if name not in existing]
    if not missing:
        return []
    try:
        return create_topics(kafka, topics)
    except AfreshError as error:
        names = ", ".join(map(repr, missing))
        is_compacted = topics.recommendations in missing
        compacted = f" ({topics.recommendations!r} with cleanup.policy=compact)" if is_compacted else ""
        raise UsageError(
            f"missing on {kafka.bootstrap_servers}: topics {names}, and creating them failed: "
            f"{brief(error.__cause__ or error)}. Create them{compacted}, or correct the table [topics]"
        ) from error
