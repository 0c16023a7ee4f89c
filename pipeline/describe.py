"""What is held of one user or item, as JSON values: what `afresh inspect` shows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.features.bank import FeatureBank
from pipeline.features.popularity import ALL, DAY, P300, P1000
from pipeline.ranking.lists import Ranked
from pipeline.roles import FAMILIAR
from pipeline.settings import Settings
from pipeline.state.event_types import type_code
from pipeline.state.state import State
from pipeline.state.tables import LIVE

FOLLOWERS = 10  # transitions of an item that are shown
SPANS = {
    ALL: "all time",
    P1000: "half-life 1,000 events",
    P300: "half-life 300 events",
    DAY: "half-life one day",
}


class Interaction(NamedTuple):
    """One place of a history."""

    item: int  # row
    event_type: str | None  # None: not known, histories keep a hash
    timestamp_ms: int | None


def user_document(state: State, settings: Settings, row: int, ranked: Ranked) -> dict[str, Any]:
    """Return what is held of the user at `row`; `ranked` [1, K] is the list that would be served now."""
    name = state.items.id_of
    history = interactions(state, settings, row)
    consumed = state.consumed.of(row, state.items.status.data).tolist()
    published = [item for item in state.published.items.data[row].tolist() if item >= 0 and name[item]]
    now = [item for item in ranked.rows_BK[0].tolist() if item >= 0]
    excluded = exclusions(state, history, consumed, published)
    number = int(state.partition_of.partition.data[row])
    lists = zip(*(column[0].tolist() for column in ranked), strict=True)
    return {
        "user_id": state.users.id_of[row],
        "partition": list(state.partitions[number]) if number >= 0 else None,
        "events": int(state.histories.pushed.data[row]),
        "history": [
            {"item_id": name[each.item], "timestamp_ms": each.timestamp_ms, "event_type": each.event_type}
            for each in history
        ],
        "consumed": [name[item] for item in consumed],
        "excluded": list(excluded.values()),
        "ranking": [
            {"item_id": name[item], "score": score, "because": [name[r] for r in why if r >= 0]}
            for item, score, why in lists
            if item >= 0
        ],
        "published": [name[item] for item in published],
        "changes": changes([name[item] for item in published], [name[item] for item in now], excluded),
    }


def interactions(state: State, settings: Settings, row: int) -> list[Interaction]:
    """Return a user's history, newest first."""
    items, types, times, length = state.histories.latest(np.array([row], np.int32), state.items.status.data)
    names = _type_names(settings)
    columns = (column[0, : length[0]].tolist() for column in (items, types, times))
    places = zip(*columns, strict=True)
    return [Interaction(item, names.get(code), ms) for item, code, ms in places]


def exclusions(
    state: State, history: Sequence[Interaction], consumed: Sequence[int], published: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Return why items are kept from a user's list, by id, the newest consumed first.

    Of hidden items only those are named that are in the user's history or published list.
    """
    name, found = state.items.id_of, {}
    unknown = Interaction(-1, None, None)
    by_item = {
        each.item: each
        for each in reversed(history)
        if each.event_type is not None and state.types.of(each.event_type).consumes
    }
    for item in reversed(consumed):
        _, event_type, timestamp_ms = by_item.get(item, unknown)
        found[name[item]] = {
            "item_id": name[item], "why": "consumed", "event_type": event_type, "timestamp_ms": timestamp_ms,
        }  # fmt: skip
    for item in (*(each.item for each in history), *published):
        if why := hidden_because(state, name[item]):
            found[name[item]] = {"item_id": name[item], "why": why}
    return found


def hidden_because(state: State, item_id: str) -> str:
    """Return why an item is hidden from all users; "" when it is not."""
    if item_id in state.availability.blocked:
        return "blocked"
    return "withdrawn" if item_id in state.availability.withdrawn else ""


def changes(published: Sequence[str], now: Sequence[str], excluded: Iterable[str]) -> dict[str, Any]:
    """Say how the list of now differs from the published one; `excluded` are ids that may not be shown.

    >>> changes(["a", "b", "c"], ["b", "a", "d"], ["c"])["dropped"]
    [{'item_id': 'c', 'from': 3, 'why': 'excluded'}]
    """
    before = {item: place for place, item in enumerate(published, 1)}
    after = {item: place for place, item in enumerate(now, 1)}
    not_shown = set(excluded)
    return {
        "new": [{"item_id": item, "to": place} for item, place in after.items() if item not in before],
        "dropped": [
            {"item_id": item, "from": place, "why": "excluded" if item in not_shown else "outranked"}
            for item, place in before.items()
            if item not in after
        ],
        "moved": [
            {"item_id": item, "from": before[item], "to": place}
            for item, place in after.items()
            if before.get(item, place) != place
        ],
    }


def item_document(state: State, bank: FeatureBank, item_id: str) -> dict[str, Any] | None:
    """Return what is held of an item; None when neither events nor the items topic have named it."""
    hidden, row = hidden_because(state, item_id), state.items.row_of.get(item_id)
    if row is None:
        if not hidden and item_id not in state.availability.announced:
            return None
        return {"item_id": item_id, "events": 0.0, "available": not hidden, "hidden": hidden}
    holders = np.flatnonzero((state.published.items.data == row).any(1))
    return {
        "item_id": item_id,
        "available": not hidden,
        "hidden": hidden,
        "events": float(bank.transitions.count.data[row]),
        "popularity": float(bank.popularity.values(P1000)[row]),
        "popularities": list(_popularities(state, bank, row)),
        "last_timestamp_ms": int(state.items.last_ms.data[row]),
        "followed_by": _followers(state, bank, row),
        "on_lists": int(np.count_nonzero(holders > 0)),
        "on_default_list": bool((holders == 0).any()),
    }


def _popularities(state: State, bank: FeatureBank, row: int) -> Iterator[dict[str, Any]]:
    """Yield the item's weight, and its place among the items that may be shown, over each span."""
    live = state.items.status.data == LIVE
    for column, words in SPANS.items():
        values = bank.popularity.values(column)
        place = 1 + int(np.count_nonzero(live & (values > values[row])))
        yield {"over": words, "weight": float(values[row]), "place": place, "of": int(live.sum())}


def _followers(state: State, bank: FeatureBank, row: int) -> list[dict[str, Any]]:
    """Return what people turn to after the item, the most frequent first."""
    partners, weights = bank.transitions.partner.data[row], bank.transitions.forward.data[row]
    live = (partners >= 0) & (state.items.status.data[partners] == LIVE) & (weights > 0)
    order = np.flatnonzero(live)[np.argsort(-weights[live], kind="stable")]
    return [
        {"item_id": state.items.id_of[partners[slot]], "weight": float(weights[slot])}
        for slot in order[:FOLLOWERS].tolist()
    ]


def _type_names(settings: Settings) -> dict[int, str]:
    """Return the names of event types by their hash: those of the configuration and the usual ones.

    A hash that two of them share names none.
    """
    names = {
        *FAMILIAR, *settings.events.roles, *settings.events.weights,
        *(settings.rank.exclude_event_types or ()),
        *settings.topics.event_topics().values(),
    }  # fmt: skip
    found: dict[int, str] = {}
    for name in sorted(names):
        code = type_code(name)
        found[code] = "" if code in found else name
    return {code: name for code, name in found.items() if name}
