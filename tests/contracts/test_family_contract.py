"""What every family of count features promises, and one that a newcomer adds to bank.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from harness.streams import Batches, copied, same, shoppers, small_settings

import pipeline
from pipeline.features.bank import FeatureBank, families_of
from pipeline.features.block import Block, Workspace, mark_excluded
from pipeline.features.family import Family, Shown
from pipeline.features.lessons import Lessons
from pipeline.recommender import Recommender
from pipeline.settings import LimitsConfig
from pipeline.state.queries import Queries, list_queries
from pipeline.state.store import clear, remove_references
from pipeline.state.tables import LIVE, IdTable

FAMILIES = list(families_of(IdTable("item"), True, ()))


class Learned(NamedTuple):
    """A recommender in mid-stream, all that its bank was taught, and queries of all users."""

    recommender: Recommender
    taught: list[Lessons]
    queries: Queries

    @property
    def bank(self) -> FeatureBank:
        return self.recommender.bank


@pytest.fixture(scope="module")
def learned() -> Learned:
    settings = small_settings(exclude=["buy"], limits=LimitsConfig(items=60), history=12)
    recommender, taught = Recommender(settings), list[Lessons]()
    update = recommender.bank.update
    recommender.bank.update = lambda lessons: (taught.append(lessons), update(lessons))[1]  # type: ignore
    types = ("click", "click", "buy", "view", "dislike", "impression")
    for raw in shoppers(np.random.default_rng(2), Batches(), 12, size=30, window=60, pace=3, types=types):
        recommender.step(raw)
    state = recommender.state
    queries = list_queries(state, np.sort(state.users.rows(list(state.users.row_of))))
    assert state.items.evicted > 10
    return Learned(recommender, taught, queries)


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def columns_of(bank: FeatureBank) -> dict[str, Any]:
    """Return the columns of all families: one may read another's."""
    return {
        f"{name}.{key}": column
        for name, family in bank.families.items()
        for key, column in family.columns().items()
    }


def block_of(learned: Learned) -> tuple[Block, dict[int, set[int]]]:
    """Return an empty block of the queries, and the rows that may be shown for each."""
    queries, features = learned.queries, len(learned.bank.names)
    items = learned.recommender.state.items
    block = Workspace(700, features).begin(
        queries.items_BL, queries.length_B, queries.position_B, queries.session_B, items.status.data
    )
    mark_excluded(block, queries.excluded, queries.excluded_indptr, True)
    live = set(np.flatnonzero(items.status.data == LIVE).tolist())
    allowed = {
        b: live - set(queries.excluded[queries.excluded_indptr[b] : queries.excluded_indptr[b + 1]].tolist())
        for b in range(queries.user_B.size)
    }
    return block, allowed


def test_names_of_features_are_distinct_and_have_their_places(learned: Learned, name: str) -> None:
    bank, family = learned.bank, learned.bank.families[name]
    assert len(set(bank.names)) == len(bank.names)
    at = bank.at[name]
    assert bank.names[at : at + len(family.features)] == family.features


def test_a_family_retrieves_what_may_be_shown_and_fills_its_own_places(learned: Learned, name: str) -> None:
    family, at = learned.bank.families[name], learned.bank.at[name]
    before = copied(columns_of(learned.bank))
    found = []
    for _ in range(2):
        block, allowed = block_of(learned)
        family.retrieve(block, at)
        family.finish(block, at)
        for b, rows in allowed.items():
            mine = block.rows_BC[b, : block.count_B[b]].tolist()
            assert len(mine) == len(set(mine))
            assert set(mine) <= rows
            features = block.features_BCF[b, : len(mine)]
            assert np.isfinite(features).all()
            others = np.delete(features, range(at, at + len(family.features)), 1)
            assert (others == 0).all()
        found.append([block.features_BCF[b, : block.count_B[b]].copy() for b in allowed])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
    assert sum(len(each) for each in found[0]) > 5
    same(columns_of(learned.bank), before)


def test_an_attribution_sums_to_the_value_and_names_no_empty_place(learned: Learned, name: str) -> None:
    family, at, queries = learned.bank.families[name], learned.bank.at[name], learned.queries
    candidates = learned.bank.candidates(queries)
    places_BK = np.minimum(candidates.indptr[:-1, None] + np.arange(12), candidates.indptr[1:, None] - 1)
    rows_BK = candidates.at(places_BK)
    rows_BK[:, 3] = -1
    value_BKF = candidates.features[places_BK] * np.float32(1.7)
    value_BKF[:, 3] = 0
    shown = Shown(queries.items_BL, queries.length_B, queries.session_B, rows_BK, value_BKF)
    out = np.zeros((*rows_BK.shape, queries.items_BL.shape[1] + 1), np.float32)
    family.attribute(shown, at, out)
    expected = value_BKF[:, :, at : at + len(family.features)].sum(2)
    np.testing.assert_allclose(out.sum(2), expected, rtol=1e-4, atol=1e-4)
    for b, length in enumerate(queries.length_B.tolist()):
        assert (out[b, :, length:-1] == 0).all()
    assert np.abs(expected).sum() > 0 or not family.features


def taught(learned: Learned, name: str, cut: int) -> Family:
    """Return a fresh family that has been taught all lessons again, at most `cut` events at once."""
    items = IdTable("item")
    items.settle(items.admit([f"i{n}" for n in range(200)]))
    family = families_of(items, True, ())[name]
    for lessons in learned.taught:
        for first in range(0, lessons.item_B.size, cut):
            part = [each if isinstance(each, int) else each[first : first + cut] for each in lessons]
            family.update(Lessons(*part), items.status.data, 7)
    return family


def test_lessons_alone_decide_what_is_counted_wherever_they_are_cut(learned: Learned, name: str) -> None:
    whole, again, single = (taught(learned, name, cut) for cut in (1000, 1000, 1))
    same(whole.columns(), copied(again.columns()))
    same(whole.columns(), copied(single.columns()))
    assert {column.axis for column in whole.columns().values()} <= {"item", "none"}  # no users
    last, status, before = learned.taught[-1], np.ones(1024, np.uint8), copied(whole.columns())
    whole.update(last._replace(item_B=np.full_like(last.item_B, -1)), status, 7)
    if name != "newest":  # an item counts as seen whatever its event weighs
        whole.update(last._replace(weight_B=np.zeros_like(last.weight_B)), status, 7)
    same(whole.columns(), before)


def test_fading_never_adds_and_leaves_finite_counts(learned: Learned, name: str) -> None:
    family = taught(learned, name, 1000)
    before = copied(family.columns())
    family.fade(0.0, 1.0)
    same(family.columns(), before)
    family.fade(0.05, 0.25)
    for key, column in family.columns().items():
        assert np.isfinite(column.data).all(), key
        if column.data.dtype == np.float32:
            assert (column.data <= before[key]).all(), key
    family.update(learned.taught[-1], np.ones(1024, np.uint8), 7)


def test_an_evicted_item_leaves_no_trace(learned: Learned, name: str) -> None:
    family, status = taught(learned, name, 1000), np.ones(1024, np.uint8)
    rows = np.unique(learned.taught[-1].item_B)[1::2].astype(np.int32)
    empty = families_of(IdTable("item"), True, ())[name].columns()
    doomed = np.zeros(1024, np.bool_)
    doomed[rows] = True
    family.forget(rows)
    clear([family], "item", rows)
    for axis in ("item", "none"):
        remove_references([family], axis, 0, sys.maxsize, doomed)
    for key, column in family.columns().items():
        if column.axis == "item":
            np.testing.assert_array_equal(column.data[rows], empty[key].data[rows], err_msg=key)
        if column.of_items:
            assert not np.isin(column.data, rows).any(), key
    if "total" in family.columns():  # of all items together
        columns = family.columns()
        np.testing.assert_allclose(columns["total"].data, columns["stored"].data.sum(0), rtol=1e-4, atol=1e-4)
    family.update(learned.taught[-1], status, 7)


def test_the_bank_rejects_fading_out_of_range(learned: Learned) -> None:
    for weakening, share in ((-0.1, 0.5), (0.1, 1.5), (0.1, -0.5)):
        with pytest.raises(ValueError, match="expected 0 or more"):
            learned.bank.fade(weakening, share)


@pytest.mark.skipif("toy" in FAMILIES, reason="this is the run with the new family")
def test_a_new_family_is_one_file_and_a_line_in_the_bank(tmp_path: Path) -> None:
    here = Path(__file__).parent
    shutil.copytree(Path(pipeline.__file__).parent, tmp_path / "pipeline")
    features = tmp_path / "pipeline" / "features"
    shutil.copy(here / "toy_family.py", features / "toy.py")
    source = (features / "bank.py").read_text()
    line = '        "popularity": popularity,'
    assert source.count(line) == 1
    source = "from pipeline.features.toy import Toy\n" + source
    (features / "bank.py").write_text(source.replace(line, f'        "toy": Toy(items.capacity),\n{line}'))
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(here.parent.parent)))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", __file__, "-k", "toy"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]
