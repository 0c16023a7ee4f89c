"""The files of deploy/: they parse, what they name exists, and what they state is what the code does."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from consumers.memory import MemoryRecord
from pipeline.app.config import load_settings
from pipeline.events.batch import ItemChange, Polled, Span
from pipeline.events.decode import Decoder
from pipeline.events.fields import READ_FIELDS
from pipeline.events.items import item_news
from pipeline.events.records import DEFAULT_USER, DriftAlarm, Ranking
from pipeline.models.registry import MODELS
from pipeline.settings import EVENT_FIELDS, Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
REFERENCE = "#/components/schemas/{name}"


def read_yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


def read_config() -> Settings:
    return load_settings(DEPLOY / "config/afresh.toml", [], {})


COMPOSE, ASYNCAPI = read_yaml("compose.yaml"), read_yaml("asyncapi.yaml")
SERVICES, SCHEMAS = COMPOSE["services"], ASYNCAPI["components"]["schemas"]
MESSAGES = ASYNCAPI["components"]["messages"]


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions without comments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.M)
    lines = filter(str.strip, text.replace("\\\n", " ").splitlines())
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def last(word: str) -> str:
    return [rest for each, rest in instructions() if each == word][-1]


def test_the_image_copies_existing_paths_and_all_that_the_build_needs() -> None:
    stages = [rest.partition(" AS ")[2] for word, rest in instructions() if word == "FROM"]
    copies = [shlex.split(rest)[:-1] for word, rest in instructions() if word == "COPY"]
    from_stages = [sources[0] for sources in copies if sources[0].startswith("--from=")]
    assert {source.removeprefix("--from=") for source in from_stages} <= set(stages)
    copied = [source for sources in copies if sources[0] not in from_stages for source in sources]
    for source in copied:
        assert (ROOT / source).exists(), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert needed | {"constraints.txt", "deploy/config/afresh.toml"} == set(copied)


def test_the_image_runs_the_service_as_an_unprivileged_user() -> None:
    words = [word for word, _ in instructions()]
    known = "FROM WORKDIR RUN COPY ARG ENV USER VOLUME EXPOSE HEALTHCHECK STOPSIGNAL ENTRYPOINT CMD"
    assert set(words) <= set(known.split())
    assert last("USER") not in ("root", "0")
    assert words.index("USER") > max(n for n, word in enumerate(words) if word in ("RUN", "COPY"))
    assert last("ENTRYPOINT") == '["afresh"]'
    assert last("CMD") == '["run", "--config", "/etc/afresh/afresh.toml"]'


def test_the_torch_index_is_an_argument_and_no_host_is_named() -> None:
    assert ("ARG", 'PIP_EXTRA_INDEX_URL=""') in instructions()
    text = (DEPLOY / "Dockerfile").read_text("utf-8") + (DEPLOY / "compose.yaml").read_text("utf-8")
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= {"127.0.0.1"}


def test_the_image_healthcheck_is_the_live_endpoint() -> None:
    port = read_config().metrics.address.rpartition(":")[2]
    assert f"http://127.0.0.1:{port}/live" in last("HEALTHCHECK")
    assert last("EXPOSE") == port


def test_the_example_configuration_is_valid_and_names_every_key() -> None:
    read_config()
    text = (DEPLOY / "config/afresh.toml").read_text("utf-8")
    for table in msgspec.structs.fields(Settings):
        part = text.partition(f"[{table.name}]\n")[2].partition("\n[")[0]
        keys = re.findall(r"^(?:# )?(\w+) = ", part, re.M)
        left_out = {"sasl_password", "tables"}
        assert set(keys) == {key.name for key in msgspec.structs.fields(table.type)} - left_out
    for name in ("attention", "sasrec", "ncf"):
        part = text.partition(f"[model.{name}]\n")[2].partition("\n[")[0].partition("\n# [")[0]
        keys = re.findall(r"^(?:# )?(\w+) = ", part, re.M)
        assert set(keys) == {key.name for key in msgspec.structs.fields(MODELS[name].config)}


def test_a_key_that_is_commented_out_shows_its_default(tmp_path: Path) -> None:
    text = (DEPLOY / "config/afresh.toml").read_text("utf-8")
    config = tmp_path / "afresh.toml"
    examples = ("# exclude", "# block", "# type", "# dim = 128")  # examples of values, not defaults
    kept = [line for line in text.splitlines() if not line.startswith(examples)]
    commented = [re.sub(r"^# (?=\w+ = )", "", line) for line in kept if re.match(r"\[|# \w+ = ", line)]
    config.write_text("\n".join(commented), "utf-8")
    assert load_settings(config, [], {}) == Settings()


def test_compose_services_depend_on_services_and_mount_existing_paths() -> None:
    assert set(SERVICES) == {"kafka", "topics", "afresh", "prometheus", "grafana"}
    for name, service in SERVICES.items():
        assert set(service.get("depends_on", ())) <= SERVICES.keys(), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            known = (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert known, source
    build = SERVICES["afresh"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    mounts = [volume.split(":")[1] for volume in SERVICES["afresh"]["volumes"]]
    assert any(read_config().checkpoint.path.startswith(f"{mount}/") for mount in mounts)
    assert last("VOLUME") in mounts


def test_afresh_connects_to_the_advertised_listener() -> None:
    kafka = SERVICES["kafka"]
    advertised = kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    inside = re.search(r"INSIDE://([^,]+)", advertised)
    assert inside is not None
    assert read_config().kafka.bootstrap_servers == inside[1]
    assert inside[1] in SERVICES["topics"]["command"][0]
    listeners = dict(re.findall(r"(\w+)://[\w.]*:(\d+)", kafka["environment"]["KAFKA_LISTENERS"]))
    security = dict(re.findall(r"(\w+):(\w+)", kafka["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]))
    assert set(listeners) == set(security) == {"INSIDE", "OUTSIDE", "CONTROLLER"}
    assert dict(re.findall(r"(\w+)://[\w.]*:(\d+)", advertised)).items() <= listeners.items()


def test_ports_are_published_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_topics_are_created_under_their_configured_names_and_compacted_if_keyed() -> None:
    script = SERVICES["topics"]["command"][0]
    made = dict(re.findall(r"create --topic (\S+)(.*)", script))
    topics = read_config().topics
    others = {topics.items, topics.recommendations, topics.dead_letters, topics.drift}
    assert set(made) == {*topics.event_topics()} | others
    compacted = {name for name, options in made.items() if "cleanup.policy=compact" in options}
    assert compacted == {topics.items, topics.recommendations}


def test_prometheus_scrapes_the_metrics_address() -> None:
    scrape = read_yaml("prometheus/prometheus.yml")["scrape_configs"][0]
    targets = scrape["static_configs"][0]["targets"]
    assert targets == [f"afresh:{read_config().metrics.address.rpartition(':')[2]}"]
    assert scrape.get("metrics_path", "/metrics") == "/metrics"


def references(node: object) -> list[str]:
    if isinstance(node, dict):
        below = [each for value in node.values() for each in references(value)]
        return [*below, node["$ref"]] if "$ref" in node else below
    return [each for value in node for each in references(value)] if isinstance(node, list) else []


def test_every_reference_of_asyncapi_resolves() -> None:
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    for reference in references(ASYNCAPI):
        node = ASYNCAPI
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_the_channels_are_the_default_topics() -> None:
    topics = Settings().topics
    assert {name: channel["address"] for name, channel in ASYNCAPI["channels"].items()} == {
        "events": next(iter(topics.event_topics())),
        "items": topics.items,
        "recommendations": topics.recommendations,
        "deadLetters": topics.dead_letters,
        "drift": topics.drift,
    }
    used = {operation["channel"]["$ref"].rpartition("/")[2] for operation in ASYNCAPI["operations"].values()}
    assert used == set(ASYNCAPI["channels"])
    assert DEFAULT_USER in ASYNCAPI["channels"]["recommendations"]["description"]


def bare(schema: object) -> object:
    if isinstance(schema, dict):
        kept = {key: bare(value) for key, value in schema.items() if key not in ("title", "description")}
        return {key: sorted(value) if key == "required" else value for key, value in kept.items()}
    return [bare(each) for each in schema] if isinstance(schema, list) else schema


def test_the_schemas_of_written_records_are_those_of_the_code() -> None:
    _, written = msgspec.json.schema_components([Ranking, DriftAlarm], ref_template=REFERENCE)
    assert set(written) == {"Ranking", "RankedItem", "DriftAlarm"}
    for name, schema in written.items():
        assert bare(SCHEMAS[name]) == bare(schema), name
    for name, struct in (("ranking", Ranking), ("driftAlarm", DriftAlarm)):
        for example in MESSAGES[name]["examples"]:
            msgspec.convert(example["payload"], struct)


def decode(payload: dict[str, Any]) -> str:
    """Return "" for a good event, else the reason."""
    settings = Settings()
    record = MemoryRecord("events", 0, 0, 1_760_000_000_000, None, msgspec.json.encode(payload))
    polled = Polled((Span("events", 0, 0, 1),), [record], np.zeros(1, np.int32))
    decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
    raw = decoder.decode(0, 1_760_000_001_000, polled)
    assert len(raw.events) + len(raw.rejects) == 1
    return raw.rejects[0].reason if raw.rejects else ""


def test_the_example_event_is_read_and_required_fields_are_required() -> None:
    schema = SCHEMAS["Event"]
    payload = MESSAGES["event"]["examples"][0]["payload"]
    assert tuple(schema["properties"]) == EVENT_FIELDS
    assert decode(payload) == ""
    for field in EVENT_FIELDS:
        rest = {name: value for name, value in payload.items() if name != field}
        assert decode(rest) == ("missing_field" if field in schema["required"] else ""), field


def test_types_and_sizes_of_event_fields_are_those_that_are_read() -> None:
    schema = SCHEMAS["Event"]
    payload = MESSAGES["event"]["examples"][0]["payload"]
    good = {"string": "x", "integer": 1_760_000_000_000, "number": 0.5, "object": {"page": "home"}}
    limits = SCHEMAS["EventId"]
    for field, kind in schema["properties"].items():
        named = limits["type"] if "$ref" in kind else kind["type"]
        for each in named if isinstance(named, list) else [named]:
            assert decode({**payload, field: good[each]}) == "", field
            if field in READ_FIELDS:  # the others may have any form
                assert decode({**payload, field: [good[each]]}) == "wrong_type", field
        takes_numbers = named in (["string", "integer"], "integer", "number") or field not in READ_FIELDS
        assert (decode({**payload, field: 1_760_000_000_000}) == "") == takes_numbers, field
    assert decode({**payload, "user_id": "x" * limits["maxLength"]}) == ""
    assert decode({**payload, "user_id": "x" * (limits["maxLength"] + 1)}) == "long_id"
    assert decode({**payload, "user_id": "x" * (limits["minLength"] - 1)}) == "empty_id"


def item_change(key: str, payload: object) -> ItemChange | str:
    """Return the change in a record of the items topic, or the reason for its rejection."""
    value = None if payload is None else msgspec.json.encode(payload)
    update = item_news([MemoryRecord("items", 0, 0, 1_760_000_000_000, key.encode(), value)])
    (found,) = update.changes or update.bad
    return found if isinstance(found, ItemChange) else found.reason


def test_an_item_is_read_as_described() -> None:
    properties = SCHEMAS["Item"]["properties"]
    assert set(properties) == {"item_id", "available"}
    (example,) = MESSAGES["item"]["examples"]
    assert item_change("film-7", example["payload"]) == ItemChange("film-7", False)
    default = properties["available"]["default"]
    assert item_change("k", {"item_id": "film-7"}) == ItemChange("film-7", default)
    assert item_change("film-7", {"available": True, "colour": "red"}) == ItemChange("film-7", True)
    assert set(properties["available"]["type"]) == {"boolean", "number", "string", "null"}
    for value, shown in ((False, False), (None, False), ("off", False), (0, False), ("Y", True), (0.5, True)):
        assert item_change("film-7", {"available": value}) == ItemChange("film-7", shown)
    assert item_change("film-7", {"colour": "red"}) == "missing_field"
    assert properties["item_id"]["$ref"] == "#/components/schemas/EventId"  # a whole number is its digits
    assert item_change("k", {"item_id": 7}) == ItemChange("7", True)
    for field, wrong in (("item_id", ["film-7"]), ("available", "perhaps")):
        assert item_change("film-7", {field: wrong}) == "wrong_type"
    assert MESSAGES["itemTombstone"]["payload"] == {"type": "null"}
    assert item_change("film-7", None) == ItemChange("film-7", False)
