#!/usr/bin/env bash
# Grant afresh's user the rights that `afresh run` needs, and no others.
#
#   BOOTSTRAP=kafka:9092 COMMAND_CONFIG=admin.properties PRINCIPAL=User:afresh deploy/kafka/acls.sh
#
# kafka-acls.sh, from Kafka's bin/, must be on PATH; COMMAND_CONFIG names a file with an administrator's credentials.
# Topics and group have their default names. Each right is needed: tests/benchmarks/acls.py removes one at a time.
set -euo pipefail

principal=${PRINCIPAL:-User:afresh}
group=${GROUP:-afresh} # kafka.group_id

allow() {
    kafka-acls.sh --bootstrap-server "${BOOTSTRAP:-127.0.0.1:9092}" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
        --add --allow-principal "$principal" "$@"
}

# Read and Write include Describe.
allow --operation Read --topic events
allow --operation Read --topic items
allow --operation Write --topic recommendations
allow --operation Write --topic events.dead-letter
allow --operation Write --topic events.drift
allow --operation Read --group "$group"

# For kafka.transactions = true: each worker's id is group_id-worker_id.
allow --operation Write --transactional-id "$group-" --resource-pattern-type prefixed

# If the service is to create the topics (INCLUDE=create):
if [[ " ${INCLUDE:-} " == *" create "* ]]; then
    for topic in events items recommendations events.dead-letter events.drift; do
        allow --operation Create --topic "$topic"
    done
fi

# For `afresh check` to read the topics' settings (INCLUDE=check):
if [[ " ${INCLUDE:-} " == *" check "* ]]; then
    for topic in events items recommendations events.dead-letter events.drift; do
        allow --operation DescribeConfigs --topic "$topic"
    done
fi
