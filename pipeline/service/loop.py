"""The loop: records in, rankings out, and nothing lost or learned twice, whatever kills the process.

A batch is written to the journal before it is learned, learned before it is published, acknowledged before it
is committed. So after a crash at any point the journal says which batches were learned since the last
checkpoint; they are read from the topic and learned again in the same order and borders, and what the group
has not committed of them is published again. Where the sink commits a batch and its offsets together, what is
not committed never happened: it is cut off the journal, and read from the topic as new batches. A batch
without records leaves no offset to tell by: where it came last, its lists go out once more, the same as
before.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from pipeline.errors import AfreshError
from pipeline.events.batch import NOTHING_POLLED, CatalogUpdate, Polled, RawBatch, Reject, TopicPartition
from pipeline.events.decode import Decoder
from pipeline.outcome import Learner, Outcome
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.journal import Entry, Journal
from pipeline.service.catalogue import Catalogue
from pipeline.service.guard import Guard
from pipeline.service.in_flight import InFlight, unheard
from pipeline.service.observe import Observer
from pipeline.service.partitions import Partitions
from pipeline.service.ports import Clock, ItemSource, Sink, Source
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

STOP_WAIT_S = 5.0  # for acknowledgements once the loop is to stop: the whole end must fit into 10 s
LONG_STEP_S = 600.0  # what /live allows a restore, a takeover or a checkpoint


@dataclass(frozen=True, slots=True)
class Adapters:
    """The world around the loop."""

    source: Source
    decoder: Decoder
    sink: Sink
    clock: Clock
    observer: Observer
    items: ItemSource | None = None


@dataclass(frozen=True, slots=True)
class Durability:
    """What outlives the process."""

    checkpoints: Checkpoints
    journal: Journal


class Loop:
    """Drives one learner over one source and one sink.

    Without `survival` nothing outlives the process: it starts at the group's commit, else at the earliest
    record.
    """

    def __init__(
        self, learner: Learner, edges: Adapters, settings: Settings, survival: Durability | None = None
    ) -> None:
        self.learner = learner
        self._source, self._sink = edges.source, edges.sink
        self._decoder, self._clock, self._observer = edges.decoder, edges.clock, edges.observer
        self._settings = settings
        self._survival = survival
        self._guard = Guard(
            settings.limits.max_dead_letter_ratio, settings.limits.max_consecutive_dead_letters
        )
        self.in_flight = InFlight(self._source, self._sink, self._clock, self._observer, self._ack_timeout_s)
        self.catalogue = Catalogue(edges.items, learner, edges.clock)
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
            self.catalogue.start()
            self._source.start(self.partitions)

    def tick(self) -> None:
        """Take one batch all the way.

        0. Poll. Partitions that came or went are settled first; what was polled beside that is put back.
           News of items come along; at the start they are read to their end before any event.
        1. Journal: from here on the batch's records, their order, its time and its news are history.
        2. Learn: decode, score, update, rank.
        3. Publish, once the batch before is acknowledged.
        4. Commit what is acknowledged, about once a second.
        5. Checkpoint when due, with nothing in flight and all committed.
        """
        self._observer.ticked()
        polled = self._poll()  # 0
        self._observer.begin()
        if self.partitions.unsettled:
            self._put_back(polled)
            self._settle()
            return
        self.learner.held = self.partitions.held
        news = self.catalogue.take()
        # before the items are known a list might show one that is withdrawn
        if polled or news or (self.catalogue.whole and self.learner.owes):
            entry = Entry(self.learner.seq, self._clock.now_ms(), polled.spans, polled.order_R, news)
            if self._survival is not None:
                self._survival.journal.append(entry)  # 1
            raw, outcome = self._learn(entry, polled)  # 2
            self.in_flight.publish(raw, outcome)  # 3
            self._observer.mark("publish")
        if self.catalogue.whole:
            self.partitions.joined()
        self.in_flight.settle()
        if self.in_flight.commit_due():
            self.in_flight.commit(self.partitions.held)  # 4
        if self._checkpoint_due():
            self.partitions.release_strangers()
            self.checkpoint()  # 5

    def _poll(self) -> Polled:
        """Poll for events, without waiting where other work does, and for none before the items are known."""
        if not self.catalogue.whole:
            self._source.keep_alive()
            return NOTHING_POLLED
        batch = self._settings.batch
        wait_ms = 0 if self.learner.owes else batch.max_wait_ms
        polled = self._source.poll(batch.max_events, wait_ms / 1000)
        parts = self._decoder.parts(polled, batch.max_events)
        first = next(parts)
        if len(first.records) < len(polled.records):  # some of them are several events
            self._source.put_back(polled.split(len(first.records))[1])
        return first

    def checkpoint(self) -> None:
        """Wait until all is acknowledged, commit it, and save everything."""
        started_s = self._clock.monotonic_s()
        self.in_flight.drain()
        self.in_flight.commit(self.partitions.held)
        if self._survival is not None:
            checkpoints, journal = self._survival.checkpoints, self._survival.journal
            self._observer.busy("saving a checkpoint", LONG_STEP_S)
            seq, now_ms, generation = self.learner.seq, self._clock.now_ms(), self._source.generation()
            held, breathe = self.partitions.held, self._source.keep_alive
            checkpoints.save(self.learner, generation, now_ms, held, breathe)
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
        self.catalogue.close()
        self._source.close()
        self._sink.close()
        saved = "saved" if self._survival is not None and self._saved() else "not saved"
        logger.info(
            "left the group: batch %d, %d events learned, %s",
            self.learner.seq,
            self.learner.events_learned,
            saved,
        )

    def _abandon(self) -> None:
        """Leave the group after an error, so that others can go on; what is in flight stays uncommitted."""
        self.partitions.leaving = True
        with suppress(AfreshError):
            self._source.close()

    def _resume(self, survival: Durability) -> None:
        self._observer.busy("reading the checkpoint", LONG_STEP_S)
        survival.journal.lock()
        survival.checkpoints.topic_ids = self._source.topic_ids()
        found = survival.checkpoints.load(newcomer=survival.journal.is_empty())
        if found is not None:
            manifest, snapshot = found
            self.learner.restore(snapshot)
            logger.info("restored batch %d, %d events learned", manifest.seq, manifest.events_learned)
        committed = self._source.committed(self._source.partitions())
        first = self.learner.seq
        entries = list(survival.journal.entries(first))
        told = first + delivered(entries, committed)
        for entry in entries:
            if self._sink.commits_offsets and entry.seq >= told and entry.spans:
                survival.journal.cut(entry.seq)
                break
            self._observer.ticked()
            polled = self._source.read(entry.spans, entry.order_R) if entry.spans else NOTHING_POLLED
            self._observer.begin()
            raw, outcome = self._learn(entry, polled)
            if entry.seq >= told:
                self.in_flight.publish(*unheard(raw, outcome, committed, self.learner.offsets))
            if self._stopping:
                return  # the journal still has it all
        self.in_flight.drain()
        survival.journal.open(self.learner.seq)
        if self.learner.seq > first:
            logger.info("learned batches %d to %d again", first, self.learner.seq - 1)

    def _learn(self, entry: Entry, polled: Polled) -> tuple[RawBatch, Outcome]:
        raw = self._decoder.decode(entry.seq, entry.now_ms, polled)
        self._guard.check(polled, raw)
        raw = with_news(raw, entry.news)
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


def with_news(raw: RawBatch, news: CatalogUpdate) -> RawBatch:
    """Return the batch with what the items topic said; bad records of it go to the dead letters too."""
    if not news:
        return replace(raw, news=news)
    bad = [Reject(record, record.reason, record.detail) for record in news.bad]
    return replace(raw, news=news, rejects=[*raw.rejects, *bad])


def delivered(entries: Sequence[Entry], committed: Mapping[TopicPartition, int]) -> int:
    """Return how many of a journal's batches are out, as far as commits tell.

    Batches are acknowledged in their order, so those before a committed one are out; this is all that can be
    said of a batch without records, which leaves no offset behind.
    """
    with_records = (
        number for number, entry in enumerate(entries, 1) if entry.spans and is_committed(entry, committed)
    )
    return max(with_records, default=0)


def is_committed(entry: Entry, committed: Mapping[TopicPartition, int]) -> bool:
    """Say whether the group has committed every record of a batch."""
    return all(span.stop <= committed.get(span.source, 0) for span in entry.spans)
