"""One member of a consumer group, whose listener runs in the thread that polls.

kafka-python 3 calls a rebalance listener on its own IO thread, while the caller of `poll` waits. A listener
there can't commit or look up an offset: it would wait for the very thread that it holds. So `poll` and
`close` run on a helper thread, the IO thread hands each listener call to the caller and goes on serving
heartbeats, and the caller, who would only wait, runs it. One thing happens at a time, all of it in the
caller's thread.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from kafka import KafkaConsumer
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.errors import KafkaError
from kafka.future import Future
from kafka.structs import MemberState

from pipeline.events.batch import Record, TopicPartition
from pipeline.service.ports import Listener

Fetched = dict[TopicPartition, list[Record]]
# One poll takes everything that was fetched (bounded by fetch_max_bytes). A partition that is paused with its
# records half taken is never served again by kafka-python 3.0.12, and keeps `poll` from waiting.
EVERYTHING = 1 << 30
JOIN_WAIT_S = 1.0
TOUCH_WAIT_S = 0.05
# The embedded broker forgets a member that has not heard of a join when the next one begins.
REVOKED_PAUSE_S = 0.1


class _Call(NamedTuple):
    """A listener call that the IO thread waits for."""

    event: str  # assigned, revoked or lost
    partitions: list[TopicPartition]
    answered: Future


class _Done(NamedTuple):
    """The end of a client call."""

    value: Any
    error: BaseException | None


class Member:
    """Drive a `KafkaConsumer` that has a group id. Not for use by several threads."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self._listener: Listener | None = None
        self._errands: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._replies: SimpleQueue[_Call | _Done] = SimpleQueue()
        self._parked: _Call | None = None  # came during `keep_alive`, waits for the next `poll`
        self._under_way = False
        self._listening = False
        self._helper = threading.Thread(target=self._serve, name="afresh-kafka-poll", daemon=True)
        self._helper.start()

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        """Join the group at the next `poll`."""
        self._listener = listener
        self._consumer.subscribe(topics=list(topics), listener=_Relay(self._replies))

    def poll(self) -> Fetched:
        """Return what the client has fetched, without waiting for more; may run the listener.

        During a rebalance it stays up to `JOIN_WAIT_S`: kafka-python 3.0.12 drops the result of a join that
        comes when nobody is in `poll`, and joins again.

        Raise what the listener raised, or the client's `KafkaError`.
        """
        if not self._under_way:
            self._begin(self._poll)
        fetched: Fetched = self._finish()
        return fetched

    def touch(self) -> Fetched:
        """Tell the group that we are alive and never run the listener: a rebalance waits for `poll`."""
        if self._listening or self._parked is not None:
            return {}
        if not self._under_way:
            self._begin(self._poll)
        try:
            reply = self._replies.get(timeout=TOUCH_WAIT_S)
        except Empty:  # a join: the helper stays with it
            return {}
        if isinstance(reply, _Call):
            self._parked = reply
            return {}
        fetched: Fetched = self._settle(reply)
        return fetched

    def rejoin(self) -> None:
        """Join the group again at the next `poll`, so that its leader hands the partitions out again."""
        self._consumer._coordinator.request_rejoin()

    def close(self, timeout_s: float) -> None:
        """Leave the group, telling the listener what is revoked by that, and close the client."""
        try:
            if self._under_way:  # a poll that `touch` has left
                self._finish()
        finally:
            try:
                self._begin(lambda: self._consumer.close(autocommit=False, timeout_ms=timeout_s * 1000))
                self._finish()
            finally:
                self._errands.put(None)
                self._helper.join(timeout_s)

    def _poll(self) -> Any:
        """Stay with a join until it is done, then take what was fetched.

        A poll that returns in between loses the join's answer, and the member joins once more. Another
        that has not heard of the first join by then may wait for ever: the embedded broker has forgotten it.
        """
        coordinator = self._consumer._coordinator  # no public call waits for a join and for nothing else
        until = time.monotonic() + JOIN_WAIT_S
        while True:
            while self._joining(coordinator) and (left_s := until - time.monotonic()) > 0.0:
                coordinator.poll(timeout_ms=left_s * 1000)
            fetched = self._consumer.poll(timeout_ms=0, max_records=EVERYTHING)
            if fetched or not self._joining(coordinator) or time.monotonic() > until:
                return fetched  # else that poll has begun a join

    def _joining(self, coordinator: Any) -> bool:
        """Say whether a join is under way or wanted.

        One that began because the topics' partitions became known is otherwise forgotten when it outlasts the
        poll that began it: kafka-python 3.0.12 takes it for done, sends no heartbeats, and is thrown out.
        """
        if self._consumer.group_metadata().state == MemberState.REBALANCING:
            coordinator.request_rejoin()
        return bool(coordinator.need_rejoin())

    def _begin(self, errand: Callable[[], Any]) -> None:
        self._under_way = True
        self._errands.put(errand)

    def _finish(self) -> Any:
        """Run listener calls until the errand is done; the first error of the listener wins."""
        failure: Exception | None = None
        while True:
            reply = self._parked or self._replies.get()
            self._parked = None
            if isinstance(reply, _Done):
                break
            try:
                self._tell(reply)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            self._under_way = False
            raise failure
        return self._settle(reply)

    def _settle(self, done: _Done) -> Any:
        self._under_way = False
        if done.error is not None:
            raise done.error
        return done.value

    def _tell(self, call: _Call) -> None:
        assert self._listener is not None
        self._listening = True
        try:
            getattr(self._listener, call.event)(call.partitions)
        finally:
            if call.event == "revoked":  # the client now joins again, to have them given to others
                time.sleep(REVOKED_PAUSE_S)
            self._listening = False
            call.answered.success(None)
            with contextlib.suppress(KafkaError):
                self._consumer.commit_async(
                    {}
                )  # commits nothing: the public way to wake the client's IO loop

    def _serve(self) -> None:
        while (errand := self._errands.get()) is not None:
            try:
                done = _Done(errand(), None)
            except BaseException as error:  # handed to the caller, whatever it is
                done = _Done(None, error)
            self._replies.put(done)


class _Relay(AsyncConsumerRebalanceListener):  # type: ignore[misc]  # the client has no types
    """Hand the client's listener calls to the polling thread and wait there, off the IO thread."""

    def __init__(self, replies: "SimpleQueue[_Call | _Done]") -> None:
        self._replies = replies

    async def on_partitions_assigned(self, assigned: Any) -> None:
        await self._ask("assigned", assigned)

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._ask("revoked", revoked)

    async def on_partitions_lost(self, lost: Any) -> None:
        await self._ask("lost", lost)

    async def _ask(self, event: str, partitions: Any) -> None:
        if not partitions:  # the client reports an empty change at the first join
            return
        answered = Future()
        self._replies.put(_Call(event, sorted(TopicPartition(*source) for source in partitions), answered))
        await answered
