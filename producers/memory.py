"""Rankings into lists in memory: a sink like any other, for tests and for whole runs without a broker.

`Outbox` is the broker's part and outlives its sinks, so that a sink that was "killed" is made again over
the same outbox. By default everything is acknowledged at once; a test that wants a slow or a failing broker
says so.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import PublishFailed
from pipeline.events.batch import Reject, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.service.ports import NOTHING

Commit = Callable[[Mapping[TopicPartition, int]], None]


@dataclass(slots=True)
class Outbox:
    """Everything that was published, in order. `newest` is what the compacted topic of rankings comes down
    to."""

    rankings: list[Ranking] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    alarms: list[DriftAlarm] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    newest: dict[str, Ranking] = field(default_factory=dict)


class ListReceipt:
    """A batch on its way out: open, acknowledged or failed."""

    def __init__(self, sink: "ListSink", failure: str = "") -> None:
        self._sink = sink
        self._failure = failure
        self._acknowledged = False

    def acknowledge(self) -> None:
        """Mark the batch as written, unless it failed."""
        self._acknowledged = True

    def done(self) -> bool:
        """Say whether the batch is acknowledged. Raise `PublishFailed` when it failed."""
        if self._failure:
            raise PublishFailed(self._failure)
        return self._acknowledged

    def acknowledged_ms(self) -> None:
        """Know no time: the batch counts as acknowledged when somebody looks."""

    def wait(self, timeout_s: float) -> None:
        """Let the sink answer up to this batch. Raise `PublishFailed` when it failed, or when nobody
        answers."""
        if not self.done() and self._sink.answers:
            self._sink.acknowledge(upto=self)
        if not self.done():
            raise PublishFailed(f"not acknowledged within {timeout_s:g} s: the sink was told not to answer")


class ListSink:
    """A sink into an `Outbox`.

    With `at_once=False` a receipt stays open until `acknowledge` or its own `wait`; with `answers = False`
    waiting fails too. `fail_next` makes the next batch fail as a whole: nothing of it is written. With
    `commit` a batch and its offsets are written together, as in a transaction.
    """

    def __init__(
        self, outbox: Outbox | None = None, *, at_once: bool = True, commit: Commit | None = None
    ) -> None:
        self._commit = commit
        self.outbox = Outbox() if outbox is None else outbox
        self.answers = True
        self.closed = False
        self._at_once = at_once
        self._open: deque[ListReceipt] = deque()
        self._failure = ""

    @property
    def commits_offsets(self) -> bool:
        """Whether offsets are committed here."""
        return self._commit is not None

    def publish(
        self,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
        offsets: Mapping[TopicPartition, int] = NOTHING,
    ) -> ListReceipt:
        """Write a batch. Raise RuntimeError when the sink is closed."""
        if self.closed:
            raise RuntimeError("publish on a closed sink")
        failure, self._failure = self._failure, ""
        receipt = ListReceipt(self, failure)
        if failure:
            return receipt
        self._write(rankings, rejects, alarms, gone)
        if self._commit is not None:
            self._commit(offsets)
        self._open.append(receipt)
        if self._at_once:
            self.acknowledge()
        return receipt

    def acknowledge(self, *, upto: ListReceipt | None = None) -> None:
        """Acknowledge open batches in order: all, or those up to `upto`."""
        while self._open:
            receipt = self._open.popleft()
            receipt.acknowledge()
            if receipt is upto:
                return

    def fail_next(self, why: str = "the broker refused the batch") -> None:
        """Make the next batch fail with `PublishFailed`."""
        self._failure = why

    def close(self) -> None:
        """Acknowledge what is open, if the sink answers at all, and refuse further batches."""
        if self.answers:
            self.acknowledge()
        self.closed = True

    def _write(
        self,
        rankings: Sequence[Ranking],
        rejects: Sequence[Reject],
        alarms: Sequence[DriftAlarm],
        gone: Sequence[str],
    ) -> None:
        outbox = self.outbox
        outbox.rankings += rankings
        outbox.rejects += rejects
        outbox.alarms += alarms
        outbox.gone += gone
        outbox.newest.update((ranking.user_id, ranking) for ranking in rankings)
        for user_id in gone:  # after the rankings: a user who goes in this batch stays gone
            outbox.newest.pop(user_id, None)
