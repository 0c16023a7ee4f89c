"""Describe a cluster, its topics, a group and our rights; nothing is changed or joined.

kafka-python 3.0.12 asks for the authorized operations with every description of topics and groups. None
means that the broker does not report them (it has no authorizer, or is older than 2.3); operations missing
from a list are denied. A topic that may not be described comes with an error and without whether it exists.
Configurations that may not be read are empty.
"""

import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import kafka.errors
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, MemberToRemove
from kafka.errors import KafkaError

from consumers.kafka.client import open_admin
from pipeline.settings import KafkaConfig

COORDINATOR_WAIT_S = 5.0  # a new cluster creates its offsets topic at the first request
CONFIGS = ("cleanup.policy", "min.insync.replicas", "retention.ms")
UNKNOWN_TOPIC = kafka.errors.UnknownTopicOrPartitionError.errno
REFUSED_TOPIC = kafka.errors.TopicAuthorizationFailedError.errno

Answer = TypeVar("Answer")
Rights = frozenset[str] | None  # names of operations, such as READ; None: not reported


@dataclass(frozen=True, slots=True)
class TopicSeen:
    """A topic's description. `error` is why it can't be described; `configs` is empty if it can't be read."""

    name: str
    exists: bool | None  # None: not reported
    rights: Rights
    error: str = ""
    partitions: int = 0
    leaderless: tuple[int, ...] = ()  # partitions without a leader
    in_sync: int = 0  # the fewest of any partition
    configs: dict[str, str] = field(default_factory=dict)

    def whole(self, config: str) -> int | None:
        """Return a configuration that is a number; None if it was not reported."""
        text = self.configs.get(config, "")
        return int(text) if text.lstrip("-").isdigit() else None


@dataclass(frozen=True, slots=True)
class GroupSeen:
    """A consumer group: our rights to it, and why it can't be described."""

    rights: Rights
    error: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """The description of a cluster."""

    version: str  # the newest Kafka version with a protocol that the broker supports
    topics: dict[str, TopicSeen]
    group: GroupSeen
    transactional_id: str = ""  # the error of describing it; "" for none, and where it is not used


def survey(kafka: KafkaConfig, topics: Sequence[str], transactional_id: str = "") -> Survey:
    """Describe a cluster.

    Raise `UsageError` when no broker answers or it denies the login, `AfreshError` when it fails later.
    """
    with open_admin(kafka, "looking at the cluster") as admin:
        found = _topics(admin, topics)
        reported = any(seen.rights is not None for seen in found.values())
        return Survey(
            version=".".join(map(str, admin._manager.broker_version)),  # there is no public name
            topics=found,
            group=_group(admin, kafka.group_id, reported),
            transactional_id=_transactional_id(admin, transactional_id) if transactional_id else "",
        )


def listening(kafka: KafkaConfig) -> list[str]:
    """Return the addresses that accept a connection, Kafka or not.

    The client can't distinguish a denied login, or the wrong security protocol, from silence.
    """
    found = []
    for server in kafka.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]") or server.strip(), int(port or 9092)), 1.0).close()
        except (OSError, ValueError):
            continue
        found.append(server.strip())
    return found


def _topics(admin: KafkaAdminClient, names: Sequence[str]) -> dict[str, TopicSeen]:
    described = {topic["name"]: topic for topic in admin.describe_topics(list(names))}
    there = [name for name in names if described.get(name, {}).get("error_code") == 0]
    asked = [ConfigResource(ConfigResourceType.TOPIC, name, list(CONFIGS)) for name in there]
    configs = admin.describe_configs(asked, config_filter="all").get("topic", {}) if asked else {}
    return {name: _topic(name, described.get(name, {}), configs.get(name, {})) for name in names}


def _topic(name: str, described: dict[str, Any], configs: dict[str, dict[str, Any]]) -> TopicSeen:
    code, rights = described.get("error_code", UNKNOWN_TOPIC), _rights(described)
    if code:
        exists = {UNKNOWN_TOPIC: False, REFUSED_TOPIC: None}.get(code, True)
        return TopicSeen(name, exists, rights, kafka.errors.for_code(code).__name__)
    partitions = described["partitions"]
    return TopicSeen(
        name, True, rights,
        partitions=len(partitions),
        leaderless=tuple(each["partition_index"] for each in partitions if each["leader_id"] < 0),
        in_sync=min((len(each["isr_nodes"]) for each in partitions), default=0),
        configs={key: str(config["value"]) for key, config in configs.items()},
    )  # fmt: skip


def _group(admin: KafkaAdminClient, group_id: str, reported: bool) -> GroupSeen:
    """Describe a group. If rights are `reported`, but not those of a new group, try the needed one."""
    try:
        group = _retried(lambda: admin.describe_groups([group_id])[group_id])
    except KafkaError as error:
        return GroupSeen(None, type(error).__name__)
    # since Kafka 4 a group without members is described with an error
    problem = group["error"] or ""
    known = not problem or "GroupIdNotFound" in problem
    rights = _rights(group)
    if reported and rights is None and known:
        rights = _tried(admin, group_id)
    return GroupSeen(rights, "" if known else problem)


def _tried(admin: KafkaAdminClient, group_id: str) -> Rights:
    """Remove a member that does not exist: the broker checks our right to READ first."""
    member = MemberToRemove(member_id=f"afresh-check-{uuid.uuid4()}", reason="a check of rights")
    try:
        admin.remove_group_members(group_id, [member])
    except kafka.errors.GroupAuthorizationFailedError:
        return frozenset({"DESCRIBE"})
    except KafkaError:  # no such member, as expected
        pass
    return frozenset({"DESCRIBE", "READ"})


def _transactional_id(admin: KafkaAdminClient, transactional_id: str) -> str:
    """Return the error of missing rights to a transactional id; "" if we have them."""
    try:
        _retried(lambda: admin.describe_transactions([transactional_id]))
    except kafka.errors.AuthorizationError as error:
        return type(error).__name__
    except KafkaError:  # not found: nothing to describe yet
        pass
    return ""


def _retried(ask: Callable[[], Answer]) -> Answer:
    """Ask until the broker is ready, for a limited time."""
    until = time.monotonic() + COORDINATOR_WAIT_S
    while True:
        try:
            return ask()
        except kafka.errors.RetriableError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _rights(described: dict[str, Any]) -> Rights:
    operations = described.get("authorized_operations")
    return None if operations is None else frozenset(operations)
