"""Event types, by the configuration or else by their names. Axis B = events of a batch."""

import logging
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.roles import FAMILIAR
from pipeline.settings import NEGATIVE, POSITIVE, ROLE_CODES, EventsConfig

logger = logging.getLogger(__name__)

TYPES_KEPT = 10_000  # names come from outside: so many are remembered, and logged once
ROLES = {code: role for role, code in ROLE_CODES.items()}


@dataclass(frozen=True, slots=True)
class EventType:
    """The effect of one event type."""

    role: int
    weight: float
    code: int  # a stable 16-bit hash of the name: shards of other workers use the same
    consumes: bool
    least: float  # a value below it makes an event of a positive type negative


class EventTypes:
    """All types of a stream, each looked up once.

    Events of the types in `exclude` consume their item: it is not shown to that user again. None: all
    positive and negative types.
    """

    def __init__(self, events: EventsConfig, exclude: Sequence[str] | None) -> None:
        self.events, self.exclude = events, exclude
        self._held: dict[str, EventType] = {}

    def of(self, name: str) -> EventType:
        """Return the effect of a type. An unknown one is logged the first time."""
        if name in self._held:
            return self._held[name]
        events, role = self.events, self.events.role(name)
        consumes = role in (POSITIVE, NEGATIVE) if self.exclude is None else name in self.exclude
        least = events.positive_from.get(name, -math.inf)
        kind = EventType(role, events.weight(name), type_code(name), consumes, least)
        if len(self._held) < TYPES_KEPT:
            self._held[name] = kind
            if not (name in FAMILIAR or name in events.roles or name in events.weights):
                logger.info("event type %r is new: taken as %s, weight %g", name, ROLES[role], kind.weight)
        return kind

    def roles(self, kinds: Sequence[EventType], value_B: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
        """Return the role of each event: its type's, but negative where its value is too low."""
        role_B = np.array([kind.role for kind in kinds], np.int8)
        if self.events.positive_from:
            least_B = np.array([kind.least for kind in kinds], np.float64)
            role_B[(role_B == POSITIVE) & (value_B < least_B)] = NEGATIVE
        return role_B


def type_code(name: str) -> int:
    """Return the hash by which histories keep an event type: the same for every worker, below 65,536."""
    return zlib.crc32(name.encode()) & 0xFFFF
