"""Shards on disk: the users' state of one partition a file, shared by all workers of a group.

    shards/<topic>-<partition>/<generation>-<offset>-<worker>-<seq>-<checksum>.safetensors

The name says all that a choice between shards needs, so that no file is opened to find the newest: the
highest group generation, then the highest offset. Its end is the content's checksum, so a file never changes
under its name.
"""

import hashlib
import logging
from collections.abc import Collection
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
    def moment(self) -> tuple[int, int, str]:
        """When it was written: shards of one moment hold the same events; sorts by what is newer."""
        return self.generation, self.seq, self.worker

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

    def save(
        self, shard: Shard, generation: int, seq: int, together: Collection[TopicPartition] = ()
    ) -> tuple[ShardName, bytes]:
        """Write a shard; return its name and its bytes. `together`: all whose shards are of this moment."""
        source = shard.source
        beside = sorted(each.topic for each in together if each.partition == source.partition)
        data = pack(
            shard.arrays,
            {
                "format": str(FORMAT),
                "afresh": versions().get("afresh", ""),
                "topic": source.topic,
                "partition": str(source.partition),
                "offset": str(shard.offset),
                "together": ",".join(beside),
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
        return self._read(name).shard

    def load_newest(self, sources: Collection[TopicPartition]) -> dict[TopicPartition, Shard]:
        """Read the newest whole shards of partitions with the same users, as far as there are any.

        A worker that is killed while it writes leaves one topic's shard newer than the other's: a user who
        went on to the other topic is in none of them, and one who came from there in both. So a shard is
        passed over while one of the same moment is missing. Damaged ones get a warning.
        """
        names = {source: [name for name in self.all() if name.source == source] for source in sorted(sources)}
        found: dict[TopicPartition, _Written] = {}
        self._fill(found, names)
        newest = dict(found)
        while torn := [source for source in found if _is_torn(source, found, names.keys())]:
            for source in torn:
                path = found.pop(source).name.path
                logger.warning("shard %s/%s skipped: not all of its moment is there", self.folder.url, path)
            self._fill(found, names)
        if found.keys() != newest.keys():
            logger.warning(
                "shards of %s are of different moments, and no older ones fit: users with events in several "
                "topics may lack some", ", ".join(f"{topic}-{number}" for topic, number in sorted(newest)),
            )  # fmt: skip
            found = newest
        return {source: written.shard for source, written in found.items()}

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
        names, newest = self.all(), self.newest()
        # what another topic's shard of the same moment may be needed with stays too
        kept = {
            (name.moment, name.partition)
            for name in names
            if name == newest[name.source] or name.path in named
        }
        for name in names:
            if name.worker == self.worker and (name.moment, name.partition) not in kept:
                self.folder.delete(name.path)

    def _fill(
        self, found: "dict[TopicPartition, _Written]", names: dict[TopicPartition, list[ShardName]]
    ) -> None:
        """Read the newest whole shard of each partition that lacks one; what was read leaves `names`."""
        for source, left in names.items():
            while left and source not in found:
                name = left.pop()
                try:
                    found[source] = self._read(name)
                except (OSError, ValueError) as error:
                    logger.warning("shard %s/%s skipped: %s", self.folder.url, name.path, error)

    def _read(self, name: ShardName) -> "_Written":
        data = self.folder.read(name.path)
        if hashlib.sha256(data).hexdigest()[:16] != name.checksum:
            raise ValueError("its checksum is not that of its name")
        check_shard(f"{self.folder.url}/{name.path}", data)
        beside = filter(None, metadata(data).get("together", "").split(","))  # older versions wrote none
        together = {TopicPartition(topic, name.partition) for topic in beside}
        return _Written(name, Shard(name.source, name.offset, unpack(data)), together)


class _Written(NamedTuple):
    """A shard, and the partitions of its number whose shards were written at the same moment."""

    name: ShardName
    shard: Shard
    together: set[TopicPartition]


def _is_torn(
    source: TopicPartition, found: dict[TopicPartition, _Written], asked: Collection[TopicPartition]
) -> bool:
    """Say whether a shard of the same moment, of a partition that is asked for, is older or not there."""
    written = found[source]
    return any(
        other not in found or found[other].name.moment[:2] < written.name.moment[:2]
        for other in written.together.intersection(asked)
    )
