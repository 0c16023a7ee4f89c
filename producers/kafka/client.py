"""Options of the Kafka producer, tuned on batches of 512 records with one core; comments give the reasons."""

from typing import Any

from kafka import KafkaProducer

from consumers.kafka.client import connection_options, extra_options
from pipeline.settings import KafkaConfig

MAX_REQUEST_BYTES = 12 << 20  # a dead letter holds any record that the broker took, and headers
METADATA_WAIT_MS = 5_000
MAX_TRANSACTION_MS = 900_000  # a broker's default limit


def producer_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Return the options of an idempotent producer that waits for all replicas, up to `broker_timeout_s`.

    >>> producer_options(KafkaConfig(options={"compression_type": "gzip"}))["compression_type"]
    'gzip'
    """
    base = connection_options(kafka)
    limit_ms = max(int(kafka.broker_timeout_s * 1000), base["request_timeout_ms"] + 1_000)
    options = base | {
        "acks": "all",
        "enable_idempotence": True,  # a retry neither duplicates nor reorders records
        "batch_size": 262_144,  # one record batch for each partition and batch of events: +30%
        "linger_ms": 5,  # else the sender drains record batches while they are being filled: -20%
        "delivery_timeout_ms": limit_ms,
        "max_block_ms": METADATA_WAIT_MS,  # `send` blocks only for the metadata of an unknown topic
        "max_request_size": MAX_REQUEST_BYTES,
        "allow_auto_create_topics": False,  # the broker's defaults would not compact rankings
        "metrics_enabled": False,
    }
    return options | extra_options(kafka, KafkaProducer)


def transaction_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Return the options of a transactional producer; a restarted worker gets the same ones."""
    tuned = {
        # the previous transaction is often still completing: the default of 100 ms would delay the next one
        "retry_backoff_ms": 5,
        "transaction_timeout_ms": min(MAX_TRANSACTION_MS, int(kafka.broker_timeout_s * 1000)),
    }
    return tuned | producer_options(kafka) | {"transactional_id": f"{kafka.group_id}-{kafka.worker_id}"}
