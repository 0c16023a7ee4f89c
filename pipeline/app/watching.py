"""Rankings and drift alarms as they are published, for `afresh watch`."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import msgspec

from consumers.kafka.topic import TopicReader
from pipeline.app.demo.progress import alarm_text
from pipeline.app.text import moment, plain
from pipeline.events.batch import Record
from pipeline.events.checks import unreadable
from pipeline.events.records import DEFAULT_USER, DriftAlarm, Ranking
from pipeline.settings import Settings
from producers.kafka.records import key_hash

logger = logging.getLogger(__name__)

LINE_ITEMS = 5  # of a list on one line
Format = Callable[[Record], str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is printed: no users means all; `everything`: first what the topics hold."""

    users: Sequence[str] = ()
    everything: bool = False
    drift: bool = False
    as_json: bool = False


def watch(settings: Settings, wanted: Wanted, opened: Callable[[], None]) -> Generator[str]:
    """Yield a line for each list that is published, without end. Call `opened` once connected.

    Of named users the newest list on the topic comes first. Raise `UsageError` when no broker answers or a
    topic does not exist, `BrokerLost` when the broker is lost for `kafka.broker_timeout_s`.
    """
    keys = [user.encode() for user in wanted.users]
    form: Format = json_line if wanted.as_json else long_text if keys else short_text
    kafka, topics = settings.kafka, settings.topics
    start: Literal["earliest", "end"] = "earliest" if wanted.everything else "end"
    with ExitStack() as stack:
        pick = (lambda count: {key_hash(key) % count for key in keys}) if keys else None
        lists = TopicReader(kafka, topics.recommendations, "earliest" if keys else start, pick)
        stack.enter_context(lists)
        alarms = stack.enter_context(TopicReader(kafka, topics.drift, start)) if wanted.drift else None
        opened()
        if keys and not wanted.everything:
            yield from _formatted(_newest(lists, keys), form)
        while True:
            yield from _formatted((each for each in lists.poll() if not keys or each.key in keys), form)
            if alarms is not None:
                yield from _formatted(alarms.poll(), json_line if wanted.as_json else alarm_line)


def short_text(record: Record) -> str:
    """Return a list on one line."""
    if record.value is None:
        return f"{moment(record.timestamp)} {_user(record)} is forgotten"
    ranking = msgspec.json.decode(record.value, type=Ranking)
    items = ", ".join(f"{plain(item.item_id)} {item.score:.2f}" for item in ranking.items[:LINE_ITEMS])
    more = len(ranking.items) - LINE_ITEMS
    suffix = f", +{more}" if more > 0 else ""
    return f"{moment(ranking.generated_at_ms)} {_user(record)}: {items or 'nothing'}{suffix}"


def long_text(record: Record) -> str:
    """Return a list with a line for each place and its reasons."""
    if record.value is None:
        return short_text(record)
    ranking = msgspec.json.decode(record.value, type=Ranking)
    model = f"{plain(ranking.model)} {ranking.model_version:,}"
    lines = [f"{moment(ranking.generated_at_ms)} {_user(record)}: {len(ranking.items)} items, {model}"]
    width = max((len(plain(item.item_id)) for item in ranking.items), default=0)
    for place, item in enumerate(ranking.items, 1):
        because = f"  because of {', '.join(map(plain, item.because))}" if item.because else ""
        lines.append(f"  {place:>3} {plain(item.item_id):<{width}} {item.score:>8.2f}{because}")
    return "\n".join(lines)


def alarm_line(record: Record) -> str:
    """Return a drift alarm on one line."""
    alarm = msgspec.json.decode(record.value or b"", type=DriftAlarm)
    return f"{moment(alarm.detected_at_ms)} {alarm_text(alarm, None)}"


def json_line(record: Record) -> str:
    """Return a record's JSON on one line; of a tombstone `{"user_id", "forgotten", "forgotten_at_ms"}`."""
    if record.value is not None:
        return msgspec.json.format(record.value, indent=-1).decode()
    user = (record.key or b"").decode()
    tombstone = {"user_id": user, "forgotten": True, "forgotten_at_ms": record.timestamp}
    return msgspec.json.encode(tombstone).decode()


def _newest(reader: TopicReader, keys: Sequence[bytes]) -> list[Record]:
    """Return the newest record of each key, in the order of the keys; log which has none."""
    newest = {record.key: record for record in reader.existing() if record.key in keys}
    for key in keys:
        if key not in newest:
            logger.info("%s has no list yet; waiting for one", plain(key.decode()))
    return [newest[key] for key in keys if key in newest]


def _formatted(records: Iterable[Record], form: Format) -> Iterator[str]:
    for record in records:
        if problem := unreadable(record):
            logger.warning("%s-%d: %s", record.topic, record.partition, problem.detail)
            continue
        try:
            yield form(record)
        except (msgspec.MsgspecError, ValueError) as error:
            place = f"{record.topic}-{record.partition} offset {record.offset}"
            logger.warning("%s was not written by afresh, and is skipped: %s", place, error)


def _user(record: Record) -> str:
    user = (record.key or b"").decode()
    return f"{user} (users without events)" if user == DEFAULT_USER else plain(user)
