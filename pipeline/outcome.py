"""The result of one step, and `Learner`, the interface of what the loop trains."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pipeline.events.batch import IntArray, ItemChange, RawBatch, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.state.shards import Shard, Snapshot

STAGES = ("event", "state", "train", "rank", "publish", "measure")
SKIPS = ("no_target", "non_finite")  # reasons to skip a training step
Mark = Callable[[str], None]  # called with a stage's name when the stage ends


def no_mark(stage: str) -> None:
    """Measure nothing."""


class TableMetrics(NamedTuple):
    """Rows of one table after a batch, and how many the batch admitted and evicted."""

    live: int
    admitted: int
    evicted: int


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Metrics of one batch."""

    types: dict[str, int]  # events by type
    duplicates: int
    learned: int  # events learned in this batch
    loss: float  # mean over the batch's targets; NaN without targets
    gradient_norm: float
    skipped: str  # why the training step was skipped: "", "no_target" or "non_finite"
    newest_event_ms: int
    tables: dict[str, TableMetrics]
    late: int = 0  # backlog events: their users' lists are made at the end of the backlog
    moved: int = 0  # events from another partition of their topic than the user's previous event
    due: int = 0  # users with a pending ranking
    reacting: bool = False  # whether a reaction to drift is active


@dataclass(frozen=True, slots=True)
class Outcome:
    """The output of `Recommender.step`."""

    rankings: list[Ranking]
    removed_users: list[str]  # users with a published list to remove
    alarms: list[DriftAlarm]
    metrics: StepMetrics
    append_ms_B: IntArray = field(repr=False)  # record timestamps of the events; 0 where not plausible
    # users of `rankings` without an event in the batch, each with the user's partition
    refreshed: dict[str, TopicPartition] = field(default_factory=dict)


class Learner(Protocol):
    """What the loop, the checkpoint and `inspect` need of a recommender."""

    seq: int  # of the next batch
    held: Collection[TopicPartition]  # the worker's assigned partitions, empty ones included

    @property
    def events_learned(self) -> int:
        """Events learned so far, without duplicates and rejects."""

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """The next offset of every partition with users in the state."""

    @property
    def item_offsets(self) -> dict[TopicPartition, int]:
        """The next offset of every partition of the items topic that was read."""

    @property
    def pending_rankings(self) -> bool:
        """Whether lists are pending that need no event: the next batch makes them, even an empty one."""

    def catalog_changes(self, changes: Iterable[ItemChange]) -> tuple[ItemChange, ...]:
        """Return the changes that have an effect."""

    def step(self, raw: RawBatch, mark: Mark = no_mark) -> Outcome:
        """Learn a batch and rank its users. `raw.seq` must equal `seq`. Advances `seq` and `offsets`."""

    def catch_up(self, raw: RawBatch) -> None:
        """Update the users' state with events that another worker has learned; `seq` is unchanged."""

    def take(self, sources: Collection[TopicPartition]) -> Shard:
        """Copy the users of these partitions out."""

    def put(self, shard: Shard, sources: Collection[TopicPartition] | None = None) -> None:
        """Replace the users of these partitions, by default of all in the shard, by those of the shard."""

    def release(self, sources: Collection[TopicPartition]) -> None:
        """Drop partitions with their users and offsets."""

    def snapshot(self) -> Snapshot:
        """Copy the whole state, with the users of every partition."""

    def restore(self, snapshot: Snapshot) -> None:
        """Restore the state from a snapshot; only before the first batch."""

    def digests(self) -> dict[str, str]:
        """Return `digest_model` and `digest_users`: equal for equal content, independent of row order."""
