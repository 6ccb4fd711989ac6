"""What is counted of loads, starts and bundles."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from coldstream.engine.load_statistics import LoadStatistics
from coldstream.errors import CancelledError, ColdstreamError, IntegrityError, NotFoundError, UnavailableError
from coldstream.telemetry.metrics.metric_names import METRICS, OTHER, Metric, source_of
from coldstream.telemetry.metrics.registry import MetricCounts, Metrics, cache_result
from coldstream.telemetry.metrics.textfile import parse, render
from tests.unit.telemetry.metrics.loads import Load, report, value
from tests.unit.telemetry.timeline.starts import streamed

MODEL = "org/m"
LOADS = Metric(name="coldstream_x_total", kind="counter", help="X.", labels={"model": None})
SECONDS = Metric(name="coldstream_y_seconds", kind="histogram", help="Y.", labels={"model": None}, buckets=(0.5, 10.0))


def metrics(uri: str = "s3://bucket/org/m", model: str = MODEL) -> Metrics:
    return Metrics(model, uri=uri)


def get(found: Metrics, name: str, **labels: str) -> float | None:
    return value(found.families(live=True), name, **labels)


def test_a_load_is_counted_while_it_runs_and_once() -> None:
    found, load = metrics(), Load()
    found.follow(lambda: [load])
    assert get(found, "coldstream_loads_running") == 1
    load.statistics = LoadStatistics(
        received_bytes=40, requests=5, retry_causes={"busy": 2}, connections_now=3, connections_peak=4
    )
    for _ in range(2):
        assert get(found, "coldstream_load_bytes_total", model=MODEL, **{"from": "network"}) == 40
        assert get(found, "coldstream_retries_total", cause="busy") == 2
        assert get(found, "coldstream_connections") == 3
        assert get(found, "coldstream_load_progress_bytes") == 40
        assert get(found, "coldstream_load_expected_bytes") == 100
    load.statistics = LoadStatistics(
        received_bytes=110,
        local_bytes=7,
        requests=9,
        retry_causes={"busy": 2, "corrupt": 1},
        hedge_causes={"slow": 1},
        corrupt=1,
    )
    load.outcome = report(seconds=3.0, first_tensor_seconds=0.5, cpu_seconds=2.0, received_bytes=110, cache_bytes=7)
    for _ in range(2):
        assert get(found, "coldstream_load_bytes_total", model=MODEL, **{"from": "network"}) == 110
        assert get(found, "coldstream_load_bytes_total", model=MODEL, **{"from": "cache"}) == 7
        assert get(found, "coldstream_requests_total") == 9
        assert get(found, "coldstream_retries_total", cause="busy") == 2
        assert get(found, "coldstream_retries_total", cause="corrupt") == 1
        assert get(found, "coldstream_hedges_total", cause="slow") == 1
        assert get(found, "coldstream_verification_failures_total") == 1
        assert get(found, "coldstream_loads_running") == 0
        assert get(found, "coldstream_load_progress_bytes") == 100, "repeated bytes are no progress"
        ok = {"model": MODEL, "outcome": "ok", "source": "s3", "verified": "yes"}
        assert get(found, "coldstream_loads_total", **ok) == 1
        assert get(found, "coldstream_load_seconds_sum", model=MODEL) == 3.0
        assert get(found, "coldstream_load_seconds_bucket", model=MODEL, le="5.0") == 1
        assert get(found, "coldstream_load_cpu_seconds_total") == 2.0
        assert get(found, "coldstream_cache_loads_total", result="partial") == 1
        assert get(found, "coldstream_loads_limited_total", limit="bucket") == 1


def test_several_loads_of_one_process_add_up() -> None:
    found = metrics()
    loads = [Load(statistics=LoadStatistics(received_bytes=10 * n), outcome=report()) for n in (1, 2, 3)]
    found.follow(lambda: loads[:1])
    found.look()
    found.follow(lambda: loads)
    assert get(found, "coldstream_load_bytes_total", model=MODEL, **{"from": "network"}) == 60
    assert get(found, "coldstream_load_seconds_count", model=MODEL) == 3


@pytest.mark.parametrize(
    ("error", "outcome", "kind"),
    [
        (UnavailableError("x"), "failed", "unavailable"),
        (IntegrityError("x"), "failed", "integrity"),
        (ColdstreamError("x"), "failed", "coldstream"),
        (CancelledError("x"), "cancelled", None),
    ],
)
def test_a_load_that_fails_is_counted_by_its_kind(error: ColdstreamError, outcome: str, kind: str | None) -> None:
    found = metrics()
    load = Load(statistics=LoadStatistics(received_bytes=10, retry_causes={"broken": 7}), outcome=error)
    found.follow(lambda: [load], lambda: [error])
    found.end()
    labels = {"model": MODEL, "source": "s3", "verified": "unknown"}
    assert get(found, "coldstream_loads_total", outcome=outcome, **labels) == 1
    assert get(found, "coldstream_retries_total", cause="broken") == 7, "what it did before is counted"
    failures = found.families(live=True)["coldstream_load_failures"].samples
    assert sum(failures.values()) == (kind is not None)
    assert kind is None or get(found, "coldstream_load_failures_total", kind=kind) == 1


def test_a_load_that_is_left_early_was_cancelled() -> None:
    found, load = metrics("hf://org/m"), Load(statistics=LoadStatistics(received_bytes=10))
    found.follow(lambda: [load])
    found.end()
    found.end()
    labels = {"model": MODEL, "source": "hub", "verified": "unknown", "outcome": "cancelled"}
    assert get(found, "coldstream_loads_total", **labels) == 1
    assert get(found, "coldstream_loads_running") == 0


def test_a_start_with_its_phases() -> None:
    found, timeline = metrics(), streamed()
    found.starting()
    found.started(timeline)
    found.end(start="failed")
    assert get(found, "coldstream_starts_total", model=MODEL, outcome="ok") == 1
    assert get(found, "coldstream_starts_total", model=MODEL, outcome="failed") is None
    assert get(found, "coldstream_last_start_seconds", model=MODEL) == timeline.ready_seconds
    assert get(found, "coldstream_first_token_seconds_sum", model=MODEL) == timeline.first_token_seconds
    phases = found.families(live=True)["coldstream_start_phase_seconds"].samples
    total = sum(count for (name, _), count in phases.items() if name.endswith("_sum"))
    assert total == pytest.approx(timeline.seconds)
    assert get(found, "coldstream_start_span_seconds_count", span="stream") == 1


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_a_start_that_never_answers(outcome: str) -> None:
    found = metrics()
    found.end()
    assert get(found, "coldstream_starts_total", model=MODEL, outcome="cancelled") is None, "none had begun"
    found.starting()
    found.end(start=outcome)
    assert get(found, "coldstream_starts_total", model=MODEL, outcome=outcome) == 1


def test_bundles() -> None:
    found = metrics()
    found.bundle_restored("restored")
    for result in ("published", "no"):
        found.bundle_published(result)
    assert get(found, "coldstream_bundle_restores_total", result="restored") == 1
    assert get(found, "coldstream_bundle_publishes_total", result="published") == 1
    assert get(found, "coldstream_bundle_publishes_total", result="no") == 1


def test_adapters() -> None:
    found = metrics()
    found.adapter_fetched(0.07, 100, 90)
    found.adapter_fetched(0.02, 100, 0)
    found.adapter_failed(NotFoundError("there is no model org/x"))
    for source in ("network", "cache"):
        assert get(found, "coldstream_adapter_fetches_total", **{"from": source}) == 1
        assert get(found, "coldstream_adapter_bytes_total", **{"from": source}) == 100
    assert get(found, "coldstream_adapter_failures_total", kind="not-found") == 1
    assert get(found, "coldstream_adapter_seconds_bucket", le="0.05") == 1
    assert get(found, "coldstream_adapter_seconds_count") == 2


def test_labels_are_bounded() -> None:
    found = metrics("gopher://x", model="m" * 1000 + "\n")
    for number in range(1000):
        found.bundle_restored(f"state {number}")
    load = Load(
        statistics=LoadStatistics(retry_causes={f"cause {n}": 1 for n in range(1000)}), outcome=report(limit="the moon")
    )
    found.follow(lambda: [load])
    assert get(found, "coldstream_bundle_restores_total", result=OTHER) == 1000
    assert get(found, "coldstream_retries_total", cause=OTHER) == 1000
    assert get(found, "coldstream_loads_limited_total", limit=OTHER) == 1
    labels = {"model": "m" * 128, "outcome": "ok", "source": OTHER, "verified": "yes"}
    assert get(found, "coldstream_loads_total", **labels) == 1
    assert len(found.text()) < 40_000


def test_what_is_live_is_in_no_file() -> None:
    live = {metric.name for metric in METRICS if metric.live}
    assert live <= metrics().families(live=True).keys()
    assert not live & metrics().families(live=False).keys()


def test_every_metric_is_made_and_the_text_holds_no_other() -> None:
    found = metrics()
    found.follow(lambda: [Load(outcome=report())])
    found.starting()
    found.started(streamed())
    names = {line.split()[2] for line in found.text().decode().splitlines() if line.startswith("# TYPE")}
    assert names == {metric.name for metric in METRICS} - {"coldstream_month_dollars"}
    assert b"_created" not in found.text()


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("s3://b/m", "s3"),
        ("http://127.0.0.1:1/m", "https"),
        ("hf://org/m", "hub"),
        ("file:///m", "folder"),
        ("./m", "folder"),
    ],
)
def test_where_a_model_comes_from(uri: str, source: str) -> None:
    assert source_of(uri) == source


@pytest.mark.parametrize(
    ("cached", "received", "here", "result"),
    [
        ("off", 9, 0, "off"),
        ("written", 9, 0, "miss"),
        ("complete", 0, 9, "hit"),
        ("partly", 4, 5, "partial"),
        ("the disk is full", 9, 0, "miss"),
    ],
)
def test_what_the_cache_gave(cached: str, received: int, here: int, result: str) -> None:
    assert cache_result(report(cached=cached, received_bytes=received, cache_bytes=here)) == result


def test_nothing_is_imported_until_it_is_asked_for() -> None:
    code = (
        "import sys, coldstream.cli.load_command, coldstream.telemetry.metrics.meter, coldstream.engine.streamer;"
        "import coldstream.engine.worker;"
        "assert not any(name.startswith('prometheus') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_histogram_s_buckets_add_up() -> None:
    counts = MetricCounts([SECONDS])
    for seconds in (0.5, 3.0, 99.0):
        counts.observe(SECONDS.name, seconds, model="m")
    samples = counts.families(live=True)[SECONDS.name].samples
    found = {(name, dict(labels).get("le")): count for (name, labels), count in samples.items()}
    assert found == {
        (f"{SECONDS.name}_bucket", "0.5"): 1,
        (f"{SECONDS.name}_bucket", "10.0"): 2,
        (f"{SECONDS.name}_bucket", "+Inf"): 3,
        (f"{SECONDS.name}_count", None): 3,
        (f"{SECONDS.name}_sum", None): 102.5,
    }


def test_what_is_written_is_read_back() -> None:
    counts = MetricCounts(METRICS)
    counts.observe("coldstream_load_seconds", 3.0, model='org/"m"\\')
    families = counts.families(live=True)
    assert parse(render(families), where="it") == families


def test_threads_lose_no_count() -> None:
    counts = MetricCounts([LOADS, SECONDS])

    def count() -> None:
        for _ in range(2000):
            counts.add(LOADS.name, model="m")
            counts.observe(SECONDS.name, 1.0, model="m")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    families = counts.families(live=True)
    assert [*families["coldstream_x"].samples.values()] == [8000]
    assert families[SECONDS.name].samples[f"{SECONDS.name}_count", (("model", "m"),)] == 8000


def test_where_processes_share_their_counters_ours_are_alone(tmp_path: Path) -> None:
    """PROMETHEUS_MULTIPROC_DIR, as vLLM sets it: its files are vLLM's, and two loads are not counted as three."""
    code = (
        "from coldstream.telemetry.metrics.registry import Metrics\n"
        "for _ in range(2):\n"
        "    found = Metrics('m', uri='./m'); found.bundle_restored('none')\n"
        "    samples = found.families(live=True)['coldstream_bundle_restores'].samples\n"
        "    assert sum(samples.values()) == 1, samples\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    )
    assert not [*tmp_path.iterdir()]
