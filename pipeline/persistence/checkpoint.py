"""Checkpoints: the state of a worker as files that are complete or absent.

    <worker>/manifest-<seq>.json                      names the files with checksums; written last
    <worker>/model-<seq>-<checksum>.safetensors       items, parameters, counts, quality
    shards/...safetensors                             the users of all partitions (shard_files.py)

`seq` is the number of the first batch that is NOT in the state. A file's name ends in its checksum, so a file
that an older manifest names is never overwritten. A checkpoint is taken only when nothing is in flight and
everything is committed. compatibility.py states the effect of a changed configuration or version.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace

import msgspec
import numpy as np

from pipeline.errors import CheckpointError
from pipeline.events.batch import TopicPartition
from pipeline.outcome import Learner
from pipeline.persistence.compatibility import FORMAT, changes, log_changes, reconciled
from pipeline.persistence.files import UrlFolder, pack, unpack
from pipeline.persistence.manifest import (
    Damaged,
    FileSum,
    Manifest,
    PartitionOffset,
    is_manifest,
    read_manifest,
    seq_of,
    versions,
    without_secrets,
    write_manifest,
)
from pipeline.persistence.shard_files import ShardFiles, header_of
from pipeline.settings import Settings
from pipeline.state.shards import Shard, Snapshot

logger = logging.getLogger(__name__)

# The folder of `afresh train`: workers without a checkpoint start from it. No worker can have this name.
TRAINED = "@trained"
# Lists made during training were never published: these values replace them in the arrays of a shard.
UNPUBLISHED = {"user.published.items": -1, "user.published.length": -1, "user.refresh.due": 0}


class Checkpoints:
    """The checkpoints of one worker: `saved_seq` of the newest, `oldest_seq` of the oldest kept; 0: none.

    `topic_ids` are the current ids of the topics: saved with each checkpoint, compared with a loaded one.
    """

    def __init__(self, folder: UrlFolder, settings: Settings) -> None:
        self.folder = folder
        self.shards = ShardFiles(folder, settings.kafka.worker_id)
        self.saved_seq = 0
        self.oldest_seq = 0
        self.topic_ids: dict[str, str] = {}
        self._settings = settings

    def save(
        self,
        learner: Learner,
        generation: int,
        now_ms: int,
        held: Collection[TopicPartition] = (),
        heartbeat: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Write a checkpoint, and delete those beyond the newest `checkpoint.keep`.

        Other workers take only users of partitions in `held` from it: they may have newer ones of the rest.
        `heartbeat` is called between files, as writing takes long; it may change `held`.
        """
        held = frozenset(held)
        seq, events_learned, snapshot = learner.seq, learner.events_learned, learner.snapshot()
        try:
            heartbeat()
            shard, checksum = self.shards.save(snapshot.shard, generation, seq, held)
            heartbeat()
            model = self._save_model(pack(snapshot.arrays, {"format": str(FORMAT)}), seq)
            heartbeat()
            manifest = Manifest(
                format=FORMAT,
                seq=seq,
                events_learned=events_learned,
                saved_at_ms=now_ms,
                worker_id=self.shards.worker,
                offsets=[
                    PartitionOffset(*at, offset) for at, offset in sorted(snapshot.shard.offsets.items())
                ],
                model=model,
                shard=FileSum(shard.path, checksum),
                meta=snapshot.meta,
                topic_ids=self.topic_ids,
                configuration=without_secrets(self._settings),
                versions=versions(),
            )
            write_manifest(self.folder, manifest)
            self._delete_old(manifest)
        except OSError as error:
            raise self._unwritable(error, "the journal holds all batches since the last checkpoint") from None
        self.saved_seq = manifest.seq
        return manifest

    def load(self, newcomer: bool = False) -> tuple[Manifest, Snapshot] | None:
        """Read the newest complete checkpoint, as far as it is valid under the current settings; None: none.

        `newcomer`: the worker has learned nothing yet, so without a checkpoint it starts from the trained
        one, or logs that it starts empty. Damaged checkpoints are skipped with a warning. Raise
        `CheckpointError` when all are damaged, a topic was recreated, or a format is newer.
        """
        names = self._manifests()
        if not names and newcomer and self._adopt_trained():
            names = self._manifests()
        for name in reversed(names):
            try:
                manifest = read_manifest(self.folder, name)
                self._check_topics(manifest, name)
                shard = self._read_shard(manifest)
                snapshot = Snapshot(unpack(self._read(manifest.model)), manifest.meta, shard)
            except Damaged as damage:
                logger.warning("checkpoint %s/%s skipped: %s", self.folder.url, name, damage)
                continue
            self.saved_seq, self.oldest_seq = manifest.seq, seq_of(names[0])
            valid, relevant = reconciled(snapshot, changes(manifest.configuration, self._settings))
            log_changes(relevant)
            return manifest, valid
        if names:
            raise CheckpointError(
                f"checkpoint.path = {self.folder.url}: all {len(names)} checkpoints of worker "
                f"{self.shards.worker} are damaged; expected a complete one. Restore one from a backup, or "
                "choose another checkpoint.path to start empty"
            )
        if newcomer:
            self._log_others()
        return None

    def configuration(self) -> Settings | None:
        """Return the settings, without secrets, of the newest readable checkpoint.

        None without a checkpoint, or when this version doesn't know all of its settings.
        """
        manifest = next(self._readable(), None)
        try:
            return msgspec.convert(manifest.configuration, Settings) if manifest else None
        except (msgspec.ValidationError, ValueError):
            return None

    def offsets(self) -> dict[TopicPartition, int]:
        """Return the offsets of the newest readable checkpoint; empty without one."""
        manifest = next(self._readable(), None)
        offsets = manifest.offsets if manifest else ()
        return {TopicPartition(each.topic, each.partition): each.offset for each in offsets}

    def workers(self) -> list[str]:
        """Return the workers that have checkpoints in the folder; `TRAINED` if it is the only one."""
        names = {name.split("/")[0] for name in self.folder.names("") if is_manifest(name)}
        return sorted(names - {TRAINED} or names)

    def _save_model(self, data: bytes, seq: int) -> FileSum:
        checksum = hashlib.sha256(data).hexdigest()
        model = FileSum(f"{self.shards.worker}/model-{seq:012d}-{checksum[:16]}.safetensors", checksum)
        self.folder.write(model.name, data)
        return model

    def _adopt_trained(self) -> bool:
        """Copy the checkpoint of `afresh train` to this worker; return whether there is one.

        Every worker takes the model and all users, as their partitions are not known yet.
        """
        names = self._manifests(TRAINED)
        if not names:
            return False
        try:
            trained = read_manifest(self.folder, names[-1])
            model = self._save_model(self._read(trained.model), trained.seq)
            shard = self._read_shard(trained)
            reset = {
                name: np.full_like(shard.arrays[name], fill)
                for name, fill in UNPUBLISHED.items()
                if name in shard.arrays
            }
            users, checksum = self.shards.save(replace(shard, arrays=shard.arrays | reset), 0, trained.seq)
            own = FileSum(users.path, checksum)
            write_manifest(
                self.folder,
                msgspec.structs.replace(trained, worker_id=self.shards.worker, model=model, shard=own),
            )
        except OSError as error:
            raise self._unwritable(error, "the trained checkpoint is unchanged") from None
        except Damaged as damage:
            raise CheckpointError(
                f"trained checkpoint {self.folder.url}/{names[-1]}: {damage}; train again into an empty "
                f"folder, or delete {self.folder.url}/{TRAINED} to start empty"
            ) from None
        logger.info(
            "worker %s starts from the trained checkpoint %s/%s: %d events", self.shards.worker,
            self.folder.url, names[-1], trained.events_learned,
        )  # fmt: skip
        return True

    def _unwritable(self, error: OSError, rest: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint.path = {self.folder.url}: can't be written ({error}); free disk space or grant "
            f"access. Nothing is lost: {rest}"
        )

    def _log_others(self) -> None:
        """Log that this worker starts empty, and which workers have checkpoints."""
        worker, url = self.shards.worker, self.folder.url
        others = self.workers()
        if not others:
            logger.info("worker %s starts from nothing: no checkpoint is in %s", worker, url)
            return
        logger.warning(
            "worker %s starts with an empty model: it has no checkpoint in %s, %s; users come with their "
            "partitions. If the worker was renamed, stop it and rename the folder %s to %s, in "
            "checkpoint.journal too, or set kafka.worker_id back",
            worker, url, f"{', '.join(others)} {'has' if len(others) == 1 else 'have'}", others[0], worker,
        )  # fmt: skip

    def _delete_old(self, newest: Manifest) -> None:
        """Keep the newest `checkpoint.keep` readable manifests and the files they name; delete the rest.

        Manifests with a higher seq than the one just written were damaged when the worker started.
        """
        kept: list[Manifest] = []
        for name in reversed(self._manifests()):
            if seq_of(name) > newest.seq or len(kept) == self._settings.checkpoint.keep:
                self.folder.delete(name)
                continue
            with suppress(Damaged):
                kept.append(read_manifest(self.folder, name))
        named = {file.name for manifest in kept for file in (manifest.model, manifest.shard)}
        for name in self.folder.names(self.shards.worker):
            if re.search(r"/model-\d+-\w+\.safetensors$", name) and name not in named:
                self.folder.delete(name)
        self.shards.delete_old(named)
        self.oldest_seq = kept[-1].seq

    def _manifests(self, worker: str = "") -> list[str]:
        """Return the names of a worker's manifests, by default of this one's, oldest first."""
        return sorted(filter(is_manifest, self.folder.names(worker or self.shards.worker)), key=seq_of)

    def _readable(self) -> Iterator[Manifest]:
        """Yield this worker's manifests, newest first, without damaged ones."""
        for name in reversed(self._manifests()):
            with suppress(Damaged):
                yield read_manifest(self.folder, name)

    def _read_shard(self, manifest: Manifest) -> Shard:
        data = self._read(manifest.shard)
        header = header_of(f"{self.folder.url}/{manifest.shard.name}", data)
        return Shard(header.offsets, unpack(data))

    def _read(self, file: FileSum) -> bytes:
        try:
            data = self.folder.read(file.name)
        except OSError as error:
            raise Damaged(f"{file.name} can't be read: {error}") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise Damaged(f"{file.name} ({len(data)} bytes): the checksum differs from the manifest's")
        return data

    def _check_topics(self, manifest: Manifest, name: str) -> None:
        """Raise `CheckpointError` when a topic was recreated: its offsets name other records."""
        for topic, expected in manifest.topic_ids.items():
            current = self.topic_ids.get(topic, expected)
            if current != expected:
                raise CheckpointError(
                    f"topic {topic!r} was recreated: its id is {current}, the checkpoint "
                    f"{self.folder.url}/{name} expects {expected}; choose another checkpoint.path and "
                    "kafka.group_id to start empty, or restore the topic"
                )
