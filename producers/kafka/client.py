"""Options of the producer, tuned: measured in batches of 512 through one core, see each line's reason."""

from typing import Any

from kafka import KafkaProducer

from consumers.kafka.client import connection_options, extra_options
from pipeline.settings import KafkaConfig

MAX_REQUEST_BYTES = 12 << 20  # a dead letter carries any record that the broker took, and headers

METADATA_WAIT_MS = 5_000
LONGEST_TRANSACTION_MS = 900_000  # that a broker allows by default


def producer_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Options of the producer: idempotent, acknowledged by all replicas, failing after `broker_timeout_s`.

    >>> producer_options(KafkaConfig(options={"compression_type": "gzip"}))["compression_type"]
    'gzip'
    """
    base = connection_options(kafka)
    limit_ms = max(int(kafka.broker_timeout_s * 1000), base["request_timeout_ms"] + 1_000)
    options = base | {
        "acks": "all",
        "enable_idempotence": True,  # a retry neither doubles nor reorders a ranking
        "batch_size": 262_144,  # one record batch a partition and batch of events: +30%
        "linger_ms": 5,  # else the sender takes each batch apart while it is being filled: -20%
        "delivery_timeout_ms": limit_ms,
        "max_block_ms": METADATA_WAIT_MS,  # `send` blocks for the metadata of an unknown topic alone
        "max_request_size": MAX_REQUEST_BYTES,
        "allow_auto_create_topics": False,  # the broker's defaults would not compact rankings
        "metrics_enabled": False,
    }
    return options | extra_options(kafka, KafkaProducer)


def transaction_options(kafka: KafkaConfig) -> dict[str, Any]:
    """Options of a producer of transactions: the same of one worker in each of its lives."""
    tuned = {
        # the next transaction often finds the last one completing: at the default of 100 ms it would wait
        # as long, for nothing
        "retry_backoff_ms": 5,
        "transaction_timeout_ms": min(LONGEST_TRANSACTION_MS, int(kafka.broker_timeout_s * 1000)),
    }
    ours = {"transactional_id": f"{kafka.group_id}-{kafka.worker_id}"}
    return tuned | producer_options(kafka) | ours
