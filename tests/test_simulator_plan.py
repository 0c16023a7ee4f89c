"""What a plan makes happen among simulated users, and the ground truth that records it."""

import numpy as np
import pytest
from test_simulate import joined

from producers.simulator.events import CATEGORIES, SimulatorConfig
from producers.simulator.plan import NO_PLAN, Burst, Change, Plan, Season, parse_burst, parse_change
from producers.simulator.truth import Truth
from producers.simulator.users import simulate_users

EVENTS = 12_000
# transitions show after few events
SMALL = SimulatorConfig(users=600, items=480, sessions=32, follow=0.95, trend=0.02, leave=0.05)


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def stream_of(plan=NO_PLAN, seed=0, config=SMALL, chunk=8_192):
    truth = Truth()
    return joined(simulate_users(EVENTS, seed, plan, config, chunk, truth)), truth


def steps(stream, start, stop):
    """Return the steps (user, item before, item) from one item to another."""
    last, found = {}, []
    for number, (user, item) in enumerate(
        zip(stream.user_B[:stop].tolist(), stream.item_B[:stop].tolist(), strict=True)
    ):
        if number >= start and user in last and last[user] != item:
            found.append((user, last[user], item))
        last[user] = item
    return found


def agreement(stream, learned, tested, keep=lambda user, before: True):
    """Return how often a step goes where most steps from its item went in another part of the stream."""
    follows = {}
    for _, before, item in steps(stream, *learned):
        follows.setdefault(before, []).append(item)
    best = {before: max(set(after), key=after.count) for before, after in follows.items()}
    return np.mean([best[b] == i for user, b, i in steps(stream, *tested) if b in best and keep(user, b)])


EVERYTHING = Plan(
    changes=(
        Change("gradual", 1_000, 3_000),
        Change("local", 5_000),
        Change("recurring", 6_000, 9_000, period=1_000),
        Change("sudden", 10_000),
    ),
    bursts=(Burst("rate", 500, 900), Burst("item", 4_000, 4_500), Burst("category", 9_500, 9_900)),
    season=Season(3),
    noise_users=0.1,
    retire=0.2,
)


@pytest.fixture(scope="module")
def everything():
    return stream_of(EVERYTHING)


def test_stream_and_truth_depend_on_seed_and_plan_and_not_on_the_chunks(everything):
    whole, truth = everything
    cut, again = stream_of(EVERYTHING, chunk=50)
    assert same(whole, cut)
    assert truth == again
    assert not same(whole, stream_of(EVERYTHING, seed=1)[0])
    assert len(whole.user_B) == EVENTS


@pytest.mark.parametrize("kind", ["sudden", "gradual", "recurring", "local"])
def test_a_change_affects_no_event_before_it(kind):
    plain, _ = stream_of()
    changed, _ = stream_of(Plan((Change(kind, 3_001, 5_000 if kind == "gradual" else None),)))
    rounds = 3_001 - 3_001 % SMALL.sessions  # the round that the change cuts short has other draws
    assert same((column[:rounds] for column in plain), (column[:rounds] for column in changed))
    assert not np.array_equal(plain.item_B[3_001:], changed.item_B[3_001:])


def test_a_gradual_change_moves_user_after_user():
    stream, truth = stream_of(Plan((Change("gradual", 4_000, 8_000),)))
    before, first, last, after = (
        agreement(stream, (0, 3_000), span)
        for span in ((3_000, 4_000), (4_000, 5_000), (7_000, 8_000), (8_000, 12_000))
    )
    assert before > first > last > after
    assert first > 0.6 * before
    assert after < 0.25 * before
    (change,) = truth.changes
    assert (change["at_event"], change["until_event"]) == (4_000, 8_000)


def test_a_recurring_change_alternates():
    stream, truth = stream_of(Plan((Change("recurring", 3_000, 9_000, period=2_000),)))
    old = agreement(stream, (0, 3_000), (5_000, 7_000))  # the old preferences again
    new = agreement(stream, (0, 3_000), (3_000, 5_000))
    again = agreement(stream, (3_000, 5_000), (7_000, 9_000))  # the new ones again
    assert old > 3 * new
    assert again > 3 * new
    assert agreement(stream, (0, 3_000), (9_000, 12_000)) > 3 * new  # it ends with the old ones
    turns = [(turn["event"], turn["taste"]) for turn in truth.changes[0]["turns"]]
    assert turns == [(3_000, "new"), (5_000, "old"), (7_000, "new"), (9_000, "old")]


def test_a_local_change_does_not_affect_other_categories():
    stream, truth = stream_of(Plan((Change("local", 6_000, share=0.25),)))
    touched = set(truth.changes[0]["items"])
    assert len(truth.changes[0]["categories"]) == 6
    assert {CATEGORIES[item % len(CATEGORIES)] for item in touched} == set(truth.changes[0]["categories"])
    inside = agreement(stream, (0, 6_000), (6_000, 12_000), lambda user, before: before in touched)
    outside = agreement(stream, (0, 6_000), (6_000, 12_000), lambda user, before: before not in touched)
    assert outside > 4 * inside


@pytest.mark.parametrize(
    ("plan", "users_of", "spans", "factor"),
    [
        (
            Plan((Change("local", 6_000, share=0.3, among="shoppers"),)),
            lambda truth: truth.changes[0]["users"],
            ((0, 6_000), (6_000, 12_000)),
            4,
        ),
        (Plan(noise_users=0.3), lambda truth: truth.noise_users, ((0, 8_000), (8_000, 12_000)), 3),
    ],
    ids=["local change", "noise users"],
)
def test_a_share_of_the_users_leaves_the_learned_transitions(plan, users_of, spans, factor):
    stream, truth = stream_of(plan)
    chosen = set(users_of(truth))
    assert len(chosen) == 180
    theirs = agreement(stream, *spans, lambda user, before: user in chosen)
    others = agreement(stream, *spans, lambda user, before: user not in chosen)
    assert others > factor * theirs
    if plan.noise_users:
        assert theirs < 0.05


def test_no_user_takes_an_item_that_has_retired_or_not_arrived():
    stream, truth = stream_of(Plan(retire=0.3))
    retired = {item: event for item, event, _ in truth.retired_items}
    arrived = {item: event for item, event, _ in truth.new_items}
    assert 142 <= len(retired) <= 144  # 0.3 of 480; one that is due in the last round may stay
    assert retired.keys() & set(stream.item_B.tolist())
    for number, item in enumerate(stream.item_B.tolist()):
        assert arrived.get(item, 0) <= number < retired.get(item, EVENTS)


def test_a_burst_of_rate_multiplies_the_event_rate():
    stream, truth = stream_of(Plan(bursts=(Burst("rate", 4_000, 6_000, factor=8),)))
    span = np.diff(stream.time_ms_B[[0, 3_999, 4_000, 5_999]])
    assert 6 < (span[0] / 4_000) / (span[2] / 2_000) < 10
    burst = truth.bursts[0]
    assert burst["at_ms"] <= stream.time_ms_B[4_000] < stream.time_ms_B[5_999] <= burst["until_ms"]


@pytest.mark.parametrize(("kind", "share", "margin"), [("item", 0.3, 0.03), ("category", 0.5, 0.4)])
def test_the_target_of_a_burst_is_popular_for_a_while(kind, share, margin):
    config = SimulatorConfig(users=3_000, items=480, sessions=32)  # a user takes an item once
    stream, truth = stream_of(Plan(bursts=(Burst(kind, 4_000, 6_000, share=share),)), config=config)
    target = truth.bursts[0][kind]
    items = stream.item_B.tolist()
    hits = [target == (item if kind == "item" else CATEGORIES[item % len(CATEGORIES)]) for item in items]
    before, during, after = (
        np.mean(hits[start:stop]) for start, stop in ((0, 4_000), (4_000, 6_000), (7_000, 12_000))
    )
    assert during > margin + max(before, after)


def test_a_season_has_busy_evenings_and_a_peak_hour_for_each_category():
    stream, truth = stream_of(Plan(season=Season(days=4, strength=0.8)))
    hours = stream.time_ms_B / 3_600_000 % 24
    assert 3.5 * 24 < stream.time_ms_B[-1] / 3_600_000 < 4.5 * 24
    evening, morning = (np.mean(np.abs((hours - hour + 12) % 24 - 12) < 3) for hour in (20, 8))
    assert evening > 3 * morning
    categories = stream.item_B % len(CATEGORIES)
    nearer = 0
    for category, name in enumerate(CATEGORIES):
        offset = np.abs((hours - truth.season["peak_hours"][name] + 12) % 24 - 12)
        share = [np.mean(categories[chosen] == category) for chosen in (offset < 6, offset > 6)]
        nearer += share[0] > share[1]
    assert nearer >= 22


def test_the_truth_gives_ids_and_times(everything):
    stream, truth = everything
    found = truth.as_json(1_000_000)
    spans = {change["kind"]: (change["at_event"], change["until_event"]) for change in found["changes"]}
    assert spans == {
        "gradual": (1_000, 3_000), "local": (5_000, 5_000), "recurring": (6_000, 9_000),
        "sudden": (10_000, 10_000),
    }  # fmt: skip
    for record in (*found["changes"], *found["bursts"], *found["retired_items"]):
        event, at_ms = record["at_event"], record["at_ms"] - 1_000_000
        assert stream.time_ms_B[event - 1] <= at_ms + 1
        assert at_ms <= stream.time_ms_B[event] + 1
    assert found["changes"][0]["users"] == "all"
    assert found["changes"][1]["users"][0].startswith("shopper-")
    assert found["bursts"][1]["item"].partition("-")[0] in CATEGORIES
    assert found["noise_users"][0].startswith("shopper-")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Change("slow", 5), "kind of change 'slow': expected one of sudden, gradual"),
        (lambda: Change("gradual", 5), "gradual@5: expected the event by which all have changed"),
        (lambda: Change("sudden", 5, 9), r"sudden@5\.\.9: expected an end .*only for gradual"),
        (lambda: Change("recurring", 5, 5), r"recurring@5\.\.5: expected an end after the start"),
        (lambda: Change("local", 5, share=1.5), "local, share 1.5: expected 0 to 1"),
        (lambda: Burst("rate", 5, 5), r"rate@5\.\.5: expected an end after the start"),
        (lambda: Burst("rate", 5, 6, factor=0), "rate@5, factor 0: expected more than 0"),
        (lambda: Season(0), "expected days above 0"),
        (lambda: Plan(retire=2), "retire, share 2: expected 0 to 1"),
        (
            lambda: Plan((Change("sudden", 50), Change("gradual", 5, 60))),
            "changes gradual@5 and sudden@50 overlap",
        ),
        (lambda: Plan((Change("recurring", 5), Change("sudden", 50))), "overlap"),
        (lambda: parse_change("sudden"), r"'sudden': expected KIND@EVENT\.\.EVENT"),
        (lambda: parse_change("sudden@5,factor=2"), r"\[,share=\.\.\.\]\[,period=\.\.\.\]"),
        (lambda: parse_burst("rate@5"), r"'rate@5': expected KIND@EVENT\.\.EVENT"),
    ],
)
def test_an_impossible_plan_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
