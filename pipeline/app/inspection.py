"""Open the newest checkpoint of a worker, describe what it holds, and print that."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.app.text import moment, plain
from pipeline.errors import UsageError
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.manifest import Manifest
from pipeline.recommender import Recommender
from pipeline.settings import Settings

MAX_ROWS = 20  # of a table; the JSON document has all
WIDTH = 110  # where there is no terminal
HEADING = ("seq", "saved_at_ms", "events_learned")  # the first line has them


class Opened(NamedTuple):
    """A checkpoint, the recommender restored from it, and the workers with checkpoints in the folder."""

    manifest: Manifest
    learner: Recommender
    workers: list[str]


def open_newest(
    path: str | None, settings: Settings, make: Callable[[Settings], Recommender] = Recommender
) -> Opened:
    """Restore the newest complete checkpoint at `path`, by default `checkpoint.path`, with its configuration.

    The worker is `kafka.worker_id`, or the only one in the folder. Raise `UsageError` without a checkpoint.
    """
    path = path or settings.checkpoint.path
    if not path:
        raise UsageError("no checkpoint named; expected --checkpoint PATH or checkpoint.path")
    folder = UrlFolder(path)
    workers = Checkpoints(folder, settings).workers()
    settings = _of_worker(workers, path, settings)
    settings = Checkpoints(folder, settings).configuration() or settings
    found = Checkpoints(folder, settings).load()
    if found is None:
        raise UsageError(
            f"{path}: no checkpoint is there; expected a folder of `afresh run` or `afresh train`"
        )
    manifest, snapshot = found
    learner = make(settings)
    learner.restore(snapshot)
    return Opened(manifest, learner, workers)


def describe(opened: Opened, user_id: str | None, item_id: str | None) -> dict[str, Any]:
    """Return the whole report. Raise `UsageError` for a user or item that the checkpoint does not know."""
    manifest, learner = opened.manifest, opened.learner
    offsets: dict[str, dict[str, int]] = {}
    for each in manifest.offsets:
        offsets.setdefault(each.topic, {})[str(each.partition)] = each.offset
    report: dict[str, Any] = {
        "seq": manifest.seq,
        "saved_at_ms": manifest.saved_at_ms,
        "events_learned": manifest.events_learned,
        "offsets": offsets,
        **learner.digests(),
        "quality": learner.quality.cumulative(),
    }
    if user_id is not None:
        report["user"] = learner.describe_user(user_id)
    if item_id is not None:
        report["item"] = learner.describe_item(item_id)
    for kind, name in (("user", user_id), ("item", item_id)):
        if name is not None and not report[kind]:
            raise UsageError(
                f"--{kind} {name}: not in checkpoint {manifest.seq}; expected an id of an earlier event, "
                "exactly as spelled there"
            )
    return report


def _of_worker(workers: list[str], path: str, settings: Settings) -> Settings:
    """Return the settings of the only worker in the folder where the configured one has no checkpoint."""
    if not workers or settings.kafka.worker_id in workers:
        return settings
    if len(workers) > 1:
        raise UsageError(
            f"kafka.worker_id = {settings.kafka.worker_id!r}: no such worker in {path}; expected one of "
            f"{', '.join(workers)}: add --set kafka.worker_id={workers[0]}"
        )
    kafka = msgspec.structs.replace(settings.kafka, worker_id=workers[0])
    return msgspec.structs.replace(settings, kafka=kafka)


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
