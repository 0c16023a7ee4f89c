#!/usr/bin/env bash
# Create afresh's topics, under their default names, with the settings that suit it; those that exist stay as they are.
#
#   BOOTSTRAP=kafka:9092 PARTITIONS=12 REPLICATION=3 deploy/kafka/topics.sh
#
# kafka-topics.sh, from Kafka's bin/, must be on PATH. COMMAND_CONFIG names a file with an administrator's
# credentials, where the cluster asks for some. `afresh run` creates missing topics too, with the cluster's own
# numbers of partitions and replicas, where it has the right to.
set -euo pipefail

partitions=${PARTITIONS:-12}   # of events and recommendations: the most workers that can ever share the work.
replication=${REPLICATION:-3}  # Partitions that are added later move users away from their state: begin with enough
in_sync=$((replication > 1 ? replication - 1 : 1))
day=86400000 # ms

create() {
    kafka-topics.sh --bootstrap-server "${BOOTSTRAP:-127.0.0.1:9092}" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
        --create --if-not-exists --replication-factor "$replication" --config min.insync.replicas="$in_sync" "$@"
}

# Kept for longer than afresh can ever be away: what retention takes before it was learned is a clear error at the next
# start. A new group and `afresh train` on an export both get more to learn from with more days.
create --topic events --partitions "$partitions" --config cleanup.policy=delete --config retention.ms=$((7 * day))

# The newest record of each item; a tombstone is kept for a week, so that a worker that was away hears of it.
create --topic items --partitions 1 --config cleanup.policy=compact --config delete.retention.ms=$((7 * day))

# The newest list of each user. Every event makes a new one, so old ones are many: compacted when a fifth is old, and
# within an hour, so that a new subscriber need not read a day of them.
create --topic recommendations --partitions "$partitions" --config cleanup.policy=compact \
    --config min.cleanable.dirty.ratio=0.2 --config max.compaction.lag.ms=3600000 --config delete.retention.ms="$day"

# What could not be learned, as it came, with its headers: so a record at the limit must still fit.
create --topic events.dead-letter --partitions 1 --config cleanup.policy=delete \
    --config retention.ms=$((14 * day)) --config max.message.bytes=12582912

create --topic events.drift --partitions 1 --config cleanup.policy=delete --config retention.ms=$((90 * day))
