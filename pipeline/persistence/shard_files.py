"""Shards on disk: users' state that moves with partitions, shared by all workers of a group.

    shards/<generation>-<worker>-<seq>-<checksum>.safetensors

A file holds the users of all partitions that a worker saved at one moment: those of a checkpoint, or those
that were revoked together. Its header names the partitions and their offsets, so that the newest users of a
partition are found without reading any users: those of the highest group generation, then of the highest
offset. The name ends in the content's checksum, so a file never changes under its name.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from pipeline.events.batch import TopicPartition
from pipeline.persistence.compatibility import FORMAT, check_format
from pipeline.persistence.files import Folder, metadata, pack, unpack
from pipeline.persistence.manifest import versions
from pipeline.state.shards import Shard

logger = logging.getLogger(__name__)

FOLDER = "shards"
SUFFIX = ".safetensors"
# How much of a file is read for its header at first: enough for about 2,000 partitions.
HEAD_BYTES = 1 << 17


class ShardName(NamedTuple):
    """What a shard's file name says."""

    generation: int
    seq: int
    worker: str
    checksum: str  # the first 16 digits of the content's sha256

    @property
    def path(self) -> str:
        """The file's name in the checkpoint folder."""
        return f"{FOLDER}/{self.generation}-{self.worker}-{self.seq}-{self.checksum}{SUFFIX}"


class SavedPartition(NamedTuple):
    """What a file holds of a partition: its users, up to an offset.

    `held`: the worker owned the partition. Users of others come from an earlier life, and only their own
    worker starts from them: another one may have newer ones.
    """

    topic: str
    partition: int
    offset: int
    held: bool

    @property
    def source(self) -> TopicPartition:
        """The partition."""
        return TopicPartition(self.topic, self.partition)


class Head(msgspec.Struct, frozen=True):
    """What a shard's file says beside its arrays; `empty` are held partitions of which nothing is learned."""

    format: int
    afresh: str
    partitions: list[SavedPartition]
    empty: list[TopicPartition]

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """The offset up to which each partition's users have learned."""
        return {each.source: each.offset for each in self.partitions}

    @property
    def held(self) -> dict[TopicPartition, int]:
        """The offsets of those that any worker of the group may start from."""
        return {each.source: each.offset for each in self.partitions if each.held}


Heads = Mapping[ShardName, Head]


def parse(path: str) -> ShardName | None:
    """Read a shard's file name; None for a file that is no shard.

    >>> parse("shards/5-worker-0-40-0123456789abcdef.safetensors").worker
    'worker-0'
    """
    try:
        _, file = path.split("/")
        generation, rest = file.removesuffix(SUFFIX).split("-", 1)
        worker, seq, checksum = rest.rsplit("-", 2)
        name = ShardName(int(generation), int(seq), worker, checksum)
    except ValueError:
        return None
    return name if name.path == path else None


def head_of(what: str, data: bytes) -> Head:
    """Read what a file says beside its arrays; `what` names it.

    Raise `CheckpointError` for a file of a newer format, ValueError when the bytes are no whole file.
    """
    found = metadata(data)
    check_format(f"shard {what}", int(found.get("format", "0")), found.get("afresh", ""))
    try:
        return msgspec.json.decode(found["head"], type=Head)
    except (KeyError, msgspec.DecodeError) as error:
        raise ValueError(f"its header can't be read: {error}") from None


class ShardFiles:
    """The shards of a group in its checkpoint folder, written by one worker of it."""

    def __init__(self, folder: Folder, worker: str) -> None:
        self.folder = folder
        self.worker = worker
        self._heads: dict[ShardName, Head] = {}  # of files that were seen: none changes under its name

    def save(
        self,
        shard: Shard,
        generation: int,
        seq: int,
        held: Collection[TopicPartition] = (),
        empty: Collection[TopicPartition] = (),
    ) -> tuple[ShardName, str]:
        """Write a shard as one file; return its name and the sha256 of its content.

        `held` are the partitions that this worker owns, `empty` those of them of which it has learned
        nothing.
        """
        saved = [SavedPartition(*at, offset, at in held) for at, offset in sorted(shard.offsets.items())]
        head = Head(FORMAT, versions().get("afresh", ""), saved, sorted(empty))
        told = {"format": str(FORMAT), "afresh": head.afresh, "head": msgspec.json.encode(head).decode()}
        data = pack(shard.arrays, told)
        checksum = hashlib.sha256(data).hexdigest()
        name = ShardName(generation, seq, self.worker, checksum[:16])
        self.folder.write(name.path, data)
        self._heads[name] = head
        return name, checksum

    def load(self, name: ShardName) -> Shard:
        """Read a shard. Raise ValueError or OSError when the file is damaged or gone, `CheckpointError` for
        one of a newer format: the worker that wrote it is upgraded already.
        """
        data = self.folder.read(name.path)
        if hashlib.sha256(data).hexdigest()[:16] != name.checksum:
            raise ValueError("its checksum is not that of its name")
        head = head_of(f"{self.folder.url}/{name.path}", data)
        return Shard(head.offsets, unpack(data))

    def load_newest(self, sources: Collection[TopicPartition]) -> list[tuple[Shard, list[TopicPartition]]]:
        """Read the newest whole shards of partitions, older moments first; of each the partitions whose
        users are to come from it. Each file is read once, whatever it holds.

        What is passed over gets a warning.
        """
        heads, read = dict(self.heads()), dict[ShardName, Shard]()
        while True:
            chosen = choose(heads, sources)
            for name in chosen.keys() - read.keys():
                try:
                    read[name] = self.load(name)
                except (OSError, ValueError) as error:
                    logger.warning("shard %s/%s skipped: %s", self.folder.url, name.path, error)
                    del heads[name]
            if chosen.keys() <= read.keys():
                return [(read[name], chosen[name]) for name in sorted(chosen)]

    def heads(self) -> Heads:
        """Read the headers of all files, of every worker; those that can't be read get a warning."""
        names = self.all()
        found: dict[ShardName, Head] = {}
        for name in names:
            try:
                found[name] = self._heads.get(name) or self._read_head(name)
            except (OSError, ValueError) as error:
                logger.warning("shard %s/%s skipped: %s", self.folder.url, name.path, error)
        self._heads = found
        return found

    def all(self) -> list[ShardName]:
        """Return every shard of every worker, oldest first."""
        return sorted(name for path in self.folder.names(FOLDER) if (name := parse(path)) is not None)

    def newest(self, sources: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset of the newest users of those partitions that have any in a shard."""
        heads = self.heads()
        chosen = choose(heads, sources)
        return {source: heads[name].held[source] for name, some in chosen.items() for source in some}

    def tidy(self, named: set[str]) -> None:
        """Delete this worker's shards that no manifest names and that have the newest users of no partition.

        Other workers' files are theirs to delete: one of them may be about to name a file that it has just
        written.
        """
        heads = self.heads()
        needed = choose(heads, {source for head in heads.values() for source in head.held})
        for name in self.all():
            if name.worker == self.worker and name.path not in named and name not in needed:
                self.folder.delete(name.path)

    def _read_head(self, name: ShardName) -> Head:
        path, size = name.path, HEAD_BYTES
        data = self.folder.read(path, size)
        needed = 8 + int.from_bytes(data[:8], "little")
        if len(data) == size < needed:
            data = self.folder.read(path, needed)
        return head_of(f"{self.folder.url}/{path}", data)


def choose(heads: Heads, sources: Collection[TopicPartition]) -> dict[ShardName, list[TopicPartition]]:
    """Return the files with the newest users of these partitions, and which partitions of each.

    A user with events in several topics is held with the newest of them, so the partitions of one number come
    from one moment, as far as it has them: a file of another moment may hold the user again, or no more. In
    one generation one worker has them, so more is newer.
    """
    by_number: dict[int, set[TopicPartition]] = defaultdict(set)
    for source in sources:
        by_number[source.partition].add(source)
    found: dict[int, list[tuple[int, int, int, ShardName]]] = defaultdict(list)
    for name, head in heads.items():
        totals: dict[int, int] = defaultdict(int)
        for source, offset in head.held.items():
            if source in by_number[source.partition]:
                totals[source.partition] += offset
        for number, total in totals.items():
            found[number].append((name.generation, total, name.seq, name))
    held, empty = ({name: set(part(head)) for name, head in heads.items()} for part in (_held, _empty))
    chosen: dict[ShardName, list[TopicPartition]] = defaultdict(list)
    for number, files in sorted(found.items()):
        left = set(by_number[number])
        for *_, name in sorted(files, reverse=True):
            if some := left & held[name]:
                chosen[name] += sorted(some)
                left -= some | empty[name]
    return chosen


def _held(head: Head) -> Collection[TopicPartition]:
    return head.held


def _empty(head: Head) -> Collection[TopicPartition]:
    return head.empty
