"""The loop's reader of the items topic: when to look at it, and what of it is news.

The topic is read whole before the first event is learned, by every worker, outside of the group. What it says
goes through the journal like a batch of events, so that a batch learned again is ranked with the items that
could be shown then.
"""

from msgspec import structs

from pipeline.events.batch import NO_UPDATE, CatalogUpdate
from pipeline.outcome import Learner
from pipeline.service.ports import Clock, ItemSource

EVERY_S = 0.25  # between looks at a topic that was read to its end


class Catalogue:
    """Reads one item source for one learner; without a source it never has any news."""

    def __init__(self, source: ItemSource | None, learner: Learner, clock: Clock) -> None:
        self.whole = source is None  # whether the topic was read to its end once
        self._source, self._learner, self._clock = source, learner, clock
        self._looked_s = float("-inf")

    def start(self) -> None:
        """Go on from where the learner's state ends."""
        if self._source is not None:
            self._source.start(self._learner.item_offsets)

    def take(self) -> CatalogUpdate:
        """Return what is new, at once; nothing when the last look was a moment ago."""
        now_s = self._clock.monotonic_s()
        if self._source is None or (self.whole and now_s - self._looked_s < EVERY_S):
            return NO_UPDATE
        self._looked_s = now_s
        news, ended = self._source.poll()
        self.whole = self.whole or ended
        return structs.replace(news, changes=self._learner.news(news.changes))

    def close(self) -> None:
        """Close the source."""
        if self._source is not None:
            self._source.close()
