"""Which items may be shown: by id, since an item may be withdrawn before anybody has met it.

Only the newest announced items have rows, to fill up lists that are shorter than K: no user has consumed an
item that no event has named, so the K newest that may be shown are enough for every list.
"""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import ItemChange
from pipeline.state.shards import Arrays, pack_texts, unpack_texts
from pipeline.state.tables import IdTable

ROWS = 1024  # of announced items, at most, and K in any case


class Availability:
    """The ids that may not be shown, and those that the items topic has announced.

    `blocked` come from the configuration and are not saved; `withdrawn` from the items topic. `announced` are
    available ids that no event has named, the newest last, at most `limit` (0: any number).
    """

    def __init__(self, blocked: Iterable[str], limit: int = 0) -> None:
        self.blocked, self.limit = frozenset(blocked), limit
        self.withdrawn: set[str] = set()
        self.announced: OrderedDict[str, None] = OrderedDict()
        self.version = 0  # moves with every change of `announced`; not saved
        self.came = self.went = 0  # withdrawals and returns so far

    def hides(self, item_id: str) -> bool:
        """Return whether an item may not be shown."""
        return item_id in self.withdrawn or item_id in self.blocked

    def hidden(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return which of these ids may not be shown, [len(ids)]."""
        if not self.withdrawn and not self.blocked:
            return np.zeros(len(ids), np.bool_)
        return np.fromiter(map(self.hides, ids), np.bool_, len(ids))

    def announces(self, item_id: str) -> bool:
        """Return whether an item is announced and may be shown."""
        return item_id in self.announced and item_id not in self.blocked

    def newest(self, count: int) -> list[str]:
        """Return the newest announced ids that may be shown, the newest first, at most `count`."""
        return list(islice((text for text in reversed(self.announced) if text not in self.blocked), count))

    def news(self, changes: Iterable[ItemChange], known: Container[str]) -> tuple[ItemChange, ...]:
        """Return the changes that change something; `known` holds the ids that events have named."""

        def is_news(change: ItemChange) -> bool:
            new = change.item_id not in known and change.item_id not in self.announced
            return change.available == (change.item_id in self.withdrawn) or (change.available and new)

        return tuple(filter(is_news, changes))

    def apply(self, change: ItemChange, known: bool) -> None:
        """Apply one change; `known`: an event has named the item."""
        item_id = change.item_id
        was_withdrawn = item_id in self.withdrawn
        self.met((item_id,))
        if not change.available:
            self.withdrawn.add(item_id)
            self.came += not was_withdrawn
            return
        self.withdrawn.discard(item_id)
        self.went += was_withdrawn
        if not known:
            self.announced[item_id] = None
            self.version += 1
            while self.limit and len(self.announced) > self.limit:
                self.announced.popitem(last=False)

    def met(self, ids: Iterable[str]) -> None:
        """Remove ids from the announced ones."""
        for item_id in ids if self.announced else ():
            if item_id in self.announced:
                del self.announced[item_id]
                self.version += 1

    def arrays(self) -> Arrays:
        """Return all that is known, for a checkpoint."""
        arrays: Arrays = {"counts": np.array([self.came, self.went], np.int64)}
        for name, ids in (("withdrawn", sorted(self.withdrawn)), ("announced", list(self.announced))):
            arrays[f"{name}_ids"], arrays[f"{name}_borders"] = pack_texts(ids)
        return arrays

    def load(self, arrays: Arrays) -> None:
        """Restore the state from `arrays`."""
        if not arrays:
            return
        self.came, self.went = arrays["counts"].tolist()
        withdrawn, announced = (
            unpack_texts(arrays[f"{name}_ids"], arrays[f"{name}_borders"])
            for name in ("withdrawn", "announced")
        )
        self.withdrawn, self.announced = set(withdrawn), OrderedDict.fromkeys(announced)
        self.version += 1


class AnnouncedRows(NamedTuple):
    """Announced ids: the `newest` that may be shown, those to get rows, those to lose theirs."""

    newest: list[str]
    new: list[str]
    over: list[str]


def rows_allowed(items: IdTable, limit: int, k: int) -> int:
    """Return how many announced items may have rows, `k` to `ROWS`, under the `limit` of items (0: none)."""
    return max(k, min(ROWS, limit - len(items) if limit else ROWS))


def plan_rows(items: IdTable, availability: Availability, most: int, k: int) -> AnnouncedRows:
    """Return which announced items get and lose rows, so that the `k` newest have one.

    Older ones may be on lists and keep theirs while there are at most `most`. Beyond that half of them go at
    once, as finding who holds them takes a pass over all users.
    """
    newest = availability.newest(k)
    new = [text for text in newest if text not in items.announced]
    over = [text for text in items.announced if not availability.announces(text)]
    if len(items.announced) + len(new) - len(over) > most:
        kept = set(availability.newest(max(k, most // 2)))
        over = [text for text in items.announced if text not in kept]
    return AnnouncedRows(newest, new, over)
