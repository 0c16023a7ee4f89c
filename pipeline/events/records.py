"""The records that afresh writes, as they lie on the wire (JSON, UTF-8)."""

import msgspec


class RankedItem(msgspec.Struct, frozen=True, gc=False):
    """One place of a ranking; `because` names the items of the user's history that add most to the score.

    Scores descend. That of an item without events is 0, or the score before it where that is less.
    """

    item_id: str
    score: float
    because: list[str] = []


class Ranking(msgspec.Struct, frozen=True, gc=False):
    """A user's newest list, best first. `event_timestamp_ms` is the time of the newest event it knows."""

    user_id: str
    ranking_id: str
    items: list[RankedItem]
    generated_at_ms: int
    event_timestamp_ms: int
    model: str
    model_version: int


class DriftAlarm(msgspec.Struct, frozen=True):
    """A detector found that a figure of the stream has worsened; `at_event` counts learned events."""

    detector: str
    signal: str
    at_event: int
    before: float
    after: float
    detected_at_ms: int
    reaction: float = 0.0  # how strong the reaction to it is, up to 1; 0: none


DEFAULT_USER = "__default__"  # key of the list for people without events
