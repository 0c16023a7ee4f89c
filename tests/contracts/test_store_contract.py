"""What every store of a recommender promises: columns that grow, are cleared, and are freed of references."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness.streams import Batches, Event, copied, shoppers, small_settings
from toy_model import TOY

from pipeline.models.registry import MODELS, variant_of
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state.store import HasColumns, clear, grow, nbytes, remove_references

AXES: tuple[Any, ...] = ("user", "item")


def everything() -> Recommender:
    """Return a recommender that runs every model, so that it holds every store."""
    settings = small_settings(limits=LimitsConfig(items=40))
    return Recommender(settings, [variant_of(settings.model, name) for name in MODELS])


@pytest.fixture
def recommender(monkeypatch: pytest.MonkeyPatch) -> Recommender:
    monkeypatch.setitem(MODELS, "toy", TOY)
    recommender, rng = everything(), np.random.default_rng(2)
    types = ("click", "click", "buy", "view", "dislike", "impression")
    for raw in shoppers(rng, Batches(), 6, size=30, window=60, pace=3, types=types):
        recommender.step(raw)
    assert not recommender.trainer.disabled
    return recommender


def stores_of(recommender: Recommender) -> Iterator[tuple[str, HasColumns]]:
    state = recommender.state
    yield from {**state.stores, "users": state.users, "items": state.items}.items()


def test_every_part_that_keeps_columns_is_a_store(recommender: Recommender) -> None:
    names = dict(stores_of(recommender))
    assert {f"model.{name}" for name in MODELS} <= names.keys()
    families = {name for name, family in recommender.bank.families.items() if family.columns()}
    assert {f"features.{name}" for name in (*families, "success")} <= names.keys()
    columns = [column for store in names.values() for column in store.columns().values()]
    assert len({id(column) for column in columns}) == len(columns)
    assert nbytes(names.values()) == sum(column.data.nbytes for column in columns)


def test_columns_keep_their_names_and_places(recommender: Recommender) -> None:
    first = {name: dict(store.columns()) for name, store in stores_of(recommender)}
    recommender.step(Batches(seq=6, ends={0: 180})([Event("u1", "i9"), Event("new", "new")]))
    for name, store in stores_of(recommender):
        second = store.columns()
        assert list(second) == list(first[name]), name
        assert all(second[key] is column for key, column in first[name].items()), name


def test_columns_fit_the_tables_and_hold_only_numbers(recommender: Recommender) -> None:
    state = recommender.state
    rows = {"user": state.users.capacity, "item": state.items.capacity}
    for name, store in stores_of(recommender):
        for key, column in store.columns().items():
            assert column.data.shape[0] == rows.get(column.axis, column.data.shape[0]), f"{name}.{key}"
            assert np.isfinite(column.data).all(), f"{name}.{key}"
            if column.of_items:
                assert (column.data.dtype, column.fill) == (np.int32, -1), f"{name}.{key}"
                assert -1 <= column.data.min() <= column.data.max() < state.items.capacity


@pytest.mark.parametrize("axis", AXES)
def test_growing_keeps_what_is_there_and_adds_empty_rows(recommender: Recommender, axis: Any) -> None:
    for name, store in stores_of(recommender):
        before = copied(store.columns())
        for rows in (1500, 10):  # the second changes nothing
            grow([store], axis, rows)
            for key, column in store.columns().items():
                held = before[key].shape[0]
                np.testing.assert_array_equal(column.data[:held], before[key], err_msg=f"{name}.{key}")
                assert column.data.dtype == before[key].dtype
                assert column.data.shape[0] == (1500 if column.axis == axis else held)
                assert (column.data[held:] == column.fill).all()


@pytest.mark.parametrize("axis", AXES)
def test_clearing_resets_these_rows_and_no_others(recommender: Recommender, axis: Any) -> None:
    rows = np.array([2, 5, 6])
    for name, store in stores_of(recommender):
        expected = copied(store.columns())
        clear([store], axis, rows)
        for key, column in store.columns().items():
            if column.axis == axis:
                expected[key][rows] = column.fill
            np.testing.assert_array_equal(column.data, expected[key], err_msg=f"{name}.{key}")


@pytest.mark.parametrize("axis", AXES)
def test_references_are_removed_in_a_stretch_and_nothing_else(recommender: Recommender, axis: Any) -> None:
    doomed = np.zeros(recommender.state.items.capacity, np.bool_)
    doomed[::2] = True
    for name, store in stores_of(recommender):
        expected = copied(store.columns())
        remove_references([store], axis, 1, 7, doomed)
        for key, column in store.columns().items():
            if column.axis == axis and column.of_items:
                part = expected[key][1:7]
                part[(part >= 0) & (part % 2 == 0)] = -1
            np.testing.assert_array_equal(column.data, expected[key], err_msg=f"{name}.{key}")


def test_a_fresh_row_is_an_empty_row() -> None:
    for name, store in stores_of(everything()):
        for key, column in store.columns().items():
            if column.axis != "none" and name != "users":
                assert (column.data == column.fill).all(), f"{name}.{key}"


def test_batches_are_learned_in_order() -> None:
    recommender, batches = everything(), Batches()
    raw = batches([Event("u", "a")])
    recommender.step(raw)
    with pytest.raises(ValueError, match=r"batch 0: expected 1; .*in order, each once"):
        recommender.step(raw)
