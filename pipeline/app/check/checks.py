"""Run every check, the cheap ones first, and continue where one can't be made."""

from collections.abc import Callable, Iterator

from consumers.kafka.survey import Survey, TopicSeen, listening, survey
from consumers.kafka.topic import TopicReader
from pipeline.app.check.cluster import check_cluster, lacks, partitions_wanted, topic_uses, transactional_id
from pipeline.app.check.findings import Finding, fault, ok, warn
from pipeline.app.check.machine import check_machine, checkpoint_offsets
from pipeline.app.check.records import check_items, check_offsets, check_records
from pipeline.app.config_rules import Origins
from pipeline.errors import AfreshError, UsageError
from pipeline.settings import Settings
from producers.kafka.topics import create_topics

SAMPLE_RECORDS = 1_000  # the newest of each events topic, and of the items topic
SAMPLE_WAIT_S = 5.0


def all_findings(
    settings: Settings, origins: Origins, create: bool, now_ms: Callable[[], int]
) -> Iterator[Finding]:
    """Yield every finding as soon as it is made. `create` creates missing topics; else nothing is changed."""
    yield from check_machine(settings, origins)
    names = [use.name for use in topic_uses(settings)]
    try:
        seen = survey(settings.kafka, names, transactional_id(settings.kafka))
        if create:
            yield _created(seen, settings)
            seen = survey(settings.kafka, names, transactional_id(settings.kafka))
    except AfreshError as error:
        yield _no_broker(error, settings)
        return
    yield from check_cluster(seen, settings)
    for name in (*settings.topics.event_topics(), settings.topics.items):
        topic = seen.topics[name]
        if topic.exists and not topic.error and not lacks("READ", topic.rights):
            try:
                yield from _records(topic, settings, now_ms)
            except AfreshError as error:  # a fault where `afresh run` would end with it
                make = fault if isinstance(error, UsageError) else warn
                yield make(f"records of {name}", f"can't be read: {error}", "fix that, and check again")


def _created(seen: Survey, settings: Settings) -> Finding:
    """Create missing topics, with as many partitions as the existing events topics have."""
    try:
        created = create_topics(settings.kafka, settings.topics, partitions_wanted(seen, settings))
    except AfreshError as error:
        return fault("creating topics", str(error), "let an administrator create them, or grant CREATE")
    return ok("creating topics", f"created {', '.join(created)}" if created else "all exist")


def _no_broker(error: AfreshError, settings: Settings) -> Finding:
    addresses = listening(settings.kafka)
    if not addresses:
        return fault("broker", str(error), "then check again: topics and records were not checked")
    return fault(
        "broker",
        f"{error}. Something accepts connections at {', '.join(addresses)}, but does not answer as "
        f"kafka.security_protocol = {settings.kafka.security_protocol} expects",
        "check the protocol, user name and password, and that this is a Kafka port",
    )


def _records(topic: TopicSeen, settings: Settings, now_ms: Callable[[], int]) -> Iterator[Finding]:
    with TopicReader(settings.kafka, topic.name, SAMPLE_RECORDS) as reader:
        records, ends = list(reader.existing(SAMPLE_WAIT_S)), reader.ends
    if topic.name == settings.topics.items:
        yield from check_items(topic.name, records, settings)
    else:
        yield from check_offsets(topic.name, ends, checkpoint_offsets(settings))
        yield from check_records(topic.name, topic.partitions, records, settings, now_ms())
