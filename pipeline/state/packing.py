"""The item side of the state out of and into checkpoints, as it lies, and digests of all of it.

Saved arrays are made to fit today's columns: settings choose some lengths, versions add columns. Axes: N =
saved rows, H = ring slots a user.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import CheckpointError
from pipeline.events.batch import TopicPartition
from pipeline.state.shards import Arrays, pack_texts, unpack_texts
from pipeline.state.state import NO_USER, State
from pipeline.state.store import AnyArray, Column, HasColumns, translate, update_digest
from pipeline.state.tables import ANNOUNCED

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int32]
RINGS = ("histories.items", "histories.types", "histories.times")  # slot = number of the push % length
_OWN = {"consumed.start", "partition_of.partition"}  # mean something in this process alone
_DERIVED = {"features.popularity.listed", "features.popularity.complete"}  # items of equal counts go by row
ADVICE = "go back to the version of afresh that saved it, or choose another checkpoint.path to start empty"
_TABLE = ("ids", "id_borders", "free", "pending_ids", "pending_borders", "pending_counts")  # no columns


class Differences(NamedTuple):
    """Columns that a checkpoint lacks, and columns in it that this version doesn't know, by full name."""

    lacking: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    def __or__(self, other: "Differences") -> "Differences":
        return Differences(self.lacking | other.lacking, self.unknown | other.unknown)

    def tell(self) -> None:
        """Log what becomes of these columns, in one line."""
        effects = (
            (self.lacking, "not in it, an older version saved it; starts empty"),
            (self.unknown, "not known to this version; left out"),
        )
        parts = [f"{', '.join(sorted(names))}: {effect}" for names, effect in effects if names]
        if parts:
            logger.info("checkpoint of another version: %s", "; ".join(parts))


class Loaded(NamedTuple):
    """Each model that restarts with the column that does not fit, "" where none of it was saved."""

    differences: Differences
    restarted: dict[str, str]


def save_items(state: State) -> tuple[Arrays, dict[str, object]]:
    """Copy the item side out: all columns but the users', the table, and plain values."""
    items = state.items
    arrays: Arrays = {name: column.data.copy() for name, column in item_columns(state).items()}
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
        "items_used": items.used,
        "reclaim_step": state.reclaimer.step,
        "item_offsets": [[*source, offset] for source, offset in sorted(state.item_offsets.items())],
    }
    return arrays, meta


def load_items(state: State, arrays: Arrays, meta: Mapping[str, Any]) -> Loaded:
    """Undo `save_items` on a fresh state; what was not saved stays empty.

    A model restarts when `arrays` hold nothing of it, or when a shape is another. Raise `CheckpointError`
    for any other column that can't be made to fit.
    """
    items = state.items
    restarted = _restarted(state, arrays)
    columns = item_columns(state)
    for name, column in columns.items():
        if name in arrays and model_of(name) not in restarted:
            if why := misfit(arrays[name], column):
                raise CheckpointError(f"column {name}: {why}; {ADVICE}")
            _set(column, fitted(arrays[name], column))
        elif column.axis == "item":
            shape = (arrays["items.status"].shape[0], *column.data.shape[1:])
            column.data = np.full(shape, column.fill, column.data.dtype)
    items.id_of = unpack_texts(arrays["items.ids"], arrays["items.id_borders"])
    announced = (items.status.data == ANNOUNCED).tolist()
    items.row_of = {text: row for row, text in enumerate(items.id_of) if text and not announced[row]}
    items.announced = {text: row for row, text in enumerate(items.id_of) if text and announced[row]}
    items.free = arrays["items.free"].tolist()
    pending = unpack_texts(arrays["items.pending_ids"], arrays["items.pending_borders"])
    items.pending = dict(zip(pending, arrays["items.pending_counts"].tolist(), strict=True))
    state.events_learned = meta["events_learned"]
    items.admitted, items.evicted, items.used = (
        meta[f"items_{name}"] for name in ("admitted", "evicted", "used")
    )
    state.users.admitted, state.users.evicted = meta["users_admitted"], meta["users_evicted"]
    available = {name: array for name, array in arrays.items() if name.startswith("availability.")}
    state.availability.load({name.partition(".")[2]: array for name, array in available.items()})
    for topic, partition, offset in meta.get("item_offsets", []):
        state.item_offsets[TopicPartition(topic, partition)] = offset
    items.recount()
    state.reclaimer.resume(state.stores.values(), meta["reclaim_step"])
    others = {*available, *(f"items.{name}" for name in _TABLE)}
    saved = {name for name in arrays if not ("/" in name or name in others)}
    known = {name for name in columns if model_of(name) not in restarted}
    return Loaded(differences(known, saved), restarted)


def digests(state: State) -> dict[str, str]:
    """Return `digest_model` and `digest_users`, the same for the same content in whatever rows it lies."""
    item_rows, canonical = state.items.canonical()
    model = hashlib.sha256(json.dumps(state.items.ids(item_rows)).encode())
    for name, column in sorted(item_columns(state).items()):
        if name not in _DERIVED:
            update_digest(model, name, column, item_rows, canonical)
    users = hashlib.sha256()
    ids = sorted(set(state.users.row_of) - {NO_USER})
    rows = state.users.rows(ids)
    sources = [state.partitions[number] for number in state.partition_of.partition.data[rows].tolist()]
    users.update(json.dumps([ids, [list(source) for source in sources]]).encode())
    table = {f"users.{name}": column for name, column in state.users.columns().items()}
    for name, column in sorted((user_columns(state) | table).items()):
        if name not in ("consumed.size", "consumed.room"):  # what a set holds counts, not how it is packed
            update_digest(users, name, column, rows, canonical)
    values, borders = state.consumed.ragged(rows)
    kept = translate(values, canonical)
    counts = np.diff(np.append(0, np.cumsum(kept >= 0))[borders])
    users.update(kept[kept >= 0].tobytes() + counts.tobytes())
    for source in sorted(state.duplicates):
        users.update(f"{source}".encode() + state.duplicates[source].hashes().tobytes())
    return {"digest_model": model.hexdigest(), "digest_users": users.hexdigest()}


def item_columns(state: State) -> dict[str, Column]:
    """Return all columns but the users', the items' table included, by full name."""
    return shared_columns(state) | _columns({"items": state.items})


def shared_columns(state: State) -> dict[str, Column]:
    """Return the columns of stores that belong to no user, by full name."""
    columns = _columns(state.stores)
    return {name: column for name, column in columns.items() if column.axis != "user"}


def user_columns(state: State) -> dict[str, Column]:
    """Return the columns that belong to users and mean something in any process, by full name."""
    columns = _columns(state.stores)
    return {name: column for name, column in columns.items() if column.axis == "user" and name not in _OWN}


def _columns(stores: Mapping[str, HasColumns]) -> dict[str, Column]:
    return {
        f"{name}.{key}": column for name, store in stores.items() for key, column in store.columns().items()
    }


def _restarted(state: State, arrays: Arrays) -> dict[str, str]:
    """Return the models that can't go on from these arrays, each with the reason."""
    restarted: dict[str, str] = {}
    columns: dict[str, dict[str, Column]] = {}
    for name, column in item_columns(state).items():
        if model_of(name):
            columns.setdefault(model_of(name), {})[name] = column
    for model, of_model in columns.items():
        held = {name: misfit(arrays[name], column) for name, column in of_model.items() if name in arrays}
        whys = [f"{name}: {why}" for name, why in held.items() if why]
        if whys or not held:
            restarted[model] = whys[0] if whys else ""
    return restarted


def model_of(name: str) -> str:
    """Return the model that a column belongs to, "" for none.

    >>> model_of("model.attention.table"), model_of("histories.items")
    ('attention', '')
    """
    return name.split(".")[1] if name.startswith("model.") else ""


def differences(known: set[str], saved: set[str]) -> Differences:
    """Compare names of columns. Unknown ones of a model are of one that is no longer configured."""
    lacking, unknown = (
        frozenset(name.removeprefix("user.") for name in names) for names in (known - saved, saved - known)
    )
    return Differences(lacking, frozenset(name for name in unknown if not model_of(name)))


def _set(column: Column, data: npt.NDArray[np.generic]) -> None:
    """Replace what grows; copy into what does not, since a model may share its memory."""
    if column.axis == "none":
        column.data[...] = data
    else:
        column.data = data.copy()


def misfit(saved: AnyArray, column: Column) -> str:
    """Return why a saved array can't be taken into a column; "" where it can, perhaps cut or filled up."""
    free_axes = {column.stretch} if column.axis == "none" else {0, column.stretch}
    held, wanted = (
        (array.dtype, [size for axis, size in enumerate(array.shape) if axis not in free_axes], array.ndim)
        for array in (saved, column.data)
    )
    if held == wanted:
        return ""
    held_text, wanted_text = (f"{array.dtype}{list(array.shape)}" for array in (saved, column.data))
    return f"it holds {held_text}, this version expects {wanted_text}"


def fitted(saved: AnyArray, column: Column) -> AnyArray:
    """Return a saved array in the column's length along its stretch: cut, or filled up.

    >>> fitted(np.array([[1, 2, 3]]), Column(np.zeros((8, 2), np.int64), "user", stretch=1)).tolist()
    [[1, 2]]
    """
    axis = column.stretch
    if axis < 0 or saved.shape[axis] == column.data.shape[axis]:
        return saved
    shape = list(saved.shape)
    shape[axis] = column.data.shape[axis]
    out = np.full(shape, column.fill, saved.dtype)
    kept = [slice(None)] * saved.ndim
    kept[axis] = slice(min(shape[axis], saved.shape[axis]))
    out[tuple(kept)] = saved[tuple(kept)]
    return out


def laid_anew(ring_NH: AnyArray, pushed_N: npt.NDArray[np.int64], length: int, fill: float) -> AnyArray:
    """Return rings of another length [N, length] with the newest pushes that both have room for.

    >>> laid_anew(np.array([[4, 5, 3]]), np.array([5]), 4, -1).tolist()  # pushed: 1 to 5
    [[5, -1, 3, 4]]
    """
    held = ring_NH.shape[1]
    if held == length:
        return ring_NH
    out = np.full((ring_NH.shape[0], length), fill, ring_NH.dtype)
    every_N = np.arange(ring_NH.shape[0])
    for back in range(min(held, length)):
        there = pushed_N > back
        number_N = pushed_N[there] - 1 - back
        out[every_N[there], number_N % length] = ring_NH[every_N[there], number_N % held]
    return out


def user_piece(name: str, arrays: Arrays, column: Column) -> npt.NDArray[np.generic]:
    """Return what a shard holds of a user column, made to fit; fill values where it is another model's."""
    piece = arrays[f"user.{name}"]
    if why := misfit(piece, column):
        if not model_of(name):
            raise CheckpointError(f"column {name} of a shard: {why}; {ADVICE}")
        return np.full((piece.shape[0], *column.data.shape[1:]), column.fill, column.data.dtype)
    if name in RINGS:
        return laid_anew(piece, arrays["user.histories.pushed"], column.data.shape[1], column.fill)
    return fitted(piece, column)
