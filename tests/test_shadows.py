"""Models beside the served one: they learn and are measured on the same events, and change nothing."""

import logging
from typing import Any

import numpy as np
import pytest
from harness.streams import Batches, copied, same, shoppers, small_settings

from pipeline.events.batch import RawBatch
from pipeline.models.sasrec import SasRecModel
from pipeline.outcome import Outcome
from pipeline.recommender import Recommender
from pipeline.settings import Settings

WIDE: dict[str, Any] = {"wide": {"type": "attention", "dim": 16, "history": 30}}


def stream(count: int = 10) -> list[RawBatch]:
    return shoppers(np.random.default_rng(5), Batches(), count, size=40, users=9, window=60, pace=2)


def feed(recommender: Recommender, raws: list[RawBatch]) -> list[Outcome]:
    return [recommender.step(raw) for raw in raws]


def with_shadows(*names: str, exclude: list[str] | None = None) -> Settings:
    tables = {name: WIDE[name] for name in names if name in WIDE}
    return small_settings(exclude=exclude, shadows=list(names), tables=tables)


def columns_without(recommender: Recommender, *shadows: str) -> dict[str, Any]:
    return {
        f"{name}.{key}": column
        for name, store in recommender.state.stores.items()
        for key, column in store.columns().items()
        if name not in {f"model.{shadow}" for shadow in shadows}
    }


@pytest.mark.parametrize("exclude", [None, []], ids=["all excluded", "repeats"])
@pytest.mark.parametrize("shadows", [("sasrec",), ("sasrec", "wide", "ncf", "session_knn", "isgd")])
def test_shadows_change_no_other_bit(shadows: tuple[str, ...], exclude: list[str] | None) -> None:
    alone = Recommender(with_shadows(exclude=exclude))
    beside = Recommender(with_shadows(*shadows, exclude=exclude))
    for one, two in zip(feed(alone, stream()), feed(beside, stream()), strict=True):
        assert one.rankings == two.rankings
        assert repr(one.metrics) == repr(two.metrics)
    wanted = copied(columns_without(alone))
    found = columns_without(beside, *shadows)
    rings = {"histories.items", "histories.types", "histories.times"}  # as long as the longest history needs
    assert found.keys() == wanted.keys()
    same({name: column for name, column in found.items() if name not in rings}, wanted)
    figures = beside.quality.cumulative()
    assert figures.keys() == {*alone.quality.cumulative(), *shadows}
    assert figures["attention"] == alone.quality.cumulative()["attention"]
    assert all(figures[name]["tests"] == figures["attention"]["tests"] for name in shadows)
    assert all(figures[name]["hr@10"] > 0 for name in shadows)


def test_adding_or_removing_a_shadow_over_a_restart_resets_nothing() -> None:
    raws = stream(12)
    unbroken = Recommender(with_shadows("sasrec"))
    feed(unbroken, raws[:4])
    settings = [with_shadows(), with_shadows("ncf", "sasrec"), with_shadows("sasrec")]
    changing = Recommender(with_shadows("sasrec"))
    feed(changing, raws[:4])
    for number, each in enumerate(settings):
        snapshot, changing = changing.snapshot(), Recommender(each)
        changing.restore(snapshot)
        shared = {
            name: column
            for name, column in columns_without(changing, "sasrec", "ncf").items()
            if column.axis != "user"  # users may lie in other rows now
        }
        same(shared, copied(columns_without(unbroken, "sasrec")))
        some = slice(4 + 2 * number, 6 + 2 * number)
        for one, two in zip(feed(unbroken, raws[some]), feed(changing, raws[some]), strict=True):
            users = [[each for each in o.rankings if each.user_id != "__default__"] for o in (one, two)]
            assert users[0] == users[1]
        cumulative = [each.quality.cumulative()["attention"] for each in (unbroken, changing)]
        assert cumulative[0] == cumulative[1]
    tests = changing.quality.cumulative()["sasrec"]["tests"]
    assert 0 < tests < unbroken.quality.cumulative()["sasrec"]["tests"]  # counts since it is back


def test_a_failed_shadow_is_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    learn, calls = SasRecModel.learn, []

    def broken(self: Any, *given: Any) -> Any:
        calls.append(len(given))
        if len(calls) == 4:
            raise RuntimeError("no such tensor")
        return learn(self, *given)

    monkeypatch.setattr(SasRecModel, "learn", broken)
    alone, beside = Recommender(with_shadows()), Recommender(with_shadows("sasrec"))
    with caplog.at_level(logging.WARNING):
        outcomes = feed(alone, stream()), feed(beside, stream())
    (record,) = caplog.records
    assert "sasrec" in record.getMessage()
    assert "disabled" in record.getMessage()
    assert record.exc_info
    assert len(calls) == 4
    assert [each.rankings for each in outcomes[0]] == [each.rankings for each in outcomes[1]]
    figures = beside.quality.cumulative()
    assert 0 < figures["sasrec"]["tests"] < figures["attention"]["tests"]
    beside.snapshot()  # a checkpoint can be written all the same


def test_a_served_model_that_fails_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *given: Any) -> Any:
        raise RuntimeError("no such tensor")

    monkeypatch.setattr(SasRecModel, "learn", broken)
    with pytest.raises(RuntimeError, match="no such tensor"):
        feed(Recommender(small_settings(name="sasrec")), stream(1))
