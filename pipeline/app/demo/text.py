"""The demo's progress and summary as text, shared by the live view and the plain lines."""

from collections.abc import Iterator
from typing import Any

from pipeline.app.demo.progress import SERVED, Arm, Gap, Progress, arms_of
from pipeline.events.records import DriftAlarm

SLOW_SHARE = 0.5  # of the lists that are up to date; below it they come too late to measure their worth


def alarm_text(alarm: DriftAlarm, change_at: int | None) -> str:
    """Return one line about an alarm, with its delay after the planned change.

    >>> alarm_text(DriftAlarm("adwin", "hit_rate", 30420, 0.374, 0.061, 0), 30000)
    'drift: hit_rate .374 -> .061 at event 30,420, 420 after the change of preferences'
    """
    values = f"{ratio(alarm.before)} -> {ratio(alarm.after)}"
    delay = None if change_at is None or alarm.at_event <= change_at else alarm.at_event - change_at
    return f"drift: {alarm.signal} {values} at event {alarm.at_event:,}{_delay_text(delay)}"


def _delay_text(delay: int | None) -> str:
    return "" if delay is None else f", {delay:,} after the change of preferences"


def ratio(value: float | None) -> str:
    """Return a ratio with three digits and no leading zero; "-" for None.

    >>> ratio(0.25), ratio(1.0), ratio(None)
    ('.250', '1.000', '-')
    """
    if value is None:
        return "-"
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text


def counts(progress: Progress, width: int | None = None) -> str:
    """Return events, speed, lag and latency in one line, shorter where it is wider than `width` cells."""
    of = "" if progress.total is None else f" of {progress.total:,}"
    parts = [f"{progress.events:,}{of} events", f"{progress.events_per_s:,.0f}/s", f"lag {progress.lag:,}"]
    if progress.p50_ms is not None and progress.p99_ms is not None:
        parts.append(f"latency p50 {progress.p50_ms:.0f} ms, p99 {progress.p99_ms:.0f} ms")
    text = " | ".join(parts)
    return text if width is None or len(text) <= width else text.replace("latency ", "")


def line(progress: Progress) -> str:
    """Return the whole progress in one line, without the user's list."""
    models = [f"{model.name} {ratio(model.hr)}/{ratio(model.ndcg)}" for model in progress.models]
    parts = [counts(progress), "HR/NDCG@10: " + ", ".join(models)]
    if progress.arms:
        clicks = ", ".join(f"{arm.name} {percent(arm.click_rate, 1)}" for arm in progress.arms)
        parts.append(f"clicks on 100 shown: {clicks}")
    return " | ".join(parts)


def uplift_lines(arms: tuple[Arm, ...]) -> Iterator[str]:
    """Yield the rates of the published lists and of every other arm; nothing without a closed loop."""
    for arm in arms:
        rates = percent(arm.click_rate, 1), percent(arm.purchase_rate, 2)
        if arm.name == SERVED:
            yield "of 100 {} items {} were clicked and {} bought".format(SERVED, *rates)
        else:
            gaps = points(arm.click_gap, 1), points(arm.purchase_gap, 2)
            yield "of 100 {} items {} and {}: {} {} and {}".format(arm.name, *rates, SERVED, *gaps)


def percent(rate: float | None, digits: int) -> str:
    """Return a rate as a percentage; "-" for None.

    >>> percent(0.1234, 1), percent(None, 1)
    ('12.3', '-')
    """
    return "-" if rate is None else f"{100 * rate:.{digits}f}"


def points(gap: Gap | None, digits: int) -> str:
    """Return a difference of two rates in percentage points, with half its interval; "-" for None.

    >>> points(Gap(0.0823, 0.0783, 0.0863), 1)
    '+8.2 ±0.4'
    """
    if gap is None:
        return "-"
    return f"{100 * gap.value:+.{digits}f} ±{50 * (gap.high - gap.low):.{digits}f}"


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
        metrics = f"hit rate@10 {ratio(model['hr@10'])}, NDCG@10 {ratio(model['ndcg@10'])}"
        yield f"{name}: {metrics}, whole stream"
    yield from uplift_lines(arms_of(summary["uplift"]))
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
