"""A shop for tests of lists: a recommender, its batches, and the newest list of everybody."""

from collections.abc import Iterable, Sequence

import msgspec
from streams import Batches, Event, small_settings

from pipeline.events.batch import CatalogUpdate, ItemChange, RawBatch
from pipeline.events.records import Ranking
from pipeline.outcome import Outcome
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig, Settings

K = 5


def settings_of(
    block: Iterable[str] = (), name: str = "attention", limits: LimitsConfig | None = None
) -> Settings:
    """Return settings of a small shop with lists of K items."""
    settings = small_settings(name=name, k=K, limits=limits)
    return msgspec.structs.replace(
        settings, rank=msgspec.structs.replace(settings.rank, blocked_items=list(block))
    )


class Shop:
    """A recommender, its batches, and the newest list of everybody."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.recommender = Recommender(settings or settings_of())
        self.batches = Batches()
        self.newest: dict[str, list[str]] = {}
        self.learned: list[RawBatch] = []

    def step(self, events: Sequence[Event], *changes: tuple[str, bool]) -> Outcome:
        """Learn a batch of events and of changes: ids of items, and whether they are available."""
        raw = self.batches(events)
        if not events:
            raw = without_partition(raw)
        news = CatalogUpdate(self.recommender.catalog_changes(ItemChange(*change) for change in changes))
        self.learned.append(with_items(raw, news))
        outcome = self.recommender.step(self.learned[-1])
        self.keep(outcome.rankings)
        return outcome

    def keep(self, rankings: Iterable[Ranking]) -> None:
        """Note what was published."""
        for ranking in rankings:
            self.newest[ranking.user_id] = [item.item_id for item in ranking.items]

    def settle(self) -> int:
        """Let it make all lists that are due; return the batches that took."""
        batches = 0
        while self.recommender.pending_rankings:
            self.step([])
            batches += 1
        return batches

    def restart(self, settings: Settings | None = None) -> None:
        """Go on from what a checkpoint holds, in a new process."""
        again = Recommender(settings or self.recommender.settings)
        again.restore(self.recommender.snapshot())
        self.recommender = again

    def holders(self, item: str) -> set[str]:
        """Return the users whose newest list holds an item."""
        return {user for user, items in self.newest.items() if item in items}


def without_partition(raw: RawBatch) -> RawBatch:
    """Return a batch of no partition, as the loop makes it where no event has come."""
    return RawBatch(raw.seq, raw.now_ms, (), raw.events, [])


def with_items(raw: RawBatch, news: CatalogUpdate) -> RawBatch:
    """Return a batch with what the items topic says."""
    return RawBatch(raw.seq, raw.now_ms, raw.spans, raw.events, raw.rejects, news)


def in_batches(events: list[Event], size: int = 600) -> Iterable[list[Event]]:
    """Cut events into batches."""
    return (events[first : first + size] for first in range(0, len(events), size))
