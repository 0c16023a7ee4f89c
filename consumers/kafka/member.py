"""One member of a consumer group; its rebalance listener runs in the thread that polls.

kafka-python 3 calls a rebalance listener on its IO thread while the caller of `poll` waits. A listener there
cannot commit or look up an offset: it would wait for the thread that it blocks. Here a join is a task of the
IO thread, which passes each listener call to the polling thread and goes on sending heartbeats; the polling
thread waits for the join and runs the calls. A poll without a join involves no other thread.
"""

import time
from collections.abc import Callable, Coroutine, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from kafka import KafkaConsumer
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.future import Future
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment

from consumers.kafka.reader import ALL_RECORDS, Fetched
from pipeline.events.batch import TopicPartition
from pipeline.service.ports import Listener

JOIN_WAIT_S = 1.0
KEEP_ALIVE_WAIT_S = 0.05
# The embedded broker forgets a member that does not know of a join when the next one begins.
REVOKED_PAUSE_S = 0.1
ENDINGS = ("revoked", "lost")  # the calls that still matter to a member that closes


class _Call(NamedTuple):
    """A call that the IO thread waits for; without an event: partitions are about to be taken away."""

    event: str  # assigned, revoked or lost
    partitions: list[TopicPartition]
    answered: Future


class Member:
    """Drive a `KafkaConsumer` that has a group id. Not for use by several threads."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer, self._coordinator = consumer, consumer._coordinator
        self._listener: Listener | None = None
        self._replies: SimpleQueue[_Call | Future] = SimpleQueue()
        self._parked: _Call | None = None  # came during `keep_alive`, waits for the next `poll`
        self._join: Future | None = None  # the join under way
        self._failure: Exception | None = None  # of the listener
        self._lost = False  # whether partitions were lost since the last join
        self._wait_s, self._may_call, self._in_call, self._closing = JOIN_WAIT_S, True, False, False
        # The client's ways into a join, and from its answer to the new assignment. There are no public ones.
        self._joined_async = self._coordinator.ensure_active_group_async
        self._complete_async = self._coordinator._on_join_complete_async
        self._coordinator.ensure_active_group = self._joined
        self._coordinator._on_join_complete_async = self._complete

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        """Join the group at the next `poll`."""
        self._listener = listener
        self._consumer.subscribe(topics=list(topics), listener=_Relay(self._ask))

    def poll(self) -> Fetched:
        """Return what the client has fetched, without waiting for more; may run the listener.

        During a rebalance it stays up to `JOIN_WAIT_S`. Raise what the listener raised, or the client's
        `KafkaError`.
        """
        return self._poll(JOIN_WAIT_S, may_call=True)

    def keep_alive(self) -> Fetched:
        """Poll without ever running the listener: a rebalance waits for `poll`."""
        if self._in_call or self._parked is not None:
            return {}
        return self._poll(KEEP_ALIVE_WAIT_S, may_call=False)

    @property
    def joining(self) -> bool:
        """Whether a join is under way outside of a listener call: a commit would have an old generation."""
        return self._join is not None and not self._in_call

    def rejoin(self) -> None:
        """Join the group again at the next `poll`, so that its leader assigns the partitions again."""
        self._coordinator.request_rejoin()

    def close(self, timeout_s: float) -> None:
        """Leave the group, telling the listener what that revokes, and close the client."""
        self._may_call, self._closing = True, True
        try:
            if self._join is not None and self._parked is not None and self._parked.event in ENDINGS:
                self._serve(self._join, time.monotonic() + JOIN_WAIT_S)
            leaving = self._start(self._coordinator._on_close_prepare_async)
            self._serve(leaving, None)
            if failure := self._failure or leaving.exception:
                raise failure
        finally:
            self._consumer.close(autocommit=False, timeout_ms=timeout_s * 1000)

    def _poll(self, wait_s: float, may_call: bool) -> Fetched:
        self._wait_s, self._may_call = wait_s, may_call
        fetched: Fetched = {}
        if self._join is None or self._joined():
            fetched = self._consumer.poll(timeout_ms=0, max_records=ALL_RECORDS)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return fetched

    def _joined(self, timeout_ms: float | None = None) -> bool:
        """Join the group as often as it is needed; return whether that was done in time.

        The client calls this in place of its own method, as the time limit (`timeout_ms`) makes that forget a
        join that outlasts one poll: kafka-python 3.0.12 then drops the answer and joins again, or sends no
        heartbeats. Here a join goes on between polls.
        """
        until = time.monotonic() + self._wait_s
        while True:
            join = self._join = self._join or self._start(self._joined_async)
            if not self._serve(join, until):
                return False
            self._join = None
            if join.exception is not None:
                raise join.exception
            if self._lost:  # the leader may have withheld partitions that this member named as its own
                self._lost = False
                self._coordinator.request_rejoin()
            if not self._coordinator.need_rejoin():
                return True

    async def _complete(self, generation: int, member_id: str, protocol: str, assignment: bytes) -> None:
        """Take partitions out of the assignment while the polling thread waits, and at no other moment."""
        if self._consumer.assignment() - set(ConsumerProtocolAssignment.decode(assignment).partitions()):
            await self._ask("", [])
        await self._complete_async(generation, member_id, protocol, assignment)

    async def _ask(self, event: str, partitions: Any) -> None:
        """Pass a call to the polling thread and wait for its end, off the IO thread."""
        if event and not partitions:  # the client reports an empty change at the first join
            return
        call = _Call(event, sorted(TopicPartition(*source) for source in partitions), Future())
        self._replies.put(call)
        await call.answered

    def _start(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Future:
        """Start a coroutine on the IO thread; it replies with itself at its end."""
        task = self._coordinator._manager.call_soon(make)
        task.add_callback(lambda _: self._replies.put(task))
        task.add_errback(lambda _: self._replies.put(task))
        return task

    def _serve(self, task: Future, until: float | None) -> bool:
        """Run calls until `task` ends, and return True, or until a moment in monotonic seconds."""
        while True:
            try:
                left_s = None if until is None else max(0.0, until - time.monotonic())
                reply = self._parked or self._replies.get(timeout=left_s)
            except Empty:
                return False
            self._parked = None
            if reply is task:
                return True
            if not isinstance(reply, _Call):
                continue
            if not self._may_call:
                self._parked = reply
                return False
            if self._closing and reply.event not in ENDINGS:
                continue
            if not reply.event:
                until = None  # nothing but calls comes before the end of the join
            self._run(reply)

    def _run(self, call: _Call) -> None:
        self._in_call = True
        try:
            if call.event:
                getattr(self._listener, call.event)(call.partitions)
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._lost = self._lost or call.event == "lost"
            if call.event == "revoked":  # the client now joins again, to have them given to others
                time.sleep(REVOKED_PAUSE_S)
            self._in_call = False
            self._coordinator._manager.call_soon(call.answered.success, None)


class _Relay(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # the client has no types
    """Pass the client's listener calls on."""

    def __init__(self, ask: Callable[[str, Any], Coroutine[Any, Any, None]]) -> None:
        self._ask = ask

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._ask("assigned", assigned)

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._ask("revoked", revoked)

    async def on_partitions_lost(self, lost: Any) -> None:
        await self._ask("lost", lost)
