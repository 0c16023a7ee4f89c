"""Kill a service five times over a stream, let it finish, and compare it with a run that was never killed."""

import json
import random
import time
from typing import Any, NamedTuple

import msgspec

from consumers.kafka.source import KafkaSource
from harness.service import WAIT_S, Process, Site
from harness.truth import Stream
from harness.workers import repeat
from pipeline.events.decode import Decoder
from pipeline.events.records import DEFAULT_USER
from pipeline.persistence.journal import Journal
from pipeline.recommender import Recommender
from pipeline.thread_limits import limit_threads

# Small batches and five checkpoints a second: kills fall between and into many of both. All checkpoints are
# kept, so that no segment of the journal is deleted but the first.
SETTINGS: dict[str, object] = {
    "batch.max_events": 64,
    "checkpoint.interval_s": 0.2,
    "checkpoint.keep": 100_000,
    "rank.backlog_after_s": 100_000,  # else on a slow machine lists are still pending at the end
}
START_S = {True: 0.8, False: 3.0}  # about the time to join the group, in a fork and in a new interpreter


class Moment(NamedTuple):
    """When a process is killed: at a `share` of its `phase` "start", "resume" or "stream"."""

    phase: str
    share: float


def moments(seed: int) -> list[Moment]:
    """Draw five. The first lies in the stream, so that every later process has a state to resume.

    >>> [moment.phase for moment in moments(1)][0]
    'stream'
    """
    chance = random.Random(seed)
    rest = [
        Moment("start", chance.random()),
        Moment("resume", chance.random()),
        Moment("stream", chance.uniform(0.05, 0.4)),
        Moment("stream", chance.uniform(0.05, 0.4)),
    ]
    chance.shuffle(rest)
    return [Moment("stream", chance.uniform(0.1, 0.3)), *rest]


def kill_at(process: Process, moment: Moment, events: int) -> int:
    """Kill a process at its moment; return how many events it is known to have learned."""
    process.wait_said("configuration")
    if moment.phase == "start":  # imports, warm-up, the first requests, perhaps the group
        sleep(process, START_S[process.forks] * moment.share)
    else:
        process.until(lambda: process.state() not in ("", "starting"), "the resume")
    if moment.phase == "resume":
        sleep(process, 0.5 * moment.share)
    if moment.phase == "stream":
        process.wait_state("ready")
        begun = process.learned()
        process.wait_learned(begun + 1 + int(moment.share * (events - begun)))
    learned = process.learned()
    process.kill()
    return learned


def sleep(process: Process, seconds: float) -> None:
    end = time.monotonic() + seconds
    process.until(lambda: time.monotonic() > end, "its kill")


class Outcome(NamedTuple):
    """What the comparison found: `faults` is empty when the kills changed nothing."""

    faults: list[str]
    learned_at_kills: list[int]
    seconds: float


def kill_and_compare(site: Site, stream: Stream, seed: int) -> Outcome:
    """Send the stream, kill five processes over it, let the sixth finish, and compare everything."""
    began = time.monotonic()
    site.create_topics()
    site.keep_first_segment()
    places: list[tuple[int, int]] = []
    site.send(stream.records, places)
    learned = [kill_at(site.run(), moment, stream.truth.events) for moment in moments(seed)]
    last = site.run()
    last.until(site.all_committed, "all is committed", 4 * WAIT_S)
    last.end()
    found, newest = site.inspect(), site.newest()
    reference, rankings = never_killed(site)
    expected = {
        "events_learned": stream.truth.events,
        "offsets": {site.events: {str(number): end for number, end in site.ends().items()}},
        "seq": reference.seq,
        **reference.digests(),
    }
    faults = [
        f"{key}: {found[key]}, expected {value}" for key, value in expected.items() if found[key] != value
    ]
    faults += [f"learned {reference.events_learned}"] * (reference.events_learned != stream.truth.events)
    faults += stream.truth.wrong(newest)
    faults += other_rankings(newest, rankings)
    faults += wrong_dead_letters(site, stream, places)
    return Outcome(faults, learned, time.monotonic() - began)


def never_killed(site: Site, worker: str = "worker-0") -> tuple[Recommender, dict[str, Any]]:
    """Learn a worker's whole journal from an empty state; return the recommender and the newest rankings."""
    settings = site.configured(worker)
    limit_threads(settings.model.threads)  # the last bit of a matrix product can depend on their number
    recommender = Recommender(settings)
    decoder = Decoder(settings.events, settings.topics, settings.limits.record_bytes)
    source = KafkaSource(settings.kafka, list(settings.topics.event_topics()), settings.batch)
    newest = repeat(Journal(site.whole_journal(worker)), recommender, source, decoder)
    source.close()
    return recommender, json.loads(msgspec.json.encode(newest))


def checkpoints(site: Site, worker: str = "worker-0") -> int:
    """Count the checkpoints of a worker: each begins a segment of the journal."""
    return len(Journal(site.whole_journal(worker)).segments()) - 1


def other_rankings(newest: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Return a line for each user with another ranking; the default list comes again after a restart."""
    return [
        f"{user}: newest ranking {newest.get(user)}, expected {ranking}"
        for user, ranking in reference.items()
        if user != DEFAULT_USER and newest.get(user) != ranking
    ]


def wrong_dead_letters(site: Site, stream: Stream, places: list[tuple[int, int]]) -> list[str]:
    """Compare dead letters with the bad records: byte for byte, once or more, with transactions just once."""
    expected = {}
    for record, place in zip(stream.records, places, strict=True):
        if record.key in stream.bad:
            value, reason = stream.bad[record.key]
            expected[place] = (record.key, value, reason.encode(), site.events.encode())
    found: dict[tuple[int, int], tuple[object, ...]] = {}
    repeated = []
    for letter in site.read(f"{site.stem}-dead_letters"):
        headers = dict(letter.headers)
        place = (int(headers["partition"]), int(headers["offset"]))
        repeated += [f"dead letter of {place}: more than once"] if place in found else []
        found[place] = (letter.key, letter.value, headers["reason"], headers["topic"])
    return (repeated if site.configured().kafka.transactions else []) + [
        f"dead letter of {place}: {str(found.get(place))[:200]}, expected {str(expected.get(place))[:200]}"
        for place in sorted(expected.keys() | found.keys())
        if expected.get(place) != found.get(place)
    ]
