"""How afresh speaks to Kafka: client options out of `[kafka]`, and the client's errors in afresh's words.

`kafka.options` goes to every client that knows the key. What the guarantees rest on (offsets, isolation, the
group) is not open to it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import kafka.errors
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.errors import KafkaError

from consumers.kafka.batches import read_on
from consumers.kafka.co_partitions import strategies
from consumers.kafka.options import Complaints, for_client, wrong_options
from pipeline.errors import AfreshError, BrokerLost, UsageError
from pipeline.settings import KafkaConfig

logger = logging.getLogger(__name__)

METADATA_MAX_AGE_MS = 10_000  # how soon added partitions are seen; the client's own default is five minutes
TELL_S = 3.0  # so long a silence of the broker is logged, also at the start
TUNED = {  # of a consumer
    "heartbeat_interval_ms": 1_000,  # how soon a member hears of a rebalance; each takes two rounds
    "fetch_max_wait_ms": 100,  # a waiting fetch delays the next one to that broker by as much
    "fetch_max_bytes": 4 << 20,  # bounds the records that one poll has to parse
    # the embedded broker answers with all that it has, whatever it was asked for
    "receive_message_max_bytes": 1 << 30,
    "metrics_enabled": False,
}
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
        "bootstrap_timeout_ms": int(kafka.start_timeout_s * 1000),
        "request_timeout_ms": request_timeout_ms(kafka),
        "reconnect_backoff_max_ms": 1_000,  # the default of 30 s would outlast the broker by as much
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
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


def extra_options(kafka: KafkaConfig, make: Callable[..., object]) -> dict[str, Any]:
    """Return those of `kafka.options` that a client knows. Raise `UsageError` for a wrong one."""
    for option, value, expected in unfit_options(kafka):
        raise UsageError(f"kafka.options.{option} = {value!r}: expected {expected}")
    return for_client(kafka.options, make)


def unfit_options(kafka: KafkaConfig) -> Complaints:
    """Yield what is wrong with `kafka.options`, as `wrong_options` does."""
    return wrong_options(kafka.options, connection_options(kafka) | TUNED)


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
    }
    return options | TUNED | extra_options(kafka, KafkaConsumer)


def connect(make: Callable[..., Client], options: Mapping[str, Any]) -> Client:
    """Make a client. Raise `UsageError` when no broker answers or an option is rejected."""
    servers = ",".join(options["bootstrap_servers"])
    try:
        client = _patient(make, options, servers)
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


def _patient(make: Callable[..., Client], options: Mapping[str, Any], servers: str) -> Client:
    """Make a client; where no broker answers in `TELL_S`, say so and wait for the rest of the time."""
    limit_ms, first_ms = options["bootstrap_timeout_ms"], int(TELL_S * 1000)
    if limit_ms > first_ms:
        try:
            return make(**{**options, "bootstrap_timeout_ms": first_ms})
        except DENIED:
            raise
        except (kafka.errors.RetriableError, OSError):
            logger.info(
                "no broker has answered at %s yet; waiting up to %g s (kafka.start_timeout_s)",
                servers, limit_ms / 1000,
            )  # fmt: skip
        limit_ms = max(limit_ms - first_ms, 1_000)
    return make(**{**options, "bootstrap_timeout_ms": limit_ms})


def open_admin(kafka: KafkaConfig) -> KafkaAdminClient:
    """Make an admin client. Raise `UsageError` as `connect` does."""
    options = connection_options(kafka) | extra_options(kafka, KafkaAdminClient)
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


def partition_count(consumer: KafkaConsumer, topic: str) -> int:
    """Return how many partitions a topic has; 0: there is no such topic. Raise `UsageError` for a refusal."""
    try:
        return len(consumer.partitions_for_topic(topic) or ())
    except KafkaError as error:
        raise translated(error, f"looking at topic {topic!r}") from error


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
