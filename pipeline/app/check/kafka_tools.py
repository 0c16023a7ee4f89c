"""Commands of Kafka's own tools that mend what `afresh check` finds, ready to be copied."""

from pipeline.settings import KafkaConfig
from producers.kafka.topics import NewTopic


def create_command(kafka: KafkaConfig, topic: NewTopic) -> str:
    """Return the command that creates a topic; without a number of partitions the broker takes its own."""
    partitions = "" if topic.partitions < 0 else f" --partitions {topic.partitions}"
    configs = "".join(f" --config {key}={value}" for key, value in topic.configs.items())
    return f"{tool(kafka, 'kafka-topics.sh')} --create --topic {topic.name}{partitions}{configs}"


def configs_command(kafka: KafkaConfig, topic: str, config: str) -> str:
    """Return the command that changes a topic's setting."""
    return (
        f"{tool(kafka, 'kafka-configs.sh')} --alter --entity-type topics --entity-name {topic} "
        f"--add-config {config}"
    )


def acl_command(kafka: KafkaConfig, operation: str, resource: str) -> str:
    """Return the command that grants us a right."""
    principal = f"User:{kafka.sasl_username or '<yours>'}"
    return (
        f"{tool(kafka, 'kafka-acls.sh')} --add --allow-principal '{principal}' "
        f"--operation {operation} {resource}"
    )


def tool(kafka: KafkaConfig, name: str) -> str:
    """Return how one of Kafka's own tools is called for our cluster.

    >>> tool(KafkaConfig(security_protocol="SSL"), "kafka-topics.sh")
    'kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --command-config admin.properties'
    """
    login = "" if kafka.security_protocol == "PLAINTEXT" else " --command-config admin.properties"
    return f"{name} --bootstrap-server {kafka.bootstrap_servers}{login}"
