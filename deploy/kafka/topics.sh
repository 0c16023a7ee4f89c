#!/usr/bin/env bash
# Create afresh's topics under their default names with suitable settings; existing ones stay as they are.
#
#   BOOTSTRAP=kafka:9092 PARTITIONS=12 REPLICATION=3 deploy/kafka/topics.sh
#
# kafka-topics.sh, from Kafka's bin/, must be on PATH. COMMAND_CONFIG names a file with an administrator's
# credentials, if the cluster needs some. `afresh run` creates missing topics too, with the cluster's default
# numbers of partitions and replicas, if it has the right to.
set -euo pipefail

partitions=${PARTITIONS:-12}   # of events and recommendations: the maximum number of workers.
replication=${REPLICATION:-3}  # Partitions added later move users away from their state: start with enough
in_sync=$((replication > 1 ? replication - 1 : 1))
day=86400000 # ms

create() {
    kafka-topics.sh --bootstrap-server "${BOOTSTRAP:-127.0.0.1:9092}" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
        --create --if-not-exists --replication-factor "$replication" --config min.insync.replicas="$in_sync" "$@"
}

# Longer than any outage of afresh: records that retention removed before they were learned are an error at the next
# start. More days give a new group more to learn from.
create --topic events --partitions "$partitions" --config cleanup.policy=delete --config retention.ms=$((7 * day))

# The newest record of each item; a tombstone is kept for a week, so that a worker that was down reads it.
create --topic items --partitions 1 --config cleanup.policy=compact --config delete.retention.ms=$((7 * day))

# The newest list of each user. Every event publishes a new one: compacted when a fifth is obsolete, and within an hour,
# so that a new subscriber does not read a day of them.
create --topic recommendations --partitions "$partitions" --config cleanup.policy=compact \
    --config min.cleanable.dirty.ratio=0.2 --config max.compaction.lag.ms=3600000 --config delete.retention.ms="$day"

# Dead letters hold the whole record and headers: a record at the limit must still fit.
create --topic events.dead-letter --partitions 1 --config cleanup.policy=delete \
    --config retention.ms=$((14 * day)) --config max.message.bytes=12582912

create --topic events.drift --partitions 1 --config cleanup.policy=delete --config retention.ms=$((90 * day))
