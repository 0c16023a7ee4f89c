"""Open the newest checkpoint of a worker, and tell what is in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from pipeline.errors import UsageError
from pipeline.outcome import Learner
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.manifest import Manifest
from pipeline.settings import Settings


class Judged(Protocol):
    """Figures of quality since the first event."""

    def cumulative(self) -> Mapping[str, Any]: ...


class Inspected(Learner, Protocol):
    """A learner that can be asked; of an id that it does not know it tells None."""

    @property
    def quality(self) -> Judged: ...
    def describe_user(self, user_id: str) -> dict[str, object] | None: ...
    def describe_item(self, item_id: str) -> dict[str, object] | None: ...


L_co = TypeVar("L_co", bound=Learner, covariant=True)


@dataclass(frozen=True, slots=True)
class Opened(Generic[L_co]):
    """A checkpoint, and the learner that it was restored into; `workers` have checkpoints in the folder."""

    manifest: Manifest
    learner: L_co
    workers: list[str]


def open_newest(path: str, settings: Settings, make: Callable[[Settings], L_co]) -> Opened[L_co]:
    """Restore the newest whole checkpoint into a learner made with the configuration that it was saved with.

    The worker is `kafka.worker_id`, or the only one that there is.
    """
    folder = UrlFolder(path)
    workers = Checkpoints(folder, settings).workers()
    settings = _of_worker(workers, path, settings)
    saved = Checkpoints(folder, settings).configuration()
    if saved is not None:
        settings = saved
    found = Checkpoints(folder, settings).load()
    if found is None:
        raise UsageError(
            f"{path}: no checkpoint is there; expected a folder that `afresh run` or `afresh train` "
            "has saved into"
        )
    manifest, snapshot = found
    learner = make(settings)
    learner.restore(snapshot)
    return Opened(manifest, learner, workers)


def describe(opened: Opened[Inspected], user_id: str | None, item_id: str | None) -> dict[str, Any]:
    """Return the whole report. Raise `UsageError` for a user or item that the checkpoint doesn't know."""
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
    for kind, name, ask in (("user", user_id, "describe_user"), ("item", item_id, "describe_item")):
        if name is not None:
            report[kind] = getattr(learner, ask)(name)
            if not report[kind]:
                raise UsageError(
                    f"--{kind} {name}: not in checkpoint {manifest.seq}; expected the id of one "
                    "that had been seen when it was saved, exactly as in the events"
                )
    return report


def lines(report: dict[str, Any], indent: str = "") -> list[str]:
    """Lay a report out for a human: one line a figure, nested ones indented.

    >>> print("\\n".join(lines({"seq": 3, "offsets": {"events": {"0": 7}}})))
    seq: 3
    offsets:
      events:
        0: 7
    """
    out = []
    for name, value in report.items():
        if isinstance(value, dict) and value:
            out += [f"{indent}{name}:", *lines(value, indent + "  ")]
        else:
            out.append(f"{indent}{name}: {value}")
    return out


def _of_worker(workers: list[str], path: str, settings: Settings) -> Settings:
    """Turn to the only worker of the folder when the configured one has nothing there."""
    if not workers or settings.kafka.worker_id in workers:
        return settings
    if len(workers) > 1:
        raise UsageError(
            f"kafka.worker_id = {settings.kafka.worker_id!r}: no such worker in "
            f"{path}; expected one of {', '.join(workers)}: "
            f"add --set kafka.worker_id={workers[0]}"
        )
    kafka = msgspec.structs.replace(settings.kafka, worker_id=workers[0])
    return msgspec.structs.replace(settings, kafka=kafka)
