"""What set the pace of a load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coldstream.engine.bottleneck import LIMITS, find_bottleneck
from coldstream.engine.load_statistics import LoadStatistics

# Ten seconds, one gigabyte a second, a consumer that always waits, connections to spare.
USUAL = LoadStatistics(
    seconds=10.0,
    received_bytes=10 * 10**9,
    cpu_seconds=5.0,
    workers=4,
    consumer_wait_seconds=9.5,
    flying_seconds=200.0,
    connections_limit=64,
    saturated=True,
    requests=1200,
)
AROUND = {"cores": 4, "is_tls": True}


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"seconds": 0.1}, "latency", "too short"),
        ({"full_seconds": 8.0}, "cpu", "every core"),
        ({"consumer_wait_seconds": 1.0}, "consumer", "90 %"),
        ({"consumer_wait_seconds": 1.0, "device": "cuda:0"}, "pcie", "cuda:0"),
        ({"busy": 100}, "throttling", "100 times"),
        ({"link_bytes_per_second": 1.1e9}, "network card", "1.10 GB/s"),
        ({"cpu_seconds": 38.0}, "tls", "3.8 of 4 cores"),
        ({"cpu_seconds": 38.0, "is_tls": False}, "cpu", "the CPU"),
        ({"cpu_seconds": 9.0, "workers": 1}, "tls", "0.9 of 4 cores"),
        ({"received_bytes": 0, "local_bytes": 10**10}, "disk", "1.00 GB/s"),
        ({"saturated": False, "flying_seconds": 600.0}, "connections", "64 connections"),
        (
            {"saturated": False, "flying_seconds": 600.0, "connections_bound": "other loads"},
            "connections",
            "other loads on this machine",
        ),
        (
            {"saturated": False, "flying_seconds": 600.0, "connections_bound": "open files"},
            "connections",
            "ulimit -Hn",
        ),
        ({"memory_wait_seconds": 8.0}, "memory", "full with 20 connections (--memory)"),
        ({}, "bucket", "more connections did not help"),
        ({"saturated": False}, "bucket", "each connection gave 50.0 MB/s"),
        ({"link_bytes_per_second": 10e9}, "bucket", "bucket"),
    ],
)
def test_bottleneck(changes: dict[str, Any], kind: str, words: str) -> None:
    counted = {name: value for name, value in changes.items() if name in LoadStatistics.__slots__}
    around = AROUND | {name: value for name, value in changes.items() if name not in counted}
    limit, sentence = find_bottleneck(replace(USUAL, **counted), **around)
    assert limit == kind
    assert limit in LIMITS
    assert words in sentence


def test_consumers_wait_each_for_themselves() -> None:
    statistics = replace(USUAL, consumer_wait_seconds=4.0)
    assert find_bottleneck(statistics, cores=4, is_tls=True, consumers=2)[0] == "consumer"
    assert (
        find_bottleneck(replace(statistics, consumer_wait_seconds=19.0), cores=4, is_tls=True, consumers=2)[0]
        == "bucket"
    )


def test_nothing_at_all_has_a_bottleneck() -> None:
    nothing = LoadStatistics(workers=1, connections_limit=1)
    assert find_bottleneck(nothing, cores=1, is_tls=False)[0] == "latency"
    waited = replace(nothing, seconds=5.0, consumer_wait_seconds=5.0)
    assert find_bottleneck(waited, cores=1, is_tls=False)[0] == "disk"
