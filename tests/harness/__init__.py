"""The test harness: brokers, services as processes, in-memory workers, event streams and their oracles."""
