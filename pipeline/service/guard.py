"""Safety limits: a bad deploy upstream must not drain a topic into the dead letters, and spoilt numbers must
not go on in silence.
"""

import logging

import numpy as np

from pipeline.errors import SafetyLimit
from pipeline.events.batch import Polled, RawBatch

logger = logging.getLogger(__name__)

WINDOW = 10_000  # records over which the share is taken
MINIMUM = 1_000  # no share is judged over fewer records
NON_FINITE_RUN = 20  # training steps in a row that may be skipped for a loss or gradient that is not finite


class Guard:
    """Counts bad records, and stops the loop before the batch that passes a limit is published.

    `ratio`: the highest share of bad records among the last 10,000 (judged from 1,000 on).
    `run`: the longest run of bad records without a good one.
    """

    def __init__(self, ratio: float, run: int) -> None:
        self._ratio = ratio
        self._run = run
        self._bad_W = np.zeros(0, np.bool_)  # of the last records, oldest first
        self._running = 0  # bad records since the last good one
        self._spoilt = 0  # steps in a row that were not finite

    def check(self, polled: Polled, raw: RawBatch) -> None:
        """Count a batch. Raise `SafetyLimit` when a limit is passed."""
        bad_R = np.zeros(len(polled.records), np.bool_)
        if raw.rejects:
            bad = {(r.record.topic, r.record.partition, r.record.offset) for r in raw.rejects}
            bad_R[:] = [(r.topic, r.partition, r.offset) in bad for r in polled.records]
            # one record may stand for a whole batch that can't be read
            bad_R = np.repeat(bad_R, [min(getattr(r, "stands_for", 1), WINDOW) for r in polled.records])
        self._bad_W = np.concatenate((self._bad_W, bad_R))[-WINDOW:]
        longest = self._longest_run(bad_R)
        share = float(self._bad_W.mean()) if len(self._bad_W) else 0.0
        if longest > self._run:
            raise SafetyLimit(
                f"{longest} bad records in a row; expected at most "
                f"limits.max_consecutive_dead_letters = {self._run}. "
                + _advice(raw, "max_consecutive_dead_letters")
            )
        if len(self._bad_W) >= MINIMUM and share > self._ratio:
            raise SafetyLimit(
                f"{share:.0%} of the last {len(self._bad_W)} records are bad; expected at most "
                f"limits.max_dead_letter_ratio = {self._ratio:g}. " + _advice(raw, "max_dead_letter_ratio")
            )

    def check_step(self, seq: int, skipped: str) -> None:
        """Count why a batch's step was skipped, "" when it was not. Raise `SafetyLimit` after too many."""
        if skipped != "non_finite":
            self._spoilt = 0
            return
        self._spoilt += 1
        logger.warning("batch %d: loss or gradient not finite; no step is taken, nothing published", seq)
        if self._spoilt >= NON_FINITE_RUN:
            raise SafetyLimit(
                f"{self._spoilt} training steps in a row with a loss or gradient not finite; expected none. "
                "The model's numbers are spoilt: go back to an older checkpoint (delete the newest in "
                "checkpoint.path, and its journal), or start anew from an empty folder"
            )

    def _longest_run(self, bad_R: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int:
        """Return the longest run of bad records that ends in this batch; carry the last one on."""
        good = np.flatnonzero(~bad_R)
        if not len(good):
            self._running += len(bad_R)
            return self._running
        longest = max(self._running + int(good[0]), int(np.diff(good, append=len(bad_R)).max()) - 1)
        self._running = len(bad_R) - int(good[-1]) - 1
        return longest


def _advice(raw: RawBatch, limit: str) -> str:
    """Say what to look at; the batch that passes a limit holds bad records."""
    last = raw.rejects[-1]
    record = last.record
    return (
        f"The last one: {record.topic}-{record.partition} offset {record.offset}, {last.reason}: "
        f"{last.detail}. Look at what the producers of that topic changed, and at [events] in the "
        "configuration (`afresh check` names the key); then start again. "
        f"To let such records pass into the dead letters, raise limits.{limit}"
    )
