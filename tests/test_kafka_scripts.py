"""The scripts that create topics and grant rights: they name what the service uses, with what it needs."""

import os
import subprocess
from pathlib import Path

import pytest
from harness.admin_tools import NAMES, Right, TopicAsked, right_of, topic_of

from pipeline.settings import KafkaConfig, TopicsConfig
from producers.kafka.client import transaction_options
from producers.kafka.topics import wanted_topics

DEPLOY = Path(__file__).parents[1] / "deploy"


def recorded(script: str, folder: Path, **variables: str) -> list[list[str]]:
    for name in NAMES:
        (folder / name).write_text('#!/bin/sh\necho "$*"\n', "utf-8")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", **variables}
    command = ["bash", DEPLOY / "kafka" / script]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TopicAsked]:
    calls = recorded("topics.sh", tmp_path_factory.mktemp("topics"), PARTITIONS="6", REPLICATION="3")
    return {topic.name: topic for topic in map(topic_of, calls)}


def test_every_topic_is_created_as_the_service_would_create_it(topics: dict[str, TopicAsked]) -> None:
    wanted = {topic.name: topic for topic in wanted_topics(TopicsConfig(), 6)}
    assert topics.keys() == wanted.keys()
    for name, topic in wanted.items():
        assert topics[name].partitions == topic.partitions
        assert topic.configs.items() <= topics[name].configs.items(), name


def test_a_lost_broker_stops_no_topic(topics: dict[str, TopicAsked], tmp_path: Path) -> None:
    for topic in topics.values():
        assert (topic.replication, topic.configs["min.insync.replicas"]) == (3, "2")
    alone = [topic_of(call) for call in recorded("topics.sh", tmp_path, REPLICATION="1")]
    assert {topic.configs["min.insync.replicas"] for topic in alone} == {"1"}


def test_rights_are_those_of_the_topics_that_are_read_and_written(tmp_path: Path) -> None:
    rights = {right_of(call) for call in recorded("acls.sh", tmp_path, PRINCIPAL="User:shop", GROUP="shop-1")}
    names, who = TopicsConfig(), "User:shop"
    read = {*names.event_topics(), names.items}
    written = {names.recommendations, names.dead_letters, names.drift}
    assert rights == {
        *(Right(who, "Read", "topic", name, "literal") for name in read),
        *(Right(who, "Write", "topic", name, "literal") for name in written),
        Right(who, "Read", "group", "shop-1", "literal"),
        Right(who, "Write", "transactional-id", "shop-1-", "prefixed"),
    }
    worker = KafkaConfig(group_id="shop-1", worker_id="shop-pod-3")
    assert transaction_options(worker)["transactional_id"].startswith("shop-1-")


@pytest.mark.parametrize(("include", "operation"), [("create", "Create"), ("check", "DescribeConfigs")])
def test_more_rights_are_granted_on_request(include: str, operation: str, tmp_path: Path) -> None:
    few = {right_of(call) for call in recorded("acls.sh", tmp_path)}
    more = {right_of(call) for call in recorded("acls.sh", tmp_path, INCLUDE=include)} - few
    assert {right.operation for right in more} == {operation}
    assert {right.name for right in more} == {topic.name for topic in wanted_topics(TopicsConfig())}
