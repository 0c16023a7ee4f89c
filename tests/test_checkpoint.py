"""Checkpoints: round trips, damage of every kind, retention, and what `inspect` shows."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest
from harness.learners import CountingLearner
from harness.workers import P0, P1, Worker, publish, settings_for
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from consumers.memory import MemoryLog
from pipeline.app.inspection import describe, open_newest, parts
from pipeline.errors import CheckpointError, UsageError
from pipeline.events.batch import TopicPartition
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder, pack, unpack
from pipeline.persistence.manifest import Manifest
from pipeline.persistence.shard_files import ShardFiles, parse
from pipeline.settings import CheckpointConfig, KafkaConfig, ModelConfig, Settings
from pipeline.state.shards import Shard, Snapshot

Log = pytest.LogCaptureFixture


def saved(folder: Path | str, rounds: int = 1, settings: Settings | None = None) -> Worker:
    """Learn and save `rounds` times, four events each, as the only worker of a group."""
    worker = Worker(MemoryLog({"events": 2}), settings or settings_for(Path(folder)))
    worker.loop.start()
    for number in range(rounds):
        publish(worker.log, ["ann", "bob"], P0, start=4 * number)
        publish(worker.log, ["xia", "ann2"], P1, start=4 * number + 2)
        worker.finish()
        worker.loop.checkpoint()
    worker.kill()
    return worker


def loaded(folder: Path) -> tuple[Manifest, Snapshot]:
    found = Checkpoints(UrlFolder(str(folder)), settings_for(folder)).load()
    assert found is not None
    return found


def manifests(folder: Path) -> list[Path]:
    return sorted((folder / "worker-0").glob("manifest-*.json"))


kinds = st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_])
shapes = arrays.array_shapes(min_dims=0, min_side=0, max_side=4)
columns = kinds.flatmap(lambda kind: arrays.arrays(kind, shapes))


@given(st.dictionaries(st.text("abcdef./", min_size=1, max_size=8), columns, max_size=4))
def test_packed_arrays_are_unpacked_unchanged(columns: dict[str, Any]) -> None:
    turned = {name: array.T for name, array in columns.items()}  # not in C order
    back = unpack(pack(turned, {}))
    assert back.keys() == turned.keys()
    for name, array in turned.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_a_checkpoint_is_restored_with_all_its_partitions(tmp_path: Path) -> None:
    assert Checkpoints(UrlFolder(str(tmp_path / "new")), settings_for(tmp_path)).load() is None
    learner = saved(tmp_path, rounds=2).learner
    manifest, snapshot = loaded(tmp_path)
    again = CountingLearner(settings_for(tmp_path))
    again.restore(snapshot)
    assert again.digests() == learner.digests()
    assert (manifest.seq, manifest.events_learned) == (again.seq, again.events_learned) == (learner.seq, 8)
    assert again.offsets == {P0: 4, P1: 4}
    assert manifest.versions.keys() >= {"python", "numpy", "safetensors"}


def test_a_remote_folder_works_too(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    settings = Settings(checkpoint=CheckpointConfig(path=url, journal=str(tmp_path), keep=2))
    learner = saved(url, rounds=4, settings=settings).learner
    found = Checkpoints(UrlFolder(url), settings).load()
    assert found is not None
    assert found[0].events_learned == learner.events_learned
    assert len([name for name in UrlFolder(url).names("worker-0") if "manifest" in name]) == 2


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "one byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", ["model", "shard", "manifest"])
def test_the_previous_one_replaces_a_damaged_one(tmp_path: Path, part: str, damage: str, caplog: Log) -> None:
    worker = saved(tmp_path, rounds=2)
    newest = manifests(tmp_path)[-1]
    name = msgspec.json.decode(newest.read_bytes())[part]["name"] if part != "manifest" else newest.name
    DAMAGE[damage](tmp_path / name if part != "manifest" else newest)
    with caplog.at_level(logging.WARNING):
        assert loaded(tmp_path)[0].events_learned == 4
    if (part, damage) != ("manifest", "missing"):
        assert newest.name in caplog.text
        assert name in caplog.text
        assert part != "manifest" or "the manifest can't be read" in caplog.text
    again = Worker(worker.log, worker.settings)
    again.loop.start()  # the journal holds the batches since the previous checkpoint
    assert again.learner.digests() == worker.learner.digests()
    again.kill()


def test_checkpoints_that_are_all_damaged_are_an_error(tmp_path: Path) -> None:
    saved(tmp_path, rounds=2)
    for path in manifests(tmp_path):
        os.truncate(path, 5)
    with pytest.raises(CheckpointError, match="all 2 checkpoints of worker worker-0 are damaged"):
        loaded(tmp_path)


def test_the_newest_checkpoints_are_kept_with_their_files_only(tmp_path: Path) -> None:
    saved(tmp_path, rounds=5)
    kept = [msgspec.json.decode(path.read_bytes()) for path in manifests(tmp_path)]
    assert [manifest["events_learned"] for manifest in kept] == [16, 20]
    named = {m[part]["name"] for m in kept for part in ("model", "shard")}
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors")}
    assert found == named


def test_a_recreated_topic_is_an_error_if_the_broker_has_topic_ids(tmp_path: Path) -> None:
    log = MemoryLog()
    publish(log, ["ann"])

    def run(**topic_ids: str) -> None:
        log.topic_ids = topic_ids
        worker = Worker(log, settings_for(tmp_path))
        try:
            worker.loop.start()
            worker.finish()
            worker.loop.leave()
        finally:
            worker.kill()

    run(events="one", other="two")
    run(events="one")
    run()  # a broker without ids: nothing is checked, and none are saved
    run(events="one")
    publish(log, ["bob"])
    run(events="one")
    with pytest.raises(CheckpointError, match=r"'events' was recreated: its id is three, .* one; choose"):
        run(events="three")


def test_other_workers_files_are_left_alone(tmp_path: Path) -> None:
    shards = ShardFiles(UrlFolder(str(tmp_path)), "other")
    elsewhere = TopicPartition("elsewhere", 0)
    foreign = [shards.save(Shard({elsewhere: offset}, {}), 0, 1)[0] for offset in (1, 2)]
    saved(tmp_path, rounds=5)
    assert set(foreign) <= set(shards.all())


def test_the_highest_generation_then_the_highest_offset_is_the_newest_shard(tmp_path: Path) -> None:
    shards = ShardFiles(UrlFolder(str(tmp_path)), "worker-a-1")
    for generation, offset in ((2, 900), (10, 7), (10, 31), (9, 5_000)):
        name, _ = shards.save(Shard({P0: offset, P1: 1}, {}), generation, seq=3, held=[P0])
        assert parse(name.path) == name
    shards.save(Shard({P0: 9_000}, {}), 11, seq=3)  # not held: only its worker restores it
    again = ShardFiles(UrlFolder(str(tmp_path)), "worker-b")
    assert again.newest([P0, P1]) == {P0: 31}
    ((shard, sources),) = again.load_newest([P0, P1])
    assert (shard.offsets, sources) == ({P0: 31, P1: 1}, [P0])


def test_secrets_are_not_saved(tmp_path: Path) -> None:
    kafka = KafkaConfig(sasl_password="hunter2", options={"ssl_password": "hunter2", "fetch_min_bytes": 7})
    saved(tmp_path, settings=msgspec.structs.replace(settings_for(tmp_path), kafka=kafka))
    text = manifests(tmp_path)[-1].read_text()
    assert "hunter2" not in text
    assert "fetch_min_bytes" in text


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    checkpoints = Checkpoints(UrlFolder(str(tmp_path)), settings_for(tmp_path))

    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match=r"No space left.*Nothing is lost: the journal holds all"):
        checkpoints.save(CountingLearner(settings_for(tmp_path)), generation=1, now_ms=1)
    assert checkpoints.load() is not None


def test_inspect_shows_the_newest_checkpoint_with_its_own_configuration(tmp_path: Path) -> None:
    seeded = msgspec.structs.replace(settings_for(tmp_path), model=ModelConfig(seed=8))
    learner = saved(tmp_path, rounds=2, settings=seeded).learner
    make = Mock(side_effect=CountingLearner)
    opened = open_newest(str(tmp_path), Settings(), make)
    report = describe(opened, "ann", "item-0")
    assert make.call_args.args[0].model.seed == 8
    assert report == {
        "seq": learner.seq,
        "saved_at_ms": opened.manifest.saved_at_ms,
        "events_learned": 8,
        "offsets": {"events": {"0": 4, "1": 4}},
        **learner.digests(),
        "quality": {"counting": {"tests": 8}},
        "user": {"partition": 0, "history": ["item-4", "item-0"]},
        "item": {"count": 1},
    }
    assert "  events:" in map(str, parts(report))


def test_inspect_names_what_is_missing(tmp_path: Path) -> None:
    elsewhere = Settings(kafka=KafkaConfig(worker_id="elsewhere"))
    with pytest.raises(UsageError, match="no checkpoint is there"):
        open_newest(str(tmp_path), Settings(), CountingLearner)
    saved(tmp_path)
    opened = open_newest(str(tmp_path), elsewhere, CountingLearner)
    with pytest.raises(UsageError, match="--user zoe: not in checkpoint"):
        describe(opened, "zoe", None)
    saved(tmp_path, settings=settings_for(tmp_path, "worker-7"))
    with pytest.raises(UsageError, match=r"no such worker in .* expected one of worker-0, worker-7"):
        open_newest(str(tmp_path), elsewhere, CountingLearner)
