"""The commands together, as a user runs them, on real brokers: rankings, metrics, health and exit codes."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from harness.service import STOP_S, Process, Sent, Site
from harness.truth import Truth, chain, event_of, shopping, write_csv
from kafka import KafkaProducer

from pipeline.evaluation.rank_metrics import MEASURES, USER_SEGMENTS
from pipeline.outcome import STAGES
from producers.embedded_broker import EmbeddedBroker

pytestmark = pytest.mark.kafka
MakeSite = Callable[..., Site]
MODELS = ("attention", "popularity", "recent_popularity")
LIVE = {"batch.max_events": 128}  # as in `evaluate`


@pytest.fixture(params=["embedded", "apache"])
def site(request: pytest.FixtureRequest, topic_name: Callable[[str], str], tmp_path: Path) -> Iterator[Site]:
    """A site on `afresh broker`, the command, where `run` creates the topics; and one on Apache Kafka."""
    with Site("", topic_name("replay"), tmp_path) as site:
        if request.param == "apache":
            site.broker = request.getfixturevalue("apache_broker")
            site.create_topics()
            yield site
            return
        with Process("broker", "--port", "0", folder=tmp_path, name="broker", program="-m") as process:
            process.until(lambda: "bootstrap_servers=" in process.printed(), "its address")
            site.broker = process.printed().strip().removeprefix("bootstrap_servers=")
            yield site
            process.end()


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


def publish(broker: str, topic: str, record: object) -> None:
    with contextlib.closing(KafkaProducer(bootstrap_servers=broker)) as producer:
        producer.send(topic, key=b"1", value=json.dumps(record).encode()).get(timeout=20)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def assert_ended(process: Process, code: int, message: str) -> None:
    """Wait for the end of a process, and assert its exit code and the one line for its user."""
    assert process.wait() == code
    (line,) = [line for line in process.said().splitlines() if line.startswith("afresh: ")]
    assert message in line
    assert "Traceback" not in process.said()


def test_replayed_events_become_right_rankings_and_figures(site: Site, tmp_path: Path) -> None:
    events = shopping(6_000, seed=1, now_ms=now_ms())
    truth = Truth(events[:5_000])
    file = write_csv(tmp_path / "events.csv", events)
    service = site.start("run", program="-m")
    service.wait_state("ready")
    site.partitions = site.partitions_there()
    report = json.loads(site.call("replay", str(file), "--limit", "5000", "--json").splitlines()[-1])
    assert report["sent"] == truth.events
    service.until(site.all_committed, "all is committed")
    assert service.ask("/live") == (200, "live\n")
    service.until(lambda: lag(service) == 0, "the lag after the last commit")
    assert_metrics(service, truth, site.partitions)
    assert service.end() < STOP_S
    assert truth.wrong(site.newest()) == []
    assert truth.otherwise_held(site.opened().learner, history=50) == []
    assert site.commits() == site.ends()


def lag(service: Process) -> float:
    return sum(value for name, value in service.metrics().items() if name.startswith("afresh_consumer_lag"))


def assert_metrics(service: Process, truth: Truth, partitions: int) -> None:
    """Compare the metrics of a service that has learned exactly these events with them."""
    found = {name.removeprefix("afresh_"): value for name, value in service.metrics().items()}

    def series(name: str) -> list[float]:
        return [value for key, value in found.items() if key.partition("{")[0] == name]

    exact = {
        "events_consumed_total": truth.events, "events_learned": truth.events, "events_rejected_total": 0,
        "events_duplicate_total": 0, "dead_letters_total": 0, "partitions_assigned": partitions,
        "end_to_end_latency_seconds_count": truth.events, "publish_failures_total": 0, "build_info": 1,
        "last_event_timestamp_seconds": max(truth.last_ms.values()) / 1000, "rows_evicted_total": 0,
    }  # fmt: skip
    assert {name: sum(series(name)) for name in exact} == pytest.approx(exact)
    assert series("consumer_lag_records") == [0] * partitions
    users, items = len(truth.items), len({item for path in truth.items.values() for item in path})
    for name in ("table_rows", "rows_admitted_total"):
        assert [found[f'{name}{{table="{table}"}}'] for table in ("users", "items")] == [users, items]
    (batches,) = series("model_version")
    assert sum(series("train_steps_total") + series("train_steps_skipped_total")) == batches > 5
    for stage in STAGES:
        assert found[f'stage_seconds_count{{stage="{stage}"}}'] >= batches, stage
        assert found[f'stage_seconds_sum{{stage="{stage}"}}'] > 0, stage
    assert 0 < found["end_to_end_latency_seconds_sum"] < 60 * truth.events
    assert users <= found["rankings_published_total"] <= truth.events + batches  # and the default list
    assert abs(found["last_commit_timestamp_seconds"] - time.time()) < 60
    assert min(found[name] for name in ("rebalances_total", "loss", "gradient_norm")) > 0
    assert 0 < found["catalogue_coverage_ratio"] <= 1
    quality = series("quality_ratio")
    assert len(quality) == len(MODELS) * len(MEASURES) * len(USER_SEGMENTS) + 1  # of the published lists
    assert all(0 < value <= 1 for value in quality), found


def test_new_users_of_a_planted_chain_get_its_successor(embedded_broker: str, make_site: MakeSite) -> None:
    successor = np.random.default_rng(7).permutation(400).tolist()
    walks = chain(successor, users=200, events=12_000, seed=8, start_ms=now_ms() - 40_000_000)
    starts = np.random.default_rng(9).permutation(400)[:100].tolist()
    withdrawn = f"item-{successor[starts[0]]}"
    names = {"items.fields": '{item_id = "sku", available = "in_stock"}'}
    site = make_site(embedded_broker, settings=names)
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
    assert withdrawn not in {place["item_id"] for ranking in newest.values() for place in ranking["items"]}


class Evaluated(NamedTuple):
    events: list[Sent]
    metrics: dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Run `afresh evaluate` with the models that the service runs."""
    folder = tmp_path_factory.mktemp("evaluated")
    events = shopping(6_000, seed=2, now_ms=now_ms())
    file = str(write_csv(folder / "events.csv", events))
    options = ("--batch", "128", "--models", ",".join(MODELS), "--json")
    with Process("evaluate", file, *options, folder=folder, name="evaluate") as process:
        assert process.wait() == 0
        models = json.loads(process.printed().splitlines()[-1])["models"]
    assert models["recent_popularity"]["settings"] == {"half_life": "1000"}  # the service's
    return Evaluated(events, {model: flat(models[model]) for model in MODELS})


def test_live_quality_is_that_of_evaluate(broker: str, make_site: MakeSite, evaluated: Evaluated) -> None:
    site = make_site(broker, 1, LIVE)
    live = live_quality(site, evaluated.events)
    assert live.keys() == evaluated.metrics.keys()
    for model, metrics in evaluated.metrics.items():
        assert live[model] == pytest.approx(metrics, abs=1e-6), model
    inspected = json.loads(site.call("inspect", "--json").splitlines()[-1])
    assert {model: flat(inspected["quality"][model]) for model in MODELS} == live


def test_quality_of_four_partitions(embedded_broker: str, make_site: MakeSite, evaluated: Evaluated) -> None:
    live = live_quality(make_site(embedded_broker, 4, LIVE), evaluated.events)
    for model, metrics in evaluated.metrics.items():
        assert live[model]["ndcg@10"] >= 0.95 * metrics["ndcg@10"] > 0, model


def live_quality(site: Site, events: list[Sent]) -> dict[str, dict[str, float]]:
    """Return each model's metrics over events that lie ready, from the checkpoint after SIGINT."""
    site.send(events)
    service = site.run()
    service.until(site.all_committed, "all is committed")
    service.end(signal.SIGINT)
    found = site.inspect()
    assert found["events_learned"] == len(events)
    return {model: flat(metrics) for model, metrics in found["quality"].items()}


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Return a model's metrics in full precision, by segment."""
    names = ("tests", "hr@10", "ndcg@10", "mrr@10")
    whole = {name: metrics[name] for name in names}
    return whole | {f"{part} {name}": metrics[part][name] for part in ("cold", "warm") for name in names}


def test_live_and_ready_report_each_phase(embedded_broker: str, make_site: MakeSite) -> None:
    events = shopping(6_000, seed=3, now_ms=now_ms())
    site = make_site(embedded_broker)
    site.send(events)
    service = site.run()
    service.wait_learned(4_000)  # before the first checkpoint: the next process replays the journal
    service.kill()
    service, seen = site.run(), []

    def observe() -> bool:
        live, state = service.ask("/live")[0], service.state()
        if state and state not in seen:
            seen.append(state)
            assert live == 200
        return state == "ready" and service.learned() == len(events)

    service.until(observe, "all is learned")
    # a rebalance may be over between two requests
    later = [state for state in seen if state != "starting"]
    assert later in (["resuming", "rebalancing", "ready"], ["resuming", "ready"])
    service.end()
    assert "ready -> stopping" in service.said()
    service = site.run()  # with nothing left to learn
    service.until(lambda: service.learned() == len(events), "the restored number on /metrics")
    assert service.end() < STOP_S


def test_the_second_interrupt_ends_it_at_once(own_broker: EmbeddedBroker, make_site: MakeSite) -> None:
    site = make_site(own_broker.bootstrap_servers)
    site.send(shopping(500, seed=4, now_ms=now_ms()))
    service = site.run()
    service.wait_learned(500)
    os.killpg(own_broker.pid, signal.SIGSTOP)  # now leaving the group takes its time
    try:
        service.tell(signal.SIGINT)
        service.wait_said("-> stopping")
        assert service.state() == "stopping"
        assert service.ask("/live")[0] == 200
        service.tell(signal.SIGINT)
        assert service.wait(STOP_S) == 130
    finally:
        os.killpg(own_broker.pid, signal.SIGCONT)


def test_a_broker_lost_for_too_long_ends_it_with_3(own_broker: EmbeddedBroker, make_site: MakeSite) -> None:
    site = make_site(own_broker.bootstrap_servers, settings={"kafka.broker_timeout_s": 3})
    service = site.run()
    service.until(lambda: service.metrics().get("afresh_rankings_published_total"), "the default list")
    own_broker.stop()
    began = time.monotonic()
    assert_ended(service, 3, "has not answered")
    assert time.monotonic() - began > 2


def test_too_many_bad_records_end_it_with_4_uncommitted(embedded_broker: str, make_site: MakeSite) -> None:
    events = shopping(50, seed=5, now_ms=now_ms())
    bad = [event._replace(value=b"{") for event in shopping(60, seed=6, now_ms=now_ms())]
    site = make_site(embedded_broker, 1, {"limits.max_consecutive_dead_letters": 40})
    letters = f"{site.stem}-dead_letters"
    site.send([*events, *bad])
    assert_ended(site.run(), 4, "limits.max_consecutive_dead_letters = 40")
    assert site.read(letters) == []
    site.settings = {"limits.max_consecutive_dead_letters": 1_000}
    service = site.run()
    service.until(site.all_committed, "all is committed")
    service.end()
    assert [(each.key, each.value) for each in site.read(letters)] == [(each.key, b"{") for each in bad]
    assert site.inspect()["events_learned"] == len(events)


def test_of_two_processes_with_one_name_the_older_ends_and_with_one_folder_the_second(
    embedded_broker: str, make_site: MakeSite, tmp_path: Path
) -> None:
    """With transactions, where a process can fence another before it joins the group."""
    site = make_site(embedded_broker, settings={"kafka.transactions": "true"})
    elsewhere = ("--set", f"checkpoint.path={tmp_path / 'elsewhere'}")
    events = shopping(400, seed=3, now_ms=now_ms())
    older = site.run()
    site.send(events[:200])
    older.wait_learned(200)
    newer = site.start("run", *elsewhere)

    def ended() -> bool:
        site.send(events[:5])  # an idle worker checks its membership every 10 s only
        return older.code is not None

    newer.until(ended, "the end of the older one")
    assert_ended(older, 2, "kafka.worker_id = 'worker-0': another process has joined group")
    newer.wait_state("ready")
    assert_ended(site.start("run", *elsewhere), 2, "another process is writing this journal")
    site.send(events[200:])
    newer.wait_learned(200)
    newer.until(site.all_committed, "all is committed")
    newer.end()
