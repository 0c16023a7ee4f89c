"""Every setting with its default: one frozen struct a table of the TOML file.

Types hold the rules of single values, app/config_rules.py those of several; app/config.py words the errors.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from pipeline.roles import Role, built_in_role

# codes of the roles in columns; an event to ignore never gets into one
POSITIVE, NEUTRAL, NEGATIVE, EXPOSURE, IGNORE = 0, 1, 2, 3, 4
ROLE_CODES = {
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

_BROKER = r"(\[[0-9A-Fa-f:]+\]|[^\s,:/\[\]]+)(:\d{1,5})?"

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Name = Annotated[str, msgspec.Meta(min_length=1)]
FieldNames = Name | Annotated[list[Name], msgspec.Meta(min_length=1)]  # of several the first in a record
Servers = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^\s*{_BROKER}(\s*,\s*{_BROKER})*\s*\Z",
        description="host:port, several with commas between them",
    ),
]
TopicName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(?!\.\.?\Z)[A-Za-z0-9._-]{1,249}\Z",
        description="a topic name of letters, digits, '.', '_' and '-', at most 249",
    ),
]


def names_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names that a setting gives a field, each once."""
    return (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class KafkaConfig(Table, frozen=True):
    bootstrap_servers: Servers = "127.0.0.1:9092"
    group_id: Name = "afresh"
    worker_id: str = "worker-0"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = ""  # from the environment only
    ssl_cafile: str = ""
    start_timeout_s: Seconds = 15.0  # for the first answer of a broker
    broker_timeout_s: Seconds = 60.0
    transactions: bool = False
    options: dict[str, str | int | float | bool] = {}


class TopicsConfig(Table, frozen=True):
    # A table maps a topic to the event type of its records that name none.
    events: (
        Annotated[list[TopicName], msgspec.Meta(min_length=1)]
        | Annotated[dict[TopicName, Name], msgspec.Meta(min_length=1)]
    ) = msgspec.field(default_factory=lambda: ["events"])
    items: TopicName = "items"
    recommendations: TopicName = "recommendations"
    dead_letters: TopicName = "events.dead-letter"
    drift: TopicName = "events.drift"

    def event_topics(self) -> dict[str, str]:
        """Each events topic with the event type of its records that name none."""
        return dict(self.events) if isinstance(self.events, dict) else dict.fromkeys(self.events, "click")


class ItemsConfig(Table, frozen=True):
    fields: dict[str, FieldNames] = {}  # our field -> its name or path in YOUR catalogue records


class EventsConfig(Table, frozen=True):
    fields: dict[str, FieldNames] = {}  # our field -> its name or path in YOUR records
    time_unit: Literal["ms", "s", "iso", "auto"] = "ms"
    roles: dict[Name, Role] = {}
    weights: dict[Name, Annotated[float, msgspec.Meta(ge=0)]] = {}
    positive_from: dict[Name, float] = {}  # type -> the least value that is no dislike: {rating = 6}

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
    # None: every positive and negative type; []: repeats are allowed
    exclude_event_types: list[Name] | None = None
    explain: bool = True
    blocked_items: list[str] = []  # items that no user is shown
    # an event with an older record is of a backlog: it is learned at once, its user's list waits for the end
    backlog_after_s: Seconds = 60.0
    # and beyond this, for the user's next event
    max_inactive_days: Annotated[float, msgspec.Meta(gt=0)] = 7.0


class CheckpointConfig(Table, frozen=True):
    path: str = ""
    journal: str = ""
    interval_s: Seconds = 60.0
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
