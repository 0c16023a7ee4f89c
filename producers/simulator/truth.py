"""The ground truth of a simulation: what changed when, recorded as it happens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from producers.simulator.events import item_name, user_name
from producers.simulator.plan import Burst, Change

Record = dict[str, Any]
Moment = tuple[int, int, int]  # item, event, ms
TIMES = ("at_ms", "until_ms", "ms")


class Scope(NamedTuple):
    """What a change affects; None: all."""

    users: Sequence[int] | None = None
    items: Sequence[int] | None = None
    categories: Sequence[str] | None = None


@dataclass(slots=True)
class Truth:
    """A log that `simulate_users` fills; complete at the end of the stream.

    Users and items are numbers, times are ms since the start of the stream; `as_json` returns ids and
    timestamps.
    """

    changes: list[Record] = field(default_factory=list)
    bursts: list[Record] = field(default_factory=list)
    new_items: list[Moment] = field(default_factory=list)
    retired_items: list[Moment] = field(default_factory=list)
    noise_users: list[int] = field(default_factory=list)
    season: Record | None = None

    def change_began(self, change: Change, event: int, ms: int, scope: Scope) -> Record:
        """Record the start of a change; return the record, for `turned` and `over`."""
        turns: list[Record] = []
        self.changes.append(_begun(change.kind, event, ms) | scope._asdict() | {"turns": turns})
        turned(self.changes[-1], event, ms, "new")
        return self.changes[-1]

    def burst_began(self, burst: Burst, event: int, ms: int, target: int | str | None) -> Record:
        """Record the start of a burst; return the record, for `over`."""
        how = {"factor": burst.factor} if burst.kind == "rate" else {"share": burst.share, burst.kind: target}
        self.bursts.append(_begun(burst.kind, event, ms) | how)
        return self.bursts[-1]

    def as_json(self, start_ms: int) -> Record:
        """Return everything as JSON values for a stream that starts at `start_ms`.

        Lists of users and items are ids, or "all"; an end that was not reached is null.
        """
        changes = []
        for change in self.changes:
            scope = {
                key: "all" if change[key] is None else [name(each) for each in change[key]]
                for key, name in (("users", user_name), ("items", item_name), ("categories", str))
            }
            turns = [_shifted(turn, start_ms) for turn in change["turns"]]
            changes.append(_shifted(change, start_ms) | scope | {"turns": turns})
        bursts = [_shifted(burst, start_ms) for burst in self.bursts]
        for burst in bursts:
            if "item" in burst:
                burst["item"] = item_name(burst["item"])
        return {
            "start_ms": start_ms,
            "changes": changes,
            "bursts": bursts,
            "season": self.season,
            "new_items": _named(self.new_items, start_ms),
            "retired_items": _named(self.retired_items, start_ms),
            "noise_users": [user_name(user) for user in self.noise_users],
        }


def turned(change: Record, event: int, ms: int, taste: str) -> None:
    """Record that a change turned to its `new` or its `old` taste."""
    change["turns"].append({"event": event, "ms": ms, "taste": taste})


def over(record: Record, event: int, ms: int) -> None:
    """Record the end of a change or a burst."""
    record |= {"until_event": event, "until_ms": ms}


def _begun(kind: str, event: int, ms: int) -> Record:
    return {"kind": kind, "at_event": event, "at_ms": ms, "until_event": None, "until_ms": None}


def _shifted(record: Record, start_ms: int) -> Record:
    """Return a copy with absolute times."""
    return record | {key: record[key] + start_ms for key in TIMES if record.get(key) is not None}


def _named(moments: list[Moment], start_ms: int) -> list[Record]:
    return [
        {"item_id": item_name(item), "at_event": event, "at_ms": start_ms + ms} for item, event, ms in moments
    ]
