"""Assign partitions so that equal partition numbers of all topics go to one member, as does their user.

kafka-python's cooperative-sticky assigns partitions one by one, so that views-3 and buys-3 may go to two
workers, each of which then knows half of a user. As there, partitions that stay are not revoked, and those
that move are revoked in one generation and assigned in the next.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from kafka.cluster import ClusterMetadata
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription
from kafka.structs import TopicPartition

logger = logging.getLogger(__name__)

Owners = Mapping[TopicPartition, Collection[str]]  # the members that claim a partition


class CoPartitionAssignor(CooperativeStickyAssignor):  # type: ignore[misc]  # the client has no types
    """Assign partition numbers: sticky, cooperative, and even to one number."""

    name = "co-partitioned"
    version = 2  # the first with the generation in which the partitions were assigned

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolSubscription:
        subscription = super().metadata(topics)
        subscription.generation_id = self.generation
        return subscription

    def assign(
        self, cluster: ClusterMetadata, members: Sequence[Any]
    ) -> dict[str, ConsumerProtocolAssignment]:
        """Return each member's partitions for this generation.

        A topic that not all members read, as while workers are restarted with one more topic, is assigned to
        those that do, in their numbers; the rest of it waits. Members without a common topic are assigned
        partitions one by one.
        """
        subscriptions = {each.member_id: self.parse_member_metadata(each.metadata) for each in members}
        topics_of = {member: set(each.subscription) for member, each in subscriptions.items()}
        if not set.intersection(*topics_of.values()):
            return dict(super().assign(cluster, members))
        topics = sorted(set.union(*topics_of.values()))
        partitions = {topic: cluster.partitions_for_topic(topic) or set() for topic in topics}
        owners = claims(subscriptions)
        by_worker = sorted(members, key=lambda each: (each.group_instance_id or "", each.member_id))
        numbers = set.union(*partitions.values())
        members_of = spread(numbers, homes(owners), [each.member_id for each in by_worker])
        given: dict[str, dict[str, list[int]]] = {member: {} for member in subscriptions}
        waiting: dict[str, list[int]] = {}
        for number, member in sorted(members_of.items()):
            for topic in topics:
                if number not in partitions[topic]:
                    continue
                if topic not in topics_of[member]:
                    waiting.setdefault(topic, []).append(number)
                elif owners.get(TopicPartition(topic, number), {member}) == {member}:  # else the next time
                    given[member].setdefault(topic, []).append(number)
        for topic, unread in waiting.items():
            logger.warning(
                "topic %s: partitions %s are not read: the workers of their numbers do not read this topic; "
                "expected the same topics.events in all workers of the group", topic, unread,
            )  # fmt: skip
        return {
            member: ConsumerProtocolAssignment(self.version, list(by_topic.items()), b"")
            for member, by_topic in given.items()
        }


def claims(subscriptions: Mapping[str, Any]) -> Owners:
    """Return the members that claim each partition of a topic that they read, by its newest generation.

    A member that was removed from the group still claims its old partitions, which another may have by now.
    """
    found: dict[TopicPartition, list[tuple[int, str]]] = defaultdict(list)
    for member, each in subscriptions.items():
        for partition in each.partitions:
            if partition.topic in each.subscription:
                found[partition].append((each.generation, member))
    return {
        partition: {member for generation, member in claimed if generation == max(claimed)[0]}
        for partition, claimed in found.items()
    }


def homes(owners: Owners) -> dict[int, str]:
    """Return each number's member so far: the one with most of its partitions, then the first topic's.

    >>> homes({TopicPartition("a", 0): ["x"], TopicPartition("b", 0): ["y"], TopicPartition("c", 0): ["y"]})
    {0: 'y'}
    """
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    for partition, members in sorted(owners.items()):
        votes[partition.partition].update(sorted(members))
    return {number: counter.most_common(1)[0][0] for number, counter in votes.items()}


def spread(numbers: Collection[int], homes: Mapping[int, str], members: Sequence[str]) -> dict[int, str]:
    """Return each number's member: an even share each, with as few moves as possible.

    >>> spread(range(5), {0: "a", 1: "a", 2: "a", 3: "a"}, ["a", "b"])
    {0: 'a', 1: 'a', 2: 'a', 3: 'b', 4: 'b'}
    """
    owned = {member: [n for n in sorted(numbers) if homes.get(n) == member] for member in members}
    share, rest = divmod(len(numbers), len(members))
    by_size = sorted(members, key=lambda member: -len(owned[member]))
    room = {member: share + (place < rest) for place, member in enumerate(by_size)}
    given = {number: member for member in members for number in owned[member][: room[member]]}
    sizes = Counter(given.values())
    for number in sorted(set(numbers) - given.keys()):
        member = min((each for each in members if sizes[each] < room[each]), key=sizes.__getitem__)
        given[number] = member
        sizes[member] += 1
    return given
