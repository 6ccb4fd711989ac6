"""The numbers of a process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from coldstream.telemetry.metrics.counts import MetricCounts
from coldstream.telemetry.metrics.exposition import parse, render
from coldstream.telemetry.metrics.metric_names import METRICS, Metric

LOADS = Metric(name="coldstream_x_total", kind="counter", help="X.", labels={"model": None})
SECONDS = Metric(name="coldstream_y_seconds", kind="histogram", help="Y.", labels={"model": None}, buckets=(0.5, 10.0))


def test_a_histogram_s_buckets_add_up() -> None:
    counts = MetricCounts([SECONDS])
    for value in (0.5, 3.0, 99.0):
        counts.observe(SECONDS.name, value, model="m")
    samples = counts.families(live=True)[SECONDS.name].samples
    found = {(name, dict(labels).get("le")): value for (name, labels), value in samples.items()}
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
