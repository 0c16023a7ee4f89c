"""The state: everything that is known of users and items, updated batch by batch. Axis B = its events."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import Batch, CatalogUpdate, RawBatch, Span, TopicPartition
from pipeline.events.records import DEFAULT_USER
from pipeline.settings import NEUTRAL, POSITIVE, Settings
from pipeline.state.availability import Availability, plan_rows, rows_allowed
from pipeline.state.consumed import Consumed
from pipeline.state.event_types import EventTypes
from pipeline.state.histories import Histories
from pipeline.state.positions import GAP_MS
from pipeline.state.published_lists import LATER, NOW, PublishedLists, Refresh
from pipeline.state.reclaiming import Reclaimer
from pipeline.state.store import HasColumns, clear, grow
from pipeline.state.tables import FREE, HIDDEN, LIVE, NEVER, RETIRED, IdTable
from pipeline.state.user_partition import Duplicates, UserPartition
from pipeline.state.user_sessions import UserSessions

IntArray = npt.NDArray[np.int32]
FILED = "@"  # begins the name of what is no topic but a recorded file: no topic's name can
NO_USER = DEFAULT_USER  # the user without events: row 0, never seen in a batch, never evicted


class Expired(NamedTuple):
    """Rows to give back: over the limits, or unseen for too long; their ids are forgotten already.

    `removed_users` are the ids of users who may have a published list, so not those known from a file alone.
    """

    users: IntArray
    items: IntArray
    removed_users: list[str]


class State:
    """Tables, histories and what was published.

    `history`: interactions kept a user; `served_history`: those that the served model asks for (0: all).
    """

    def __init__(self, settings: Settings, history: int, served_history: int = 0) -> None:
        rank, self.limits = settings.rank, settings.limits
        self.users = IdTable("user")
        self.items = IdTable("item", admit_after=self.limits.admit_after)
        self.types = EventTypes(settings.events, rank.exclude_event_types)
        self.repeats = rank.exclude_event_types == []  # no event excludes its item
        self.histories = Histories(self.users.capacity, history, served_history)
        self.consumed = Consumed(self.users.capacity)
        self.published = PublishedLists(self.users.capacity, rank.k)
        self.refresh = Refresh(self.users.capacity)
        self.partition_of = UserPartition(self.users.capacity)
        self.user_sessions = UserSessions(self.users.capacity, GAP_MS)
        self.availability = Availability(rank.blocked_items, self.limits.items)
        self.newest: IntArray = np.empty(0, np.int32)  # rows of the K newest announced items; derived
        self._newest_of = -1  # the version of `availability` that these are of
        self._more_to_show = False  # whether more items can be shown than when short lists were last marked
        self.stores: dict[str, HasColumns] = {
            "histories": self.histories,
            "consumed": self.consumed,
            "published": self.published,
            "partition_of": self.partition_of,
            "refresh": self.refresh,
            "user_sessions": self.user_sessions,
        }
        self.reclaimer = Reclaimer(self.items, self.consumed)
        self.partitions = self.partition_of.sources
        self.offsets: dict[TopicPartition, int] = {}
        self.item_offsets: dict[TopicPartition, int] = {}  # of the items topic
        self.duplicates: dict[TopicPartition, Duplicates] = {}
        self.events_learned = 0
        self.users.settle(self.users.admit([NO_USER]))
        self.users.last_event.data[0] = NEVER

    def register(self, name: str, store: HasColumns) -> None:
        """Let a store's columns be grown, cleared, saved and digested with the state's own."""
        self.stores[name] = store

    def admit(self, raw: RawBatch) -> Batch:
        """Turn ids into rows, new ones admitted, duplicates left out. Histories and counts stay."""
        numbers = self._advance(raw.spans)
        keep = self._first_sightings(raw)
        events = raw.events
        users = [events.user_ids[b] for b in keep]
        items = [events.item_ids[b] for b in keep]
        kinds = [self.types.of(events.types[b]) for b in keep]
        where = np.array(keep, np.int64)
        new_users = self.add_users(self.users.missing(users))
        new_items = self.admit_items(self.items.missing(items))
        user_B, item_B = self.users.rows(users), self.items.rows(items)
        time_B = events.time_ms_B[where]
        moment_B = np.minimum(time_B, raw.now_ms)
        number_B = self.events_learned + np.arange(len(keep))
        self.users.touch(user_B, number_B, moment_B)
        self.items.touch(item_B, number_B, moment_B)
        first = self.events_learned
        self.events_learned += len(keep)
        source_B = np.array(numbers, np.int32)[events.source_B[where]]
        previous_B = previous_of(user_B)
        return Batch(
            seq=raw.seq,
            now_ms=raw.now_ms,
            first_event=first,
            user_B=user_B,
            item_B=item_B,
            known_B=(item_B >= 0) & (self.items.status.data[item_B] == LIVE),
            role_B=self.types.roles(kinds, events.value_B[where]),
            value_B=events.value_B[where],
            weight_B=np.array([kind.weight for kind in kinds], np.float32),
            type_B=np.array([kind.code for kind in kinds], np.uint16),
            consumes_B=np.array([kind.consumes for kind in kinds], np.bool_),
            time_ms_B=time_B,
            moment_ms_B=moment_B,
            append_ms_B=events.append_ms_B[where],
            source_B=source_B,
            previous_B=previous_B,
            types=dict(Counter(events.types[b] for b in keep)),
            duplicates=len(events) - len(keep),
            moved=self.partition_of.update(user_B, source_B, previous_B, self.users.id_of),
            new_users=new_users,
            new_items=new_items,
        )

    def update(self, batch: Batch) -> npt.NDArray[np.uint64]:
        """Move on by a batch: consumed items, histories, sessions. Return each event's session key [B]."""
        counted_B = (batch.role_B == POSITIVE) & (batch.weight_B > 0) & (batch.item_B >= 0)
        session_B = self.user_sessions.update(batch.user_B, counted_B, batch.moment_ms_B, self.users.id_hash)
        self.consumed.add(batch.user_B, batch.item_B, batch.consumes_B, self.items.status.data)
        self.histories.push(
            batch.user_B, batch.item_B, batch.type_B, batch.moment_ms_B, pushes(batch), batch.time_ms_B
        )
        self.settle_items(batch.new_items)
        return session_B

    def apply_catalog(self, update: CatalogUpdate) -> None:
        """Hide and show items; a user with a hidden item on the published list gets a new list."""
        for topic, partition, offset in update.offsets:
            self.item_offsets[TopicPartition(topic, partition)] = offset
        if not update.changes:
            return
        for change in update.changes:
            self.availability.apply(change, change.item_id in self.items.row_of)
            self._more_to_show |= change.available
        self.reconcile([change.item_id for change in update.changes])
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
        holders = self.published.holders(hidden_M)
        self.refresh.mark(holders[holders > 0], NOW)  # not row 0: the default list has a rule of its own

    def mark_short(self) -> None:
        """Let users with fewer than K items on their list have a new one after the backlog, if more can be
        shown than before.
        """
        if self._more_to_show:
            self._more_to_show = False
            short = self.published.short()
            self.refresh.mark(short[short > 0], LATER)

    def announce(self) -> None:
        """Give the newest announced items rows and free those of others; holders of these get new lists."""
        items, said, k = self.items, self.availability, self.published.items.data.shape[1]
        most = rows_allowed(items, self.limits.items, k)
        if self._newest_of == said.version and len(items.announced) <= most:
            return
        newest, new, over = plan_rows(items, said, most, k)
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
        hidden = self.availability.hidden(self.items.ids(rows))
        self.items.show(rows[hidden], False)
        self._more_to_show |= not bool(hidden.all())

    def expire(self, now_ms: int) -> Expired:
        """Forget ids over the limits, or unseen for too long; `reclaim` frees their rows."""
        limits = self.limits
        most = limits.users and limits.users + 1  # and the row of the user without events
        users, ids = self.users.evict(most, limits.user_ttl_days, now_ms, FREE)
        sources = [self.partitions[number] for number in self.partition_of.partition.data[users].tolist()]
        filed = [source.topic.startswith(FILED) for source in sources]
        removed = [text for text, from_file in zip(ids, filed, strict=True) if not from_file]
        items, _ = self.items.evict(limits.items, limits.item_ttl_days, now_ms, RETIRED)
        return Expired(users, items, removed)

    def reclaim(self, expired: Expired) -> None:
        """Clear the rows of expired ids; do one batch's share of removing references to item rows."""
        self._clear_users(expired.users)
        clear(self.stores.values(), "item", expired.items)
        self.reclaimer.advance(self.stores.values(), self.users.capacity, wanted_rows=False)

    def admit_items(self, ids: Sequence[str]) -> IntArray:
        """Give new items rows, of status NEW until `settle_items`; return them."""
        self._make_room(sum(text not in self.items.announced for text in ids))
        rows = self.items.admit(ids)
        self.availability.met(ids)
        return rows

    def _make_room(self, wanted: int) -> None:
        """Have so many free item rows: grow the tables, or finish reclaiming first if that makes room."""
        items, stores = self.items, self.stores.values()
        if items.room(wanted) > items.capacity and items.doomed() >= wanted - len(items.free):
            for _ in range(2):  # a running cycle frees its own rows; a second one those that expired since
                self.reclaimer.advance(stores, self.users.capacity, wanted_rows=True)
        capacity = items.room(wanted)
        if capacity > items.capacity:
            grow([*stores, items], "item", capacity)
            items.extend(capacity)

    def drop_partitions(self, sources: Collection[TopicPartition]) -> None:
        """Forget partitions: their users, their offsets, their duplicates."""
        numbers = [self.partition_of.number_of(source) for source in sources]
        self.forget_users(np.flatnonzero(np.isin(self.partition_of.partition.data, numbers)).astype(np.int32))
        for source in sources:
            self.offsets.pop(source, None)
            self.duplicates.pop(source, None)

    def _advance(self, spans: Sequence[Span]) -> list[int]:
        for span in spans:
            self.offsets[span.source] = max(span.stop, self.offsets.get(span.source, 0))
        return [self.partition_of.number_of(span.source) for span in spans]

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

    def add_users(self, ids: Sequence[str]) -> IntArray:
        """Give new users rows, live at once; return them."""
        capacity = self.users.room(len(ids))
        if capacity > self.users.capacity:
            grow([*self.stores.values(), self.users], "user", capacity)
            self.users.extend(capacity)
        rows = self.users.admit(ids)
        self.users.settle(rows)
        return rows

    def forget_users(self, rows: IntArray) -> None:
        """Drop all that is held of these users."""
        self._clear_users(rows)
        for row in rows.tolist():
            self.users.forget(row, FREE)

    def _clear_users(self, rows: IntArray) -> None:
        self.consumed.release(rows)
        clear(self.stores.values(), "user", rows)


def pushes(batch: Batch) -> npt.NDArray[np.bool_]:
    """Return which events enter histories: positive and neutral ones of admitted items."""
    return np.asarray(((batch.role_B == POSITIVE) | (batch.role_B == NEUTRAL)) & (batch.item_B >= 0))


def previous_of(user_B: IntArray) -> IntArray:
    """Return the place of each user's event before b in the batch, -1 for none.

    >>> previous_of(np.array([3, 1, 3, 3], np.int32)).tolist()
    [-1, -1, 0, 2]
    """
    out: IntArray = np.full(user_B.shape[0], -1, np.int32)
    order = np.argsort(user_B, kind="stable")
    same = user_B[order[1:]] == user_B[order[:-1]]
    out[order[1:][same]] = order[:-1][same]
    return out
