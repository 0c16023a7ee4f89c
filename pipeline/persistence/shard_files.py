"""Shards on disk: users' state that moves with partitions, shared by all workers of a group.

    shards/<generation>-<worker>-<seq>-<checksum>.safetensors

A file holds the users of all partitions that a worker saved together, in a checkpoint or at a revocation. Its
header names the partitions and their offsets, so the newest users of a partition (of the highest group
generation, then of the highest offset) are found without reading users.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from pipeline.events.batch import TopicPartition
from pipeline.persistence.compatibility import FORMAT, check_format
from pipeline.persistence.files import UrlFolder, metadata, pack, unpack
from pipeline.persistence.manifest import versions
from pipeline.state.shards import Shard

logger = logging.getLogger(__name__)

FOLDER = "shards"
SUFFIX = ".safetensors"
HEADER_BYTES = 1 << 17  # of a file, read first; enough for about 2,000 partitions


class ShardName(NamedTuple):
    """The parts of a shard's file name."""

    generation: int
    seq: int
    worker: str
    checksum: str  # the first 16 digits of the content's sha256

    @property
    def path(self) -> str:
        """The file's name in the checkpoint folder."""
        return f"{FOLDER}/{self.generation}-{self.worker}-{self.seq}-{self.checksum}{SUFFIX}"


class SavedPartition(NamedTuple):
    """A partition in a shard, with the next offset to learn.

    `held`: the worker owned the partition. Only the worker itself restores the others.
    """

    topic: str
    partition: int
    offset: int
    held: bool


class Header(msgspec.Struct, frozen=True):
    """The content of a shard."""

    partitions: list[SavedPartition]

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """The next offset to learn of each partition."""
        return {TopicPartition(*each[:2]): each.offset for each in self.partitions}

    @property
    def held(self) -> dict[TopicPartition, int]:
        """The offsets of the partitions that any worker of the group may take from here."""
        return {TopicPartition(*each[:2]): each.offset for each in self.partitions if each.held}


Headers = Mapping[ShardName, Header]


def parse(path: str) -> ShardName | None:
    """Parse a shard's file name; return None for other files.

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


def header_of(what: str, data: bytes) -> Header:
    """Read a shard's header; `what` names the file in errors.

    Raise `CheckpointError` for a file of a newer format, ValueError when the file is incomplete.
    """
    found = metadata(data)
    check_format(f"shard {what}", int(found.get("format", "0")), found.get("afresh", ""))
    try:
        return msgspec.json.decode(found["header"], type=Header)
    except (KeyError, msgspec.DecodeError) as error:
        raise ValueError(f"its header can't be read: {error}") from None


class ShardFiles:
    """The shards of a group in its checkpoint folder, as one worker of the group reads and writes them."""

    def __init__(self, folder: UrlFolder, worker: str) -> None:
        self.folder = folder
        self.worker = worker
        self._headers: dict[ShardName, Header] = {}  # cache; a file never changes under its name

    def save(
        self, shard: Shard, generation: int, seq: int, held: Collection[TopicPartition] = ()
    ) -> tuple[ShardName, str]:
        """Write a shard as one file; return its name and the sha256 of its content.

        `held` are the worker's assigned partitions.
        """
        header = Header(
            [SavedPartition(*at, offset, at in held) for at, offset in sorted(shard.offsets.items())]
        )
        text = msgspec.json.encode(header).decode()
        writer = versions().get("afresh", "")
        data = pack(shard.arrays, {"format": str(FORMAT), "afresh": writer, "header": text})
        checksum = hashlib.sha256(data).hexdigest()
        name = ShardName(generation, seq, self.worker, checksum[:16])
        self.folder.write(name.path, data)
        self._headers[name] = header
        return name, checksum

    def load(self, name: ShardName) -> Shard:
        """Read a shard. Raise ValueError or OSError when the file is damaged or missing, `CheckpointError`
        for a newer format.
        """
        data = self.folder.read(name.path)
        if hashlib.sha256(data).hexdigest()[:16] != name.checksum:
            raise ValueError("its checksum differs from that in its name")
        header = header_of(f"{self.folder.url}/{name.path}", data)
        return Shard(header.offsets, unpack(data))

    def load_newest(self, sources: Collection[TopicPartition]) -> list[tuple[Shard, list[TopicPartition]]]:
        """Return the newest complete shards of partitions, oldest first, each with the partitions to take.

        Each file is read once; damaged files are skipped with a warning.
        """
        headers, read = dict(self.headers()), dict[ShardName, Shard]()
        while True:
            chosen = choose(headers, sources)
            for name in chosen.keys() - read.keys():
                try:
                    read[name] = self.load(name)
                except (OSError, ValueError) as error:
                    logger.warning("shard %s/%s skipped: %s", self.folder.url, name.path, error)
                    del headers[name]
            if chosen.keys() <= read.keys():
                return [(read[name], chosen[name]) for name in sorted(chosen)]

    def headers(self) -> Headers:
        """Read the headers of every worker's files; unreadable ones are skipped with a warning."""
        found: dict[ShardName, Header] = {}
        for name in self.all():
            try:
                found[name] = self._headers.get(name) or self._read_header(name)
            except (OSError, ValueError) as error:
                logger.warning("shard %s/%s skipped: %s", self.folder.url, name.path, error)
        self._headers = found
        return found

    def all(self) -> list[ShardName]:
        """Return every shard of every worker, oldest first."""
        return sorted(name for path in self.folder.names(FOLDER) if (name := parse(path)) is not None)

    def newest(self, sources: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the offset of the newest users of each of these partitions that is in a shard."""
        headers = self.headers()
        chosen = choose(headers, sources)
        return {source: headers[name].held[source] for name, some in chosen.items() for source in some}

    def delete_old(self, named: set[str]) -> None:
        """Delete this worker's shards that no manifest names and that are not the newest of any partition.

        Other workers' files are left alone: one of them may be about to name a file that it has just written.
        """
        headers = self.headers()
        needed = choose(headers, {source for header in headers.values() for source in header.held})
        for name in self.all():
            if name.worker == self.worker and name.path not in named and name not in needed:
                self.folder.delete(name.path)

    def _read_header(self, name: ShardName) -> Header:
        path, size = name.path, HEADER_BYTES
        data = self.folder.read(path, size)
        needed = 8 + int.from_bytes(data[:8], "little")
        if len(data) == size < needed:
            data = self.folder.read(path, needed)
        return header_of(f"{self.folder.url}/{path}", data)


def choose(headers: Headers, sources: Collection[TopicPartition]) -> dict[ShardName, list[TopicPartition]]:
    """Return the files with the newest users of these partitions, and the partitions to take from each.

    A user with events in several topics is stored with the partition of the newest event, so all partitions
    of one number come from one file. One worker of a generation owns a number, so the higher sum of offsets
    is the newer.
    """
    held = {name: header.held for name, header in headers.items()}
    newest: dict[int, tuple[int, int, int, ShardName]] = {}  # by partition number
    for name, offsets in held.items():
        totals: dict[int, int] = defaultdict(int)
        for source, offset in offsets.items():
            totals[source.partition] += offset
        for number, total in totals.items():
            found = (name.generation, total, name.seq, name)
            newest[number] = max(newest.get(number, found), found)
    chosen: dict[ShardName, list[TopicPartition]] = defaultdict(list)
    for source in sorted(sources):
        if source.partition in newest and source in held[name := newest[source.partition][-1]]:
            chosen[name].append(source)
    return chosen
