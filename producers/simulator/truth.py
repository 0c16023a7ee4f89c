"""What truly happened in a made-up market, written down as it happens."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from producers.simulator.plan import Burst, Change, Season


@dataclass(slots=True)
class Truth:
    """A diary; hand it to `shoppers`, read it when the stream is at its end (or has come as far as it has).

    Users and items are numbers here, times ms since the start of the stream; `as_json` gives them names.
    """

    changes: list[dict[str, Any]] = field(default_factory=list)
    bursts: list[dict[str, Any]] = field(default_factory=list)
    new_items: list[tuple[int, int, int]] = field(default_factory=list)  # item, event, ms
    retired_items: list[tuple[int, int, int]] = field(default_factory=list)
    noise_users: list[int] = field(default_factory=list)
    season: dict[str, Any] | None = None

    def changed(
        self,
        change: Change,
        event: int,
        ms: int,
        users: Sequence[int] | None,
        items: Sequence[int] | None,
        categories: Sequence[str] | None,
    ) -> None:
        """Note that a change began; None: it concerns all of them."""
        told = {"kind": change.kind, "at_event": event, "at_ms": ms, "until_event": None, "until_ms": None}
        whom = {"users": users, "items": items, "categories": categories}
        self.changes.append(told | whom | {"turns": [{"event": event, "ms": ms, "taste": "new"}]})

    def turned(self, event: int, ms: int, taste: str) -> None:
        """Note that the newest change, a recurring one, turned to its `new` or its `old` taste."""
        self.changes[-1]["turns"].append({"event": event, "ms": ms, "taste": taste})

    def change_over(self, event: int, ms: int) -> None:
        """Note that the newest change is complete."""
        self.changes[-1] |= {"until_event": event, "until_ms": ms}

    def burst_began(self, burst: Burst, event: int, ms: int, target: int | str | None) -> int:
        """Note a burst; return its number for `burst_over`."""
        told = {"kind": burst.kind, "at_event": event, "at_ms": ms, "until_event": None, "until_ms": None}
        how = {"factor": burst.factor} if burst.kind == "rate" else {"share": burst.share, burst.kind: target}
        self.bursts.append(told | how)
        return len(self.bursts) - 1

    def burst_over(self, number: int, event: int, ms: int) -> None:
        """Note the end of a burst."""
        self.bursts[number] |= {"until_event": event, "until_ms": ms}

    def has_season(self, season: Season, peak_hours: dict[str, float]) -> None:
        """Note the hour at which each category is liked best."""
        self.season = asdict(season) | {"peak_hours": peak_hours}

    def as_json(
        self, start_ms: int, user_name: Callable[[int], str], item_name: Callable[[int], str]
    ) -> dict[str, Any]:
        """Return all of it as JSON values; `start_ms` is the time of the stream's start.

        Lists of users and items are ids, or "all"; an end that didn't come is null.
        """

        def moved(record: dict[str, Any]) -> dict[str, Any]:
            at = {key: record[key] + start_ms for key in _TIMES if record.get(key) is not None}
            return record | at

        def named(items: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
            return [
                {"item_id": item_name(item), "at_event": event, "at_ms": start_ms + ms}
                for item, event, ms in items
            ]

        changes = [moved(change) | {"turns": [moved(t) for t in change["turns"]]} for change in self.changes]
        for change in changes:
            for key, name in (("users", user_name), ("items", item_name)):
                change[key] = "all" if change[key] is None else [name(each) for each in change[key]]
            change["categories"] = "all" if change["categories"] is None else change["categories"]
        bursts = [moved(burst) for burst in self.bursts]
        for burst in bursts:
            if "item" in burst:
                burst["item"] = item_name(burst["item"])
        return {
            "start_ms": start_ms,
            "changes": changes,
            "bursts": bursts,
            "season": self.season,
            "new_items": named(self.new_items),
            "retired_items": named(self.retired_items),
            "noise_users": [user_name(user) for user in self.noise_users],
        }


_TIMES = ("at_ms", "until_ms", "ms")
