"""Checkpoints: everything a worker has learned, as files that are whole or are not there.

    <worker>/manifest-<seq>.json                      what belongs together, with checksums; written last
    <worker>/model-<seq>-<checksum>.safetensors       items, parameters, counts, quality
    shards/...safetensors                             users' state, of all partitions (shard_files.py)

`seq` is the number of the first batch that the state has NOT learned. A file's name ends in its checksum, so
nothing that an older manifest names is ever overwritten. A checkpoint is taken only when nothing is in flight
and all is committed. What a changed configuration or another version makes of one: compatibility.py.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from pipeline.errors import CheckpointError
from pipeline.events.batch import TopicPartition
from pipeline.outcome import Learner
from pipeline.persistence.compatibility import FORMAT, changes, reconciled, tell
from pipeline.persistence.files import Folder, pack, unpack
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
from pipeline.persistence.shard_files import ShardFiles, head_of
from pipeline.settings import Settings
from pipeline.state.shards import Shard, Snapshot

logger = logging.getLogger(__name__)

# Where `afresh train` saves: workers that have nothing of their own start from there. No worker can be
# called so.
TRAINED = "@trained"
# Lists made while training went to nobody: what is there instead, by the array's name in a shard.
NEVER_SENT = {"user.served.items": -1, "user.served.length": -1, "user.refresh.due": 0}


@dataclass(frozen=True, slots=True)
class Draft:
    """What a checkpoint is to hold, copied at one moment: `breathe` may change what the worker holds."""

    seq: int
    events_learned: int
    generation: int
    now_ms: int
    snapshot: Snapshot
    held: frozenset[TopicPartition]


class Checkpoints:
    """The checkpoints of one worker: `saved_seq` of the newest, `oldest_seq` of the oldest kept; 0: none.

    `topic_ids` are those of the topics of today: saved with each checkpoint, and expected of one that is
    loaded.
    """

    def __init__(self, folder: Folder, settings: Settings) -> None:
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
        breathe: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Write a checkpoint, and delete those beyond the newest `checkpoint.keep`.

        Users of partitions that are not `held` come from an earlier life, and another worker may have newer
        ones: no other worker starts from them. `breathe` is called between files: with many users this takes
        long, and the group wants signs of life.
        """
        snapshot = learner.snapshot()
        draft = Draft(learner.seq, learner.events_learned, generation, now_ms, snapshot, frozenset(held))
        try:
            breathe()
            manifest = self._write(draft, breathe)
            self._tidy(manifest)
        except OSError as error:
            raise self._unwritable(error, "the journal has what the last checkpoint has not") from None
        self.saved_seq = manifest.seq
        return manifest

    def load(self, newcomer: bool = False) -> tuple[Manifest, Snapshot] | None:
        """Read the newest whole checkpoint, as far as it holds under the settings of today; None when there
        is none at all.

        `newcomer`: this worker has never learned a batch, so without a checkpoint of its own it takes the
        trained one over; where there is none, a line says what it starts from. A damaged checkpoint is
        skipped with a warning that names it. Raise `CheckpointError` when some exist and none is whole, when
        a topic is another, or when one is of a newer format.
        """
        names = self._manifests()
        if not names and newcomer and self._adopt_trained():
            names = self._manifests()
        for name in reversed(names):
            try:
                manifest = read_manifest(self.folder, name)
                self._check_topics(manifest, name)
                snapshot = self._read_snapshot(manifest)
            except Damaged as damage:
                logger.warning("checkpoint %s/%s skipped: %s", self.folder.url, name, damage)
                continue
            self.saved_seq, self.oldest_seq = manifest.seq, seq_of(names[0])
            return manifest, self._as_of_today(manifest, snapshot)
        if names:
            raise CheckpointError(
                f"checkpoint.path = {self.folder.url}: none of the {len(names)} checkpoints of worker "
                f"{self.shards.worker} is whole; expected one. Restore one from a backup, or choose another "
                "checkpoint.path to start anew"
            )
        if newcomer:
            self._tell_of_others()
        return None

    def configuration(self) -> Settings | None:
        """Return the settings, secrets apart, that the newest readable checkpoint was saved with.

        None when there is no checkpoint, or when this version doesn't know all of them.
        """
        for name in reversed(self._manifests()):
            with suppress(Damaged):
                try:
                    return msgspec.convert(read_manifest(self.folder, name).configuration, Settings)
                except (msgspec.ValidationError, ValueError):
                    return None
        return None

    def offsets(self) -> dict[TopicPartition, int]:
        """Return what the newest readable checkpoint goes on from; nothing when there is none."""
        for name in reversed(self._manifests()):
            with suppress(Damaged):
                found = read_manifest(self.folder, name).offsets
                return {TopicPartition(each.topic, each.partition): each.offset for each in found}
        return {}

    def workers(self) -> list[str]:
        """Return the workers that have checkpoints in the folder; `TRAINED` when there is nothing else."""
        names = {name.split("/")[0] for name in self.folder.names("") if is_manifest(name)}
        return sorted(names - {TRAINED} or names)

    def _write(self, draft: Draft, breathe: Callable[[], None]) -> Manifest:
        """Write the files, the manifest last: with it the checkpoint is whole."""
        offsets = draft.snapshot.shard.offsets
        shard = self._save_shard(draft.snapshot.shard, draft.generation, draft.seq, draft.held)
        breathe()
        model = self._save_model(pack(draft.snapshot.arrays, {"format": str(FORMAT)}), draft.seq)
        breathe()
        manifest = Manifest(
            format=FORMAT,
            seq=draft.seq,
            events_learned=draft.events_learned,
            saved_at_ms=draft.now_ms,
            worker_id=self.shards.worker,
            generation=draft.generation,
            offsets=[PartitionOffset(*source, offset) for source, offset in sorted(offsets.items())],
            model=model,
            shard=shard,
            meta=draft.snapshot.meta,
            topic_ids=self.topic_ids,
            configuration=without_secrets(self._settings),
            versions=versions(),
        )
        write_manifest(self.folder, manifest)
        return manifest

    def _save_shard(
        self, shard: Shard, generation: int, seq: int, held: Collection[TopicPartition] = ()
    ) -> FileSum:
        name, checksum = self.shards.save(shard, generation, seq, held, set(held) - shard.offsets.keys())
        return FileSum(name.path, checksum)

    def _save_model(self, data: bytes, seq: int) -> FileSum:
        checksum = hashlib.sha256(data).hexdigest()
        model = FileSum(f"{self.shards.worker}/model-{seq:012d}-{checksum[:16]}.safetensors", checksum)
        self.folder.write(model.name, data)
        return model

    def _adopt_trained(self) -> bool:
        """Take what `afresh train` has saved over as this worker's own; say whether there is any.

        Every worker gets its model and all its users: nobody knows yet which of them will come here. The
        lists made in training were sent to nobody, so none counts as served.
        """
        names = self._manifests(TRAINED)
        if not names:
            return False
        try:
            trained = read_manifest(self.folder, names[-1])
            model = self._save_model(self._read(trained.model), trained.seq)
            shard = self._read_shard(trained)
            unseen = {
                name: np.full_like(shard.arrays[name], fill)
                for name, fill in NEVER_SENT.items()
                if name in shard.arrays
            }
            users = self._save_shard(replace(shard, arrays=shard.arrays | unseen), 0, trained.seq)
            own = msgspec.structs.replace(trained, worker_id=self.shards.worker, model=model, shard=users)
            write_manifest(self.folder, own)
        except OSError as error:
            raise self._unwritable(error, "the trained checkpoint is as it was") from None
        except Damaged as damage:
            raise CheckpointError(
                f"trained checkpoint {self.folder.url}/{names[-1]}: {damage}; train again into an empty "
                f"folder, or delete {self.folder.url}/{TRAINED} to start from nothing"
            ) from None
        logger.info(
            "worker %s starts from the trained checkpoint %s/%s: %d events", self.shards.worker,
            self.folder.url, names[-1], trained.events_learned,
        )  # fmt: skip
        return True

    def _unwritable(self, error: OSError, rest: str) -> CheckpointError:
        return CheckpointError(
            f"checkpoint.path = {self.folder.url}: can't be written ({error}); make room or give access. "
            f"Nothing is lost: {rest}"
        )

    def _as_of_today(self, manifest: Manifest, snapshot: Snapshot) -> Snapshot:
        """Return what of a checkpoint still holds, and say what became of the rest."""
        changed = changes(manifest.configuration, self._settings)
        held, told = reconciled(snapshot, changed)
        tell(told)
        return held

    def _tell_of_others(self) -> None:
        """Say that this worker starts from nothing, and whose checkpoints it might go on from."""
        worker, url = self.shards.worker, self.folder.url
        others = self.workers()
        if not others:
            logger.info("worker %s starts from nothing: no checkpoint is in %s", worker, url)
            return
        logger.warning(
            "worker %s starts with an empty model: it has no checkpoint in %s, %s; users come with their "
            "partitions. Where it only has a new name, stop it and put the folder %s in the place of %s, in "
            "checkpoint.journal too, or set kafka.worker_id back",
            worker, url, f"{', '.join(others)} {'has' if len(others) == 1 else 'have'}", others[0], worker,
        )  # fmt: skip

    def _tidy(self, newest: Manifest) -> None:
        """Keep the newest `checkpoint.keep` readable manifests and what they name; delete the rest.

        Manifests with a higher seq than the one just written are of a past that was given up: they were
        damaged when the worker last started.
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
        self.shards.tidy(named)
        self.oldest_seq = kept[-1].seq

    def _manifests(self, worker: str = "") -> list[str]:
        """Return the names of a worker's manifests, this one's by default, oldest first."""
        return sorted(filter(is_manifest, self.folder.names(worker or self.shards.worker)), key=seq_of)

    def _read_snapshot(self, manifest: Manifest) -> Snapshot:
        shard = self._read_shard(manifest)
        return Snapshot(unpack(self._read(manifest.model)), manifest.meta, shard)

    def _read_shard(self, manifest: Manifest) -> Shard:
        data = self._read(manifest.shard)
        head = head_of(f"{self.folder.url}/{manifest.shard.name}", data)
        return Shard(head.offsets, unpack(data))

    def _read(self, file: FileSum) -> bytes:
        try:
            data = self.folder.read(file.name)
        except OSError as error:
            raise Damaged(f"{file.name} can't be read: {error}") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise Damaged(
                f"{file.name} ({len(data)} bytes) is not the file that was saved: its checksum is another"
            )
        return data

    def _check_topics(self, manifest: Manifest, name: str) -> None:
        """Raise `CheckpointError` when a topic was made anew: its offsets name other records now."""
        for topic, was in manifest.topic_ids.items():
            is_now = self.topic_ids.get(topic, was)
            if is_now != was:
                raise CheckpointError(
                    f"topic {topic!r} was made anew: its id is {is_now}, the checkpoint "
                    f"{self.folder.url}/{name} expects {was}; choose another checkpoint.path and "
                    "kafka.group_id to start anew, or restore the topic"
                )
