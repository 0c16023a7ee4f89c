"""`afresh train`: a checkpoint from a file, from which a service starts warm."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.clock import ManualClock
from recordings import read_recording
from test_evaluate import EVENTS, LIVE, NOW_MS, SMALL, Out, append, file, lived, run, settings_for

from consumers.memory import MemoryLog
from pipeline.persistence.checkpoint import TRAINED, Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.recommender import Recommender
from pipeline.service.prequential import FILE_SOURCE, Evaluation, as_served
from pipeline.settings import CheckpointConfig, KafkaConfig, Settings
from producers.memory import Outbox

__all__ = ["file"]  # a fixture


@pytest.fixture
def trained(file: Path, tmp_path: Path, capsys: Out) -> Path:
    """A checkpoint folder that `train` has made of the file."""
    folder = tmp_path / "state"
    code, out, err = run(capsys, "train", file, "--checkpoint", folder, "--batch", 64, "--json", *SMALL)
    assert code == 0
    assert json.loads(out)["checkpoint"] == str(folder)
    assert f"afresh run --set checkpoint.path={folder}" in err
    assert "Event types: view " in err
    return folder


def told_of(learner: Recommender, user: str) -> dict[str, Any]:
    described = learner.describe_user(user)
    assert described is not None
    return described


def service(folder: Path, **tables: msgspec.Struct) -> Settings:
    return settings_for(checkpoint=CheckpointConfig(path=str(folder)), **tables)


def test_a_trained_checkpoint_holds_what_evaluate_has_learned(file: Path, trained: Path) -> None:
    settings = service(trained, kafka=KafkaConfig(worker_id=TRAINED))
    found = Checkpoints(UrlFolder(str(trained)), settings).load()
    assert found is not None
    restored = Recommender(settings)
    restored.restore(found[1])
    offline = Evaluation(settings, as_served(settings), ManualClock(NOW_MS))
    offline.learn(read_recording(file, 64, now_ms=NOW_MS), NOW_MS)
    assert restored.digests() == offline.recommender.digests()
    assert restored.quality.cumulative() == offline.recommender.quality.cumulative()


def test_inspect_of_one_user_says_how_old_the_checkpoint_is(trained: Path, capsys: Out) -> None:
    code, out, _ = run(capsys, "inspect", "--checkpoint", trained, "--user", "__default__")
    assert code == 0
    assert re.match(
        r"checkpoint \d+, saved 20\d\d-.*Z: [\d,]+ events learned\nuser:\n  user_id: __default__\n", out
    )
    assert re.search(r"^quality:$", run(capsys, "inspect", "--checkpoint", trained)[1], re.MULTILINE)


def test_a_service_starts_warm_and_a_user_moves_to_the_live_partition(trained: Path) -> None:
    settings = service(trained)
    log, outbox = MemoryLog(), Outbox()
    found = Checkpoints(UrlFolder(str(trained)), settings).load(newcomer=True)
    assert found is not None
    before = Recommender(settings)
    before.restore(found[1])
    known = told_of(before, "u1")
    append(log, "u1", "brand new")
    learner = lived(settings, log, outbox, str(trained))
    after = told_of(learner, "u1")
    assert after["partition"] == [*LIVE]
    assert set(after["consumed"]) == {"brand new", *known["consumed"]}
    shown = {item.item_id for item in outbox.newest["u1"].items}
    assert shown
    assert not shown & set(after["consumed"])
    other = next(user for user in learner.state.users.row_of if user not in ("u1", "__default__"))
    assert told_of(learner, other)["partition"] == [*FILE_SOURCE]
    assert learner.events_learned == EVENTS + 1


def test_the_files_users_outlive_restarts_and_the_loss_of_a_partition(trained: Path) -> None:
    settings = service(trained)
    log = MemoryLog()
    append(log, "u1", "brand new")
    first = lived(settings, log, Outbox(), str(trained))
    append(log, "stranger", "brand new")
    second = lived(settings, log, Outbox(), str(trained))
    held = len(first.state.users)
    assert len(second.state.users) == held + 1
    assert second.offsets == {FILE_SOURCE: EVENTS, LIVE: 2}
    second.release([LIVE])
    assert len(second.state.users) == held - 1
    assert second.describe_user("u1") is None


def test_training_into_a_folder_without_rights_ends_first(file: Path, tmp_path: Path, capsys: Out) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file, no folder")
    code, out, err = run(capsys, "train", file, "--checkpoint", taken / "state", *SMALL)
    assert (code, out) == (2, "")
    assert "state: can't be written" in err
    assert "ndcg" not in err.lower()


def test_training_into_a_folder_in_use_is_refused(file: Path, trained: Path, capsys: Out) -> None:
    held = sorted(path for path in trained.rglob("*") if path.is_file())
    code, _, err = run(capsys, "train", file, "--checkpoint", trained, *SMALL)
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(rf"--checkpoint {trained}: holds {len(held)} files, .*; expected a new or empty", err)
    assert sorted(path for path in trained.rglob("*") if path.is_file()) == held
