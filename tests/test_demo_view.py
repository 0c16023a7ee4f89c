"""What the demo shows: a screen that fits any terminal, a plot readable without colour, plain lines."""

import io
import logging

import numpy as np
import pytest
from rich.cells import cell_len

from pipeline.app.demo.progress import WINDOW_TESTS, Course, Progress, arms_of, course_of, line, summary_lines
from pipeline.app.demo.screen import screen
from pipeline.app.demo.view import View
from pipeline.evaluation.rank_metrics import RankMetrics
from pipeline.evaluation.timeline import Moment, Timeline
from pipeline.events.records import DriftAlarm, RankedItem, Ranking
from pipeline.models.model import RankResult

ALARM = DriftAlarm("adwin", "hit_rate", 900, 0.374, 0.061, 0)
RANKING = Ranking("[bold]ann[/]", "r", [RankedItem("[red]tea", 1.5, ["milk", "cup"])] * 10, 0, 0, "m", 1)
NAN = np.nan
COURSE = Course(
    ["attention", "popularity"], np.array([0, 500, 1_000]),
    np.array([[NAN, 0.1, 0.3], [NAN, NAN, NAN]]), np.array([[NAN, 0.1, 0.2], [NAN, NAN, NAN]]), 1_000,
)  # fmt: skip
UPLIFT = {
    "arms": {
        "recommended": {"slates": 9, "shown": 1_000, "clicks": 123, "purchases": 4},
        "popular": {"slates": 9, "shown": 1_000, "clicks": 41, "purchases": 1},
        "random": {"slates": 0, "shown": 0, "clicks": 0, "purchases": 0},
    },
    "recommended_minus_popular": {
        "click_rate": [0.082, 0.072, 0.092],
        "purchase_rate": [0.003, -0.001, 0.007],
    },
    "recommended_minus_random": {"click_rate": None, "purchase_rate": None},
}


def progress(alarms=(ALARM,), arms=(), total=2_000, change_at=600, ranking=RANKING):
    return Progress(7, total, 12.4, 3, 9.0, 80.0, COURSE, change_at, alarms, arms, ranking)


def rows_of(width, height, **parts):
    return screen(progress(**parts), width, height).plain.split("\n")


@pytest.mark.parametrize("arms", [(), arms_of(UPLIFT)])
def test_the_screen_fits_any_terminal(arms):
    for width in (1, 20, 42, 66, 67, 80, 120, 250):
        for height in (1, 2, 5, 8, 9, 12, 13, 24, 40, 70):
            rows = rows_of(width, height, alarms=(ALARM,) * 9, arms=arms)
            assert len(rows) <= height
            assert all(cell_len(row) <= width for row in rows), (width, height)


def test_80_by_24_has_room_for_everything_and_little_room_for_the_most_important():
    def parts(width, height):
        text = "\n".join(rows_of(width, height, arms=arms_of(UPLIFT)))
        signs = {"counts": "7 of 2,000", "bars": "█", "models": "attention", "arms": "+8.2 ±1.0"}
        signs |= {"alarm": "▲ drift", "list": "[red]tea"}
        return {part for part, sign in signs.items() if sign in text}

    assert parts(80, 24) == {"counts", "bars", "models", "arms", "alarm", "list"}
    assert parts(80, 12) == {"counts", "bars", "models", "arms", "alarm"}
    assert parts(80, 7) == {"counts", "bars", "models", "alarm"}
    assert parts(80, 1) == {"counts"}


def test_bars_change_and_alarms_stand_at_their_events():
    alarm = DriftAlarm("adwin", "loss", 1_500, 0, 1, 0)
    rows = rows_of(133, 24, total=2_000, change_at=500, alarms=(alarm,))
    drawn, axis = (next(row for row in rows if sign in row)[18:118] for sign in ("attention", "preferences"))
    assert (axis.index("┴"), axis.index("▲")) == (25, 75)
    assert drawn == " " * 24 + "▃" * 25 + "█" + " " * 50


def test_without_a_planned_change_none_is_shown():
    text = "\n".join(rows_of(80, 24, total=None, change_at=None))
    assert "preferences" not in text
    assert "┴" not in text
    assert "over 1,000 events" in text  # the newest event


def test_an_id_can_neither_move_the_cursor_nor_break_a_line():
    evil = Ranking("a\x1b[2Jnn\n", "r", [RankedItem("te\ra\x9b", 1.0, ["mi\nlk"])] * 3, 0, 0, "m", 1)
    text = screen(progress(ranking=evil), 80, 24).plain
    assert r"'a\x1b[2Jnn\n'" in text
    assert r"'te\ra\x9b'" in text
    assert r"'mi\nlk'" in text
    assert not set("\x1b\r\x9b") & set(text)


def test_wide_letters_keep_the_columns_in_line():
    wide = Ranking("安", "r", [RankedItem("お茶", 1.0, ["x"]), RankedItem("tea", 1.0, ["x"])], 0, 0, "m", 1)
    starts = {cell_len(row[: row.index("1.00")]) for row in rows_of(80, 24, ranking=wide) if "1.00" in row}
    assert len(starts) == 1


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "100"), ("LINES", "30")):
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def shown(stream):
    with View(stream) as view:
        view.show(progress(), now_s=0.0)
    return stream


def test_a_terminal_gets_a_screen_of_its_own_and_keeps_the_last_picture(terminal):
    shown(terminal)
    drawn, _, left = terminal.getvalue().partition("\x1b[?1049l")  # the terminal's own screen is back
    assert drawn.startswith("\x1b[?1049h")
    assert drawn.endswith("\x1b[?25h")  # and the cursor
    for text in ("7 of 2,000 events | 12/s | lag 3", "p50 9 ms, p99 80 ms", ".300", "drift: hit_rate"):
        assert (text in drawn, text in left) == (True, True)
    for text in ("ranking of [bold]ann[/]", "[red]tea"):  # an id is text, never markup
        assert (text in drawn, text in left) == (True, True)


@pytest.mark.parametrize(
    ("setting", "isatty", "encoding"),
    [("FORCE_COLOR=1", False, "utf-8"), ("TERM=dumb", True, "utf-8"), ("TERM=xterm", True, "iso8859-1")],
)
def test_what_cannot_draw_gets_plain_lines(setting, isatty, encoding, terminal, monkeypatch):
    monkeypatch.setenv(*setting.split("="))
    monkeypatch.setattr(Terminal, "isatty", lambda self: isatty)
    monkeypatch.setattr(Terminal, "encoding", encoding)
    shown(terminal)
    assert terminal.getvalue().splitlines() == [
        "drift: hit_rate .374 -> .061 at event 900, 300 after the change of preferences",
        line(progress()),
    ]


def test_what_is_logged_while_the_screen_is_taken_comes_at_the_end(terminal, monkeypatch):
    handlers = [logging.StreamHandler(terminal)]
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)
    with View(terminal) as view:
        view.show(progress(), now_s=0.0)
        logging.getLogger("afresh.test").warning("the broker is slow")
        assert "the broker is slow" not in terminal.getvalue()
    assert terminal.getvalue().endswith("the broker is slow\n")
    assert logging.getLogger().handlers is handlers


def test_a_plain_line_has_every_model_and_what_was_clicked():
    assert line(progress(total=None, arms=arms_of(UPLIFT))) == (
        "7 events | 12/s | lag 3 | latency p50 9 ms, p99 80 ms "
        "| HR/NDCG@10: attention .300/.200, popularity -/- "
        "| clicks on 100 shown: recommended 12.3, popular 4.1, random -"
    )


def test_the_uplift_in_words_has_both_rates_and_the_interval_of_their_difference():
    summary = {
        "events": 9, "rankings": 9, "seconds": 1.0, "events_per_s": 9.0, "latency_p50_ms": None, "models": {},
        "drift_alarms": [], "uplift": UPLIFT,
    }  # fmt: skip
    assert list(summary_lines(summary))[1:] == [
        "of 100 recommended items 12.3 were clicked and 0.40 bought",
        "of 100 popular items 4.1 and 0.10: recommended +8.2 ±1.0 and +0.30 ±0.40",
        "of 100 random items - and -: recommended - and -",
        "no drift alarm",
    ]
    assert list(summary_lines({**summary, "uplift": None}))[1:] == ["no drift alarm"]


def results(greater):
    n = len(greater)
    yes, zeros = np.ones(n, bool), np.zeros(n, np.int64)
    return RankResult(np.asarray(greater), zeros, np.full(n, 100), yes, yes, np.full(n, 0.5))


def test_quality_of_late_is_the_mean_of_the_last_tests():
    quality, rng, size = RankMetrics(["attention", "popularity"]), np.random.default_rng(0), 96
    timeline, places = Timeline(quality.models), {model: [] for model in quality.models}
    for batch in range(1, 60):
        for model in quality.models:
            greater = rng.integers(0, 30, size)
            quality.update(model, results(greater), np.zeros(size, bool), np.zeros(size))
            places[model] += (greater + 1).tolist()
        now = Moment(batch * size, 0, quality.totals(), 0.0, 0)
        timeline.add(now)
        course = course_of(timeline.track(now))
        assert course.tests == min(batch * size, -(-WINDOW_TESTS // size) * size)
        for place, model in enumerate(course.models):
            of_late = np.array(places[model][-course.tests :])
            assert course.hr_MP[place, -1] == pytest.approx((of_late <= 10).mean())
            gains = np.where(of_late <= 10, 1 / np.log2(of_late + 1), 0)
            assert course.ndcg_MP[place, -1] == pytest.approx(gains.mean())


def test_before_the_first_test_there_is_no_quality():
    now = Moment(0, 0, RankMetrics(["attention"]).totals(), 0.0, 0)
    course = course_of(Timeline(["attention"]).track(now))
    assert (course.tests, len(course.events_P)) == (0, 1)
    assert np.isnan([course.hr_MP, course.ndcg_MP]).all()
