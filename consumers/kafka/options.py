"""Check `[kafka] options`: the options of kafka-python that take a text, a number, or true and false.

Their types are those of the client's defaults. The clients check few options: a wrong one would be a
traceback somewhere, or a client that never returns.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

OURS = frozenset(
    {
        "acks", "auto_offset_reset", "bootstrap_servers", "bootstrap_timeout_ms", "enable_auto_commit",
        "enable_idempotence", "group_id", "group_instance_id", "isolation_level", "key_deserializer",
        "key_serializer", "partition_assignment_strategy", "partitioner", "transactional_id",
        "value_deserializer", "value_serializer", "security_protocol", "sasl_mechanism",
        "sasl_plain_username", "sasl_plain_password", "ssl_cafile",
    }
)  # fmt: skip
INSTEAD = {"bootstrap_timeout_ms": "set kafka.start_timeout_s"}
DEFAULTS = {**KafkaAdminClient.DEFAULT_CONFIG, **KafkaProducer.DEFAULT_CONFIG, **KafkaConsumer.DEFAULT_CONFIG}
OBJECTS = frozenset({"sasl_oauth_token_provider", "ssl_context"})  # None by default, else Python objects
WHOLE = frozenset({"consumer_timeout_ms", "receive_buffer_bytes", "retries", "send_buffer_bytes"})
FILES = frozenset({"ssl_certfile", "ssl_crlfile", "ssl_keyfile"})
MAY_BE_ZERO = frozenset(
    {
        "auto_commit_interval_ms", "batch_size", "fetch_max_wait_ms", "linger_ms", "reconnect_backoff_max_ms",
        "reconnect_backoff_ms", "retry_backoff_ms",
    }
)  # fmt: skip
MAX = {"max_in_flight_requests_per_connection": 5}  # more would duplicate or reorder rankings
MAX_INT32 = 2_147_483_647  # most go into requests as 32 bits
CHOICES = {
    "client_dns_lookup": ("use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"),
    "compression_type": ("none", "gzip", "snappy", "lz4", "zstd"),
}
VERSION = re.compile(r"\d+(\.\d+)+")
BELOW = (  # each must be smaller than the next
    ("fetch_max_wait_ms", "request_timeout_ms"),
    ("request_timeout_ms", "connections_max_idle_ms"),
    ("heartbeat_interval_ms", "session_timeout_ms"),
)

Complaints = Iterator[tuple[str, object, str]]  # option, value, what was expected


def wrong_options(options: Mapping[str, object], effective: Mapping[str, object]) -> Complaints:
    """Yield each wrong option: its name, its value (passwords hidden), and what was expected.

    `effective` are all options of the clients: some must be smaller than others.

    >>> list(wrong_options({"linger_ms": -1}, {}))
    [('linger_ms', -1, 'a whole number, at least 0 and at most 2147483647')]
    """
    is_right = True
    for option, value in options.items():
        if expected := _expected(option, value):
            is_right = False
            yield option, "********" if "password" in option else value, expected
    known = DEFAULTS | dict(effective) | dict(options)
    for small, large in BELOW if is_right else ():
        if {small, large} & options.keys() and not known[small] < known[large]:
            if small in options:
                yield small, known[small], f"less than kafka.options.{large} = {known[large]}"
            else:
                yield large, known[large], f"more than kafka.options.{small} = {known[small]}"


def _expected(option: str, value: object) -> str:
    """Return what was expected of an option; "" if it is right."""
    if option in OURS:
        return f"no such option: afresh sets this option itself; {INSTEAD.get(option, 'remove it')}"
    if option not in DEFAULTS:
        near = difflib.get_close_matches(option, sorted(DEFAULTS.keys() - OURS), n=1)
        return "an option of kafka-python" + (f"; did you mean {near[0]}?" if near else "")
    default = DEFAULTS[option]
    if option in CHOICES:
        return "" if value in CHOICES[option] else f"one of {', '.join(CHOICES[option])}"
    if option in FILES:
        return "" if isinstance(value, str) and Path(value).is_file() else "a file that exists"
    if option == "api_version":
        is_version = isinstance(value, str) and VERSION.fullmatch(value)
        return "" if is_version else 'a version in quotes, such as "3.9"'
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int) or option in WHOLE:
        return _expected_number(option, value)
    if option in OBJECTS or not isinstance(default, str | None):
        return "nothing: only a Python program can set this option; remove it"
    return "" if isinstance(value, str) and value else "text"


def _expected_number(option: str, value: object) -> str:
    least, most = int(option not in MAY_BE_ZERO), MAX.get(option, MAX_INT32)
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return ""
    return f"a whole number, at least {least} and at most {most}"


def for_client(options: Mapping[str, object], make: Callable[..., object]) -> dict[str, object]:
    """Return the options that a client knows, in its own form."""
    known: Mapping[str, object] = make.DEFAULT_CONFIG  # type: ignore[attr-defined]
    taken = {option: value for option, value in options.items() if option in known}
    if taken.get("compression_type") == "none":  # Kafka's name for the client's None
        del taken["compression_type"]
    if "api_version" in taken:
        taken["api_version"] = tuple(map(int, str(taken["api_version"]).split(".")))
    return taken
