"""`afresh train`: a checkpoint from a file, from which a service starts warm."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from harness.clock import ManualClock
from recordings import read_recording
from test_evaluate import NOW_MS, SMALL, Out, file, run, settings_for

from pipeline.persistence.checkpoint import TRAINED, Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.recommender import Recommender
from pipeline.service.prequential import Evaluation, as_served
from pipeline.settings import CheckpointConfig, KafkaConfig, Settings

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
