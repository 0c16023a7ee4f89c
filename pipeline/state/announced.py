"""Which announced items have rows: the newest, what lists that are shorter than K are filled up with.

No user has consumed an item that no event has named, so the K newest of those that may be shown are enough
for every list, whatever the size of the catalogue. The others wait as ids.
"""

from typing import NamedTuple

from pipeline.state.availability import Availability
from pipeline.state.tables import IdTable

ROWS = 1024  # at most, and K in any case


class Plan(NamedTuple):
    """Announced ids: the `newest` that may be shown, those of them that are to get rows, those that are to
    lose theirs.
    """

    newest: list[str]
    new: list[str]
    over: list[str]


def rows_allowed(items: IdTable, limit: int, k: int) -> int:
    """Return how many announced items may have rows: what `limit` (0: none) leaves beside the items with
    events, between `k` and `ROWS`.
    """
    return max(k, min(ROWS, limit - len(items) if limit else ROWS))


def plan(items: IdTable, availability: Availability, most: int, k: int) -> Plan:
    """Return which announced items are to get and to lose rows, so that the `k` newest have one.

    Older ones keep theirs while there are at most `most`, since they may be on lists. Beyond that half of
    them go at once: who holds them is a question to all users.
    """
    newest = availability.newest(k)
    new = [text for text in newest if text not in items.announced]
    over = [text for text in items.announced if not availability.announces(text)]
    if len(items.announced) + len(new) - len(over) > most:
        kept = set(availability.newest(max(k, most // 2)))
        over = [text for text in items.announced if text not in kept]
    return Plan(newest, new, over)
