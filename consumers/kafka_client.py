"""How afresh speaks to Kafka: client options out of `[kafka]`, and the client's errors in afresh's words.

`kafka.options` goes to every client that knows the key. What the guarantees rest on (offsets, isolation, the
group) is not open to it.
"""

import difflib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import kafka.errors
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError

from consumers.co_partitions import strategies
from consumers.kafka_batches import read_on
from pipeline.errors import AfreshError, BrokerLost, UsageError
from pipeline.settings import KafkaConfig

logger = logging.getLogger(__name__)

# A wrong address is told soon; a broker that goes away later has broker_timeout_s.
BOOTSTRAP_TIMEOUT_MS = 3_000
TELL_S = 3.0  # so long a silence of the broker is told
OURS = frozenset(
    {
        "acks", "auto_offset_reset", "bootstrap_servers", "enable_auto_commit", "enable_idempotence",
        "group_id", "group_instance_id", "isolation_level", "key_deserializer", "key_serializer",
        "partition_assignment_strategy",
        "partitioner", "transactional_id", "value_deserializer",
        "value_serializer", "security_protocol", "sasl_mechanism", "sasl_plain_username",
        "sasl_plain_password", "ssl_cafile",
    }
)  # fmt: skip
DENIED = (
    kafka.errors.AuthorizationError,
    kafka.errors.SaslAuthenticationFailedError,
    kafka.errors.UnsupportedSaslMechanismError,
)
MEMBERSHIP = (
    kafka.errors.CommitFailedError,
    kafka.errors.RebalanceInProgressError,
    kafka.errors.IllegalGenerationError,
    kafka.errors.UnknownMemberIdError,
)  # the next poll mends these

Client = TypeVar("Client")


def connection_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Options that every client shares: address, security, time-outs.

    >>> connection_options(KafkaConfig(bootstrap_servers="10.0.0.7:9092"))["bootstrap_servers"]
    ['10.0.0.7:9092']
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "client_id": f"afresh-{kafka.worker_id}",
        "security_protocol": kafka.security_protocol,
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "request_timeout_ms": request_timeout_ms(kafka),
        "reconnect_backoff_max_ms": 1_000,  # the default of 30 s would outlast the broker by as much
    }
    if kafka.sasl_mechanism:
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.sasl_password,
        }
    if kafka.ssl_cafile:
        options["ssl_cafile"] = kafka.ssl_cafile
    return options


def request_timeout_ms(kafka: KafkaConfig) -> int:
    """Time for one request: well inside `broker_timeout_s`, at most the client's own 30 s."""
    return min(30_000, max(1_000, int(kafka.broker_timeout_s * 500)))


def extra_options(kafka: KafkaConfig, known: Mapping[str, object]) -> dict[str, Any]:
    """Those of `kafka.options` that this client knows. Raise `UsageError` for a key that no client knows, or
    that afresh sets itself."""
    everywhere = {
        *KafkaConsumer.DEFAULT_CONFIG,
        *KafkaProducer.DEFAULT_CONFIG,
        *KafkaAdminClient.DEFAULT_CONFIG,
    }
    for key, value in kafka.options.items():
        if key in OURS:
            raise UsageError(f"kafka.options.{key} = {value!r}: afresh sets this option itself; remove it")
        if key not in everywhere:
            near = difflib.get_close_matches(key, sorted(everywhere), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"kafka.options.{key} = {value!r}: no such option, expected one of kafka-python's{hint}"
            )
    return {key: value for key, value in kafka.options.items() if key in known}


def consumer_options(
    kafka: KafkaConfig, *, in_group: bool, isolation: str = "read_committed"
) -> dict[str, Any]:
    """Options of a consumer that decides about offsets itself; `in_group` False: one that only reads."""
    options = connection_options(kafka) | {
        "group_id": kafka.group_id if in_group else None,
        "group_instance_id": kafka.worker_id if in_group else None,  # a restart takes its old place at once
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # a lost position is an error, never a silent jump
        "isolation_level": isolation,
        "allow_auto_create_topics": False,
        "partition_assignment_strategy": strategies(),
        "heartbeat_interval_ms": 1_000,  # how soon a member hears of a rebalance; each takes two rounds
        "fetch_max_wait_ms": 100,  # a waiting fetch delays the next one to that broker by as much
        "fetch_max_bytes": 4 << 20,  # bounds the records that one poll has to parse
        # the embedded broker answers with all that it has, whatever it was asked for
        "receive_message_max_bytes": 1 << 30,
        "metrics_enabled": False,
    }
    return options | extra_options(kafka, KafkaConsumer.DEFAULT_CONFIG)


def connect(make: Callable[..., Client], options: Mapping[str, Any]) -> Client:
    """Make a client. Raise `UsageError` when no broker answers or an option is refused."""
    servers = ",".join(options["bootstrap_servers"])
    try:
        client = make(**options)
    except DENIED as error:
        raise UsageError(f"the broker at {servers} refused us: {error}; check the table [kafka]") from error
    except (kafka.errors.RetriableError, OSError) as error:
        seconds = options["bootstrap_timeout_ms"] / 1000
        raise UsageError(
            f"no broker answered at kafka.bootstrap_servers = {servers!r} within {seconds:g} s: start one "
            "(`afresh broker` is one for development), or correct the address or the security settings"
        ) from error
    except (KafkaError, ValueError, TypeError, AssertionError) as error:
        raise UsageError(f"kafka.options: the client refused its configuration: {error}") from error
    if isinstance(client, KafkaConsumer):
        read_on(client)
    return client


def open_admin(kafka: KafkaConfig) -> KafkaAdminClient:
    """Make an admin client. Raise `UsageError` as `connect` does."""
    options = connection_options(kafka) | extra_options(kafka, KafkaAdminClient.DEFAULT_CONFIG)
    return connect(KafkaAdminClient, options)


def brief(error: BaseException) -> str:
    """Return the name of a broker's error; what the client adds to it is the whole request, over many lines.

    >>> brief(kafka.errors.PolicyViolationError("Request 'CreateTopicsRequest(version=7, ...)' failed"))
    'PolicyViolationError'
    """
    told = str(error).partition(f"{type(error).__name__}: ")[2] or str(error)
    name = type(error).__name__
    return name if not told or told.startswith("Request") else f"{name}: {told}"


def translated(error: KafkaError, doing: str) -> AfreshError:
    """Put an error that can't be retried into one line of ours."""
    if isinstance(error, DENIED):
        return UsageError(
            f"the broker refused {doing}: {brief(error)}; check the user's rights and the table [kafka]"
        )
    if isinstance(error, kafka.errors.UnsupportedCodecError):
        return UsageError(
            f"{doing} failed: {error}; expected gzip, snappy, lz4, zstd or no compression. Install afresh "
            "again with all that it depends on: python-snappy, cramjam, lz4, zstandard"
        )
    return AfreshError(f"{doing} failed: {brief(error)}")


class Patience:
    """Count how long the broker has failed to answer; raise `BrokerLost` beyond `kafka.broker_timeout_s`."""

    def __init__(self, kafka: KafkaConfig) -> None:
        self._servers = kafka.bootstrap_servers
        self._limit_s = kafka.broker_timeout_s
        self._failing_since: float | None = None
        self._told = False

    def answered(self) -> None:
        """Note a sign of life."""
        self._failing_since = None
        if self._told:
            self._told = False
            logger.info("the broker at %s answers again", self._servers)

    def failed(self, doing: str, began: float, cause: Exception) -> None:
        """Note that an attempt that began at `began` (monotonic seconds) had no answer."""
        if self._failing_since is None:
            self._failing_since = began
        silent_s = time.monotonic() - self._failing_since
        if silent_s >= self._limit_s:
            raise BrokerLost(
                f"the broker at {self._servers} has not answered for {silent_s:.0f} s while {doing} "
                f"(kafka.broker_timeout_s = {self._limit_s:g}); restart when it is back: nothing is lost"
            ) from cause
        if silent_s >= TELL_S and not self._told:
            self._told = True
            logger.warning(
                "the broker at %s has not answered for %.0f s while %s; waiting up to %g s",
                self._servers, silent_s, doing, self._limit_s,
            )  # fmt: skip

    def insist(self, call: Callable[[int], Client], doing: str) -> Client:
        """Return `call(timeout_ms)`, tried again until the broker answers. Raise `BrokerLost`."""
        timeout_ms = max(100, min(5_000, int(self._limit_s * 1000)))
        while True:
            began = time.monotonic()
            try:
                result = call(timeout_ms)
            except kafka.errors.RetriableError as error:
                self.failed(doing, began, error)
                if time.monotonic() - began < 0.05:  # failed at once: leave the client time to reconnect
                    time.sleep(0.05)
            except KafkaError as error:
                raise translated(error, doing) from error
            else:
                self.answered()
                return result
