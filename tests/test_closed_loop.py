"""The closed loop: clicks depend on preferences alone, and the uplift measures what a ranking is worth."""

import numpy as np
import pytest
from test_simulate import joined

from producers.simulator.closed_loop import (
    BUY,
    CLICK,
    POPULAR,
    RANDOM,
    ClosedLoop,
    Listed,
    step_probabilities,
)
from producers.simulator.events import SimulatorConfig, item_name
from producers.simulator.plan import NO_PLAN, Burst, Plan, Season
from producers.simulator.truth import Truth
from producers.simulator.uplift import ARMS, Uplift, difference, lines, rate
from producers.simulator.users import Sessions

EVENTS = 5_000
CONFIG = SimulatorConfig(users=500, items=480, sessions=64)
FAR_FUTURE_MS = 10**15


class NoLists:
    def __init__(self, sessions):
        self.sessions, self.made, self.rng = sessions, 0, np.random.default_rng(5)

    def refresh(self):
        pass

    def of(self, user_id):
        return None


class Perfect(NoLists):
    """A recommender that knows the preferences of every user."""

    def of(self, user_id):
        user = np.array([int(user_id.partition("-")[2])])
        places = self.best(user, self.sessions.items.available(self.made))
        return Listed([item_name(int(self.sessions.items.item_P[place])) for place in places], FAR_FUTURE_MS)

    def best(self, user, available):
        last = self.sessions.item_S[np.flatnonzero(self.sessions.user_S == user)]
        step = step_probabilities(self.sessions, user, last, available[None], self.made)[0]
        return available[np.argsort(-step)[:10]]


class Guess(Perfect):
    """A recommender that knows only what the user has consumed."""

    def best(self, user, available):
        order = self.rng.permutation(available)
        return order[~self.sessions.consumed(user, order[None])[0]][:10]


class Unknown(NoLists):
    """Short rankings with an item that the catalogue doesn't have."""

    def of(self, user_id):
        return Listed(["from-elsewhere", "tea-0"], -2)


class WatchedLoop(ClosedLoop):
    def _visit(self, turn_S, made, limit):
        self._lists.made = made
        return super()._visit(turn_S, made, limit)


def loop_of(lists, plan=NO_PLAN, seed=0, events=EVENTS):
    truth = Truth()
    sessions, uplift = Sessions(CONFIG, events, seed, plan, truth), Uplift(CONFIG.users, events)
    return WatchedLoop(sessions, lists(sessions), uplift, seed), sessions, uplift, truth


def run(lists, events=EVENTS, **how):
    """Return the events of a closed loop, and the figures of the uplift."""
    loop, _, uplift, _ = loop_of(lists, events=events, **how)
    return joined(loop.rounds(events)), uplift.figures()


@pytest.fixture(scope="module")
def perfect():
    return run(Perfect)


def test_a_perfect_recommender_has_a_positive_uplift(perfect):
    gap = perfect[1]["recommended_minus_popular"]
    assert gap["click_rate"][1] > 0.05
    assert gap["purchase_rate"][1] > 0
    _, under_changes = run(Perfect, plan=Plan(noise_users=0.3, retire=0.1, season=Season(2)))
    assert under_changes["recommended_minus_popular"]["click_rate"][1] > 0


def test_a_random_recommender_has_no_uplift():
    _, figures = run(Guess)
    _, low, high = figures["recommended_minus_random"]["click_rate"]
    assert low < 0 < high
    assert figures["recommended_minus_popular"]["click_rate"][2] < 0


def test_the_same_seed_and_rankings_give_the_same_events_and_figures():
    first, again, other = (run(Perfect, seed=seed, events=2_000) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert first[1] == again[1]
    assert first[1] != other[1]


def test_clicks_and_purchases_are_events_within_the_requested_number(perfect):
    columns, figures = perfect
    without, _ = run(NoLists)
    assert len(columns.user_B) == EVENTS
    assert (np.diff(columns.time_ms_B) >= 0).all()
    for kind, count in ((CLICK, "clicks"), (BUY, "purchases")):
        from_slates = sum(arm[count] for arm in figures["arms"].values())
        steps = EVENTS - sum(arm["clicks"] + arm["purchases"] for arm in figures["arms"].values())
        of_steps = (without.type_B == kind).mean() * steps
        assert (columns.type_B == kind).sum() == pytest.approx(from_slates + of_steps, rel=0.15)
        assert from_slates > 20


def test_without_rankings_no_slate_is_shown():
    columns, figures = run(NoLists)
    assert len(columns.user_B) == EVENTS
    assert all(arm["slates"] == 0 for arm in figures["arms"].values())
    assert figures["lists_up_to_date"] is None
    assert figures["recommended_minus_popular"]["click_rate"] is None


def test_an_item_that_the_catalogue_does_not_have_is_shown_and_never_clicked():
    columns, figures = run(Unknown, events=2_000)
    arm = figures["arms"]["recommended"]
    assert arm["shown"] == 2 * arm["slates"] > 0
    assert figures["lists_up_to_date"] == 0
    assert set(columns.item_B.tolist()) <= set(range(CONFIG.items))


def test_popular_and_random_slates_hold_available_items_that_the_user_has_not_consumed():
    loop, sessions, _, truth = loop_of(Guess, Plan(retire=0.4))
    made = sum(len(columns.user_B) for columns in loop.rounds(EVENTS))
    retired = {item for item, _, _ in truth.retired_items}
    for _ in range(5):
        visits = loop._slates(np.arange(CONFIG.sessions), made, 1_000)
        compared = np.isin(visits.arm_V, [POPULAR, RANDOM])
        shown = visits.place_VK[compared]
        assert (shown >= 0).all()
        assert not sessions.consumed(sessions.user_S[visits.slot_V[compared]], shown).any()
        assert retired.isdisjoint(sessions.items.item_P[shown].ravel().tolist())
        assert all(len(set(slate)) == len(slate) == 10 for slate in shown.tolist())
    assert len(retired) > 100


def test_the_popular_slate_holds_the_items_with_the_most_decayed_events():
    loop, sessions, _, _ = loop_of(Guess)
    newest = joined(loop.rounds(EVENTS)).item_B[::-1]
    weight = np.bincount(newest, 0.5 ** (np.arange(EVENTS) / 5_000), CONFIG.items)  # event by event
    order = sessions.items.place_of[np.argsort(-weight)]
    visits = loop._slates(np.arange(CONFIG.sessions), EVENTS, 1_000)
    popular = visits.arm_V == POPULAR
    for slot, slate in zip(visits.slot_V[popular], visits.place_VK[popular], strict=True):
        expected = order[~sessions.consumed(sessions.user_S[slot, None], order[None])[0]][:10]
        common = set(slate.tolist()) & set(expected.tolist())
        assert len(common) >= 9  # nearly equal weights may swap


@pytest.mark.parametrize(
    "plan", [NO_PLAN, Plan(season=Season(2)), Plan(bursts=(Burst("category", 0, 10**6),)), Plan(retire=0.3)]
)
@pytest.mark.parametrize("last", [-1, 7])
def test_step_probabilities_are_the_frequencies_of_drawn_steps(plan, last):
    sessions = Sessions(CONFIG, EVENTS, 0, plan, Truth())
    sessions.advance(EVENTS)
    user, draws = 3, 40_000
    everything = np.arange(CONFIG.items)[None]
    step = step_probabilities(sessions, np.array([user]), np.array([last]), everything, EVENTS)[0]
    arrived = sessions.items.arrived(EVENTS)
    tries = sessions._tries(np.full(draws, user), np.full(draws, last), arrived)[:, 0]
    drawn = np.bincount(tries[~sessions.items.retired_P[tries]], minlength=CONFIG.items) / draws
    error = np.sqrt(step * (1 - step) / draws)
    assert (np.abs(drawn - step) < 5 * error + 1e-4).all()
    assert step.sum() == pytest.approx(drawn.sum(), abs=0.02)


def test_step_probabilities_are_0_for_consumed_and_unavailable_items_and_for_noise_users():
    sessions = Sessions(CONFIG, EVENTS, 0, Plan(noise_users=0.5, retire=0.3), Truth())
    made, items = EVENTS // 2, sessions.items
    sessions.advance(made)
    everything = np.concatenate((np.arange(CONFIG.items), [-1]))[None]
    user, noisy = np.flatnonzero(~sessions.noise_U)[:1], np.flatnonzero(sessions.noise_U)[:1]
    sessions.consume(user, np.array([0]))
    step, none = (step_probabilities(sessions, u, np.array([7]), everything, made)[0] for u in (user, noisy))
    assert step[0] == step[-1] == 0
    assert not step[:-1][items.retired_P | (items.arrival_P > made)].any()
    assert step.any()
    assert not none.any()


def clicks(rng, users, chance):
    """Return hits and shown items of users with different click rates and numbers of visits."""
    shown = 10 * rng.integers(0, 6, users)
    return rng.binomial(shown, np.clip(chance * rng.lognormal(0, 0.8, users), 0, 1)), shown


def test_intervals_equal_those_of_a_bootstrap_over_users():
    rng = np.random.default_rng(0)
    one, other = clicks(rng, 400, 0.06), clicks(rng, 400, 0.04)
    estimate, gap = rate(*one), difference(*one, *other)
    rates, gaps = [], []
    for _ in range(2_000):
        drawn = rng.integers(0, 400, 400)
        rates.append(one[0][drawn].sum() / one[1][drawn].sum())
        gaps.append(rates[-1] - other[0][drawn].sum() / other[1][drawn].sum())
    for found, copies in ((estimate, rates), (gap, gaps)):
        assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(copies), rel=0.08)
        assert found.value == pytest.approx(np.mean(copies), abs=0.002)


def test_intervals_cover_the_true_difference_95_times_of_100_with_clustered_clicks():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        gap = difference(*clicks(rng, 300, 0.05), *clicks(rng, 300, 0.05))
        covered += gap.low <= 0 <= gap.high
    assert 0.925 <= covered / 400 <= 0.975


def test_a_rate_of_0_has_an_interval():
    nothing, shown = np.zeros(10, np.int64), np.full(10, 10)
    assert rate(nothing, shown) == (0.0, 0.0, pytest.approx(0.0196))
    assert difference(nothing, shown, nothing, shown).high > 0.0196
    assert rate(nothing, nothing) is None
    assert difference(nothing, shown, nothing, nothing) is None


def test_windows_sum_to_the_total_and_the_tables_show_it(perfect):
    _, figures = perfect
    for arm in ARMS:
        for count in ("slates", "shown", "clicks", "purchases"):
            windows = [window["arms"][arm][count] for window in figures["windows"]]
            assert sum(windows) == figures["arms"][arm][count]
    assert [window["from_event"] for window in figures["windows"]] == list(range(0, EVENTS, EVENTS // 10))
    assert figures["lists_up_to_date"] == 1
    table = lines(figures)
    assert len([line for line in table if line.startswith("| all |")]) == 2
    click_rate = 100 * figures["arms"]["recommended"]["click_rate"][0]
    assert f"| all | {click_rate:.2f} (" in "\n".join(table)
