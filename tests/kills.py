"""Kill a service five times over a stream that lies ready, let it finish, and hold it to a run never killed.

Shared by tests/test_kill.py and tests/benchmarks/delivery.py.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from services import WAIT_S, Process, Site
from truth import Stream

from pipeline.events.records import DEFAULT_USER
from pipeline.persistence.journal import Journal

# Small batches and five checkpoints a second: kills fall between and into many of both. All checkpoints are
# kept, so that no segment of the journal is deleted but the first.
SETTINGS: dict[str, object] = {
    "batch.max_events": 64,
    "checkpoint.interval_s": 0.2,
    "checkpoint.keep": 100_000,
}
START_S = 3.0  # about what a start takes, from the configuration to the group


class Moment(NamedTuple):
    """When a life ends: in `phase` "start", "resume" or "stream"; `share` says how far in it."""

    phase: str
    share: float


def moments(seed: int) -> list[Moment]:
    """Draw five. The first lies in the stream, so that every later life has something to resume.

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


def live_until(process: Process, moment: Moment, events: int) -> int:
    """Kill a life at its moment; return how many events it is known to have learned."""
    process.wait_said("configuration")
    began = time.monotonic()
    if moment.phase == "start":  # imports, warm-up, the first requests, perhaps the group
        process.until(lambda: time.monotonic() - began > START_S * moment.share, "a moment of its start")
    else:
        process.until(lambda: process.state() not in ("", "starting"), "the resume")
    if moment.phase == "resume":
        began = time.monotonic()
        process.until(lambda: time.monotonic() - began > 0.5 * moment.share, "a moment of its resume")
    if moment.phase == "stream":
        process.wait_state("ready")
        begun = process.learned()
        process.wait_learned(begun + 1 + int(moment.share * (events - begun)))
    learned = process.learned()
    process.kill()
    return learned


class Outcome(NamedTuple):
    """What was found: `faults` is empty when nobody could tell that the service was killed."""

    faults: list[str]
    learned_at_kills: list[int]
    seconds: float


def kill_and_compare(site: Site, stream: Stream, seed: int) -> Outcome:
    """Send the stream, kill five lives over it, let the sixth finish, and look at everything."""
    began = time.monotonic()
    site.create_topics()
    site.keep_first_segment()
    places: list[tuple[int, int]] = []
    site.send(stream.records, places)
    learned = [live_until(site.run(), moment, stream.truth.events) for moment in moments(seed)]
    last = site.run()
    last.until(site.all_committed, "all is committed", 4 * WAIT_S)
    last.end()
    found = site.inspect()
    reference = never_killed(site)
    faults = [
        f"{name}: {found[name]}, expected {expected}"
        for name, expected in (
            ("events_learned", stream.truth.events),
            ("events_learned", reference["events_learned"]),
            ("seq", reference["batches"]),
            ("digest_model", reference["digest_model"]),
            ("digest_users", reference["digest_users"]),
            ("offsets", {site.events: {str(number): end for number, end in site.ends().items()}}),
        )
        if found[name] != expected
    ]
    newest = site.newest()
    faults += stream.truth.wrong(newest)
    faults += other_rankings(newest, reference["newest"])
    faults += wrong_dead_letters(site, stream, places)
    return Outcome(faults, learned, time.monotonic() - began)


def never_killed(site: Site, worker: str = "worker-0") -> dict[str, Any]:
    """Repeat all that a worker has ever learned, from an empty state in one go."""
    script = Path(__file__).with_name("unbroken.py")
    command = [sys.executable, str(script), str(site.whole_journal(worker)), *site.options(worker)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def checkpoints(site: Site, worker: str = "worker-0") -> int:
    """Count the checkpoints that were taken: each began a segment."""
    return len(Journal(site.whole_journal(worker)).segments()) - 1


def other_rankings(newest: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Return a line for each user whose newest ranking is not the very one of the run never killed.

    The list for people without events goes out once more after a restart, so its place in time may differ.
    """
    return [
        f"{user}: newest ranking {newest.get(user)}, expected {ranking}"
        for user, ranking in reference.items()
        if user != DEFAULT_USER and newest.get(user) != ranking
    ]


def wrong_dead_letters(site: Site, stream: Stream, places: list[tuple[int, int]]) -> list[str]:
    """Hold the dead letters against the bad records: each there, byte for byte, with its reason.

    Once or more; exactly once with `kafka.transactions`.
    """
    expected = {}
    for record, (partition, offset) in zip(stream.records, places, strict=True):
        if record.key in stream.bad:
            value, reason = stream.bad[record.key]
            expected[partition, offset] = (record.key, value, reason.encode(), site.events.encode())
    found: dict[tuple[int, int], tuple[object, ...]] = {}
    again = []
    for letter in site.read(f"{site.stem}-dead_letters"):
        headers = dict(letter.headers)
        place = (int(headers["partition"]), int(headers["offset"]))
        again += [f"dead letter of {place}: more than once"] if place in found else []
        found[place] = (letter.key, letter.value, headers["reason"], headers["topic"])
    return (again if site.configured().kafka.transactions else []) + [
        f"dead letter of {place}: {str(found.get(place))[:200]}, expected {str(expected.get(place))[:200]}"
        for place in sorted(expected.keys() | found.keys())
        if expected.get(place) != found.get(place)
    ]
