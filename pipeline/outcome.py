"""What one step gives back: the lists to publish, and the figures of the batch."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pipeline.events.batch import IntArray, ItemChange, RawBatch, TopicPartition
from pipeline.events.records import DriftAlarm, Ranking
from pipeline.state.shards import Shard, Snapshot

STAGES = ("event", "state", "train", "rank", "publish", "measure")
SKIPS = ("no_target", "non_finite")  # why a batch takes no training step
Mark = Callable[[str], None]  # called with a stage's name when the stage has ended


def no_mark(stage: str) -> None:
    """Measure nothing."""


class TableFigures(NamedTuple):
    """Rows of one table after the batch, and how many came and went in it."""

    live: int
    admitted: int
    evicted: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What happened in one batch."""

    types: dict[str, int]  # events by type, known types only; others under "other"
    duplicates: int
    learned: int  # events learned in this batch
    loss: float  # mean over the batch's targets; NaN when there was none
    gradient_norm: float
    # why no training step was taken; "" when one was, "no_target" when nothing was to be learned
    skipped: str
    newest_event_ms: int
    tables: dict[str, TableFigures]
    late: int = 0  # events of a backlog: their users' lists wait for its end
    moved: int = 0  # events from another partition of their topic than the user's event before
    due: int = 0  # users whose list is still to be made without an event
    reacting: bool = False  # whether a reaction to drift runs


@dataclass(frozen=True, slots=True)
class Outcome:
    """The output of `Recommender.step`."""

    rankings: list[Ranking]
    gone: list[str]  # users whose published list is to be removed
    alarms: list[DriftAlarm]
    figures: Figures
    # record timestamps of the batch's events; 0 where not plausible
    append_ms_B: IntArray = field(repr=False)
    # users of `rankings` without an event in the batch, each with the partition that the user is of
    refreshed: dict[str, TopicPartition] = field(default_factory=dict)


class Learner(Protocol):
    """What the loop, the checkpoint and `inspect` need of a recommender."""

    seq: int  # of the next batch
    held: Collection[TopicPartition]  # partitions that the worker holds, whether events have come or not

    @property
    def events_learned(self) -> int:
        """Events learned so far, duplicates and rejects left out."""

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """What the state knows: the next offset of every partition it holds."""

    @property
    def item_offsets(self) -> dict[TopicPartition, int]:
        """The next offset of every partition of the items topic that was read."""

    @property
    def owes(self) -> bool:
        """Whether lists are to go out that wait for no event: a batch without any makes them."""

    def news(self, changes: Iterable[ItemChange]) -> tuple[ItemChange, ...]:
        """Return those changes of items that change anything."""

    def step(self, raw: RawBatch, mark: Mark = no_mark) -> Outcome:
        """Learn a batch and rank its users. `raw.seq` must equal `seq`. Advances `seq` and `offsets`."""

    def catch_up(self, raw: RawBatch) -> None:
        """Bring users' state alone up to date with events that another worker has learned; `seq` stays."""

    def take(self, sources: Collection[TopicPartition]) -> Shard:
        """Copy the partitions' users out."""

    def put(self, shard: Shard, sources: Collection[TopicPartition] | None = None) -> None:
        """Add the users of a shard's partitions, of these or of all, in the place of what is held of them."""

    def release(self, sources: Collection[TopicPartition]) -> None:
        """Drop partitions: their users and their offsets."""

    def snapshot(self) -> Snapshot:
        """Copy everything out, the users of every partition held too."""

    def restore(self, snapshot: Snapshot) -> None:
        """Become what the snapshot was, users included; only on a recommender that has learned nothing."""

    def digests(self) -> dict[str, str]:
        """Return `digest_model` and `digest_users`: equal for equal content, whatever the row numbers."""
