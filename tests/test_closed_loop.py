"""Shoppers who look at lists: clicks are their taste's doing, and figures say what a list is worth."""

import numpy as np
import pytest

from producers.simulator.closed_loop import BUY, CLICK, POPULAR, RANDOM, ClosedLoop, Listed
from producers.simulator.market import CATEGORIES, Columns, Market, item_name
from producers.simulator.plan import NO_PLAN, Burst, Plan, Season
from producers.simulator.preferences import wishes
from producers.simulator.uplift import ARMS, Uplift, difference, lines, rate
from producers.simulator.users import Shop, Truth

EVENTS = 5_000
MARKET = Market(users=500, items=480, sessions=64)
KNOWS_ALL_MS = 10**15


class Nobody:
    """No list for anybody."""

    def __init__(self, shop):
        self.shop, self.made = shop, 0
        self.rng = np.random.default_rng(5)

    def refresh(self):
        pass

    def of(self, user_id):
        return None


class Lists(Nobody):
    """A recommender made for the test, which may look into the shop."""

    def of(self, user_id):
        user = np.array([int(user_id.partition("-")[2])])
        places = self.best(user, self.shop.items.available(self.made))
        return Listed([item_name(int(self.shop.items.item_P[place])) for place in places], KNOWS_ALL_MS)


class Perfect(Lists):
    """Knows every shopper's taste."""

    def best(self, user, available):
        last = self.shop.item_S[np.flatnonzero(self.shop.user_S == user)]
        wish = wishes(self.shop, user, last, available[None], self.made)[0]
        return available[np.argsort(-wish)[:10]]


class Guess(Lists):
    """Knows nothing but what the user has met."""

    def best(self, user, available):
        order = self.rng.permutation(available)
        return order[~self.shop.met(user, order[None])[0]][:10]


class Odd(Lists):
    """Lists items that the shop does not have, and short lists."""

    def of(self, user_id):
        return Listed(["from-elsewhere", "tea-0"], -2)


class Watched(ClosedLoop):
    """Tells the lists how many events have been."""

    def _visit(self, turn_S, made, limit):
        self._lists.made = made
        return super()._visit(turn_S, made, limit)


def loop_of(lists, plan=NO_PLAN, seed=0, events=EVENTS):
    truth = Truth()
    shop, uplift = Shop(MARKET, events, seed, plan, truth), Uplift(MARKET.users, events)
    return Watched(shop, lists(shop), uplift, seed), shop, uplift, truth


def figures_of(lists, **how):
    loop, _, uplift, _ = loop_of(lists, **how)
    for _ in loop.rounds(EVENTS):
        pass
    return uplift.figures()


@pytest.fixture(scope="module")
def perfect():
    """The events of shoppers who see perfect lists, and the figures."""
    loop, _, uplift, _ = loop_of(Perfect)
    columns = [np.concatenate(column) for column in zip(*loop.rounds(EVENTS), strict=True)]
    return Columns(*columns), uplift.figures()


def test_a_perfect_recommender_shows_its_worth(perfect):
    gap = perfect[1]["recommended_minus_popular"]
    assert gap["click_rate"][1] > 0.05
    assert gap["purchase_rate"][1] > 0


def test_it_does_where_much_else_goes_on_too():
    plan = Plan(noise_users=0.3, retire=0.1, season=Season(2))
    assert figures_of(Perfect, plan=plan)["recommended_minus_popular"]["click_rate"][1] > 0


def test_a_recommender_that_guesses_is_worth_no_more_than_chance():
    figures = figures_of(Guess)
    _, low, high = figures["recommended_minus_random"]["click_rate"]
    assert low < 0 < high
    assert figures["recommended_minus_popular"]["click_rate"][2] < 0


def test_the_same_seed_and_lists_give_the_same_events_and_figures():
    streams = []
    for seed in (0, 0, 1):
        loop, _, uplift, _ = loop_of(Perfect, seed=seed, events=2_000)
        columns = [np.concatenate(column) for column in zip(*loop.rounds(2_000), strict=True)]
        streams.append((columns, uplift.figures()))
    assert all(np.array_equal(a, b) for a, b in zip(streams[0][0], streams[1][0], strict=True))
    assert streams[0][1] == streams[1][1]
    assert streams[0][1] != streams[2][1]


def test_what_is_clicked_is_an_event_and_as_many_come_as_were_asked_for(perfect):
    columns, figures = perfect
    plain, _, _, _ = loop_of(Nobody)
    without = [np.concatenate(column) for column in zip(*plain.rounds(EVENTS), strict=True)][2]
    assert len(columns.user_B) == EVENTS
    assert (np.diff(columns.time_ms_B) >= 0).all()
    for kind, count in ((CLICK, "clicks"), (BUY, "purchases")):
        from_slates = sum(arm[count] for arm in figures["arms"].values())
        steps = EVENTS - sum(arm["clicks"] + arm["purchases"] for arm in figures["arms"].values())
        of_steps = (without == kind).mean() * steps
        assert (columns.type_B == kind).sum() == pytest.approx(from_slates + of_steps, rel=0.15)
        assert from_slates > 20


def test_nobody_is_shown_anything_until_there_is_a_list():
    loop, _, uplift, _ = loop_of(Nobody)
    assert sum(len(columns.user_B) for columns in loop.rounds(EVENTS)) == EVENTS
    assert all(arm["slates"] == 0 for arm in uplift.counts().values())
    assert uplift.figures()["lists_up_to_date"] is None
    assert uplift.figures()["recommended_minus_popular"]["click_rate"] is None


def test_what_the_shop_does_not_have_is_shown_and_never_clicked():
    loop, shop, uplift, _ = loop_of(Odd)
    clicked = {int(item) for columns in loop.rounds(2_000) for item in columns.item_B}
    arm = uplift.counts()["recommended"]
    assert arm["shown"] == 2 * arm["slates"] > 0
    assert uplift.figures()["lists_up_to_date"] == 0
    assert clicked <= set(shop.items.item_P.tolist())


def test_popular_and_random_slates_hold_what_can_be_had_and_the_user_has_not_met():
    loop, shop, _, truth = loop_of(Guess, Plan(retire=0.4))
    made = 0
    for columns in loop.rounds(EVENTS):
        made += len(columns.user_B)
    gone = {item for item, _, _ in truth.retired_items}
    for _ in range(5):
        visits = loop._slates(np.arange(MARKET.sessions), made, 1_000)
        compared = np.isin(visits.arm_V, [POPULAR, RANDOM])
        shown = visits.place_VK[compared]
        assert (shown >= 0).all()
        assert not shop.met(shop.user_S[visits.slot_V[compared]], shown).any()
        assert gone.isdisjoint(shop.items.item_P[shown].ravel().tolist())
        assert all(len(set(slate)) == len(slate) == 10 for slate in shown.tolist())
    assert len(gone) > 100


def test_the_popular_slate_is_what_came_most_often_of_late():
    loop, shop, _, _ = loop_of(Guess)
    items = [columns.item_B for columns in loop.rounds(EVENTS)]
    newest = np.concatenate(items)[::-1]
    weight = np.bincount(newest, 0.5 ** (np.arange(EVENTS) / 5_000), MARKET.items)  # event by event
    visits = loop._slates(np.arange(MARKET.sessions), EVENTS, 1_000)
    for slot, slate in zip(
        visits.slot_V[visits.arm_V == POPULAR], visits.place_VK[visits.arm_V == POPULAR], strict=True
    ):
        order = shop.items.place_of[np.argsort(-weight)]
        expected = order[~shop.met(shop.user_S[slot, None], order[None])[0]][:10]
        assert (
            len(set(slate.tolist()) & set(expected.tolist())) >= 9
        )  # nearly equal weights may change places


@pytest.mark.parametrize(
    "plan", [NO_PLAN, Plan(season=Season(2)), Plan(bursts=(Burst("category", 0, 10**6),)), Plan(retire=0.3)]
)
@pytest.mark.parametrize("last", [-1, 7])
def test_wishes_are_the_chances_that_steps_are_drawn_by(plan, last):
    shop = Shop(MARKET, EVENTS, 0, plan, Truth())
    shop.advance(EVENTS)
    user, draws = 3, 40_000
    everything = np.arange(MARKET.items)
    wish = wishes(shop, np.array([user]), np.array([last]), everything[None], EVENTS)[0]
    tries = shop._tries(np.full(draws, user), np.full(draws, last), shop.items.there(EVENTS))[:, 0]
    drawn = np.bincount(tries[~shop.items.gone_P[tries]], minlength=MARKET.items) / draws
    error = np.sqrt(wish * (1 - wish) / draws)
    assert (np.abs(drawn - wish) < 5 * error + 1e-4).all()
    assert wish.sum() == pytest.approx(drawn.sum(), abs=0.02)


def test_nobody_wishes_for_what_was_met_is_gone_or_is_not_there_yet():
    shop = Shop(MARKET, EVENTS, 0, Plan(noise_users=0.5, retire=0.3), Truth())
    shop.advance(EVENTS // 2)
    user = int(np.flatnonzero(~shop.noise_U)[0])
    shop.remember(np.array([user]), np.array([0]))
    everything = np.concatenate((np.arange(MARKET.items), [-1]))[None]
    wish = wishes(shop, np.array([user]), np.array([7]), everything, EVENTS // 2)[0]
    assert wish[0] == wish[-1] == 0
    assert not wish[:-1][shop.items.gone_P].any()
    assert not wish[:-1][shop.items.arrival_P > EVENTS // 2].any()
    assert wish.any()
    noisy = np.flatnonzero(shop.noise_U)[:1]
    assert not wishes(shop, noisy, np.array([7]), everything, EVENTS // 2).any()


def clicks(rng, users, chance):
    """Hits and items shown of users who differ in how much they click and how often they come."""
    shown = 10 * rng.integers(0, 6, users)
    return rng.binomial(shown, np.clip(chance * rng.lognormal(0, 0.8, users), 0, 1)), shown


def test_intervals_are_those_of_a_bootstrap_over_users():
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


def test_intervals_hold_the_truth_95_times_of_100_although_clicks_of_one_user_go_together():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        gap = difference(*clicks(rng, 300, 0.05), *clicks(rng, 300, 0.05))
        held += gap.low <= 0 <= gap.high
    assert 0.925 <= held / 400 <= 0.975


def test_a_rate_of_nothing_is_not_certain():
    nothing, shown = np.zeros(10, np.int64), np.full(10, 10)
    assert rate(nothing, shown) == (0.0, 0.0, pytest.approx(0.0196))
    assert difference(nothing, shown, nothing, shown).high > 0.0196
    assert rate(nothing, nothing) is None
    assert difference(nothing, shown, nothing, nothing) is None


def test_windows_sum_to_the_whole_and_the_tables_name_them(perfect):
    _, figures = perfect
    for arm in ARMS:
        for count in ("slates", "shown", "clicks", "purchases"):
            windows = [window["arms"][arm][count] for window in figures["windows"]]
            assert sum(windows) == figures["arms"][arm][count]
    assert [window["from_event"] for window in figures["windows"]] == list(range(0, EVENTS, EVENTS // 10))
    assert figures["lists_up_to_date"] == 1
    table = lines(figures)
    assert len([line for line in table if line.startswith("| all |")]) == 2
    clicks_of_all = 100 * figures["arms"]["recommended"]["click_rate"][0]
    assert f"| all | {clicks_of_all:.2f} (" in "\n".join(table)


def test_the_categories_of_the_market_are_those_of_its_item_names():
    assert [item_name(category).partition("-")[0] for category in range(len(CATEGORIES))] == list(CATEGORIES)
