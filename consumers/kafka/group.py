"""Who we are in the consumer group: a static member, named after the worker.

A worker that was killed and is started again takes its own place back at once: the group needs not wait for
the session of its dead self to end. In return the client never leaves the group by itself, so a worker that
ends says so here; and of two live processes with one `kafka.worker_id` the older one is fenced.
"""

import logging
from collections.abc import Callable
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove
from kafka.errors import FencedInstanceIdError, KafkaError, UnknownMemberIdError
from kafka.structs import ConsumerGroupMetadata

from consumers.kafka.client import connection_options, extra_options
from pipeline.errors import UsageError
from pipeline.settings import KafkaConfig

logger = logging.getLogger(__name__)

NOBODY = ("", -1)  # member ids of one who has not joined
LEAVE_WAIT_MS = 2_000
OUT_ALREADY = (UnknownMemberIdError, FencedInstanceIdError)


def leave_group(kafka: KafkaConfig, member: ConsumerGroupMetadata) -> None:
    """Take a member out of its group, so that others get its partitions at once.

    Goes over a connection of its own: the consumer's may be held up by a join that waits for other members.
    A member that was replaced takes nobody out. A failure is logged: the session's end does it then.
    """
    asked = MemberToRemove(
        member_id=None if member.member_id in NOBODY else member.member_id,
        group_instance_id=member.group_instance_id,
        reason="the worker ends",
    )
    try:
        admin = _admin(kafka)
        try:
            answers = admin.remove_group_members(member.group_id, [asked])
        finally:
            admin.close()
    except OUT_ALREADY as error:
        logger.debug("leaving the group: %s", error)
        return
    except (KafkaError, OSError) as error:
        logger.warning("did not leave the group: %s; it waits for the end of our session", error)
        return
    logger.debug("leaving the group: %s", answers)


def is_replaced(kafka: KafkaConfig, member: Callable[[], ConsumerGroupMetadata]) -> bool:
    """Ask whether another process holds this member's place in the group.

    A client whose heartbeat is refused for that keeps quiet about it until it commits, and an idle one never
    does. `member` is asked before and after, as it may join anew meanwhile. Without an answer: no.
    """
    before = member()
    if before.member_id in NOBODY:
        return False
    try:
        admin = _admin(kafka)
        try:
            members = admin.describe_groups([before.group_id])[before.group_id]["members"]
        finally:
            admin.close()
    except (KafkaError, OSError):
        return False
    ids = {each["member_id"] for each in members if each["group_instance_id"] == before.group_instance_id}
    return bool(ids) and before.member_id not in ids and member().member_id == before.member_id


def replaced(kafka: KafkaConfig) -> UsageError:
    """Make the error of a worker whose place another process has taken."""
    return UsageError(
        f"kafka.worker_id = {kafka.worker_id!r}: another process has joined group {kafka.group_id!r} under "
        "this name; expected one process a worker. Stop one of them, or give it a kafka.worker_id of its own"
    )


def _admin(kafka: KafkaConfig) -> KafkaAdminClient:
    options: dict[str, Any] = connection_options(kafka) | extra_options(kafka, KafkaAdminClient)
    return KafkaAdminClient(
        **options | {"bootstrap_timeout_ms": LEAVE_WAIT_MS, "request_timeout_ms": LEAVE_WAIT_MS}
    )
