"""Topics that are missing: the service creates them as it needs them, or says what to create."""

from collections.abc import Callable
from typing import NoReturn

import msgspec
import pytest
from contracts.sinks import topics_named
from harness.clients import config, make_topic
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import TopicAuthorizationFailedError

from pipeline.errors import UsageError
from pipeline.settings import TopicsConfig
from producers.kafka.topics import ensure_topics

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]


@pytest.fixture
def topics(topic_name: Name) -> TopicsConfig:
    return msgspec.structs.replace(
        topics_named(topic_name), events=[topic_name("events"), topic_name("more")]
    )


def test_what_is_missing_is_created_and_what_exists_is_left_alone(broker: str, topics: TopicsConfig) -> None:
    first, second = topics.event_topics()
    make_topic(broker, first, 3)
    created = ensure_topics(config(broker), topics)
    assert sorted(created) == sorted(
        [second, topics.items, topics.recommendations, topics.dead_letters, topics.drift]
    )
    assert ensure_topics(config(broker), topics) == []
    admin = KafkaAdminClient(bootstrap_servers=broker)
    (described,) = admin.describe_topics([first])
    assert len(described["partitions"]) == 3
    for name in (topics.recommendations, topics.items, topics.dead_letters, topics.drift, second):
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
        policy = "compact" if name in (topics.recommendations, topics.items) else "delete"
        assert f"'cleanup.policy': {{'value': '{policy}'" in str(found)
    admin.close()


def test_refused_topics_are_named(broker: str, topics: TopicsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise TopicAuthorizationFailedError

    monkeypatch.setattr(KafkaAdminClient, "create_topics", refuse)  # needs a broker with users otherwise
    with pytest.raises(UsageError, match="TopicAuthorizationFailed") as caught:
        ensure_topics(config(broker), topics)
    for name in (*topics.event_topics(), topics.recommendations, topics.dead_letters, topics.drift):
        assert repr(name) in str(caught.value)
    assert f"Create them ({topics.recommendations!r} with cleanup.policy=compact)" in str(caught.value)
    assert "\n" not in str(caught.value)
