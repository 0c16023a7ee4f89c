"""The demo over a real loop: it starts the sender when ready, ends when all is learned, leaves no process."""

import io
import json
import os
import signal

import msgspec
import numpy as np
import pytest
from harness.clock import ManualClock
from harness.learners import CountingLearner

from consumers.memory import MemoryLog, MemorySource
from pipeline.app.demo.progress import summary_lines
from pipeline.app.demo.show import Demo, Latency
from pipeline.app.demo.view import View
from pipeline.errors import AfreshError
from pipeline.evaluation.rank_metrics import RankMetrics
from pipeline.evaluation.timeline import Moment, Timeline
from pipeline.events.batch import NOTHING_POLLED
from pipeline.events.decode import Decoder
from pipeline.events.records import DriftAlarm
from pipeline.models.model import RankResult
from pipeline.service.loop import Adapters, Loop
from pipeline.service.ports import Delivered
from pipeline.settings import Settings
from producers.memory import MemorySink
from producers.simulator.events import wire_events
from producers.simulator.users import simulate_users

NOW_MS = 1_750_000_000_000
ALARM = DriftAlarm("adwin", "hit_rate", 900, 0.374, 0.061, NOW_MS)


class Clock(ManualClock):
    """A clock on which every look takes 10 ms."""

    def monotonic_s(self):
        self.advance(0.01)
        return super().monotonic_s()


class ListSender:
    """Put simulated events and one bad record into the log at the start."""

    def __init__(self, log, events):
        self.log, self.events, self.started, self.stopped, self.error = log, events, 0, 0, None
        self.so_far = self.last = None

    def start(self):
        self.started += 1
        for columns in simulate_users(self.events, seed=0):
            for event in wire_events(columns, NOW_MS - 10**7):
                self.log.append(msgspec.json.encode(event), key=event.user_id.encode(), timestamp=NOW_MS - 40)
        self.log.append(b"not json", timestamp=NOW_MS)

    def sent(self):
        if self.error:
            raise self.error
        return self.events + 1 if self.started else None

    def progress(self):
        return self.so_far

    def figures(self):
        return self.last if self.stopped else None

    def stop(self):
        self.stopped += 1


class AlarmingLearner(CountingLearner):
    def step(self, raw, *arguments):
        outcome = super().step(raw, *arguments)
        if raw.seq == 2:
            outcome.alarms.append(ALARM)
        return outcome


class Stage:
    """A demo, its loop and what they print, without a broker."""

    def __init__(self, events=2_000, change_at=600):
        self.clock, self.log, self.printed = Clock(NOW_MS), MemoryLog(), io.StringIO()
        self.sender, self.sink, settings = ListSender(self.log, events), MemorySink(), Settings()
        self.demo = Demo(View(self.printed), self.clock, self.sender, events, change_at)
        decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
        self.source = MemorySource(self.log)
        adapters = Adapters(self.source, decoder, self.sink, self.clock, self.demo)
        self.loop = Loop(AlarmingLearner(settings), adapters, settings)
        self.quality = RankMetrics(["attention", "popularity"])

    def play(self):
        return self.demo.play(self.loop, self.quality, self.track)

    def track(self):
        return Timeline(self.quality.models).track(Moment(1, 0, self.quality.totals(), 0.0, 0))


def test_the_demo_ends_by_itself_when_all_that_was_sent_is_learned_and_acknowledged():
    stage = Stage()
    summary = stage.play()
    assert (stage.sender.started, stage.sender.stopped) == (1, 1)
    assert summary["events"] == 2_000
    assert summary["dead_letters"] == len(stage.sink.outbox.rejects) == 1
    assert summary["rankings"] == len(stage.sink.outbox.rankings) > 0
    assert stage.log.committed == {each: stage.log.end(each) for each in stage.log.partitions()}
    assert summary["events_per_s"] > 0
    assert 40 <= summary["latency_p50_ms"] <= summary["latency_p99_ms"]


def test_the_summary_has_the_keys_of_the_last_json_line():
    stage = Stage()
    hits = RankResult(*(np.array([value]) for value in (4, 0, 100, True, True, 0.9)))
    stage.quality.update("attention", hits, np.array([False]), np.zeros(1))
    summary = json.loads(json.dumps(stage.play()))
    assert list(summary) == [
        "events", "rankings", "dead_letters", "events_per_s", "latency_p50_ms", "latency_p99_ms", "models",
        "drift_alarms", "uplift", "seconds",
    ]  # fmt: skip
    assert summary["models"]["attention"] == {"hr@10": 1.0, "ndcg@10": pytest.approx(1 / np.log2(6))}
    assert summary["models"]["popularity"] == {"hr@10": 0.0, "ndcg@10": 0.0}
    assert summary["drift_alarms"] == [{"signal": "hit_rate", "at_event": 900, "delay_events": 300}]
    assert summary["uplift"] is None
    first, latency, model, _, alarm = summary_lines(summary)
    assert first.startswith("2,000 events learned and ")
    assert latency.startswith("from the event's record to the acknowledged ranking: p50 ")
    assert model == "attention: hit rate@10 1.000, NDCG@10 .387, whole stream"
    assert alarm == "drift alarm: hit_rate at event 900, 300 after the change of preferences"


def arms(clicks):
    counts = {"shown": 50, "clicks": clicks, "purchases": 1}
    return {"arms": {"recommended": counts, "random": counts}}


def test_the_uplift_is_shown_while_it_runs_and_summed_up_at_the_end():
    stage = Stage(events=40_000)
    stage.sender.so_far = {"sent": 9, **arms(5)}
    gap = {"click_rate": [0.0, -0.1, 0.1], "purchase_rate": None}
    last = {**arms(6), "lists_up_to_date": 0.754, "recommended_minus_random": gap}
    stage.sender.last = {"sent": 40_001, "seconds": 1.0, "uplift": {**last, "windows": [last] * 10}}
    summary = stage.play()
    assert "clicks on 100 shown: recommended 10.0, random 10.0\n" in stage.printed.getvalue()
    assert summary["uplift"] == last
    lines = list(summary_lines(summary))
    assert "75% of the recommended lists covered all events of their user" in lines
    assert "of 100 random items 12.0 and 2.00: recommended +0.0 ±10.0 and -" in lines


@pytest.mark.parametrize("change_at", [None, 900, 1_500])
def test_an_alarm_that_no_planted_change_explains_has_no_delay(change_at):
    (alarm,) = Stage(change_at=change_at).play()["drift_alarms"]
    assert alarm["delay_events"] is None


@pytest.mark.parametrize(("current", "reported"), [(0.5, False), (0.49, True)])
def test_a_machine_that_is_too_slow_for_the_rate_is_reported(current, reported):
    summary = {**Stage().play(), "uplift": {**arms(5), "lists_up_to_date": current}}
    assert ("try a lower --rate" in "\n".join(summary_lines(summary))) is reported


def test_without_a_terminal_progress_and_alarms_are_plain_lines():
    stage = Stage(events=40_000)
    stage.play()
    lines = stage.printed.getvalue().splitlines()
    alarm = "drift: hit_rate .374 -> .061 at event 900, 300 after the change of preferences"
    assert lines.count(alarm) == 1
    assert sum(text.startswith("40,001 of 40,000 events | ") for text in lines) == 1
    assert "\x1b" not in stage.printed.getvalue()


def test_a_first_signal_ends_the_demo_in_good_order():
    stage = Stage(events=20_000)
    poll = stage.source.poll

    def interrupted_poll(*arguments):
        if stage.loop.learner.seq == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return poll(*arguments)

    stage.source.poll = interrupted_poll
    before = signal.getsignal(signal.SIGINT)
    summary = stage.play()
    assert 0 < summary["events"] < 20_000
    assert stage.sender.stopped == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_ends_it_at_once():
    stage = Stage()
    stage.source.poll = lambda *_: os.kill(os.getpid(), signal.SIGINT) or NOTHING_POLLED
    stage.loop.leave = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        stage.play()


def test_a_sender_that_failed_ends_the_demo_with_its_error():
    stage = Stage()
    stage.sender.error = AfreshError("the process that sends the events ended with code 1: disk full")
    with pytest.raises(AfreshError, match="disk full"):
        stage.play()


def test_latency_percentiles_are_those_of_all_times_and_at_most_a_minute():
    times = np.random.default_rng(0).integers(-5, 900, 5_001)
    latency = Latency()
    assert latency.percentile(0.5) is None
    for part in np.array_split(times, 7):
        latency.add(part)
    for share in (0.5, 0.99, 1.0):
        expected = np.percentile(np.maximum(times, 0), share * 100, method="inverted_cdf")
        assert latency.percentile(share) == expected
    latency.add(np.array([10**9]))
    assert latency.percentile(1.0) == 60_000


def test_records_without_a_plausible_time_are_in_no_latency():
    demo = Stage().demo
    demo.delivered(Delivered(1, {}, np.array([0, NOW_MS - 30])), NOW_MS)
    assert demo.latency.percentile(1.0) == 30
