"""Print what `afresh inspect` describes: a checkpoint, a user, an item."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.app.text import moment, plain

MAX_ROWS = 20  # of a table; the JSON document has all
WIDTH = 110  # where there is no terminal
HEADING = ("seq", "saved_at_ms", "events_learned")  # the first line has them
EXCLUDED = {"withdrawn": "withdrawn in the items topic", "blocked": "blocked by rank.blocked_items"}


def show(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a report: the checkpoint with its metrics, or of a user or an item the tables."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    saved = f"saved {moment(report['saved_at_ms'])}: {report['events_learned']:,} events learned"
    console.print(Text(f"checkpoint {report['seq']}, {saved}"))
    for kind, parts in (("user", user_parts), ("item", item_parts)):
        for part in parts(report[kind]) if kind in report else ():
            console.print(part)
    if not {"user", "item"} & report.keys():
        for line in lines({name: value for name, value in report.items() if name not in HEADING}):
            console.print(Text(line), soft_wrap=True)


def lines(report: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield a line for each value, nested ones indented.

    >>> print(*lines({"seq": 3, "offsets": {"events": {"0": 7}}}), sep="\\n")
    seq: 3
    offsets:
      events:
        0: 7
    """
    for name, value in report.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}:"
            yield from lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {value}"


def user_parts(user: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield a user's history, the excluded items with reasons, the list of now and the published one."""
    partition, dropped = user["partition"], user["changes"]["dropped"]
    place = f"partition {partition[1]} of {partition[0]}" if partition else "the list of users without events"
    yield Text(f"user {plain(user['user_id'])}: {place}, {user['events']:,} events in all")
    history = [
        (each["item_id"], each["event_type"] or "?", moment(each["timestamp_ms"])) for each in user["history"]
    ]
    yield from _table("history, newest first", ["item", "event type", "time"], history)
    excluded = [(each["item_id"], why(each)) for each in user["excluded"]]
    yield from _table("excluded items, and why", ["item", "why"], excluded)
    yield from _ranking(user)
    if dropped:
        left = (f"{plain(each['item_id'])} (was {each['from']}, {each['why']})" for each in dropped)
        yield Text(f"no longer listed: {', '.join(left)}")
    if not user["published"] and partition is not None:  # places of the default list are not kept
        yield Text("no list was published yet")
    elif not any(user["changes"].values()):
        yield Text("the list last published is the same")


def item_parts(item: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield an item's popularity, the items that follow it, and the number of lists that hold it."""
    name = plain(item["item_id"])
    state = "available" if item["available"] else f"not available: {item['hidden']}"
    if "followed_by" not in item:
        yield Text(f"item {name}: {state}; it has no event yet")
        return
    lists = f"on {item['on_lists']:,} users' lists" + (", and the default list" * item["on_default_list"])
    last = f"the last at {moment(item['last_timestamp_ms'])}"
    yield Text(f"item {name}: {state}; weight of its events {item['events']:g}, {last}; {lists}")
    places = [
        (each["over"], f"{each['weight']:.2f}", f"{each['place']:,} of {each['of']:,}")
        for each in item["popularities"]
    ]
    yield from _table("popularity", ["over", "weight", "place"], places)
    followers = [(each["item_id"], f"{each['weight']:.2f}") for each in item["followed_by"]]
    yield from _table("what follows it", ["item", "weight"], followers)


def why(excluded: Mapping[str, Any]) -> str:
    """Return in words why an item is excluded.

    >>> why({"why": "consumed", "event_type": "buy", "timestamp_ms": 1_700_000_000_000})
    'consumed: buy at 2023-11-14 22:13:20Z'
    >>> why({"why": "withdrawn"})
    'withdrawn in the items topic'
    """
    if excluded["why"] != "consumed":
        return EXCLUDED.get(excluded["why"], str(excluded["why"]))
    if excluded["event_type"] is None:
        return "consumed, by an event that is no longer in the history or of an unusual type"
    return f"consumed: {plain(excluded['event_type'])} at {moment(excluded['timestamp_ms'])}"


def _ranking(user: Mapping[str, Any]) -> Iterator[RenderableType]:
    before = {item: place for place, item in enumerate(user["published"], 1)}
    rows = [
        (
            str(place),
            each["item_id"],
            f"{each['score']:.2f}",
            ", ".join(each["because"]),
            str(before.get(each["item_id"], "new" if before else "")),
        )
        for place, each in enumerate(user["ranking"], 1)
    ]
    if not rows:
        yield Text("no item can be listed now")
    columns = ["", "item", "score", "because of", "published as"]
    yield from _table("the list that would be published now", columns, rows, len(rows))


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], most: int = MAX_ROWS
) -> Iterator[RenderableType]:
    """Yield a table and the number of rows left out; nothing without rows."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows[:most]:
        table.add_row(*(Text(plain(cell)) for cell in row))  # not rich's markup
    yield table
    if len(rows) > most:
        yield Text(f"and {len(rows) - most:,} more: see --json")
