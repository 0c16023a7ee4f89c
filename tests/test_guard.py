"""Safety limits on training steps; those on dead letters are tested with the loop."""

import logging

import pytest

from pipeline.errors import SafetyLimit
from pipeline.service.guard import MAX_NON_FINITE_STEPS, Guard


def test_non_finite_steps_are_logged_and_too_many_in_a_row_end_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Guard(0.5, 100)
    with caplog.at_level(logging.WARNING):
        for seq in range(MAX_NON_FINITE_STEPS - 1):
            guard.check_step(seq, "non_finite")
    assert "batch 3: loss or gradient not finite" in caplog.text
    with pytest.raises(
        SafetyLimit, match=rf"{MAX_NON_FINITE_STEPS} training steps in a row.*older checkpoint"
    ):
        guard.check_step(MAX_NON_FINITE_STEPS, "non_finite")


def test_a_finite_step_or_one_without_a_target_resets_the_count() -> None:
    guard = Guard(0.5, 100)
    for seq in range(5 * MAX_NON_FINITE_STEPS):
        guard.check_step(seq, "non_finite" if seq % MAX_NON_FINITE_STEPS else ("", "no_target")[seq % 2])
