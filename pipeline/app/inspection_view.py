"""Print what `afresh inspect` describes: a checkpoint, a user, an item."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.app.text import moment, plain

MAX_ROWS = 20  # of a table; the JSON document has all
WIDTH = 110  # where there is no terminal
HEADING = ("seq", "saved_at_ms", "events_learned")  # the first line has them


def show(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a report: the checkpoint with its metrics, or the user and the item."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    saved = f"saved {moment(report['saved_at_ms'])}: {report['events_learned']:,} events learned"
    console.print(Text(f"checkpoint {report['seq']}, {saved}"))
    one = {kind: report[kind] for kind in ("user", "item") if kind in report}
    for part in parts(one or {name: value for name, value in report.items() if name not in HEADING}):
        console.print(part, soft_wrap=isinstance(part, Text))


def parts(report: Mapping[str, Any], indent: str = "") -> Iterator[Text | Table]:
    """Yield a line for each value, nested ones indented, and a table for each array of records.

    >>> print(*parts({"seq": 3, "offsets": {"events": {"0": 7}}}), sep="\\n")
    seq: 3
    offsets:
      events:
        0: 7
    """
    for name, value in report.items():
        if isinstance(value, dict) and value:
            yield Text(f"{indent}{name}:")
            yield from parts(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from _table(name, value)
        else:
            yield Text(f"{indent}{name}: {_cell(name, value)}")


def _table(title: str, records: Sequence[Mapping[str, Any]]) -> Iterator[Text | Table]:
    """Yield a table with a row for each record, and the number of those left out."""
    table = Table(title=title, title_justify="left", title_style="bold")
    columns = list(dict.fromkeys(name for record in records for name in record))
    for name in columns:
        table.add_column(name, overflow="fold")
    for record in records[:MAX_ROWS]:
        table.add_row(*(Text(_cell(name, record.get(name))) for name in columns))  # not rich's markup
    yield table
    if len(records) > MAX_ROWS:
        yield Text(f"and {len(records) - MAX_ROWS:,} more: see --json")


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_cell("", each) for each in value)
    return moment(value) if name.endswith("_ms") and isinstance(value, int) else plain(str(value))
