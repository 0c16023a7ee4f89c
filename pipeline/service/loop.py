"""The loop: poll, journal, learn, publish, commit, checkpoint; exact after a crash at any point.

A batch is journaled before it is learned, learned before it is published, and acknowledged before it is
committed. After a crash the journal names the batches learned since the last checkpoint: they are read from
the topic again and replayed in the same order and with the same boundaries, and those that the group has not
committed are published again. delivery.py adds the two protocols, at least once and transactions.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace

from msgspec import structs

from pipeline.errors import AfreshError
from pipeline.events.batch import NO_UPDATE, NOTHING_POLLED, CatalogUpdate, Polled, RawBatch, Reject
from pipeline.events.decode import Decoder
from pipeline.outcome import Learner, Outcome
from pipeline.persistence.checkpoint import Checkpoints
from pipeline.persistence.journal import Entry, Journal, run_lengths
from pipeline.service.delivery import count_published, delivery_for, drop_committed
from pipeline.service.guard import Guard
from pipeline.service.observe import Observer
from pipeline.service.partitions import Partitions
from pipeline.service.ports import Clock, ItemSource, Sink, Source
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0  # for acknowledgements once the loop is to stop: the whole shutdown must fit into 10 s
LONG_STEP_S = 600.0  # the tick deadline of /live during a restore, a takeover or a checkpoint
CATALOG_POLL_S = 0.25  # between polls of an items topic that was read to its end


@dataclass(frozen=True, slots=True)
class Adapters:
    """The outside world of the loop."""

    source: Source
    decoder: Decoder
    sink: Sink
    clock: Clock
    observer: Observer
    items: ItemSource | None = None


@dataclass(frozen=True, slots=True)
class Durability:
    """The state on disk."""

    checkpoints: Checkpoints
    journal: Journal


class CatalogReader:
    """Reads the items topic: to its end before the first event, in every worker, outside of the group.

    Updates are journaled like events, so that a replayed batch is ranked with the same available items.
    """

    def __init__(self, source: ItemSource | None, learner: Learner, clock: Clock) -> None:
        self.complete = source is None  # the topic was read to its end once
        self._source, self._learner, self._clock = source, learner, clock
        self._polled_s = float("-inf")

    def start(self) -> None:
        """Continue at the learner's offsets."""
        if self._source is not None:
            self._source.start(self._learner.item_offsets)

    def poll(self) -> CatalogUpdate:
        """Return the changes that have an effect, without waiting."""
        now_s = self._clock.monotonic_s()
        if self._source is None or (self.complete and now_s - self._polled_s < CATALOG_POLL_S):
            return NO_UPDATE
        self._polled_s = now_s
        update, ended = self._source.poll()
        self.complete = self.complete or ended
        return structs.replace(update, changes=self._learner.catalog_changes(update.changes))

    def close(self) -> None:
        """Close the source."""
        if self._source is not None:
            self._source.close()


class Loop:
    """Drives one learner over one source and one sink.

    Without `durability` no state survives a restart: the loop starts at the group's commit, else at the
    earliest record.
    """

    def __init__(
        self, learner: Learner, adapters: Adapters, settings: Settings, durability: Durability | None = None
    ) -> None:
        self.learner = learner
        self._source, self._sink = adapters.source, adapters.sink
        self._decoder, self._clock, self._observer = adapters.decoder, adapters.clock, adapters.observer
        self._settings = settings
        self._durability = durability
        limits, timeout_s = settings.limits, settings.kafka.broker_timeout_s
        self._guard = Guard(limits.max_dead_letter_ratio, limits.max_consecutive_dead_letters)
        self.delivery = delivery_for(self._source, self._sink, self._clock, self._observer, timeout_s)
        self.catalog = CatalogReader(adapters.items, learner, self._clock)
        shards = None if durability is None else durability.checkpoints.shards
        self.partitions = Partitions(learner, self._source, self.delivery, shards, self._observer)
        self._stopping = False
        self._joined = False
        self._checkpoint_s = self._clock.monotonic_s()

    def run(self) -> None:
        """Run until `stop` is called; then finish, save and leave the group.

        An error ends the run without a commit: the next start resumes from the journal.
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
            if self._durability is not None:
                self._durability.journal.close()

    def stop(self) -> None:
        """Ask the loop to end after the current batch. Safe in a signal handler."""
        self._stopping = self.partitions.stopping = True
        self.delivery.timeout_s = STOP_TIMEOUT_S

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def start(self) -> None:
        """Restore the newest checkpoint, replay the journal beyond it, and join the group."""
        self._observer.became("resuming")
        if self._durability is None:
            logger.warning(
                "checkpoint.path is empty: no state survives a restart; set it to a folder to keep the state"
            )
        else:
            self._resume(self._durability)
        if not self._stopping:
            self._joined = True
            self._observer.became("rebalancing")
            self.catalog.start()
            self._source.start(self.partitions)

    def tick(self) -> None:
        """Process one batch.

        0. Poll events and catalogue updates. A rebalance is settled first; polled records are put back.
        1. Journal the records, their order, the time and the update: from here on the batch is fixed.
        2. Learn: decode, score, update, rank.
        3. Publish, once the previous batch is acknowledged.
        4. Commit what is acknowledged, about once a second.
        5. Checkpoint when due, with nothing in flight and everything committed.
        """
        self._observer.ticked()
        polled = self._poll()  # 0
        self._observer.begin()
        if self.partitions.unsettled:
            self._put_back(polled)
            self._settle()
            return
        self.learner.held = self.partitions.held
        update = self.catalog.poll()
        # before the catalogue is complete a list might show a withdrawn item
        if polled or update or (self.catalog.complete and self.learner.pending_rankings):
            order = run_lengths(polled.order_R)
            entry = Entry(self.learner.seq, self._clock.now_ms(), polled.spans, order, update)
            if self._durability is not None:
                self._durability.journal.append(entry)  # 1
            raw, outcome = self._learn(entry, polled)  # 2
            self.delivery.publish(raw, outcome)  # 3
            self._observer.mark("publish")
        if self.catalog.complete:
            self.partitions.joined()
        self.delivery.settle()
        if self.delivery.commit_due():
            self.delivery.commit(self.partitions.held)  # 4
        if self._checkpoint_due():
            self.partitions.release_orphaned_users()
            self.checkpoint()  # 5

    def _poll(self) -> Polled:
        """Poll events, without waiting while lists are pending; none before the catalogue is complete."""
        if not self.catalog.complete:
            self._source.keep_alive()
            return NOTHING_POLLED
        batch = self._settings.batch
        wait_ms = 0 if self.learner.pending_rankings else batch.max_wait_ms
        polled = self._source.poll(batch.max_events, wait_ms / 1000)
        first = next(self._decoder.parts(polled, batch.max_events))
        if len(first.records) < len(polled.records):  # some records hold several events
            self._source.put_back(polled.split(len(first.records))[1])
        return first

    def checkpoint(self) -> None:
        """Wait until everything is acknowledged, commit it, and save the state."""
        started_s = self._clock.monotonic_s()
        self.delivery.drain()
        self.delivery.commit(self.partitions.held)
        if self._durability is not None:
            checkpoints, journal = self._durability.checkpoints, self._durability.journal
            self._observer.busy("saving a checkpoint", LONG_STEP_S)
            now_ms, generation = self._clock.now_ms(), self._source.generation()
            held, heartbeat = self.partitions.held, self._source.keep_alive
            saved = checkpoints.save(self.learner, generation, now_ms, held, heartbeat)
            journal.checkpoint_taken(saved.seq, checkpoints.oldest_seq)
            self._observer.checkpointed(self._clock.monotonic_s() - started_s, self._clock.now_ms())
        self._checkpoint_s = self._clock.monotonic_s()

    def leave(self) -> None:
        """Finish what is in flight, commit, save, and leave the group."""
        self._observer.became("stopping")
        if self._joined:  # else the journal is ahead of the state and holds everything
            if self.partitions.unsettled or not self._saved():
                self.checkpoint()
            self.delivery.drain()
            self.delivery.commit(self.partitions.held)
        self.partitions.leaving = True
        self.catalog.close()
        self._source.close()
        self._sink.close()
        saved = "saved" if self._durability is not None and self._saved() else "not saved"
        learner = self.learner
        logger.info(
            "left the group: batch %d, %d events learned, %s", learner.seq, learner.events_learned, saved
        )

    def _abandon(self) -> None:
        """Leave the group after an error, so that other workers take over; commit nothing."""
        self.partitions.leaving = True
        with suppress(AfreshError):
            self._source.close()

    def _resume(self, durability: Durability) -> None:
        checkpoints, journal = durability.checkpoints, durability.journal
        self._observer.busy("reading the checkpoint", LONG_STEP_S)
        journal.lock()
        checkpoints.topic_ids = self._source.topic_ids()
        found = checkpoints.load(newcomer=journal.is_empty())
        if found is not None:
            manifest, snapshot = found
            self.learner.restore(snapshot)
            logger.info("restored batch %d, %d events learned", manifest.seq, manifest.events_learned)
        committed = self._source.committed(self._source.partitions())
        first = self.learner.seq
        entries = list(journal.entries(first))
        published = count_published(entries, committed)
        replayable = self.delivery.replayable(entries, published)
        for entry in replayable:
            self._observer.ticked()
            polled = self._source.read(entry.spans, entry.order_R) if entry.spans else NOTHING_POLLED
            self._observer.begin()
            raw, outcome = self._learn(entry, polled)
            if entry.seq >= first + published:
                self.delivery.publish(*drop_committed(raw, outcome, committed, self.learner.offsets))
            if self._stopping:
                return  # the journal still holds everything
        if len(replayable) < len(entries):
            journal.cut(self.learner.seq)
        self.delivery.drain()
        journal.open(self.learner.seq)
        if self.learner.seq > first:
            logger.info("replayed batches %d to %d", first, self.learner.seq - 1)

    def _learn(self, entry: Entry, polled: Polled) -> tuple[RawBatch, Outcome]:
        raw = self._decoder.decode(entry.seq, entry.now_ms, polled)
        self._guard.check(polled, raw)
        raw = with_catalog(raw, entry.catalog)
        self._observer.mark("event")
        outcome = self.learner.step(raw, self._observer.mark)
        self._guard.check_step(raw.seq, outcome.metrics.skipped)
        self._observer.learned(raw, outcome, self.learner)
        return raw, outcome

    def _settle(self) -> None:
        """Bring the state in line with the assignment, and save it: no journal spans a rebalance."""
        while self.partitions.unsettled and not self._stopping:
            self._observer.busy("taking partitions over", LONG_STEP_S)
            self.partitions.settle(self._decoder, self._clock)
            self.checkpoint()

    def _put_back(self, polled: Polled) -> None:
        for span in polled.spans:
            if span.source in self.partitions.held:
                self._source.seek(span.source, span.start)

    def _checkpoint_due(self) -> bool:
        passed_s = self._clock.monotonic_s() - self._checkpoint_s
        return passed_s >= self._settings.checkpoint.interval_s and not self._saved()

    def _saved(self) -> bool:
        """Return whether the newest checkpoint holds every learned batch."""
        return self._durability is None or self.learner.seq == self._durability.checkpoints.saved_seq


def with_catalog(raw: RawBatch, update: CatalogUpdate) -> RawBatch:
    """Add a catalogue update to a batch, and the update's bad records to the dead letters."""
    bad = [Reject(record, record.reason, record.detail) for record in update.bad]
    return replace(raw, catalog=update, rejects=[*raw.rejects, *bad])
