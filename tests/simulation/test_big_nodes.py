"""Loads on nodes with cards of 100 to 400 Gbit/s, from a bucket that gives each connection 46 MB/s."""

from __future__ import annotations

from coldstream.engine.pace import first_connections
from coldstream.machine.connections import connections_for
from tests.simulation.world import MIB, Bucket, Reader, World, even

CHUNK = 8 * MIB
EACH, LATENCY = 46e6, 0.06


def load(gbit: int, *, cores: int, gib: int, busy_max: int = 1 << 60, seed: int = 0) -> World:
    rate = gbit * 1e9 / 8
    world = World(
        even(gib * 1024 * MIB // CHUNK),
        bucket=Bucket(
            latency=LATENCY, latency_sigma=0.7, connect=0.01, each_rate=EACH, total_rate=rate, busy_max=busy_max
        ),
        readers=[Reader()],
        connections=connections_for(cores, rate),
        first=first_connections(LATENCY),
        seed=seed,
        checked=False,
    )
    world.run(steps_max=10**6)
    assert world.failed is None
    return world


def rate(world: World) -> float:
    """Bytes per second of the load."""
    assert world.finished_at is not None
    return sum(world.sizes) / (world.finished_at - world.start)


def middle_rate(world: World) -> float:
    """Bytes per second in its second half, without its end."""
    half = world.samples[len(world.samples) // 2 : len(world.samples) * 9 // 10]
    return (half[-1][1] - half[0][1]) / (half[-1][0] - half[0][0])


def test_the_pace_fills_a_link_of_100_gbit() -> None:
    world = load(100, cores=48, gib=32)
    assert middle_rate(world) >= 0.98 * 12.5e9
    assert world.pace.limit == 625
    assert world.scheduler.statistics.requests <= 1.03 * len(world.chunks)


def test_a_bucket_that_refuses_above_a_hundred_is_hardly_provoked_by_a_big_node() -> None:
    refusing = load(100, cores=48, gib=16, busy_max=100)
    counts = refusing.scheduler.statistics
    assert counts.busy <= 0.02 * counts.requests
    assert refusing.scheduler.statistics.connections_peak <= 130
