"""An in-memory sink for tests and for runs without a broker.

An `Outbox` stands for the broker's topics and outlives its sinks: after a simulated kill a new sink is made
over the same outbox. By default batches are acknowledged at once; tests can delay or fail them.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.errors import PublishFailed
from pipeline.events.batch import Reject, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.service.ports import NOTHING, Publication


@dataclass(slots=True)
class Outbox:
    """Everything that was published, in order; `newest` is the content of a compacted topic of rankings."""

    rankings: list[Ranking] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    alarms: list[DriftAlarm] = field(default_factory=list)
    removed_users: list[str] = field(default_factory=list)
    newest: dict[str, Ranking] = field(default_factory=dict)


class MemoryReceipt:
    """A published batch: open, acknowledged or failed."""

    def __init__(self, sink: "MemorySink", failure: str = "") -> None:
        self._sink = sink
        self._failure = failure
        self._acknowledged = False

    def acknowledge(self) -> None:
        """Mark the batch as acknowledged, unless it failed."""
        self._acknowledged = True

    def done(self) -> bool:
        """Return whether the batch is acknowledged. Raise `PublishFailed` when it failed."""
        if self._failure:
            raise PublishFailed(self._failure)
        return self._acknowledged

    def acknowledged_ms(self) -> None:
        """Return None: the time of the acknowledgement is not noted."""

    def wait(self, timeout_s: float) -> None:
        """Acknowledge all batches up to this one. Raise `PublishFailed` when it failed or the sink does not
        answer."""
        if not self.done() and self._sink.answers:
            self._sink.acknowledge(upto=self)
        if not self.done():
            raise PublishFailed(f"not acknowledged within {timeout_s:g} s")


class MemorySink:
    """A sink that appends to an `Outbox`.

    With `at_once=False` a receipt stays open until `acknowledge` or its own `wait`; with `answers = False`
    waiting fails too. With `commit` a batch and its offsets are written together, as in a transaction.
    """

    def __init__(
        self,
        outbox: Outbox | None = None,
        *,
        at_once: bool = True,
        commit: Callable[[Mapping[TopicPartition, int]], None] | None = None,
    ) -> None:
        self.outbox = Outbox() if outbox is None else outbox
        self.at_once = at_once
        self.answers = True
        self.closed = False
        self._commit = commit
        self._open: deque[MemoryReceipt] = deque()
        self._failure = ""

    @property
    def commits_offsets(self) -> bool:
        """Whether `publish` commits the offsets."""
        return self._commit is not None

    def publish(
        self, publication: Publication, offsets: Mapping[TopicPartition, int] = NOTHING
    ) -> MemoryReceipt:
        """Append a batch. Raise RuntimeError when the sink is closed."""
        if self.closed:
            raise RuntimeError("publish on a closed sink")
        failure, self._failure = self._failure, ""
        receipt = MemoryReceipt(self, failure)
        if failure:
            return receipt
        outbox = self.outbox
        outbox.rankings += publication.rankings
        outbox.rejects += publication.rejects
        outbox.alarms += publication.alarms
        outbox.removed_users += publication.removed_users
        outbox.newest.update((ranking.user_id, ranking) for ranking in publication.rankings)
        for user_id in publication.removed_users:  # after the rankings, as on a topic
            outbox.newest.pop(user_id, None)
        if self._commit is not None:
            self._commit(offsets)
        self._open.append(receipt)
        if self.at_once:
            self.acknowledge()
        return receipt

    def acknowledge(self, *, upto: MemoryReceipt | None = None) -> None:
        """Acknowledge open batches in order: all, or those up to `upto`."""
        while self._open:
            receipt = self._open.popleft()
            receipt.acknowledge()
            if receipt is upto:
                return

    def fail_next(self, reason: str = "the broker rejected the batch") -> None:
        """Make the next batch fail with `PublishFailed`; nothing of it is written."""
        self._failure = reason

    def close(self) -> None:
        """Acknowledge open batches if the sink answers, and reject further ones."""
        if self.answers:
            self.acknowledge()
        self.closed = True
