"""What an old checkpoint is worth to a worker of today: changed settings, older and newer formats.

Every setting has a rule. Where a change touches what is kept, one line says so when the checkpoint is loaded;
the same sentences make the table in deploy/guides/changing-configuration.md.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from logging import INFO, WARNING, getLogger
from typing import Any, NamedTuple

import msgspec

from pipeline.errors import CheckpointError
from pipeline.settings import Settings, TopicsConfig
from pipeline.state.shards import Snapshot

logger = getLogger(__name__)

FORMAT = 3  # 3: one file with the users of all partitions


class Rule(NamedTuple):
    """What becomes of a checkpoint when a setting is another.

    `told`: the level of the line that says so when the checkpoint is loaded; 0: nothing of it is touched.
    """

    says: str
    told: int = 0


_KEPT = (
    "histories, consumed items, served lists, popularity, successors, sessions, duplicates, offsets and the "
    "other models' figures are kept"
)
_RESTART = Rule(
    "the model starts anew, its quality and drift figures too, and learns from the next event on; " + _KEPT,
    WARNING,
)
_FREE = Rule("free")
_NEXT_BATCH = Rule("applied from the next batch on")
_NEW_EVENTS = Rule(
    "holds for events that are learned from now on; what is counted and kept stays as it is", INFO
)
_NEW_NAMES = Rule(
    "holds for records that are read from now on: after a kill those since the newest checkpoint too, so "
    "stop the worker in good order before the change",
    INFO,
)
_OUTPUT = Rule("applied from the next batch on; what was published stays in the old topic")

RULES: dict[str, Rule] = {
    "kafka.bootstrap_servers": Rule(
        "free within a cluster; on another one the topics must be the same, offsets included: a topic "
        "with another id and offsets out of range are refused"
    ),
    "kafka.group_id": Rule(
        "the checkpoint's offsets count, not the new group's; batches since the newest checkpoint are "
        "published once more",
        INFO,
    ),
    "kafka.worker_id": Rule(
        "a worker of a new name has no checkpoint: one line says whose there are. To carry the old one "
        "on, stop the worker and rename its folder in checkpoint.path (and in checkpoint.journal), or set "
        "the name back"
    ),
    "kafka.security_protocol": _FREE,
    "kafka.sasl_mechanism": _FREE,
    "kafka.sasl_username": _FREE,
    "kafka.sasl_password": _FREE,
    "kafka.ssl_cafile": _FREE,
    "kafka.start_timeout_s": _FREE,
    "kafka.broker_timeout_s": _FREE,
    "kafka.transactions": Rule(
        "free; switched on, batches since the newest checkpoint that were not committed are read from the "
        "topic as new ones"
    ),
    "kafka.options": _FREE,
    "topics.events": Rule(
        "users of a topic that left stay known until they act in another topic, expire or are evicted, "
        "and its offsets stay too, so it may come back (let the worker stop in good order before a topic "
        "is deleted: its journal may need it); a new topic is read from what the group has committed, at "
        "first from its earliest record",
        INFO,
    ),
    "topics.items": Rule(
        "what the old topic has withdrawn stays withdrawn until the new one says otherwise; the new one "
        "is read whole",
        INFO,
    ),
    "topics.recommendations": _OUTPUT,
    "topics.dead_letters": _OUTPUT,
    "topics.drift": _OUTPUT,
    "items.fields": Rule(
        "the topic is read whole once more, by the new names; what was withdrawn stays withdrawn until a "
        "record says otherwise. Stop the worker in good order before the change: after a kill the topic is "
        "read on from where the journal ends",
        INFO,
    ),
    "events.fields": _NEW_NAMES,
    "events.time_unit": _NEW_NAMES,
    "events.roles": _NEW_EVENTS,
    "events.weights": _NEW_EVENTS,
    "events.positive_from": _NEW_EVENTS,
    "batch.max_events": Rule("applied from the next batch on; batches of the journal keep their borders"),
    "batch.max_wait_ms": Rule("applied from the next batch on; batches of the journal keep their borders"),
    "model.name": Rule(
        "another model is served: one that ranks by what the memories count (popularity, recent_popularity, "
        "item_knn) has all it needs, any other learns from the next event on; the drift figures start anew; "
        + _KEPT,
        WARNING,
    ),
    "model.memories": _RESTART,
    "model.dim": _RESTART,
    "model.history": Rule(
        "histories keep each user's newest events: a shorter one loses the older ones, a longer one fills "
        "up as the user acts; the model goes on where no other change forbids it, with new places at zero",
        WARNING,
    ),
    "model.threads": Rule("free; sums may differ in the last bit"),
    "model.device": _FREE,
    "model.seed": Rule(
        "the model goes on; only new draws, as of a new item's first embedding, come from it", INFO
    ),
    "rank.k": Rule(
        "the lists last served are cut, or have empty places at their end; a user's next list has the new "
        "length",
        INFO,
    ),
    "rank.exclude_event_types": Rule(
        "items consumed under the old rule stay consumed, and those it let pass are not added: holds for "
        "events that are learned from now on; [] forgets what was consumed, so that repeats are welcome at "
        "once",
        INFO,
    ),
    "rank.explain": _NEXT_BATCH,
    "rank.blocked_items": Rule("applied at once: users who hold an item that is blocked now get a new list"),
    "rank.backlog_after_s": _NEXT_BATCH,
    "rank.max_inactive_days": _NEXT_BATCH,
    "checkpoint.path": Rule(
        "another folder is another checkpoint: nothing of the old one is read unless it is moved along"
    ),
    "checkpoint.journal": Rule(
        "batches since the newest checkpoint are looked for in the new folder: stop the worker before the "
        "change, or move the old folder's files along, else the model misses these batches",
        INFO,
    ),
    "checkpoint.interval_s": _FREE,
    "checkpoint.keep": Rule("applied at the next checkpoint"),
    "limits.users": Rule("applied at the next batch: those longest unseen go"),
    "limits.items": Rule("applied at the next batch: those longest unseen go"),
    "limits.admit_after": Rule("holds for ids that have no row yet; what was sighted of them counts"),
    "limits.user_ttl_days": Rule("applied at the next batch: who is overdue goes"),
    "limits.item_ttl_days": Rule("applied at the next batch: what is overdue goes"),
    "limits.record_bytes": Rule("holds for records that are read from now on"),
    "limits.max_dead_letter_ratio": _NEXT_BATCH,
    "limits.max_consecutive_dead_letters": _NEXT_BATCH,
    "drift.reaction": _NEXT_BATCH,
    "metrics.address": _FREE,
}


class Change(NamedTuple):
    """A setting that is not what the checkpoint was saved with."""

    key: str
    was: object
    now: object


def changes(saved: Mapping[str, Any], settings: Settings) -> list[Change]:
    """Return the settings of today that differ from those saved in a manifest, in their order.

    A setting that an older version did not know counts as its default; secrets are never saved, nor compared.
    """
    now, default = _plain(settings), _plain(Settings())
    found = []
    for table, key in ((table, key) for table, keys in default.items() for key in keys):
        name = f"{table}.{key}"
        if name == "kafka.sasl_password":
            continue
        was = saved.get(table, {}).get(key, default[table][key])
        if name == "topics.events":
            topics = msgspec.convert({"events": was}, TopicsConfig).event_topics()
            same = topics == settings.topics.event_topics()
        elif name == "checkpoint.journal":  # it follows checkpoint.path where it is not set
            path = saved.get(table, {}).get("path", "")
            was, is_now = was or path, now[table]["journal"] or now[table]["path"]
            same = was == is_now or (was == path and is_now == now[table]["path"])
        else:
            same = bool(was == now[table][key])
        if not same:
            found.append(Change(name, was, now[table][key]))
    return found


def reconciled(snapshot: Snapshot, changed: list[Change]) -> tuple[Snapshot, list[Change]]:
    """Return what of a snapshot holds under the settings of today, and the changes that touch it.

    A model that has to start anew is left out.
    """
    has_parameters = any(name.startswith("model.") for name in snapshot.arrays)
    anew = has_parameters and any(RULES[change.key] is _RESTART for change in changed)
    arrays = {
        name: array for name, array in snapshot.arrays.items() if not (anew and name.startswith("model."))
    }
    meta = dict(snapshot.meta)
    if any(change.key == "items.fields" for change in changed):
        meta["item_offsets"] = []  # records that could not be read may be readable by the new names
    told = [change for change in changed if RULES[change.key] is not _RESTART or has_parameters]
    return replace(snapshot, arrays=arrays, meta=meta), told


def lines(changed: list[Change]) -> list[tuple[int, str]]:
    """Say what becomes of a checkpoint: a level and a line for settings that share a rule.

    >>> lines([Change("rank.explain", True, False), Change("model.seed", 0, 7)])[0][1][:45]
    'model.seed was 0, is 7: the model goes on; on'
    """
    touching = sorted((change for change in changed if RULES[change.key].told), key=_place)
    out = []
    for rule, some in groupby(touching, lambda change: RULES[change.key]):
        pairs = [f"{key} was {_short(was)}, is {_short(now)}" for key, was, now in some]
        out.append((rule.told, f"{', '.join(pairs)}: {rule.says}"))
    return out


def tell(changed: list[Change]) -> None:
    """Log these lines."""
    for level, line in lines(changed):
        logger.log(level, "checkpoint of another configuration: %s", line)


def check_format(what: str, found: int, writer: str) -> None:
    """Raise `CheckpointError` for a file of a newer format: to start from an older one would lose events."""
    if found > FORMAT:
        by = f"afresh {writer}" if writer else "a newer afresh"
        raise CheckpointError(
            f"{what}: format {found}, written by {by}; this version reads {FORMAT}. Upgrade this "
            "worker too, or choose another checkpoint.path to start anew"
        )


def table() -> str:
    """Return the rules as the Markdown table of deploy/guides/changing-configuration.md."""
    of_rule: dict[str, list[str]] = {}
    for key, rule in RULES.items():
        of_rule.setdefault(rule.says, []).append(f"`{key}`")
    rows = [f"| {', '.join(keys)} | {says} |" for says, keys in of_rule.items()]
    return "\n".join(["| setting | what becomes of the checkpoint |", "|---|---|", *rows])


def _place(change: Change) -> int:
    """Return the place of a change's rule, the same for settings that share one."""
    return [rule.says for rule in RULES.values()].index(RULES[change.key].says)


def _plain(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings as they come back from JSON."""
    plain: dict[str, dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(settings))
    return plain


def _short(value: object) -> str:
    """Show a value in one line.

    >>> _short(["a" * 90])[-5:]
    'aa...'
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
