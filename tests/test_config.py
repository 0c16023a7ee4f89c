"""The layers of the configuration, its errors, and what it shows of itself."""

import tomllib
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaProducer

from consumers.kafka.options import DEFAULTS, OURS, for_client, wrong_options
from pipeline.app.cli import main
from pipeline.app.config import describe, load_settings
from pipeline.app.wiring import partition_counts_warning
from pipeline.errors import UsageError
from pipeline.events.batch import TopicPartition
from pipeline.settings import Settings


def write(folder: Path, text: str) -> Path:
    path = folder / "afresh.toml"
    path.write_text(text, "utf-8")
    return path


def error_of(config: Path | None = None, sets: tuple[str, ...] = (), **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_settings(config, sets, environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_flags_win_over_the_environment_that_over_the_file_that_over_the_default(tmp_path: Path) -> None:
    config = write(tmp_path, "[batch]\nmax_events = 1\nmax_wait_ms = 1\n[rank]\nk = 1")
    environ = {"AFRESH_BATCH__MAX_EVENTS": "2", "AFRESH_RANK__K": "2"}
    settings = load_settings(config, ["rank.k=3"], environ)
    assert (settings.batch.max_wait_ms, settings.batch.max_events, settings.rank.k) == (1, 2, 3)
    assert settings.model == Settings().model
    assert load_settings(None, ["rank.k=3", "rank.k=4"], {}).rank.k == 4


def test_without_sources_every_setting_has_its_default_whatever_variables_others_have() -> None:
    environ = {"AFRESH_DATA": "x", "AFRESH_PORT_9464_TCP": "x", "OTHER__KEY": "x", "HOME": "x"}
    assert load_settings(None, [], environ) == Settings()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("kafka.group_id=007", "group_id", "007"),
        ("kafka.group_id=12", "group_id", "12"),
        ("kafka.group_id=true", "group_id", "true"),
        ("kafka.group_id='12'", "group_id", "12"),
        ("kafka.group_id=a=b", "group_id", "a=b"),
        ("kafka.transactions=true", "transactions", True),
        ("kafka.transactions=False", "transactions", False),
        ("kafka.broker_timeout_s=5", "broker_timeout_s", 5.0),
        ("kafka.options={fetch_min_bytes = 1}", "options", {"fetch_min_bytes": 1}),
        ('kafka.options.client_id="5"', "options", {"client_id": "5"}),
        ("kafka.options.client_rack=eu", "options", {"client_rack": "eu"}),
    ],
)
def test_typed_text_is_a_toml_value_where_that_fits(text: str, key: str, value: object) -> None:
    read = getattr(load_settings(None, [text], {}).kafka, key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_size=big", "'big' (--set): expected a whole number, at least 0"),
        ("request_timeout_ms=0", "0 (--set): expected a whole number, at least 1"),
        ("request_timeout_ms=20", "expected more than kafka.options.fetch_max_wait_ms = 25"),
        ("session_timeout_ms=500", "expected more than kafka.options.heartbeat_interval_ms = 1000"),
        ("connections_max_idle_ms=9", "expected more than kafka.options.request_timeout_ms = 30000"),
        ("fetch_max_bytes=3000000000", "at least 1 and at most 2147483647"),
        ("max_in_flight_requests_per_connection=6", "at least 1 and at most 5"),
        ("check_crcs=1", "expected true or false"),
        ("send_buffer_bytes=true", "expected a whole number"),
        ("compression_type=zip", "expected one of none, gzip, snappy, lz4, zstd"),
        ("client_id=7", "expected text"),
        ("ssl_keyfile=/nowhere", "expected a file that exists"),
        ("api_version=3.9", 'such as "3.9"'),
        ("ssl_context=x", "only a Python program can set this option"),
        ("lingerms=5", "did you mean linger_ms?"),
        ("acks=1", "afresh sets this option itself"),
        ("bootstrap_timeout_ms=9", "set kafka.start_timeout_s"),
    ],
)
def test_a_wrong_option_of_the_client_is_one_line(text: str, words: str) -> None:
    message = error_of(sets=(f"kafka.options.{text}",))
    assert message.startswith(f"kafka.options.{text.partition('=')[0]} = ")
    assert words in message


def test_the_defaults_of_the_client_and_usual_values_are_right_options() -> None:
    usual = {key: value for key, value in DEFAULTS.items() if isinstance(value, bool | int | str) and value}
    usual = {key: value for key, value in usual.items() if key not in OURS} | {
        "compression_type": "zstd", "linger_ms": 0, "send_buffer_bytes": 65_536, "api_version": "3.9",
        "ssl_password": "secret", "retries": 5, "sasl_kerberos_domain_name": "kafka.example",
    }  # fmt: skip
    assert len(usual) > 35
    assert list(wrong_options(usual, {})) == []
    options = for_client(usual | {"compression_type": "none"}, KafkaProducer)
    assert options["api_version"] == (3, 9)
    assert "compression_type" not in options
    assert "session_timeout_ms" not in options


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("command", ["run", "watch", "check", "replay no.csv", "simulate", "evaluate no.csv"])
def test_every_command_ends_at_a_wrong_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = ["--set", "kafka.options.batch_size=big", "--log-level", "error"]
    assert main([*command.split(), *option]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("afresh: kafka.options.batch_size = 'big' (--set): expected a whole number")
    assert shown.err.count("\n") == 1


def test_entries_are_merged_over_the_layers_and_may_hold_dots(tmp_path: Path) -> None:
    config = write(tmp_path, '[events.roles]\nbuy = "positive"\nsee = "neutral"')
    environ = {"AFRESH_EVENTS__ROLES__SEE": "exposure"}
    settings = load_settings(config, ["events.roles.cart.add=neutral"], environ)
    assert settings.events.roles == {"buy": "positive", "see": "exposure", "cart.add": "neutral"}


def test_topics_are_an_array_or_a_table_and_no_excluded_type_differs_from_the_default() -> None:
    assert load_settings(None, [], {}).rank.exclude_event_types is None
    assert load_settings(None, ["rank.exclude_event_types=[]"], {}).rank.exclude_event_types == []
    array = load_settings(None, ['topics.events=["a", "b"]'], {}).topics
    assert array.event_topics() == {"a": "click", "b": "click"}
    table = load_settings(None, ["topics.events.shop.orders=purchase"], {}).topics
    assert table.event_topics() == {"shop.orders": "purchase"}


def test_an_unknown_key_names_the_nearest_one_and_its_origin(tmp_path: Path) -> None:
    message = error_of(AFRESH_MODEL__ATTENTION__DIMS="8")
    assert "(environment AFRESH_MODEL__ATTENTION__DIMS): expected a known setting" in message
    assert message.endswith("did you mean model.attention.dim?")
    config = write(tmp_path, "[rank]\nzzzzzz = 1")
    expected = f"rank.zzzzzz = 1 (file {config}): expected a known setting, one of rank.k, rank.exclude_event"
    assert error_of(config).startswith(expected)


def test_an_unknown_table_names_the_nearest_one_or_all_and_nothing_that_it_holds(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, "[zzzz]"))
    assert "[zzzz] (file " in message
    assert "expected a known table, one of [kafka], [topics]" in message
    assert "expected a known setting" in error_of(write(tmp_path, "kafka = 1"))
    config = write(tmp_path, '[kafkas]\nsasl_password = "hush"')
    assert error_of(config) == f"[kafkas] (file {config}): expected a known table; did you mean [kafka]?"


SASL = ("kafka.security_protocol=SASL_SSL", "kafka.sasl_mechanism=PLAIN", "kafka.sasl_username=me")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["batch.max_events=0"], "batch.max_events = 0 (--set): expected a whole number, at least 1"),
        (["model.attention.dim=2000"], "expected a whole number, at least 4 and at most 1024"),
        (["model.name=atention"], "expected one of attention, sasrec, ncf, popularity"),
        (["kafka.transactions=yes"], "kafka.transactions = 'yes' (--set): expected true or false"),
        (["rank.exclude_event_types=purchase"], "'purchase' (--set): expected an array of text"),
        (["checkpoint.interval_s=nan"], "expected a finite number, above 0"),
        (["events.weights.buy=inf"], "weights.buy = inf (--set): expected a finite number, at least 0"),
        (["events.positive_from.rating=good"], "positive_from.rating = 'good' (--set): expected a finite"),
        (["events.time_unit=us"], "events.time_unit = 'us' (--set): expected one of auto, iso, ms, s"),
        (["events.roles.buy=good"], "events.roles.buy = 'good' (--set): expected one of exposure, ignore"),
        (["batch.max_events"], "--set batch.max_events: expected table.key=value"),
        (["checkpoint.path=s3://b/c"], "expected a local folder, as checkpoint.path is remote (s3)"),
        (["checkpoint.path=/c", "checkpoint.journal=s3://b/j"], "expected a local folder, as it is written"),
        (["checkpoint.journal=/j"], "'/j' (--set): expected nothing while checkpoint.path"),
        (["kafka.worker_id=a/b"], "kafka.worker_id = 'a/b' (--set): expected a folder name"),
        (["kafka.bootstrap_servers=kafka:9092,"], "expected host:port, several with commas"),
        (["kafka.bootstrap_servers=http://kafka:9092"], "expected host:port"),
        (["kafka.group_id="], "kafka.group_id = '' (--set): expected text that is not empty"),
        (["kafka.ssl_cafile=/no/such/file"], "expected a file that exists"),
        (["kafka.sasl_username=me"], "kafka.security_protocol = 'PLAINTEXT' (default): expected SASL_SSL or"),
        (SASL[:1], "kafka.sasl_mechanism = '' (default): expected one of PLAIN, SCRAM-SHA-256"),
        (SASL[:2], "kafka.sasl_username = '' (default): expected a name"),
        (SASL, "expected a password in the variable AFRESH_KAFKA__SASL_PASSWORD"),
        (["topics.events=[]"], "expected an array of a topic name of letters"),
        (["topics.items=a b"], "topics.items = 'a b' (--set): expected a topic name"),
        (["topics.recommendations=events"], "a topic of its own; topics.events has this name too"),
        (["rank.exclude_event_types=['']"], "expected an array of text that is not empty"),
        (["items.fields.item_id="], "expected text that is not empty or an array of text that is not empty"),
        (["items.fields.item_id=[]"], "or an array of text that is not empty, at least one"),
        (["items.fields.available=$key"], "expected a field of the records: only item_id is read from"),
        (["items.fields.available=item_id"], "a name of its own; item_id is read from 'item_id' too"),
        (["items.fields.item_id=items[].id"], "expected a path without an array: a record of the items"),
        (["items.fields.sku=id"], "did you mean items.fields.item_id?"),
        (["events.fields.user_id="], "expected text that is not empty"),
        (["events.fields.item_id=$key"], "'$key' (--set): expected a field of the records"),
        (["events.positive_from.returned=3"], "expected a type of the role positive, not negative"),
        (["events.positive_from.stars=3", "events.roles.stars=neutral"], "role positive, not neutral"),
        (["metrics.address=9464"], "expected host:port, such as 127.0.0.1:9464"),
        (["metrics.address=localhost:99999"], "expected host:port with a port from 0"),
        (["events.fields.user=uid"], "did you mean events.fields.user_id?"),
        (['events.fields={items = "i"}'], "did you mean events.fields.item_id?"),
        (["rank.k.x=1"], "rank.k has no entries, it is a whole number"),
        (["worker_id=w"], "did you mean kafka.worker_id?"),
        (["batch.max_event=3"], "max_event = 3 (--set): expected a known setting; did you mean batch.max_ev"),
    ],
)
def test_a_wrong_configuration_is_one_line_with_what_was_expected(sets: tuple[str, ...], words: str) -> None:
    assert words in error_of(sets=sets)


def test_addresses_of_every_kind_are_accepted() -> None:
    for address in ("", "127.0.0.1:0", "[::1]:9464", "localhost:9464"):
        assert load_settings(None, [f"metrics.address={address}"], {}).metrics.address == address
    servers = "kafka-1.example:9092, 10.0.0.1:9092,[::1]:9092,kafka"
    assert load_settings(None, [f"kafka.bootstrap_servers={servers}"], {}).kafka.bootstrap_servers == servers


def test_a_file_that_cannot_be_read_is_one_line_and_its_values_have_types(tmp_path: Path) -> None:
    assert "expected a whole number" in error_of(write(tmp_path, '[batch]\nmax_events = "512"'))
    assert "No such file or directory; expected a readable TOML file" in error_of(tmp_path / "none.toml")
    assert "expected TOML in UTF-8" in error_of(write(tmp_path, "[kafka"))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'[kafka]\ngroup_id = "\xe9"')
    assert "expected TOML in UTF-8" in error_of(latin)


def test_a_password_comes_from_the_environment_as_it_was_typed() -> None:
    password = '"12 = x"'
    settings = load_settings(None, SASL, {"AFRESH_KAFKA__SASL_PASSWORD": password})
    assert settings.kafka.sasl_password == password


def test_a_secret_in_a_file_or_a_flag_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    message = error_of(sets=("kafka.sasl_password=hunter2",))
    assert message.endswith("a secret comes from the environment only: set AFRESH_KAFKA__SASL_PASSWORD")
    for text in ('[kafka]\nsasl_password = "hunter2"', '[kafka.options]\nssl_password = "hunter2"'):
        message = error_of(write(tmp_path, text))
        assert "a secret comes from the environment only" in message
        assert "hunter2" not in message
    assert "hunter2" not in error_of(sets=("kafka.sasl_pasword=hunter2",))


def test_describe_hides_secrets_and_logins_and_is_toml() -> None:
    environ = {
        "AFRESH_KAFKA__SASL_PASSWORD": "hunter2",
        "AFRESH_KAFKA__OPTIONS__SSL_PASSWORD": "hunter3",
        "AFRESH_CHECKPOINT__PATH": "s3://key:hunter4@bucket/path",
        "AFRESH_CHECKPOINT__JOURNAL": "/var/journal",
    }
    text = describe(load_settings(None, SASL, environ))
    assert "hunter" not in text
    assert 'kafka.sasl_password = "********"' in text
    assert 'kafka.options = {"ssl_password" = "********"}' in text
    assert 'checkpoint.path = "s3://********@bucket/path"' in text


def test_describe_read_back_gives_the_same_settings(tmp_path: Path) -> None:
    sets = ['kafka.group_id=a"b\\c\té\x7f☃😀', "rank.exclude_event_types=['buy']"]
    sets += ["topics.events={'a.b' = 'buy'}", "items.fields.item_id=['sku', 'id']"]
    environ = {"AFRESH_EVENTS__WEIGHTS": "{buy = 2.5, see = 1e-7}", "AFRESH_CHECKPOINT__PATH": "/data"}
    settings = load_settings(None, sets, environ)
    text = describe(settings)
    assert load_settings(write(tmp_path, text), [], {}) == settings
    assert settings.items.fields == {"item_id": ["sku", "id"]}
    assert set(tomllib.loads(text)) == {field.name for field in msgspec.structs.fields(Settings)}


def test_the_journal_lies_beside_a_local_checkpoint() -> None:
    for path, folder in (("/data/c", "/data/c"), ("file:///data/a%20b", "/data/a b"), ("", "")):
        assert load_settings(None, [f"checkpoint.path={path}"], {}).checkpoint.journal == folder
    both = load_settings(None, ["checkpoint.path=s3://b/c", "checkpoint.journal=/data/j"], {})
    assert both.checkpoint.journal == "/data/j"


def test_events_topics_of_unequal_size_are_a_warning() -> None:
    sources = [TopicPartition("clicks", number) for number in range(3)]
    assert not partition_counts_warning(sources)
    assert not partition_counts_warning([*sources, *(each._replace(topic="orders") for each in sources)])
    assert "(clicks 3, orders 1)" in partition_counts_warning([*sources, TopicPartition("orders", 0)])
