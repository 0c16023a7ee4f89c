"""Lessons: what count features learn from a batch. Axes: B = events, L = places of a window."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.state.queries import Queries


class Lessons(NamedTuple):
    """Events in order, each with the moment just before it: all that count features ever see of a batch.

    No user rows: with its item rows translated, a lesson teaches another worker's bank the same.
    """

    item_B: npt.NDArray[np.int32]  # -1: not admitted
    weight_B: npt.NDArray[np.float32]  # 0: not counted
    type_B: npt.NDArray[np.uint16]
    time_ms_B: npt.NDArray[np.int64]
    session_B: npt.NDArray[np.uint64]  # key of the session that the event belongs to, see UserSessions
    position_B: npt.NDArray[np.int8]  # session position, see pipeline.state.positions
    items_BL: npt.NDArray[np.int32]  # the window, newest first
    length_B: npt.NDArray[np.int32]
    seq: int  # of the batch: with the seed it decides every draw

    @classmethod
    def of(
        cls,
        queries: Queries,
        item_B: npt.NDArray[np.int32],
        weight_B: npt.NDArray[np.float32],
        type_B: npt.NDArray[np.uint16],
        session_B: npt.NDArray[np.uint64],
        seq: int,
    ) -> "Lessons":
        """Return the events of these queries as lessons."""
        return cls(
            item_B, weight_B, type_B, queries.now_ms_B, session_B, queries.position_B, queries.items_BL,
            queries.length_B, seq,
        )  # fmt: skip
