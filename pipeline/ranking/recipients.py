"""The recipients of lists with a batch: its users, and users with a pending ranking.

An event is late when its record is old: the worker reads a backlog. Users of late events wait until most of a
batch is not late, and then get one list each, the most recently active first; users without an event for long
wait for their next one. Axis B = events of a batch.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.events.batch import Batch
from pipeline.settings import RankConfig
from pipeline.state.positions import DAY_MS
from pipeline.state.published_lists import LATER, NOW
from pipeline.state.state import State

IntArray = npt.NDArray[np.int32]
URGENT_A_BATCH = 1024  # 20,000 holders of a withdrawn item have new lists after 20 batches
LATER_A_BATCH = 512


class Recipients(NamedTuple):
    """User rows: `touched` by an event that is not late, in order of appearance, and `due` without one."""

    touched: IntArray
    due: IntArray
    late_B: npt.NDArray[np.bool_]

    @property
    def users(self) -> IntArray:
        """All of them, those with an event first."""
        return np.concatenate((self.touched, self.due))


def no_recipients(batch: Batch) -> Recipients:
    """Return the recipients of a batch from which nothing is published."""
    none = np.empty(0, np.int32)
    return Recipients(none, none, np.zeros(batch.user_B.shape[0], np.bool_))


def recipients(state: State, batch: Batch, now_ms: int, rank: RankConfig) -> Recipients:
    """Return the users who get a list with this batch; their rankings are no longer pending."""
    held_B = state.partition_of.partition.data[batch.user_B] >= 0  # else evicted with this very batch
    age_ms_B = np.where(batch.append_ms_B > 0, now_ms - batch.append_ms_B, 0)
    late_B = age_ms_B > rank.backlog_after_s * 1000
    waits_B = late_B & (age_ms_B <= rank.max_inactive_days * DAY_MS)
    refresh, last_event_U = state.refresh, state.users.last_event.data
    refresh.mark(batch.user_B[held_B & waits_B], LATER)
    touched = _in_order(batch.user_B[held_B & ~late_B])
    refresh.done(touched)
    due = refresh.next(NOW, URGENT_A_BATCH, last_event_U, state.users.id_of)
    if 2 * np.count_nonzero(late_B) <= late_B.size:
        later = refresh.next(LATER, LATER_A_BATCH, last_event_U, state.users.id_of)
        due = np.concatenate((due, later))
    refresh.done(due)
    return Recipients(touched, due, late_B)


def _in_order(rows_B: IntArray) -> IntArray:
    """Return the rows, each once, in order of appearance."""
    return np.array(list(dict.fromkeys(rows_B.tolist())), np.int32)
