"""The state out of and into checkpoints: the item side as it lies, users by partition with items as ids.

Axes: N = users of a shard, one partition behind the other; P = its partitions, in order; V = entries of all
consumed sets; M = item rows; U = user rows.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import CheckpointError
from pipeline.event.batch import TopicPartition
from pipeline.state.duplicates import Duplicates
from pipeline.state.fitting import RINGS, Differences, fitted, laid_anew, misfit
from pipeline.state.shards import Arrays, Shard, pack_texts, pick, unpack_texts
from pipeline.state.state import NOBODY, State
from pipeline.state.store import AnyArray, Column, translate, update_digest
from pipeline.state.tables import HELD

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


def take(state: State, sources: Collection[TopicPartition]) -> Shard:
    """Copy the users of partitions out, in one pass over all users.

    Items that are no longer known leave an empty place, so that rings keep their pace.
    """
    ordered = sorted(sources)
    rows, user_borders = _users_of(state, ordered)
    arrays: Arrays = {"user_borders": user_borders}
    arrays["user_ids"], arrays["user_id_borders"] = pack_texts(
        [state.users.id_of[row] for row in rows.tolist()]
    )
    values, borders = state.consumed.ragged(rows)
    columns = _user_columns(state)
    pieces = {name: column.data[rows] for name, column in columns.items()}
    of_items = [name for name, column in columns.items() if column.of_items]
    mentioned = _mentioned(state.items.capacity, [values, *(pieces[name] for name in of_items)])
    mentioned = mentioned[np.isin(state.items.status.data[mentioned], HELD)]
    place = np.full(state.items.capacity, -1, np.int32)
    place[mentioned] = np.arange(mentioned.size, dtype=np.int32)
    arrays["item_ids"], arrays["item_id_borders"] = pack_texts(
        [state.items.id_of[row] for row in mentioned.tolist()]
    )
    for name, piece in pieces.items():
        arrays[f"user.{name}"] = translate(piece, place) if name in of_items else piece
    arrays["consumed_values"], arrays["consumed_borders"] = translate(values, place), borders
    arrays["user.last_event"], arrays["user.last_ms"] = (
        state.users.last_event.data[rows],
        state.users.last_ms.data[rows],
    )
    hashes = [state.duplicates[source].hashes() for source in ordered if source in state.duplicates]
    sizes = [state.duplicates[source].count if source in state.duplicates else 0 for source in ordered]
    arrays["duplicates"] = np.concatenate([np.zeros(0, np.uint64), *hashes])
    arrays["duplicate_borders"] = np.cumsum([0, *sizes], dtype=np.int64)
    return Shard({source: state.offsets.get(source, 0) for source in ordered}, arrays)


def put(state: State, shard: Shard, sources: Collection[TopicPartition] | None = None) -> Differences:
    """Add the users of a shard's partitions, of these or of all, in the place of what is held of them;
    unknown items are admitted without counts.

    Return which columns differed. Raise `CheckpointError` for one that can't be made to fit.
    """
    shard = shard if sources is None else part_of(shard, sources)
    arrays, ordered = shard.arrays, sorted(shard.offsets)
    state.drop_partitions(ordered)
    ids = unpack_texts(_bytes(arrays["user_ids"]), _longs(arrays["user_id_borders"]))
    twice = state.users.rows(ids)
    state.forget_users(twice[twice >= 0])  # the newest owner's copy of a user wins
    state.add_users(ids)
    rows = state.users.rows(ids)
    columns = _user_columns(state)
    pieces = {
        name: _of_users(name, arrays, column) for name, column in columns.items() if f"user.{name}" in arrays
    }
    row_of_place = _admit_items_of(state, arrays, [pieces[name] for name in pieces if columns[name].of_items])
    for name, piece in pieces.items():
        columns[name].data[rows] = translate(piece, row_of_place) if columns[name].of_items else piece
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
    numbers = np.array([state.number_of(source) for source in ordered], np.int32)
    state.origin.partition.data[rows] = np.repeat(numbers, np.diff(_longs(arrays["user_borders"])))
    state.offsets |= shard.offsets
    if state.availability.withdrawn or state.availability.blocked:  # here, and shown by another worker
        state.mark_holders()
    for source, (start, stop) in zip(ordered, pairwise(arrays["duplicate_borders"].tolist()), strict=True):
        if start < stop:
            state.duplicates[source] = Duplicates(arrays["duplicates"][start:stop].astype(np.uint64))
    known = {f"user.{name}" for name in (*columns, "last_event", "last_ms")}
    saved = {name for name in arrays if name.startswith("user.")}
    return _differences(known, saved)


def part_of(shard: Shard, sources: Collection[TopicPartition]) -> Shard:
    """Return what a shard holds of some of its partitions; its items stay all named."""
    offsets = {source: shard.offsets[source] for source in sorted(sources)}
    if offsets.keys() == shard.offsets.keys():
        return shard
    arrays = shard.arrays
    places = np.array([place for place, source in enumerate(sorted(shard.offsets)) if source in offsets])
    all_rows = np.arange(_longs(arrays["user_borders"])[-1])
    rows, user_borders = pick(all_rows, _longs(arrays["user_borders"]), places)
    part = {name: array[rows] if name.startswith("user.") else array for name, array in arrays.items()} | {
        "user_borders": user_borders
    }
    for values, borders, which in (
        ("user_ids", "user_id_borders", rows),
        ("consumed_values", "consumed_borders", rows),
        ("duplicates", "duplicate_borders", places),
    ):
        part[values], part[borders] = pick(arrays[values], _longs(arrays[borders]), which)
    return Shard(offsets, part)


def _users_of(state: State, sources: Sequence[TopicPartition]) -> tuple[IntArray, npt.NDArray[np.int64]]:
    """Return the rows of the partitions' users, one partition behind the other, and the borders [P + 1]."""
    numbers = [state.number_of(source) for source in sources]
    place_of_number = np.full(len(state.partitions) + 1, -1, np.int64)  # the last for rows of no partition
    place_of_number[numbers] = np.arange(len(numbers))
    place_U = place_of_number[state.origin.partition.data]
    rows = np.flatnonzero(place_U >= 0).astype(np.int32)
    rows = rows[np.argsort(place_U[rows], kind="stable")]
    return rows, np.searchsorted(place_U[rows], np.arange(len(numbers) + 1)).astype(np.int64)


def _mentioned(rows: int, values: Iterable[AnyArray]) -> npt.NDArray[np.intp]:
    """Return which of so many rows are among the values, in order; -1 is none."""
    seen = np.zeros(rows + 1, np.bool_)  # the last takes what is -1
    for each in values:
        seen[each] = True
    return np.flatnonzero(seen[:-1])


def _admit_items_of(state: State, arrays: Arrays, of_items: Sequence[AnyArray]) -> IntArray:
    """Admit the items that a shard's users mention; return the row of each of its items, -1 for the rest."""
    item_ids = unpack_texts(_bytes(arrays["item_ids"]), _longs(arrays["item_id_borders"]))
    places = _mentioned(len(item_ids), [arrays["consumed_values"], *of_items])
    mentioned = [item_ids[place] for place in places.tolist()]
    new = state.admit_items(list(dict.fromkeys(text for text in mentioned if text not in state.items.row_of)))
    state.settle_items(new)
    # else an item that its users bring along would be long overdue
    state.items.last_ms.data[new] = arrays["user.last_ms"].max(initial=0)
    row_of_place = np.full(len(item_ids), -1, np.int32)
    row_of_place[places] = state.items.rows(mentioned)
    return row_of_place


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
    items.row_of = {text: row for row, text in enumerate(items.id_of) if text}
    items.free = arrays["items.free"].tolist()
    pending = unpack_texts(_bytes(arrays["items.pending_ids"]), _longs(arrays["items.pending_borders"]))
    items.pending = dict(zip(pending, arrays["items.pending_counts"].tolist(), strict=True))
    numbers = {name: int(str(value)) for name, value in meta.items() if isinstance(value, int)}
    state.events_learned = numbers["events_learned"]
    items.admitted, items.evicted = numbers["items_admitted"], numbers["items_evicted"]
    state.users.admitted, state.users.evicted = numbers["users_admitted"], numbers["users_evicted"]
    available = {name: array for name, array in arrays.items() if name.startswith("availability.")}
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
    model = hashlib.sha256(json.dumps(sorted(state.items.row_of)).encode())
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
