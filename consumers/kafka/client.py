"""Kafka clients: options from `[kafka]`, connections, waiting for the broker, and errors in our own words."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import kafka.errors
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.errors import KafkaError

from consumers.kafka.batches import read_on
from consumers.kafka.co_partitions import CoPartitionAssignor
from consumers.kafka.options import Complaints, for_client, wrong_options
from pipeline.errors import AfreshError, BrokerLost, UsageError
from pipeline.settings import KafkaConfig

logger = logging.getLogger(__name__)

METADATA_MAX_AGE_MS = 10_000  # until added partitions are seen; the client's default is five minutes
SILENCE_LOGGED_S = 3.0  # a silence of the broker that is logged, also at the start
TUNED = {  # of a consumer
    "heartbeat_interval_ms": 1_000,  # until a member notices a rebalance; each takes two rounds
    "fetch_max_wait_ms": 25,  # a waiting fetch delays the next one to that broker
    "fetch_max_bytes": 4 << 20,  # bounds the records that one poll has to parse
    # the embedded broker answers with everything it has, whatever was asked for
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
)  # the next poll solves these

Client = TypeVar("Client")


def connection_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Return the options that every client shares: address, security, time-outs.

    >>> connection_options(KafkaConfig(bootstrap_servers="10.0.0.7:9092"))["bootstrap_servers"]
    ['10.0.0.7:9092']
    """
    options: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "client_id": f"afresh-{kafka.worker_id}",
        "security_protocol": kafka.security_protocol,
        "bootstrap_timeout_ms": int(kafka.start_timeout_s * 1000),
        # well inside the broker's time limit, at most the client's own 30 s
        "request_timeout_ms": min(30_000, max(1_000, int(kafka.broker_timeout_s * 500))),
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


def extra_options(kafka: KafkaConfig, make: Callable[..., object]) -> dict[str, Any]:
    """Return those of `kafka.options` that a client knows. Raise `UsageError` for a wrong one."""
    for option, value, expected in unfit_options(kafka):
        raise UsageError(f"kafka.options.{option} = {value!r}: expected {expected}")
    return for_client(kafka.options, make)


def unfit_options(kafka: KafkaConfig) -> Complaints:
    """Yield what is wrong with `kafka.options`, as `wrong_options` does."""
    return wrong_options(kafka.options, connection_options(kafka) | TUNED)


def consumer_options(kafka: KafkaConfig, *, in_group: bool) -> dict[str, Any]:
    """Return the options of a consumer that sets offsets itself, as a member of the group or in none."""
    options = connection_options(kafka) | {
        "group_id": kafka.group_id if in_group else None,
        "group_instance_id": kafka.worker_id if in_group else None,  # a restart takes its place back
        "enable_auto_commit": False,
        "auto_offset_reset": "none",  # a lost position is an error, never a silent jump
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "partition_assignment_strategy": [CoPartitionAssignor()],
    }
    return options | TUNED | extra_options(kafka, KafkaConsumer)


def connect(make: Callable[..., Client], options: Mapping[str, Any]) -> Client:
    """Make a client. Raise `UsageError` when no broker answers or an option is rejected."""
    servers, seconds = ",".join(options["bootstrap_servers"]), options["bootstrap_timeout_ms"] / 1000
    silence = "no broker has answered at %s yet; waiting up to %g s (kafka.start_timeout_s)"
    timer = threading.Timer(SILENCE_LOGGED_S, logger.info, (silence, servers, seconds))
    timer.start()
    try:
        client = make(**options)
    except DENIED as error:
        raise UsageError(f"the broker at {servers} refused us: {error}; check the table [kafka]") from error
    except (kafka.errors.RetriableError, OSError) as error:
        raise UsageError(
            f"no broker answered at kafka.bootstrap_servers = {servers!r} within {seconds:g} s: start one "
            "(`afresh broker` is one for development), or correct the address or the security settings"
        ) from error
    except (KafkaError, ValueError, TypeError, AssertionError) as error:
        raise UsageError(f"kafka.options: the client refused its configuration: {error}") from error
    finally:
        timer.cancel()
    if isinstance(client, KafkaConsumer):
        read_on(client)
    return client


@contextmanager
def open_admin(kafka: KafkaConfig, doing: str) -> Iterator[KafkaAdminClient]:
    """Open an admin client. Raise `UsageError` as `connect` does, later errors as `translated` ones."""
    admin = connect(KafkaAdminClient, connection_options(kafka) | extra_options(kafka, KafkaAdminClient))
    try:
        yield admin
    except KafkaError as error:
        raise translated(error, doing) from error
    finally:
        admin.close()


def brief(error: BaseException) -> str:
    """Return an error's name and the first line of its text, without the request that the client adds.

    >>> brief(kafka.errors.PolicyViolationError("Request 'CreateTopicsRequest(version=7, ...)' failed"))
    'PolicyViolationError'
    """
    name = type(error).__name__
    text = str(error).partition(f"{name}: ")[2] or str(error)
    return name if not text or text.startswith("Request") else f"{name}: {text.splitlines()[0]}"


def translated(error: KafkaError, doing: str) -> AfreshError:
    """Return an error of the client, which a retry does not solve, as one of ours in one line."""
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
        self._is_logged = False

    def answered(self) -> None:
        """Record that the broker has answered."""
        self._failing_since = None
        if self._is_logged:
            self._is_logged = False
            logger.info("the broker at %s answers again", self._servers)

    def failed(self, doing: str, began: float, cause: Exception) -> None:
        """Record an attempt without an answer that began at `began` (monotonic seconds)."""
        if self._failing_since is None:
            self._failing_since = began
        silent_s = time.monotonic() - self._failing_since
        if silent_s >= self._limit_s:
            raise BrokerLost(
                f"the broker at {self._servers} has not answered for {silent_s:.0f} s while {doing} "
                f"(kafka.broker_timeout_s = {self._limit_s:g}); restart when it is back: nothing is lost"
            ) from cause
        if silent_s >= SILENCE_LOGGED_S and not self._is_logged:
            self._is_logged = True
            logger.warning(
                "the broker at %s has not answered for %.0f s while %s; waiting up to %g s",
                self._servers, silent_s, doing, self._limit_s,
            )  # fmt: skip

    def insist(self, call: Callable[[int], Client], doing: str) -> Client:
        """Return `call(timeout_ms)`, retried until the broker answers. Raise `BrokerLost`."""
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
