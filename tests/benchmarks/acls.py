"""Test the ACLs of deploy/kafka against Apache Kafka with an authorizer: sufficient, and each one necessary.

    KAFKA_HOME=... python tests/benchmarks/acls.py [--only N]

Starts a broker that denies everything by default, creates the topics with topics.sh and gives the user
`afresh` (SASL/PLAIN) the ACLs of acls.sh. `afresh run` must then process events, a withdrawn item and a bad
record completely, without and with transactions, and `afresh check` must find no problem. Then each ACL is
removed in turn, and `run` must fail or leave something undone. Prints a table and one last JSON line; ends
with 1 when an ACL is missing or not needed.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.admin_tools import Right, admin, right_of, write_tools
from harness.apache_kafka import apache_kafka
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ACLFilter

from pipeline.settings import TopicsConfig

SCRIPTS = Path(__file__).parents[2] / "deploy" / "kafka"
USER, PASSWORD, GROUP = "afresh", "not-a-secret", "afresh"
WITHDRAWN = "withdrawn-"
START_S, WAIT_S = 120.0, 20.0  # kernels may have to be compiled first
Ends = dict[TopicPartition, int]
PROPERTIES = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
listeners=PLAINTEXT://127.0.0.1:{{port}},SASL://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{{controller}}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
    required user_{user}="{password}";
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A broker: an address for administrators with all rights, and one for users with a password."""

    administrators: str
    users: str

    def script(self, name: str, tools: Path, **variables: str) -> None:
        """Run a script of deploy/kafka as an administrator."""
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "BOOTSTRAP": self.administrators} | variables
        subprocess.run(["bash", SCRIPTS / name], env=environment, check=True)

    def ends(self, topic: str) -> Ends:
        """Return where the partitions of a topic end."""
        with reader(self.administrators) as consumer:
            partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()]
            ends: Ends = consumer.end_offsets(partitions)
            return ends

    def listed(self, since: Ends) -> set[str]:
        """Return every item in the rankings from these offsets on."""
        with reader(self.administrators) as consumer:
            consumer.assign(list(since))
            for partition, offset in since.items():
                consumer.seek(partition, offset)
            items: set[str] = set()
            while fetched := consumer.poll(timeout_ms=2_000):
                lists = (json.loads(record.value)["items"] for lane in fetched.values() for record in lane)
                items |= {item["item_id"] for ranking in lists for item in ranking}
            return items

    def committed(self) -> int:
        """Return the sum of the group's committed offsets in the events topic."""
        with reader(self.administrators, GROUP) as consumer:
            numbers = consumer.partitions_for_topic("events") or ()
            return sum(consumer.committed(TopicPartition("events", n)) or 0 for n in numbers)


@contextmanager
def reader(bootstrap_servers: str, group: str | None = None) -> Iterator[KafkaConsumer]:
    """Open a consumer that joins no group."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=group, enable_auto_commit=False)
    try:
        yield consumer
    finally:
        consumer.close(autocommit=False)


@contextmanager
def started(home: Path) -> Iterator[Cluster]:
    """Run the broker for a while."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        sasl = int(probe.getsockname()[1])
    more = PROPERTIES.format(sasl=sasl, user=USER, password=PASSWORD)
    with apache_kafka(home, more) as broker:
        yield Cluster(broker.bootstrap_servers, f"127.0.0.1:{sasl}")


def command(cluster: Cluster, name: str, folder: Path, transactions: bool) -> subprocess.Popen[str]:
    """Start a command of afresh as the user."""
    sets = {
        "kafka.bootstrap_servers": cluster.users,
        "kafka.security_protocol": "SASL_PLAINTEXT",
        "kafka.sasl_mechanism": "PLAIN",
        "kafka.sasl_username": USER,
        "kafka.group_id": GROUP,
        "kafka.transactions": str(transactions).lower(),
        "checkpoint.path": str(folder / "state"),
        "metrics.address": "127.0.0.1:0",
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    environment = os.environ | {"AFRESH_KAFKA__SASL_PASSWORD": PASSWORD}
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.app.cli", name, *words],
            env=environment, stdout=log, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def send(cluster: Cluster) -> None:
    """Append events of four users and a bad record.

    Each user has items of their own, the first one also an item that is withdrawn beforehand: with so few
    items, the other rankings would contain it.
    """
    producer = KafkaProducer(bootstrap_servers=cluster.administrators)
    now_ms = time.time_ns() // 1_000_000
    withdrawn = f"{WITHDRAWN}{now_ms}"
    producer.send(
        "items", key=withdrawn.encode(), value=json.dumps({"item_id": withdrawn, "available": False}).encode()
    )
    producer.flush()
    taken = [(user, f"item-{user * 3 + n}") for n in range(3) for user in range(4)]
    for user, item in [(0, withdrawn), *taken]:
        event = {"user_id": f"{now_ms}-{user}", "item_id": item, "timestamp_ms": now_ms}
        producer.send("events", key=event["user_id"].encode(), value=json.dumps(event).encode())
    producer.send("events", key=b"u1", value=b"no event")
    producer.close()


def trial(cluster: Cluster, transactions: bool) -> str:
    """Run the service over new events; return "" when everything was done, else what was not, in a line."""
    before = {topic: cluster.ends(topic) for topic in ("recommendations", "events.dead-letter")}
    send(cluster)
    with tempfile.TemporaryDirectory(prefix="afresh-acls-") as folder:
        process = command(cluster, "run", Path(folder), transactions)
        log = Path(folder) / "run.log"
        try:
            wait(process, lambda: "-> ready" in log.read_text(), START_S)
            wait(process, lambda: not outstanding(cluster, before), WAIT_S)
            undone = outstanding(cluster, before)
        finally:
            process.terminate()
            process.wait(30)
        if not undone and any(
            item.startswith(WITHDRAWN) for item in cluster.listed(before["recommendations"])
        ):
            undone = "a withdrawn item is recommended"
        if not undone and process.returncode == 0:
            return ""
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return f"exit code {process.returncode}, {undone or 'all done'}; {lines[-1] if lines else ''}"


def wait(process: subprocess.Popen[str], met: Callable[[], bool], wait_s: float) -> None:
    """Wait until a condition is met, the process has ended, or the time is up."""
    deadline = time.monotonic() + wait_s
    while not met() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.3)


def outstanding(cluster: Cluster, before: dict[str, Ends]) -> str:
    """Return what the service has not done yet."""
    for topic, ends in before.items():
        if cluster.ends(topic) == ends:
            return f"nothing in {topic}"
    return "" if cluster.committed() == sum(cluster.ends("events").values()) else "offsets not committed"


def checked(cluster: Cluster, transactions: bool) -> str:
    """Return the output of `afresh check` when it finds a problem."""
    with tempfile.TemporaryDirectory(prefix="afresh-acls-") as folder:
        code = command(cluster, "check", Path(folder), transactions).wait(60)
        said = (Path(folder) / "check.log").read_text()
        return "" if code == 0 else said


def rights_of(tools: Path, include: str = "") -> list[Right]:
    """Return the ACLs that acls.sh creates."""
    for tool in tools.iterdir():
        tool.write_text('#!/bin/sh\necho "$*"\n', "utf-8")
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "INCLUDE": include}
    done = subprocess.run(
        ["bash", SCRIPTS / "acls.sh"], env=environment, check=True, capture_output=True, text=True
    )
    return [right_of(line.split()) for line in done.stdout.splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, metavar="N", help="take away no more than the first N rights")
    options = parser.parse_args()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as real,
        tempfile.TemporaryDirectory() as said,
        started(Path(os.environ["KAFKA_HOME"])) as cluster,
    ):
        tools = write_tools(Path(real))
        cluster.script("topics.sh", tools, PARTITIONS="2", REPLICATION="1")
        nothing = trial(cluster, transactions=False)
        print(f"{'no right at all':<58} {nothing or 'WORKS'}")
        cluster.script("acls.sh", tools)
        enough = {transactions: trial(cluster, transactions) for transactions in (False, True)}
        for transactions, problem in enough.items():
            print(f"{f'all of them, transactions = {transactions}':<58} {problem or 'works'}")
        needless = []
        rights = rights_of(write_tools(Path(said)))
        for right in rights[: options.only]:
            transactions = right.resource == "transactional-id"
            with admin(cluster.administrators) as client:
                acl = right.acl()
                client.delete_acls(
                    [
                        ACLFilter(
                            acl.principal, acl.host, acl.operation, acl.permission_type, acl.resource_pattern
                        )
                    ]
                )
                problem = trial(cluster, transactions)
                client.create_acls([acl])
            needless += [] if problem else [f"{right.operation} {right.resource} {right.name}"]
            name = f"without {right.operation} on {right.resource} {right.name}"
            print(f"{name:<58} {problem or 'WORKS ALL THE SAME'}")
        cluster.script("acls.sh", tools, INCLUDE="check")
        check = checked(cluster, transactions=True)
        print(f"{'afresh check':<58} {check or 'no problem'}")
    result = {
        "rights": len(rights),
        "enough": not any(enough.values()),
        "nothing_works_without": bool(nothing),
        "needless": needless,
        "check_content": not check,
        "topics": sorted(TopicsConfig().event_topics()),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(result))
    return 0 if result["enough"] and nothing and not needless and not check else 1


if __name__ == "__main__":
    sys.exit(main())
