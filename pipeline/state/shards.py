"""What a checkpoint holds: one snapshot of the model side, and a shard with the users of all partitions.

A shard names items by id, never by row, so other workers can load it.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import TopicPartition

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Shard:
    """The users of some partitions, and the offset up to which each partition's users have learned."""

    offsets: dict[TopicPartition, int]
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything of a recommender: `arrays` (items, model, counts, quality), plain `meta`, all users."""

    arrays: Arrays
    meta: dict[str, object]  # JSON: seq, events_learned, format ...
    shard: Shard


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


def pick(
    values: npt.NDArray[Any], borders: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return some pieces of a ragged array, in the order of `places`, and their borders [len + 1].

    >>> values, borders = pick(np.array([1, 2, 3, 4]), np.array([0, 1, 1, 4]), np.array([2, 1, 0]))
    >>> values.tolist(), borders.tolist()
    ([2, 3, 4, 1], [0, 3, 3, 4])
    """
    starts, lengths = borders[:-1][places], np.diff(borders)[places]
    picked = np.zeros(places.size + 1, np.int64)
    np.cumsum(lengths, out=picked[1:])
    return values[np.repeat(starts - picked[:-1], lengths) + np.arange(picked[-1])], picked
