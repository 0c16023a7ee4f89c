"""Open the newest checkpoint of a worker and describe what it holds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from pipeline.errors import UsageError
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.persistence.manifest import Manifest
from pipeline.recommender import Recommender
from pipeline.settings import Settings


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
        raise UsageError(
            "no checkpoint named; expected --checkpoint PATH, or checkpoint.path in the configuration"
        )
    folder = UrlFolder(path)
    workers = Checkpoints(folder, settings).workers()
    settings = _of_worker(workers, path, settings)
    settings = Checkpoints(folder, settings).configuration() or settings
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
    described = (("user", user_id, learner.describe_user), ("item", item_id, learner.describe_item))
    for kind, name, describe_one in described:
        if name is not None:
            report[kind] = describe_one(name)
            if not report[kind]:
                raise UsageError(
                    f"--{kind} {name}: not in checkpoint {manifest.seq}; expected an id that occurred before "
                    "it was saved, exactly as in the events"
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
