"""Which settings differ from a checkpoint's, and what of it stays valid."""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from harness.workers import changed

from pipeline.persistence.compatibility import RULES, changes, lines, reconciled, rule_of, table
from pipeline.settings import Settings
from pipeline.state.shards import Shard, Snapshot

GUIDE = Path(__file__).parents[1] / "deploy/guides/changing-configuration.md"
NCF_KEYS = ("count_features", "dim", "layers", "type")
SAVED = json.loads(msgspec.json.encode(Settings()))


def folders(path: str, journal: str) -> dict[str, str]:
    return {"checkpoint__path": path, "checkpoint__journal": journal}


def test_rules_name_existing_settings_and_the_guide_holds_them() -> None:
    known = {f"{name}.{key}" for name, table in msgspec.to_builtins(Settings()).items() for key in table}
    keys = [key for rule in RULES for key in rule.keys if "*" not in key]
    assert set(keys) <= known
    assert len(keys) == len(set(keys))
    assert table() in GUIDE.read_text("utf-8"), f"put this table into {GUIDE.name}:\n{table()}"


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({}, {}, []),
        ({}, {"topics__events": {"events": "click"}}, []),
        ({}, {"checkpoint__path": "/a"}, ["checkpoint.path"]),
        (folders("/a", "/a"), folders("/b", "/b"), ["checkpoint.path"]),
        (folders("/a", "/a"), folders("/a", "/b"), ["checkpoint.journal"]),
        ({}, {"rank__k": 20, "batch__max_events": 9}, ["batch.max_events", "rank.k"]),
        ({}, {"model__tables": {"wide": {"type": "ncf"}}}, [f"model.wide.{key}" for key in NCF_KEYS]),
        ({}, {"model__tables": {"attention": {"dim": 64}}}, []),  # the default
        ({"model__tables": {"ncf": {}}}, {"model__tables": {"ncf": {"dim": 8}}}, ["model.ncf.dim"]),
        ({}, {"model__shadows": ["ncf"]}, ["model.shadows"]),
    ],
    ids=str,
)
def test_a_change_is_a_different_value_in_effect(before: Any, now: Any, expected: list[str]) -> None:
    saved = json.loads(msgspec.json.encode(changed(Settings(), **before)))
    del saved["rank"]["blocked_items"]  # a setting that is not saved had its default
    assert [each.key for each in changes(saved, changed(Settings(), **now))] == expected


def test_one_line_is_logged_for_each_rule_with_changes() -> None:
    saved = SAVED
    tables = {"attention": {"dim": 32, "count_features": False}}
    new = changed(Settings(), model__tables=tables, rank__k=20, batch__max_events=9, model__shadows=["ncf"])
    (_, longer), (level, restart) = lines(changes(saved, new))
    assert longer.startswith("rank.k was 10, is 20: ")
    assert level == logging.WARNING
    assert restart.startswith(
        "model.attention.count_features was True, is False, model.attention.dim was 64, is 32: the model"
    )
    assert rule_of("model.shadows") is None


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"model__tables": {"attention": {"dim": 8}}}, {"model.ncf.x", "items.x"}),
        ({"model__tables": {"attention": {"history": 8}}}, {"model.attention.x", "model.ncf.x", "items.x"}),
        ({"model__tables": {"sasrec": {"dim": 8}}}, {"model.attention.x", "model.ncf.x", "items.x"}),
        ({"model__shadows": ["sasrec"]}, {"model.attention.x", "model.ncf.x", "items.x"}),
        ({"model__features": "none"}, {"items.x"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_only_the_changed_model_restarts(change: dict[str, Any], kept: set[str]) -> None:
    arrays = dict.fromkeys(("model.attention.x", "model.ncf.x", "items.x"), np.ones(1))
    saved = SAVED
    found = changes(saved, changed(Settings(), **change))
    valid, relevant = reconciled(Snapshot(arrays, {}, Shard({}, {})), found)
    assert valid.arrays.keys() == kept
    assert bool(relevant) == ("sasrec" not in change.get("model__tables", {}))


@pytest.mark.parametrize("fields", [{}, {"item_id": "sku"}], ids=str)
def test_the_items_topic_is_read_again_when_its_field_names_change(fields: dict[str, str]) -> None:
    snapshot = Snapshot({}, {"item_offsets": [["items", 0, 7]]}, Shard({}, {}))
    saved = SAVED
    found = changes(saved, changed(Settings(), items__fields=fields))
    valid, relevant = reconciled(snapshot, found)
    assert valid.meta["item_offsets"] == ([] if fields else [["items", 0, 7]])
    assert [change.key for change in relevant] == ["items.fields"] * bool(fields)
