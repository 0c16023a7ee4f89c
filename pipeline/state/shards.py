"""What a checkpoint holds: one snapshot of the model side, and one shard a partition with its users' state.

A shard names items by id, never by row, so another worker can put it into tables of its own.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.event.batch import TopicPartition

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Shard:
    """The users of one partition, and the offset up to which their state has learned."""

    source: TopicPartition
    offset: int
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything of a recommender: `arrays` (items, model, counts, quality), plain `meta`, the shards."""

    arrays: Arrays
    meta: dict[str, object]  # JSON: seq, events_learned, format ...
    shards: list[Shard] = field(default_factory=list)


def pack_texts(texts: list[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pack strings into bytes [N] and borders [len + 1], the form in which ids lie in a checkpoint.

    >>> data, borders = pack_texts(["a", "", "bc"])
    >>> unpack_texts(data, borders)
    ['a', '', 'bc']
    """
    encoded = [text.encode() for text in texts]
    borders = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(piece) for piece in encoded], out=borders[1:])
    return np.frombuffer(b"".join(encoded), np.uint8).copy(), borders


def unpack_texts(data: npt.NDArray[np.uint8], borders: npt.NDArray[np.int64]) -> list[str]:
    """Undo `pack_texts`."""
    raw = data.tobytes()
    edges = borders.tolist()
    return [raw[start:stop].decode() for start, stop in itertools.pairwise(edges)]
