"""The items topic: which items may be shown. What it says changes lists, never the lessons.

A record's key is the item's id; its value is JSON, `{"item_id": ..., "available": true}`, or nothing: a
tombstone withdraws the item. Unknown fields are ignored.
"""

from collections.abc import Iterable

import msgspec

from pipeline.event.batch import BadItem, ItemChange, ItemNews, Record, TopicPartition
from pipeline.event.checks import Problem, id_problem, shown, unreadable


class _Item(msgspec.Struct, frozen=True, gc=False):
    item_id: str | int | None = None  # a whole number is the text of its digits, as in events
    available: bool = True


_decode = msgspec.json.Decoder(_Item).decode


def item_news(records: Iterable[Record]) -> ItemNews:
    """Decode records in their order; the last word on an item counts.

    >>> from pipeline.event.batch import TopicPartition
    >>> class Row(msgspec.Struct):
    ...     topic: str; partition: int; offset: int; timestamp: int; key: bytes | None; value: bytes | None
    >>> item_news([Row("items", 0, 7, 0, b"lamp", None)]).changes
    (ItemChange(item_id='lamp', available=False),)
    """
    changes: dict[str, ItemChange] = {}
    bad: list[BadItem] = []
    offsets: dict[TopicPartition, int] = {}
    for record in records:
        offsets[TopicPartition(record.topic, record.partition)] = record.offset + 1
        read = unreadable(record) or _read(record.key, record.value)
        if isinstance(read, ItemChange):
            changes.pop(read.item_id, None)
            changes[read.item_id] = read
        else:
            raw = (record.topic, record.partition, record.offset, record.timestamp, record.key, record.value)
            bad.append(BadItem(*raw, *read))
    return ItemNews(
        tuple(changes.values()), tuple(bad), tuple((*at, offset) for at, offset in offsets.items())
    )


def _read(key: bytes | None, value: bytes | None) -> ItemChange | Problem:
    """Return what a record says, or what is wrong with it."""
    try:
        item = _decode(value) if value is not None else _Item(available=False)
        item_id = str(item.item_id) if item.item_id is not None else (key or b"").decode()
    except UnicodeDecodeError as error:
        return Problem("not_utf8", f"byte {error.start} is not UTF-8; expected an id and JSON in UTF-8")
    except (msgspec.MsgspecError, RecursionError) as error:
        reason = "wrong_type" if isinstance(error, msgspec.ValidationError) else "not_json"
        expected = 'expected JSON such as {"item_id": "lamp", "available": false}'
        return Problem(reason, f"{shown(str(error))}; {expected}")
    problem = id_problem("item_id", item_id)
    return problem or ItemChange(item_id, item.available)
