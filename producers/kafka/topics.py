"""The topics that afresh reads and writes, and how to create them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError

from consumers.kafka.client import brief, open_admin, translated
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
    with _admin(kafka, "creating topics") as admin:
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
    return created


def ensure_topics(kafka: KafkaConfig, topics: TopicsConfig, needed: Sequence[str] = ()) -> list[str]:
    """Create the configured topics with the broker's defaults if a needed one is missing; return their names.

    `needed`: by default all that the service reads or writes. Raise `UsageError` when no broker answers or it
    rejects the request; the message names what to create.
    """
    service = (*topics.event_topics(), topics.recommendations, topics.dead_letters, topics.drift)
    missing = missing_topics(kafka, needed or service)
    if not missing:
        return []
    try:
        return create_topics(kafka, topics)
    except AfreshError as error:
        names = ", ".join(map(repr, missing))
        compacted = f" ({topics.recommendations!r} with cleanup.policy=compact)"
        raise UsageError(
            f"missing on {kafka.bootstrap_servers}: topics {names}, and creating them failed: "
            f"{brief(error.__cause__ or error)}. Create them"
            f"{compacted if topics.recommendations in missing else ''}, or correct the names in the table "
            "[topics]"
        ) from error


def missing_topics(kafka: KafkaConfig, names: Iterable[str]) -> list[str]:
    """Return the names of topics that don't exist. Raise `UsageError` when no broker answers."""
    with _admin(kafka, "listing topics") as admin:
        existing = set(admin.list_topics())
    return [name for name in names if name not in existing]


def expect_topics(kafka: KafkaConfig, topics: TopicsConfig) -> None:
    """Raise `UsageError` when an output topic doesn't exist or no broker answers."""
    missing = missing_topics(kafka, (topics.recommendations, topics.dead_letters, topics.drift))
    if missing:
        raise UsageError(
            f"topic {missing[0]!r} does not exist on {kafka.bootstrap_servers}: expected the topics of "
            "[topics]; create it, or correct the name"
        )


@contextmanager
def _admin(kafka: KafkaConfig, doing: str) -> Iterator[KafkaAdminClient]:
    """Open an admin client; its errors become `AfreshError`s that name what was being done."""
    admin = open_admin(kafka)
    try:
        yield admin
    except KafkaError as error:
        raise translated(error, doing) from error
    finally:
        admin.close()
