"""Who reads what: one worker a partition number, and nothing is given away before it is free."""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from harness.clients import config, make_topic, open_source
from hypothesis import given
from hypothesis import strategies as st
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment, ConsumerProtocolSubscription
from kafka.structs import TopicPartition

from consumers.kafka.co_partitions import CoPartitionAssignor, spread
from consumers.kafka.source import KafkaSource

Held = Mapping[str, frozenset[TopicPartition]]


class Cluster:
    """As much of the client's picture of a cluster as an assignor needs."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = dict(counts)

    def topics(self) -> set[str]:
        return set(self.counts)

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return set(range(self.counts[topic])) if topic in self.counts else None

    def partitions(self) -> set[TopicPartition]:
        return {TopicPartition(topic, n) for topic, count in self.counts.items() for n in range(count)}


class Group:
    """A group of clients; it does with strategies what kafka-python's coordinator does, bytes included."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.cluster = Cluster(counts)
        self.generation = 0
        self.members: dict[str, CoPartitionAssignor] = {}
        self.topics: dict[str, set[str]] = {}
        self.held: dict[str, frozenset[TopicPartition]] = {}

    def join(self, *names: str, topics: Collection[str] = ()) -> None:
        for name in names:
            self.members[name] = CoPartitionAssignor()
            self.topics[name] = set(topics) or self.cluster.topics()
            self.held[name] = frozenset()

    def leave(self, name: str) -> None:
        del self.members[name], self.topics[name], self.held[name]

    def restart(self, name: str) -> None:
        self.leave(name)
        self.settle()
        self.join(name)
        self.settle()

    def rebalance(self) -> bool:
        """Go through one generation; return whether partitions were revoked, so that another one follows."""
        self.generation += 1
        joined = []
        for name, assignor in self.members.items():
            metadata = ConsumerProtocolSubscription.decode(assignor.metadata(self.topics[name]).encode())
            ids = {"member_id": f"{name}-id", "group_instance_id": name}
            joined.append(SimpleNamespace(**ids, metadata=metadata))
        answers = next(iter(self.members.values())).assign(self.cluster, joined)
        before, revoked = dict(self.held), False
        for name, assignor in self.members.items():
            assignment = ConsumerProtocolAssignment.decode(answers[f"{name}-id"].encode())
            self.held[name] = frozenset(assignment.partitions())
            revoked |= bool(before[name] - self.held[name])
            assignor.on_assignment(assignment, self.generation)
        for one, other in itertools.permutations(self.members, 2):
            assert not self.held[one] & before[other], "given to one while another holds it"
        return revoked

    def settle(self) -> None:
        rounds = 1
        while self.rebalance():
            rounds += 1
            assert rounds <= 3
        assert sum(map(len, self.held.values())) == len(frozenset().union(*self.held.values()))


def numbers(held: Held) -> dict[str, set[int]]:
    return {name: {partition.partition for partition in mine} for name, mine in held.items()}


def assert_together(group: Group) -> None:
    assert frozenset().union(*group.held.values()) == group.cluster.partitions()
    owner = defaultdict(set)
    for name, mine in numbers(group.held).items():
        for number in mine:
            owner[number].add(name)
    assert all(len(names) == 1 for names in owner.values())
    sizes = [len(mine) for mine in numbers(group.held).values()]
    assert max(sizes) - min(sizes) <= 1


COUNTS = st.dictionaries(st.sampled_from(["buys", "carts", "views"]), st.integers(1, 9), min_size=1)
KINDS = st.sampled_from(["join", "leave", "again", "grow"])
CHANGES = st.lists(st.tuples(KINDS, st.integers(0, 4)), max_size=8)


@given(COUNTS, CHANGES, st.booleans())
def test_numbers_stay_together_and_move_little(counts: Any, changes: Any, impatient: bool) -> None:
    """`impatient`: the next change comes before the group has settled."""
    group = Group(counts)
    group.join("worker-0")
    group.settle()
    for change, place in changes:
        name = f"worker-{place}"
        before = numbers(group.held)
        if change == "grow":
            group.cluster.counts["views"] = group.cluster.counts.get("views", 0) + place
            for topics in group.topics.values():
                topics.add("views")
        elif change == "join" and name not in group.members:
            group.join(name)
        elif change == "again" and name in group.members:  # killed, and back in its place
            group.leave(name)
            group.join(name)
        elif change == "leave" and name in group.members and len(group.members) > 1:
            group.leave(name)
        if impatient:
            group.rebalance()
            continue
        group.settle()
        assert_together(group)
        assert_sticky(before, numbers(group.held))
    group.settle()
    assert_together(group)


def assert_sticky(before: Mapping[str, set[int]], after: Mapping[str, set[int]]) -> None:
    """Nobody who stays loses a number, but down to what an even share leaves."""
    most = max(map(len, after.values()))
    for name in before.keys() & after.keys():
        if before[name] - after[name]:
            assert len(after[name]) >= most - 1
            assert after[name] < before[name]


@pytest.mark.parametrize(("views", "buys", "workers", "sizes"), [(4, 4, 3, [2, 2, 4]), (3, 1, 2, [1, 3])])
def test_numbers_are_not_split(views: int, buys: int, workers: int, sizes: list[int]) -> None:
    group = Group({"views": views, "buys": buys})
    group.join(*(f"worker-{number}" for number in range(workers)))
    group.settle()
    assert_together(group)
    assert sorted(len(mine) for mine in group.held.values()) == sizes


def test_a_topic_that_a_worker_does_not_read_yet_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    group = Group({"views": 4, "buys": 4})
    group.join("worker-0", "worker-1", topics=["views"])
    group.settle()
    before = numbers(group.held)
    group.restart("worker-1")
    after = numbers(group.held)
    assert {name: len(mine) for name, mine in after.items()} == dict.fromkeys(before, 2)
    assert {topic for topic, _ in group.held["worker-0"]} == {"views"}
    assert {topic for topic, _ in group.held["worker-1"]} == {"views", "buys"}
    assert "topic buys: partitions [0, 1] are not read" in caplog.text
    group.restart("worker-0")
    assert_together(group)


def test_members_that_share_no_topic_are_served_one_by_one() -> None:
    group = Group({"views": 2, "buys": 2})
    group.join("worker-0", topics=["views"])
    group.join("worker-1", topics=["buys"])
    group.settle()
    assert group.held == {"worker-0": {("views", 0), ("views", 1)}, "worker-1": {("buys", 0), ("buys", 1)}}


def test_what_a_member_had_before_it_was_thrown_out_does_not_count() -> None:
    group = Group({"views": 2, "buys": 2})
    group.join("worker-0")
    group.settle()
    stale = group.members["worker-0"]
    group.leave("worker-0")
    group.join("worker-1")
    group.settle()
    group.members, group.topics["worker-0"] = {"worker-0": stale} | group.members, {"views", "buys"}
    group.held["worker-0"] = frozenset()
    group.rebalance()
    assert group.held["worker-1"] == {("views", 0), ("buys", 0)}  # one of two moves
    group.settle()
    assert_together(group)


@given(st.sets(st.integers(0, 20)), st.dictionaries(st.integers(0, 20), st.sampled_from("abcd")))
def test_dealing_leaves_as_many_at_home_as_an_even_share_lets(here: set[int], homes: dict[int, str]) -> None:
    members = ["a", "b", "c"]
    stayed = sum(homes.get(number) == member for number, member in spread(here, homes, members).items())
    assert stayed == max(most_kept(here, homes, members))


def most_kept(here: set[int], homes: Mapping[int, str], members: list[str]) -> Iterator[int]:
    """For each way of an even share: how many numbers can stay."""
    least, over = divmod(len(here), len(members))
    owned = [sum(homes.get(number) == member for number in here) for member in members]
    for larger in itertools.combinations(range(len(members)), over):
        yield sum(min(count, least + (place in larger)) for place, count in enumerate(owned))


@contextmanager
def polled(source: KafkaSource) -> Iterator[None]:
    """Poll in a thread of its own, as another process would."""
    over = threading.Event()

    def poll() -> None:
        while not over.is_set():
            source.poll(10, 0.02)

    with ThreadPoolExecutor(1) as pool:
        polling = pool.submit(poll)
        try:
            yield
        finally:
            over.set()
            polling.result()
            source.close()


def test_partitions_of_a_number_move_together(broker: str, topic_name: Callable[[str], str]) -> None:
    views, buys = topic_name("views"), topic_name("buys")
    make_topic(broker, views, 3)
    make_topic(broker, buys, 3)
    first, held_by_first = open_source(config(broker, views, worker_id="worker-1"), views, buys)
    while len(held_by_first.held) < 6:
        first.poll(10, 0.02)
    held_by_first.calls.clear()
    second, held_by_second = open_source(config(broker, views, worker_id="worker-2"), views, buys)
    moved = [(buys, 2), (views, 2)]
    with polled(second):
        while len(held_by_second.held) < 2:
            first.poll(10, 0.02)
        assert held_by_first.calls == [("revoked", moved)]  # what stays is not revoked
        assert held_by_second.calls == [("assigned", moved)]
    first.close()
