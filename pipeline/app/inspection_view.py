"""Lay out for a human what `afresh inspect` tells of a user or an item."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.events.checks import shown

MOST = 20  # rows of a table; the JSON document has all
WIDTH = 110  # where there is no terminal


def heading(report: Mapping[str, Any]) -> str:
    """Return which checkpoint it is, and up to when it knows what happened.

    >>> heading({"seq": 92, "saved_at_ms": 1_700_000_000_000, "events_learned": 15_600})
    'checkpoint 92, saved 2023-11-14 22:13:20Z: 15,600 events learned'
    """
    saved = moment(report["saved_at_ms"])
    return f"checkpoint {report['seq']}, saved {saved}: {report['events_learned']:,} events learned"


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the tables of the user and of the item that a report holds, if any."""
    for kind, lay_out in (("user", user), ("item", item)):
        if isinstance(report.get(kind), Mapping):
            for part in lay_out(report[kind]):
                console.print(part)


def make_console() -> Console:
    """Return a console on stdout that is wide enough where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def user(told: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what is held of a user: history, what is left out and why, the list of now and the last one."""
    where = told["partition"]
    place = "stands for people without events" if where is None else f"partition {where[1]} of {where[0]}"
    yield _line(f"user {plain(told['user_id'])}: {place}, {told['events']:,} events in all")
    history = _table("history, newest first", "item", "event type", "time")
    for each in told["history"][:MOST]:
        history.add_row(
            _text(each["item_id"]), _text(each["event_type"] or "?"), moment(each["timestamp_ms"])
        )
    if told["history"]:
        yield history
    yield from _more(told["history"])
    if told["excluded"]:
        excluded = _table("left out, and why", "item", "why")
        for each in told["excluded"][:MOST]:
            excluded.add_row(_text(each["item_id"]), _text(why(each)))
        yield excluded
        yield from _more(told["excluded"])
    yield _ranking(told)
    dropped = told["changes"]["dropped"]
    if dropped:
        left = ", ".join(f"{plain(each['item_id'])} (was {each['from']}, {each['why']})" for each in dropped)
        yield _line(f"no longer listed: {left}")
    if not told["published"] and where is not None:  # the default list's last places are not kept
        yield _line("no list was published yet")
    elif not any(told["changes"].values()):
        yield _line("the list last published is the same")


def item(told: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield what is held of an item: how popular it is, what follows it, who is shown it."""
    name = plain(told["item_id"])
    state = "may be shown" if told["available"] else f"may not be shown: {told['hidden']}"
    if "followed_by" not in told:
        yield _line(f"item {name}: {state}; no event has named it yet")
        return
    lists = f"on {told['on_lists']:,} users' lists" + (", and the default list" * told["on_default_list"])
    yield _line(
        f"item {name}: {state}; weight of its events {told['events']:g}, the last at "
        f"{moment(told['last_timestamp_ms'])}; {lists}"
    )
    popularity = _table("popularity", "over", "weight", "place")
    for each in told["popularities"]:
        popularity.add_row(each["over"], f"{each['weight']:.2f}", f"{each['place']:,} of {each['of']:,}")
    yield popularity
    if told["followed_by"]:
        followers = _table("what people turn to after it", "item", "weight")
        for each in told["followed_by"]:
            followers.add_row(_text(each["item_id"]), f"{each['weight']:.2f}")
        yield followers


def why(excluded: Mapping[str, Any]) -> str:
    """Return in words why an item is left out.

    >>> why({"why": "consumed", "event_type": "buy", "timestamp_ms": 1_700_000_000_000})
    'consumed: buy at 2023-11-14 22:13:20Z'
    >>> why({"why": "withdrawn"})
    'withdrawn in the items topic'
    """
    if excluded["why"] == "consumed":
        if excluded["event_type"] is None:
            return "consumed, by an event that the history no longer holds or that has an unusual type"
        return f"consumed: {plain(excluded['event_type'])} at {moment(excluded['timestamp_ms'])}"
    return {"withdrawn": "withdrawn in the items topic", "blocked": "blocked by rank.blocked_items"}.get(
        excluded["why"], str(excluded["why"])
    )


def moment(ms: int) -> str:
    """Return a time in UTC, to the second.

    >>> moment(1_700_000_000_000)
    '2023-11-14 22:13:20Z'
    """
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def plain(text: str) -> str:
    """Return text that comes from a stream so that a terminal can't take it for a command.

    >>> plain("Zürich-7"), plain("a\\x1b[2J")
    ('Zürich-7', "'a\\\\x1b[2J'")
    """
    return text if text.isprintable() else shown(text, 256)


def _ranking(told: Mapping[str, Any]) -> Table:
    before = {item: place for place, item in enumerate(told["published"], 1)}
    table = _table("the list that would be served now", "", "item", "score", "because of", "published as")
    for place, each in enumerate(told["ranking"], 1):
        was = before.get(each["item_id"])
        table.add_row(
            str(place), _text(each["item_id"]), f"{each['score']:.2f}", _text(", ".join(each["because"])),
            str(was) if was else "new" if before else "",
        )  # fmt: skip
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _more(rows: Sequence[object]) -> Iterator[Text]:
    if len(rows) > MOST:
        yield _line(f"and {len(rows) - MOST:,} more: see --json")


def _line(text: str) -> Text:
    return Text(text)


def _text(text: str) -> Text:
    """Return text that is not read as rich's markup."""
    return Text(plain(text))
