"""Read events that another worker has learned, merged by time over partitions that share their users."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np

from pipeline.events.batch import Polled, Record, Span

Read = Callable[[tuple[Span, ...], None], Polled]

CHUNK_OFFSETS = 10_000  # of a partition, read in one call


def in_time_order(read: Read, spans: Sequence[Span], chunk: int = CHUNK_OFFSETS) -> Iterator[Polled]:
    """Yield the records of the spans merged by timestamp; equal ones by topic and partition, as a source
    does.

    Each partition keeps the order of its offsets. A batch has at most `chunk` records, and at most `chunk`
    offsets of each partition are in memory. The batches' spans cover every offset, those without a record
    too.
    """
    ordered = sorted(span for span in spans if span.start < span.stop)
    next_offsets = [span.start for span in ordered]
    if sum(span.stop - span.start for span in ordered) <= chunk:
        lanes = _at_once(read, ordered)
    else:
        lanes = [_records(read, index, span, chunk) for index, span in enumerate(ordered)]
    merged = heapq.merge(*lanes, key=lambda pair: pair[1].timestamp)
    while pairs := list(islice(merged, chunk)):
        stops = next_offsets.copy()
        for index, record in pairs:
            stops[index] = record.offset + 1
        yield _polled(ordered, next_offsets, stops, pairs)
        next_offsets = stops
    if next_offsets != (ends := [span.stop for span in ordered]):
        yield _polled(ordered, next_offsets, ends, [])


def _at_once(read: Read, spans: list[Span]) -> list[Iterator[tuple[int, Record]]]:
    """Read all spans in one call, which takes fewer requests than a call for each of many small spans."""
    lanes: list[list[tuple[int, Record]]] = [[] for _ in spans]
    if spans:
        polled = read(tuple(spans), None)
        for index, record in zip(polled.order_R.tolist(), polled.records, strict=True):
            lanes[index].append((index, record))
    return [iter(lane) for lane in lanes]


def _records(read: Read, index: int, span: Span, chunk: int) -> Iterator[tuple[int, Record]]:
    for start in range(span.start, span.stop, chunk):
        part = Span(span.topic, span.partition, start, min(start + chunk, span.stop))
        for record in read((part,), None).records:
            yield index, record


def _polled(
    spans: Sequence[Span], starts: list[int], stops: list[int], pairs: list[tuple[int, Record]]
) -> Polled:
    moved = [index for index in range(len(spans)) if starts[index] < stops[index]]
    places = {index: place for place, index in enumerate(moved)}
    return Polled(
        tuple(Span(*spans[index].source, starts[index], stops[index]) for index in moved),
        [record for _, record in pairs],
        np.array([places[index] for index, _ in pairs], np.int32),
    )
