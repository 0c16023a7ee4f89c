"""Safety limits: stop before bad records drain a topic into the dead letters, or parameters become NaN."""

import logging

import numpy as np

from pipeline.errors import SafetyLimit
from pipeline.events.batch import Polled, RawBatch

logger = logging.getLogger(__name__)

WINDOW_RECORDS = 10_000  # over which the ratio of bad records is taken
MIN_RECORDS = 1_000  # for a ratio
MAX_NON_FINITE_STEPS = 20  # consecutive training steps skipped for a non-finite loss or gradient


class Guard:
    """Counts bad records, and raises before the batch that exceeds a limit is published.

    `max_ratio` of bad records among the last 10,000 (from 1,000 on); `max_consecutive` bad records.
    """

    def __init__(self, max_ratio: float, max_consecutive: int) -> None:
        self._max_ratio = max_ratio
        self._max_consecutive = max_consecutive
        self._bad_W = np.zeros(0, np.bool_)  # of the last records, oldest first
        self._consecutive = 0  # bad records since the last good one
        self._non_finite = 0  # consecutive steps

    def check(self, polled: Polled, raw: RawBatch) -> None:
        """Count a batch. Raise `SafetyLimit` when a limit is exceeded."""
        bad_R = np.zeros(len(polled.records), np.bool_)
        if raw.rejects:
            bad = {(r.record.topic, r.record.partition, r.record.offset) for r in raw.rejects}
            bad_R[:] = [(r.topic, r.partition, r.offset) in bad for r in polled.records]
            # one record may stand for all records of an unreadable Kafka batch
            counts = [min(getattr(r, "stands_for", 1), WINDOW_RECORDS) for r in polled.records]
            bad_R = np.repeat(bad_R, counts)
        self._bad_W = np.concatenate((self._bad_W, bad_R))[-WINDOW_RECORDS:]
        longest = self._longest_run(bad_R)
        ratio = float(self._bad_W.mean()) if len(self._bad_W) else 0.0
        if longest > self._max_consecutive:
            raise _exceeded(
                f"{longest} bad records in a row", "max_consecutive_dead_letters", self._max_consecutive, raw
            )
        if len(self._bad_W) >= MIN_RECORDS and ratio > self._max_ratio:
            share = f"{ratio:.0%} of the last {len(self._bad_W)} records are bad"
            raise _exceeded(share, "max_dead_letter_ratio", self._max_ratio, raw)

    def check_step(self, seq: int, skipped: str) -> None:
        """Count consecutive non-finite steps; `skipped` is the reason a step was skipped for, or "".

        Raise `SafetyLimit` after too many.
        """
        if skipped != "non_finite":
            self._non_finite = 0
            return
        self._non_finite += 1
        logger.warning("batch %d: loss or gradient not finite; step skipped, nothing published", seq)
        if self._non_finite >= MAX_NON_FINITE_STEPS:
            raise SafetyLimit(
                f"{self._non_finite} training steps in a row with a loss or gradient not finite; expected "
                "none. Go back to an older checkpoint: delete the newest in checkpoint.path and its journal. "
                "Or start from an empty folder"
            )

    def _longest_run(self, bad_R: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
        """Return the longest run of bad records that ends in this batch; carry the last one on."""
        good = np.flatnonzero(~bad_R)
        if not len(good):
            self._consecutive += len(bad_R)
            return self._consecutive
        longest = max(self._consecutive + int(good[0]), int(np.diff(good, append=len(bad_R)).max()) - 1)
        self._consecutive = len(bad_R) - int(good[-1]) - 1
        return longest


def _exceeded(problem: str, limit: str, value: float, raw: RawBatch) -> SafetyLimit:
    """Return the error of a batch that exceeds a limit; it names the last bad record."""
    last = raw.rejects[-1]
    record = last.record
    return SafetyLimit(
        f"{problem}; expected at most limits.{limit} = {value}. "
        f"The last one: {record.topic}-{record.partition} offset {record.offset}, {last.reason}: "
        f"{last.detail}. Check the producers of that topic and [events] in the configuration "
        "(`afresh check` names the key); then start again. "
        f"To accept such records as dead letters, raise limits.{limit}"
    )
