"""What follows a drift alarm: bounded, repeatable, from the next batch on, and worth it."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from harness.clock import ManualClock
from harness.streams import START_MS, Batches, Event, lessons

from pipeline.evaluation import reaction
from pipeline.evaluation.drift import DriftWatch
from pipeline.evaluation.reaction import (
    DURATION_EVENTS,
    MAX_EXTRA_STEP,
    MIN_SHARE_LEFT,
    Reaction,
    Response,
    share_left,
)
from pipeline.events.records import DriftAlarm
from pipeline.features.bank import FeatureBank
from pipeline.features.context_matches import BEFORE, OCCURRENCES, ContextMatches
from pipeline.features.lessons import Lessons
from pipeline.models.gate import BOUND
from pipeline.models.registry import variant_of
from pipeline.outcome import Outcome
from pipeline.recommender import Recommender
from pipeline.service.health import Health
from pipeline.service.metrics import Metrics
from pipeline.service.observe import MetricsObserver
from pipeline.settings import DriftConfig, ModelConfig, RankConfig, Settings
from pipeline.state.tables import IdTable, ItemAge
from producers.simulator.events import SimulatorConfig
from producers.simulator.plan import Change, Plan
from producers.simulator.users import simulate_users

ITEMS = 12
Array = np.ndarray


def alarm(before: float, after: float, signal: str = "hit_rate", at_event: int = 10) -> DriftAlarm:
    return DriftAlarm("adwin", signal, at_event, before, after, START_MS)


def lessons_of(walk: Array, width: int = 10) -> Lessons:
    """Return the lessons of one user's events, past the first `width`."""
    windows = [walk[at - width : at][::-1].tolist() for at in range(width, len(walk))]
    return lessons(walk[width:].tolist(), windows, length=width)


def learned(events: int = 400) -> FeatureBank:
    """Return a bank that has learned a random walk over a few items, of which one is never met."""
    items = IdTable("item")
    items.settle(items.admit([f"i{number}" for number in range(ITEMS)]))
    bank = FeatureBank(items, 8, 5, repeats=True, seed=0)
    bank.update(lessons_of(np.random.default_rng(0).integers(ITEMS - 1, size=events + 10)))
    return bank


def newest_occurrences(bank: FeatureBank, item: int) -> list[list[int]]:
    """Return the kept occurrences of an item, newest first."""
    family = bank.families["context_matches"]
    assert isinstance(family, ContextMatches)
    ever, ring = int(family.seen.data[item]), family.occurrence.data[item]
    kept = range(ever - 1, max(ever - OCCURRENCES, 0) - 1, -1)
    return [ring[number % OCCURRENCES].tolist() for number in kept]


@pytest.mark.parametrize("share", [0, 5 / OCCURRENCES, 1])
def test_fading_weakens_rows_by_what_they_have_learned_and_keeps_the_newest_occurrences(share: float) -> None:
    before, after = learned(), learned()
    after.fade(0.05, share)
    old, new = before.transitions, after.transitions
    factor_M1 = 1 / (1 + 0.05 * old.followed.data[:, None])
    assert new.followed.data == pytest.approx(factor_M1[:, 0] * old.followed.data)
    assert (new.followed.data < 1 / 0.05).all()
    assert new.forward.data == pytest.approx(factor_M1 * old.forward.data)
    assert new.backward.data == pytest.approx(factor_M1 * old.backward.data)
    assert (new.partner.data == old.partner.data).all()
    assert (new.count.data == old.count.data).all()
    for m in range(ITEMS):
        assert newest_occurrences(after, m) == newest_occurrences(before, m)[: round(OCCURRENCES * share)]


def test_occurrences_that_come_after_a_fading_take_their_places() -> None:
    bank = learned()
    bank.fade(0.0, 3 / OCCURRENCES)
    bank.update(lessons_of(np.array([1, 9, 8, 7, 2, 5]), 5))
    assert newest_occurrences(bank, 2)[0] == [5, 7, 8, 9, 1][: 1 + BEFORE]
    assert len(newest_occurrences(bank, 2)) == 4


@pytest.mark.parametrize(
    ("before", "after", "signal", "left"),
    [
        (0.4, 0.1, "hit_rate", 0.25),
        (0.6, 0.9, "loss", 0.25),
        (0.4, 0.0, "hit_rate", MIN_SHARE_LEFT),
        (0.5, 1.0, "loss", MIN_SHARE_LEFT),
        (0.1, 0.4, "hit_rate", 1.0),
        (0.0, 0.0, "hit_rate", 1.0),
        (1.0, 1.0, "loss", 1.0),
        (0.02, 0.5, "young_items", 1.0),
    ],
)
def test_what_is_left_of_quality_is_bounded(before: float, after: float, signal: str, left: float) -> None:
    assert share_left(alarm(before, after, signal)) == left


def test_signals_of_one_change_add_up_to_the_worst_of_them() -> None:
    alarms = [alarm(0.4, 0.2), alarm(0.5, 0.9, "loss"), alarm(0.4, 0.3)]
    response = Reaction().respond(alarms, 400)
    assert [each.reaction for each in response.alarms] == [0.5, 0.8, 0.0]
    one_by_one, together = Reaction(), Reaction().respond(alarms, 400).fade
    fades = [one_by_one.respond([each], 400).fade for each in alarms]
    assert fades[2] is None
    assert together == Reaction().respond([alarms[1]], 400).fade
    assert together is not None
    assert sum(fade.weakening for fade in fades if fade) == pytest.approx(together.weakening)


def test_steps_are_longer_for_a_while_and_less_so_with_each_event() -> None:
    reacting = Reaction()
    assert reacting.step_factor(1_000) == 1
    reacting.respond([alarm(0.4, 0.1)], 1_000)
    factors = [reacting.step_factor(at) for at in range(1_000, 1_001 + DURATION_EVENTS, 500)]
    assert factors[0] == 1 + 0.75 * MAX_EXTRA_STEP
    assert all(a > b for a, b in itertools.pairwise(factors))
    assert factors[-1] == 1
    assert reacting.running(999 + DURATION_EVENTS)
    assert not reacting.running(1_000 + DURATION_EVENTS)


def test_switched_off_it_asks_for_nothing_and_a_running_one_ends_with_a_restart() -> None:
    running, off = Reaction(), Reaction(on=False)
    assert off.respond([alarm(0.4, 0.1)], 400) == Response([alarm(0.4, 0.1)], None)
    running.respond([alarm(0.4, 0.1)], 400)
    off.load(running.arrays())
    assert running.step_factor(401) > 1
    assert off.step_factor(401) == 1
    assert not off.running(401)


# The recommender


MODEL = ModelConfig(tables={"attention": {"dim": 16, "history": 10}})


def learner(on: bool = True) -> Recommender:
    rank = RankConfig(k=5, explain=False)
    settings = Settings(model=MODEL, rank=rank, drift=DriftConfig(reaction=on))
    return Recommender(settings, [variant_of(MODEL, "attention")])


def feed(into: Recommender, batches: Batches, count: int, seed: int = 0, size: int = 32) -> list[Outcome]:
    """Let it learn random sessions in which most items have one successor."""
    rng, outcomes = np.random.default_rng((seed, batches.seq)), []
    for _ in range(count):
        events = []
        for _ in range(size // 4):
            user, item = f"u{rng.integers(40)}", int(rng.integers(60))
            for _ in range(4):
                events.append(Event(user, f"i{item}", time_ms=START_MS + 1_000 * batches.seq))
                item = (item + 7) % 60 if rng.random() < 0.8 else int(rng.integers(60))
        outcomes.append(into.step(batches(events)))
    return outcomes


def plant(monkeypatch: pytest.MonkeyPatch, first: int, last: int, after: float = 0.01) -> None:
    """Let the watch raise an alarm in every batch that begins within these events."""

    def raised(watch: DriftWatch, hits: Sequence[float], *rest: object) -> list[DriftAlarm]:
        at_event = int(str(rest[2]))
        return [alarm(0.4, after, at_event=at_event + len(hits))] if first <= at_event <= last else []

    monkeypatch.setattr(DriftWatch, "update", raised)


def test_a_reaction_shows_from_the_batch_after_the_alarm_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, 32 * 20, 32 * 20)
    totals: dict[bool, list[float]] = {}
    outcomes: dict[bool, list[Outcome]] = {}
    for on in (True, False):
        each, batches = learner(on), Batches()
        outcomes[on], totals[on] = [], []
        for _ in range(23):
            outcomes[on] += feed(each, batches, 1)
            totals[on].append(outcomes[on][-1].metrics.loss)
    assert totals[True][1:21] == totals[False][1:21]  # the first has nothing to learn
    assert totals[True][21] != totals[False][21]
    (raised,) = outcomes[True][20].alarms
    assert raised.reaction == pytest.approx(0.95)
    assert outcomes[False][20].alarms[0].reaction == 0
    assert [outcome.metrics.reacting for outcome in outcomes[True]] == [False] * 20 + [True] * 3
    assert not any(outcome.metrics.reacting for outcome in outcomes[False])


def test_the_gauge_is_one_while_a_reaction_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaction, "DURATION_EVENTS", 32 * 3)
    plant(monkeypatch, 32 * 2, 32 * 2)
    each, batches, metrics, clock, shown = learner(), Batches(), Metrics(), ManualClock(START_MS), []
    observer = MetricsObserver(metrics, Health(clock), clock)
    for _ in range(8):
        raw = batches([Event(f"u{n}", f"i{n % 9}") for n in range(32)])
        observer.learned(raw, each.step(raw), each)
        shown.append(metrics.registry.get_sample_value("afresh_drift_reaction"))
    assert shown == [0, 0, 1, 1, 1, 0, 0, 0]


def test_a_restart_in_the_midst_of_a_reaction_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, 32 * 10, 32 * 10)
    unbroken, batches = learner(), Batches()
    feed(unbroken, batches, 12)
    restored, again = learner(), Batches(seq=batches.seq, ends=batches.ends)
    restored.restore(unbroken.snapshot())
    feed(unbroken, batches, 10)
    outcomes = feed(restored, again, 10)
    assert outcomes[0].metrics.reacting
    assert restored.digests() == unbroken.digests()


def test_alarms_without_end_cannot_drive_the_model_away(monkeypatch: pytest.MonkeyPatch) -> None:
    # else it would be the worst fall only every 5,000 events
    monkeypatch.setattr(reaction, "DURATION_EVENTS", 32)
    plant(monkeypatch, 32 * 10, 10**9, after=0.0)
    each, calm, batches, others = learner(), learner(False), Batches(), Batches()
    outcomes = feed(each, batches, 90)
    feed(calm, others, 90)
    assert all(outcome.alarms[0].reaction == pytest.approx(1 - MIN_SHARE_LEFT) for outcome in outcomes[10:])
    model = each.models[0]
    for name, column in model.columns().items():
        assert np.isfinite(column.data).all(), name
    assert np.abs(model.columns()["gate_weight"].data).max() <= BOUND
    figures, without = each.quality.cumulative()["attention"], calm.quality.cumulative()["attention"]
    assert figures["ndcg@10"] > 0.5 * without["ndcg@10"]  # it learns on with hardly a past


def test_after_a_change_of_taste_quality_is_back_sooner_with_it() -> None:
    found = {}
    for on in (True, False):
        each, batches, gains, alarms = learner(on), Batches(), [], []
        plan, config = Plan((Change("sudden", 9_000),)), SimulatorConfig(items=1_500, sessions=64)
        for columns in simulate_users(12_544, 1, plan, config, chunk=128):
            events = [
                Event(f"u{user}", f"i{item}", time_ms=START_MS + ms)
                for user, item, ms in zip(columns.user_B, columns.item_B, columns.time_ms_B, strict=True)
            ]
            alarms += each.step(batches(events)).alarms
            gains.append(each.quality.cumulative()["attention"])
        assert next(a.signal for a in alarms if a.at_event > 9_000) == "hit_rate"
        at = next(n for n, _ in enumerate(gains) if (n + 1) * 128 > 9_700)
        tests = gains[-1]["tests"] - gains[at]["tests"]
        hits = gains[-1]["ndcg@10"] * gains[-1]["tests"] - gains[at]["ndcg@10"] * gains[at]["tests"]
        found[on] = hits / tests
    assert found[True] > 1.08 * found[False]  # 1.09 to 1.10 for seeds 1, 2 and 3


# Young items


def test_an_item_is_young_for_so_many_events_from_its_admission_on() -> None:
    age = ItemAge(4)
    age.note(np.array([0, 1]), 100)
    age.note(np.array([2]), 150)
    assert age.young(np.array([0, 2, 1, -1]), 108, 10).tolist() == [1, 1, 0, 1]


def test_a_rush_of_new_items_raises_an_alarm_without_a_reaction() -> None:
    each, batches, alarms, rng = learner(), Batches(), [], np.random.default_rng(5)
    for batch in range(70):
        fresh = rng.random(128) < (0.5 if batch >= 60 else 0.0)
        items = np.where(fresh, 1_000 + 100 * batch + rng.integers(100, size=128), rng.integers(40, size=128))
        alarms += each.step(batches([Event(f"u{rng.integers(900)}", f"i{item}") for item in items])).alarms
    (raised,) = [a for a in alarms if a.signal == "young_items"]
    assert 60 * 128 < raised.at_event <= 64 * 128
    assert raised.before == 0
    assert raised.after > 0.3
    assert raised.reaction == 0
