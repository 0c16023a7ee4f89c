"""Who of a group reads what: equal partition numbers of all topics go to one member, as does their user.

A key lies in the same partition number of every topic that has as many partitions. kafka-python's
cooperative-sticky deals partitions out one by one, so that views-3 and buys-3 may go to two workers, each of
which then knows half of a user. Here the numbers are dealt out, and a number brings its partition of each
topic. The rest is as there: what stays is not taken away first, and what moves is taken from its old owner in
one generation and given to the new one in the next.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from kafka.cluster import ClusterMetadata
from kafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription
from kafka.structs import TopicPartition

logger = logging.getLogger(__name__)

Owners = Mapping[TopicPartition, Collection[str]]  # the members that say to own a partition


def strategies() -> list[AbstractPartitionAssignor]:
    """Make the assignors of one consumer, the preferred one first.

    A group agrees on what all of its members offer: beside workers of a version that deals out one by one it
    goes on doing so, and changes once with the last of them.
    """
    shared: list[_Sharing] = []
    return [CoPartitionAssignor(shared), OneByOneAssignor(shared)]


class _Sharing(CooperativeStickyAssignor):  # type: ignore[misc]  # the client has no types
    """Know what this member was given under another strategy too.

    kafka-python tells only the strategy that was agreed on. When the group changes to another, that one would
    say that nothing is owned, and partitions would go to new owners while the old ones still hold them.
    """

    def __init__(self, shared: "list[_Sharing]") -> None:
        super().__init__()
        self._shared = shared
        shared.append(self)

    def on_assignment(self, assignment: ConsumerProtocolAssignment, generation: int) -> None:
        for each in self._shared:
            each.member_assignment, each.generation = assignment.partitions(), generation


class OneByOneAssignor(_Sharing):
    """kafka-python's own, for groups with members that know no other."""


class CoPartitionAssignor(_Sharing):
    """Deal partition numbers out, each with its partition of every topic: sticky, cooperative, even to one
    number.
    """

    name = "co-partitioned"
    version = 2  # the first that says since which generation the partitions are owned

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolSubscription:
        subscription = super().metadata(topics)
        subscription.generation_id = self.generation
        return subscription

    def assign(
        self, cluster: ClusterMetadata, members: Sequence[Any]
    ) -> dict[str, ConsumerProtocolAssignment]:
        """Return each member's partitions for this generation.

        A topic that not all members read, as while workers are restarted with one more, is read by those that
        do, in their numbers; the rest of it waits. Members that share no topic are served one by one.
        """
        said = {each.member_id: self.parse_member_metadata(each.metadata) for each in members}
        topics_of = {member: set(each.subscription) for member, each in said.items()}
        if not set.intersection(*topics_of.values()):
            return dict(super().assign(cluster, members))
        topics = sorted(set.union(*topics_of.values()))
        partitions = {topic: cluster.partitions_for_topic(topic) or set() for topic in topics}
        owners = claims(said)
        by_worker = sorted(members, key=lambda each: (each.group_instance_id or "", each.member_id))
        numbers = set.union(*partitions.values())
        dealt = deal(numbers, homes(owners), [each.member_id for each in by_worker])
        given: dict[str, dict[str, list[int]]] = {member: {} for member in said}
        waiting: dict[str, list[int]] = {}
        for number, member in sorted(dealt.items()):
            for topic in topics:
                if number not in partitions[topic]:
                    continue
                if topic not in topics_of[member]:
                    waiting.setdefault(topic, []).append(number)
                elif set(owners.get(TopicPartition(topic, number), ())) <= {member}:  # else the next time
                    given[member].setdefault(topic, []).append(number)
        for topic, unread in waiting.items():
            logger.warning(
                "topic %s: partitions %s wait for a worker that reads it, as its number's worker does not; "
                "expected the same topics.events in all workers of the group", topic, unread,
            )  # fmt: skip
        return {
            member: ConsumerProtocolAssignment(self.version, list(by_topic.items()), b"")
            for member, by_topic in given.items()
        }


def claims(said: Mapping[str, Any]) -> Owners:
    """Return who says to own each partition of a topic that it reads; of several the newest generation's.

    A member that was thrown out still names what it had, which another may have been given since.
    """
    found: dict[TopicPartition, list[tuple[int, str]]] = defaultdict(list)
    for member, each in said.items():
        for partition in each.partitions:
            if partition.topic in each.subscription:
                found[partition].append((each.generation, member))
    return {
        partition: {member for generation, member in claimed if generation == max(claimed)[0]}
        for partition, claimed in found.items()
    }


def homes(owners: Owners) -> dict[int, str]:
    """Return where each number is at home: with the member that owns most of its partitions, then the first
    topic's.

    >>> homes({TopicPartition("a", 0): ["x"], TopicPartition("b", 0): ["y"], TopicPartition("c", 0): ["y"]})
    {0: 'y'}
    """
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    for partition, members in sorted(owners.items()):
        votes[partition.partition].update(sorted(members))
    return {number: counter.most_common(1)[0][0] for number, counter in votes.items()}


def deal(numbers: Collection[int], homes: Mapping[int, str], members: Sequence[str]) -> dict[int, str]:
    """Give each number to a member: as evenly as can be, and as few as can be away from home.

    >>> deal(range(5), {0: "a", 1: "a", 2: "a", 3: "a"}, ["a", "b"])
    {0: 'a', 1: 'a', 2: 'a', 3: 'b', 4: 'b'}
    """
    kept = {member: [n for n in sorted(numbers) if homes.get(n) == member] for member in members}
    least, over = divmod(len(numbers), len(members))
    fullest = sorted(members, key=lambda member: -len(kept[member]))
    room = {member: least + (place < over) for place, member in enumerate(fullest)}
    dealt = {number: member for member in members for number in kept[member][: room[member]]}
    has = Counter(dealt.values())
    for number in sorted(set(numbers) - dealt.keys()):
        member = min((each for each in members if has[each] < room[each]), key=has.__getitem__)
        dealt[number] = member
        has[member] += 1
    return dealt
