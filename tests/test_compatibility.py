"""Old checkpoints under new settings and other versions: what is kept, what starts anew, what is refused."""

import hashlib
import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from lives import PAST, Life, append, changed, past
from streams import Batches, Event, names_of, shoppers, small_settings, source

from consumers.memory import MemoryLog
from pipeline.errors import CheckpointError
from pipeline.events.batch import TopicPartition
from pipeline.persistence.compatibility import FORMAT, RULES, changes, lines, reconciled, table
from pipeline.persistence.files import UrlFolder, metadata, pack
from pipeline.persistence.shard_files import ShardFiles
from pipeline.recommender import Recommender
from pipeline.settings import Settings
from pipeline.state import packing
from pipeline.state.fitting import laid_anew
from pipeline.state.shards import Shard, Snapshot

ROOT = Path(__file__).parents[1]
P0, P1 = source(0), source(1)
USERS = [f"u{number}" for number in range(8)]


def manifest_of(folder: Path) -> dict[str, Any]:
    newest = max((folder / "worker-0").glob("manifest-*.json"))
    found: dict[str, Any] = json.loads(newest.read_text("utf-8"))
    return found


def told(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


# ---- settings


def test_every_setting_has_a_rule() -> None:
    plain = msgspec.to_builtins(Settings())
    keys = {f"{name}.{key}" for name, table in plain.items() for key in table}
    assert set(RULES) == keys, (
        "say in RULES of pipeline/persistence/compatibility.py what becomes of a checkpoint"
    )


def test_the_guide_holds_the_rules() -> None:
    guide = (ROOT / "deploy/guides/changing-configuration.md").read_text("utf-8")
    assert table() in guide, f"put this table into deploy/guides/changing-configuration.md:\n{table()}"


def test_only_what_differs_is_a_change_and_settings_of_one_rule_share_a_line() -> None:
    saved = json.loads(msgspec.json.encode(Settings()))
    del saved["rank"]["blocked_items"]  # a setting that an older version did not know
    assert changes(saved, Settings()) == []
    assert changes(saved, changed(Settings(), topics__events={"events": "click"})) == []
    assert changes(saved, changed(Settings(), checkpoint__path="/moved")) != []  # and the journal with it
    new = changed(Settings(), model__dim=32, model__memories="none", rank__k=20, batch__max_events=9)
    found = changes(saved, new)
    assert [each.key for each in found] == ["batch.max_events", "model.memories", "model.dim", "rank.k"]
    (level, restart), (_, longer) = lines(found)
    assert level == logging.WARNING
    assert restart.startswith(
        "model.memories was 'default', is 'none', model.dim was 64, is 32: the model starts"
    )
    assert longer.startswith("rank.k was 10, is 20: ")


def test_a_moved_folder_is_no_change_of_the_journal() -> None:
    saved = json.loads(
        msgspec.json.encode(changed(Settings(), checkpoint__path="/a", checkpoint__journal="/a"))
    )
    moved = changed(Settings(), checkpoint__path="/b", checkpoint__journal="/b")
    assert [each.key for each in changes(saved, moved)] == ["checkpoint.path"]
    apart = changed(Settings(), checkpoint__path="/a", checkpoint__journal="/b")
    assert [each.key for each in changes(saved, apart)] == ["checkpoint.journal"]


def test_items_under_other_names_are_read_whole_once_more() -> None:
    snapshot = Snapshot({}, {"item_offsets": [["items", 0, 7]]}, Shard({}, {}))
    saved = json.loads(msgspec.json.encode(Settings()))
    for fields, offsets in (({}, [["items", 0, 7]]), ({"item_id": "sku"}, [])):
        new = changed(Settings(), items__fields=fields)
        held, touching = reconciled(snapshot, changes(saved, new))
        assert held.meta["item_offsets"] == offsets
        assert [change.key for change in touching] == ["items.fields"] * bool(fields)


# ---- formats


def test_a_newer_checkpoint_is_refused_and_nothing_older_is_started_from(tmp_path: Path) -> None:
    folder, log, *_ = past(tmp_path)
    life = Life(folder, PAST, log)
    life.end()
    newest = max((folder / "worker-0").glob("manifest-*.json"))
    text = (
        newest.read_text()
        .replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}')
        .replace(f'"afresh": "{version("afresh")}"', '"afresh": "9.9"')
    )
    newest.write_text(text)
    with pytest.raises(
        CheckpointError,
        match=rf"{newest.name}: format {FORMAT + 1}, written by afresh 9\.9; this version reads {FORMAT}\.",
    ):
        Life(folder, PAST, log)


def test_a_newer_checkpoint_is_refused_even_if_all_else_in_it_is_unknown(tmp_path: Path) -> None:
    folder, log, *_ = past(tmp_path)
    (folder / "worker-0" / "manifest-000000000099.json").write_text('{"format": 7, "versions": [1]}')
    with pytest.raises(
        CheckpointError, match=f"format 7, written by a newer afresh; this version reads {FORMAT}"
    ):
        Life(folder, PAST, log)


def test_a_newer_shard_of_another_worker_is_refused_at_the_takeover(tmp_path: Path) -> None:
    folder, log, *_ = past(tmp_path)
    files = ShardFiles(UrlFolder(str(folder)), "shop-1")
    shard = files.load(files.all()[-1])
    name, _ = files.save(shard, 99, 1, held=shard.offsets)
    data = (folder / name.path).read_bytes()
    (folder / name.path).unlink()
    told = metadata(data) | {"format": str(FORMAT + 1), "afresh": "9.9"}
    newer = pack(shard.arrays, told)
    (folder / name._replace(checksum=hashlib.sha256(newer).hexdigest()[:16]).path).write_bytes(newer)
    life = Life(folder, changed(PAST, kafka__worker_id="shop-2"), log, assigned=[P0])
    with pytest.raises(CheckpointError, match=rf"shard .*/99-shop-1-.*: format {FORMAT + 1}, written by afr"):
        life.read()


def test_columns_that_a_version_adds_or_drops_cost_one_line(caplog: pytest.LogCaptureFixture) -> None:
    first = learned(small_settings())
    snapshot = first.snapshot()
    arrays = dict(snapshot.arrays)
    del arrays["successors.followed"]
    arrays["future.weights"] = np.ones(3)
    del snapshot.shard.arrays["user.histories.repeats"]
    snapshot.shard.arrays["user.future.mood"] = np.ones(1)
    second = Recommender(small_settings())
    caplog.set_level(logging.INFO)
    second.restore(Snapshot(arrays, snapshot.meta, snapshot.shard))
    (line,) = told(caplog, "checkpoint of another version: ")
    assert "histories.repeats, successors.followed: not in it" in line
    assert "future.mood, future.weights: not known to this version; left out" in line
    assert not second.state.successors.followed.data.any()
    assert second.state.successors.followed.data.shape[0] == second.state.items.capacity
    second.step(shoppers(np.random.default_rng(1), Batches(seq=second.seq), 1)[0])


def test_a_model_whose_shapes_a_version_changes_starts_anew(caplog: pytest.LogCaptureFixture) -> None:
    snapshot = learned(small_settings()).snapshot()
    arrays = {**snapshot.arrays, "model.attention.gate_slope": np.zeros((2, 2), np.float32)}
    second = Recommender(small_settings())
    second.restore(Snapshot(arrays, snapshot.meta, snapshot.shard))
    (line,) = told(caplog, "model attention starts anew")
    assert "gate_slope: it holds float32[2, 2], this version expects float32[" in line
    assert second.quality.cumulative()["attention"]["tests"] == 0


def test_a_column_of_the_state_that_cannot_fit_is_refused() -> None:
    snapshot = learned(small_settings()).snapshot()
    arrays = {**snapshot.arrays, "popularity.gain": np.ones(3)}
    with pytest.raises(
        CheckpointError, match=r"popularity\.gain: it holds float64\[3\], .* expects .*; go back"
    ):
        Recommender(small_settings()).restore(Snapshot(arrays, snapshot.meta, snapshot.shard))


# ---- the model's settings


def learned(settings: Settings, batches: int = 12) -> Recommender:
    recommender = Recommender(settings)
    for raw in shoppers(np.random.default_rng(3), Batches(), batches, partitions=2):
        recommender.step(raw)
    return recommender


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model__dim": 8}, "model.dim was 4, is 8: the model starts anew"),
        ({"model__memories": "none"}, "model.memories was 'default', is 'none': the model starts anew"),
        ({"model__name": "popularity"}, "model.name was 'attention', is 'popularity': another model"),
        ({"model__name": "item_knn"}, "model.name was 'attention', is 'item_knn': another model"),
    ],
    ids=str,
)
def test_another_model_over_an_old_checkpoint_keeps_all_that_is_not_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], words: str
) -> None:
    folder, log, tested, *_ = past(tmp_path)
    same, other = Life(folder, PAST, log), changed(PAST, **change)
    same.kill()
    caplog.clear()
    life = Life(folder, other, log)  # restored, and the journal's batches learned again
    (line,) = told(caplog, words)
    assert (
        "histories, consumed items, served lists, popularity, successors, sessions, duplicates, offsets"
        in line
    )
    assert {user: life.user(user) for user in USERS} == {user: same.user(user) for user in USERS}
    columns, before = (packing.shared_columns(each.learner.state) for each in (life, same))
    for name in columns.keys() & before.keys():
        if not name.startswith("model."):
            np.testing.assert_array_equal(columns[name].data, before[name].data, err_msg=name)
    assert life.learner.offsets == same.learner.offsets
    assert life.learner.events_learned == same.learner.events_learned
    figures, earlier = life.learner.quality.cumulative(), same.learner.quality.cumulative()
    assert figures["recent_popularity"] == earlier["recent_popularity"]
    assert figures["popularity"] == earlier["popularity"]
    if other.model.name != "popularity":  # tests of the journal's 48 events alone
        assert 0 < figures[other.model.name]["tests"] < earlier["attention"]["tests"]
        assert figures[other.model.name]["tests"] == earlier["attention"]["tests"] - tested
    life.kill()


@pytest.mark.parametrize(
    "change",
    [
        {"model__dim": 8, "model__history": 12, "rank__k": 5},
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
    life.read()
    life.kill()  # the newest checkpoint is still the old one
    again = Life(folder, settings, log)
    assert again.learner.digests() == life.learner.digests()
    again.end()
    third = Life(folder, settings, log)
    assert third.learner.digests() == life.learner.digests()
    third.kill()


def test_the_drift_watch_starts_anew_with_another_served_model_and_stays_with_the_same() -> None:
    first = learned(small_settings())
    snapshot = first.snapshot()
    assert snapshot.arrays["drift/hit_rate.pending"].size
    same, other = Recommender(small_settings()), Recommender(small_settings(name="item_knn"))
    same.restore(snapshot)
    other.restore(snapshot)
    for name, array in first.drift.arrays().items():
        np.testing.assert_array_equal(same.drift.arrays()[name], array, err_msg=name)
    assert not other.drift.arrays()["hit_rate.pending"].size
    assert same.quality.ratios()["attention", "served_hr", "all"] > 0
    assert ("item_knn", "served_hr", "all") not in other.quality.ratios()
    assert other.quality.served() == first.quality.served()  # the service's own count goes on


def test_a_model_that_starts_anew_knows_the_items_as_a_fresh_one_would() -> None:
    first = learned(small_settings())
    snapshot = first.snapshot()
    gone = {name: array for name, array in snapshot.arrays.items() if not name.startswith("model.")}
    second = Recommender(small_settings())
    second.restore(Snapshot(gone, snapshot.meta, snapshot.shard))
    fresh, model = Recommender(small_settings()).models[0], second.models[0]
    for name, column in fresh.columns().items():
        if column.axis == "none" and not name.startswith("typical"):
            np.testing.assert_array_equal(model.columns()[name].data, column.data, err_msg=name)
    ids = list(second.state.items.row_of)
    table_MD = model.columns()["table"].data[second.state.items.rows(ids), :8]
    assert (np.abs(table_MD).sum(1) > 0).all()
    assert len(second.rank(second.state.users.rows(["u1"])).rows_BK) == 1


# ---- lengths


@pytest.mark.parametrize(("held", "wanted"), [(3, 3), (3, 5), (5, 3), (4, 9), (9, 4), (1, 2)])
def test_a_ring_of_another_length_is_what_the_newest_pushes_make(held: int, wanted: int) -> None:
    pushed_N = np.arange(25)

    def ring(length: int, known: int) -> np.ndarray:
        out = np.full((25, length), -1)
        for user, count in enumerate(pushed_N.tolist()):
            for number in range(max(0, count - known), count):
                out[user, number % length] = number
        return out

    found = laid_anew(ring(held, held), pushed_N, wanted, -1)
    np.testing.assert_array_equal(found, ring(wanted, min(held, wanted)))


@pytest.mark.parametrize("length", [12, 30])
def test_histories_of_another_length_keep_the_newest_events_and_the_model(length: int) -> None:
    first = learned(small_settings(history=20))
    second = Recommender(small_settings(history=length))
    second.restore(first.snapshot())
    for user in ("u1", "u7"):
        windows = [
            names_of(
                each.state,
                each.state.histories.window(each.state.users.row_of[user], each.state.items.status.data)[0],
            )
            for each in (first, second)
        ]
        assert len(windows[0]) == 20
        assert windows[1] == windows[0][:length]
    one, two = (each.models[0].columns() for each in (first, second))
    for name, column in one.items():
        if "place" not in name and column.axis == "none":
            np.testing.assert_array_equal(two[name].data, column.data, err_msg=name)
    place, longer = one["module_place"].data, two["module_place"].data
    assert place.any()
    shared = min(length, 20)
    np.testing.assert_array_equal(longer[:shared], place[:shared])
    assert not longer[shared:].any()
    assert second.quality.cumulative() == first.quality.cumulative()
    batches = Batches(seq=second.seq, ends={0: second.offsets[P0]})
    for number in range(15):
        second.step(batches([Event("u1", f"later-{number}")]))
    row = second.state.users.row_of["u1"]
    window = names_of(second.state, second.state.histories.window(row, second.state.items.status.data)[0])
    assert window[:12] == [f"later-{14 - number}" for number in range(12)]
    assert len(window) == (12 if length == 12 else 30)


@pytest.mark.parametrize("k", [3, 9])
def test_served_lists_of_another_length_keep_their_best_places(k: int) -> None:
    first = learned(small_settings(k=5))
    second = Recommender(small_settings(k=k))
    second.restore(first.snapshot())
    for user in ("u1", "u2"):
        lists = [
            names_of(each.state, each.state.served.items.data[each.state.users.row_of[user]])
            for each in (first, second)
        ]
        assert len(lists[0]) == 5
        assert lists[1] == lists[0][:k]


def test_consumed_items_stay_under_a_narrower_rule_and_go_where_repeats_are_welcome() -> None:
    first = learned(small_settings())
    consumed = [
        names_of(
            each.state, each.state.consumed.of(each.state.users.row_of["u1"], each.state.items.status.data)
        )
        for each in (first, *(restored_as(first, exclude) for exclude in (["buy"], [])))
    ]
    assert len(consumed[0]) > 5
    assert consumed[1:] == [consumed[0], []]


def restored_as(first: Recommender, exclude: list[str]) -> Recommender:
    recommender = Recommender(small_settings(exclude=exclude))
    recommender.restore(first.snapshot())
    return recommender


# ---- names


def test_a_worker_of_a_new_name_says_whose_checkpoints_there_are_and_takes_a_renamed_folder_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, log, _, learned_before, _ = past(tmp_path)
    renamed = changed(PAST, kafka__worker_id="shop-0")
    elsewhere = tmp_path / "copy"
    shutil.copytree(folder, elsewhere)
    stranger = Life(elsewhere, renamed, log)
    (line,) = told(caplog, "worker shop-0 starts with an empty model: it has no checkpoint in")
    assert "worker-0 has; users come" in line
    assert "put the folder worker-0 in the place of shop-0" in line
    assert stranger.learner.events_learned == 0
    stranger.kill()
    caplog.clear()
    Life(elsewhere, renamed, log).kill()  # it has not learned anything: told again
    assert told(caplog, "worker shop-0 starts with an empty model")
    (folder / "worker-0").rename(folder / "shop-0")
    life = Life(folder, renamed, log)
    assert life.learner.events_learned == learned_before
    life.read()
    life.loop.checkpoint()
    life.end()
    again = Life(folder, renamed, log)
    assert again.learner.digests() == life.learner.digests()
    again.kill()


def test_a_first_start_says_that_there_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Life(tmp_path, PAST, MemoryLog()).kill()
    assert told(caplog, f"worker worker-0 starts from nothing: no checkpoint is in {tmp_path}")


def test_the_checkpoints_offsets_win_over_those_of_a_new_group(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, log, _, learned_before, _ = past(tmp_path)
    log.committed = {}
    caplog.set_level(logging.INFO)
    life = Life(folder, changed(PAST, kafka__group_id="another"), log).read()
    assert told(caplog, "kafka.group_id was 'afresh', is 'another': the checkpoint's offsets count")
    assert life.learner.events_learned == learned_before
    life.end()
    assert log.committed == life.learner.offsets


def test_a_topic_that_left_leaves_its_users_and_a_new_one_is_read_from_its_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, old, _, learned_before, users = past(tmp_path)
    log = MemoryLog({"orders": 1})
    append(log, "u1", "lamp", topic="orders")
    append(log, "stranger", "lamp", topic="orders")
    both = past(tmp_path / "again").log  # the journal's last batches are still read from the topic that left
    log._records |= both._records
    log._starts |= both._starts
    log.committed = dict(old.committed)
    caplog.set_level(logging.INFO)
    settings = changed(PAST, topics__events=["orders"])
    orders = TopicPartition("orders", 0)
    log.partitions = lambda: [orders]  # type: ignore[method-assign]  # what is subscribed
    life = Life(folder, settings, log, assigned=[orders]).read()
    assert told(caplog, "topics.events was ['events'], is ['orders']: users of a topic that left stay known")
    assert life.learner.events_learned == learned_before + 2
    assert life.history("u1")[:2] == ["lamp", users["u1"]["history"][0][0]]
    assert life.user("u1")["partition"] == ["orders", 0]
    assert life.user("u2") == users["u2"]
    life.end()
    again = Life(folder, settings, log, assigned=[orders])
    assert again.learner.digests() == life.learner.digests()
    assert again.learner.offsets == {P0: old.end(P0), P1: old.end(P1), orders: 2}
    again.kill()
