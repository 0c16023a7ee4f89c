"""Every setting of afresh with its default: one frozen struct a table of the TOML file.

Surface promises: a key's name and meaning stay. Unknown keys are errors. `__post_init__` raises ValueError
with "KEY = VALUE: expected ..." texts, which app/config.py turns into one line.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from pipeline.roles import Role, built_in_role

# codes of the roles in columns; an event to ignore never gets into one
POSITIVE, NEUTRAL, NEGATIVE, EXPOSURE, IGNORE = 0, 1, 2, 3, 4
ROLE_CODES: dict[str, int] = {
    "positive": POSITIVE,
    "neutral": NEUTRAL,
    "negative": NEGATIVE,
    "exposure": EXPOSURE,
    "ignore": IGNORE,
}
EVENT_FIELDS = (
    "user_id", "item_id", "event_type", "timestamp_ms", "value", "event_id", "session_id", "ranking_id",
    "context",
)  # fmt: skip
ITEM_FIELDS = ("item_id", "available")
FIELD_OF = {  # a recorded file's column -> what holds the same in records of a topic
    "user": "user_id",
    "item": "item_id",
    "timestamp": "timestamp_ms",
    "event": "event_type",
    "value": "value",
}
KEY_FIELD = "$key"  # as the name of user_id, or of an item's item_id: the record's key

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


def names_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names that a setting gives a field, each once."""
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class KafkaConfig(Table, frozen=True):
    bootstrap_servers: str = "127.0.0.1:9092"
    group_id: str = "afresh"
    worker_id: str = "worker-0"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = ""  # from the environment only
    ssl_cafile: str = ""
    start_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 15.0  # for the first answer of a broker
    broker_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    transactions: bool = False
    options: dict[str, str | int | float | bool] = {}


class TopicsConfig(Table, frozen=True):
    # A table maps a topic to the event type of its records that name none.
    events: list[str] | dict[str, str] = msgspec.field(default_factory=lambda: ["events"])
    items: str = "items"
    recommendations: str = "recommendations"
    dead_letters: str = "events.dead-letter"
    drift: str = "events.drift"

    def event_topics(self) -> dict[str, str]:
        """Each events topic with the event type of its records that name none."""
        return dict(self.events) if isinstance(self.events, dict) else dict.fromkeys(self.events, "click")


class ItemsConfig(Table, frozen=True):
    # our field -> its name or path in YOUR catalogue records; of several the first that a record holds
    fields: dict[str, str | list[str]] = {}

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in ITEM_FIELDS:
                raise ValueError(
                    f"items.fields.{name}: no such field; expected one of {', '.join(ITEM_FIELDS)}"
                )


class EventsConfig(Table, frozen=True):
    # our field -> its name in YOUR records, or its path, or several of them: see event/fields.py
    fields: dict[str, str | list[str]] = {}
    time_unit: Literal["ms", "s", "iso", "auto"] = "ms"
    roles: dict[str, Role] = {}
    weights: dict[str, Annotated[float, msgspec.Meta(ge=0)]] = {}
    positive_from: dict[str, float] = {}  # type -> the least value that is no dislike: {rating = 6}

    def __post_init__(self) -> None:
        for name in self.fields:
            if name not in EVENT_FIELDS:
                raise ValueError(
                    f"events.fields.{name}: no such field; expected one of {', '.join(EVENT_FIELDS)}"
                )

    def role(self, event_type: str) -> int:
        """Return the role's code: by `roles`, else by the type's name, else positive."""
        return ROLE_CODES[self.roles.get(event_type) or built_in_role(event_type)]

    def ignored(self) -> frozenset[str]:
        """Return the event types to ignore: neither learned nor a dead letter."""
        return frozenset(name for name, role in self.roles.items() if role == "ignore")

    def weight(self, event_type: str) -> float:
        """Return how much one event of this type counts."""
        return self.weights.get(event_type, 1.0)


class BatchConfig(Table, frozen=True):
    max_events: Positive = 512
    max_wait_ms: NotNegative = 50


class ModelConfig(Table, frozen=True):
    name: str = "attention"  # a model of pipeline/models/registry.py, or of a table that names its type
    features: Literal["default", "none"] = "default"  # count features
    threads: Positive = 1
    seed: NotNegative = 0
    shadows: list[str] = []  # models that learn and are measured on the same events, not published
    # [model.NAME]: each model's own settings, and its type where NAME is none; checked by the registry
    tables: dict[str, dict[str, Any]] = {}


class RankConfig(Table, frozen=True):
    k: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    exclude_event_types: list[str] | None = (
        None  # None: every positive and negative type; []: repeats are allowed
    )
    explain: bool = True
    blocked_items: list[str] = []  # items that no user is shown
    # an event with an older record is of a backlog: it is learned at once, its user's list waits for the end
    backlog_after_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    max_inactive_days: Annotated[float, msgspec.Meta(gt=0)] = (
        7.0  # and beyond this, for the user's next event
    )


class CheckpointConfig(Table, frozen=True):
    path: str = ""
    journal: str = ""
    interval_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    keep: Positive = 3


class LimitsConfig(Table, frozen=True):
    users: NotNegative = 0  # 0: no limit
    items: NotNegative = 0
    admit_after: Positive = 1
    user_ttl_days: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # 0: never
    item_ttl_days: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    record_bytes: Positive = 65_536
    max_dead_letter_ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5  # over the last 10,000 records
    max_consecutive_dead_letters: Positive = 10_000


class DriftConfig(Table, frozen=True):
    reaction: bool = True  # to an alarm: longer steps for a while, and memories that count the past less


class MetricsConfig(Table, frozen=True):
    address: str = "127.0.0.1:9464"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration, resolved."""

    kafka: KafkaConfig = KafkaConfig()
    topics: TopicsConfig = TopicsConfig()
    items: ItemsConfig = ItemsConfig()
    events: EventsConfig = EventsConfig()
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    rank: RankConfig = RankConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    limits: LimitsConfig = LimitsConfig()
    drift: DriftConfig = DriftConfig()
    metrics: MetricsConfig = MetricsConfig()
