"""The promises about delivery, at full size, on recorded streams and through a real broker.

    python tests/benchmarks/delivery.py --data DIR [--broker embedded|apache] [--check rankings|live|kill]

rankings: 30,000 events of movietweetings by `afresh replay`, read by a plain consumer: every touched user's
newest ranking includes the user's last event and holds nothing that the user consumed.
live: the quality that the service measures on events that were there before it (40,000 of movietweetings in
one partition, 60,000 of globo in four) beside that of `evaluate`.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import parser_of, print_result
from harness.apache_kafka import apache_kafka
from harness.kills import SETTINGS, checkpoints, kill_and_compare
from harness.service import STOP_S, Sent, Site
from harness.truth import Truth, sent, spoiled
from kafka import KafkaConsumer, TopicPartition
from recorded import BY_NAME, add_data, path_of
from recordings import read_recording

from pipeline.events.fields import field_names
from pipeline.settings import EventsConfig
from producers.embedded_broker import EmbeddedBroker
from producers.replay import wire_events

LONG_S = 900.0


class Line(NamedTuple):
    """One line of the table. `expected` is empty where nothing is checked."""

    figure: str
    found: float
    expected: str = ""
    right: bool = True


Check = Callable[[str, argparse.Namespace, Path], Iterator[Line]]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def recorded_events(file: Path, count: int) -> list[Sent]:
    """Return the first events of a file as `replay` sends them."""
    chunks = read_recording(file, 1_000, now_ms=now_ms(), limit=count)
    return sent(wire_events(chunks, field_names(EventsConfig()), "ms"))


def reader_of(broker: str, topic: str) -> KafkaConsumer:
    """Open a consumer of all partitions of a topic, in no group."""
    consumer = KafkaConsumer(bootstrap_servers=broker, isolation_level="read_committed", fetch_max_wait_ms=50)
    consumer.assign([TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)])
    return consumer


def check_rankings(broker: str, options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Replay into a running service, and compare every user's newest ranking with the events."""
    count = 30_000
    file = path_of(options.data, BY_NAME["movietweetings"])
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
    yield Line("events learned", learned, f"{count}", learned == count)
    yield Line("users touched", len(truth.items))
    yield Line("wrong newest rankings", len(wrong), "0", not wrong)
    yield Line("seconds from SIGTERM to exit 0", seconds, f"< {STOP_S:g}", seconds < STOP_S)


def check_live(broker: str, options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Compare the metrics of the service with those of `evaluate`, over the same events."""
    for stream, count, partitions in (("movietweetings", 40_000, 1), ("globo", 60_000, 4)):
        file = path_of(options.data, BY_NAME[stream])
        inner = folder / stream
        inner.mkdir()
        with Site(broker, f"live-{stream}", inner, partitions, {"batch.max_events": 128}) as site:
            site.create_topics()
            site.send(recorded_events(file, count))
            service = site.run()
            service.until(site.all_committed, "all is committed", LONG_S)
            service.end()
            live = site.inspect()["quality"]
            words = (str(file), "--events", str(count), "--batch", "128", "--json")
            models = json.loads(site.call("evaluate", *words, wait_s=LONG_S).splitlines()[-1])["models"]
        for model, figures in live.items():
            name = f"{stream}, {partitions} partition(s), {model}"
            # the service runs the first setting of a baseline's grid
            now, then = figures["ndcg@10"], models[model].get("grid", [models[model]])[0]["ndcg@10"]
            yield Line(f"{name}: NDCG@10 of evaluate", then)
            if partitions == 1:
                yield Line(f"{name}: difference", abs(now - then), "<= 1e-6", abs(now - then) <= 1e-6)
            else:
                yield Line(f"{name}: live / evaluate", now / then, ">= 0.95", now / then >= 0.95)


def check_kill(broker: str, options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    """Kill the service five times, and compare everything with a run never killed."""
    file = path_of(options.data, BY_NAME["movietweetings"])
    stream = spoiled(recorded_events(file, options.kill_events), options.seed, now_ms())
    settings = SETTINGS | {"kafka.transactions": str(options.transactions).lower()}
    with Site(broker, "kill", folder, settings=settings) as site:
        outcome = kill_and_compare(site, stream, options.seed)
        saved = checkpoints(site)
    print(*outcome.faults[:10], sep="\n", file=sys.stderr)
    yield Line("good events", stream.truth.events)
    yield Line("bad records", len(stream.bad))
    yield Line("events that came twice", stream.duplicates)
    yield Line("checkpoints taken", saved, "> 5", saved > 5)
    for number, learned in enumerate(outcome.learned_at_kills, 1):
        yield Line(f"events learned at kill {number}", learned)
    yield Line("differences to a run never killed", len(outcome.faults), "0", not outcome.faults)
    yield Line("seconds", outcome.seconds)


CHECKS: dict[str, Check] = {"rankings": check_rankings, "live": check_live, "kill": check_kill}


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


def add_broker(parser: argparse.ArgumentParser) -> None:
    """Declare the broker and the seed."""
    parser.add_argument("--broker", choices=("embedded", "apache"), default="embedded")
    parser.add_argument("--seed", type=int, default=0)


def add_checks(parser: argparse.ArgumentParser, checks: Mapping[str, Check]) -> None:
    """Declare which checks run, and on which broker."""
    add_broker(parser)
    parser.add_argument("--check", choices=checks, action="append", help="may be repeated; default: all")


def run_checks(checks: Mapping[str, Check], options: argparse.Namespace) -> int:
    """Run checks, each on a broker and in a folder of its own; print their lines and one JSON line.

    Return the exit code: 1 when a line is wrong.
    """
    found: dict[str, float] = {}
    right = True
    for check in options.check or checks:
        with running(options.broker) as broker, tempfile.TemporaryDirectory() as folder:
            for line in checks[check](broker, options, Path(folder)):
                found[f"{check}: {line.figure}"] = line.found
                right &= line.right
                mark = "" if not line.expected else "  right" if line.right else "  WRONG"
                print(f"{check:10} {line.figure:60} {line.found:14,.6g}  {line.expected:8}{mark}", flush=True)
    print_result(broker=options.broker, right=right, figures=found)
    return 0 if right else 1


def main() -> int:
    parser = parser_of(__doc__)
    add_data(parser)
    add_checks(parser, CHECKS)
    parser.add_argument("--kill-events", type=int, default=50_000)
    parser.add_argument("--transactions", action="store_true", help="kill: with kafka.transactions = true")
    options = parser.parse_args()
    if options.data is None:
        parser.error("no data: name the folder of the streams by --data or AFRESH_DATA")
    return run_checks(CHECKS, options)


if __name__ == "__main__":
    sys.exit(main())
