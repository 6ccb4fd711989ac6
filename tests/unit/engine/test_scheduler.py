"""Single decisions of the scheduler, by hand; whole loads are in tests/simulation."""

from __future__ import annotations

import random

import pytest

from coldstream.engine.actions import Chunk, Fail, Failure, Fetch, Ready, Renew, Stop, StoreChunk
from coldstream.engine.arena import Arena, arena_bytes
from coldstream.engine.hedging import Flight, Speeds
from coldstream.engine.pace import Pace
from coldstream.engine.scheduler import (
    BACKOFF_SECONDS_MAX,
    PILE_MAX,
    REST_SECONDS_MAX,
    WINDOW_BYTES,
    RetryState,
    Scheduler,
)

PAGE = 4096


def scheduler(
    sizes: list[int],
    *,
    is_local: int = 0,
    connections: int = 4,
    limit: int = 1 << 40,
    mapped: int | None = None,
    consumers: int = 1,
    store: bool = False,
    in_order: bool = False,
) -> Scheduler:
    """One extent and one chunk for each size; the first `is_local` of them are local."""
    return Scheduler(
        [Chunk(0, 0, number, number, 0, size, is_local=number < is_local) for number, size in enumerate(sizes)],
        sizes,
        arena=Arena(limit, mapped_bytes=mapped),
        pace=Pace(first=connections, limit=connections),
        consumers=consumers,
        local_max=2,
        store=[number >= is_local for number in range(len(sizes))] if store else (),
        in_order=in_order,
        rng=random.Random(0),
        now=0.0,
    )


def test_it_says_how_far_it_is() -> None:
    found = scheduler([PAGE] * 8)
    found.tick(0.0)
    assert repr(found) == (
        "Scheduler(0 of 8 chunks, 4 flying, 0 of 8 extents ready, 4 in memory, Pace(4 of 4 connections))"
    )
    assert found.flying() == [0, 1, 2, 3]
    assert found.flight(3) == (3, 0)
    assert found.flight(9) is None


def test_the_chunk_that_failed_first_goes_on_first_and_from_where_it_was() -> None:
    found = scheduler([PAGE] * 8)
    found.tick(0.0)
    assert found.failed_fetch(1, Failure("cancelled", 100), 0.1) == [Fetch(1, 1, PAGE, 100, False)]
    assert found.statistics.retries == 0


def test_a_wrong_digest_starts_over() -> None:
    found = scheduler([PAGE])
    found.tick(0.0)
    for attempt in range(2):
        assert found.failed_fetch(0, Failure("corrupt", PAGE, "bad"), float(attempt)) == [Fetch(0, 0, 0, 0, False)]
    assert found.failed_fetch(0, Failure("corrupt", PAGE, "bad"), 3.0) == [Fail("integrity", 0, "bad")]
    assert found.failed == Fail("integrity", 0, "bad")
    assert found.tick(4.0) == []
    assert found.deadline(4.0) is None


@pytest.mark.parametrize(("kind", "expected"), [("changed", "conflict"), ("gone", "not-found"), ("tls", "unavailable")])
def test_what_no_second_attempt_changes_ends_the_load(kind: str, expected: str) -> None:
    found = scheduler([PAGE])
    found.tick(0.0)
    assert found.failed_fetch(0, Failure(kind, 0, "no"), 0.1) == [Fail(expected, 0, "no")]


def test_a_local_chunk_that_is_bad_comes_from_afar_and_is_stored() -> None:
    found = scheduler([PAGE], is_local=1, store=True)
    (read,) = found.tick(0.0)
    assert isinstance(read, Fetch)
    assert read.is_local
    (fetch,) = found.failed_fetch(read.connection, Failure("local", PAGE, "rotten"), 0.1)
    assert fetch == Fetch(0, 0, 0, 0, False)
    assert found.done(0, 0.2) == [Ready(0, 0, 0), StoreChunk(0, 0)]


def test_a_refused_link_is_renewed_once_and_those_with_the_old_one_try_again() -> None:
    found = scheduler([PAGE] * 4)
    found.tick(0.0)
    assert found.failed_fetch(0, Failure("refused"), 0.1) == [Renew(0)]
    assert found.failed_fetch(1, Failure("refused"), 0.2) == []
    again = found.renewed(0, 1.0)
    assert [action.chunk for action in again if isinstance(action, Fetch)] == [0, 1]
    assert found.failed_fetch(2, Failure("refused"), 1.1) == [Fetch(2, 2, 2 * PAGE, 0, False)]
    assert found.statistics.renewals == 1


def test_a_link_that_brings_bytes_is_a_good_one() -> None:
    found = scheduler([PAGE], connections=1)
    found.tick(0.0)
    for attempt in range(9):
        now = 10.0 * attempt
        assert found.failed_fetch(0, Failure("refused"), now) == [Renew(0)]
        assert len(found.renewed(0, now + 1)) == 1
        found.failed_fetch(0, Failure("broken", 10), now + 2)
        assert len(found.tick(now + 9)) == 1


def test_connections_that_are_lost_are_used_again_once_they_are_found() -> None:
    found = scheduler([PAGE] * 8)
    found.tick(0.0)
    found.received(1, 50, 0.05)
    assert found.lost([1, 3], 0.1) == []
    assert found.flying() == [0, 2]
    assert found.done(0, 0.2) == [Ready(0, 0, 0), Fetch(0, 4, 4 * PAGE, 0, False)]
    assert {action.connection for action in found.regained([1, 3], 5.0) if isinstance(action, Fetch)} == {1, 3}
    found.tick(5.1)
    assert found.regained([1, 3], 5.2) == [], "twice is once"


def test_in_order_means_in_order() -> None:
    found = scheduler([PAGE] * 3, in_order=True)
    found.tick(0.0)
    assert found.done(1, 0.1) == []
    assert found.done(0, 0.2) == [Ready(0, 0, 0), Ready(1, PAGE, 1)]


def test_ready_extents_run_ahead_of_a_consumer_only_so_far() -> None:
    half = WINDOW_BYTES // 2
    found = scheduler([half] * 6, connections=1)
    found.attached(0, 0.0)
    found.tick(0.0)
    for now in range(3):
        actions = found.done(0, float(now))
    assert not any(isinstance(action, Fetch) for action in actions)
    # It drops the second: so it has looked at the first as well, which it keeps.
    assert any(isinstance(action, Fetch) for action in found.released(0, 1, 5.0))


def test_local_chunks_pile_up_only_so_far_while_remote_ones_are_looked_for() -> None:
    found = scheduler([PAGE] * 100, is_local=99)
    found.tick(0.0)
    assert found.arena.used_bytes <= (PILE_MAX + 2) * PAGE


def test_it_grows_only_when_all_who_are_there_wait() -> None:
    found = scheduler([PAGE] * 4, connections=1, limit=PAGE, consumers=2)
    found.tick(0.0)
    found.attached(0, 0.0)
    found.done(0, 0.1)
    assert found.waiting(0, 1, 0.2) == []
    assert found.attached(1, 0.3) == [Ready(0, 0, 0)]
    assert found.released(1, 0, 0.4) == []
    (fetch,) = found.waiting(1, 1, 0.5)
    assert isinstance(fetch, Fetch)
    assert found.statistics.grown_bytes == PAGE, "the first has only its last tensor"
    found.done(0, 0.6)
    assert found.waiting(0, 2, 0.7) == []
    assert found.released(1, 1, 0.8) == []
    (fetch,) = found.waiting(1, 2, 0.9)
    assert isinstance(fetch, Fetch)
    assert found.statistics.grown_bytes == PAGE + WINDOW_BYTES, "the first keeps all that it gets"


def test_for_a_consumer_that_keeps_only_its_last_tensor_it_grows_by_what_is_lacking() -> None:
    """That tensor may divide what is free into pieces that are too small."""
    large = 2 * WINDOW_BYTES
    found = scheduler([PAGE, PAGE, large], connections=2, limit=large + PAGE)
    found.tick(0.0)
    found.attached(0, 0.0)
    found.done(0, 0.1)
    found.done(1, 0.1)
    assert found.released(0, 0, 0.2) == []
    (fetch,) = found.waiting(0, 2, 0.3)
    assert isinstance(fetch, Fetch)
    assert fetch.offset == 2 * PAGE
    assert found.statistics.grown_bytes == PAGE


def test_a_consumer_that_keeps_all_and_says_nothing_is_outwaited() -> None:
    found = scheduler([PAGE] * 4, connections=1, limit=PAGE, consumers=2)
    for consumer in range(2):
        found.attached(consumer, 0.0)
    found.done(0, 0.1)
    assert found.waiting(0, 1, 0.2) == []
    assert found.tick(10.0) == []
    assert found.deadline(10.0) == 10.5
    (fetch,) = found.tick(21.0)
    assert isinstance(fetch, Fetch)


def test_a_consumer_that_leaves_keeps_what_it_holds_and_nothing_else() -> None:
    found = scheduler([PAGE] * 4, connections=1, limit=3 * PAGE, consumers=2)
    for consumer in range(2):
        found.attached(consumer, 0.0)
    found.tick(0.0)
    found.done(0, 0.1)
    found.done(0, 0.2)
    found.released(1, 0, 0.3)
    found.released(1, 1, 0.3)
    assert found.arena.used_bytes == 3 * PAGE, "two that the first consumer was told of, one on its way"
    # It has looked at one of them, which it holds.
    found.left(0, 1, 0.4)
    assert found.arena.used_bytes == 2 * PAGE
    assert Ready(2, 2 * PAGE, 2) in found.done(0, 0.5)
    found.released(1, 2, 0.6)
    found.done(0, 0.7)
    found.released(1, 3, 0.8)
    assert found.finished
    assert found.arena.used_bytes == PAGE
    found.released(0, 0, 0.9)
    assert found.arena.used_bytes == 0


def test_waits_of_consumers_are_counted_whole() -> None:
    found = scheduler([PAGE] * 2, connections=1)
    found.attached(0, 0.0)
    found.done(0, 1.0)
    found.waiting(0, 1, 2.0)
    found.released(0, 0, 4.0)
    found.done(0, 5.0)
    assert found.statistics.consumer_wait_seconds == 3.0


def test_deadlines_are_not_put_off_by_events() -> None:
    found = scheduler([PAGE] * 100)
    found.tick(0.0)
    due = found.deadline(0.0)
    found.done(0, 0.04)
    assert found.deadline(0.04) == due == 0.05
    assert found.deadline(7.0) == 7.0


def test_a_rest_is_woken_from() -> None:
    found = scheduler([PAGE])
    found.tick(0.0)
    assert found.failed_fetch(0, Failure("busy", retry_after_seconds=0.1), 0.0) == []
    due = found.deadline(0.0)
    assert due is not None
    assert 0.1 <= due <= 0.3
    assert found.tick(due) == [Fetch(0, 0, 0, 0, False)]


def test_beyond_what_is_mapped_it_fails_instead_of_growing() -> None:
    """Where the address space is limited, a consumer that keeps everything must not wait for ever."""
    found = scheduler([PAGE] * 4, limit=PAGE, mapped=2 * PAGE)
    found.attached(0, 0.0)
    found.tick(0.0)
    found.done(0, 1.0)
    assert found.waiting(0, 1, 2.0)[:1] == [Fetch(0, 1, PAGE, 0, False)], "as far as is mapped it grows"
    found.done(0, 3.0)
    failure = Fail("memory", None, "the tensors that are kept fill all the memory that may be mapped")
    assert found.waiting(0, 2, 4.0) == [failure]
    assert found.failed == failure
    assert found.tick(5.0) == []


@pytest.mark.parametrize(
    ("store", "most", "size"),
    [
        (False, None, 3 * PAGE),
        (True, None, 6 * PAGE),
        (True, 5 * PAGE + 1, 5 * PAGE),
        (False, 100 * PAGE, 3 * PAGE),
        (True, 0, PAGE),
    ],
)
def test_the_arena_takes_no_more_address_space_than_it_can_use(store: bool, most: int | None, size: int) -> None:
    assert arena_bytes([PAGE + 1, 5], store=store, limit_bytes=most) == size


def test_rests_grow_and_are_bounded() -> None:
    state, rng = RetryState(), random.Random(1)
    rests = [state.rest(None, rng) for _ in range(20)]
    assert rests[0] <= 0.05
    assert max(rests) <= 1.5 * BACKOFF_SECONDS_MAX
    assert min(rests[10:]) >= 0.5 * BACKOFF_SECONDS_MAX
    assert 3.0 <= state.rest(3.0, rng) <= 3.2
    assert state.rest(1e9, rng) <= REST_SECONDS_MAX + 0.2


MIB = 1 << 20


def flights(*received: int, began: float = 10.0, now: float = 12.0) -> list[tuple[int, Flight]]:
    return [(n, Flight(n, False, 0, 8 * MIB, began, 0, moved=now, received=count)) for n, count in enumerate(received)]


def speeds(count: int, now: float) -> Speeds:
    """What `count` requests showed that brought 8 MiB in a quarter of a second."""
    found = Speeds()
    for _ in range(count):
        found.finished(Flight(0, False, 0, 8 * MIB, now - 0.25, 0, moved=now), 0.02, now, chunk_bytes=8 * MIB)
    return found


def test_one_slow_connection_is_found() -> None:
    assert list(speeds(8, 11.9).to_stop(flights(8 * MIB - 9, MIB // 2, 8 * MIB - 9), 16, 12.0)) == [(1, "slow")]


def test_as_long_as_little_is_known_only_silence_counts() -> None:
    few = flights(8 * MIB - 9, MIB // 2)
    assert list(speeds(2, 11.9).to_stop(few, 16, 12.0)) == []
    few[1][1].moved = 6.0
    assert list(speeds(2, 11.9).to_stop(few, 16, 12.0)) == [(1, "silent")]


def test_when_all_are_slow_it_is_the_bucket() -> None:
    assert list(speeds(8, 8.0).to_stop(flights(*[MIB // 2] * 16), 16, 12.0)) == []


def test_only_so_many_are_stopped_at_a_time() -> None:
    found, slow = speeds(8, 11.9), flights(*[MIB // 2] * 16)
    assert len(list(found.to_stop(slow, 16, 12.0))) == 4
    assert list(found.to_stop(slow, 16, 12.05)) == []
    assert [cause for _, cause in found.to_stop(slow, 16, 13.1)] == [None] * 4


def test_one_that_is_nearly_through_is_left_alone() -> None:
    assert list(speeds(8, 11.9).to_stop(flights(8 * MIB - 1000, MIB), 16, 12.0)) == [(1, "slow")]


def test_with_connections_to_spare_a_slow_one_is_stopped_sooner() -> None:
    late = flights(8 * MIB - 9, 0, began=11.7)
    late[1][1].moved = 11.7
    assert list(speeds(8, 11.9).to_stop(late, 16, 12.0)) == []
    assert list(speeds(8, 11.9).to_stop(late, 16, 12.0, spare=True)) == [(1, "slow")]


def test_a_reply_that_has_just_begun_is_not_slow() -> None:
    """Its connection tells only every quarter of a second how far it is."""
    begun = flights(8 * MIB - 9, 16 << 10)
    assert list(speeds(8, 11.9).to_stop(begun, 16, 12.0)) == []
    assert list(speeds(8, 11.9).to_stop(begun, 16, 12.2)) == []
    assert list(speeds(8, 12.3).to_stop(begun, 16, 12.4)) == [(1, "slow")]


@pytest.mark.parametrize(("finished", "stopped"), [(7, 1), (4, 0)])
def test_at_the_end_of_a_load_the_last_requests_are_not_waited_for_long(finished: int, stopped: int) -> None:
    """But those of a small model, which has fewer chunks than connections, are not the last ones from the start."""
    found = Scheduler(
        [Chunk(0, 0, n, n, 0, 8 * MIB) for n in range(8)],
        [8 * MIB] * 8,
        arena=Arena(1 << 40),
        pace=Pace(first=8, limit=8),
        now=0.0,
    )
    found.tick(0.0)
    for connection in range(finished):
        found.done(connection, 0.5, first_byte_seconds=0.02)
    assert sum(isinstance(action, Stop) for action in found.tick(0.6)) == stopped
