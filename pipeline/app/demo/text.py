"""The demo in words: the pieces that the live view and the plain lines share."""

from pipeline.app.demo.uplift import SERVED, Arm, Gap
from pipeline.app.demo.watch import Progress
from pipeline.events.records import DriftAlarm


def alarm_text(alarm: DriftAlarm, change_at: int | None) -> str:
    """Return one line about an alarm, and how long after the planted change it came.

    >>> alarm_text(DriftAlarm("adwin", "hit_rate", 30420, 0.374, 0.061, 0), 30000)
    'drift: hit_rate .374 -> .061 at event 30,420, 420 after the change of taste'
    """
    text = f"drift: {alarm.signal} {ratio(alarm.before)} -> {ratio(alarm.after)} at event {alarm.at_event:,}"
    if change_at is not None and alarm.at_event > change_at:
        text += f", {alarm.at_event - change_at:,} after the change of taste"
    return text


def ratio(value: float | None) -> str:
    """Return a share with three digits and no leading zero; "-" for None.

    >>> ratio(0.25), ratio(1.0), ratio(None)
    ('.250', '1.000', '-')
    """
    if value is None:
        return "-"
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text


def counts(progress: Progress, width: int | None = None) -> str:
    """Return events, speed, lag and latency in one line, with fewer words where `width` cells are few."""
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
        clicks = ", ".join(f"{arm.name} {hundred(arm.click_rate, 1)}" for arm in progress.arms)
        parts.append(f"clicks on 100 shown: {clicks}")
    return " | ".join(parts)


def uplift_lines(arms: tuple[Arm, ...]) -> list[str]:
    """Return how the served lists do beside every other kind, in words; nothing without a closed loop."""
    served = next((arm for arm in arms if arm.name == SERVED), None)
    if served is None:
        return []
    first = (
        f"of 100 {SERVED} items {hundred(served.click_rate, 1)} were clicked "
        f"and {hundred(served.purchase_rate, 2)} bought"
    )
    return [first] + [
        f"of 100 {arm.name} items {hundred(arm.click_rate, 1)} and {hundred(arm.purchase_rate, 2)}: "
        f"{SERVED} {points(arm.click_gap, 1)} and {points(arm.purchase_gap, 2)}"
        for arm in arms
        if arm is not served
    ]


def hundred(rate: float | None, digits: int) -> str:
    """Return a rate as so many of a hundred; "-" for None.

    >>> hundred(0.1234, 1), hundred(None, 1)
    ('12.3', '-')
    """
    return "-" if rate is None else f"{100 * rate:.{digits}f}"


def points(gap: Gap | None, digits: int) -> str:
    """Return by how many of a hundred one rate lies above another, with half its interval; "-" for None.

    >>> points(Gap(0.0823, 0.0783, 0.0863), 1)
    '+8.2 ±0.4'
    """
    if gap is None:
        return "-"
    return f"{100 * gap.value:+.{digits}f} ±{50 * (gap.high - gap.low):.{digits}f}"
