"""`kill -9` at random moments changes nothing that a user of the topics can observe.

AFRESH_KILL_EVENTS and AFRESH_KILL_SEED choose other sizes and moments; tests/benchmarks/delivery.py runs
50,000 events.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from contracts.toy_model import TOY
from harness.kills import SETTINGS, checkpoints, kill_and_compare
from harness.service import STOP_S, Sent, Site
from harness.truth import Truth, shopping, spoiled, write_csv

from pipeline.models.registry import MODELS

pytestmark = pytest.mark.kafka
MakeSite = Callable[..., Site]
EVENTS = int(os.environ.get("AFRESH_KILL_EVENTS", "10000"))
SEED = int(os.environ.get("AFRESH_KILL_SEED", "0"))


def test_five_kills_change_nothing(broker: str, make_site: MakeSite) -> None:
    now_ms = time.time_ns() // 1_000_000
    stream = spoiled(shopping(EVENTS, SEED, now_ms), SEED, now_ms)
    assert len({reason for _, reason in stream.bad.values()}) > 10
    assert stream.duplicates > EVENTS // 200
    site = make_site(broker, settings=SETTINGS)
    outcome = kill_and_compare(site, stream, SEED)
    assert outcome.faults == []
    assert checkpoints(site) > 5
    assert max(outcome.learned_at_kills) < EVENTS, "the kills came after all was learned"


@pytest.mark.parametrize("model", ["sasrec", "ncf", "toy"])
def test_five_kills_change_nothing_for_a_torch_model(
    embedded_broker: str, make_site: MakeSite, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "toy", TOY)
    now_ms = time.time_ns() // 1_000_000
    stream = spoiled(shopping(EVENTS // 4, SEED, now_ms), SEED, now_ms)
    site = make_site(embedded_broker, settings={**SETTINGS, "model.name": model})
    assert kill_and_compare(site, stream, SEED).faults == []


def test_workers_that_come_and_go_lose_and_double_nothing(
    broker: str, make_site: MakeSite, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A second worker joins in mid-stream, the first leaves, the second is killed, a third takes over."""
    file = write_csv(tmp_path / "events.csv", shopping(30_000, SEED, time.time_ns() // 1_000_000))
    site = make_site(broker, settings={"checkpoint.interval_s": 1})
    first = site.run("worker-0")
    first.wait_state("ready")
    replay = site.start("replay", str(file), "--rate", "600")
    first.wait_learned(100)
    second = site.run("worker-1")
    second.until(lambda: second.held() == 2, "two partitions of the second")
    second.wait_learned(200)
    first.until(lambda: first.held() == 2, "two partitions of the first")
    assert first.end() < STOP_S
    second.until(lambda: second.held() == 4, "all partitions of the second")
    second.wait_learned(second.learned() + 500)
    second.kill()
    third = site.run("worker-2")
    if request.node.callspec.id == "embedded":  # it never ends the session of a dead member
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
