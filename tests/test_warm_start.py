"""Warm start: every worker starts from a trained checkpoint and takes a user over at the first event."""

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from harness.clock import ManualClock
from harness.streams import Batches, Event, small_settings, source
from harness.workers import NOW_MS, START_MS, Life, append, changed

from consumers.memory import MemoryLog
from pipeline.errors import CheckpointError
from pipeline.events.batch import Events
from pipeline.persistence.checkpoint import TRAINED, Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.recommender import Recommender
from pipeline.service.prequential import FILE_SOURCE, Evaluation, as_served
from pipeline.settings import TopicName
from pipeline.state.state import FILED
from producers.memory import Outbox

P0, P1 = source(0), source(1)
EXPORT = 300
Trained = tuple[Path, Recommender]
SETTINGS = changed(small_settings(), checkpoint__path="state")


def export() -> Events:
    """300 events of ten users, one after the other."""
    items = np.random.default_rng(5).integers(60, size=EXPORT).tolist()
    events = [Event(f"u{n % 10}", f"i{item}", time_ms=START_MS + 60_000 * n) for n, item in enumerate(items)]
    return Batches()(events).events


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """A folder with a checkpoint as `afresh train` saves it, and the trained recommender."""
    evaluation = Evaluation(SETTINGS, as_served(SETTINGS), ManualClock(NOW_MS))
    evaluation.learn([export()], NOW_MS)
    settings = changed(SETTINGS, kafka__worker_id=TRAINED)
    Checkpoints(UrlFolder(str(tmp_path)), settings).save(evaluation.recommender, 0, START_MS)
    return tmp_path, evaluation.recommender


def history_of(learner: Recommender, user: str) -> list[str]:
    found = learner.describe_user(user)
    assert found is not None
    return [each["item_id"] for each in found["history"]]  # type: ignore[attr-defined]


def test_users_of_a_file_move_at_first_event(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    folder, before = trained
    log = MemoryLog({"events": 2})
    append(log, "u1", "new", 0)
    append(log, "u2", "new", 1)
    append(log, "u1", "newer", 0)
    append(log, "newcomer", "new", 1)
    caplog.set_level(logging.INFO)
    life = Life(folder, SETTINGS, log).read()
    assert f"worker worker-0 starts from the trained checkpoint {folder}/@trained/manifest-" in caplog.text
    assert life.learner.events_learned == EXPORT + 4
    assert life.history("u1") == ["newer", "new", *history_of(before, "u1")][: len(life.history("u1"))]
    assert len(life.history("u1")) > 2
    assert life.history("u2")[:3] == ["new", *history_of(before, "u2")[:2]]
    assert set(life.user("u2")["consumed"]) == {"new", *before.describe_user("u2")["consumed"]}  # type: ignore[index, misc]
    partitions = {user: life.user(user)["partition"] for user in ("u1", "u2", "u3")}
    assert partitions == {"u1": ["events", 0], "u2": ["events", 1], "u3": [*FILE_SOURCE]}
    assert life.learner.offsets == {FILE_SOURCE: EXPORT, P0: 2, P1: 2}
    tests = [each.quality.cumulative()["attention"]["tests"] for each in (before, life.learner)]
    assert 0 < tests[0] < tests[1]
    published = {ranking.user_id for ranking in life.outbox.rankings}
    assert published == {"u1", "u2", "newcomer", "__default__"}  # and no list of the export
    assert life.learner.quality.list_hits() == before.quality.list_hits()
    life.end()
    assert log.committed == {P0: 2, P1: 2}


def test_a_worker_killed_before_its_first_checkpoint_resumes_bit_for_bit(trained: Trained) -> None:
    folder, _ = trained
    log = MemoryLog({"events": 2})
    for number in range(12):
        append(log, f"u{number}", "new", number % 2)
    life = Life(folder, SETTINGS, log).read()
    life.kill()
    for end in (Life.end, Life.kill):
        again = Life(folder, SETTINGS, log)
        assert again.learner.digests() == life.learner.digests()
        end(again)


def test_several_workers_start_from_one_trained_checkpoint(trained: Trained) -> None:
    folder, before = trained
    log, outbox = MemoryLog({"events": 2}), Outbox()
    append(log, "u1", "new", 0)
    append(log, "u2", "new", 1)
    lives = [
        Life(folder, changed(SETTINGS, kafka__worker_id=f"shop-{number}"), log, outbox, [place])
        for number, place in enumerate((P0, P1))
    ]
    held = before.state.items.row_of.keys()
    for life in lives:
        assert life.learner.digests()["digest_model"] == before.digests()["digest_model"]
        life.read()
        assert life.learner.events_learned == EXPORT + 1
        assert held <= life.learner.state.items.row_of.keys()
    assert [life.history("u1")[0] == "new" for life in lives] == [True, False]
    lives[0].end()
    lives[1].source.assign([P0])  # the other worker takes over, and u1 with it
    lives[1].loop.tick()
    assert lives[1].history("u1")[:2] == ["new", history_of(before, "u1")[0]]
    assert lives[1].user("u1")["partition"] == ["events", 0]
    lives[1].end()
    assert (folder / TRAINED).is_dir()  # a third worker could start from it


def test_users_of_the_file_without_a_live_event_are_evicted_without_a_tombstone(trained: Trained) -> None:
    folder, _ = trained
    log = MemoryLog({"events": 2})
    settings = changed(SETTINGS, limits__user_ttl_days=5.0)
    append(log, "u1", "new", 0, minute=300)
    append(log, "late", "new", 0, minute=4 * 24 * 60)
    append(log, "later", "new", 0, minute=8 * 24 * 60)
    life = Life(folder, settings, log)
    life.loop._settings = changed(settings, batch__max_events=1)
    life.read()
    assert life.learner.describe_user("u2") is None
    assert life.learner.describe_user("later") is not None
    assert life.outbox.removed_users == ["u1", "late"]  # only users with a published list
    life.kill()


def test_a_damaged_trained_checkpoint_is_rejected(trained: Trained) -> None:
    folder, _ = trained
    next((folder / TRAINED).glob("model-*")).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"trained checkpoint .*@trained.*train again into an empty folder, or"
    ):
        Life(folder, SETTINGS, MemoryLog())


def test_a_worker_with_its_own_checkpoint_or_journal_resumes_from_that(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, _ = trained
    log = MemoryLog({"events": 2})
    append(log, "ann", "new")
    elsewhere = tmp_path_factory.mktemp("own")
    Life(elsewhere, SETTINGS, log).read().kill()  # a journal, and no checkpoint yet
    (elsewhere / TRAINED).symlink_to(folder / TRAINED)
    for end in (Life.end, Life.kill):
        again = Life(elsewhere, SETTINGS, log)
        assert again.learner.events_learned == 1
        end(again)


def test_the_trained_checkpoint_is_listed_only_without_workers(trained: Trained) -> None:
    folder, _ = trained

    def workers() -> Sequence[str]:
        return Checkpoints(UrlFolder(str(folder)), SETTINGS).workers()

    assert workers() == [TRAINED]
    Life(folder, changed(SETTINGS, kafka__worker_id="shop-7"), MemoryLog()).kill()
    assert workers() == ["shop-7"]


def test_the_source_of_a_file_has_a_name_that_no_topic_can_have() -> None:
    assert FILE_SOURCE.topic.startswith(FILED)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(FILE_SOURCE.topic, TopicName)
