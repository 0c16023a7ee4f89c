"""Write Kafka topics."""
