"""Event types: the roles of their names, and that a negative event never raises its item."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from harness.streams import Batches, Event, new_state, small_settings

from pipeline.events.batch import RawBatch
from pipeline.recommender import Recommender
from pipeline.roles import built_in_role
from pipeline.settings import EventsConfig, Settings
from pipeline.state.packing import digests

Array = np.ndarray


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (
            "negative",
            "dislike cancel return refund Dislike DISLIKED thumbs-down unlike UnFavorite unfavourited "
            "remove_from_cart Remove-From-Cart removeFromCart removedFromCart cart.remove cart_removed "
            "order_cancelled OrderCanceled cancel_order cancellation returned item_returned refunded "
            "orderRefunded hide item_hidden not_interested NotInterested block report report_post spam "
            "unsubscribe complaint skip skipped dismissed rejected uninstall chargeback product_removed "
            "downvote unfollow removeFromWishlist",
        ),
        (
            "exposure",
            "impression Impressions item_impression ad_impression exposure shown served product_shown "
            "view_item_list recommendationShown displayed",
        ),
        ("neutral", "undislike unhide Un-Block"),
        (
            "positive",
            "buy cart fav click rating play view like purchase add_to_cart AddToCart order_completed "
            "report_view return_visit view_report block_view skip_intro cancel_survey show display seen "
            "mute flag unknown disliked_before returning_user_click shown_interest Ереван 返品",
        ),
    ],
)  # fmt: skip
def test_names_have_the_role_that_the_field_gives_them(role: str, names: str) -> None:
    assert {name: built_in_role(name) for name in names.split()} == dict.fromkeys(names.split(), role)
    with_spaces = ("Order Cancelled", "Product Added", "Product List Viewed", "")
    assert [built_in_role(name) for name in with_spaces] == ["negative", "positive", "exposure", "positive"]


def test_the_configuration_wins_over_the_name_and_takes_it_byte_for_byte() -> None:
    events = EventsConfig(roles={"return": "positive", "glance": "exposure"})
    assert [events.role(name) for name in ("return", "Return", "glance", "Glance")] == [0, 2, 3, 0]


def test_a_new_type_is_logged_once_with_its_role(caplog: pytest.LogCaptureFixture) -> None:
    state = new_state(small_settings())
    with caplog.at_level("INFO"):
        for name in ("view", "glance", "glance", "Order Cancelled", "Order Cancelled"):
            state.types.of(name)
    assert [record.getMessage() for record in caplog.records] == [
        "event type 'glance' is new: taken as positive, weight 1",
        "event type 'Order Cancelled' is new: taken as negative, weight 1",
    ]


# A negative event teaches nothing


def settings(exclude: list[str] | None = None, **events: object) -> Settings:
    configured = msgspec.convert(events, EventsConfig)
    return msgspec.structs.replace(small_settings(exclude=exclude), events=configured)


def taught(config: Settings) -> tuple[Recommender, Batches]:
    """A recommender that has seen twelve users click through six items."""
    recommender, batches = Recommender(config), Batches()
    for turn in range(4):
        events = [Event(f"u{user}", f"i{(user + turn) % 6}") for user in range(12)]
        recommender.step(batches(events))
    return recommender, batches


def learned_of(recommender: Recommender) -> dict[str, Array]:
    """Return everything that learning would raise: counts, transitions, parameters, histories."""
    columns: dict[str, Array] = {}
    for name, store in recommender.state.stores.items():
        if name not in ("consumed", "published", "partition_of", "refresh"):
            columns |= {f"{name}.{key}": column.data.copy() for key, column in store.columns().items()}
    return columns


NEGATIVES = ["dislike", "Order Cancelled", "returned", "remove_from_cart", "skip", "impression"]


@pytest.mark.parametrize("kind", NEGATIVES)
def test_a_negative_event_raises_nothing(kind: str) -> None:
    """Of known and of new items alike: no count, no transition, no history entry, no step, no test."""
    recommender, batches = taught(settings())
    before, tests = learned_of(recommender), recommender.quality.cumulative()
    outcome = recommender.step(batches([Event(f"u{user}", f"i{user % 6}", kind) for user in range(12)]))
    after = learned_of(recommender)
    assert outcome.metrics.skipped == "no_target"
    assert recommender.quality.cumulative() == tests
    for name, column in after.items():
        np.testing.assert_array_equal(column, before[name], err_msg=name)
    outcome = recommender.step(batches([Event("u0", "new", kind), Event("u1", "new", kind)]))
    row = recommender.state.items.row_of["new"]
    assert recommender.bank.popularity.stored.data[row].sum() == 0
    assert recommender.bank.transitions.count.data[row] == 0
    assert not (recommender.state.histories.items.data == row).any()


def test_the_same_events_with_a_positive_type_raise_all_of_it() -> None:
    """The test above could not fail if nothing moved these columns."""
    recommender, batches = taught(settings())
    before = learned_of(recommender)
    recommender.step(batches([Event(f"u{user}", f"i{user % 6}", "buy") for user in range(12)]))
    moved = {
        name for name, column in learned_of(recommender).items() if not np.array_equal(column, before[name])
    }
    assert {
        f"features.{name}" for name in ("popularity.stored", "transitions.count", "transitions.forward")
    } <= moved
    assert "histories.items" in moved


def shown_to(recommender: Recommender, user: str) -> set[str]:
    held = recommender.describe_user(user)
    assert held is not None
    return {place["item_id"] for place in held["ranking"]}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("exclude", "kind", "shown"),
    [
        (None, "dislike", False),
        (None, "Order Cancelled", False),
        (None, "impression", True),
        ([], "dislike", True),
        (["purchase"], "dislike", True),
        (["dislike"], "dislike", False),
    ],
)
def test_a_disliked_item_is_not_shown(exclude: list[str] | None, kind: str, shown: bool) -> None:
    recommender, batches = taught(settings(exclude))
    recommender.step(batches([Event("new", "i0"), Event("other", "i0")]))
    assert "i3" in shown_to(recommender, "new")
    recommender.step(batches([Event("new", "i3", kind)]))
    assert ("i3" in shown_to(recommender, "new")) == shown
    assert "i3" in shown_to(recommender, "other")


# Ratings


def rated(batches: Batches, values: Sequence[float]) -> RawBatch:
    raw = batches([Event(f"u{user}", f"i{user % 6}", "rating") for user in range(len(values))])
    raw.events.value_B[:] = values
    return raw


def test_a_value_below_the_limit_makes_an_event_negative() -> None:
    assert new_state(settings()).admit(rated(Batches(), [0, 10])).role_B.tolist() == [0, 0]
    state = new_state(settings(positive_from={"rating": 6}))
    batch = state.admit(rated(Batches(), [6, 5.9, 10, 0, np.nan, -1]))
    assert batch.role_B.tolist() == [0, 2, 0, 2, 0, 2]
    assert batch.consumes_B.all()


def test_low_ratings_count_as_dislikes() -> None:
    values = [1.0, 2.0, 5.0]
    learned = []
    for kind, config in (("rating", settings(positive_from={"rating": 6})), ("dislike", settings())):
        recommender, batches = taught(config)
        raw = rated(batches, values)
        raw.events.types[:] = [kind] * len(values)
        recommender.step(raw)
        learned.append(digests(recommender.state))
    assert learned[0] == learned[1]
