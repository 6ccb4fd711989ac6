"""Loads through a CDN that does well, badly, or not at all: the bucket behind it always brings them home."""

from __future__ import annotations

import math

import pytest

from coldstream.engine.cdn_choice import FAILURES_MAX, WINDOW, CdnHealth, status_number
from tests.simulation.world import MIB, Bucket, Reader, World, even

FAST = 200e6


def load(cdn: Bucket | None, *, chunks: int = 200, connections: int = 16, seed: int = 0, **options: object) -> World:
    world = World(
        even(chunks),
        bucket=Bucket(each_rate=30e6),
        cdn=cdn,
        readers=[Reader()],
        connections=connections,
        seed=seed,
        **options,  # type: ignore[arg-type]
    )
    world.run()
    assert world.failed is None
    return world


def seconds(world: World) -> float:
    assert world.finished_at is not None
    return world.finished_at - world.start


def test_a_good_one_brings_everything_and_is_faster() -> None:
    world = load(Bucket(each_rate=FAST, latency=0.005))
    counts = world.scheduler.statistics
    assert counts.cdn_requests == counts.requests == 200
    assert counts.cdn_bytes == counts.received_bytes == 200 * 8 * MIB
    assert counts.fallbacks == counts.retries == 0
    assert counts.bucket_seconds == 0 < counts.cdn_seconds <= seconds(world)
    assert seconds(world) < 0.5 * seconds(load(None))


BAD = {
    "refuses connections": Bucket(down_after=0.0),
    "never answers": Bucket(dead_after=0.0),
    "refuses, or has a page for everything": Bucket(no=1.0),
    "is busy, and says for how long": Bucket(busy=1.0, retry_after=60.0),
    "damages everything": Bucket(corrupt=1.0, each_rate=FAST),
    "cuts everything": Bucket(reset=1.0, each_rate=FAST),
    "goes silent": Bucket(stall=1.0),
    "trickles": Bucket(each_rate=20e3),
    "dies in the midst": Bucket(each_rate=FAST, down_after=0.4),
    "goes silent in the midst": Bucket(each_rate=FAST, dead_after=0.4),
}


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("seed", range(5))
def test_one_that_fails_is_given_up_and_costs_little(how: str, seed: int) -> None:
    alone = seconds(load(None, seed=seed))
    world = load(BAD[how], seed=seed)
    scheduler = world.scheduler
    assert not scheduler.cdn.open
    assert scheduler.cdn.gave_up
    # What was under way when it was given up, and no more, is asked for in vain.
    assert scheduler.statistics.fallbacks <= FAILURES_MAX + 2 * 16
    assert scheduler.statistics.retries == scheduler.statistics.corrupt == scheduler.statistics.busy == 0
    assert seconds(world) < alone + 12.0


def test_one_that_fails_now_and_then_is_kept() -> None:
    world = load(Bucket(each_rate=FAST, no=0.1, corrupt=0.05, reset=0.05), chunks=600)
    scheduler = world.scheduler
    assert scheduler.cdn.open
    assert 30 < scheduler.statistics.fallbacks < 250
    assert scheduler.statistics.requests - scheduler.statistics.cdn_requests >= scheduler.statistics.fallbacks
    assert scheduler.statistics.cdn_bytes > 0.5 * scheduler.statistics.received_bytes


def test_one_that_fails_more_often_than_not_is_given_up() -> None:
    world = load(Bucket(each_rate=FAST, no=0.7), chunks=600)
    assert not world.scheduler.cdn.open


def test_a_bucket_that_has_troubles_too() -> None:
    for seed in range(30):
        world = World(
            even(60),
            bucket=Bucket(reset=0.2, busy=0.1, stall=0.05, link_requests=40),
            cdn=Bucket(reset=0.3, corrupt=0.2, no=0.1),
            readers=[Reader()],
            cuts=0.2,
            seed=seed,
        )
        world.run()
        assert world.failed is None
        assert world.scheduler.statistics.corrupt == 0, "wrong bytes of the CDN are not the bucket's"


def test_a_worker_that_dies_is_not_the_cdn_s_fault() -> None:
    world = load(Bucket(each_rate=FAST), deaths=[0.1, 0.2, 0.3], workers=1)
    assert world.scheduler.cdn.open
    assert world.scheduler.statistics.fallbacks == 0
    assert world.scheduler.statistics.cdn_requests > 200


def test_when_it_is_given_up() -> None:
    cdn = CdnHealth()
    for chunk in range(FAILURES_MAX - 1):
        cdn.failed(chunk, "broken", "reset")
    assert cdn.open
    assert not cdn.takes(0)
    assert cdn.takes(FAILURES_MAX)
    cdn.succeeded()
    cdn.failed(100, "slow", "")
    assert repr(cdn) == f"CdnHealth(open, {FAILURES_MAX} failures)"
    for chunk in range(FAILURES_MAX - 1):
        cdn.failed(200 + chunk, "refused", "403")
    assert cdn.gave_up == f"it failed {FAILURES_MAX} times in a row, at last with: 403"
    assert not cdn.takes(999)
    share = CdnHealth()
    for chunk in range(WINDOW):
        share.failed(chunk, "range", "no range") if chunk % 3 else share.succeeded()
    assert not share.open
    assert share.failures == {"range": math.floor(WINDOW * 2 / 3)}


@pytest.mark.parametrize(
    ("said", "number"), [(None, 1), ("", 1), ("HIT", 2), (" hit", 2), ("DYNAMIC", 9), ("SOMETHING", 10), ("a, b", 10)]
)
def test_what_a_cache_says_is_one_of_a_few_things(said: str | None, number: int) -> None:
    assert status_number(said) == number
