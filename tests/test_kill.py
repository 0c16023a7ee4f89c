"""`kill -9` at random moments, as if nothing had happened; all of it seen from outside.

AFRESH_KILL_EVENTS and AFRESH_KILL_SEED make it longer and another one: tests/benchmarks/delivery.py runs 50,000.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kills import SETTINGS, checkpoints, kill_and_compare
from services import Site
from truth import shopping, spoiled

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]
EVENTS = int(os.environ.get("AFRESH_KILL_EVENTS", "15000"))
SEED = int(os.environ.get("AFRESH_KILL_SEED", "0"))


def test_five_kills_change_nothing(broker: str, topic_name: Name, tmp_path: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    stream = spoiled(shopping(EVENTS, SEED, now_ms), SEED, now_ms)
    assert len({reason for _, reason in stream.bad.values()}) > 10
    assert stream.duplicates > EVENTS // 200
    with Site(broker, topic_name("kill"), tmp_path, settings=SETTINGS) as site:
        outcome = kill_and_compare(site, stream, SEED)
        assert outcome.faults == []
        assert checkpoints(site) > 5
    assert max(outcome.learned_at_kills) < EVENTS, "the kills came after all was learned"
