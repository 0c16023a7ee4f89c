"""Simulated events for a recommender without a broker."""

import numpy as np

from pipeline.events.batch import Events, RawBatch, Span
from pipeline.outcome import Outcome
from pipeline.recommender import Recommender
from producers.simulator.events import Columns, SimulatedEvent, wire_events

START_MS = 1_700_000_000_000
END_MS = START_MS + 10**12  # after every simulated event


def as_columns(wired: list[SimulatedEvent]) -> Events:
    """Return events as the decoder would, of one source that no broker has seen."""
    size = len(wired)
    return Events(
        user_ids=[event.user_id for event in wired],
        item_ids=[event.item_id for event in wired],
        types=[event.event_type for event in wired],
        event_ids=[None] * size,
        time_ms_B=np.array([event.timestamp_ms for event in wired], np.int64),
        append_ms_B=np.zeros(size, np.int64),
        value_B=np.full(size, np.nan),
        source_B=np.zeros(size, np.int32),
    )


def simulated(columns: Columns, start_ms: int = START_MS) -> Events:
    """Return a chunk of simulated events."""
    return as_columns(list(wire_events(columns, start_ms)))


def step(recommender: Recommender, events: Events, now_ms: int) -> Outcome:
    """Learn events as the next records of one partition."""
    start = recommender.events_learned
    span = Span("events", 0, start, start + len(events))
    return recommender.step(RawBatch(recommender.seq, now_ms, (span,), events, []))
