"""One Apache Kafka broker (KRaft) for tests, from the jars under KAFKA_HOME/libs."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

READY_WAIT_S = 60.0
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
num.partitions=4
auto.create.topics.enable=false
"""


class ApacheKafka:
    """A broker process in its own process group, at `bootstrap_servers`."""

    def __init__(self, home: Path, folder: Path, more: str = "") -> None:
        """Start the broker; `more` holds further lines of server.properties ({port}, {controller})."""
        self._log = folder / "log"
        self.port, controller = _free_ports(2)
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        properties = folder / "server.properties"
        text = (PROPERTIES + more).format(port=self.port, controller=controller, folder=folder)
        properties.write_text(text)
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        java = ["java", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", f"{home}/libs/*"]
        formatting = [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", properties]
        with self._log.open("wb") as log:
            subprocess.run(formatting, stdout=log, stderr=log, cwd=folder, check=True)
            self._process = subprocess.Popen(
                [*java, "kafka.Kafka", str(properties)],
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Wait until a metadata request is answered. Raise `RuntimeError` with the log's end otherwise."""
        deadline = time.monotonic() + READY_WAIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(KafkaError, OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                KafkaAdminClient(bootstrap_servers=self.bootstrap_servers, bootstrap_timeout_ms=5_000).close()
                return
            time.sleep(0.1)
        raise RuntimeError(f"Kafka did not start:\n{self._log.read_text()[-2_000:]}")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def apache_kafka(home: Path, more: str = "") -> Iterator[ApacheKafka]:
    """Run one broker on free ports with its data in a temporary folder; `more` as in `ApacheKafka`."""
    folder = Path(tempfile.mkdtemp(prefix="afresh-kafka-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        broker = ApacheKafka(home.resolve(), folder, more)
        stack.callback(broker.stop)
        broker.wait_ready()
        yield broker


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
