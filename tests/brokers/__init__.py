"""Brokers that tests start: the embedded one always, Apache Kafka where KAFKA_HOME points at it."""
