"""The floors of a contestant."""

from __future__ import annotations

import dataclasses

from coldstream.operate.bench.contestant import Contestant
from coldstream.operate.bench.floors import Floors


def test_floors_of_a_contestant() -> None:
    floors = Floors(link=1e9, bucket=5e8, connection=1e8, core=4e8, cores=2, disk=3e9, pcie=2e10, tls=True)
    bucket_reader = Contestant(name="runai", label="", command=(), environ={}, connections=8)
    assert floors.of(bucket_reader, from_disk=True) == {
        "pcie": 2e10,
        "link": 1e9,
        "bucket": 5e8,
        "connections": 8e8,
        "tls": 8e8,
    }
    warm = dataclasses.replace(bucket_reader, connections=None)
    assert floors.of(warm, from_disk=True) == {"pcie": 2e10, "disk": 3e9}
    assert floors.of(warm, from_disk=False) == {"pcie": 2e10}
    assert Floors().lines() == []
