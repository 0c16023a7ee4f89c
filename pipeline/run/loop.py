"""The loop: records in, rankings out, and nothing lost or learned twice, whatever kills the process.

A batch is written to the journal before it is learned, learned before it is published, acknowledged before it
is committed. So after a crash at any point the journal says which batches were learned since the last
checkpoint; they are read from the topic and learned again in the same order and borders, and what the group
has not committed of them is published again. Where the sink commits a batch and its offsets together, what is
not committed never happened: it is cut off the journal, and read from the topic as new batches.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from pipeline.errors import AfreshError
from pipeline.event.batch import Polled, RawBatch, TopicPartition
from pipeline.event.decode import Decoder
from pipeline.outcome import Learner, Outcome
from pipeline.run.checkpoint import Checkpoints
from pipeline.run.guard import Guard
from pipeline.run.in_flight import InFlight, unheard
from pipeline.run.journal import Entry, Journal
from pipeline.run.observe import Observer
from pipeline.run.partitions import Partitions
from pipeline.run.ports import Clock, Sink, Source
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

STOP_WAIT_S = 5.0  # for acknowledgements once the loop is to stop: the whole end must fit into 10 s
LONG_STEP_S = 600.0  # what /live allows a restore, a takeover or a checkpoint


@dataclass(frozen=True, slots=True)
class Edges:
    """The world around the loop."""

    source: Source
    decoder: Decoder
    sink: Sink
    clock: Clock
    observer: Observer


@dataclass(frozen=True, slots=True)
class Survival:
    """What outlives the process."""

    checkpoints: Checkpoints
    journal: Journal


class Loop:
    """Drives one learner over one source and one sink.

    Without `survival` nothing outlives the process: it starts at the group's commit, else at the earliest
    record.
    """

    def __init__(
        self, learner: Learner, edges: Edges, settings: Settings, survival: Survival | None = None
    ) -> None:
        self.learner = learner
        self._source, self._sink = edges.source, edges.sink
        self._decoder, self._clock, self._observer = edges.decoder, edges.clock, edges.observer
        self._settings = settings
        self._survival = survival
        self._guard = Guard(settings.limits.dead_letter_ratio, settings.limits.dead_letter_run)
        self.in_flight = InFlight(self._source, self._sink, self._clock, self._observer, self._ack_timeout_s)
        shards = None if survival is None else survival.checkpoints.shards
        self.partitions = Partitions(learner, self._source, self.in_flight, shards, self._observer)
        self._stopping = False
        self._joined = False
        self._checkpoint_s = self._clock.monotonic_s()

    def run(self) -> None:
        """Go on until `stop` is called; then finish, save and leave.

        An error ends the run without a commit: the next start goes on from the journal.
        """
        try:
            self.start()
            while not self._stopping:
                self.tick()
            self.leave()
        except AfreshError:
            self._abandon()
            raise
        finally:
            if self._survival is not None:
                self._survival.journal.close()

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand. Safe in a signal handler."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def start(self) -> None:
        """Restore the newest checkpoint, learn again what the journal holds beyond it, and join the group."""
        self._observer.became("resuming")
        if self._survival is None:
            logger.warning(
                "checkpoint.path is empty: nothing survives a restart; set it to a folder to keep the state"
            )
        else:
            self._resume(self._survival)
        if not self._stopping:
            self._joined = True
            self._observer.became("rebalancing")
            self._source.start(self.partitions)

    def tick(self) -> None:
        """Take one batch all the way.

        0. Poll. Partitions that came or went are settled first; what was polled beside that is put back.
        1. Journal: from here on the batch's records, their order and its time are history.
        2. Learn: decode, score, update, rank.
        3. Publish, once the batch before is acknowledged.
        4. Commit what is acknowledged, about once a second.
        5. Checkpoint when due, with nothing in flight and all committed.
        """
        self._observer.ticked()
        batch = self._settings.batch
        polled = self._source.poll(batch.max_events, batch.max_wait_ms / 1000)  # 0
        self._observer.begin()
        if self.partitions.unsettled:
            self._put_back(polled)
            self._settle()
            return
        self.partitions.joined()
        if polled:
            entry = Entry(self.learner.seq, self._clock.now_ms(), polled.spans, polled.order_R)
            if self._survival is not None:
                self._survival.journal.append(entry)  # 1
            raw, outcome = self._learn(entry, polled)  # 2
            self.in_flight.publish(raw, outcome)  # 3
            self._observer.mark("publish")
        self.in_flight.settle()
        if self.in_flight.commit_due():
            self.in_flight.commit(self.partitions.held)  # 4
        if self._checkpoint_due():
            self.partitions.release_strangers()
            self.checkpoint()  # 5

    def checkpoint(self) -> None:
        """Wait until all is acknowledged, commit it, and save everything."""
        started_s = self._clock.monotonic_s()
        self.in_flight.drain()
        self.in_flight.commit(self.partitions.held)
        if self._survival is not None:
            checkpoints, journal = self._survival.checkpoints, self._survival.journal
            self._observer.busy("saving a checkpoint", LONG_STEP_S)
            seq, now_ms = self.learner.seq, self._clock.now_ms()
            checkpoints.save(self.learner, self._source.generation(), now_ms, self._source.keep_alive)
            journal.checkpoint_taken(seq, checkpoints.oldest_seq)
            self._observer.checkpointed(self._clock.monotonic_s() - started_s, self._clock.now_ms())
        self._checkpoint_s = self._clock.monotonic_s()

    def leave(self) -> None:
        """Finish what is in flight, commit, save, and leave the group."""
        self._observer.became("stopping")
        if self._joined:  # else the journal is still ahead of the state, and has it all
            if self.partitions.unsettled or not self._saved():
                self.checkpoint()
            self.in_flight.drain()
            self.in_flight.commit(self.partitions.held)
        self.partitions.leaving = True
        self._source.close()
        self._sink.close()

    def _abandon(self) -> None:
        """Leave the group after an error, so that others can go on; what is in flight stays uncommitted."""
        self.partitions.leaving = True
        with suppress(AfreshError):
            self._source.close()

    def _resume(self, survival: Survival) -> None:
        self._observer.busy("reading the checkpoint", LONG_STEP_S)
        survival.journal.lock()
        survival.checkpoints.topic_ids = self._source.topic_ids()
        found = survival.checkpoints.load()
        if found is not None:
            manifest, snapshot = found
            self.learner.restore(snapshot)
            logger.info("restored batch %d, %d events learned", manifest.seq, manifest.events_learned)
        committed = self._source.committed(self._source.partitions())
        first = self.learner.seq
        for entry in survival.journal.entries(first):
            if self._sink.commits_offsets and not is_committed(entry, committed):
                survival.journal.cut(entry.seq)
                break
            self._observer.ticked()
            polled = self._source.read(entry.spans, entry.order_R)
            self._observer.begin()
            raw, outcome = self._learn(entry, polled)
            if not raw.before(committed):
                self.in_flight.publish(*unheard(raw, outcome, committed))
            if self._stopping:
                return  # the journal still has it all
        self.in_flight.drain()
        survival.journal.open(self.learner.seq)
        if self.learner.seq > first:
            logger.info("learned batches %d to %d again", first, self.learner.seq - 1)

    def _learn(self, entry: Entry, polled: Polled) -> tuple[RawBatch, Outcome]:
        raw = self._decoder.decode(entry.seq, entry.now_ms, polled)
        self._guard.check(polled, raw)
        self._observer.mark("event")
        outcome = self.learner.step(raw, self._observer.mark)
        self._guard.check_step(raw.seq, outcome.figures.skipped)
        self._observer.learned(raw, outcome, self.learner)
        return raw, outcome

    def _settle(self) -> None:
        """Bring the state in line with the assignment, and save it: the journal never spans such a change."""
        while self.partitions.unsettled and not self._stopping:
            self._observer.busy("taking partitions over", LONG_STEP_S)
            self.partitions.settle(self._decoder, self._clock, lambda: self._stopping)
            self.checkpoint()

    def _put_back(self, polled: Polled) -> None:
        for span in polled.spans:
            if span.source in self.partitions.held:
                self._source.seek(span.source, span.start)

    def _checkpoint_due(self) -> bool:
        passed_s = self._clock.monotonic_s() - self._checkpoint_s
        return passed_s >= self._settings.checkpoint.interval_s and not self._saved()

    def _saved(self) -> bool:
        """Say whether the newest checkpoint holds all that is learned."""
        return self._survival is None or self.learner.seq == self._survival.checkpoints.saved_seq

    def _ack_timeout_s(self) -> float:
        return STOP_WAIT_S if self._stopping else self._settings.kafka.broker_timeout_s


def is_committed(entry: Entry, committed: Mapping[TopicPartition, int]) -> bool:
    """Say whether the group has committed every record of a batch."""
    return all(span.stop <= committed.get(span.source, 0) for span in entry.spans)
