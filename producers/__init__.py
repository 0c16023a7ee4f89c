"""Output: sinks for rankings and dead letters, and senders of recorded and simulated events."""
