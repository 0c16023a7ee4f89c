"""Rules over several settings, files, addresses and logins, and the text of errors.

Rules of single values are the types in settings.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import inspect

from pipeline.errors import UsageError
from pipeline.events.items import item_names
from pipeline.roles import built_in_role
from pipeline.service.health import split_address
from pipeline.settings import KEY_FIELD, POSITIVE, KafkaConfig, Settings, names_of

Origins = dict[str, str]  # "table.key" -> the origin of its value; a missing key has its default

FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
Errors = Iterator[tuple[str, object, str]]  # key, value, what was expected
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER", "AWS_MSK_IAM")


def wrong(name: str, value: object, origin: str, expected: str) -> UsageError:
    """Return the error of a value: its key, the value, its origin, what was expected."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return UsageError(f"{name} = {shown} ({origin}): expected {expected}")


def words(info: inspect.Type) -> str:
    """Return a type in words.

    >>> words(inspect.type_info(list[str] | dict[str, str]))
    'an array of text or a table of text'
    """
    match info:
        case inspect.Metadata():
            return str((info.extra_json_schema or {})["description"])
        case inspect.UnionType():
            return " or ".join(words(each) for each in info.types if not isinstance(each, inspect.NoneType))
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in info.values)
        case inspect.ListType():
            return f"an array of {words(info.item_type)}" + ", at least one" * bool(info.min_length)
        case inspect.DictType():
            return f"a table of {words(info.value_type)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(info, inspect.IntType) else "a finite number"
            named = (("above", info.gt), ("at least", info.ge), ("below", info.lt), ("at most", info.le))
            limits = " and ".join(f"{word} {limit}" for word, limit in named if limit is not None)
            return f"{noun}, {limits}" if limits else noun
        case inspect.StrType(min_length=1):
            return "text that is not empty"
    return "text"


def entry_type(info: inspect.Type) -> inspect.Type | None:
    """Return the type of a table's values; None for another type."""
    members = info.types if isinstance(info, inspect.UnionType) else (info,)
    return next((member.value_type for member in members if isinstance(member, inspect.DictType)), None)


def check(settings: Settings, origins: Origins) -> Settings:
    """Return the settings with `checkpoint.journal` resolved. Raise `UsageError` at the first wrong one."""
    for errors in (_kafka, _topics, _items, _events, _checkpoint, _metrics):
        for key, value, expected in errors(settings):
            raise wrong(key, value, origins.get(".".join(key.split(".")[:2]), "default"), expected)
    checkpoint = settings.checkpoint
    journal = _local_folder(checkpoint.journal or checkpoint.path)
    return msgspec.structs.replace(settings, checkpoint=msgspec.structs.replace(checkpoint, journal=journal))


def _kafka(settings: Settings) -> Errors:
    kafka = settings.kafka
    if not FOLDER.fullmatch(kafka.worker_id):
        expected = "a folder name of letters, digits, '.', '_' and '-', at most 100"
        yield "kafka.worker_id", kafka.worker_id, expected
    if kafka.ssl_cafile and not Path(kafka.ssl_cafile).is_file():
        yield "kafka.ssl_cafile", kafka.ssl_cafile, "a file that exists"
    yield from _login(kafka)
    if kafka.options:
        from consumers.kafka.client import unfit_options  # the import is slow

        for option, value, expected in unfit_options(kafka):
            yield f"kafka.options.{option}", value, expected


def _login(kafka: KafkaConfig) -> Errors:
    if not kafka.security_protocol.startswith("SASL"):
        if kafka.sasl_mechanism or kafka.sasl_username or kafka.sasl_password:
            expected = "SASL_SSL or SASL_PLAINTEXT, as kafka.sasl_* is set"
            yield "kafka.security_protocol", kafka.security_protocol, expected
    elif kafka.sasl_mechanism not in MECHANISMS:
        expected = f"one of {', '.join(MECHANISMS)}, as kafka.security_protocol is {kafka.security_protocol}"
        yield "kafka.sasl_mechanism", kafka.sasl_mechanism, expected
    elif kafka.sasl_mechanism.startswith(("PLAIN", "SCRAM")):
        if not kafka.sasl_username:
            yield "kafka.sasl_username", "", f"a name, as kafka.sasl_mechanism is {kafka.sasl_mechanism}"
        if not kafka.sasl_password:
            yield "kafka.sasl_password", "", "a password in the variable AFRESH_KAFKA__SASL_PASSWORD"


def _topics(settings: Settings) -> Errors:
    topics = settings.topics
    named = [("events", name) for name in topics.event_topics()]
    named += [(role, getattr(topics, role)) for role in ("items", "recommendations", "dead_letters", "drift")]
    roles: dict[str, str] = {}
    for role, name in named:
        if name in roles:  # a worker that reads its own output never ends
            yield f"topics.{role}", name, f"a topic of its own; topics.{roles[name]} has this name too"
        roles[name] = role


def _items(settings: Settings) -> Errors:
    owners: dict[str, str] = {}
    for field, names in item_names(settings.items).items():
        key, given = f"items.fields.{field}", settings.items.fields.get(field, field)
        if KEY_FIELD in names and field != "item_id":
            yield key, given, "a field of the records: only item_id is read from the key"
        for name in names:
            if "[]" in name:
                yield key, given, "a path without an array: a record of the items topic is of one item"
            if owners.setdefault(name, field) != field:
                yield key, given, f"a name of its own; {owners[name]} is read from {name!r} too"


def _events(settings: Settings) -> Errors:
    events = settings.events
    for name, theirs in events.fields.items():
        if KEY_FIELD in names_of(theirs) and name != "user_id":
            yield f"events.fields.{name}", theirs, "a field of the records: only user_id is read from the key"
    for name in events.positive_from:
        if events.role(name) != POSITIVE:
            role = events.roles.get(name) or built_in_role(name)
            yield f"events.positive_from.{name}", name, f"a type of the role positive, not {role}"


def _checkpoint(settings: Settings) -> Errors:
    path, journal = settings.checkpoint.path, settings.checkpoint.journal
    if _is_remote(journal):
        yield "checkpoint.journal", journal, "a local folder, as it is written with every batch"
    if journal and not path:
        yield "checkpoint.journal", journal, 'nothing while checkpoint.path is "": set that too'
    if _is_remote(path) and not journal:
        expected = f"a local folder, as checkpoint.path is remote ({urlsplit(path).scheme})"
        yield "checkpoint.journal", journal, expected


def _metrics(settings: Settings) -> Errors:
    address = settings.metrics.address
    try:
        if address:
            split_address(address)
    except ValueError as error:
        yield "metrics.address", address, str(error)


def _is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def _local_folder(path: str) -> str:
    """Return the path of a local folder; "" for a remote URL."""
    if path.startswith("file://"):
        return unquote(urlsplit(path).path)
    return "" if _is_remote(path) else path
