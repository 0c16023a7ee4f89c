"""Streams for measurements of the drift reaction: simulated users with and without a change, a false
alarm, and recorded events.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recorded import BY_NAME, NOW_MS, events_of, settings_for
from wired import END_MS, START_MS, as_columns

from pipeline.events.batch import Events
from pipeline.events.records import DriftAlarm
from pipeline.settings import Settings
from producers.simulator.events import wire_events
from producers.simulator.plan import Change, Plan
from producers.simulator.users import simulate_users

EVENTS, CHANGE_AT, PERIOD, BATCH = 60_000, 20_000, 10_000, 128
RECORDED_EVENTS = 40_000


@dataclass(frozen=True)
class Stream:
    """One kind of stream."""

    changes: tuple[Change, ...] = ()
    fall: float = 0.0
    """The share of the hits that a false alarm at event 20,000 reports as lost; 0: no false alarm."""
    recorded: str = ""
    """The name of a recorded stream, in the place of simulated users."""

    @property
    def steady(self) -> bool:
        """Whether nothing changes."""
        return not self.changes

    @property
    def alarm(self) -> DriftAlarm | None:
        """The false alarm."""
        after = 0.4 * (1 - self.fall)
        return DriftAlarm("false alarm", "hit_rate", CHANGE_AT, 0.4, after, 0) if self.fall else None


KINDS: dict[str, Stream] = {
    "none": Stream(),
    "sudden": Stream((Change("sudden", CHANGE_AT),)),
    "gradual": Stream((Change("gradual", CHANGE_AT, CHANGE_AT + 10_000),)),
    "recurring": Stream((Change("recurring", CHANGE_AT, period=PERIOD),)),
    "local, 1/4": Stream((Change("local", CHANGE_AT, share=0.25),)),
    "local, 1/2": Stream((Change("local", CHANGE_AT, share=0.5),)),
    "none, false alarm of 1/5": Stream(fall=0.2),
    "none, false alarm of 1/2": Stream(fall=0.5),
}
for _name in BY_NAME:
    KINDS[_name] = Stream(recorded=_name)
    KINDS[f"{_name}, false alarm of 1/2"] = Stream(fall=0.5, recorded=_name)


def settings_of(stream: Stream, settings: Settings) -> Settings:
    """Return the settings for a stream."""
    return settings_for(BY_NAME[stream.recorded], settings) if stream.recorded else settings


def now_ms(stream: Stream) -> int:
    """Return the wall-clock time of all batches."""
    return NOW_MS if stream.recorded else END_MS


def batches(stream: Stream, seed: int, data: Path | None) -> Iterator[Events]:
    """Yield the events in batches of 128."""
    if stream.recorded:
        assert data is not None
        yield from events_of(data, BY_NAME[stream.recorded], RECORDED_EVENTS, BATCH)
        return
    chunks = simulate_users(EVENTS, seed, Plan(stream.changes))
    wired = [event for columns in chunks for event in wire_events(columns, START_MS)]
    for start in range(0, EVENTS, BATCH):
        yield as_columns(wired[start : start + BATCH])
