"""Simulated events as columns, for benchmarks that need no broker."""

from collections.abc import Sequence

import numpy as np

from pipeline.events.batch import Events
from producers.simulator.events import SimulatedEvent


def as_columns(wired: Sequence[SimulatedEvent]) -> Events:
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
