"""What a plan makes happen among the made-up shoppers, and that the truth tells it as it was."""

import itertools

import numpy as np
import pytest

from producers.simulator.market import CATEGORIES
from producers.simulator.plan import NO_PLAN, Burst, Change, Plan, Season, parse_burst, parse_change
from producers.simulator.users import Columns, Market, Truth, item_name, shoppers, user_name

EVENTS = 12_000
# what follows what shows soon in it
SMALL = Market(users=600, items=480, sessions=32, follow=0.95, trend=0.02, leave=0.05)


def stream_of(plan=NO_PLAN, events=EVENTS, seed=0, market=SMALL, chunk=8_192):
    truth = Truth()
    chunks = shoppers(events, seed, market=market, chunk=chunk, plan=plan, truth=truth)
    columns = Columns(*(np.concatenate(column) for column in zip(*chunks, strict=True)))
    return columns, truth


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def steps(stream, start, stop):
    """The steps (category before, item before, item) of each user, from one item on to another."""
    last, found = {}, []
    for number, (user, item) in enumerate(
        zip(stream.user_B[:stop].tolist(), stream.item_B[:stop].tolist(), strict=True)
    ):
        if number >= start and user in last and last[user] != item:
            found.append((user, last[user], item))
        last[user] = item
    return found


def agreement(stream, learned, tested, keep=lambda user, before: True):
    """How often a step goes where most steps from that item went in another part of the stream."""
    follows = {}
    for _, before, item in steps(stream, *learned):
        follows.setdefault(before, []).append(item)
    best = {before: max(set(after), key=after.count) for before, after in follows.items()}
    judged = [
        best[b] == i for user, b, i in steps(stream, *tested) if b in best and keep(user, b)
    ]  # fmt: skip
    return np.mean(judged)


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


def test_the_same_seed_and_plan_give_the_same_events_however_they_are_cut():
    whole, truth = stream_of(EVERYTHING)
    cut, again = stream_of(EVERYTHING, chunk=50)
    assert same(whole, cut)
    assert truth == again
    assert not same(whole, stream_of(EVERYTHING, seed=1)[0])
    assert len(whole.user_B) == EVENTS


def test_a_plan_of_one_sudden_change_is_the_change_that_was_asked_for_by_number():
    planned, truth = stream_of(Plan((Change("sudden", 4_001),)))
    chunks = shoppers(EVENTS, 0, 4_001, SMALL)
    assert same(planned, (np.concatenate(column) for column in zip(*chunks, strict=True)))
    assert truth.changes[0]["at_event"] == 4_001
    with pytest.raises(ValueError, match=r"expected it in the plan, as Change\('sudden', 7\)"):
        next(shoppers(10, 0, 7, plan=Plan(retire=0.1)))


@pytest.mark.parametrize(
    "change",
    [
        Change("sudden", 3_001),
        Change("gradual", 3_001, 5_000),
        Change("recurring", 3_001),
        Change("local", 3_001),
    ],
)
def test_nothing_is_different_before_a_change(change):
    plain, _ = stream_of()
    changed, _ = stream_of(Plan((change,)))
    rounds = 3_001 - 3_001 % SMALL.sessions  # the one that the change cuts short has other draws
    assert same((column[:rounds] for column in plain), (column[:rounds] for column in changed))
    assert not np.array_equal(plain.item_B[3_001:], changed.item_B[3_001:])


def test_a_gradual_change_takes_one_shopper_after_the_other():
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


def test_a_recurring_change_turns_back_and_forth():
    stream, truth = stream_of(Plan((Change("recurring", 3_000, 9_000, period=2_000),)))
    old = agreement(stream, (0, 3_000), (5_000, 7_000))  # the old taste again
    new = agreement(stream, (0, 3_000), (3_000, 5_000))
    again = agreement(stream, (3_000, 5_000), (7_000, 9_000))  # the new one again
    assert old > 3 * new
    assert again > 3 * new
    assert agreement(stream, (0, 3_000), (9_000, 12_000)) > 3 * new  # it ends with the old one
    turns = [(turn["event"], turn["taste"]) for turn in truth.changes[0]["turns"]]
    assert turns == [(3_000, "new"), (5_000, "old"), (7_000, "new"), (9_000, "old")]


def test_a_local_change_leaves_the_other_categories_alone():
    stream, truth = stream_of(Plan((Change("local", 6_000, share=0.25),)))
    touched = set(truth.changes[0]["items"])
    assert len(truth.changes[0]["categories"]) == 6
    assert {CATEGORIES[item % len(CATEGORIES)] for item in touched} == set(truth.changes[0]["categories"])
    there = agreement(stream, (0, 6_000), (6_000, 12_000), lambda user, before: before in touched)
    elsewhere = agreement(stream, (0, 6_000), (6_000, 12_000), lambda user, before: before not in touched)
    assert elsewhere > 4 * there


def test_a_local_change_of_shoppers_leaves_the_other_shoppers_alone():
    stream, truth = stream_of(Plan((Change("local", 6_000, share=0.3, among="shoppers"),)))
    moved = set(truth.changes[0]["users"])
    assert len(moved) == 180
    theirs = agreement(stream, (0, 6_000), (6_000, 12_000), lambda user, before: user in moved)
    others = agreement(stream, (0, 6_000), (6_000, 12_000), lambda user, before: user not in moved)
    assert others > 4 * theirs


def test_nobody_chooses_an_item_that_is_withdrawn_or_not_yet_there():
    stream, truth = stream_of(Plan(retire=0.3))
    retired = {item: event for item, event, _ in truth.retired_items}
    arrived = {item: event for item, event, _ in truth.new_items}
    assert 142 <= len(retired) <= 144  # 0.3 of 480; one that is due in the last round may stay
    assert retired.keys() & set(stream.item_B.tolist())
    for number, item in enumerate(stream.item_B.tolist()):
        assert arrived.get(item, 0) <= number < retired.get(item, EVENTS)


def test_a_burst_of_rate_brings_so_many_times_the_events_a_second():
    stream, truth = stream_of(Plan(bursts=(Burst("rate", 4_000, 6_000, factor=8),)))
    span = np.diff(stream.time_ms_B[[0, 3_999, 4_000, 5_999]])
    assert 6 < (span[0] / 4_000) / (span[2] / 2_000) < 10
    burst = truth.bursts[0]
    assert burst["at_ms"] <= stream.time_ms_B[4_000] < stream.time_ms_B[5_999] <= burst["until_ms"]


@pytest.mark.parametrize(("kind", "share", "least"), [("item", 0.3, 0.03), ("category", 0.5, 0.4)])
def test_what_is_hot_draws_many_for_a_while(kind, share, least):
    market = Market(users=3_000, items=480, sessions=32)  # whoever has met it doesn't come again
    stream, truth = stream_of(Plan(bursts=(Burst(kind, 4_000, 6_000, share=share),)), market=market)
    hot = truth.bursts[0][kind]
    names = [
        item if kind == "item" else CATEGORIES[item % len(CATEGORIES)] for item in stream.item_B.tolist()
    ]
    before, during, after = (
        np.mean([name == hot for name in names[start:stop]])
        for start, stop in ((0, 4_000), (4_000, 6_000), (7_000, 12_000))
    )
    assert during > least + max(before, after)


def test_noise_users_click_without_any_pattern():
    stream, truth = stream_of(Plan(noise_users=0.3))
    noise = set(truth.noise_users)
    assert len(noise) == 180
    theirs = agreement(stream, (0, 8_000), (8_000, 12_000), lambda user, before: user in noise)
    others = agreement(stream, (0, 8_000), (8_000, 12_000), lambda user, before: user not in noise)
    assert theirs < 0.05 < others / 3


def test_a_season_has_busy_evenings_and_categories_with_hours_of_their_own():
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


def test_the_truth_names_what_it_is_about_and_when():
    stream, truth = stream_of(EVERYTHING)
    told = truth.as_json(1_000_000, user_name, item_name)
    kinds = [(change["kind"], change["at_event"], change["until_event"]) for change in told["changes"]]
    assert kinds == [
        ("gradual", 1_000, 3_000),
        ("local", 5_000, 5_000),
        ("recurring", 6_000, 9_000),
        ("sudden", 10_000, 10_000),
    ]
    for record in (*told["changes"], *told["bursts"], *told["retired_items"]):
        event, at_ms = record["at_event"], record["at_ms"] - 1_000_000
        assert stream.time_ms_B[event - 1] <= at_ms + 1
        assert at_ms <= stream.time_ms_B[event] + 1
    assert told["changes"][0]["users"] == "all"
    assert told["changes"][1]["users"][0].startswith("shopper-")
    assert told["bursts"][1]["item"].partition("-")[0] in CATEGORIES
    assert told["noise_users"][0].startswith("shopper-")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Change("slow", 5), "kind of change 'slow': expected one of sudden, gradual"),
        (lambda: Change("gradual", 5), "gradual@5: expected the event by which all have changed"),
        (lambda: Change("sudden", 5, 9), r"sudden@5\.\.9: expected an end after the start, of gradual"),
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
def test_a_plan_that_can_not_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_turns_come_in_order_and_end():
    plan = Plan((Change("recurring", 10, 35, period=10),), (Burst("rate", 12, 33),))
    turns = list(itertools.takewhile(lambda turn: turn is not None, _turns(plan)))
    assert turns == [10, 12, 20, 30, 33, 35]


def _turns(plan):
    made = -1
    while made is not None:
        made = plan.next_turn(made)
        yield made
