"""A backlog: events of old records are learned at once, and their users are ranked at the end of it."""

from dataclasses import replace

import numpy as np
from harness.streams import START_MS, Event, Shop

from pipeline.events.records import DEFAULT_USER
from pipeline.outcome import Outcome
from pipeline.ranking.recipients import LATER_A_BATCH
from pipeline.state.published_lists import LATER, Refresh

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Service(Shop):
    """A recommender with batches of records of a given age."""

    def step(self, events: list[Event], age_ms: int | list[int] = 0) -> Outcome:  # type: ignore[override]
        raw = self.batches(events)
        raw.events.append_ms_B[:] -= age_ms
        return self.learn(replace(raw, spans=raw.spans if events else ()))


def users_of(outcome: Outcome) -> list[str]:
    return [ranking.user_id for ranking in outcome.rankings if ranking.user_id != DEFAULT_USER]


def visits(users: int, first: int = 0) -> list[Event]:
    numbers = range(first, first + users)
    return [Event(f"u{number}", f"i{number % 7}", time_ms=START_MS + number) for number in numbers]


def test_a_backlog_is_learned_without_lists_and_each_user_gets_one_at_its_end() -> None:
    service = Service()
    for _ in range(3):
        outcome = service.step(visits(50), age_ms=HOUR_MS)
        assert users_of(outcome) == []
        assert (outcome.metrics.late, outcome.metrics.learned) == (50, 50)
    assert outcome.metrics.due == 50
    assert service.recommender.pending_rankings
    outcome = service.step([Event("u7", "i1"), Event("new", "i2")])
    ranked = users_of(outcome)
    assert ranked[:2] == ["u7", "new"]
    assert sorted(ranked) == sorted({*(f"u{user}" for user in range(50)), "new"})
    assert not service.recommender.pending_rankings


def test_users_are_ranked_newest_first_in_batches() -> None:
    service = Service()
    service.step(visits(2 * LATER_A_BATCH), age_ms=HOUR_MS)
    first, second = service.step([]), service.step([])
    assert users_of(first) == [f"u{user}" for user in reversed(range(LATER_A_BATCH, 2 * LATER_A_BATCH))]
    assert users_of(second) == [f"u{user}" for user in reversed(range(LATER_A_BATCH))]
    assert first.metrics.due == LATER_A_BATCH
    assert not service.recommender.pending_rankings


def test_inactive_users_get_a_list_at_their_next_event() -> None:
    service = Service()
    service.step(visits(20), age_ms=8 * DAY_MS)
    assert not service.recommender.state.refresh.waiting(LATER)
    outcome = service.step([Event("u3", "i5")])
    assert users_of(outcome) == ["u3"]
    history = service.recommender.describe_user("u3")["history"]  # type: ignore[index]
    assert [visit["item_id"] for visit in history] == ["i5", "i3"]  # type: ignore[attr-defined]


def test_records_of_up_to_a_minute_are_no_backlog() -> None:
    outcome = Service().step(visits(20), age_ms=60_000)
    assert len(users_of(outcome)) == 20
    assert outcome.metrics.late == outcome.metrics.due == 0
    assert outcome.append_ms_B.all()  # events without a list do not count in the latency
    assert not Service().step(visits(5), age_ms=HOUR_MS).append_ms_B.any()


def test_a_single_late_record_delays_no_list() -> None:
    service = Service()
    service.step(visits(20), age_ms=HOUR_MS)
    ranked = users_of(service.step(visits(4, first=100), age_ms=[0, 0, HOUR_MS, 0]))
    assert ranked[:4] == ["u100", "u101", "u103", "u102"]
    assert len(ranked) == 24


def test_users_of_equal_age_are_ordered_by_id_independent_of_rows() -> None:
    ids = ["__default__", "d", "b", "a", "c"]
    refresh = Refresh(8)
    refresh.mark(np.arange(1, 5), LATER)
    last_event_U = np.array([9, 5, 5, 5, 7, 0, 0, 0])
    chosen = refresh.next(LATER, 3, last_event_U, ids)
    assert [ids[row] for row in chosen] == ["c", "a", "b"]


def test_pending_lists_are_restored() -> None:
    service = Service()
    service.step(visits(30), age_ms=HOUR_MS)
    service.restart()
    assert service.recommender.pending_rankings
    assert users_of(service.step([])) == [f"u{user}" for user in reversed(range(30))]
