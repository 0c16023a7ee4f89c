"""The commands together, as a user has them, on real brokers: rankings, figures, health and exit codes."""

import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from brokers.embedded import embedded_broker as run_embedded
from kafka import KafkaProducer
from services import STOP_S, Process, Site
from test_metrics import NAMES
from truth import Sent, Truth, chain, event_of, shopping, write_csv

from pipeline.evaluation.rank_metrics import MEASURES, USER_SEGMENTS
from pipeline.outcome import STAGES
from producers.embedded_broker import EmbeddedBroker

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]
MODELS = ("attention", "popularity", "recent_popularity")
LIVE = {"batch.max_events": 128}  # as `evaluate` has it


@pytest.fixture(params=["embedded", "apache"])
def served(request: pytest.FixtureRequest, topic_name: Name, tmp_path: Path) -> Iterator[Site]:
    """A site on `afresh broker`, the command, where `run` makes the topics; and one on Apache Kafka."""
    with Site("", topic_name("replay"), tmp_path) as site:
        if request.param == "apache":
            site.broker = request.getfixturevalue("apache_broker")
            site.create_topics()
            yield site
            return
        with Process("broker", "--port", "0", folder=tmp_path, name="broker") as process:
            process.until(lambda: "bootstrap_servers=" in process.printed(), "its address")
            site.broker = process.printed().strip().removeprefix("bootstrap_servers=")
            yield site
            process.end()


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    """A broker that a test may stop or freeze."""
    with run_embedded() as broker:
        yield broker


def publish(broker: str, topic: str, record: object) -> None:
    with contextlib.closing(KafkaProducer(bootstrap_servers=broker)) as producer:
        producer.send(topic, key=b"1", value=json.dumps(record).encode()).get(timeout=20)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_replayed_events_become_right_rankings_and_figures(served: Site, tmp_path: Path) -> None:
    events = shopping(6_000, seed=1, now_ms=now_ms())
    truth = Truth(events[:5_000])
    file = write_csv(tmp_path / "events.csv", events)
    site = served
    service = site.run()
    service.wait_state("ready")
    site.partitions = site.partitions_there()
    told = json.loads(site.call("replay", str(file), "--limit", "5000", "--json").splitlines()[-1])
    assert told["sent"] == truth.events
    service.until(site.all_committed, "all is committed")
    assert service.ask("/live") == (200, "live\n")
    service.until(lambda: lag(service) == 0, "figures of the last commit")
    look_at_metrics(service, truth, site.partitions)
    assert service.end() < STOP_S
    assert truth.wrong(site.newest()) == []
    assert truth.otherwise_held(site.newest_state(), history=50) == []
    assert site.commits() == site.ends()


def lag(service: Process) -> float:
    return sum(value for name, value in service.metrics().items() if name.startswith("afresh_consumer_lag"))


def look_at_metrics(service: Process, truth: Truth, partitions: int) -> None:
    """Hold every figure of a service that has learned exactly these events against them."""
    text, found = service.ask("/metrics")[1], service.metrics()
    for name in NAMES:
        family = name.removesuffix("_total") if f"# TYPE afresh_{name} " not in text else name
        assert f"# TYPE afresh_{family} " in text, name

    def total(name: str, **labels: str) -> float:
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        series = [key for key in found if re.split("[{]", key)[0] == f"afresh_{name}"]
        return sum(found[key] for key in series if all(label in key for label in wanted))

    users, items = len(truth.items), len({item for path in truth.items.values() for item in path})
    exact = {
        "events_consumed_total": truth.events, "events_learned": truth.events, "events_rejected_total": 0,
        "events_duplicate_total": 0, "dead_letters_total": 0, "partitions_assigned": partitions,
        "end_to_end_latency_seconds_count": truth.events, "publish_failures_total": 0,
        "last_event_timestamp_seconds": max(truth.last_ms.values()) / 1000,
    }  # fmt: skip
    assert {name: total(name) for name in exact} == pytest.approx(exact)
    assert total("consumer_lag_records") == 0
    assert sum(key.startswith("afresh_consumer_lag_records{") for key in found) == partitions
    for table, rows in (("users", users), ("items", items)):
        assert total("table_rows", table=table) == total("rows_admitted_total", table=table) == rows
        assert total("rows_evicted_total", table=table) == 0
    batches = total("model_version")
    assert total("train_steps_total") + total("train_steps_skipped_total") == batches > 5
    for stage in STAGES:
        assert total("stage_seconds_count", stage=stage) >= batches, stage
        assert total("stage_seconds_sum", stage=stage) > 0, stage
    assert 0 < total("end_to_end_latency_seconds_sum") < 60 * truth.events
    assert users <= total("rankings_published_total") <= truth.events + batches  # and the default's
    assert total("rebalances_total") >= 1
    assert abs(total("last_commit_timestamp_seconds") - time.time()) < 60
    assert total("loss") > 0
    assert total("gradient_norm") > 0
    assert 0 < total("catalogue_coverage_ratio") <= 1
    assert total("build_info") == 1
    quality = {
        (model, measure, segment): total("quality_ratio", model=model, measure=measure, segment=segment)
        for model in MODELS
        for measure in MEASURES
        for segment in USER_SEGMENTS
    }
    assert all(0 < value <= 1 for value in quality.values()), quality
    assert 0 < total("quality_ratio", model="attention", measure="served_hr", segment="all") < 1


def test_a_new_user_of_a_planted_chain_gets_the_successor_first(
    embedded_broker: str, topic_name: Name, tmp_path: Path
) -> None:
    successor = np.random.default_rng(7).permutation(1_000).tolist()
    walks = chain(successor, users=500, events=30_000, seed=8, start_ms=now_ms() - 40_000_000)
    starts = np.random.default_rng(9).permutation(1_000)[:100].tolist()
    withdrawn = f"item-{successor[starts[0]]}"
    names = {"items.fields": '{item_id = "sku", available = "in_stock"}'}
    with Site(embedded_broker, topic_name("chain"), tmp_path, settings=names) as site:
        site.create_topics()
        publish(embedded_broker, f"{site.stem}-items", {"sku": withdrawn, "in_stock": 0})
        site.send(walks)
        service = site.run()
        service.wait_learned(len(walks))
        site.send(event_of(f"new-{item}", f"item-{item}", now_ms()) for item in starts)
        service.until(site.all_committed, "all is committed")
        service.end()
        newest = site.newest()
    first = {item: newest[f"new-{item}"]["items"][0]["item_id"] for item in starts}
    assert sum(first[item] == f"item-{successor[item]}" for item in starts) >= 90
    shown = {place["item_id"] for ranking in newest.values() for place in ranking["items"]}
    assert withdrawn not in shown


class Judged(NamedTuple):
    """Events, and each model's figures on them as `evaluate` has them."""

    events: list[Sent]
    figures: dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Let `afresh evaluate` judge the variants that the service runs."""
    folder = tmp_path_factory.mktemp("judged")
    events = shopping(6_000, seed=2, now_ms=now_ms())
    file = write_csv(folder / "events.csv", events)
    with Process(
        "evaluate", str(file), "--batch", "128", "--json", folder=folder, name="evaluate"
    ) as process:
        assert process.wait() == 0
        models = json.loads(process.printed().splitlines()[-1])["models"]
    assert models["recent_popularity"]["settings"] == {"half_life": "1000"}, (
        "another than the service's is best"
    )
    return Judged(events, {model: flat(models[model]) for model in MODELS})


def test_live_quality_is_that_of_evaluate(
    broker: str, topic_name: Name, tmp_path: Path, judged: Judged
) -> None:
    with Site(broker, topic_name("live1"), tmp_path, 1, LIVE) as site:
        live = live_quality(site, judged.events)
    assert live.keys() == judged.figures.keys()
    for model, figures in judged.figures.items():
        assert live[model] == pytest.approx(figures, abs=1e-6), model


def test_live_quality_of_four_partitions_comes_near_that_of_evaluate(
    embedded_broker: str, topic_name: Name, tmp_path: Path, judged: Judged
) -> None:
    with Site(embedded_broker, topic_name("live4"), tmp_path, 4, LIVE) as site:
        live = live_quality(site, judged.events)
    for model, figures in judged.figures.items():
        assert live[model]["ndcg@10"] >= 0.95 * figures["ndcg@10"] > 0, model


def live_quality(site: Site, events: list[Sent]) -> dict[str, dict[str, float]]:
    """Return each model's figures over events that lay ready, as the checkpoint of SIGINT has them."""
    site.create_topics()
    site.send(events)
    service = site.run()
    service.until(site.all_committed, "all is committed")
    service.end(signal.SIGINT)
    found = site.inspect()
    assert found["events_learned"] == len(events)
    return {model: flat(figures) for model, figures in found["quality"].items()}


def flat(figures: dict[str, Any]) -> dict[str, float]:
    """Return a model's figures in full precision, by segment."""
    names = ("tests", "hr@10", "ndcg@10", "mrr@10")
    whole = {name: figures[name] for name in names}
    return whole | {f"{part} {name}": figures[part][name] for part in ("cold", "warm") for name in names}


def test_live_and_ready_tell_each_phase(embedded_broker: str, topic_name: Name, tmp_path: Path) -> None:
    events = shopping(6_000, seed=3, now_ms=now_ms())
    with Site(embedded_broker, topic_name("phases"), tmp_path) as site:
        site.create_topics()
        site.send(events)
        service = site.run()
        service.wait_learned(4_000)  # and no checkpoint: the next life has to learn them again
        service.kill()
        service, seen = site.run(), []

        def note() -> bool:
            live, state = service.ask("/live")[0], service.state()
            if state and state not in seen:
                seen.append(state)
                assert live == 200
            return state == "ready" and service.learned() == len(events)

        service.until(note, "all is learned")
        assert [state for state in seen if state != "starting"] in (
            ["resuming", "rebalancing", "ready"],
            ["resuming", "ready"],  # a rebalance may be over between two looks
        )
        service.end()
        assert "ready -> stopping" in service.said()
        service = site.run()  # with nothing left to learn
        service.until(lambda: service.learned() == len(events), "what was restored on /metrics")
        assert service.end() < STOP_S


def test_the_second_interrupt_ends_it_at_once(
    own_broker: EmbeddedBroker, topic_name: Name, tmp_path: Path
) -> None:
    with Site(own_broker.bootstrap_servers, topic_name("twice"), tmp_path) as site:
        site.create_topics()
        site.send(shopping(500, seed=4, now_ms=now_ms()))
        service = site.run()
        service.wait_learned(500)
        os.killpg(own_broker.pid, signal.SIGSTOP)  # now leaving takes its time
        try:
            service.tell(signal.SIGINT)
            service.wait_said("-> stopping")
            assert service.state() == "stopping"
            assert service.ask("/live")[0] == 200
            service.tell(signal.SIGINT)
            assert service.wait(STOP_S) == 130
        finally:
            os.killpg(own_broker.pid, signal.SIGCONT)


def test_a_broker_that_is_gone_for_too_long_ends_it_with_3(
    own_broker: EmbeddedBroker, topic_name: Name, tmp_path: Path
) -> None:
    patience = {"kafka.broker_timeout_s": 3}
    with Site(own_broker.bootstrap_servers, topic_name("gone"), tmp_path, settings=patience) as site:
        site.create_topics()
        service = site.run()
        service.wait_state("ready")
        own_broker.stop()
        began = time.monotonic()
        assert service.wait() == 3
        assert time.monotonic() - began > 2
        assert error_lines(service) == 1
        assert "has not answered" in service.said()


def test_too_many_bad_records_end_it_with_4_and_none_is_drained(
    embedded_broker: str, topic_name: Name, tmp_path: Path
) -> None:
    events = shopping(50, seed=5, now_ms=now_ms())
    bad = [event._replace(value=b"{") for event in shopping(60, seed=6, now_ms=now_ms())]
    (tmp_path / "after").mkdir()
    stem = topic_name("limit")
    with Site(embedded_broker, stem, tmp_path, 1, {"limits.max_consecutive_dead_letters": 40}) as site:
        site.create_topics()
        site.send([*events, *bad])
        service = site.run()
        assert service.wait() == 4
        assert error_lines(service) == 1
        assert "limits.max_consecutive_dead_letters = 40" in service.said()
        assert list(site.read(f"{stem}-dead_letters")) == []
    with Site(embedded_broker, stem, tmp_path, 1, {"limits.max_consecutive_dead_letters": 1_000}) as site:
        service = site.run()
        service.until(site.all_committed, "all is committed")
        service.end()
        assert [(letter.key, letter.value) for letter in site.read(f"{stem}-dead_letters")] == [
            (record.key, b"{") for record in bad
        ]
        assert site.inspect()["events_learned"] == len(events)


def error_lines(process: Process) -> int:
    """Count the lines of stderr that are for the user who typed the command."""
    return sum(line.startswith("afresh: ") for line in process.said().splitlines())


def test_of_two_processes_of_one_name_the_older_ends_and_in_one_folder_the_second(
    embedded_broker: str, topic_name: Name, tmp_path: Path
) -> None:
    """As README, Guarantees, says; with transactions, where a process can end another before it joins."""
    settings = {"kafka.transactions": "true"}
    elsewhere = settings | {"checkpoint.path": str(tmp_path / "elsewhere")}
    stem, broker = topic_name("two"), embedded_broker
    (tmp_path / "second").mkdir()
    events = shopping(400, seed=3, now_ms=now_ms())
    with (
        Site(broker, stem, tmp_path, settings=settings) as site,
        Site(broker, stem, tmp_path / "second", settings=elsewhere) as other,
    ):
        site.create_topics()
        older = site.run()
        site.send(events[:200])
        older.wait_learned(200)
        newer = other.run()

        def ended() -> bool:
            site.send(events[:5])  # an idle worker asks about its place every 10 s only
            return older.code is not None

        newer.until(ended, "the older one has ended")
        assert older.code == 2
        assert error_lines(older) == 1
        assert "kafka.worker_id = 'worker-0': another process has joined group" in older.said()
        newer.wait_state("ready")
        third = other.run()
        assert third.wait() == 2
        assert error_lines(third) == 1
        assert "another process is writing this journal" in third.said()
        site.send(events[200:])
        newer.wait_learned(200)
        newer.until(other.all_committed, "all is committed")
        newer.end()


def test_no_broker_at_the_start_is_told_in_one_line(topic_name: Name, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and doesn't listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with Site(address, topic_name("nobody"), tmp_path, settings={"kafka.start_timeout_s": 0.3}) as site:
            service = site.run()
            assert service.wait() == 2
    assert error_lines(service) == 1
    assert f"no broker answered at kafka.bootstrap_servers = '{address}'" in service.said()
    assert "Traceback" not in service.said()


def test_a_metrics_address_that_is_taken_is_told_in_one_line(
    embedded_broker: str, topic_name: Name, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Site(embedded_broker, topic_name("taken"), tmp_path, 1, {"metrics.address": address}) as site:
            site.create_topics()
            service = site.run()
            assert service.wait() == 2
    assert error_lines(service) == 1
    assert f"metrics.address = '{address}'" in service.said()
    assert "Traceback" not in service.said()
