"""The state out of and into checkpoints: the item side as it lies, users by partition with items as ids.

Axes: N = users of a shard, V = entries of all their consumed sets, M = item rows.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import CheckpointError
from pipeline.event.batch import TopicPartition
from pipeline.state.duplicates import Duplicates
from pipeline.state.fitting import RINGS, Differences, fitted, laid_anew, misfit
from pipeline.state.refresh import NOW
from pipeline.state.shards import Arrays, Shard, pack_texts, unpack_texts
from pipeline.state.state import NOBODY, State
from pipeline.state.store import Column, translate, update_digest
from pipeline.state.tables import ANNOUNCED, HELD, HIDDEN

IntArray = npt.NDArray[np.int32]
_OWN = {"consumed.start", "origin.partition"}  # mean something in this process alone
_ADVICE = "go back to the version of afresh that saved it, or choose another checkpoint.path to start anew"
_TABLE = ("ids", "id_borders", "free", "pending_ids", "pending_borders", "pending_counts")  # no columns


class Loaded(NamedTuple):
    """What differed in the item side of a checkpoint.

    `restarted`: each model that starts anew, and the column that forbids to go on; "": none of it was saved.
    """

    differences: Differences
    restarted: dict[str, str]


def take(state: State, source: TopicPartition) -> Shard:
    """Copy a partition's users out. Items that are no longer known leave an empty place, so that rings keep
    their pace.
    """
    number = state.number_of(source)
    held = np.flatnonzero(state.origin.partition.data == number)
    ids = sorted(state.users.id_of[row] for row in held.tolist())
    rows = state.users.rows(ids)
    arrays: Arrays = {}
    arrays["user_ids"], arrays["user_id_borders"] = pack_texts(ids)
    known = np.isin(state.items.status.data, HELD)
    values, borders = state.consumed.ragged(rows)
    pieces = {name: column.data[rows] for name, column in _user_columns(state).items()}
    of_items = [name for name, column in _user_columns(state).items() if column.of_items]
    mentioned = np.unique(np.concatenate([values, *(pieces[name].ravel() for name in of_items)]))
    mentioned = mentioned[(mentioned >= 0) & known[mentioned]]
    place = np.full(state.items.capacity, -1, np.int32)
    place[mentioned] = np.arange(mentioned.size, dtype=np.int32)
    arrays["item_ids"], arrays["item_id_borders"] = pack_texts(
        [state.items.id_of[row] for row in mentioned.tolist()]
    )
    arrays["item_announced"] = (state.items.status.data[mentioned] == ANNOUNCED).astype(np.uint8)
    for name, piece in pieces.items():
        arrays[f"user.{name}"] = translate(piece, place) if name in of_items else piece
    arrays["consumed_values"], arrays["consumed_borders"] = translate(values, place), borders
    arrays["user.last_event"], arrays["user.last_ms"] = (
        state.users.last_event.data[rows],
        state.users.last_ms.data[rows],
    )
    if source in state.duplicates:
        arrays["duplicates"] = state.duplicates[source].hashes()
    return Shard(source, state.offsets.get(source, 0), arrays)


def put(state: State, shard: Shard) -> Differences:
    """Add a shard's users in the place of what is held of that partition; unknown items are admitted without
    counts.

    Return which columns differed. Raise `CheckpointError` for one that can't be made to fit.
    """
    state.drop_partition(shard.source)
    arrays = shard.arrays
    ids = unpack_texts(_bytes(arrays["user_ids"]), _longs(arrays["user_id_borders"]))
    twice = state.users.rows(ids)
    state.forget_users(twice[twice >= 0])  # the newest owner's copy of a user wins
    state.add_users(ids)
    rows = state.users.rows(ids)
    row_of_place = _rows_of_items(state, arrays)
    columns = _user_columns(state)
    for name, column in columns.items():
        if f"user.{name}" in arrays:
            piece = _of_users(name, arrays, column)
            column.data[rows] = translate(piece, row_of_place) if column.of_items else piece
    state.consumed.size.data[rows] = 0
    room, state.consumed.room.data[rows] = state.consumed.room.data[rows].copy(), 0
    if state.exclude != []:  # where repeats are welcome, what another rule has recorded would bar them
        consumed = translate(arrays["consumed_values"], row_of_place)
        state.consumed.put(rows, consumed, _longs(arrays["consumed_borders"]), room)
    state.users.last_event.data[rows] = arrays["user.last_event"]
    state.users.last_ms.data[rows] = arrays["user.last_ms"]
    state.users.reorder()
    state.items.reorder()
    state.refresh.look_again()
    state.origin.partition.data[rows] = state.number_of(shard.source)
    state.offsets[shard.source] = shard.offset
    if state.availability.withdrawn or state.availability.blocked:  # here, and shown by another worker
        state.mark_holders(state.items.status.data == HIDDEN)
    served = arrays.get("user.served.items", np.empty((rows.size, 0), np.int32))
    lost = (translate(served, row_of_place) < 0) & (served >= 0)
    state.refresh.mark(rows[lost.any(1)], NOW)
    if "duplicates" in arrays:
        state.duplicates[shard.source] = Duplicates(arrays["duplicates"].astype(np.uint64))
    known = {f"user.{name}" for name in (*columns, "last_event", "last_ms")}
    saved = {name for name in arrays if name.startswith("user.")}
    return _differences(known, saved)


def _rows_of_items(state: State, arrays: Arrays) -> IntArray:
    """Return the row of each item that a shard names; those with events that are unknown here are admitted.

    -1: on lists alone, announced where the shard comes from, and here withdrawn or not announced yet.
    """
    ids = unpack_texts(_bytes(arrays["item_ids"]), _longs(arrays["item_id_borders"]))
    announced = dict(zip(ids, arrays.get("item_announced", np.zeros(len(ids))).tolist(), strict=True))
    unknown = [text for text in announced if text not in state.items.row_of]
    new = state.admit_items([text for text in unknown if not announced[text]])
    state.settle_items(new)
    # else an item that its users bring along would be long overdue
    state.items.last_ms.data[new] = arrays["user.last_ms"].max(initial=0)
    state.announce_also([text for text in unknown if announced[text]])
    return state.items.find(ids)


def save_items(state: State) -> tuple[Arrays, dict[str, object]]:
    """Copy the item side out: columns that belong to items or to nobody, the table, and plain values."""
    items = state.items
    arrays: Arrays = {name: column.data.copy() for name, column in shared_columns(state).items()}
    arrays |= {f"items.{name}": column.data.copy() for name, column in items.columns().items()}
    arrays["items.ids"], arrays["items.id_borders"] = pack_texts(items.id_of)
    arrays["items.free"] = np.array(items.free, np.int32)
    arrays["items.pending_ids"], arrays["items.pending_borders"] = pack_texts(list(items.pending))
    arrays["items.pending_counts"] = np.array(list(items.pending.values()), np.int64)
    arrays |= {f"availability.{name}": array for name, array in state.availability.arrays().items()}
    meta: dict[str, object] = {
        "events_learned": state.events_learned,
        "items_admitted": items.admitted,
        "items_evicted": items.evicted,
        "users_admitted": state.users.admitted,
        "users_evicted": state.users.evicted,
        "sweep_step": state.sweep.step,
        "item_offsets": [[*source, offset] for source, offset in sorted(state.item_offsets.items())],
    }
    return arrays, meta


def load_items(state: State, arrays: Arrays, meta: Mapping[str, object]) -> Loaded:
    """Undo `save_items` on a fresh state; what an older version has not saved stays as it is there.

    A model starts anew when `arrays` hold nothing of it, or when a shape is another. Raise `CheckpointError`
    for any other column that can't be made to fit.
    """
    items = state.items
    restarted = _restarted(state, arrays)
    columns = shared_columns(state) | _prefixed("items", items.columns())
    for name, column in columns.items():
        if name in arrays and _model_of(name) not in restarted:
            if why := misfit(arrays[name], column):
                raise CheckpointError(f"column {name}: {why}; {_ADVICE}")
            _set(column, fitted(arrays[name], column))
        elif column.axis == "item":
            shape = (arrays["items.status"].shape[0], *column.data.shape[1:])
            column.data = np.full(shape, column.fill, column.data.dtype)
    items.id_of = unpack_texts(_bytes(arrays["items.ids"]), _longs(arrays["items.id_borders"]))
    announced = (items.status.data == ANNOUNCED).tolist()
    items.row_of = {text: row for row, text in enumerate(items.id_of) if text and not announced[row]}
    items.announced = {text: row for row, text in enumerate(items.id_of) if text and announced[row]}
    items.free = arrays["items.free"].tolist()
    pending = unpack_texts(_bytes(arrays["items.pending_ids"]), _longs(arrays["items.pending_borders"]))
    items.pending = dict(zip(pending, arrays["items.pending_counts"].tolist(), strict=True))
    numbers = {name: int(str(value)) for name, value in meta.items() if isinstance(value, int)}
    state.events_learned = numbers["events_learned"]
    items.admitted, items.evicted = numbers["items_admitted"], numbers["items_evicted"]
    state.users.admitted, state.users.evicted = numbers["users_admitted"], numbers["users_evicted"]
    available = {name: array for name, array in arrays.items() if name.startswith("availability.")}
    if available:  # format 1 knows no items topic
        state.availability.load({name.partition(".")[2]: array for name, array in available.items()})
    for topic, partition, offset in meta.get("item_offsets", []):  # type: ignore[attr-defined]
        state.item_offsets[TopicPartition(topic, partition)] = offset
    state.popularity.version += 1
    state.sweep.resume(numbers["sweep_step"])
    others = {*available, *(f"items.{name}" for name in _TABLE)}
    saved = {name for name in arrays if not ("/" in name or name in others)}
    known = {name for name in columns if _model_of(name) not in restarted}
    return Loaded(_differences(known, saved), restarted)


def digests(state: State) -> dict[str, str]:
    """Return `digest_model` and `digest_users`, the same for the same content in whatever rows it lies."""
    item_rows, canonical = state.items.canonical()
    model = hashlib.sha256(json.dumps([state.items.id_of[row] for row in item_rows.tolist()]).encode())
    for name, column in sorted((shared_columns(state) | _prefixed("items", state.items.columns())).items()):
        update_digest(model, name, column, item_rows, canonical)
    users = hashlib.sha256()
    ids = sorted(set(state.users.row_of) - {NOBODY})
    rows = state.users.rows(ids)
    sources = [state.partitions[number] for number in state.origin.partition.data[rows].tolist()]
    users.update(json.dumps([ids, [list(source) for source in sources]]).encode())
    for name, column in sorted((_user_columns(state) | _prefixed("users", state.users.columns())).items()):
        if name not in ("consumed.size", "consumed.room"):  # what a set holds counts, not how it is packed
            update_digest(users, name, column, rows, canonical)
    values, borders = state.consumed.ragged(rows)
    kept = translate(values, canonical)
    counts = (
        np.add.reduceat(np.append(kept >= 0, False).astype(np.int64), borders[:-1])
        if rows.size
        else borders[:-1]
    )
    counts[np.diff(borders) == 0] = 0
    users.update(kept[kept >= 0].tobytes() + counts.tobytes())
    for source in sorted(state.duplicates):
        users.update(f"{source}".encode() + state.duplicates[source].hashes().tobytes())
    return {"digest_model": model.hexdigest(), "digest_users": users.hexdigest()}


def shared_columns(state: State) -> dict[str, Column]:
    """Return the columns that belong to items or to nobody, by full name."""
    return {
        f"{name}.{key}": column
        for name, store in state.stores.items()
        for key, column in store.columns().items()
        if column.axis != "user"
    }


def _user_columns(state: State) -> dict[str, Column]:
    return {
        f"{name}.{key}": column
        for name, store in state.stores.items()
        for key, column in store.columns().items()
        if column.axis == "user" and f"{name}.{key}" not in _OWN
    }


def _prefixed(prefix: str, columns: Mapping[str, Column]) -> dict[str, Column]:
    return {f"{prefix}.{name}": column for name, column in columns.items()}


def _restarted(state: State, arrays: Arrays) -> dict[str, str]:
    """Return the models that can't go on from these arrays, each with the reason."""
    restarted: dict[str, str] = {}
    columns: dict[str, dict[str, Column]] = {}
    for name, column in shared_columns(state).items():
        if _model_of(name):
            columns.setdefault(_model_of(name), {})[name] = column
    for model, of_model in columns.items():
        held = {name: column for name, column in of_model.items() if name in arrays}
        whys = [f"{name}: {why}" for name, column in held.items() if (why := misfit(arrays[name], column))]
        if whys or not held:
            restarted[model] = whys[0] if whys else ""
    return restarted


def _model_of(name: str) -> str:
    """Return the model that a column belongs to, "" for none.

    >>> _model_of("model.attention.table"), _model_of("histories.items")
    ('attention', '')
    """
    return name.split(".")[1] if name.startswith("model.") else ""


def _of_users(name: str, arrays: Arrays, column: Column) -> npt.NDArray[np.generic]:
    """Return what a shard holds of a column, made to fit. Another model's figures are as good as none."""
    piece = arrays[f"user.{name}"]
    if why := misfit(piece, column):
        if not _model_of(name):
            raise CheckpointError(f"column {name} of a shard: {why}; {_ADVICE}")
        return np.full((piece.shape[0], *column.data.shape[1:]), column.fill, column.data.dtype)
    if name in RINGS:
        pushed = _longs(arrays["user.histories.pushed"])
        return laid_anew(piece, pushed, column.data.shape[1], column.fill)
    return fitted(piece, column)


def _differences(known: set[str], saved: set[str]) -> Differences:
    """Compare names of columns. What is not known of a model is one's that is configured no longer."""
    lacking, unknown = (
        {name.removeprefix("user.") for name in names} for names in (known - saved, saved - known)
    )
    return Differences(frozenset(lacking), frozenset(name for name in unknown if not _model_of(name)))


def _set(column: Column, data: npt.NDArray[np.generic]) -> None:
    """Replace what grows; copy into what does not, since a model may share its memory."""
    if column.axis == "none":
        column.data[...] = data
    else:
        column.data = data.copy()


def _bytes(array: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return array.astype(np.uint8, copy=False)


def _longs(array: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    return array.astype(np.int64, copy=False)
