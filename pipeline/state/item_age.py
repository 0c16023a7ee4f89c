"""The age of each item, in learned events."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.state.store import Column, Store


class ItemAge(Store):
    """Columns: `at_event` int64 [M], the events learned before the batch in which the item was admitted."""

    def __init__(self, capacity: int) -> None:
        self.at_event = Column(np.zeros(capacity, np.int64), "item")

    def note(self, rows: Any, at_event: int) -> None:
        """Note that these rows' items are admitted after `at_event` learned events."""
        self.at_event.data[rows] = at_event

    def young(self, item_B: Any, first_event: int, events: int) -> npt.NDArray[np.float64]:
        """Return 1 for each event, numbered from `first_event` on, with an item younger than `events` learned
        events or without a row (below 0), else 0, [B].
        """
        number_B = first_event + np.arange(len(item_B))
        age_B = number_B - self.at_event.data[np.maximum(item_B, 0)]
        return np.where((item_B < 0) | (age_B < events), 1.0, 0.0)
