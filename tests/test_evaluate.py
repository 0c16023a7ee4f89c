"""Evaluate and train: the judge is the service's own, its figures add up, and a file is a warm start."""

import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from harness.clock import ManualClock
from recordings import read_recording

from pipeline.app.cli import main
from pipeline.service.prequential import (
    BASELINES,
    GRIDS,
    Evaluation,
    Variant,
    as_served,
    compared,
)
from pipeline.settings import ModelConfig, RankConfig, Settings
from producers.simulator.events import TYPES, Columns, SimulatorConfig
from producers.simulator.users import simulate_users

Out = pytest.CaptureFixture[str]
START_S = 1_700_000_000
NOW_MS = START_S * 1000 + 10**9
EVENTS = 1500
SMALL = ("--set", "model.attention.dim=8", "--set", "model.attention.history=6")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chunks = simulate_users(EVENTS, 0, config=SimulatorConfig(120, 120, 16))
    columns = Columns(*(np.concatenate(column) for column in zip(*chunks, strict=True)))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    lines = ["user,item,timestamp,event,value"]
    lines += [f"u{user},i{item},{START_S + ms // 1000},{TYPES[type]}," for user, item, type, _, ms in rows]
    path = tmp_path_factory.mktemp("recorded") / "events.csv"
    path.write_text("\n".join(lines[: EVENTS + 1]) + "\n", "utf-8")
    return path


def settings_for(**tables: msgspec.Struct) -> Settings:
    return Settings(model=ModelConfig(tables={"attention": {"dim": 8, "history": 6}}), **tables)


class Ticks(ManualClock):
    """A clock that goes on by a second whenever it is read."""

    def monotonic_s(self) -> float:
        self.advance(1.0)
        return super().monotonic_s()


def judged(file: Path, settings: Settings, names: list[str], batch: int = 64) -> Evaluation:
    evaluation = Evaluation(settings, compared(settings, names), Ticks(NOW_MS))
    evaluation.learn(read_recording(file, batch, now_ms=NOW_MS), NOW_MS)
    return evaluation


def run(capsys: Out, *argv: object) -> tuple[int, str, str]:
    code = main([str(each) for each in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_parts_add_up_to_the_whole_and_models_do_not_change_each_other(file: Path) -> None:
    result = judged(file, settings_for(), []).result()
    alone = judged(file, settings_for(), ["attention"]).result()
    assert result.best()["attention"].figures == alone.best()["attention"].figures
    for line in result.lines:
        assert len(line.quarters) == 4
        assert sum(part["tests"] for part in line.quarters) == line.figures["tests"]
        total = sum(part["tests"] * part["ndcg@10"] for part in line.quarters)
        assert total == pytest.approx(line.figures["tests"] * line.figures["ndcg@10"])
    assert result.events == EVENTS


def test_a_stopwatch_counts_its_own_models_lessons_alone(file: Path) -> None:
    evaluation = judged(file, settings_for(), ["attention", "popularity"], batch=100)
    result = evaluation.result()
    assert [line.seconds for line in result.lines] == [EVENTS / 100, EVENTS / 100]
    assert result.seconds > sum(line.seconds for line in result.lines)


def test_attention_is_served_wherever_it_is_named() -> None:
    assert compared(Settings(), ["popularity", "attention"])[0].name == "attention"
    first = compared(Settings(model=ModelConfig(name="item_knn")))[0]
    assert first.name == "item_knn directed=true popularity=1000 weight=1"
    served = [variant.name for variant in as_served(Settings())]
    assert served == ["attention", "popularity", "recent_popularity"]


def test_a_baseline_stands_for_its_best_setting(file: Path) -> None:
    result = judged(file, settings_for(), ["recent_popularity", "item_knn"]).result()
    best = result.best()
    assert list(best) == ["recent_popularity", "item_knn"]
    for name, line in best.items():
        grid = result.grid(name)
        assert line.figures["ndcg@10"] == max(each.figures["ndcg@10"] for each in grid)
        assert len({each.figures["ndcg@10"] for each in grid}) > 1
    assert [line.settings for line in result.grid("item_knn")] == GRIDS["item_knn"]


def test_json_stands_alone_on_stdout_with_the_promised_names(file: Path, capsys: Out) -> None:
    code, out, err = run(capsys, "evaluate", file, "--events", 600, "--json", *SMALL)
    assert code == 0
    assert out.count("\n") == 1
    got = json.loads(out)
    assert (got["file"], got["events"], got["batch"], got["default"]) == (str(file), 600, 128, "attention")
    assert list(got["models"]) == ["attention", *BASELINES]
    names = "ndcg@10 hr@10 mrr@10 cold warm quarters events_per_s settings hr@1 ndcg@5 hr@20 ndcg@50"
    for name, figures in got["models"].items():
        assert set(names.split()) <= set(figures)
        assert figures["new"]["tests"] + figures["old"]["tests"] == figures["tests"]
        assert 0 < figures["average_precision"] < figures["auc"] < 1
        assert figures["cold"]["tests"] + figures["warm"]["tests"] == figures["tests"]
        assert len(figures["quarters"]) == 4
        assert f"{name} " in err
    half_lives = {each["settings"]["half_life"] for each in got["models"]["recent_popularity"]["grid"]}
    assert half_lives == {"100", "300", "1000", "3000", "10000", "24h"}
    assert "ratio" in err
    shown = got["shown"]
    assert 0 < shown["coverage"] <= 1
    assert 0 < shown["gini"] < 1
    assert 1 < shown["popularity"] < 600
    assert shown["lists"] > 100


def test_without_json_the_table_is_the_product(file: Path, capsys: Out) -> None:
    models = ("--models", "attention,popularity")
    code, out, err = run(capsys, "evaluate", file, "--events", 300, *models, *SMALL)
    assert (code, err) == (0, "")
    assert "NDCG@10" in out
    assert re.search(r"attention +0\.\d{4} +[\d.]+ ", out)
    assert "half_life" not in out


def test_start_and_events_choose_a_slice(file: Path, capsys: Out, tmp_path: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    part = tmp_path / "part.csv"
    part.write_text("\n".join([lines[0], *lines[101:301]]) + "\n", "utf-8")
    figures = []
    for options in ((file, "--start", 100, "--events", 200), (part,)):
        _, out, _ = run(capsys, "evaluate", *options, "--models", "attention", "--json", *SMALL)
        figures.append(json.loads(out))
    assert figures[0]["events"] == 200
    assert figures[0]["models"]["attention"]["ndcg@10"] == figures[1]["models"]["attention"]["ndcg@10"]


def test_repeated_items_are_tests_only_where_repeats_are_allowed(capsys: Out, tmp_path: Path) -> None:
    file = tmp_path / "plays.csv"
    rows = "".join(f"ann,{'ab'[k % 2]},{START_S + k}\n" for k in range(10))
    file.write_text(f"user,item,timestamp\n{rows}", "utf-8")
    tests = []
    for options in ((), ("--repeats",)):
        _, out, _ = run(capsys, "evaluate", file, "--json", "--models", "attention", *options, *SMALL)
        tests.append(json.loads(out)["models"]["attention"]["tests"])
    assert tests == [2, 10]


def test_rows_that_cannot_be_read_are_counted(file: Path, capsys: Out, tmp_path: Path) -> None:
    lines = file.read_text("utf-8").splitlines()[:301]
    lines[100:100] = [",x,1,click,", "u,x,never,click,"]
    spoiled = tmp_path / "spoiled.csv"
    spoiled.write_text("\n".join(lines) + "\n", "utf-8")
    _, out, err = run(capsys, "evaluate", spoiled, "--models", "attention", "--json", *SMALL)
    whole = json.loads(out)
    _, out, _ = run(capsys, "evaluate", file, "--events", 300, "--models", "attention", "--json", *SMALL)
    assert whole["events"] == 300
    assert sum(whole["rejected"].values()) == 2
    assert "2 rows rejected" in err
    assert "bad_time. The first: line" in err
    assert whole["models"]["attention"]["ndcg@10"] == json.loads(out)["models"]["attention"]["ndcg@10"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--models", "magic"), r"'magic': expected one of attention, sasrec, ncf"),
        (("--batch", "0"), r"0: expected a whole number, 1 or more"),
        (("--start", "9999"), r"no event to learn: nothing after the first 9999 events; expected one row"),
        (("--item-column", "film"), r"no column 'film'; found"),
    ],
)
def test_wrong_use_is_one_line(file: Path, options: list[str], message: str, capsys: Out) -> None:
    code, out, err = run(capsys, "evaluate", file, *options, *SMALL)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err)


def test_variant_names_tell_settings_apart() -> None:
    names = [variant.name for variant in compared(Settings())]
    assert len(set(names)) == len(names) == 2 + sum(map(len, GRIDS.values()))
    assert Variant("recent_popularity", {"half_life": "24h"}, "recent_popularity").name in names


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_begins_with_the_services_own_setting(file: Path, name: str) -> None:
    settings = settings_for()
    variants = [Variant(name, {}, name), Variant(name, GRIDS[name][0], name)]
    evaluation = Evaluation(settings, variants, ManualClock(NOW_MS))
    evaluation.learn(read_recording(file, 64, now_ms=NOW_MS, limit=600), NOW_MS)
    own, first = evaluation.result().lines
    assert own.figures == first.figures
    assert own.figures["hr@10"] > 0


def test_repeats_leave_consumed_items_in_the_lists(file: Path) -> None:
    settings = settings_for(rank=RankConfig(exclude_event_types=[]))
    state = judged(file, settings, ["attention"]).recommender.state
    assert state.consumed.size.data.sum() == 0
