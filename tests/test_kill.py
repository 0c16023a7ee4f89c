"""`kill -9` at random moments, as if nothing had happened; all of it seen from outside.

AFRESH_KILL_EVENTS and AFRESH_KILL_SEED make it longer and another one; tests/benchmarks/delivery.py runs
50,000.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.kills import SETTINGS, checkpoints, kill_and_compare
from harness.service import STOP_S, Site
from harness.truth import Sent, Truth, shopping, spoiled, write_csv

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]
EVENTS = int(os.environ.get("AFRESH_KILL_EVENTS", "10000"))
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


def test_workers_that_come_and_go_lose_and_double_nothing(
    broker: str, topic_name: Name, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A second worker joins in mid-stream, the first leaves, the second is killed, a third takes over."""
    file = write_csv(tmp_path / "events.csv", shopping(30_000, SEED, time.time_ns() // 1_000_000))
    with Site(broker, topic_name("workers"), tmp_path, settings={"checkpoint.interval_s": 1}) as site:
        site.create_topics()
        first = site.run("worker-0")
        first.wait_state("ready")
        replay = site.start("replay", str(file), "--rate", "600")
        second = site.run("worker-1")
        second.until(lambda: second.held() == 2, "two partitions of the second")
        second.wait_learned(200)
        first.until(lambda: first.held() == 2, "two partitions of the first")
        assert first.end() < STOP_S
        second.until(lambda: second.held() == 4, "all partitions of the second")
        second.wait_learned(second.learned() + 500)
        second.kill()
        third = site.run("worker-2")
        if request.node.callspec.id == "embedded":  # it never ends the session of a member that is gone
            third.wait_state("rebalancing")
            site.remove_member("worker-1")
        third.until(lambda: third.held() == 4, "all partitions of the third")
        third.wait_learned(200)
        assert replay.code is None, "the stream ended too early"
        replay.end(signal.SIGINT)
        third.until(site.all_committed, "all is committed")
        assert third.end() < STOP_S
        truth = Truth(Sent(record.key, record.value) for record in site.read(site.events))
        assert truth.wrong(site.newest()) == []
        assert truth.otherwise_held(site.opened("worker-2").learner, history=50) == []
