"""Compile every kernel before the service joins its group: ten seconds once, then from numba's cache."""

import numpy as np

from pipeline.events.batch import Events, RawBatch, Span
from pipeline.recommender import Recommender
from pipeline.settings import Settings

START_MS = 1_700_000_000_000
NOW_MS = START_MS + 10_000_000


def warm_up(settings: Settings) -> None:
    """Run a throwaway recommender of the same shape over made-up batches of full size, and copy it."""
    recommender = Recommender(settings)
    size = settings.batch.max_events
    # in the last batch few users fill their windows: whole and cut windows are two kernels
    for seq, users in enumerate((1009, 1009, 1009, 7)):
        places = np.arange(size) + seq * size
        events = Events(
            user_ids=[f"user-{place % users}" for place in places.tolist()],
            item_ids=[f"item-{place * 7 % 503}" for place in places.tolist()],
            types=["click"] * size,
            event_ids=[None] * size,
            time_ms_B=START_MS + 1000 * places,
            append_ms_B=np.full(size, NOW_MS),  # not late: the ranking's kernels are wanted too
            value_B=np.zeros(size),
            source_B=np.zeros(size, np.int32),
        )
        span = Span("warm-up", 0, seq * size, (seq + 1) * size)
        recommender.step(RawBatch(seq, NOW_MS, (span,), events, []))
    recommender.bank.fade(1.0, 0.5)  # as a first drift alarm may, hours from now
    other = Recommender(settings)
    other.restore(recommender.snapshot())
