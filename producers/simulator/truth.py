"""The ground truth of a simulation: what changed when, recorded as it happens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from producers.simulator.events import item_name, user_name
from producers.simulator.plan import Burst, Change, Season

Record = dict[str, Any]
Moment = tuple[int, int, int]  # item, event, ms
TIMES = ("at_ms", "until_ms", "ms")


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

    def changed(
        self,
        change: Change,
        event: int,
        ms: int,
        users: Sequence[int] | None,
        items: Sequence[int] | None,
        categories: Sequence[str] | None,
    ) -> None:
        """Record the start of a change and what it concerns; None: all."""
        scope = {"users": users, "items": items, "categories": categories}
        turns = [{"event": event, "ms": ms, "taste": "new"}]
        self.changes.append(_begun(change.kind, event, ms) | scope | {"turns": turns})

    def turned(self, event: int, ms: int, taste: str) -> None:
        """Record that the newest change, a recurring one, turned to its `new` or its `old` taste."""
        self.changes[-1]["turns"].append({"event": event, "ms": ms, "taste": taste})

    def change_over(self, event: int, ms: int) -> None:
        """Record that the newest change is complete."""
        self.changes[-1] |= {"until_event": event, "until_ms": ms}

    def burst_began(self, burst: Burst, event: int, ms: int, target: int | str | None) -> int:
        """Record the start of a burst; return its number for `burst_over`."""
        how = {"factor": burst.factor} if burst.kind == "rate" else {"share": burst.share, burst.kind: target}
        self.bursts.append(_begun(burst.kind, event, ms) | how)
        return len(self.bursts) - 1

    def burst_over(self, number: int, event: int, ms: int) -> None:
        """Record the end of a burst."""
        self.bursts[number] |= {"until_event": event, "until_ms": ms}

    def has_season(self, season: Season, peak_hours: dict[str, float]) -> None:
        """Record the hour at which each category is most popular."""
        self.season = asdict(season) | {"peak_hours": peak_hours}

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


def _begun(kind: str, event: int, ms: int) -> Record:
    return {"kind": kind, "at_event": event, "at_ms": ms, "until_event": None, "until_ms": None}


def _shifted(record: Record, start_ms: int) -> Record:
    """Return a copy with absolute times."""
    return record | {key: record[key] + start_ms for key in TIMES if record.get(key) is not None}


def _named(moments: list[Moment], start_ms: int) -> list[Record]:
    return [
        {"item_id": item_name(item), "at_event": event, "at_ms": start_ms + ms} for item, event, ms in moments
    ]
