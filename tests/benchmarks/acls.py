"""Test the ACLs of deploy/kafka against Apache Kafka with an authorizer: sufficient, and each one necessary.

    KAFKA_HOME=... python tests/benchmarks/acls.py

Starts a broker that denies everything by default, creates the topics with topics.sh and gives the user
`afresh` (SASL/PLAIN) the ACLs of acls.sh. `afresh run` must then process events, a withdrawn item and a bad
record completely, without and with transactions, and `afresh check` must find no problem. Then each ACL is
removed in turn, and `run` must fail or leave something undone. Prints a table and one last JSON line; ends
with 1 when an ACL is missing or not needed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench import HERE, free_port, parser_of, print_result
from harness.admin_tools import Right, admin, right_of, write_tools
from harness.apache_kafka import apache_kafka
from harness.clients import lying_on
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ACLFilter

from pipeline.settings import TopicsConfig

SCRIPTS = HERE / "deploy" / "kafka"
USER, PASSWORD, GROUP = "afresh", "not-a-secret", "afresh"
START_S, WAIT_S = 120.0, 20.0  # kernels may have to be compiled first
PROPERTIES = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
listeners=PLAINTEXT://127.0.0.1:{{port}},SASL://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{{controller}}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
    required user_{user}="{password}";
"""


class Cluster(NamedTuple):
    """A broker: an address for administrators with all rights, and one for users with a password."""

    administrators: str
    users: str


def run_script(name: str, tools: Path, **variables: str) -> str:
    """Run a script of deploy/kafka with these tools on PATH; return its output."""
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"} | variables
    script = ["bash", SCRIPTS / name]
    return subprocess.run(script, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


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


def send(cluster: Cluster) -> str:
    """Append events of four users and a bad record; return the item that is withdrawn beforehand.

    Each user has items of their own, the first one also the withdrawn one: with so few items, the other
    rankings would contain it.
    """
    producer = KafkaProducer(bootstrap_servers=cluster.administrators)
    now_ms = time.time_ns() // 1_000_000
    withdrawn = f"withdrawn-{now_ms}"
    record = json.dumps({"item_id": withdrawn, "available": False})
    producer.send("items", key=withdrawn.encode(), value=record.encode())
    producer.flush()
    consumed = [(user, f"item-{user * 3 + n}") for n in range(3) for user in range(4)]
    for user, item in [(0, withdrawn), *consumed]:
        event = {"user_id": f"{now_ms}-{user}", "item_id": item, "timestamp_ms": now_ms}
        producer.send("events", key=event["user_id"].encode(), value=json.dumps(event).encode())
    producer.send("events", key=b"u1", value=b"no event")
    producer.close()
    return withdrawn


def trial(cluster: Cluster, transactions: bool) -> str:
    """Run the service over new events; return "" when everything was done, else what was not, in a line."""
    topics = ("recommendations", "events.dead-letter")
    before = {topic: len(lying_on(cluster.administrators, topic)) for topic in topics}
    withdrawn = send(cluster)
    with TemporaryDirectory(prefix="afresh-acls-") as folder:
        process = command(cluster, "run", Path(folder), transactions)
        log = Path(folder) / "run.log"
        try:
            wait(process, lambda: "-> ready" in log.read_text(), START_S)
            wait(process, lambda: not outstanding(cluster, before), WAIT_S)
            undone = outstanding(cluster, before)
        finally:
            process.terminate()
            process.wait(30)
        if not undone and withdrawn in recommended(cluster):
            undone = "a withdrawn item is recommended"
        if not undone and process.returncode == 0:
            return ""
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return f"exit code {process.returncode}, {undone or 'all done'}; {lines[-1] if lines else ''}"


def recommended(cluster: Cluster) -> set[str]:
    """Return every item of every ranking."""
    records = lying_on(cluster.administrators, "recommendations")
    return {item["item_id"] for record in records for item in json.loads(record.value)["items"]}


def wait(process: subprocess.Popen[str], met: Callable[[], bool], wait_s: float) -> None:
    """Wait until a condition is met, the process has ended, or the time is up."""
    deadline = time.monotonic() + wait_s
    while not met() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.3)


def outstanding(cluster: Cluster, before: dict[str, int]) -> str:
    """Return what the service has not done yet."""
    for topic, records in before.items():
        if len(lying_on(cluster.administrators, topic)) == records:
            return f"nothing in {topic}"
    consumer = KafkaConsumer(
        bootstrap_servers=cluster.administrators, group_id=GROUP, enable_auto_commit=False
    )
    partitions = [TopicPartition("events", number) for number in consumer.partitions_for_topic("events")]
    ends = consumer.end_offsets(partitions)
    done = all((consumer.committed(partition) or 0) == end for partition, end in ends.items())
    consumer.close(autocommit=False)
    return "" if done else "offsets not committed"


def checked(cluster: Cluster, transactions: bool) -> str:
    """Return the output of `afresh check` when it finds a problem."""
    with TemporaryDirectory(prefix="afresh-acls-") as folder:
        code = command(cluster, "check", Path(folder), transactions).wait(60)
        said = (Path(folder) / "check.log").read_text()
        return "" if code == 0 else said


def rights() -> list[Right]:
    """Return the ACLs that acls.sh creates."""
    with TemporaryDirectory() as tools:
        for tool in write_tools(Path(tools)).iterdir():
            tool.write_text('#!/bin/sh\necho "$*"\n', "utf-8")
        printed = run_script("acls.sh", Path(tools), INCLUDE="")
    return [right_of(line.split()) for line in printed.splitlines()]


def without(cluster: Cluster, right: Right) -> str:
    """Return what isn't done without one ACL."""
    acl = right.acl()
    pattern = ACLFilter(acl.principal, acl.host, acl.operation, acl.permission_type, acl.resource_pattern)
    with admin(cluster.administrators) as client:
        client.delete_acls([pattern])
        problem = trial(cluster, transactions=right.resource == "transactional-id")
        client.create_acls([acl])
    return problem


def measure(cluster: Cluster, folder: Path) -> int:
    """Try no ACL, all of them, and all but one; return the exit code."""
    tools, address = write_tools(folder), {"BOOTSTRAP": cluster.administrators}
    run_script("topics.sh", tools, **address, PARTITIONS="2", REPLICATION="1")
    nothing = trial(cluster, transactions=False)
    print(f"{'no right at all':<58} {nothing or 'WORKS'}")
    run_script("acls.sh", tools, **address)
    enough = {transactions: trial(cluster, transactions) for transactions in (False, True)}
    for transactions, problem in enough.items():
        print(f"{f'all of them, transactions = {transactions}':<58} {problem or 'works'}")
    needless = []
    for right in rights():
        problem, name = without(cluster, right), f"{right.operation} {right.resource} {right.name}"
        needless += [] if problem else [name]
        print(f"{f'without {name}':<58} {problem or 'WORKS ALL THE SAME'}")
    run_script("acls.sh", tools, **address, INCLUDE="check")
    check = checked(cluster, transactions=True)
    print(f"{'afresh check':<58} {check or 'no problem'}")
    print_result(
        rights=len(rights()), enough=not any(enough.values()), nothing_works_without=bool(nothing),
        needless=needless, check_content=not check, topics=sorted(TopicsConfig().event_topics()),
    )  # fmt: skip
    return 0 if nothing and not (any(enough.values()) or needless or check) else 1


def main() -> int:
    parser_of(__doc__).parse_args()
    sasl = free_port()
    more = PROPERTIES.format(sasl=sasl, user=USER, password=PASSWORD)
    with apache_kafka(Path(os.environ["KAFKA_HOME"]), more) as broker, TemporaryDirectory() as folder:
        cluster = Cluster(broker.bootstrap_servers, f"127.0.0.1:{sasl}")
        return measure(cluster, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
