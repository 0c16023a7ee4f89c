"""Repeat a journal from an empty state in one go: what a run that was never killed ends with.

    python tests/unbroken.py JOURNAL --set key=value ...

Prints one JSON line: digests, events learned, batches, and every user's newest ranking. It is a process of
its own because numpy's products may differ in the last bit with the number of threads, which is limited as
`afresh run` does.
"""

import argparse
import sys
from pathlib import Path

import msgspec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("journal", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    args = parser.parse_args()

    from pipeline.app.config import load_settings
    from pipeline.thread_limits import limit_threads

    settings = load_settings(None, args.sets, {})
    limit_threads(settings.model.threads)

    from consumers.kafka.source import KafkaSource
    from pipeline.events.batch import NOTHING_POLLED
    from pipeline.events.decode import Decoder
    from pipeline.events.records import Ranking
    from pipeline.persistence.journal import Journal
    from pipeline.recommender import Recommender
    from pipeline.service.loop import with_catalog

    recommender = Recommender(settings)
    decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
    source = KafkaSource(settings.kafka, list(settings.topics.event_topics()), settings.batch)
    newest: dict[str, Ranking] = {}
    for entry in Journal(args.journal).entries(0):
        polled = source.read(entry.spans, entry.order_R) if entry.spans else NOTHING_POLLED
        raw = with_catalog(decoder.decode(entry.seq, entry.now_ms, polled), entry.catalog)
        outcome = recommender.step(raw)
        newest.update((ranking.user_id, ranking) for ranking in outcome.rankings)
    source.close()
    report = {
        "events_learned": recommender.events_learned,
        "batches": recommender.seq,
        **recommender.digests(),
        "newest": newest,
    }
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main()
