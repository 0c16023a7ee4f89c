"""Safety limits on training steps; those on dead letters are tested with the loop."""

import logging

import pytest

from pipeline.errors import SafetyLimit
from pipeline.service.guard import NON_FINITE_RUN, Guard


def test_steps_that_are_not_finite_are_told_and_too_many_in_a_row_end_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Guard(0.5, 100)
    with caplog.at_level(logging.WARNING):
        for seq in range(NON_FINITE_RUN - 1):
            guard.check_step(seq, "non_finite")
    assert "batch 3: loss or gradient not finite" in caplog.text
    with pytest.raises(SafetyLimit, match=rf"{NON_FINITE_RUN} training steps in a row.*older checkpoint"):
        guard.check_step(NON_FINITE_RUN, "non_finite")


def test_a_good_step_or_one_without_a_target_starts_the_count_anew() -> None:
    guard = Guard(0.5, 100)
    for seq in range(5 * NON_FINITE_RUN):
        guard.check_step(seq, "non_finite" if seq % NON_FINITE_RUN else ("", "no_target")[seq % 2])
