from producers.embedded_broker import EmbeddedBroker as embedded_broker  # noqa: F401
