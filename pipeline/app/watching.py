"""What `afresh watch` shows: rankings, and drift alarms, as they come on their topics."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from consumers.kafka.topic import TopicReader
from pipeline.app.demo.text import alarm_text
from pipeline.app.inspection_view import moment, plain
from pipeline.events.batch import Record
from pipeline.events.checks import unreadable
from pipeline.events.records import DEFAULT_USER, DriftAlarm, Ranking
from pipeline.settings import Settings
from producers.kafka.records import key_hash

logger = logging.getLogger(__name__)

LINE_ITEMS = 5  # of a list on one line, when everybody's lists come by
Lay = Callable[[Record], str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be shown: no users means all. `everything`: what the topics hold comes first."""

    users: Sequence[str] = ()
    everything: bool = False
    drift: bool = False
    as_json: bool = False


def watch(settings: Settings, wanted: Wanted, opened: Callable[[], None]) -> Generator[str]:
    """Yield a line for each list that is published, without end. Once connected, call `opened`.

    Of named users the newest list that the topic holds comes first. Raise `UsageError` when no broker answers
    or a topic is not there, `BrokerLost` when the broker is away for `kafka.broker_timeout_s`.
    """
    keys = [user.encode() for user in wanted.users]
    lay: Lay = json_line if wanted.as_json else in_full if keys else in_short
    topics, everything = settings.topics, wanted.everything
    with ExitStack() as stack:
        lists = TopicReader(
            settings.kafka,
            topics.recommendations,
            "earliest" if keys or everything else "end",
            (lambda count: {key_hash(key) % count for key in keys}) if keys else None,
        )
        stack.enter_context(lists)
        alarms = None
        if wanted.drift:
            alarms = TopicReader(settings.kafka, topics.drift, "earliest" if everything else "end")
            stack.enter_context(alarms)
        opened()
        if keys and not everything:
            yield from _laid_out(_newest(lists, keys), lay)
        while True:
            yield from _laid_out((each for each in lists.poll() if not keys or each.key in keys), lay)
            if alarms is not None:
                yield from _laid_out(alarms.poll(), json_line if wanted.as_json else alarm_line)


def in_short(record: Record) -> str:
    """Return a list on one line."""
    user = _user(record)
    if record.value is None:
        return f"{moment(record.timestamp)} {user} is forgotten"
    ranking = _ranking(record.value)
    items = ", ".join(f"{plain(item.item_id)} {item.score:.2f}" for item in ranking.items[:LINE_ITEMS])
    more = len(ranking.items) - LINE_ITEMS
    return f"{moment(ranking.generated_at_ms)} {user}: {items or 'nothing'}" + (f", +{more}" * (more > 0))


def in_full(record: Record) -> str:
    """Return a list with a line for each place and its reasons."""
    if record.value is None:
        return in_short(record)
    ranking = _ranking(record.value)
    lines = [
        f"{moment(ranking.generated_at_ms)} {_user(record)}: {len(ranking.items)} items, "
        f"{plain(ranking.model)} {ranking.model_version:,}"
    ]
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
    """Return a record as it lies on the topic, on one line; a tombstone as `{"user_id", "forgotten"}`."""
    if record.value is None:
        told = {
            "user_id": (record.key or b"").decode(),
            "forgotten": True,
            "forgotten_at_ms": record.timestamp,
        }
        return msgspec.json.encode(told).decode()
    return msgspec.json.format(record.value, indent=-1).decode()


def _newest(tail: TopicReader, keys: Sequence[bytes]) -> list[Record]:
    """Return the newest record of each key, in the order of the keys; say which has none."""
    newest = {record.key: record for record in tail.existing() if record.key in keys}
    for key in keys:
        if key not in newest:
            logger.info("%s has no list yet; waiting for one", plain(key.decode()))
    return [newest[key] for key in keys if key in newest]


def _laid_out(records: Iterable[Record], lay: Lay) -> Iterator[str]:
    for record in records:
        if problem := unreadable(record):
            logger.warning("%s-%d: %s", record.topic, record.partition, problem.detail)
            continue
        try:
            yield lay(record)
        except (msgspec.MsgspecError, ValueError) as error:
            where = f"{record.topic}-{record.partition} offset {record.offset}"
            logger.warning("%s is not of afresh, and left out: %s", where, error)


def _user(record: Record) -> str:
    user = (record.key or b"").decode()
    return f"{user} (people without events)" if user == DEFAULT_USER else plain(user)


def _ranking(value: bytes) -> Ranking:
    return msgspec.json.decode(value, type=Ranking)
