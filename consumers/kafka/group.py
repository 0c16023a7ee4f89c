"""The consumer group: static membership under the worker's name, and partitions that no member reads yet.

A worker that was killed and is started again takes its place back at once, without waiting for the end of its
session. In return the client never leaves the group by itself, so a worker that ends leaves it here; and of
two live processes with one `kafka.worker_id` the older one is fenced.
"""

import logging
import time
from collections.abc import Callable, Collection
from contextlib import closing
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.errors import FencedInstanceIdError, KafkaError, UnknownMemberIdError
from kafka.structs import ConsumerGroupMetadata

from consumers.kafka.client import connection_options, extra_options
from pipeline.errors import UsageError
from pipeline.events.batch import TopicPartition
from pipeline.service.ports import Source
from pipeline.settings import KafkaConfig

logger = logging.getLogger(__name__)

NO_MEMBER_IDS = ("", -1)  # of a member that has not joined
LEAVE_WAIT_MS = 2_000


def leave_group(kafka: KafkaConfig, member: ConsumerGroupMetadata) -> None:
    """Remove a member from its group, so that others get its partitions at once.

    Uses a connection of its own: the consumer's may be held up by a join that waits for other members. A
    member that was replaced removes no one. A failure is logged: then the session's time-out removes it.
    """
    asked = MemberToRemove(
        member_id=None if member.member_id in NO_MEMBER_IDS else member.member_id,
        group_instance_id=member.group_instance_id,
        reason="the worker ends",
    )
    try:
        with closing(_admin(kafka)) as admin:
            answers = admin.remove_group_members(member.group_id, [asked])
    except (UnknownMemberIdError, FencedInstanceIdError) as error:  # it is not in the group any more
        logger.debug("leaving the group: %s", error)
    except (KafkaError, OSError) as error:
        logger.warning("did not leave the group: %s; it waits for the end of our session", error)
    else:
        logger.debug("leaving the group: %s", answers)


def is_replaced(kafka: KafkaConfig, member: Callable[[], ConsumerGroupMetadata]) -> bool:
    """Return whether another process holds this member's place in the group; False without an answer.

    A client with a rejected heartbeat reports that with its next commit only, and an idle one never commits.
    `member` is asked before and after, as it may join again during the request.
    """
    before = member()
    if before.member_id in NO_MEMBER_IDS:
        return False
    try:
        with closing(_admin(kafka)) as admin:
            members = admin.describe_groups([before.group_id])[before.group_id]["members"]
    except (KafkaError, OSError):
        return False
    ids = {each["member_id"] for each in members if each["group_instance_id"] == before.group_instance_id}
    return bool(ids) and before.member_id not in ids and member().member_id == before.member_id


def replaced(kafka: KafkaConfig) -> UsageError:
    """Make the error of a worker that another process has replaced in the group."""
    return UsageError(
        f"kafka.worker_id = {kafka.worker_id!r}: another process has joined group {kafka.group_id!r} under "
        "this name; expected one process a worker. Stop one of them, or give it a kafka.worker_id of its own"
    )


def _admin(kafka: KafkaConfig) -> KafkaAdminClient:
    options: dict[str, Any] = connection_options(kafka) | extra_options(kafka, KafkaAdminClient)
    return KafkaAdminClient(
        **options | {"bootstrap_timeout_ms": LEAVE_WAIT_MS, "request_timeout_ms": LEAVE_WAIT_MS}
    )


class UnreadPartitions:
    """Partitions that hold records and that no worker of the group reads; `records` counts them.

    The group's leader assigns added partitions once it sees them. But a member that takes its old place back
    causes no rebalance, and the client of a leader that did so does not know that it leads. So the group has
    to join again, once for each partition. One that another worker reads has a commit within about a second
    of its first record; without a commit and not assigned here it counts as unread.
    """

    def __init__(self, every_s: float) -> None:
        self.records: dict[TopicPartition, int] = {}
        self._every_s = every_s
        self._looked_s = float("-inf")
        self._read: set[TopicPartition] = set()
        self._asked: set[TopicPartition] = set()

    def due(self) -> bool:
        """Return whether the last look is `every_s` ago."""
        return time.monotonic() - self._looked_s >= self._every_s

    def look(self, group: Source, held: Collection[TopicPartition]) -> bool:
        """Look for unread partitions beside those `held` here; return whether the group has to join again.

        It has to for partitions that were unread at the last look too: before, a worker may be about to
        commit.
        """
        self._looked_s = time.monotonic()
        others = set(group.partitions()) - self._read - set(held)
        self._read |= group.committed(others).keys()
        left = sorted(others - self._read)
        starts, ends = group.start_offsets(left), group.end_offsets(left)
        before = self.records
        self.records = {
            source: ends[source] - starts[source] for source in left if ends[source] > starts[source]
        }
        new = self.records.keys() & before.keys() - self._asked
        self._asked |= new
        if new:
            names = ", ".join(f"{source.topic}-{source.partition}" for source in sorted(new)[:10])
            logger.warning(
                "%d partitions hold records and are not read yet: %s%s; asking the group to assign them",
                len(new), names, ", ..." * (len(new) > 10),
            )  # fmt: skip
        return bool(new)
