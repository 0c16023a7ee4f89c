"""The state: everything that is known of users and items, moved on by one batch at a time.

Axis B = events of a batch. Shards (what moves with a partition) are packed and unpacked in packing.py.
"""

import logging
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import Batch, CatalogUpdate, RawBatch, Span, TopicPartition
from pipeline.events.records import DEFAULT_USER
from pipeline.kernels import kernel
from pipeline.settings import NEUTRAL, POSITIVE, EventsConfig, LimitsConfig
from pipeline.state.announced import plan, rows_allowed
from pipeline.state.availability import Availability
from pipeline.state.consumed import Consumed
from pipeline.state.counts import Counts
from pipeline.state.duplicates import Duplicates
from pipeline.state.event_types import EventTypes
from pipeline.state.histories import Histories
from pipeline.state.pairs import Pairs
from pipeline.state.popularity import DAY_MS, GAP_MS, Popularity, cells
from pipeline.state.published import Served
from pipeline.state.reclaiming import Sweep
from pipeline.state.refresh import LATER, NOW, Refresh
from pipeline.state.sessions import Sessions
from pipeline.state.store import Store, clear, grow
from pipeline.state.successors import REACH, Successors
from pipeline.state.tables import FREE, GONE, HIDDEN, LIVE, NEVER, IdTable
from pipeline.state.user_partition import UserPartition

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int32]
FILED = "@"  # begins the name of what is no topic but a recorded file: no topic's name can
LATEST_HALF_LIFE = 3000.0  # events: what came right after what, in a stream whose items live for hours
MEMORY_VISITS = 24  # newest sessions kept of each item: more bring the memory nothing
NOBODY = DEFAULT_USER  # the user without events: row 0, never seen in a batch, never evicted


class State:
    """Tables, histories and counts. `welcome` is called with rows and ids of items just admitted."""

    def __init__(
        self,
        events: EventsConfig,
        limits: LimitsConfig,
        exclude: list[str] | None,
        history: int,
        k: int,
        seed: int,
        block: Sequence[str] = (),
    ) -> None:
        self.events, self.limits, self.exclude, self.seed = events, limits, exclude, seed
        self.users = IdTable("user")
        self.items = IdTable("item", admit_after=limits.admit_after)
        self.histories = Histories(self.users.capacity, max(history, REACH))
        self.consumed = Consumed(self.users.capacity)
        self.served = Served(self.users.capacity, k)
        self.refresh = Refresh(self.users.capacity)
        self.availability = Availability(block, limits.items)
        self.newest: IntArray = np.empty(0, np.int32)  # rows of the K newest announced items; derived
        self._newest_of = -1  # the version of `availability` that these are of
        self._more_to_show = False  # whether more items can be shown than when short lists were last marked
        self.origin = UserPartition(self.users.capacity)
        self.popularity = Popularity(self.items.capacity)
        self.successors = Successors(self.items.capacity)
        self.latest = Pairs(self.items.capacity, 1, 1.0, LATEST_HALF_LIFE, both=False)
        self.sessions = Sessions(self.items.capacity, self.users.capacity, GAP_MS, MEMORY_VISITS)
        self.stores: dict[str, Store] = {
            "histories": self.histories,
            "consumed": self.consumed,
            "served": self.served,
            "origin": self.origin,
            "refresh": self.refresh,
            "popularity": self.popularity,
            "successors": self.successors,
            "latest": self.latest,
            "sessions": self.sessions,
        }
        self.sweep = Sweep(self.items, self.consumed, lambda: list(self.stores.values()))
        self.partitions: list[TopicPartition] = []  # by registered number; a number is never given twice
        self._numbers: dict[TopicPartition, int] = {}
        self._filed: set[int] = set()  # numbers of what is no topic but a recorded file
        self.offsets: dict[TopicPartition, int] = {}
        self.item_offsets: dict[TopicPartition, int] = {}  # of the items topic
        self.duplicates: dict[TopicPartition, Duplicates] = {}
        self.events_learned = 0
        self.welcome: Callable[[IntArray, Sequence[str]], None] = lambda rows, ids: None
        self.types = EventTypes(events, exclude)
        self._told_of_moves = False
        self.users.settle(self.users.admit([NOBODY]))
        self.users.last_event.data[0] = NEVER

    @property
    def counts(self) -> Counts:
        """What the memories speak from."""
        return Counts(self.popularity, self.successors, self.latest, self.sessions)

    def register(self, name: str, store: Store) -> None:
        """Let a model's columns be grown, cleared, saved and digested with the state's own."""
        self.stores[name] = store

    def number_of(self, source: TopicPartition) -> int:
        """Return the partition's number, a new one at its first appearance."""
        number = self._numbers.setdefault(source, len(self.partitions))
        if number == len(self.partitions):
            self.partitions.append(source)
            if source.topic.startswith(FILED):
                self._filed.add(number)
        return number

    def admit(self, raw: RawBatch) -> Batch:
        """Turn ids into rows, new ones admitted, duplicates left out. Histories and counts stay."""
        numbers = self._advance(raw.spans)
        keep = self._first_sightings(raw)
        events = raw.events
        users = [events.user_ids[b] for b in keep]
        items = [events.item_ids[b] for b in keep]
        kinds = [self.types.of(events.types[b]) for b in keep]
        where = np.array(keep, np.int64)
        new_users = self.users.missing(users)
        self.add_users(new_users)
        new_items = self.admit_items(self.items.missing(items))
        user_B, item_B = self.users.rows(users), self.items.rows(items)
        time_B = events.time_ms_B[where]
        moment_B = np.minimum(time_B, raw.now_ms)
        number_B = self.events_learned + np.arange(len(keep))
        self.users.touch(user_B, number_B, moment_B)
        self.items.touch(item_B, number_B, moment_B)
        first = self.events_learned
        self.events_learned += len(keep)
        types: dict[str, int] = {}
        for b in keep:
            types[events.types[b]] = types.get(events.types[b], 0) + 1
        source_B = np.array(numbers, np.int32)[events.source_B[where]] if len(keep) else np.zeros(0, np.int32)
        previous_B = previous_of(user_B, self.users.capacity)
        moved = self._note_origins(user_B, source_B, previous_B)
        known_B = (item_B >= 0) & (self.items.status.data[item_B] == LIVE)
        self._new_items = new_items
        return Batch(
            seq=raw.seq,
            now_ms=raw.now_ms,
            first_event=first,
            user_B=user_B,
            item_B=item_B,
            known_B=known_B,
            role_B=self.types.roles(kinds, events.value_B[where]),
            weight_B=np.array([kind.weight for kind in kinds], np.float32),
            type_B=np.array([kind.code for kind in kinds], np.uint16),
            consumes_B=np.array([kind.consumes for kind in kinds], np.bool_),
            time_ms_B=time_B,
            moment_ms_B=moment_B,
            append_ms_B=events.append_ms_B[where],
            source_B=source_B,
            previous_B=previous_B,
            types=types,
            duplicates=len(events) - len(keep),
            moved=moved,
        )

    def update(
        self, batch: Batch, windows: tuple[IntArray, npt.NDArray[np.int64], IntArray], learn: bool = True
    ) -> None:
        """Move on by a batch: counts (unless another worker has them), consumed sets, histories.

        `windows` are the items [B, L], times [B, L] and lengths [B] that the batch's queries were made of.
        """
        items_BL, times_BL, length_B = windows
        status = self.items.status.data
        if learn:
            weight_B = np.where(batch.role_B == POSITIVE, batch.weight_B, np.float32(0))
            cell_B = cells(times_BL, length_B, batch.moment_ms_B)
            self.popularity.add(batch.item_B, weight_B, cell_B, batch.moment_ms_B)
            seed = int(np.random.default_rng((self.seed, batch.seq)).integers(2**63))
            self.successors.add(batch.item_B, weight_B, items_BL, length_B, status, seed)
            self.latest.add(batch.item_B, weight_B, items_BL, length_B, status, seed)
            counted_B = np.where(weight_B > 0, batch.item_B, -1).astype(np.int32)
            self.sessions.add(batch.user_B, counted_B, batch.moment_ms_B)
        self.consumed.add(batch.user_B, batch.item_B, batch.consumes_B, status)
        self.histories.push(
            batch.user_B, batch.item_B, batch.type_B, batch.moment_ms_B, pushes(batch), batch.time_ms_B
        )
        self.settle_items(self._new_items)

    def apply_catalog(self, news: CatalogUpdate) -> None:
        """Hide and show items as the items topic says; who was shown a hidden one gets a new list."""
        for topic, partition, offset in news.offsets:
            self.item_offsets[TopicPartition(topic, partition)] = offset
        if not news.changes:
            return
        for change in news.changes:
            self.availability.apply(change, change.item_id in self.items.row_of)
            self._more_to_show |= change.available
        self.reconcile([change.item_id for change in news.changes])
        self.announce()  # at once: an event of this batch may name an item that is withdrawn with it

    def reconcile(self, item_ids: Sequence[str] | None = None) -> None:
        """Bring rows in line with what may be shown, of these items or of all, and mark who holds others."""
        row_of = self.items.row_of
        ids = list(row_of) if item_ids is None else [text for text in item_ids if text in row_of]
        rows, hidden = self.items.rows(ids), self.availability.hidden(ids)
        self._more_to_show |= bool(self.items.show(rows[~hidden], True).size)
        self.items.show(rows[hidden], False)
        if hidden.any():
            self.mark_holders(self.items.status.data == HIDDEN)

    def mark_holders(self, hidden_M: npt.NDArray[np.bool_]) -> None:
        """Let all users with one of these items on their list have a new one."""
        holders = self.served.holders(hidden_M)
        self.refresh.mark(holders[holders > 0], NOW)  # row 0 is nobody's: its list is made anew by itself

    def mark_short(self) -> None:
        """Let users with fewer than K items on their list have a new one, if more can be shown than before.

        After a backlog: while one is read, more can be shown with every batch.
        """
        if self._more_to_show:
            self._more_to_show = False
            short = self.served.short()
            self.refresh.mark(short[short > 0], LATER)

    def announce(self) -> None:
        """Give the newest announced items rows, and free those of others; who was shown these gets a new
        list.
        """
        items, said, k = self.items, self.availability, self.served.items.data.shape[1]
        most = rows_allowed(items, self.limits.items, k)
        if self._newest_of == said.version and len(items.announced) <= most:
            return
        newest, new, over = plan(items, said, most, k)
        if over:
            self.mark_holders(np.isin(np.arange(items.capacity), items.retract(over)))
        self._make_room(len(new))
        items.announce(new)
        self.newest, self._newest_of = items.find(newest), said.version

    def announce_also(self, ids: Sequence[str]) -> None:
        """Give more announced items rows: they are on lists that another worker has published."""
        ids = [text for text in ids if self.availability.announces(text) and text not in self.items.announced]
        self._make_room(len(ids))
        self.items.announce(ids)

    def settle_items(self, rows: IntArray) -> None:
        """End the admission of items: they may be shown from now on, or are hidden."""
        self.items.settle(rows)
        hidden = self.availability.hidden([self.items.id_of[row] for row in rows.tolist()])
        self.items.show(rows[hidden], False)
        self._more_to_show |= not bool(hidden.all())

    def expire(self, now_ms: int) -> list[str]:
        """Give rows back: over the limits, or unseen for too long. Return the ids of the users who went.

        Users known from a file alone are left out: if somebody was sent a list of theirs, another worker did.
        """
        limits = self.limits
        users, gone = self._evict(self.users, limits.users, limits.user_ttl_days, now_ms, FREE)
        origins = self.origin.partition.data[users].tolist()
        gone = [text for text, origin in zip(gone, origins, strict=True) if origin not in self._filed]
        self._clear_users(users)
        items, _ = self._evict(self.items, limits.items, limits.item_ttl_days, now_ms, GONE)
        self.popularity.forget(items)
        clear(self.stores.values(), "item", items)
        self.sweep.advance(self.users.capacity, wanted_rows=False)
        return gone

    def admit_items(self, ids: Sequence[str]) -> IntArray:
        """Give new items rows (status NEW), and let models and measures prepare them."""
        self._make_room(sum(text not in self.items.announced for text in ids))
        rows = self.items.admit(ids)
        self.availability.met(ids)
        self.welcome(rows, ids)
        return rows

    def _make_room(self, wanted: int) -> None:
        """Have so many free item rows: grow the tables, or finish the sweep first if that makes room."""
        items = self.items
        if items.room(wanted) > items.capacity and items.doomed() >= wanted - len(items.free):
            for _ in range(2):  # a running cycle frees its own rows; a second one those that went since
                self.sweep.advance(self.users.capacity, wanted_rows=True)
        capacity = items.room(wanted)
        if capacity > items.capacity:
            grow([*self.stores.values(), items], "item", capacity)
            items.extend(capacity)

    def drop_partitions(self, sources: Collection[TopicPartition]) -> None:
        """Forget partitions: their users, their offsets, their duplicates."""
        numbers = [self._numbers[source] for source in sources if source in self._numbers]
        self.forget_users(np.flatnonzero(np.isin(self.origin.partition.data, numbers)).astype(np.int32))
        for source in sources:
            self.offsets.pop(source, None)
            self.duplicates.pop(source, None)

    def _note_origins(self, user_B: IntArray, source_B: IntArray, previous_B: IntArray) -> int:
        """Let users follow their newest event; return how often one came to another partition of its topic.

        The first time ever is told: users without a fixed partition lose part of their history with every
        change of workers.
        """
        moved, before_B = self.origin.update(user_B, source_B, previous_B, self.partitions)
        if moved.size and not self._told_of_moves:
            self._told_of_moves = True
            b = moved[0]
            topic, now = self.partitions[source_B[b]]
            logger.warning(
                "an event of user %r lies in partition %d of topic %s, the one before in %d: expected one "
                "partition, as the user's state lies there. Let every producer take the user's id as key and "
                "the same partitioner (murmur2, Kafka's own; librdkafka needs partitioner=murmur2_random). "
                "After partitions were added this ends by itself. Counted in afresh_user_moves_total",
                self.users.id_of[user_B[b]], now, topic, self.partitions[before_B[b]].partition,
            )  # fmt: skip
        return int(moved.size)

    def _advance(self, spans: Sequence[Span]) -> list[int]:
        for span in spans:
            self.offsets[span.source] = max(span.stop, self.offsets.get(span.source, 0))
        return [self.number_of(span.source) for span in spans]

    def _first_sightings(self, raw: RawBatch) -> list[int]:
        """Return the places of the events that are no duplicates."""
        ids = raw.events.event_ids
        if not any(ids):
            return list(range(len(ids)))
        keep = []
        for b, event_id in enumerate(ids):
            source = raw.spans[raw.events.source_B[b]].source
            if event_id is None or not self.duplicates.setdefault(source, Duplicates()).seen(event_id):
                keep.append(b)
        return keep

    def add_users(self, ids: Sequence[str]) -> None:
        """Give new users rows, live at once."""
        capacity = self.users.room(len(ids))
        if capacity > self.users.capacity:
            grow([*self.stores.values(), self.users], "user", capacity)
            self.users.extend(capacity)
        self.users.settle(self.users.admit(ids))

    def forget_users(self, rows: IntArray) -> None:
        """Drop all that is held of these users."""
        self._clear_users(rows)
        for row in rows.tolist():
            self.users.forget(row, FREE)

    def _clear_users(self, rows: IntArray) -> None:
        self.consumed.release(rows)
        clear(self.stores.values(), "user", rows)

    def _evict(
        self, table: IdTable, limit: int, ttl_days: float, now_ms: int, status: int
    ) -> tuple[IntArray, list[str]]:
        """Take the ids of overdue rows away, the longest unseen first; return these rows and ids."""
        rows: list[int] = []
        ids: list[str] = []
        too_old_ms = now_ms - math.floor(ttl_days * DAY_MS)
        held = limit + (table is self.users)  # the user without events is nobody's row
        while (limit and len(table) > held) or ttl_days:
            row = table.oldest()
            if row < 0 or not ((limit and len(table) > held) or table.last_ms.data[row] < too_old_ms):
                break
            rows.append(row)
            ids.append(table.forget(row, status))
        return np.array(rows, np.int32), ids


def pushes(batch: Batch) -> npt.NDArray[np.bool_]:
    """Say which events enter histories: positive and neutral ones of admitted items."""
    return np.asarray(((batch.role_B == POSITIVE) | (batch.role_B == NEUTRAL)) & (batch.item_B >= 0))


def previous_of(user_B: IntArray, capacity: int) -> IntArray:
    """Return the place of each user's event before b in the batch, -1 for none.

    >>> previous_of(np.array([3, 1, 3, 3], np.int32), 4).tolist()
    [-1, -1, 0, 2]
    """
    out: IntArray = np.full(user_B.shape[0], -1, np.int32)
    _previous(user_B, np.full(capacity, -1, np.int32), out)
    return out


@kernel()
def _previous(user_B, last_U, out):  # type: ignore[no-untyped-def]
    for b in range(user_B.shape[0]):
        out[b] = last_U[user_B[b]]
        last_U[user_B[b]] = b
