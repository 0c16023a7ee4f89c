"""The report: one page that loads nothing, with the figures that were measured, of a file or a checkpoint."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest
from harness.streams import Batches, small_settings
from harness.streams import shoppers as stream

from pipeline.app.cli import main
from pipeline.app.report.gather import Report, gather
from pipeline.app.report.page import page, verdict
from pipeline.app.report.plots import PARTS, quality_plot
from pipeline.evaluation.rank_metrics import SegmentMetrics
from pipeline.events.records import DriftAlarm
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.files import UrlFolder
from pipeline.recommender import Recommender
from pipeline.settings import KafkaConfig, Settings

NOW_MS = 1_700_000_000_000
Run = Callable[..., tuple[int, str, str]]
SMALL = ("--set", "model.attention.dim=8", "--set", "model.attention.history=6")


class Page(HTMLParser):
    """Collects the tags with their attributes, and checks that they nest; void tags don't."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def learner() -> Recommender:
    recommender = Recommender(small_settings(exclude=[]))
    for raw in stream(np.random.default_rng(0), Batches(), 70, pace=1):
        recommender.step(raw)
    return recommender


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded file with markup in its name."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("recorded") / "a <b> & c.csv"
    rows = [f"u{rng.integers(30)},i{rng.integers(40)},{1_700_000_000 + 60 * k}" for k in range(400)]
    path.write_text("user,item,timestamp\n" + "\n".join(rows) + "\n", "utf-8")
    return path


def gathered(recommender: Recommender) -> Report:
    models = {name: name for name in recommender.quality.models}
    return gather(recommender, models, "a title", {}, [])


def save(recommender: Recommender, folder: Path, worker: str = "worker-0") -> None:
    settings = msgspec.structs.replace(recommender.settings, kafka=KafkaConfig(worker_id=worker))
    Checkpoints(UrlFolder(str(folder)), settings).save(recommender, 0, NOW_MS)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command: return its exit code, stdout and stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        code = main([str(each) for each in argv])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("models", [None, "popularity", "item_knn,recent_popularity"])
def test_the_report_of_a_file_is_one_page_that_loads_nothing(
    models: str | None, file: Path, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out.html"
    chosen = () if models is None else ("--models", models)
    code, printed, err = run("evaluate", file, "--report", out, "--json", *chosen, *SMALL)
    assert code == 0
    assert err.endswith(f"report: {out}\n")
    text = out.read_text("utf-8")
    assert len(text) < 1_000_000
    parsed = Page(text)
    assert "a &lt;b&gt; &amp; c.csv" in text
    assert not {"script", "link", "img", "iframe", "object", "b> & c.csv"} & {tag for tag, _ in parsed.tags}
    targets = [v for _, attributes in parsed.tags for name, v in attributes.items() if "href" in name]
    targets += re.findall(r"url\(([^)]*)\)", text)
    ids = [str(attributes["id"]) for _, attributes in parsed.tags if "id" in attributes]
    assert targets
    assert {str(target) for target in targets} <= {f"#{id}" for id in ids}
    assert not any("src" in attributes for _, attributes in parsed.tags)
    assert len(ids) == len(set(ids))
    names = [tag for tag, _ in parsed.tags]
    assert names.index("svg") < names.index("table")
    for name, figures in json.loads(printed)["models"].items():
        row = next(cells for cells in parsed.cells if cells[0] == name and len(cells) > 8)
        assert row[1] == f"{figures['ndcg@10']:.4f}"
        assert row[3:5] == [f"{figures['hr@10']:.4f}", f"{figures['mrr@10']:.4f}"]


def test_a_report_that_cannot_be_written_is_an_error_at_once(file: Path, run: Run, tmp_path: Path) -> None:
    where = tmp_path / "no" / "out.html"
    code, out, err = run("evaluate", file, "--report", where, *SMALL)
    assert (code, out) == (2, "")
    assert err.startswith(f"afresh: --report {where}: can't be written: No such file or directory; ")
    assert err.count("\n") == 1


def test_a_checkpoint_has_its_workers_report(
    learner: Recommender, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for worker in ("east", "west"):
        save(learner, tmp_path / "state", worker)
    monkeypatch.chdir(tmp_path)
    code, out, err = run("report", "--checkpoint", tmp_path / "state", "--set", "kafka.worker_id=west")
    assert (code, err) == (0, "")
    assert out == f"report: afresh-report.html, worker west, {learner.events_learned:,} events\n"
    text = Path("afresh-report.html").read_text("utf-8")
    row = next(cells for cells in Page(text).cells if cells[0] == "attention")
    assert row[1] == f"{learner.quality.cumulative()['attention']['ndcg@10']:.4f}"
    assert "worker west alone" in text
    assert "also holds checkpoints of east" in text
    assert "2023-11-14 22:13 UTC" in text  # when it was saved


def test_a_trained_checkpoint_has_a_report_before_any_worker(file: Path, run: Run, tmp_path: Path) -> None:
    state, page_of = tmp_path / "state", tmp_path / "out.html"
    assert run("train", file, "--checkpoint", state, *SMALL)[0] == 0
    code, out, _ = run("report", "--checkpoint", state, "--out", page_of)
    assert (code, out) == (0, f"report: {page_of}, trained from a file, 400 events\n")
    assert "<dd>none yet: trained from a file</dd>" in page_of.read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no checkpoint named; expected --checkpoint PATH or checkpoint.path"),
        (("--checkpoint", "empty"), "empty: no checkpoint is there; expected a folder"),
        (("--checkpoint", "state", "--out", "."), "--out .: can't be written: Is a directory; name a file"),
        (("--checkpoint", "two"), "no such worker in two; expected one of east, west"),
    ],
)
def test_no_page_is_one_line_and_leaves_no_file(
    options: tuple[str, ...], message: str, learner: Recommender, run: Run,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save(learner, tmp_path / "state")
    save(learner, tmp_path / "two", "east")
    save(learner, tmp_path / "two", "west")
    code, out, err = run("report", *options)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert not list(tmp_path.glob("*.html"))


def test_a_line_of_the_plot_goes_where_the_figures_go(learner: Recommender) -> None:
    svg = quality_plot(gathered(learner), "ndcg", "NDCG@10")
    found = re.search(r'id="ndcg-attention">\s*<path d="([^"]*)"', svg)
    assert found is not None
    points = np.array([pair.split() for pair in re.findall(r"[ML] ([\d.]+ [\d.]+)", found[1])], float)
    track = learner.track()
    borders = track.borders(PARTS)
    means = track.means("attention", 1, borders)
    middles = (track.events_N[borders[:-1]] + track.events_N[borders[1:]]) / 2
    keep = ~np.isnan(means)
    assert len(points) == keep.sum() > 30
    assert np.corrcoef(points[:, 0], middles[keep])[0, 1] == pytest.approx(1)
    assert np.corrcoef(points[:, 1], means[keep])[0, 1] == pytest.approx(-1)  # SVG counts from the top


def test_drift_alarms_are_marked_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = Recommender(small_settings())
    alarm = DriftAlarm("adwin", "hit_rate", 30, 0.4, 0.1254, 0)
    monkeypatch.setattr(recommender.evaluator.drift, "update", lambda *figures: [alarm])
    for raw in stream(np.random.default_rng(0), Batches(), 2):
        recommender.step(raw)
    text = page(gathered(recommender), NOW_MS)
    assert ["30", "hit rate", "0.400", "0.125"] in Page(text).cells
    assert text.count(">drift alarm<") == 2  # one legend for each plot that shows the fall


@pytest.mark.parametrize(
    ("served", "beside", "said"),
    [
        (0.3, 0.2, "Its NDCG@10 is 1.500 times that of the best baseline, popularity."),
        (0.15, 0.2, "Its NDCG@10 is 0.750 times that of the best baseline, popularity."),
        (0.3, 0.0, "in 50.0% of 10 tests."),
    ],
)
def test_the_verdict_compares_with_the_best_baseline(
    served: float, beside: float, said: str, learner: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures(ndcg: float) -> object:
        each: SegmentMetrics = {"tests": 10, "hr@10": 0.5, "ndcg@10": ndcg, "mrr@10": ndcg}
        return {**each, "cold": each, "warm": each}

    monkeypatch.setattr(
        learner.quality, "cumulative",
        lambda: {"attention": figures(served), "popularity": figures(beside),
                 "recent_popularity": figures(0.0)},
    )  # fmt: skip
    assert verdict(gathered(learner)).endswith(said)


def test_nothing_learned_is_a_page_too() -> None:
    text = page(gathered(Recommender(Settings())), NOW_MS)
    assert "there is nothing to evaluate" in text
    assert "No drift alarm was raised." in text
    Page(text)
