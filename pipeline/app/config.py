"""Read the configuration: --set flags over the environment over a TOML file over the defaults of settings.py.

Each value is checked against its type as it is read, so that an error can name key, value, origin and what
was expected. Rules over several values follow in config_rules.py.
"""

import contextlib
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from pipeline.app.config_rules import Origins, check, entry_type, words, wrong
from pipeline.errors import UsageError
from pipeline.settings import EVENT_FIELDS, ITEM_FIELDS, Settings

PREFIX = "AFRESH_"
MODEL = "model."  # begins the name of a model's table
HIDDEN = "********"
SECRET = re.compile(r"pass|pw|secret|token|credential", re.IGNORECASE)  # in the table kafka and its options
URL_LOGIN = re.compile(r"//[^/@\s]*@")
TABLES: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Settings)}
TYPES: dict[str, Any] = {  # of each setting
    f"{name}.{field.name}": field.type
    for name, table in TABLES.items()
    for field in msgspec.structs.fields(table)
    if f"{name}.{field.name}" != "model.tables"  # [model.NAME]: see `_model_types`
}
TABLE_NAMES = ", ".join(f"[{table}]" for table in TABLES)
ENTRY_NAMES = {"events.fields": EVENT_FIELDS, "items.fields": ITEM_FIELDS}  # tables with fixed entries


class Given(NamedTuple):
    """One value as the user wrote it; `entry` is the name inside a setting that is a table, or ""."""

    table: str
    key: str
    entry: str
    value: object
    raw: str | None  # as typed; None from a file, where values have types
    origin: str  # "--set", "environment AFRESH_...", "file ..."

    @property
    def setting(self) -> str:
        return f"{self.table}.{self.key}" if self.key else self.table

    @property
    def is_secret(self) -> bool:
        return _is_secret(self.table, self.entry or self.key)

    @property
    def name(self) -> str:
        return f"{self.setting}.{self.entry}" if self.entry else self.setting


def load_settings(config: Path | None, sets: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the checked settings of all sources.

    `sets` are texts `table.key=value`; behind a second dot is an entry: `events.roles.cart.add=positive`.
    Names from the environment are lower-cased: `AFRESH_EVENTS__ROLES__BUY` sets `events.roles.buy`.
    Raise `UsageError` with one line for anything unknown, wrong or missing.
    """
    return resolve(config, sets, environ)[0]


def resolve(config: Path | None, sets: Sequence[str], environ: Mapping[str, str]) -> tuple[Settings, Origins]:
    """Return the settings as `load_settings` does, and the origin of each value."""
    givens = _by_model((*_from_file(config), *_from_environment(environ), *_from_flags(sets)))
    types = TYPES | _model_types(givens)
    values: dict[str, dict[str, Any]] = {given.table: {} for given in givens}
    origins: Origins = {}
    for given in givens:
        converted = _convert(given, _find(given, types))
        before = values[given.table].get(given.key)
        if given.entry and isinstance(before, dict):
            converted = {**before, **converted}
        values[given.table][given.key] = converted
        origins[given.setting] = given.origin
    if models := {name: values[name] for name in values if name.startswith(MODEL)}:
        values.setdefault("model", {})["tables"] = _not_default(models)
    settings = Settings(**{name: table(**values.get(name, {})) for name, table in TABLES.items()})
    _check_models(settings)
    return check(settings, origins), origins


def _by_model(givens: Iterable[Given]) -> list[Given]:
    """Return the values; those of a [model.NAME] table one by one, as of a table of that name."""
    out = []
    for given in givens:
        options = {given.entry: given.value} if given.entry else given.value
        table = f"{MODEL}{given.key}"
        if given.table == "model" and table not in TYPES and isinstance(options, dict):
            out += [given._replace(table=table, key=key, entry="", value=options[key]) for key in options]
        else:
            out.append(given)
    return out


def _model_types(givens: Sequence[Given]) -> dict[str, Any]:
    """Return the type of each setting in a [model.NAME] table."""
    tables = {given.table: given.origin for given in givens if given.table.startswith(MODEL)}
    if not tables:
        return {}
    from pipeline.models.registry import MODELS  # imports torch

    named = {given.table: given.value for given in givens if given.key == "type"}
    types: dict[str, Any] = {}
    for table, origin in tables.items():
        kind = named.get(table, table.removeprefix(MODEL))
        if kind not in MODELS:
            raise wrong(f"{table}.type", kind, origin, f"one of {', '.join(MODELS)}")
        fields = msgspec.structs.fields(MODELS[kind].config)
        types |= {f"{table}.type": str} | {f"{table}.{field.name}": field.type for field in fields}
    return types


def _not_default(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the options of each model, without those that have their defaults."""
    from pipeline.models.registry import MODELS

    out = {}
    for table, options in tables.items():
        name = table.removeprefix(MODEL)
        default = msgspec.to_builtins(MODELS[options.get("type", name)].config())
        changed = {key: value for key, value in options.items() if value != default.get(key)}
        if changed:
            out[name] = changed
    return out


def _check_models(settings: Settings) -> None:
    """Raise `UsageError` for an unknown model, and for settings of a model that contradict each other."""
    model = settings.model
    if (model.name, model.shadows, model.tables) == ("attention", [], {}):
        return  # without the import of torch
    from pipeline.models.registry import configured

    try:
        configured(model)
    except ValueError as error:
        raise UsageError(str(error)) from None


def describe(settings: Settings) -> str:
    """Return the settings as TOML, one line a key, with secrets hidden.

    >>> describe(load_settings(None, ["kafka.group_id=shop"], {})).splitlines()[1]
    'kafka.group_id = "shop"'
    """
    return "\n".join(f"{key} = {value}" for key, value in shown_values(settings).items())


def shown_values(settings: Settings) -> dict[str, str]:
    """Return every key with its value as TOML, secrets hidden."""
    shown = {
        f"{table}.{key}": _as_toml(value, table, key)
        for table in TABLES
        for key, value in msgspec.structs.asdict(getattr(settings, table)).items()
        if value is not None and key != "tables"  # TOML has no null; a missing key has its default
    }
    for name, options in settings.model.tables.items():
        shown |= {f"{MODEL}{name}.{key}": _as_toml(value, "model", key) for key, value in options.items()}
    return shown


def _from_file(config: Path | None) -> Iterator[Given]:
    if config is None:
        return
    origin = f"file {config}"
    try:
        document = tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--config {config}: {error.strerror}; expected a readable TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {config}: expected TOML in UTF-8; {error}") from None
    for table, content in document.items():
        if table not in TABLES or not isinstance(content, dict):
            raise _unknown(table, content, origin, list(TYPES))
        for key, value in content.items():
            yield Given(table, key, "", value, None, origin)


def _from_environment(environ: Mapping[str, str]) -> Iterator[Given]:
    for name in sorted(environ):
        if name.startswith(PREFIX) and "__" in name:
            path = name.removeprefix(PREFIX).lower().split("__", 2)
            yield _typed(path, environ[name], f"environment {name}")


def _from_flags(sets: Sequence[str]) -> Iterator[Given]:
    for text in sets:
        name, equals, raw = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected table.key=value, such as --set batch.max_events=128")
        yield _typed(name.strip().split(".", 2), raw, "--set")


def _typed(path: list[str], raw: str, origin: str) -> Given:
    table, key, entry = (*path, "", "")[:3]
    value: object = raw
    if "\n" not in raw and not _is_secret(table, entry or key):  # a password is never parsed
        with contextlib.suppress(tomllib.TOMLDecodeError):  # plain text
            value = tomllib.loads(f"value = {raw}")["value"]
    return Given(table, key, entry, value, raw, origin)


def _find(given: Given, types: Mapping[str, Any]) -> Any:
    """Return the type of a value's setting. Raise `UsageError` for an unknown name."""
    kind = types.get(given.setting)
    if kind is None:
        raise _unknown(given.name, given.value, given.origin, list(types))
    info = inspect.type_info(kind)
    if given.entry and entry_type(info) is None:
        expected = f"a known setting; {given.setting} has no entries, it is {words(info)}"
        raise wrong(given.name, given.value, given.origin, expected)
    if isinstance(given.value, dict) and not given.entry:
        for entry, value in given.value.items():
            _check_name(given._replace(entry=entry, value=value))
    else:
        _check_name(given)
    return kind


def _check_name(given: Given) -> None:
    """Raise `UsageError` for an unknown entry, and for a secret outside the environment."""
    fixed = ENTRY_NAMES.get(given.setting)
    if given.entry and fixed and given.entry not in fixed:
        raise _unknown(given.name, given.value, given.origin, [f"{given.setting}.{each}" for each in fixed])
    if given.is_secret and given.value and not given.origin.startswith("environment"):
        variable = PREFIX + given.name.upper().replace(".", "__")
        raise UsageError(
            f"{given.name} ({given.origin}): a secret comes from the environment only: set {variable}"
        )


def _convert(given: Given, kind: Any) -> Any:
    """Return the value as the setting's type; typed text is itself if it is TOML of another type."""
    text = None if isinstance(given.value, dict | list) else given.raw
    for value, strict in ((given.value, True), (text, False)):
        if value is None:
            continue
        try:
            converted = msgspec.convert({given.entry: value} if given.entry else value, kind, strict=strict)
        except msgspec.ValidationError:
            continue
        numbers = converted.values() if isinstance(converted, dict) else [converted]
        if all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            return converted
    info = inspect.type_info(kind)
    shown = HIDDEN if given.is_secret else given.value
    expected = (given.entry and entry_type(info)) or info
    raise wrong(given.name, shown, given.origin, words(expected))


def _unknown(name: str, value: object, origin: str, known: Sequence[str]) -> UsageError:
    """Return the error of an unknown setting, with the nearest known one."""
    if isinstance(value, dict) and "." not in name:  # its content may be a secret, and is not shown
        tables = difflib.get_close_matches(name, TABLES, 1, 0.6)
        meant = f"; did you mean [{tables[0]}]?" if tables else f", one of {TABLE_NAMES}"
        return UsageError(f"[{name}] ({origin}): expected a known table{meant}")
    if name.startswith(MODEL):
        known = [*known, *_model_types([Given(f"{MODEL}attention", "", "", None, None, origin)])]
    in_another_table = [key for key in known if key.endswith(f".{name.rpartition('.')[2]}")]
    close = in_another_table or difflib.get_close_matches(name, known, 1, 0.6)
    shown = HIDDEN if SECRET.search(" ".join([name, *close])) else value  # a misspelt password is a secret
    if close:
        return wrong(name, shown, origin, f"a known setting; did you mean {close[0]}?")
    siblings = [key for key in known if key.startswith(f"{name.partition('.')[0]}.")]
    return wrong(name, shown, origin, f"a known setting, one of {', '.join(siblings) or TABLE_NAMES}")


def _is_secret(table: str, name: str) -> bool:
    return table == "kafka" and SECRET.search(name) is not None


def _as_toml(value: object, table: str, name: str) -> str:
    match value:
        case str() if value and _is_secret(table, name):
            return json.dumps(HIDDEN)
        case str():
            shown = URL_LOGIN.sub(f"//{HIDDEN}@", value)
            return json.dumps(shown, ensure_ascii=False).replace("\x7f", "\\u007f")
        case dict():
            pairs = [
                f"{_as_toml(key, table, '')} = {_as_toml(each, table, key)}" for key, each in value.items()
            ]
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(_as_toml(each, table, name) for each in value) + "]"
    return json.dumps(value)  # true, false and numbers are written as in JSON
