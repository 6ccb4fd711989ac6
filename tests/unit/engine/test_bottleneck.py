"""Who was the bottleneck."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coldstream.engine.bottleneck import Measured, verdict

# Ten seconds, one gigabyte a second, a consumer that always waits, connections to spare.
USUAL = Measured(
    seconds=10.0,
    received_bytes=10 * 10**9,
    here_bytes=0,
    cpu_seconds=5.0,
    cores=4,
    workers=4,
    tls=True,
    consumer_wait_seconds=9.5,
    connections_mean=20.0,
    connections_limit=64,
    saturated=True,
    requests=1200,
    busy=0,
)


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
        ({"cpu_seconds": 38.0, "tls": False}, "cpu", "the CPU"),
        ({"cpu_seconds": 9.0, "workers": 1}, "tls", "0.9 of 4 cores"),
        ({"received_bytes": 0, "here_bytes": 10**10}, "disk", "1.00 GB/s"),
        ({"saturated": False, "connections_mean": 60.0}, "connections", "64 connections"),
        ({}, "bucket", "more connections did not help"),
        ({"saturated": False}, "bucket", "each connection gave 50.0 MB/s"),
        ({"link_bytes_per_second": 10e9}, "bucket", "bucket"),
    ],
)
def test_verdict(changes: dict[str, object], kind: str, words: str) -> None:
    found, sentence = verdict(replace(USUAL, **changes))  # type: ignore[arg-type]
    assert found == kind
    assert words in sentence


def test_nothing_at_all_has_a_verdict() -> None:
    nothing = Measured(
        seconds=0.0,
        received_bytes=0,
        here_bytes=0,
        cpu_seconds=0.0,
        cores=1,
        workers=1,
        tls=False,
        consumer_wait_seconds=0.0,
        connections_mean=0.0,
        connections_limit=1,
        saturated=False,
        requests=0,
        busy=0,
    )
    assert verdict(nothing)[0] == "latency"
    assert verdict(replace(nothing, seconds=5.0, consumer_wait_seconds=5.0))[0] == "disk"
