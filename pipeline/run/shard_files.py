"""Shards on disk: the users' state of one partition a file, shared by all workers of a group.

    shards/<topic>-<partition>/<generation>-<offset>-<worker>-<seq>-<checksum>.safetensors

The name says all that a choice between shards needs, so that no file is opened to find the newest: the
highest group generation, then the highest offset. Its end is the content's checksum, so a file never changes
under its name.
"""

import hashlib
import logging
from typing import NamedTuple

from pipeline.event.batch import TopicPartition
from pipeline.run.compatibility import FORMAT, check_format
from pipeline.run.files import Folder, metadata, pack, unpack
from pipeline.run.manifest import versions
from pipeline.state.shards import Shard

logger = logging.getLogger(__name__)

FOLDER = "shards"
SUFFIX = ".safetensors"


class ShardName(NamedTuple):
    """What a shard's file name says; sorts by what is newer."""

    generation: int
    offset: int
    seq: int
    worker: str
    topic: str
    partition: int
    checksum: str  # the first 16 digits of the content's sha256

    @property
    def source(self) -> TopicPartition:
        """The partition that the shard is of."""
        return TopicPartition(self.topic, self.partition)

    @property
    def path(self) -> str:
        """The file's name in the checkpoint folder."""
        return (
            f"{FOLDER}/{self.topic}-{self.partition}/"
            f"{self.generation}-{self.offset}-{self.worker}-{self.seq}-{self.checksum}{SUFFIX}"
        )


def parse(path: str) -> ShardName | None:
    """Read a shard's file name; None for a file that is no shard.

    >>> parse("shards/events-3/5-812-worker-0-40-0123456789abcdef.safetensors").worker
    'worker-0'
    """
    try:
        _, folder, file = path.split("/")
        topic, _, partition = folder.rpartition("-")
        generation, offset, rest = file.removesuffix(SUFFIX).split("-", 2)
        worker, seq, checksum = rest.rsplit("-", 2)
        name = ShardName(int(generation), int(offset), int(seq), worker, topic, int(partition), checksum)
    except ValueError:
        return None
    return name if name.path == path else None


def check_shard(what: str, data: bytes) -> None:
    """Raise `CheckpointError` for a shard of a newer format; `what` names it. Format 1 does not say its own.

    Raise ValueError when the bytes are no whole file.
    """
    written = metadata(data)
    check_format(f"shard {what}", int(written.get("format", "1")), written.get("afresh", ""))


class ShardFiles:
    """The shards of a group in its checkpoint folder, written by one worker of it."""

    def __init__(self, folder: Folder, worker: str) -> None:
        self.folder = folder
        self.worker = worker

    def save(self, shard: Shard, generation: int, seq: int) -> tuple[ShardName, bytes]:
        """Write a shard; return its name and its bytes."""
        source = shard.source
        data = pack(
            shard.arrays,
            {
                "format": str(FORMAT),
                "afresh": versions().get("afresh", ""),
                "topic": source.topic,
                "partition": str(source.partition),
                "offset": str(shard.offset),
            },
        )
        checksum = hashlib.sha256(data).hexdigest()[:16]
        name = ShardName(generation, shard.offset, seq, self.worker, source.topic, source.partition, checksum)
        self.folder.write(name.path, data)
        return name, data

    def load(self, name: ShardName) -> Shard:
        """Read a shard. Raise ValueError or OSError when the file is damaged or gone, `CheckpointError` for
        one of a newer format: the worker that wrote it is upgraded already.
        """
        data = self.folder.read(name.path)
        if hashlib.sha256(data).hexdigest()[:16] != name.checksum:
            raise ValueError("its checksum is not that of its name")
        check_shard(f"{self.folder.url}/{name.path}", data)
        return Shard(name.source, name.offset, unpack(data))

    def load_newest(self, source: TopicPartition) -> Shard | None:
        """Read the newest whole shard of a partition; None when there is none. Damaged ones get a warning."""
        for name in reversed(self.all()):
            if name.source == source:
                try:
                    return self.load(name)
                except (OSError, ValueError) as error:
                    logger.warning("shard %s/%s skipped: %s", self.folder.url, name.path, error)
        return None

    def all(self) -> list[ShardName]:
        """Return every shard of every partition and worker, oldest first."""
        return sorted(name for path in self.folder.names(FOLDER) if (name := parse(path)) is not None)

    def newest(self) -> dict[TopicPartition, ShardName]:
        """Return the newest shard of every partition that has one."""
        return {name.source: name for name in self.all()}

    def tidy(self, named: set[str]) -> None:
        """Delete this worker's shards that no manifest names and that are not the newest of their partition.

        Other workers' files are theirs to delete: one of them may be about to name a file that it has just
        written.
        """
        newest = self.newest()
        for name in self.all():
            superseded = name != newest[name.source] and name.path not in named
            if superseded and name.worker == self.worker:
                self.folder.delete(name.path)
