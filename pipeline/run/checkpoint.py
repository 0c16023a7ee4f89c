"""Checkpoints: everything a worker has learned, as files that are whole or are not there.

    <worker>/manifest-<seq>.json                      what belongs together, with checksums; written last
    <worker>/model-<seq>-<checksum>.safetensors       items, parameters, counts, quality
    shards/<topic>-<partition>/...safetensors         users' state, one file a partition (shard_files.py)

`seq` is the number of the first batch that the state has NOT learned. A file's name ends in its checksum, so
nothing that an older manifest names is ever overwritten. A checkpoint is taken only when nothing is in flight
and all is committed.
"""

import functools
import hashlib
import importlib.metadata
import logging
import platform
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.errors import CheckpointError
from pipeline.event.batch import TopicPartition
from pipeline.outcome import Learner
from pipeline.run.files import Folder, pack, unpack
from pipeline.run.shard_files import ShardFiles, parse
from pipeline.settings import Settings
from pipeline.state.shards import Shard, Snapshot

logger = logging.getLogger(__name__)

FORMAT = 1
FIXED = (("model", "name"), ("model", "memories"), ("model", "dim"), ("model", "history"))
SECRET = re.compile(r"password|secret|token|key|credential", re.IGNORECASE)
LIBRARIES = ("afresh", "numpy", "torch", "numba", "safetensors")


class FileSum(msgspec.Struct, frozen=True):
    """A file of the checkpoint: its name in the folder and its sha256."""

    name: str
    sha256: str


class PartitionOffset(msgspec.Struct, frozen=True):
    """The offset up to which a partition's events are learned."""

    topic: str
    partition: int
    offset: int


class Manifest(msgspec.Struct, frozen=True):
    """What makes files a checkpoint."""

    format: int
    seq: int
    events_learned: int
    saved_at_ms: int
    worker_id: str
    generation: int
    offsets: list[PartitionOffset]
    model: FileSum
    shards: list[FileSum]
    meta: dict[str, Any]
    configuration: dict[str, Any]
    versions: dict[str, str]
    topic_ids: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The manifest's own file name."""
        return f"{self.worker_id}/manifest-{self.seq:012d}.json"


@dataclass(frozen=True, slots=True)
class Draft:
    """What a checkpoint is to hold, copied at one moment: `breathe` may change what the worker holds."""

    seq: int
    events_learned: int
    generation: int
    now_ms: int
    snapshot: Snapshot


class Damaged(Exception):
    """A checkpoint that is not whole, and why."""


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
        self, learner: Learner, generation: int, now_ms: int, breathe: Callable[[], None] = lambda: None
    ) -> Manifest:
        """Write a checkpoint, and delete those beyond the newest `checkpoint.keep`.

        `breathe` is called between files: with many users this takes long, and the group wants signs of life.
        """
        draft = Draft(learner.seq, learner.events_learned, generation, now_ms, learner.snapshot())
        try:
            breathe()
            manifest = self._write(draft, breathe)
            self._tidy(manifest)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint.path = {self.folder.url}: can't be written ({error}); make room or give access. "
                "Nothing is lost: the journal has what the last checkpoint has not"
            ) from None
        self.saved_seq = manifest.seq
        return manifest

    def load(self) -> tuple[Manifest, Snapshot] | None:
        """Read the newest whole checkpoint; None when there is none at all.

        A damaged one is skipped with a warning that names it. Raise `CheckpointError` when some exist and
        none is whole, or when the model's configuration or a topic is another.
        """
        names = self._manifests()
        for name in reversed(names):
            try:
                manifest = self._read_manifest(name)
                self._check_configuration(manifest, name)
                self._check_topics(manifest, name)
                snapshot = self._read_snapshot(manifest)
            except Damaged as damage:
                logger.warning("checkpoint %s/%s skipped: %s", self.folder.url, name, damage)
                continue
            self.saved_seq, self.oldest_seq = manifest.seq, _seq(names[0])
            return manifest, snapshot
        if names:
            raise CheckpointError(
                f"checkpoint.path = {self.folder.url}: none of the {len(names)} checkpoints of worker "
                f"{self.shards.worker} is whole; expected one. Restore one from a backup, or choose another "
                "checkpoint.path to start anew"
            )
        return None

    def configuration(self) -> Settings | None:
        """Return the settings, secrets apart, that the newest readable checkpoint was saved with.

        None when there is no checkpoint, or when this version doesn't know all of them.
        """
        for name in reversed(self._manifests()):
            with suppress(Damaged):
                try:
                    return msgspec.convert(self._read_manifest(name).configuration, Settings)
                except (msgspec.ValidationError, ValueError):
                    return None
        return None

    def workers(self) -> list[str]:
        """Return the workers that have checkpoints in the folder."""
        return sorted({name.split("/")[0] for name in self.folder.names("") if _is_manifest(name)})

    def _write(self, draft: Draft, breathe: Callable[[], None]) -> Manifest:
        """Write the files, the manifest last: with it the checkpoint is whole."""
        shards = []
        for shard in draft.snapshot.shards:
            name, data = self.shards.save(shard, draft.generation, draft.seq)
            shards.append(FileSum(name.path, hashlib.sha256(data).hexdigest()))
            breathe()
        data = pack(draft.snapshot.arrays, {"format": str(FORMAT)})
        checksum = hashlib.sha256(data).hexdigest()
        worker = self.shards.worker
        model = FileSum(f"{worker}/model-{draft.seq:012d}-{checksum[:16]}.safetensors", checksum)
        self.folder.write(model.name, data)
        breathe()
        manifest = Manifest(
            format=FORMAT,
            seq=draft.seq,
            events_learned=draft.events_learned,
            saved_at_ms=draft.now_ms,
            worker_id=worker,
            generation=draft.generation,
            offsets=[PartitionOffset(*shard.source, shard.offset) for shard in draft.snapshot.shards],
            model=model,
            shards=shards,
            meta=draft.snapshot.meta,
            topic_ids=self.topic_ids,
            configuration=without_secrets(self._settings),
            versions=_versions(),
        )
        self.folder.write(manifest.name, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        return manifest

    def _tidy(self, newest: Manifest) -> None:
        """Keep the newest `checkpoint.keep` readable manifests and what they name; delete the rest.

        Manifests with a higher seq than the one just written are of a past that was given up: they were
        damaged when the worker last started.
        """
        kept: list[Manifest] = []
        for name in reversed(self._manifests()):
            if _seq(name) > newest.seq or len(kept) == self._settings.checkpoint.keep:
                self.folder.delete(name)
                continue
            try:
                kept.append(self._read_manifest(name))
            except Damaged:
                continue
        named = {file.name for manifest in kept for file in (manifest.model, *manifest.shards)}
        for name in self.folder.names(self.shards.worker):
            if re.search(r"/model-\d+-\w+\.safetensors$", name) and name not in named:
                self.folder.delete(name)
        self.shards.tidy(named)
        self.oldest_seq = kept[-1].seq

    def _manifests(self) -> list[str]:
        """Return the names of this worker's manifests, oldest first."""
        return sorted(filter(_is_manifest, self.folder.names(self.shards.worker)), key=_seq)

    def _read_manifest(self, name: str) -> Manifest:
        try:
            data = self.folder.read(name)
            found = msgspec.json.decode(data, type=_Format).format
            if found != FORMAT:
                raise Damaged(f"format {found}, this version reads {FORMAT}")
            return msgspec.json.decode(data, type=Manifest)
        except (OSError, msgspec.DecodeError) as error:
            raise Damaged(f"the manifest can't be read: {error}") from None

    def _read_snapshot(self, manifest: Manifest) -> Snapshot:
        offsets = {TopicPartition(each.topic, each.partition): each.offset for each in manifest.offsets}
        shards = []
        for file in manifest.shards:
            name = parse(file.name)
            if name is None:
                raise Damaged(f"{file.name} is no shard's name")
            shards.append(Shard(name.source, offsets[name.source], self._read_arrays(file)))
        return Snapshot(self._read_arrays(manifest.model), manifest.meta, shards)

    def _read_arrays(self, file: FileSum) -> dict[str, Any]:
        try:
            data = self.folder.read(file.name)
        except OSError as error:
            raise Damaged(f"{file.name} can't be read: {error}") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise Damaged(
                f"{file.name} ({len(data)} bytes) is not the file that was saved: its checksum is another"
            )
        return unpack(data)

    def _check_configuration(self, manifest: Manifest, name: str) -> None:
        """Raise `CheckpointError` when a setting has changed that the state's shape or meaning hangs on."""
        now = msgspec.to_builtins(self._settings)
        for table, key in FIXED:
            was, is_now = manifest.configuration.get(table, {}).get(key), now[table][key]
            if was != is_now:
                raise CheckpointError(
                    f"{table}.{key} = {is_now!r}: the checkpoint {self.folder.url}/{name} was made with "
                    f"{was!r}, expected the same; set {table}.{key} back, or choose another checkpoint.path "
                    "to start anew"
                )

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


class _Format(msgspec.Struct, frozen=True):
    format: int


def without_secrets(settings: Settings) -> dict[str, Any]:
    """Return the configuration as plain values, without passwords and the like."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    kafka = plain["kafka"]
    kafka["options"] = {key: value for key, value in kafka["options"].items() if not SECRET.search(key)}
    del kafka["sasl_password"]
    return plain


def _is_manifest(name: str) -> bool:
    return re.search(r"/manifest-\d+\.json$", name) is not None


def _seq(manifest_name: str) -> int:
    return int(manifest_name.rpartition("-")[2].removesuffix(".json"))


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
