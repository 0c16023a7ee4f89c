"""Shards on disk: the users' state of one partition a file, shared by all workers of a group.

    shards/<topic>-<partition>/<generation>-<offset>-<worker>-<seq>-<checksum>.safetensors

The name says all that a choice between shards needs, so that no file is opened to find the newest: the
highest group generation, then the highest offset. Its end is the content's checksum, so a file never changes
under its name.
"""

import hashlib
import logging
from collections import defaultdict
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
NOT_HELD = 0  # the generation of shards that only their own worker starts from


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
        """When it was written: shards of one moment have learned the same batches."""
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


class Together(NamedTuple):
    """What else a worker that writes a shard has at that moment."""

    shards: Collection[TopicPartition] = ()  # partitions whose shards it writes
    empty: Collection[TopicPartition] = ()  # held ones of which nothing is learned: there is no shard


ALONE = Together()


class ShardFiles:
    """The shards of a group in its checkpoint folder, written by one worker of it."""

    def __init__(self, folder: Folder, worker: str) -> None:
        self.folder = folder
        self.worker = worker

    def save(
        self, shard: Shard, generation: int, seq: int, together: Together = ALONE
    ) -> tuple[ShardName, bytes]:
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
                "together": _topics(together.shards, source.partition),
                "empty": _topics(together.empty, source.partition),
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
        """Read the newest whole shards of partitions that have their users in common, where there are any.

        A worker that is killed while it writes leaves one topic's shard newer than the other's: a user who
        went on to the other topic is in none of them, and one who came from there in both. So shards count
        moment by moment, and only if all of the moment are whole; where none was ever finished the topics
        have it all. What is passed over gets a warning.
        """
        left = set(sources)
        found: dict[TopicPartition, Shard] = {}
        spare: dict[TopicPartition, Shard] = {}  # of moments that are not whole
        damaged = False
        for names in self._moments(sources):
            read = [written for name in names if name.source in left and (written := self._whole(name))]
            damaged |= len(read) < len(left.intersection(name.source for name in names))
            shards = {written.name.source: written.shard for written in read}
            together = left.intersection(*[written.together for written in read[:1]])
            if read and together <= shards.keys():
                found |= shards
                left -= shards.keys() | read[0].empty
            elif read:
                logger.warning(
                    "shard %s/%s skipped: not all of its moment is there", self.folder.url, read[0].name.path
                )
            spare = shards | spare
        if damaged and left & spare.keys():
            logger.warning(
                "shards of %s are of different moments, and no older ones fit: users with events in several "
                "topics may lack some", ", ".join(f"{topic}-{number}" for topic, number in sorted(left)),
            )  # fmt: skip
            found |= {
                source: spare[source] for source in left & spare.keys()
            }  # the topics may not reach back
        return found

    def all(self) -> list[ShardName]:
        """Return every shard of every partition and worker, oldest first."""
        return sorted(name for path in self.folder.names(FOLDER) if (name := parse(path)) is not None)

    def newest(self) -> dict[TopicPartition, ShardName]:
        """Return the newest shard of every partition that has one of a worker that held it."""
        return {name.source: name for name in self.all() if name.generation != NOT_HELD}

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
            if name == newest.get(name.source) or name.path in named
        }
        for name in names:
            if name.worker == self.worker and (name.moment, name.partition) not in kept:
                self.folder.delete(name.path)

    def _moments(self, sources: Collection[TopicPartition]) -> list[list[ShardName]]:
        """Return the shards of these partitions by the moment that they are of, the newest first.

        In one generation one worker has them, so more is newer.
        """
        moments: dict[tuple[int, int, str], list[ShardName]] = defaultdict(list)
        for name in self.all():
            if name.source in sources and name.generation != NOT_HELD:
                moments[name.moment].append(name)
        return sorted(
            moments.values(),
            key=lambda names: (names[0].generation, sum(name.offset for name in names), names[0].seq),
            reverse=True,
        )

    def _whole(self, name: ShardName) -> "_Written | None":
        """Read a shard; None, with a warning, when it is damaged or gone."""
        try:
            return self._read(name)
        except (OSError, ValueError) as error:
            logger.warning("shard %s/%s skipped: %s", self.folder.url, name.path, error)
            return None

    def _read(self, name: ShardName) -> "_Written":
        data = self.folder.read(name.path)
        if hashlib.sha256(data).hexdigest()[:16] != name.checksum:
            raise ValueError("its checksum is not that of its name")
        check_shard(f"{self.folder.url}/{name.path}", data)
        told = metadata(data)  # older versions wrote nothing of other partitions
        together, empty = (_sources(told.get(key, ""), name.partition) for key in ("together", "empty"))
        return _Written(name, Shard(name.source, name.offset, unpack(data)), together, empty)


class _Written(NamedTuple):
    """A shard, and what it says of other topics' partitions of its number."""

    name: ShardName
    shard: Shard
    together: set[TopicPartition]
    empty: set[TopicPartition]


def _topics(sources: Collection[TopicPartition], number: int) -> str:
    return ",".join(sorted(source.topic for source in sources if source.partition == number))


def _sources(topics: str, number: int) -> set[TopicPartition]:
    return {TopicPartition(topic, number) for topic in topics.split(",") if topic}
