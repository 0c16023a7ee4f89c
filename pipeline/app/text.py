"""Texts that several commands print: times, ids from a stream, event types."""

from collections import Counter
from datetime import UTC, datetime

from pipeline.events.checks import shown
from pipeline.settings import ROLE_CODES, EventsConfig

TYPES_SHOWN = 8


def moment(ms: int) -> str:
    """Return a time in UTC, to the second.

    >>> moment(1_700_000_000_000)
    '2023-11-14 22:13:20Z'
    """
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def plain(text: str) -> str:
    """Return text from a stream so that a terminal can't take it for a command.

    >>> plain("Zürich-7"), plain("a\\x1b[2J")
    ('Zürich-7', "'a\\\\x1b[2J'")
    """
    return text if text.isprintable() else shown(text, 256)


def event_types_text(types: Counter[str], events: EventsConfig) -> str:
    """Return each event type with its count and role, the most frequent first.

    >>> event_types_text(Counter(view=1_200, returned=3), EventsConfig())
    'view 1,200 (positive), returned 3 (negative)'
    """
    roles = {code: role for role, code in ROLE_CODES.items()}
    parts = [
        f"{shown(name)[1:-1]} {count:,} ({roles[events.role(name)]})"
        for name, count in types.most_common(TYPES_SHOWN)
    ]
    more = len(types) - TYPES_SHOWN
    return ", ".join(parts) + (f", and {more} more" if more > 0 else "")
