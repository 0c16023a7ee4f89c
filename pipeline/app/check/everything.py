"""Run every check of `afresh check`, the cheap ones first, and go on where one can't be made."""

from collections.abc import Callable, Iterator

from consumers.kafka.survey import Survey, listening, survey
from consumers.kafka.topic import TopicReader
from pipeline.app.check.cluster import (
    judge_cluster,
    lacks,
    partitions_wanted,
    transactional_id,
    uses,
)
from pipeline.app.check.findings import Finding, fault, numbered, ok, warn
from pipeline.app.check.here import judge_machine, learned_offsets
from pipeline.app.check.items import judge_items
from pipeline.app.check.records import judge_places, judge_records
from pipeline.app.config_rules import Origins
from pipeline.errors import AfreshError, UsageError
from pipeline.events.checks import unreadable
from pipeline.settings import Settings
from producers.kafka.topics import create_topics

SAMPLE = 1_000  # of the newest records of each events topic, and of the items topic
SAMPLE_WAIT_S = 5.0


def all_findings(
    settings: Settings, origins: Origins, create: bool, now_ms: Callable[[], int]
) -> Iterator[Finding]:
    """Yield every finding as it is made. `create`: make the topics that don't exist; else nothing is changed
    anywhere."""
    yield from judge_machine(settings, origins)
    names = [use.name for use in uses(settings)]
    try:
        seen = survey(settings.kafka, names, transactional_id(settings.kafka))
        if create:
            yield _created(seen, settings)
            seen = survey(settings.kafka, names, transactional_id(settings.kafka))
    except AfreshError as error:
        yield _no_broker(error, settings)
        return
    yield from judge_cluster(seen, settings)
    for name in settings.topics.event_topics():
        topic = seen.topics[name]
        if topic.exists and not topic.error and not lacks("READ", topic.rights):
            yield from _records(name, topic.partitions, settings, now_ms)
    topic = seen.topics[settings.topics.items]
    if topic.exists and not topic.error and not lacks("READ", topic.rights):
        yield from _items(topic.name, settings)


def _created(seen: Survey, settings: Settings) -> Finding:
    """Create what is missing, the events topics with as many partitions as those that are there."""
    try:
        created = create_topics(settings.kafka, settings.topics, partitions_wanted(seen, settings))
    except AfreshError as error:
        return fault("creating topics", str(error), "let somebody who may create them, or grant CREATE")
    return ok("creating topics", f"created {', '.join(created)}" if created else "all were there")


def _no_broker(error: AfreshError, settings: Settings) -> Finding:
    there = listening(settings.kafka)
    if not there:
        return fault("broker", str(error), "then check again: topics and records could not be looked at")
    return fault(
        "broker",
        f"{error}. Something takes connections at {', '.join(there)}, but does not answer as "
        f"kafka.security_protocol = {settings.kafka.security_protocol} expects",
        "check the protocol, user name and password, and that this is a Kafka port",
    )


def _records(name: str, partitions: int, settings: Settings, now_ms: Callable[[], int]) -> Iterator[Finding]:
    try:
        with TopicReader(settings.kafka, name, SAMPLE) as tail:
            yield from judge_places(name, tail.ends, learned_offsets(settings))
            records = list(tail.existing(SAMPLE_WAIT_S))
        yield from judge_records(name, partitions, records, settings, now_ms())
    except AfreshError as error:
        yield _unread(name, error)


def _items(name: str, settings: Settings) -> Iterator[Finding]:
    """Read the newest records of the items topic and yield what is found in them."""
    try:
        with TopicReader(settings.kafka, name, SAMPLE) as tail:
            records = list(tail.existing(SAMPLE_WAIT_S))
    except AfreshError as error:
        yield _unread(name, error)
        return
    problems = [problem for record in records if (problem := unreadable(record))]
    for problem in problems[:1]:
        found = f"{numbered(len(problems), 'batch')} of the newest can't be read, such as: {problem.detail}"
        yield warn(f"records of {name}", found, "publish what these items are again")
    yield from judge_items(name, [record for record in records if not unreadable(record)], settings)


def _unread(name: str, error: AfreshError) -> Finding:
    """Return the finding of a topic that can't be read: a fault where `afresh run` would end with it."""
    make = fault if isinstance(error, UsageError) else warn
    return make(f"records of {name}", f"could not be looked at: {error}", "mend that, and check again")
