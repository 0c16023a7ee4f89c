"""Which items may be shown: by id, since an item may be withdrawn before anybody has met it."""

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import ItemChange
from pipeline.state.shards import Arrays, pack_texts, unpack_texts


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
            item_id = change.item_id
            if change.available == (item_id in self.withdrawn):
                return True
            return change.available and item_id not in known and item_id not in self.announced

        return tuple(filter(is_news, changes))

    def apply(self, change: ItemChange, known: bool) -> None:
        """Apply one change; `known`: an event has named the item."""
        item_id = change.item_id
        was = item_id in self.withdrawn
        self.met((item_id,))
        if not change.available:
            self.withdrawn.add(item_id)
            self.came += not was
            return
        self.withdrawn.discard(item_id)
        self.went += was
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
        self.came, self.went = np.asarray(arrays["counts"]).tolist()
        withdrawn, announced = (
            unpack_texts(arrays[f"{name}_ids"].astype(np.uint8), arrays[f"{name}_borders"].astype(np.int64))
            for name in ("withdrawn", "announced")
        )
        self.withdrawn, self.announced = set(withdrawn), OrderedDict.fromkeys(announced)
        self.version += 1
