"""Which items may be shown: by id, since an item may be withdrawn before anybody has met it."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.event.batch import ItemChange
from pipeline.state.shards import Arrays, pack_texts, unpack_texts

ANNOUNCED = 1000  # items said to be available that nobody has met yet: enough for an empty shop's list


class Availability:
    """The ids that may not be shown, and those that the items topic has announced.

    `blocked` come from the configuration and are not saved; `withdrawn` from the items topic. `announced` are
    available ids without a row, the newest last.
    """

    def __init__(self, blocked: Iterable[str]) -> None:
        self.blocked = frozenset(blocked)
        self.withdrawn: set[str] = set()
        self.announced: dict[str, None] = {}
        self.came = self.went = 0  # withdrawals and returns so far

    def hides(self, item_id: str) -> bool:
        """Say whether an item may not be shown."""
        return item_id in self.withdrawn or item_id in self.blocked

    def hidden(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Say which of these ids may not be shown, [len(ids)]."""
        if not self.withdrawn and not self.blocked:
            return np.zeros(len(ids), np.bool_)
        return np.fromiter(map(self.hides, ids), np.bool_, len(ids))

    def news(self, changes: Iterable[ItemChange], row_of: Mapping[str, int]) -> tuple[ItemChange, ...]:
        """Return the changes that change something; `row_of` holds the ids that have been met.

        A catalogue of which all is available is no news, but for the first ids that nobody has met.
        """
        room = ANNOUNCED - len(row_of)

        def is_news(change: ItemChange) -> bool:
            if change.available == (change.item_id in self.withdrawn):
                return True
            stranger = change.item_id not in row_of and change.item_id not in self.announced
            return change.available and stranger and len(self.announced) < room

        return tuple(filter(is_news, changes))

    def apply(self, change: ItemChange, has_row: bool) -> None:
        """Take one change in."""
        item_id = change.item_id
        was = item_id in self.withdrawn
        self.announced.pop(item_id, None)
        if not change.available:
            self.withdrawn.add(item_id)
            self.came += not was
            return
        self.withdrawn.discard(item_id)
        self.went += was
        if not has_row:
            self.announced[item_id] = None
            while len(self.announced) > ANNOUNCED:
                del self.announced[next(iter(self.announced))]

    def met(self, ids: Iterable[str]) -> None:
        """Take note of ids that have a row now."""
        if self.announced:
            for item_id in ids:
                self.announced.pop(item_id, None)

    def arrays(self) -> Arrays:
        """Return all that is known, for a checkpoint."""
        arrays: Arrays = {"counts": np.array([self.came, self.went], np.int64)}
        for name, ids in (("withdrawn", sorted(self.withdrawn)), ("announced", list(self.announced))):
            arrays[f"{name}_ids"], arrays[f"{name}_borders"] = pack_texts(ids)
        return arrays

    def load(self, arrays: Arrays) -> None:
        """Become what `arrays` was taken from."""
        if not arrays:
            return
        self.came, self.went = np.asarray(arrays["counts"]).tolist()
        withdrawn, announced = (
            unpack_texts(arrays[f"{name}_ids"].astype(np.uint8), arrays[f"{name}_borders"].astype(np.int64))
            for name in ("withdrawn", "announced")
        )
        self.withdrawn, self.announced = set(withdrawn), dict.fromkeys(announced)
