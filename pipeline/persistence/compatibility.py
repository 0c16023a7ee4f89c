"""The effect of a changed configuration or file format on a checkpoint.

Settings are grouped by effect; one in no group leaves the checkpoint as it is. A line for each group of
changed settings is logged, and the same text makes the table in deploy/guides/changing-configuration.md.
"""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from logging import INFO, WARNING, getLogger
from typing import Any, NamedTuple

import msgspec

from pipeline.errors import CheckpointError
from pipeline.models.registry import variant_of
from pipeline.settings import ModelConfig, Settings, TopicsConfig
from pipeline.state.packing import model_of
from pipeline.state.shards import Snapshot

logger = getLogger(__name__)

FORMAT = 1  # of checkpoints and shards


class Rule(NamedTuple):
    """The effect of changing a setting that matches one of `keys`, logged at `level`."""

    keys: tuple[str, ...]  # `*` stands for any name
    effect: str
    level: int


_KEPT = "histories, consumed items, published lists, count features, duplicates and offsets are kept"
RESIZE = Rule(
    ("model.*.history", "rank.k"),
    "stored rows are cut to the new length or padded; the newest events, the best places and the model are "
    "kept",
    WARNING,
)
RESTART_ALL = Rule(
    ("model.features",),
    f"all models restart from their initial parameters, with their quality and drift metrics; {_KEPT}",
    WARNING,
)
RESTART = Rule(
    ("model.*.*",),
    "the model restarts from its initial parameters, with its quality and drift metrics; the other models, "
    f"{_KEPT}",
    WARNING,
)
SERVE_ANOTHER = Rule(
    ("model.name",),
    "another model is served: it restarts unless the checkpoint holds its parameters; drift detection "
    "restarts, everything else is kept",
    WARNING,
)
READ_NEW = Rule(
    (
        "kafka.group_id", "topics.events", "topics.items", "items.fields", "events.fields",
        "events.time_unit", "events.roles", "events.weights", "events.positive_from", "model.seed",
        "rank.exclude_event_types", "checkpoint.journal",
    ),
    "applies to records read from now on, after a kill to those since the newest checkpoint; the stored "
    "state and the checkpoint's offsets are kept",
    INFO,
)  # fmt: skip
RULES = (RESTART_ALL, SERVE_ANOTHER, RESIZE, RESTART, READ_NEW)  # the first that matches
DEFAULT_EFFECT = "applies at once; the checkpoint does not depend on it"


class Change(NamedTuple):
    """A setting with another value than in the checkpoint."""

    key: str
    before: object
    now: object


def changes(saved: Mapping[str, Any], settings: Settings) -> list[Change]:
    """Return the settings that differ from those saved in a manifest, in their order.

    A setting that is not saved had its default. Secrets are neither saved nor compared.
    """
    now, default = _plain(settings), _plain(Settings())
    found = []
    for table, key in ((table, key) for table, keys in default.items() for key in keys):
        name = f"{table}.{key}"
        before, current = saved.get(table, {}).get(key, default[table][key]), now[table][key]
        same = before == current
        if name == "model.tables":
            found += _model_changes(before, current)
            continue
        if name == "topics.events":
            topics = msgspec.convert({"events": before}, TopicsConfig).event_topics()
            same = topics == settings.topics.event_topics()
        elif name == "checkpoint.journal":  # defaults to checkpoint.path
            path = saved.get(table, {}).get("path", "")
            before, current = before or path, current or now[table]["path"]
            same = before == current or (before == path and current == now[table]["path"])
        if not same and name != "kafka.sasl_password":
            found.append(Change(name, before, current))
    return found


def rule_of(key: str) -> Rule | None:
    """Return the rule of a setting, None for one that the checkpoint does not depend on.

    >>> rule_of("model.attention.dim") is RESTART, rule_of("model.shadows")
    (True, None)
    """
    return next((rule for rule in RULES if any(fnmatchcase(key, each) for each in rule.keys)), None)


def reconciled(snapshot: Snapshot, changed: list[Change]) -> tuple[Snapshot, list[Change]]:
    """Return the part of a snapshot that is valid under the current settings, and the relevant changes.

    The arrays of models that restart are left out. Changes of models that aren't in it are not relevant.
    """
    models = {model_of(name) for name in snapshot.arrays} - {""}
    removed: set[str] = set()
    relevant = []
    for change in changed:
        rule = rule_of(change.key)
        if rule is RESTART or rule is RESTART_ALL:
            affected = models if rule is RESTART_ALL else models & {change.key.split(".")[1]}
            if not affected:
                continue
            removed |= affected
        relevant.append(change)
    arrays = {name: array for name, array in snapshot.arrays.items() if model_of(name) not in removed}
    meta = dict(snapshot.meta)
    if any(change.key == "items.fields" for change in changed):
        meta["item_offsets"] = []  # records rejected before may be readable under the new names
    return replace(snapshot, arrays=arrays, meta=meta), relevant


def lines(changed: list[Change]) -> list[tuple[int, str]]:
    """Return a level and a text for each rule with changed settings."""
    found = []
    for rule in RULES:
        some = [change for change in changed if rule_of(change.key) is rule]
        pairs = [f"{key} was {_short(before)}, is {_short(now)}" for key, before, now in some]
        if pairs:
            found.append((rule.level, f"{', '.join(pairs)}: {rule.effect}"))
    return found


def log_changes(changed: list[Change]) -> None:
    """Log the effect of changed settings."""
    for level, line in lines(changed):
        logger.log(level, "checkpoint of another configuration: %s", line)


def check_format(what: str, found: int, writer: str) -> None:
    """Raise `CheckpointError` for a file of a newer format: starting from an older file would lose events."""
    if found > FORMAT:
        by = f"afresh {writer}" if writer else "a newer afresh"
        raise CheckpointError(
            f"{what}: format {found}, written by {by}; this version reads {FORMAT}. Upgrade this "
            "worker too, or choose another checkpoint.path to start without a checkpoint"
        )


def table() -> str:
    """Return the rules as the Markdown table of deploy/guides/changing-configuration.md."""
    rows = [f"| {', '.join(f'`{key}`' for key in rule.keys)} | {rule.effect} |" for rule in RULES]
    rows.append(f"| all others | {DEFAULT_EFFECT} |")
    return "\n".join(["| setting | effect on the checkpoint |", "|---|---|", *rows])


def _model_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Compare the tables `[model.NAME]`, with the defaults of each model's type."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = (_options(name, tables.get(name, {})) for tables in (before, now))
        found += [
            Change(f"model.{name}.{key}", old.get(key), new.get(key))
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return found


def _options(name: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return all options of a model; the table as it is if this version doesn't know it."""
    try:
        variant = variant_of(ModelConfig(tables={name: dict(table)}), name)
    except ValueError:
        return table
    options: dict[str, Any] = msgspec.to_builtins(variant.config)
    return {"type": variant.type, **options}


def _plain(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings as they are read back from JSON."""
    plain: dict[str, dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(settings))
    return plain


def _short(value: object) -> str:
    """Format a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
