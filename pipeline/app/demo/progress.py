"""The demo at one moment, and its progress and summary as text. Axes: M = models, P = points."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.rank_metrics import MEASURES
from pipeline.evaluation.timeline import Track
from pipeline.events.records import DriftAlarm, Ranking

Floats = npt.NDArray[np.float64]

SERVED = "recommended"
WINDOW_TESTS = 1_000  # of a mean, at least: few enough to show a fall where it happens
SLOW_SHARE = 0.5  # of the lists that are up to date; below it they come too late to measure their worth


class Course(NamedTuple):
    """Means at 10 over the latest `tests` tests, at moments of the stream; [M, P], NaN before any test."""

    models: list[str]
    events_P: npt.NDArray[np.int64]
    hr_MP: Floats
    ndcg_MP: Floats
    tests: int  # of the newest mean


class Arm(NamedTuple):
    """A kind of list: % of its items that were clicked and bought, and points by which SERVED is above."""

    name: str
    clicked: str
    bought: str
    above_clicked: str
    above_bought: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The demo at one moment."""

    events: int  # learned, or sent to the dead letters
    total: int | None  # to come in all; None: not known
    events_per_s: float  # since the first one
    lag: int
    p50_ms: float | None
    p99_ms: float | None
    course: Course
    change_at: int | None  # the event at which preferences change; None: never
    alarms: tuple[DriftAlarm, ...]
    arms: tuple[Arm, ...]  # empty without a closed loop
    ranking: Ranking | None


def course_of(track: Track) -> Course:
    """Return each moment's means over its last `WINDOW_TESTS` tests, or the next moment before these."""
    tests_P = track.tests_NMS[:, 0, 0]  # every model has the same tests
    start_P = np.maximum(np.searchsorted(tests_P, tests_P - WINDOW_TESTS, "right") - 1, 0)
    window_P = tests_P - tests_P[start_P]
    sums_PMF = track.sums_NMSF[:, :, 0] - track.sums_NMSF[start_P, :, 0]
    with np.errstate(invalid="ignore"):
        means_FMP = (sums_PMF / window_P[:, None, None]).T.clip(0.0)  # sums are rounded
    hr_MP, ndcg_MP = (means_FMP[MEASURES.index(measure)] for measure in ("hr", "ndcg"))
    return Course(track.models, track.events_N, hr_MP, ndcg_MP, int(window_P[-1]))


def arms_of(uplift: Mapping[str, Any] | None) -> tuple[Arm, ...]:
    """Return the arms in the sender's JSON object, the published lists first; None has none.

    >>> arms_of({"arms": {"recommended": {"shown": 50, "clicks": 4, "purchases": 0}}})
    (Arm(name='recommended', clicked='8.0', bought='0.00', above_clicked='-', above_bought='-'),)
    """
    if uplift is None:
        return ()
    arms = []
    for name, counts in uplift["arms"].items():
        gaps = uplift.get(f"{SERVED}_minus_{name}", {})
        clicked = _percent(counts["clicks"], counts["shown"], 1)
        bought = _percent(counts["purchases"], counts["shown"], 2)
        above = _points(gaps.get("click_rate"), 1), _points(gaps.get("purchase_rate"), 2)
        arms.append(Arm(name, clicked, bought, *above))
    return tuple(arms)


def _percent(count: int, shown: int, digits: int) -> str:
    return f"{100 * count / shown:.{digits}f}" if shown else "-"


def _points(gap: Sequence[float] | None, digits: int) -> str:
    """Return a difference of rates (value, low, high) in percentage points, with half its interval."""
    if gap is None:
        return "-"
    value, low, high = gap
    return f"{100 * value:+.{digits}f} ±{50 * (high - low):.{digits}f}"


def ratio(value: float) -> str:
    """Return a ratio with three digits and no leading zero; "-" for NaN.

    >>> ratio(0.25), ratio(1.0), ratio(float("nan"))
    ('.250', '1.000', '-')
    """
    return "-" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def alarm_text(alarm: DriftAlarm, change_at: int | None) -> str:
    """Return one line about an alarm, with its delay after the planned change.

    >>> alarm_text(DriftAlarm("adwin", "hit_rate", 30420, 0.374, 0.061, 0), 30000)
    'drift: hit_rate .374 -> .061 at event 30,420, 420 after the change of preferences'
    """
    values = f"{ratio(alarm.before)} -> {ratio(alarm.after)}"
    delay = _delay_text(delay_of(alarm, change_at))
    return f"drift: {alarm.signal} {values} at event {alarm.at_event:,}{delay}"


def delay_of(alarm: DriftAlarm, change_at: int | None) -> int | None:
    """Return the number of events from the change of preferences to an alarm; None without one before it."""
    return None if change_at is None or alarm.at_event <= change_at else alarm.at_event - change_at


def _delay_text(delay: int | None) -> str:
    return "" if delay is None else f", {delay:,} after the change of preferences"


def counts(progress: Progress) -> str:
    """Return events, speed, lag and latency in one line."""
    of = "" if progress.total is None else f" of {progress.total:,}"
    parts = [f"{progress.events:,}{of} events", f"{progress.events_per_s:,.0f}/s", f"lag {progress.lag:,}"]
    if progress.p50_ms is not None and progress.p99_ms is not None:
        parts.append(f"latency p50 {progress.p50_ms:.0f} ms, p99 {progress.p99_ms:.0f} ms")
    return " | ".join(parts)


def line(progress: Progress) -> str:
    """Return the whole progress in one line, without the user's list."""
    models, _, hr_MP, ndcg_MP, _ = progress.course
    newest = zip(models, hr_MP[:, -1], ndcg_MP[:, -1], strict=True)
    metrics = ", ".join(f"{name} {ratio(hr)}/{ratio(ndcg)}" for name, hr, ndcg in newest)
    parts = [counts(progress), f"HR/NDCG@10: {metrics}"]
    if progress.arms:
        clicks = ", ".join(f"{arm.name} {arm.clicked}" for arm in progress.arms)
        parts.append(f"clicks on 100 shown: {clicks}")
    return " | ".join(parts)


def summary_lines(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the summary of `afresh demo` for a human, line by line."""
    yield (
        f"{summary['events']:,} events learned and {summary['rankings']:,} rankings acknowledged "
        f"in {summary['seconds']:.0f} s, {summary['events_per_s']:,.0f} events/s"
    )
    if summary["latency_p50_ms"] is not None:
        yield (
            "from the event's record to the acknowledged ranking: "
            f"p50 {summary['latency_p50_ms']:.0f} ms, p99 {summary['latency_p99_ms']:.0f} ms"
        )
    for name, model in summary["models"].items():
        yield f"{name}: hit rate@10 {ratio(model['hr@10'])}, NDCG@10 {ratio(model['ndcg@10'])}, whole stream"
    for arm in arms_of(summary["uplift"]):
        if arm.name == SERVED:
            yield f"of 100 {SERVED} items {arm.clicked} were clicked and {arm.bought} bought"
        else:
            above = f"{SERVED} {arm.above_clicked} and {arm.above_bought}"
            yield f"of 100 {arm.name} items {arm.clicked} and {arm.bought}: {above}"
    current = (summary["uplift"] or {}).get("lists_up_to_date")
    if current is not None:
        slow = "; this machine is too slow or too busy for the rate: try a lower --rate"
        more = slow if current < SLOW_SHARE else ""
        yield f"{current:.0%} of the recommended lists covered all events of their user{more}"
    if not summary["drift_alarms"]:
        yield "no drift alarm"
    for alarm in summary["drift_alarms"]:
        delay = _delay_text(alarm["delay_events"])
        yield f"drift alarm: {alarm['signal']} at event {alarm['at_event']:,}{delay}"
