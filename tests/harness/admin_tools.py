"""Replacements of kafka-topics.sh and kafka-acls.sh, to run deploy's scripts without Kafka's bin/.

They accept only the options that the scripts use, and do the same with a client.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

NAMES = ("kafka-topics.sh", "kafka-acls.sh")


class Right(NamedTuple):
    """One right of a principal, in the words of kafka-acls.sh."""

    principal: str
    operation: str  # Read, Write, Create, DescribeConfigs
    resource: str  # topic, group or transactional-id
    name: str
    pattern: str  # literal or prefixed

    def acl(self) -> ACL:
        words = "".join("_" + c.lower() if c.isupper() else c for c in self.operation).strip("_")
        resource = ResourceType[self.resource.upper().replace("-", "_")]
        pattern = ResourcePattern(resource, self.name, ACLResourcePatternType[self.pattern.upper()])
        return ACL(self.principal, "*", ACLOperation[words.upper()], ACLPermissionType.ALLOW, pattern)


def right_of(arguments: list[str]) -> Right:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--bootstrap-server", required=True)
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    parser.add_argument("--operation", required=True)
    parser.add_argument("--resource-pattern-type", default="literal")
    resource = parser.add_mutually_exclusive_group(required=True)
    for kind in ("topic", "group", "transactional-id"):
        resource.add_argument(f"--{kind}", dest="resource", type=lambda name, kind=kind: (kind, name))
    given = parser.parse_args(arguments)
    return Right(given.allow_principal, given.operation, *given.resource, given.resource_pattern_type)


class TopicAsked(NamedTuple):
    """One topic to be created, in the words of kafka-topics.sh."""

    name: str
    partitions: int
    replication: int
    configs: dict[str, str]


def topic_of(arguments: list[str]) -> TopicAsked:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--bootstrap-server", required=True)
    parser.add_argument("--create", action="store_true", required=True)
    parser.add_argument("--if-not-exists", action="store_true", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--replication-factor", type=int, required=True)
    parser.add_argument("--config", action="append", default=[])
    given = parser.parse_args(arguments)
    configs = dict(pair.split("=", 1) for pair in given.config)
    return TopicAsked(given.topic, given.partitions, given.replication_factor, configs)


@contextmanager
def admin(bootstrap_servers: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        yield client
    finally:
        client.close()


def write_tools(folder: Path) -> Path:
    """Put the stand-ins into a folder, which belongs on PATH; return it."""
    for name in NAMES:
        tool = folder / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n', "utf-8")
        tool.chmod(0o755)
    return folder


def main(name: str, arguments: list[str]) -> None:
    with admin(arguments[arguments.index("--bootstrap-server") + 1]) as client:
        if name == "kafka-acls.sh":
            client.create_acls([right_of(arguments).acl()])
            return
        topic = topic_of(arguments)
        spec = {"num_partitions": topic.partitions, "replication_factor": topic.replication}
        client.create_topics({topic.name: spec | {"configs": topic.configs}})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
