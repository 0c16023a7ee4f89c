"""Which types of events there are and what each is taken for, in words."""

from collections import Counter

from pipeline.events.checks import shown
from pipeline.settings import ROLE_CODES, EventsConfig

TYPES_SHOWN = 8
ROLES = {code: role for role, code in ROLE_CODES.items()}


def told_types(types: Counter[str], events: EventsConfig) -> str:
    """Return each type with its count and role, the most frequent first.

    >>> told_types(Counter(view=1_200, returned=3), EventsConfig())
    'view 1,200 (positive), returned 3 (negative)'
    """
    most = types.most_common(TYPES_SHOWN)
    told = ", ".join(f"{shown(name)[1:-1]} {count:,} ({ROLES[events.role(name)]})" for name, count in most)
    more = len(types) - TYPES_SHOWN
    return told + (f", and {more} more" if more > 0 else "")
