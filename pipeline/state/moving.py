"""Users out of and into checkpoints, by partition, with items as ids.

Axes: N = users of a shard, one partition behind the other; P = its partitions, in order; U = user rows.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import TopicPartition
from pipeline.state.packing import Differences, differences, user_columns, user_piece
from pipeline.state.published_lists import NOW
from pipeline.state.shards import Arrays, Shard, pack_texts, pick, unpack_texts
from pipeline.state.state import State
from pipeline.state.store import AnyArray, translate
from pipeline.state.tables import ANNOUNCED, HELD, HIDDEN
from pipeline.state.user_partition import Duplicates

IntArray = npt.NDArray[np.int32]


def take(state: State, sources: Collection[TopicPartition]) -> Shard:
    """Copy the users of partitions out; items that are no longer known leave an empty place in rings."""
    ordered = sorted(sources)
    rows, user_borders = _users_of(state, ordered)
    arrays: Arrays = {"user_borders": user_borders}
    arrays["user_ids"], arrays["user_id_borders"] = pack_texts(state.users.ids(rows))
    values, borders = state.consumed.ragged(rows)
    columns = user_columns(state)
    pieces = {name: column.data[rows] for name, column in columns.items()}
    of_items = [name for name, column in columns.items() if column.of_items]
    mentioned = _mentioned(state.items.capacity, [values, *(pieces[name] for name in of_items)])
    mentioned = mentioned[np.isin(state.items.status.data[mentioned], HELD)]
    place = np.full(state.items.capacity, -1, np.int32)
    place[mentioned] = np.arange(mentioned.size, dtype=np.int32)
    arrays["item_ids"], arrays["item_id_borders"] = pack_texts(state.items.ids(mentioned))
    arrays["item_announced"] = (state.items.status.data[mentioned] == ANNOUNCED).astype(np.uint8)
    for name, piece in pieces.items():
        arrays[f"user.{name}"] = translate(piece, place) if name in of_items else piece
    arrays["consumed_values"], arrays["consumed_borders"] = translate(values, place), borders
    arrays["user.last_event"] = state.users.last_event.data[rows]
    arrays["user.last_ms"] = state.users.last_ms.data[rows]
    hashes = [state.duplicates.get(source, Duplicates()).hashes() for source in ordered]
    arrays["duplicates"] = np.concatenate([np.zeros(0, np.uint64), *hashes])
    arrays["duplicate_borders"] = np.cumsum([0, *map(len, hashes)], dtype=np.int64)
    return Shard({source: state.offsets.get(source, 0) for source in ordered}, arrays)


class Added(NamedTuple):
    """Rows that came with a shard, and which columns differed. `items`: those that were not known here."""

    users: IntArray
    items: IntArray
    differences: Differences


def put(
    state: State, shard: Shard, sources: Collection[TopicPartition] | None = None, own: bool = False
) -> Added:
    """Replace the users of a shard's partitions, of these or of all; admit unknown items without counts.

    `own`: the shard is of this worker's own checkpoint, so `own` columns (see `Column`) are restored. Raise
    `CheckpointError` for a column that can't be made to fit.
    """
    shard = shard if sources is None else part_of(shard, sources)
    arrays, ordered = shard.arrays, sorted(shard.offsets)
    state.drop_partitions(ordered)
    ids = unpack_texts(arrays["user_ids"], arrays["user_id_borders"])
    twice = state.users.rows(ids)
    state.forget_users(twice[twice >= 0])  # the newest owner's copy of a user wins
    state.add_users(ids)
    rows = state.users.rows(ids)
    columns = user_columns(state)
    pieces = {
        name: user_piece(name, arrays, column)
        for name, column in columns.items()
        if f"user.{name}" in arrays and (own or not column.own)
    }
    of_items = [pieces[name] for name in pieces if columns[name].of_items]
    new_items, row_of_place = _admit_items_of(state, arrays, of_items)
    for name, piece in pieces.items():
        columns[name].data[rows] = translate(piece, row_of_place) if columns[name].of_items else piece
    _put_consumed(state, rows, translate(arrays["consumed_values"], row_of_place), arrays["consumed_borders"])
    state.users.last_event.data[rows] = arrays["user.last_event"]
    state.users.last_ms.data[rows] = arrays["user.last_ms"]
    state.users.reorder()
    state.items.reorder()
    state.refresh.look_again()
    state.published.look_again()
    numbers = np.array([state.partition_of.number_of(source) for source in ordered], np.int32)
    state.partition_of.partition.data[rows] = np.repeat(numbers, np.diff(arrays["user_borders"]))
    state.offsets |= shard.offsets
    if "published.items" in pieces:
        served = np.asarray(pieces["published.items"], np.int32)
        lost = (translate(served, row_of_place) < 0) & (served >= 0)
        state.refresh.mark(rows[lost.any(1)], NOW)
    if state.availability.withdrawn or state.availability.blocked:  # here, and shown by another worker
        state.mark_holders(state.items.status.data == HIDDEN)
    for source, (start, stop) in zip(ordered, pairwise(arrays["duplicate_borders"].tolist()), strict=True):
        if start < stop:
            state.duplicates[source] = Duplicates(arrays["duplicates"][start:stop])
    known = {f"user.{name}" for name in (*columns, "last_event", "last_ms")}
    saved = {name for name in arrays if name.startswith("user.")}
    return Added(rows, new_items, differences(known, saved))


def _put_consumed(state: State, rows: IntArray, values: IntArray, borders: npt.NDArray[np.int64]) -> None:
    """Restore consumed items, but not where repeats are allowed now: they would be excluded."""
    consumed = state.consumed
    room_N = consumed.room.data[rows].copy()
    consumed.size.data[rows] = consumed.room.data[rows] = 0
    if not state.repeats:
        consumed.put(rows, values, borders, room_N)


def part_of(shard: Shard, sources: Collection[TopicPartition]) -> Shard:
    """Return what a shard holds of some of its partitions; its items stay all named."""
    offsets = {source: shard.offsets[source] for source in sorted(sources)}
    if offsets.keys() == shard.offsets.keys():
        return shard
    arrays = shard.arrays
    places = np.array([place for place, source in enumerate(sorted(shard.offsets)) if source in offsets])
    all_rows = np.arange(arrays["user_borders"][-1])
    rows, user_borders = pick(all_rows, arrays["user_borders"], places)
    part = {name: array[rows] if name.startswith("user.") else array for name, array in arrays.items()}
    part["user_borders"] = user_borders
    for values, borders, which in (
        ("user_ids", "user_id_borders", rows),
        ("consumed_values", "consumed_borders", rows),
        ("duplicates", "duplicate_borders", places),
    ):
        part[values], part[borders] = pick(arrays[values], arrays[borders], which)
    return Shard(offsets, part)


def _users_of(state: State, sources: Sequence[TopicPartition]) -> tuple[IntArray, npt.NDArray[np.int64]]:
    """Return the rows of the partitions' users, one partition behind the other, and the borders [P + 1]."""
    numbers = [state.partition_of.number_of(source) for source in sources]
    place_of_number = np.full(len(state.partitions) + 1, -1, np.int64)  # the last for rows of no partition
    place_of_number[numbers] = np.arange(len(numbers))
    place_U = place_of_number[state.partition_of.partition.data]
    rows = np.flatnonzero(place_U >= 0).astype(np.int32)
    rows = rows[np.argsort(place_U[rows], kind="stable")]
    return rows, np.searchsorted(place_U[rows], np.arange(len(numbers) + 1)).astype(np.int64)


def _mentioned(rows: int, values: Iterable[AnyArray]) -> npt.NDArray[np.intp]:
    """Return which of so many rows are among the values, in order; -1 is none."""
    seen = np.zeros(rows + 1, np.bool_)  # the last takes what is -1
    for each in values:
        seen[each] = True
    return np.flatnonzero(seen[:-1])


def _admit_items_of(state: State, arrays: Arrays, of_items: Sequence[AnyArray]) -> tuple[IntArray, IntArray]:
    """Admit the items with events that a shard's users mention; return new rows, and the row of each item.

    -1: no user mentions it, or it is announced where the shard comes from and not here.
    """
    item_ids = unpack_texts(arrays["item_ids"], arrays["item_id_borders"])
    places = _mentioned(len(item_ids), [arrays["consumed_values"], *of_items])
    mentioned = [item_ids[place] for place in places.tolist()]
    announced = dict(zip(mentioned, arrays["item_announced"][places].tolist(), strict=True))
    unknown = [text for text in announced if text not in state.items.row_of]
    new = state.admit_items([text for text in unknown if not announced[text]])
    state.settle_items(new)
    # else an item that its users bring along would be long overdue
    state.items.last_ms.data[new] = arrays["user.last_ms"].max(initial=0)
    state.announce_also([text for text in unknown if announced[text]])
    row_of_place = np.full(len(item_ids), -1, np.int32)
    row_of_place[places] = state.items.find(mentioned)
    return new, row_of_place
