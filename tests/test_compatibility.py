"""Checkpoints under a changed configuration or version: what is kept, what restarts, what is rejected."""

import hashlib
import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.streams import Batches, shoppers, small_settings, source
from harness.workers import PAST, Life, append, changed, past

from consumers.memory import MemoryLog
from pipeline.errors import CheckpointError
from pipeline.events.batch import TopicPartition
from pipeline.persistence.compatibility import FORMAT
from pipeline.persistence.files import UrlFolder, metadata, pack
from pipeline.persistence.shard_files import ShardFiles
from pipeline.recommender import Recommender
from pipeline.settings import Settings
from pipeline.state import packing
from pipeline.state.shards import Snapshot

Log = pytest.LogCaptureFixture
GUIDE = Path(__file__).parents[1] / "deploy/guides/changing-configuration.md"
P0, P1 = source(0), source(1)
NCF_KEYS = ("count_features", "dim", "layers", "type")
DIM_8 = {"attention": {"dim": 8, "history": 4}}
USERS = [f"u{number}" for number in range(8)]


def logged(caplog: Log, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


def learned(settings: Settings | None = None, batches: int = 12) -> Recommender:
    recommender = Recommender(settings or small_settings())
    for raw in shoppers(np.random.default_rng(3), Batches(), batches, partitions=2):
        recommender.step(raw)
    return recommender


def restored(snapshot: Snapshot, arrays: dict[str, Any] | None = None, **settings: Any) -> Recommender:
    recommender = Recommender(small_settings(**settings))
    recommender.restore(Snapshot(arrays or snapshot.arrays, snapshot.meta, snapshot.shard))
    return recommender


@pytest.mark.parametrize(
    ("number", "content", "writer"),
    [(99, {"format": FORMAT + 1, "versions": [1]}, "a newer afresh"), (0, {}, r"afresh 9\.9")],
    ids=["unknown content", "known content"],
)
def test_a_newer_checkpoint_is_rejected(tmp_path: Path, number: int, content: Any, writer: str) -> None:
    folder, log, *_ = past(tmp_path)
    newest = max((folder / "worker-0").glob("manifest-*.json"))
    if number:
        newest = newest.with_name(f"manifest-{number:012d}.json")
        newest.write_text(json.dumps(content))
    else:
        manifest = json.loads(newest.read_text())
        assert manifest["versions"]["afresh"] == version("afresh")
        manifest["versions"]["afresh"] = "9.9"
        newest.write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    message = rf"{newest.name}: format {FORMAT + 1}, written by {writer}; this version reads {FORMAT}\."
    with pytest.raises(CheckpointError, match=message):
        Life(folder, PAST, log)


def test_a_newer_shard_of_another_worker_is_rejected_at_the_takeover(tmp_path: Path) -> None:
    folder, log, *_ = past(tmp_path)
    files = ShardFiles(UrlFolder(str(folder)), "shop-1")
    shard = files.load(files.all()[-1])
    name, _ = files.save(shard, 99, 1, held=shard.offsets)
    path = folder / name.path
    newer = pack(shard.arrays, metadata(path.read_bytes()) | {"format": str(FORMAT + 1), "afresh": "9.9"})
    path.unlink()
    (folder / name._replace(checksum=hashlib.sha256(newer).hexdigest()[:16]).path).write_bytes(newer)
    life = Life(folder, changed(PAST, kafka__worker_id="shop-2"), log, assigned=[P0])
    with pytest.raises(CheckpointError, match=rf"shard .*/99-shop-1-.*: format {FORMAT + 1}, written by afr"):
        life.read()


def test_added_and_dropped_columns_are_logged_in_one_line(caplog: Log) -> None:
    snapshot = learned().snapshot()
    arrays = {**snapshot.arrays, "future.weights": np.ones(3)}
    del arrays["features.transitions.followed"]
    del snapshot.shard.arrays["user.histories.repeats"]
    snapshot.shard.arrays["user.future.mood"] = np.ones(1)
    caplog.set_level(logging.INFO)
    second = restored(snapshot, arrays)
    (line,) = logged(caplog, "checkpoint of another version: ")
    assert "features.transitions.followed, histories.repeats: not in it" in line
    assert "future.mood, future.weights: not known to this version; left out" in line
    followed = second.bank.transitions.columns()["followed"].data
    assert not followed.any()
    assert followed.shape[0] == second.state.items.capacity
    second.step(shoppers(np.random.default_rng(1), Batches(seq=second.seq), 1)[0])


def test_a_model_of_other_shapes_restarts(caplog: Log) -> None:
    snapshot = learned().snapshot()
    wrong = {"model.attention.gate_slope": np.zeros((2, 2), np.float32)}
    second = restored(snapshot, snapshot.arrays | wrong)
    (line,) = logged(caplog, "model attention restarts")
    assert "gate_slope: it holds float32[2, 2], this version expects float32[" in line
    assert second.quality.cumulative()["attention"]["tests"] == 0


def test_a_state_column_that_cannot_fit_is_rejected() -> None:
    snapshot = learned().snapshot()
    with pytest.raises(CheckpointError, match=r"popularity\.gain: it holds float64\[3\], .* expects"):
        restored(snapshot, {**snapshot.arrays, "features.popularity.gain": np.ones(3)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model__tables": DIM_8}, "model.attention.dim was 4, is 8: the model restarts"),
        ({"model__features": "none"}, "model.features was 'default', is 'none': all models restart"),
        ({"model__name": "popularity"}, "model.name was 'attention', is 'popularity': another model"),
        ({"model__name": "item_knn"}, "model.name was 'attention', is 'item_knn': another model"),
    ],
    ids=str,
)
def test_another_model_keeps_all_other_state(tmp_path: Path, caplog: Log, change: Any, words: str) -> None:
    folder, log, tested, *_ = past(tmp_path)
    same, other = Life(folder, PAST, log), changed(PAST, **change)
    same.kill()
    caplog.clear()
    life = Life(folder, other, log)  # restored, and the journal replayed
    assert len(logged(caplog, words)) == 1
    assert {user: life.user(user) for user in USERS} == {user: same.user(user) for user in USERS}
    found, expected = (packing.shared_columns(each.learner.state) for each in (life, same))
    for name in found.keys() & expected.keys():
        if not name.startswith("model."):
            np.testing.assert_array_equal(found[name].data, expected[name].data, err_msg=name)
    assert life.learner.offsets == same.learner.offsets
    assert life.learner.events_learned == same.learner.events_learned
    quality, before = life.learner.quality.cumulative(), same.learner.quality.cumulative()
    assert quality["recent_popularity"] == before["recent_popularity"]
    assert quality["popularity"] == before["popularity"]
    if other.model.name != "popularity":  # tests of the journal's 48 events only
        assert 0 < quality[other.model.name]["tests"] == before["attention"]["tests"] - tested
    life.kill()


@pytest.mark.parametrize(
    "change",
    [
        {"model__tables": {"attention": {"dim": 8, "history": 12}}, "rank__k": 5},
        {"rank__exclude_event_types": [], "events__roles": {"view": "neutral"}},
    ],
    ids=str,
)
def test_a_changed_configuration_resumes_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    folder, log, *_ = past(tmp_path)
    settings = changed(PAST, **change)
    life = Life(folder, settings, log)
    for number in range(40):
        append(log, f"u{number % 8}", f"i{number % 7}", number % 2, minute=1000 + number)
    life.read().kill()  # the newest checkpoint is still the old one
    for end in (Life.end, Life.kill):
        again = Life(folder, settings, log)
        assert again.learner.digests() == life.learner.digests()
        end(again)


def test_drift_detection_restarts_with_another_served_model_only() -> None:
    first = learned()
    snapshot = first.snapshot()
    assert snapshot.arrays["drift/hit_rate.pending"].size
    same, other = restored(snapshot), restored(snapshot, name="item_knn")
    for name, array in first.evaluator.drift.arrays().items():
        np.testing.assert_array_equal(same.evaluator.drift.arrays()[name], array, err_msg=name)
    assert not other.evaluator.drift.arrays()["hit_rate.pending"].size
    assert same.quality.ratios()["attention", "served_hr", "all"] > 0
    assert ("item_knn", "served_hr", "all") not in other.quality.ratios()
    assert other.quality.list_hits() == first.quality.list_hits()  # the service's own count is kept


def test_a_restarted_model_initialises_the_known_items() -> None:
    snapshot = learned().snapshot()
    others = {name: array for name, array in snapshot.arrays.items() if not name.startswith("model.")}
    second = restored(snapshot, others)
    fresh, model = Recommender(small_settings()).models[0], second.models[0]
    for name, column in fresh.columns().items():
        if column.axis == "none":
            np.testing.assert_array_equal(model.columns()[name].data, column.data, err_msg=name)
    rows = second.state.items.rows(list(second.state.items.row_of))
    assert (np.abs(model.columns()["items_values"].data[rows]).sum(1) > 0).all()
    assert len(second.rank(second.state.users.rows(["u1"])).rows_BK) == 1


def test_a_renamed_worker_resumes_from_a_renamed_folder(tmp_path: Path, caplog: Log) -> None:
    folder, log, _, learned_before, _ = past(tmp_path)
    renamed = changed(PAST, kafka__worker_id="shop-0")
    elsewhere = tmp_path / "copy"
    shutil.copytree(folder, elsewhere)
    for _ in range(2):  # logged until it has learned something
        caplog.clear()
        empty = Life(elsewhere, renamed, log)
        (line,) = logged(caplog, "worker shop-0 starts with an empty model")
        assert f"it has no checkpoint in {elsewhere}, worker-0 has; users" in line
        assert "rename the folder worker-0 to shop-0" in line
        assert empty.learner.events_learned == 0
        empty.kill()
    (folder / "worker-0").rename(folder / "shop-0")
    life = Life(folder, renamed, log)
    assert life.learner.events_learned == learned_before
    life.read().loop.checkpoint()
    life.end()
    again = Life(folder, renamed, log)
    assert again.learner.digests() == life.learner.digests()
    again.kill()


def test_a_first_start_logs_that_there_is_no_checkpoint(tmp_path: Path, caplog: Log) -> None:
    caplog.set_level(logging.INFO)
    Life(tmp_path, PAST, MemoryLog()).kill()
    assert logged(caplog, f"worker worker-0 starts from nothing: no checkpoint is in {tmp_path}")


def test_the_checkpoints_offsets_are_used_with_a_new_group(tmp_path: Path, caplog: Log) -> None:
    folder, log, _, learned_before, _ = past(tmp_path)
    log.committed = {}
    caplog.set_level(logging.INFO)
    life = Life(folder, changed(PAST, kafka__group_id="another"), log).read()
    assert logged(caplog, "kafka.group_id was 'afresh', is 'another': ")
    assert life.learner.events_learned == learned_before
    life.end()
    assert log.committed == life.learner.offsets


def test_users_of_a_removed_topic_are_kept_and_an_added_one_is_read(tmp_path: Path, caplog: Log) -> None:
    folder, old, _, learned_before, users = past(tmp_path)
    log = MemoryLog({"orders": 1})
    append(log, "u1", "lamp", topic="orders")
    append(log, "new", "lamp", topic="orders")
    both = past(tmp_path / "again").log  # the journal's last batches are read from the removed topic
    log._records |= both._records
    log._starts |= both._starts
    log.committed = dict(old.committed)
    caplog.set_level(logging.INFO)
    settings = changed(PAST, topics__events=["orders"])
    orders = TopicPartition("orders", 0)
    log.partitions = lambda: [orders]  # type: ignore[method-assign]  # the subscribed ones
    life = Life(folder, settings, log, assigned=[orders]).read()
    assert logged(caplog, "topics.events was ['events'], is ['orders']: ")
    assert life.learner.events_learned == learned_before + 2
    assert life.history("u1")[:2] == ["lamp", users["u1"]["history"][0][0]]
    assert life.user("u1")["partition"] == ["orders", 0]
    assert life.user("u2") == users["u2"]
    life.end()
    again = Life(folder, settings, log, assigned=[orders])
    assert again.learner.digests() == life.learner.digests()
    assert again.learner.offsets == {P0: old.end(P0), P1: old.end(P1), orders: 2}
    again.kill()
