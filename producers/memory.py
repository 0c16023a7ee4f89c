"""A sink in memory. Its `Outbox` stands for the broker's topics and outlives the sinks over it."""

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
        self._sink, self._failure = sink, failure
        self.acknowledged = False

    def done(self) -> bool:
        if self._failure:
            raise PublishFailed(self._failure)
        return self.acknowledged

    def acknowledged_ms(self) -> None:
        """Return None: the time of the acknowledgement is not noted."""

    def wait(self, timeout_s: float) -> None:
        """Acknowledge all open batches. Raise `PublishFailed` when this one failed or the sink does not
        answer."""
        if self._sink.answers:
            self._sink.acknowledge()
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
        self.at_once, self.answers, self.closed = at_once, True, False
        self._commit = commit
        self._open: list[MemoryReceipt] = []
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
        receipt, outbox = MemoryReceipt(self, self._failure), self.outbox
        if self._failure:
            self._failure = ""
            return receipt
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

    def acknowledge(self) -> None:
        """Acknowledge all open batches."""
        for receipt in self._open:
            receipt.acknowledged = True
        self._open = []

    def fail_next(self, reason: str = "the broker rejected the batch") -> None:
        """Make the next batch fail with `PublishFailed`; nothing of it is written."""
        self._failure = reason

    def close(self) -> None:
        """Acknowledge open batches if the sink answers, and reject further ones."""
        if self.answers:
            self.acknowledge()
        self.closed = True
