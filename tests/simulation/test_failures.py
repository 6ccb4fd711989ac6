"""Loads that must fail, and how; and what is left when the local copy's process ends."""

from __future__ import annotations

import pytest

from coldstream.engine.actions import Chunk, Fail, Failure, Fetch, Ready, Stop, StoreChunk
from coldstream.engine.arena import Arena
from coldstream.engine.pace import Pace
from coldstream.engine.scheduler import Scheduler
from tests.simulation.world import MIB, Bucket, Disk, Reader, World, even


def ends(world: World) -> str:
    world.run()
    assert world.failed is not None
    return world.failed.kind


def test_wrong_bytes_thrice() -> None:
    world = World(even(5), bucket=Bucket(corrupt=1.0), readers=[Reader()])
    assert ends(world) == "integrity"
    assert world.scheduler.statistics.corrupt >= 3


def test_other_ranges_thrice() -> None:
    assert ends(World(even(5), bucket=Bucket(misranged=1.0), readers=[Reader()])) == "integrity"


def test_a_local_file_that_is_bad_and_no_original() -> None:
    world = World(even(5), bucket=Bucket(local_bad=1.0), is_local=[True] * 5, remote=False, readers=[Reader()])
    assert ends(world) == "integrity"


def test_links_that_are_never_good() -> None:
    world = World(even(30), bucket=Bucket(link_requests=1 << 40), readers=[Reader()])
    world._link_used = dict.fromkeys([(0, version) for version in range(9)], 1 << 41)
    assert ends(world) == "credentials"
    assert world.scheduler.statistics.renewals == 3


def test_a_link_that_is_never_renewed() -> None:
    world = World(even(60), bucket=Bucket(link_requests=20, renew_seconds=float("inf")), readers=[Reader()], give_up=30)
    assert ends(world) == "unavailable"
    assert 30 < world.now - world.start < 40


@pytest.mark.parametrize("is_local", [(), [True, False] * 30])
def test_a_bucket_that_dies(is_local: list[bool]) -> None:
    world = World(even(60), bucket=Bucket(dead_after=0.2), readers=[Reader()], is_local=is_local, give_up=30)
    assert ends(world) == "unavailable"
    assert 30 < world.now - world.start < 40


def test_a_storm_without_end() -> None:
    world = World(even(60), bucket=Bucket(storms=((0.5, 1e9),), retry_after=100.0), readers=[Reader()], give_up=30)
    assert ends(world) == "unavailable"
    assert world.failed is not None
    assert "busy" in world.failed.message


def test_consumers_may_take_longer_than_a_load_may_stand_still() -> None:
    world = World(even(60), readers=[Reader(work=20.0)], limit=8 * 8 * MIB, give_up=5)
    world.run()
    assert world.failed is None


def test_waiting_for_a_consumer_does_not_count_as_a_stall() -> None:
    world = World(even(60), readers=[Reader(), Reader(attach=500.0)], limit=8 * 8 * MIB, give_up=5)
    world.run()
    assert world.failed is None
    assert world.now - world.start >= 500


@pytest.mark.parametrize("fails_after", [0.2, 1.0, 3.0, 6.0, 9.0])
def test_the_local_copy_ends_at_any_time(fails_after: float) -> None:
    """Also while what was dropped is fetched again."""
    world = World(even(60), readers=[Reader()], limit=20 * 8 * MIB, disk=Disk(60e6, fails_after), seed=3)
    world.run()
    assert world.failed is None


def test_what_was_dropped_is_fetched_again() -> None:
    world = World(even(60), readers=[Reader()], limit=20 * 8 * MIB, disk=Disk(60e6))
    world.run()
    assert world._copying
    assert world.scheduler.statistics.requests > 60
    assert len(world._stored) == 60


class Alone:
    """A scheduler driven by hand."""

    def __init__(self, sizes: list[int], *, store: bool = False, limit: int = 1 << 40, consumers: int = 1) -> None:
        chunks = [Chunk(0, 0, number, number, 0, size) for number, size in enumerate(sizes)]
        self.scheduler = Scheduler(
            chunks,
            sizes,
            arena=Arena(limit),
            pace=Pace(first=2, limit=4),
            consumers=consumers,
            store=[True] * len(sizes) if store else (),
            give_up_seconds=10.0,
            now=0.0,
        )


def test_when_only_the_answer_was_lost_the_last_byte_is_fetched_again() -> None:
    """`[start, start)` is no range that HTTP can ask for."""
    scheduler = Alone([1000]).scheduler
    assert scheduler.tick(0.0) == [Fetch(0, 0, 0, 0, False)]
    scheduler.received(0, 1000, 0.1)
    assert scheduler.lost([0, 2], 0.2) == []
    (fetch,) = scheduler.tick(1.0)
    assert isinstance(fetch, Fetch)
    assert (fetch.connection, fetch.skip) == (1, 999)
    assert scheduler.done(1, 1.1) == [Ready(0, 0, 0)]


def test_a_stop_that_is_not_heard_is_repeated() -> None:
    scheduler = Alone([1000]).scheduler
    scheduler.tick(0.0)
    stops = [now / 20 for now in range(200) if Stop(0) in scheduler.tick(now / 20)]
    assert len(stops) >= 4
    assert scheduler.statistics.hedges == 1
    assert sum(scheduler.statistics.hedge_causes.values()) == 1


def test_a_late_consumer_receives_everything_even_after_the_copy_has_failed() -> None:
    scheduler = Alone([4096, 4096], store=True).scheduler
    scheduler.tick(0.0)
    assert scheduler.done(0, 0.1) == [Ready(0, 0, 0), StoreChunk(0, 0)]
    assert scheduler.done(1, 0.1) == [Ready(1, 4096, 1)]
    assert scheduler.finished
    assert not scheduler.stored
    assert scheduler.deadline(1.0) is None
    assert scheduler.store_failed(1.0) == []
    assert scheduler.stored
    assert scheduler.attached(0, 2.0) == [Ready(0, 0, 0), Ready(1, 4096, 1)]


def test_a_failure_while_what_was_dropped_is_fetched_again_leaves_the_load_finished() -> None:
    scheduler = Alone([4096, 4096, 4096], store=True, limit=8192).scheduler
    scheduler.attached(0, 0.0)
    scheduler.tick(0.0)
    assert scheduler.done(0, 0.1) == [Ready(0, 0, 0), StoreChunk(0, 0)]
    assert scheduler.done(1, 0.1) == [Ready(1, 4096, 1)]
    scheduler.released(0, 0, 0.2)
    (fetch,) = scheduler.released(0, 1, 0.2)
    assert isinstance(fetch, Fetch)
    assert scheduler.dropped == [1]
    assert scheduler.done(fetch.connection, 0.3) == [Ready(2, 4096, 2)]
    scheduler.detached(0, 0.4)
    assert scheduler.stored_chunk(0.5) == [StoreChunk(2, 4096)]
    scheduler.stored_chunk(0.6)
    assert scheduler.stored
    assert scheduler.statistics.unstored_bytes == 4096
    (again,) = scheduler.store_dropped(0.7)
    assert isinstance(again, Fetch)
    assert (again.chunk, again.skip) == (1, 0)
    assert not scheduler.stored
    (failed,) = scheduler.failed_fetch(again.connection, Failure("gone", 0, "404"), 0.8)
    assert failed == Fail("not-found", 1, "404")
    assert scheduler.finished
    assert scheduler.stored
    assert scheduler.tick(100.0) == []
    assert scheduler.deadline(100.0) is None


def test_the_copy_ends_while_what_was_dropped_is_fetched_again() -> None:
    scheduler = Alone([4096] * 6, store=True, limit=8192).scheduler
    scheduler.attached(0, 0.0)
    scheduler.tick(0.0)
    for _ in range(6):
        for connection in scheduler.flying():
            chunk = scheduler.flight(connection)
            assert chunk is not None
            scheduler.done(connection, 0.1)
            scheduler.released(0, chunk[0], 0.2)
    assert scheduler.finished
    scheduler.detached(0, 0.3)
    while not scheduler.stored:
        scheduler.stored_chunk(0.4)
    assert len(scheduler.dropped) > 2
    flying = len(scheduler.store_dropped(0.5))
    assert flying == 2
    assert scheduler.store_failed(0.6) == []
    assert not scheduler.stored
    one, other = scheduler.flying()
    assert scheduler.done(one, 0.7) == []
    assert scheduler.failed_fetch(other, Failure("broken"), 0.7) == []
    assert scheduler.stored
    assert scheduler.arena.used_bytes == 0
    assert scheduler.deadline(1.0) is None
