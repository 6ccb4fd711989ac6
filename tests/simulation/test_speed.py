"""How long loads take in virtual time, and how many connections they use."""

from __future__ import annotations

import math

import pytest

from tests.simulation.world import MIB, Bucket, Disk, Reader, World, even

GB = 10**9


def load(bytes_: int, bucket: Bucket, *, seed: int = 0, connections: int = 64, **kwargs: object) -> World:
    """A model of chunks of 8 MiB, and a consumer that drops everything at once."""
    world = World(
        even(bytes_ // (8 * MIB)),
        bucket=bucket,
        readers=[Reader()],
        seed=seed,
        connections=connections,
        checked=False,
        **kwargs,  # type: ignore[arg-type]
    )
    world.run(steps_max=10**7)
    assert world.failed is None
    return world


def seconds(world: World) -> float:
    assert world.finished_at is not None
    return world.finished_at - world.start


LINKS = {
    "16 x 30 MB/s": (Bucket(each_rate=30e6), 16, 4 * GB),
    "64 x 60 MB/s": (Bucket(each_rate=60e6, latency=0.005), 64, 16 * GB),
    "far, shared link": (Bucket(each_rate=30e6, total_rate=1.25e9, latency=0.15, connect=0.3), 128, 8 * GB),
}
FAULTS = {
    "slow": {"slow": 0.01},
    "busy": {"busy": 0.05},
    "resets": {"reset": 0.03},
    "stalls": {"stall": 0.01},
    "all": {"slow": 0.01, "busy": 0.05, "reset": 0.03},
}


@pytest.mark.parametrize("link", LINKS)
def test_equal_connections_are_not_taken_for_slow_ones(link: str) -> None:
    bucket, connections, size = LINKS[link]
    assert load(size, bucket, connections=connections).scheduler.statistics.hedges == 0


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("faults", FAULTS)
def test_faults_cost_less_than_a_third(link: str, faults: str) -> None:
    bucket, connections, size = LINKS[link]
    clean = seconds(load(size, bucket, connections=connections))
    for seed in range(2):
        broken = Bucket(**{**vars(bucket), **FAULTS[faults]})
        assert seconds(load(size, broken, connections=connections, seed=seed)) < 1.3 * clean


@pytest.mark.parametrize(
    ("connections", "latency", "share"),
    # Of a load of nine seconds, finding out that 64 connections are better than 16 takes a twentieth.
    [(16, 0.01, 0.95), (32, 0.05, 0.95), (48, 0.02, 0.95), (64, 0.01, 0.94)],
)
def test_connections_that_are_capped_are_all_used(connections: int, latency: float, share: float) -> None:
    world = load(16 * GB, Bucket(each_rate=30e6, latency=latency, connect=latency), connections=connections)
    assert max(world.targets) == connections
    # A connection gives its cap between the round trips, which nothing hides (1.15: their mean in this world).
    each = 8 * MIB / (8 * MIB / 30e6 + 1.15 * latency)
    assert seconds(world) <= 16e9 / (connections * each) / share


@pytest.mark.parametrize("rate", [0.3e9, 1.2e9])
def test_a_full_link_does_not_get_ever_more_connections(rate: float) -> None:
    world = load(16 * GB, Bucket(each_rate=60e6, total_rate=rate), connections=512)
    needed = rate / 60e6
    assert max(world.targets) <= max(32, 4 * needed)
    assert world.targets[-1] <= max(20, 2 * needed)
    assert world.pace.saturated
    assert seconds(world) < 1.08 * 16e9 / rate


def test_a_storm_makes_it_go_down_and_it_comes_up_again() -> None:
    world = load(40 * GB, Bucket(each_rate=30e6, storms=((3.0, 6.0),)), connections=64)
    assert max(world.targets[:60]) == 64
    assert min(world.targets) <= 8
    assert world.targets[-5] >= 48
    assert world.pace.throttled >= 2


def test_a_bucket_that_serves_only_so_many_is_not_pushed() -> None:
    world = load(16 * GB, Bucket(each_rate=60e6, busy_max=40), connections=256)
    assert world.scheduler.statistics.busy < 0.15 * world.scheduler.statistics.requests
    assert seconds(world) < 2.0 * 16e9 / (40 * 60e6)


def test_busy_answers_at_random_do_not_stop_it() -> None:
    world = load(8 * GB, Bucket(each_rate=30e6, busy=0.05), connections=64)
    assert world.pace.throttled <= 1


def test_what_the_server_asks_for_is_honoured() -> None:
    world = World(even(1), bucket=Bucket(storms=((0.0, 0.1),), retry_after=7.0), readers=[Reader()])
    assert 7.0 < world.run() < 8.0


def test_a_few_chunks_on_silent_connections_do_not_wait_for_long() -> None:
    for seed in range(20):
        world = World(even(3), bucket=Bucket(stall=0.5, stop_lost=0.3), readers=[Reader()], seed=seed)
        assert world.run() < 100.0


def test_a_consumer_that_is_slow_is_not_run_away_from() -> None:
    world = World(even(200), readers=[Reader(work=0.1)], bucket=Bucket(each_rate=200e6))
    world.run()
    # The window, what flies, and what it is looking at.
    assert world.arena.touched_bytes <= (17 + 16 + 2) * 8 * MIB


def test_a_consumer_that_is_not_there_yet_is_loaded_ahead_of() -> None:
    world = World(even(100), readers=[Reader(attach=60.0)])
    world.run()
    assert world.finished_at is not None
    assert world.finished_at - world.start < 5.0


def test_a_consumer_as_fast_as_the_link_costs_little() -> None:
    """It never waits, so it never says how far it is but by dropping."""
    alone = World(even(400), readers=[Reader()], bucket=Bucket(each_rate=30e6)).run()
    with_work = World(even(400), readers=[Reader(work=alone / 400)], bucket=Bucket(each_rate=30e6)).run()
    assert with_work < 1.25 * alone


def test_a_slow_disk_does_not_slow_the_load() -> None:
    bucket = Bucket(each_rate=100e6)
    alone = World(even(200), readers=[Reader()], bucket=bucket, limit=64 * 8 * MIB).run()
    world = World(even(200), readers=[Reader()], bucket=bucket, limit=64 * 8 * MIB, disk=Disk(rate=50e6))
    assert world.run() < 1.1 * alone


def test_nothing_grows_for_consumers_that_let_go() -> None:
    world = World(even(100), readers=[Reader(work=0.01), Reader(work=0.02)], limit=20 * 8 * MIB)
    world.run()
    assert world.scheduler.statistics.grown_bytes == 0


def test_kept_tensors_make_the_arena_grow_and_the_report_says_so() -> None:
    world = World(even(100), readers=[Reader(keep=1)], limit=20 * 8 * MIB)
    assert world.run() < 20.0
    assert 80 * 8 * MIB <= world.scheduler.statistics.grown_bytes <= (80 + 16) * 8 * MIB


def test_one_that_keeps_and_says_nothing_is_outlived() -> None:
    keeps = Reader(keep=1, late_drop=0, work=0.001)
    world = World(even(100), readers=[Reader(), keeps], limit=20 * 8 * MIB)
    assert world.run() < math.inf
