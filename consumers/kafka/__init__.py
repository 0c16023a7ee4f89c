"""Read Kafka topics."""
