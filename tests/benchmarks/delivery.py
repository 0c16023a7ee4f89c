"""What is promised of delivery, at full size, on recorded streams and through a real broker.

    python tests/benchmarks/delivery.py --data DIR [--broker embedded|apache] [--check rankings|live|kill]

rankings: 30,000 events of movietweetings by `afresh replay`, read by a plain consumer: every touched user's
newest ranking knows the user's last event and holds nothing that the user consumed.
live: the quality that the service measures on events that lay ready (40,000 of movietweetings in one
partition, 60,000 of globo in four) beside that of `evaluate`.
kill: 50,000 events of movietweetings with bad ones and duplicates among them, `kill -9` five times, beside a
run never killed.

Prints a table and one last JSON line; ends with 1 when a check fails.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' helpers

from harness.apache_kafka import apache_kafka
from harness.kills import SETTINGS, checkpoints, kill_and_compare
from harness.service import STOP_S, Site
from harness.truth import Sent, Truth, sent, spoiled
from recorded import STREAMS, path_of
from recordings import read_recording

from pipeline.events.fields import field_names
from pipeline.settings import EventsConfig
from producers.embedded_broker import EmbeddedBroker
from producers.replay import wire_events

CHECKS = ("rankings", "live", "kill")
LONG_S = 900.0
LIVE = {"batch.max_events": 128}


class Line(NamedTuple):
    """One line of the table."""

    check: str
    figure: str
    found: float
    expected: str
    right: bool


def recorded_file(data: Path, name: str) -> Path:
    """Return the file of a stream."""
    return path_of(data, next(stream for stream in STREAMS if stream.name == name))


def recorded_events(file: Path, count: int) -> list[Sent]:
    """Return the first events of a file as `replay` sends them."""
    chunks = read_recording(file, 1_000, now_ms=time.time_ns() // 1_000_000, limit=count)
    return sent(wire_events(chunks, field_names(EventsConfig()), "ms"))


def check_rankings(broker: str, data: Path, folder: Path) -> Iterator[Line]:
    """Replay into a running service, and hold every user's newest ranking against the events."""
    count = 30_000
    file = recorded_file(data, "movietweetings")
    truth = Truth(recorded_events(file, count))
    with Site(broker, "rankings", folder) as site:
        site.create_topics()
        service = site.run()
        service.wait_state("ready")
        site.call("replay", str(file), "--limit", str(count), wait_s=LONG_S)
        service.until(site.all_committed, "all is committed", LONG_S)
        seconds = service.end()
        newest, learned = site.newest(), site.inspect()["events_learned"]
    wrong = truth.wrong(newest)
    print(*wrong[:10], sep="\n", file=sys.stderr)
    yield Line("rankings", "events learned", learned, f"{count}", learned == count)
    yield Line("rankings", "users touched", len(truth.items), "", True)
    yield Line("rankings", "wrong newest rankings", len(wrong), "0", not wrong)
    yield Line("rankings", "seconds from SIGTERM to exit 0", seconds, f"< {STOP_S:g}", seconds < STOP_S)


def check_live(broker: str, data: Path, folder: Path) -> Iterator[Line]:
    """Hold the figures of the service against those of `evaluate`, over the same events."""
    for stream, count, partitions in (("movietweetings", 40_000, 1), ("globo", 60_000, 4)):
        file = recorded_file(data, stream)
        inner = folder / stream
        inner.mkdir()
        with Site(broker, f"live-{stream}", inner, partitions, LIVE) as site:
            site.create_topics()
            site.send(recorded_events(file, count))
            service = site.run()
            service.until(site.all_committed, "all is committed", LONG_S)
            service.end()
            live = site.inspect()["quality"]
            options = (str(file), "--events", str(count), "--batch", "128", "--json")
            document = json.loads(site.call("evaluate", *options, wait_s=LONG_S).splitlines()[-1])
        for model, figures in live.items():
            name = f"{stream}, {partitions} partition(s), {model}"
            now, then = figures["ndcg@10"], ndcg_of(document, model)
            yield Line("live", f"{name}: NDCG@10 of evaluate", then, "", True)
            if partitions == 1:
                gap = abs(now - then)
                yield Line("live", f"{name}: difference", gap, "<= 1e-6", gap <= 1e-6)
            else:
                ratio = now / then
                yield Line("live", f"{name}: live / evaluate", ratio, ">= 0.95", ratio >= 0.95)


def ndcg_of(document: dict[str, Any], model: str) -> float:
    """Return a model's figure in the setting that the service runs: the first of its grid."""
    figures = document["models"][model]
    found: float = figures["grid"][0]["ndcg@10"] if "grid" in figures else figures["ndcg@10"]
    return found


def check_kill(broker: str, options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Kill the service five times, and hold everything against a run never killed."""
    seed = options.seed
    events = recorded_events(recorded_file(options.data, "movietweetings"), options.kill_events)
    stream = spoiled(events, seed, time.time_ns() // 1_000_000)
    settings = SETTINGS | {"kafka.transactions": str(options.transactions).lower()}
    with Site(broker, "kill", folder, settings=settings) as site:
        outcome = kill_and_compare(site, stream, seed)
        taken = checkpoints(site)
    print(*outcome.faults[:10], sep="\n", file=sys.stderr)
    yield Line("kill", "good events", stream.truth.events, "", True)
    yield Line("kill", "bad records", len(stream.bad), "", True)
    yield Line("kill", "events that came twice", stream.duplicates, "", True)
    yield Line("kill", "checkpoints taken", taken, "> 5", taken > 5)
    for number, learned in enumerate(outcome.learned_at_kills, 1):
        yield Line("kill", f"events learned at kill {number}", learned, "", True)
    faults = len(outcome.faults)
    yield Line("kill", "differences to a run never killed", faults, "0", not faults)
    yield Line("kill", "seconds", outcome.seconds, "", True)


@contextmanager
def running(kind: str) -> Iterator[str]:
    """Run a broker; return its address."""
    if kind == "embedded":
        with EmbeddedBroker() as embedded:
            yield embedded.bootstrap_servers
        return
    home = os.environ.get("KAFKA_HOME")
    if not home:
        raise SystemExit("KAFKA_HOME is not set: it names a folder with Apache Kafka's libs/")
    with apache_kafka(Path(home)) as apache:
        yield apache.bootstrap_servers


def run_check(check: str, broker: str, options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Return the lines of one check."""
    if check == "rankings":
        return check_rankings(broker, options.data, folder)
    if check == "live":
        return check_live(broker, options.data, folder)
    return check_kill(broker, options, folder)


def tell(
    checks: Sequence[str],
    options: argparse.Namespace,
    run: Callable[[str, str, argparse.Namespace, Path], Iterator[Line]],
) -> int:
    """Run checks, each on a broker and in a folder of its own; print their lines and one JSON line.

    Return the exit code: 1 when a line is wrong.
    """
    lines: list[Line] = []
    for check in checks:
        with running(options.broker) as broker, tempfile.TemporaryDirectory() as folder:
            for line in run(check, broker, options, Path(folder)):
                lines.append(line)
                mark = "" if not line.expected else "  right" if line.right else "  WRONG"
                print(
                    f"{line.check:10} {line.figure:60} {line.found:14,.6g}  {line.expected:8}{mark}",
                    flush=True,
                )
    right = all(line.right for line in lines)
    figures = {f"{line.check}: {line.figure}": line.found for line in lines}
    print(json.dumps({"broker": options.broker, "right": right, "figures": figures}))
    return 0 if right else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("AFRESH_DATA")
    parser.add_argument("--data", type=Path, default=data, help="folder of the streams (or AFRESH_DATA)")
    parser.add_argument("--broker", choices=("embedded", "apache"), default="embedded")
    parser.add_argument("--check", choices=CHECKS, action="append", help="may be repeated; default: all")
    parser.add_argument("--kill-events", type=int, default=50_000)
    parser.add_argument("--transactions", action="store_true", help="kill: with kafka.transactions = true")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("no data: name the folder of the streams by --data or AFRESH_DATA")
    return tell(options.check or CHECKS, options, run_check)


if __name__ == "__main__":
    sys.exit(main())
